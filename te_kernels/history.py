"""The scales of delayed scaling, which a step takes from the magnitudes of earlier ones.

Every forward and backward pass reports the largest magnitude of every operand; once per optimizer step the ranks agree on the
largest of all, it enters a history, and the largest of the history decides the next scale. Between two optimizer steps nothing
changes, so gradient accumulation and activation checkpointing compute what they would without.

Source: Transformer Engine 2.20.2, pytorch/quantization.py (`_default_sf_compute`); there a history moves once per autocast region.

Shapes: T steps of history, E experts of all ranks, O operands of a layer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .recipe import Operand, Recipe

OPERANDS = len(Operand)


@dataclass(kw_only=True, slots=True)
class AmaxHistory:
    """The state of one expert layer. All ranks hold it for all experts, and alike."""

    recipe: Recipe
    experts: int
    first_expert: int = 0  # of those that this rank computes
    observes: bool = True  # not where a pass trains nothing
    amax_EO: Tensor = field(init=False)  # float32, largest magnitudes since the last step
    history_TEO: Tensor = field(init=False)  # float32
    scale_EO: Tensor = field(init=False)  # float32

    def __post_init__(self) -> None:
        length = self.recipe.arguments["amax_history_len"]
        with torch.device("cpu"):  # a model may be built on the meta device
            self.amax_EO = torch.zeros(self.experts, OPERANDS)
            self.history_TEO = torch.zeros(length, self.experts, OPERANDS)
            self.scale_EO = torch.ones(self.experts, OPERANDS)

    def to(self, device: torch.device) -> None:
        """Move the state to where the layer computes."""
        if self.amax_EO.device != device:
            self.amax_EO, self.history_TEO, self.scale_EO = (
                one.to(device) for one in (self.amax_EO, self.history_TEO, self.scale_EO)
            )

    def scale(self, operand: Operand, expert: int) -> Tensor:
        """The scalar that an operand of an expert of this rank is multiplied with."""
        return self.scale_EO[self.first_expert + expert, operand.value]

    def amax(self, operand: Operand, expert: int) -> Tensor:
        """The number, of one element, that the largest magnitude of an operand is raised to; a copy where nothing is observed."""
        kept = self.amax_EO[self.first_expert + expert, operand.value].view(1)
        return kept if self.observes else kept.clone()

    def step(self, largest_of_ranks: Callable[[Tensor], None] = lambda amax: None) -> None:
        """Let what was seen enter the history, and decide the next scales. Collective where `largest_of_ranks` is.

        Args:
            largest_of_ranks: replaces a tensor by its element-wise maximum over all ranks.
        """
        largest_of_ranks(self.amax_EO)
        self.history_TEO = torch.cat([self.amax_EO[None], self.history_TEO[:-1]])
        most_recent = self.recipe.arguments["amax_compute_algo"] == "most_recent"
        amax_EO = self.history_TEO[0] if most_recent else self.history_TEO.amax(dim=0)
        largest_O = torch.tensor(
            [torch.finfo(self.recipe.scaling(operand).dtype).max for operand in Operand], device=amax_EO.device
        )
        scale_EO = largest_O / amax_EO / 2 ** self.recipe.arguments["margin"]
        scale_EO = torch.where(scale_EO.isinf(), torch.full_like(scale_EO, torch.finfo(torch.float32).max), scale_EO)
        # An expert without tokens, or with an infinite one, keeps the scale that it has.
        self.scale_EO = torch.where((amax_EO > 0) & amax_EO.isfinite(), scale_EO, self.scale_EO)
        self.amax_EO = torch.zeros_like(self.amax_EO)

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint must hold for a resumed run to go on as it would have."""
        return {"history_TEO": self.history_TEO, "scale_EO": self.scale_EO}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.history_TEO, self.scale_EO = state["history_TEO"], state["scale_EO"]
