"""Between torchtitan's weights and those of transformers' `Qwen3_5MoeForCausalLM`.

torchtitan 0.3.0's own adapter takes the experts' matrices for transposed, as in an older family, and names the text model as a
part of one with a vision tower (pytorch/torchtitan PR 4373 corrects the first). Everything else is its work.

Shapes: E experts, F expert width, D model width.
"""

from typing import Any

from torchtitan.models.qwen3_5.state_dict_adapter import Qwen35StateDictAdapter

WITH_VISION, TEXT = "model.language_model.", "model."
EXPERTS = (".mlp.experts.gate_up_proj", ".mlp.experts.down_proj")  # [E, 2F, D] and [E, D, F]; torchtitan expects the transposed


class TextStateDictAdapter(Qwen35StateDictAdapter):
    """Text only, experts stacked: how the import job writes a model, and how this project keeps it."""

    def to_hf(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """transformers' names and layouts."""
        return {
            name.replace(WITH_VISION, TEXT, 1): tensor.transpose(-2, -1).contiguous() if name.endswith(EXPERTS) else tensor
            for name, tensor in super().to_hf(state_dict).items()
        }

    def from_hf(self, hf_state_dict: dict[str, Any]) -> dict[str, Any]:
        """torchtitan's names and layouts."""
        return super().from_hf(
            {
                name.replace(TEXT, WITH_VISION, 1) if name.startswith(TEXT) else name: (
                    tensor.transpose(-2, -1) if name.endswith(EXPERTS) else tensor
                )
                for name, tensor in hf_state_dict.items()
            }
        )
