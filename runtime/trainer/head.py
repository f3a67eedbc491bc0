"""An output head that lends its weight to a loss, so that a stage can do without the logits of a whole vocabulary.

torchtitan applies the head inside the model. A stage that wants hidden states sets the model's `_skip_lm_head`, as torchtitan's own
chunked loss does, and then calls the head with its loss. The call goes through the module, so the head's weight is whole for it
where it is sharded, and its gradient is reduced after it, whether or not the input embedding shares the weight.

Under tensor parallelism a rank keeps the rows of its shard of the vocabulary. Hidden states come whole to every rank (torchtitan's
last norm gathers the sequence before the head), and a rank's loss gives its part of their gradient.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.distributed.tensor import DTensor, Partial
from torchtitan.distributed import ParallelDims
from torchtitan.models.common.linear import Linear
from torchtitan.protocols.model import BaseModel, ModelConfigConverter

from ..losses.shard import WHOLE, VocabularyShard, WholeVocabulary

HiddenLoss = Callable[[Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]
"""From hidden_NH and head_VH to losses [N] and what is summed beside them."""


class LendingHead(Linear):
    """torchtitan's output head. Called with a loss as well, it returns the loss of its input instead of logits."""

    @dataclass(kw_only=True, slots=True)
    class Config(Linear.Config):
        pass

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.shard: WholeVocabulary = WHOLE

    def parallelize(self, parallel_dims: ParallelDims) -> None:
        """Shard as torchtitan does, and remember which rows are here."""
        if parallel_dims.tp_enabled:
            self.shard = VocabularyShard(group=parallel_dims.get_mesh("tp").get_group(), num_ids=self.out_features)
        super().parallelize(parallel_dims)

    def forward(self, input: Tensor, *, loss: HiddenLoss | None = None) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """torchtitan's sharding wants the name `input`, and no other parameter by position."""
        return super().forward(input) if loss is None else loss(local(input, is_partial=True), local(self.weight))


def local(tensor: Tensor, *, is_partial: bool = False) -> Tensor:
    """What this rank has of a tensor; `is_partial` where its gradient will be a part to be summed over ranks."""
    if not isinstance(tensor, DTensor):
        return tensor
    return tensor.to_local(grad_placements=[Partial()] * tensor.device_mesh.ndim if is_partial else None)


class HeadConverter(ModelConfigConverter):
    """Swaps a model's output head for one that lends its weight."""

    @dataclass(kw_only=True, slots=True)
    class Config(ModelConfigConverter.Config):
        pass

    def __init__(self, config: Config):
        self.config = config

    def convert(self, model_config: BaseModel.Config) -> BaseModel.Config:
        """Return the config with its head swapped."""
        head = model_config.lm_head
        model_config.lm_head = LendingHead.Config(**{one.name: getattr(head, one.name) for one in dataclasses.fields(head)})
        return model_config
