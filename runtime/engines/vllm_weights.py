"""How vLLM replaces its weights in place. vLLM's worker inherits from this class (`worker_extension_cls`), on either transport.

On a CPU, vLLM 0.32 packs weights into a layout of its own after it has loaded them, and its `reload_weights` leaves two of these
packed copies behind. There is no error; every log-probability is wrong, by 0.8 on average.
- Experts are packed when their kernel is set up, which happens once; the reload copies the plain layout into the packed buffers.
  Without its kernel a layer is set up, and packed, again.
- An output head that shares the embedding's weight is no weight of the checkpoint, so nothing packs it again after the embedding
  has changed.

This touches what vLLM does not promise to keep: its version is pinned, `tests/conformance` compares a reloaded engine with a plain
forward pass, and every sync of a run ends with a comparison against the trainer (`../parity.py`).
"""

from typing import Any

from .transfer_words import decoded


class WeightSync:
    """What a worker of vLLM can do beside its own methods, by `collective_rpc`."""

    def sync_weights(self: Any, weights_path: str) -> str:
        """Replace the weights by those of a folder of safetensors, under the names of transformers or of a checkpoint."""
        self.forget_packed_experts()
        self.reload_weights(weights_path=weights_path)
        self.pack_tied_head()
        return weights_path

    def transfer_weights(self: Any, step: str, info: Any) -> None:
        """One step of a transfer from the trainer's device (`vllm_transfer.py`), in the order that vLLM wants."""
        match step:
            case "init":
                self.init_weight_transfer_engine(init_info=decoded(info))
            case "start":
                self.forget_packed_experts()
                self.start_weight_update()
            case "update":
                self.update_weights(update_info=decoded(info))
            case "finish":
                self.finish_weight_update()
                self.pack_tied_head()
            case _:
                raise ValueError(f"`{step}` is no step of a transfer")

    def forget_packed_experts(self: Any) -> None:
        """Have the experts' kernels set up again with the next weights, where that packs them."""
        if self.device.type != "cpu":
            return
        for module in self.model_runner.get_model().modules():
            method = getattr(module, "quant_method", None)
            if getattr(method, "moe_kernel", None) is not None:
                method.moe_kernel = None

    def pack_tied_head(self: Any) -> None:
        """Pack the embedding's weight for an output head that shares it."""
        model = self.model_runner.get_model()
        if self.device.type == "cpu" and model.config.tie_word_embeddings:
            head = model.lm_head.tie_weights(model.model.embed_tokens)
            head.quant_method.process_weights_after_loading(head)
