"""Which ids' rows of the output head, and which ids' logits, a rank has: all of them, or those of its tensor-parallel shard.

What it does: the few sums over the vocabulary that the losses are made of. Every loss is written once, in these; on one rank they
are plain torch. On a shard each rank sums over its own ids, and the ranks add up. Losses come out equal on all ranks, and gradients
are those of a rank's own logits, which need no other rank; only the hidden states' gradient is a part, to be summed over the group.
What it does not do: know how torchtitan splits a head (`trainer/head.py`), or differentiate: the losses do that by hand.

Source: Shoeybi et al. 2019 (Megatron-LM, arXiv 1909.08053), section 3, for the vocabulary-parallel softmax.

Shapes: N tokens, K ids of each, v ids whose rows are here.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


class WholeVocabulary:
    """Every id is here."""

    first: int = 0  # id here

    def most_rows(self, rows: int) -> int:
        """At least as many as any rank has, where this one has `rows`: ranks must cut alike what they do together."""
        return rows

    def find(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """Where some ids stand among the rows here, and which of them do; those that do not stand anywhere. None for all."""
        return ids, None

    def total(self, part: Tensor) -> Tensor:
        """What every rank has a part of."""
        return part

    def sum(self, values_Nv: Tensor) -> Tensor:
        """[N]: over all ids."""
        return self.total(values_Nv.sum(dim=-1))

    def logsumexp(self, values_Nv: Tensor) -> Tensor:
        """[N, 1]: over all ids."""
        return values_Nv.logsumexp(dim=-1, keepdim=True)

    def log_softmax(self, values_Nv: Tensor) -> Tensor:
        """[N, v]: over all ids."""
        return values_Nv.log_softmax(dim=-1)

    def gather(self, values_Nv: Tensor, ids_NK: Tensor) -> Tensor:
        """[N, K]: the values of some ids."""
        return values_Nv.gather(1, ids_NK)

    def fill_(self, values_Nv: Tensor, ids_NK: Tensor, new_NK: Tensor) -> Tensor:
        """Give some ids new values."""
        return values_Nv.scatter_(1, ids_NK, new_NK)

    def candidates(self, best_Nk: Tensor) -> Tensor:
        """[N, ...]: what every rank found, beside each other."""
        return best_Nk


WHOLE = WholeVocabulary()


@dataclass(frozen=True, kw_only=True, slots=True)
class VocabularyShard(WholeVocabulary):
    """As many ids in a row as every rank of a group has, but for the last. All ranks call everything in the same order."""

    group: dist.ProcessGroup
    num_ids: int  # of the vocabulary

    @property
    def first(self) -> int:
        """The first id here."""
        return dist.get_rank(self.group) * self._most

    @property
    def rows(self) -> int:
        """How many ids are here."""
        return max(0, min(self.num_ids - self.first, self._most))

    @property
    def _most(self) -> int:
        return -(-self.num_ids // dist.get_world_size(self.group))

    def most_rows(self, rows: int) -> int:
        return self._most

    def find(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        places = ids - self.first
        return places, (places >= 0) & (places < self.rows)

    def total(self, part: Tensor) -> Tensor:
        total = part.contiguous().clone()
        dist.all_reduce(total, group=self.group)
        return total

    def logsumexp(self, values_Nv: Tensor) -> Tensor:
        return self.candidates(values_Nv.logsumexp(dim=-1, keepdim=True)).logsumexp(dim=-1, keepdim=True)

    def log_softmax(self, values_Nv: Tensor) -> Tensor:
        return values_Nv - self.logsumexp(values_Nv)

    def gather(self, values_Nv: Tensor, ids_NK: Tensor) -> Tensor:
        places_NK, here_NK = self.find(ids_NK)
        found_NK = values_Nv.new_zeros(ids_NK.shape)
        tokens, _ = here_NK.nonzero(as_tuple=True)
        found_NK[here_NK] = values_Nv[tokens, places_NK[here_NK]]
        return self.total(found_NK)

    def fill_(self, values_Nv: Tensor, ids_NK: Tensor, new_NK: Tensor) -> Tensor:
        places_NK, here_NK = self.find(ids_NK)
        tokens, _ = here_NK.nonzero(as_tuple=True)
        values_Nv[tokens, places_NK[here_NK]] = new_NK[here_NK]
        return values_Nv

    def candidates(self, best_Nk: Tensor) -> Tensor:
        best_Nk = best_Nk.contiguous()
        of_ranks = [torch.empty_like(best_Nk) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(of_ranks, best_Nk, group=self.group)
        return torch.cat(of_ranks, dim=1)
