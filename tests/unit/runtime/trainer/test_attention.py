"""Packed documents never see each other, and no mask of L x L is built."""

import pytest
import torch
from polymath.runtime.trainer.attention import DocumentAttention, document_layout

HEADS, KEY_HEADS, WIDTH = 4, 2, 8


def _inputs(rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(rows, length, HEADS, WIDTH, generator=generator),
        torch.randn(rows, length, KEY_HEADS, WIDTH, generator=generator),
        torch.randn(rows, length, KEY_HEADS, WIDTH, generator=generator),
    )


def test_a_packed_document_attends_exactly_as_it_would_alone() -> None:
    lengths = [[1, 7, 12, 3, 9], [32], [5, 27]]
    documents_BL = torch.stack([torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in lengths])
    attention = DocumentAttention(DocumentAttention.Config())
    q, k, v = _inputs(3, 32)
    packed = attention(q, k, v, attention_masks=document_layout(documents_BL), enable_gqa=True)
    for row, row_lengths in enumerate(lengths):
        start = 0
        for length in row_lengths:
            piece = slice(start, start + length)
            alone = attention(q[row : row + 1, piece], k[row : row + 1, piece], v[row : row + 1, piece], enable_gqa=True)
            torch.testing.assert_close(packed[row : row + 1, piece], alone)
            start += length


def test_a_document_does_not_continue_into_the_next_row() -> None:
    documents_BL = torch.zeros(2, 4, dtype=torch.int64)
    layout = document_layout(documents_BL)
    assert [group.index_DS.tolist() for group in layout.groups] == [[[0, 1, 2, 3], [4, 5, 6, 7]]]


def test_the_layout_holds_at_most_twice_the_tokens_of_the_row() -> None:
    lengths = torch.tensor([1000, 3, 5, 9, 7])
    documents_BL = torch.repeat_interleave(torch.arange(5), lengths).unsqueeze(0)
    held = sum(group.index_DS.numel() for group in document_layout(documents_BL).groups)
    assert held <= 2 * 1024


def test_gradients_stay_within_the_document() -> None:
    documents_BL = torch.tensor([[0, 0, 0, 1, 1, 1]])
    q, k, v = (tensor.requires_grad_() for tensor in _inputs(1, 6))
    out = DocumentAttention(DocumentAttention.Config())(q, k, v, attention_masks=document_layout(documents_BL), enable_gqa=True)
    out[:, 3:].square().sum().backward()
    for tensor in (q, k, v):
        assert tensor.grad is not None
        assert tensor.grad[:, :3].abs().max() == 0
        assert tensor.grad[:, 3:].abs().max() > 0


@pytest.mark.parametrize("length", [1, 2, 33])
def test_a_row_of_one_document_is_plain_causal_attention(length: int) -> None:
    q, k, v = _inputs(2, length)
    attention = DocumentAttention(DocumentAttention.Config())
    layout = document_layout(torch.zeros(2, length, dtype=torch.int64))
    torch.testing.assert_close(attention(q, k, v, attention_masks=layout, enable_gqa=True), attention(q, k, v, enable_gqa=True))
