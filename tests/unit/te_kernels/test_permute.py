"""Padding: every group is a multiple, nothing is lost, and the way back is exact."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from polymath.te_kernels.permute import pad_groups

groups = st.lists(st.integers(0, 40), min_size=1, max_size=6)


@settings(deadline=None)
@given(groups, st.sampled_from((1, 16, 32)))
def test_padding_is_zeros_at_the_end_of_each_group_and_is_taken_out_exactly(rows: list[int], multiple: int) -> None:
    x_RD = torch.arange(1, sum(rows) * 3 + 1, dtype=torch.float32).view(-1, 3).requires_grad_()
    padded_PD, padded_E, position_R = pad_groups(x_RD, torch.tensor(rows), multiple)
    assert torch.equal(padded_PD[position_R], x_RD)
    assert padded_E.tolist() == [-(-count // multiple) * multiple for count in rows]
    for group, count, part in zip(padded_PD.split(padded_E.tolist()), rows, x_RD.split(rows), strict=True):
        assert torch.equal(group[:count], part)
        assert group[count:].abs().sum() == 0
    padded_PD.sum().backward()
    assert x_RD.grad is not None
    assert (x_RD.grad == 1).all()
