"""An output head that lends its weight to a loss, so that a stage can do without the logits of a whole vocabulary.

torchtitan applies the head inside the model, and there the loss is computed too: while `lend` is set, the head returns what it says
of its input and its weight instead of logits. So FSDP2 sees one forward and one backward pass of the head and the last norm, which
it shards together, and has the weight whole for both, whether or not the input embedding shares it.

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

Lend = Callable[[Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]
"""From hidden_BLH and head_VH to losses [N] and what is summed beside them."""


class LendingHead(Linear):
    """torchtitan's output head. With `lend` set, it returns losses of its input instead of logits."""

    @dataclass(kw_only=True, slots=True)
    class Config(Linear.Config):
        pass

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.shard: WholeVocabulary = WHOLE
        self.lend: Lend | None = None

    def parallelize(self, parallel_dims: ParallelDims) -> None:
        """Shard as torchtitan does, and remember which rows are here."""
        if parallel_dims.tp_enabled:
            self.shard = VocabularyShard(group=parallel_dims.get_mesh("tp").get_group(), num_ids=self.out_features)
        super().parallelize(parallel_dims)

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """torchtitan's sharding wants the name `input`, and no other parameter."""
        return super().forward(input) if self.lend is None else self.lend(local(input, is_partial=True), local(self.weight))


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
