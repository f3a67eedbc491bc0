"""A mesh as the formulas see it."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Degrees:
    """A mesh as the formulas see it. Experts borrow their ranks: `expert` divides `shard * context * tensor`."""

    replicate: int = 1
    shard: int = 1
    expert: int = 1
    tensor: int = 1
    context: int = 1
    pipeline: int = 1

    @property
    def devices(self) -> int:
        """Ranks of the mesh."""
        return self.replicate * self.shard * self.tensor * self.context * self.pipeline

    @property
    def data(self) -> int:
        """Ranks that see different rows."""
        return self.replicate * self.shard

    @property
    def fsdp(self) -> int:
        """Ranks that a dense parameter is sharded over."""
        return self.shard * self.context

    @property
    def expert_fsdp(self) -> int:
        """Ranks that an expert's parameters are sharded over, beyond expert parallelism."""
        return self.fsdp * self.tensor // self.expert if self.expert > 1 else self.fsdp
