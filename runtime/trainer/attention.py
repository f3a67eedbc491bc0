"""Attention that never crosses documents, on any device that has scaled dot-product attention.

What it does: gathers the documents of packed rows into a few padded groups of similar length and runs causal attention on each.
What it does not do: build an L x L mask. Padding stands behind a document, where causal attention never looks.
Installed through torchtitan's model config, in place of its inner attention.

Shapes: B rows, L positions, N heads, H head width, D documents of one group, S padded length of the group.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchtitan.models.common.attention import ScaledDotProductAttention


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentGroup:
    """Documents of similar length."""

    index_DS: Tensor  # int64, flat position b * L + l; padding repeats the document's last position
    is_real_DS: Tensor  # bool


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentLayout:
    """Where the documents of a micro-batch lie. Rows follow each other in the flat positions."""

    groups: tuple[DocumentGroup, ...]
    offsets: tuple[int, ...]  # flat position of every document's start, and the number of positions at the end
    whole_rows: bool  # every row is one document: nothing need be gathered


def document_layout(documents_BL: Tensor) -> DocumentLayout:
    """Group documents whose lengths lie between two powers of two, so that at most half of a group is padding.

    Args:
        documents_BL: int64; a document is a run of equal numbers in one row.
    """
    rows, length = documents_BL.shape
    flat = documents_BL.reshape(-1)
    starts_new = torch.ones(rows * length, dtype=torch.bool)
    starts_new[1:] = flat[1:] != flat[:-1]
    starts_new[::length] = True
    offsets = torch.cat([starts_new.nonzero().squeeze(1), torch.tensor([rows * length])])
    return DocumentLayout(
        groups=document_groups(offsets, documents_BL.device), offsets=tuple(offsets.tolist()), whole_rows=len(offsets) == rows + 1
    )


def document_groups(offsets: Tensor, device: torch.device) -> tuple[DocumentGroup, ...]:
    """Documents grouped by length.

    Args:
        offsets: int64 on the CPU; see `DocumentLayout`.
    """
    starts, lengths = offsets[:-1], torch.diff(offsets)
    bucket = torch.ceil(torch.log2(lengths.double())).long()
    groups = []
    for size in bucket.unique().tolist():
        chosen = bucket == size
        start_D1, length_D1 = starts[chosen].unsqueeze(1), lengths[chosen].unsqueeze(1)
        offset_1S = torch.arange(int(length_D1.max())).unsqueeze(0)
        groups.append(
            DocumentGroup(
                index_DS=(start_D1 + torch.minimum(offset_1S, length_D1 - 1)).to(device),
                is_real_DS=(offset_1S < length_D1).to(device),
            )
        )
    return tuple(groups)


class DocumentAttention(ScaledDotProductAttention):
    """Causal attention within each document."""

    @dataclass(kw_only=True, slots=True)
    class Config(ScaledDotProductAttention.Config):
        pass

    def forward(  # the parameter names are part of torchtitan's sharding contract
        self,
        q_BLNH: Tensor,
        k_BLNH: Tensor,
        v_BLNH: Tensor,
        *,
        attention_masks: DocumentLayout | None = None,
        scale: float | None = None,
        enable_gqa: bool = False,
        is_causal: bool = True,
        **kwargs: object,
    ) -> Tensor:
        """Attend; without a layout every row is one document."""
        if attention_masks is None or attention_masks.whole_rows:
            return super().forward(q_BLNH, k_BLNH, v_BLNH, scale=scale, enable_gqa=enable_gqa, is_causal=is_causal)
        rows, length = q_BLNH.shape[:2]
        q_PNH, k_PNH, v_PNH = (tensor.reshape(rows * length, *tensor.shape[2:]) for tensor in (q_BLNH, k_BLNH, v_BLNH))
        out_PNH = torch.empty_like(q_PNH)
        for group in attention_masks.groups:
            q, k, v = (tensor[group.index_DS].transpose(1, 2) for tensor in (q_PNH, k_PNH, v_PNH))
            out_DNSH = F.scaled_dot_product_attention(q, k, v, scale=scale, is_causal=True, enable_gqa=enable_gqa)
            out_PNH = out_PNH.index_copy(0, group.index_DS[group.is_real_DS], out_DNSH.transpose(1, 2)[group.is_real_DS])
        return out_PNH.view_as(q_BLNH)
