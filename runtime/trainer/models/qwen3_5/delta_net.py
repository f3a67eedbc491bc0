"""Gated DeltaNet without fla's CUDA kernels: plain torch, on any device, document by document.

What it does: the gated delta rule in chunks and the causal convolution before it, both starting afresh with every document of a
packed row. What it does not do: compete with fla on a GPU, where torchtitan's own modules stay.
Installed through torchtitan's model config, in place of its kernel and its layer.

Source: Yang et al., Gated Delta Networks (arXiv 2412.06464). With unit keys and queries, R_t = exp(g_t) S_{t-1},
S_t = R_t + k_t (beta_t (v_t - R_t^T k_t))^T and o_t = S_t^T q_t / sqrt(K). Within a chunk the
corrections are one triangular system.

Shapes: P positions of all folded rows, D documents of one group, S padded length of the group, N value heads, K key width,
V value width, C positions of a chunk, W taps of the convolution.
"""

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor
from torchtitan.models.common import Conv1d
from torchtitan.models.qwen3_5.model import GatedDeltaKernel, GatedDeltaNet

from ...attention import DocumentGroup, document_groups

CHUNK = 64  # positions: a document of the tiny suite is one or two chunks
NORM_EPSILON = 1e-6  # of the keys' and queries' length, as in fla


class DocumentDeltaKernel(GatedDeltaKernel):
    """The gated delta rule, from a zero state at the start of every document."""

    @dataclass(kw_only=True, slots=True)
    class Config(GatedDeltaKernel.Config):
        pass

    def forward(  # the parameter names are part of torchtitan's sharding contract
        self,
        xq_BLNK: Tensor,
        xk_BLNK: Tensor,
        xv_BLNV: Tensor,
        g_BLN: Tensor,
        beta_BLN: Tensor,
        *,
        cu_seqlens: Tensor | None = None,
        cu_seqlens_cpu: Tensor | None = None,
    ) -> Tensor:
        """[1, P, N, V]; torchtitan folds the rows of a micro-batch into one.

        Raises:
            ValueError: no offsets, with which the state of one row would leak into the next.
        """
        if cu_seqlens_cpu is None:
            raise ValueError("DeltaNet needs the offsets of the documents: rows are folded into one")
        repeat = xv_BLNV.shape[2] // xq_BLNK.shape[2]
        inputs = (xq_BLNK.repeat_interleave(repeat, 2), xk_BLNK.repeat_interleave(repeat, 2), xv_BLNV, g_BLN, beta_BLN)
        flat = [tensor[0] for tensor in inputs]
        out_PNV = torch.empty_like(flat[2])
        for group in _groups(tuple(cu_seqlens_cpu.tolist()), str(out_PNV.device)):
            out_DSNV = gated_delta_rule(*(tensor[group.index_DS] for tensor in flat))
            out_PNV = out_PNV.index_copy(0, group.index_DS[group.is_real_DS], out_DSNV[group.is_real_DS])
        return out_PNV[None]


class DocumentDeltaNet(GatedDeltaNet):
    """torchtitan's layer with a causal convolution that looks at no other document."""

    @dataclass(kw_only=True, slots=True)
    class Config(GatedDeltaNet.Config):
        pass

    def _causal_conv(
        self, x_BLD: Tensor, conv: Conv1d, cu_seqlens: Tensor | None = None, cu_seqlens_cpu: Tensor | None = None
    ) -> Tensor:
        if cu_seqlens_cpu is None:
            raise ValueError("DeltaNet needs the offsets of the documents: rows are folded into one")
        offsets = tuple(cu_seqlens_cpu.tolist())

        def convolve(x_1PD: Tensor, weight_D1W: Tensor) -> Tensor:
            return causal_convolution(x_1PD[0], weight_D1W[:, 0], _depths(offsets, str(x_1PD.device)))[None]

        if isinstance(x_BLD, DTensor):
            return self._local_map_conv(x_BLD, conv, convolve)
        return convolve(x_BLD, conv.weight)


def causal_convolution(x_PD: Tensor, weight_DW: Tensor, depth_P: Tensor) -> Tensor:
    """[P, D]: SiLU of each channel's convolution with its own last W positions, as far as the document reaches back.

    Args:
        depth_P: int64, the position within its document.
    """
    taps = weight_DW.shape[1]
    out_PD = x_PD * weight_DW[:, -1]
    for back in range(1, taps):
        earlier_PD = F.pad(x_PD, (0, 0, back, 0))[: len(x_PD)]
        out_PD = out_PD + torch.where((depth_P >= back)[:, None], earlier_PD, 0) * weight_DW[:, taps - 1 - back]
    return F.silu(out_PD)


def gated_delta_rule(q_DSNK: Tensor, k_DSNK: Tensor, v_DSNV: Tensor, g_DSN: Tensor, beta_DSN: Tensor, chunk: int = CHUNK) -> Tensor:
    """[D, S, N, V]: what the state, zero at first, answers to each query; computed in float32 or better.

    Args:
        g_DSN: the log of the decay, at most 0.
        beta_DSN: how much of a value's error is corrected, from 0 to 1.
    """
    dtype, length = q_DSNK.dtype, q_DSNK.shape[1]
    chunk = min(chunk, length)
    pad = -length % chunk
    q, k, v, g, beta = (
        F.pad(x.to(torch.promote_types(dtype, torch.float32)), (0, 0) * (x.ndim - 2) + (0, pad))
        .unflatten(1, (-1, chunk))
        .movedim(3, 1)  # [D, N, chunks, C, ...]
        for x in (q_DSNK, k_DSNK, v_DSNV, g_DSN, beta_DSN)
    )
    q, k = _unit(q) * q.shape[-1] ** -0.5, _unit(k)
    decay = g.cumsum(-1)  # log of the decay from the chunk's start
    is_later = torch.ones(chunk, chunk, dtype=torch.bool, device=q.device).triu(1)
    between = (decay[..., :, None] - decay[..., None, :]).masked_fill(is_later, -torch.inf).exp()
    from_start = decay.exp()[..., None]
    to_end = (decay[..., -1:] - decay).exp()[..., None]

    # With u_t the corrected value of position t: u_t + sum over earlier s of beta_t (k_t . k_s) decay(s, t) u_s
    # = beta_t (v_t - decay_t S^T k_t), where S is the state before the chunk.
    k_beta = k * beta[..., None]
    system = (k_beta @ k.mT) * between
    right = torch.cat([v * beta[..., None], k_beta * from_start], dim=-1)
    values, reads = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True).split(
        [v.shape[-1], k.shape[-1]], dim=-1
    )
    scores = (q @ k.mT) * between
    q_from_start, k_to_end, whole = q * from_start, k * to_end, decay[..., -1].exp()[..., None, None]

    state = v.new_zeros(*v.shape[:2], k.shape[-1], v.shape[-1])
    outs = []
    for c in range(q.shape[2]):
        corrected = values[:, :, c] - reads[:, :, c] @ state
        outs.append(q_from_start[:, :, c] @ state + scores[:, :, c] @ corrected)
        state = state * whole[:, :, c] + k_to_end[:, :, c].mT @ corrected
    return torch.cat(outs, dim=2)[:, :, :length].transpose(1, 2).to(dtype)


def _unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + NORM_EPSILON)


@functools.lru_cache(maxsize=4)  # every layer of a micro-batch asks for the same
def _groups(offsets: tuple[int, ...], device: str) -> tuple[DocumentGroup, ...]:
    return document_groups(torch.tensor(offsets), torch.device(device))


@functools.lru_cache(maxsize=4)
def _depths(offsets: tuple[int, ...], device: str) -> Tensor:
    starts, lengths = torch.tensor(offsets[:-1]), torch.diff(torch.tensor(offsets))
    return (torch.arange(offsets[-1]) - torch.repeat_interleave(starts, lengths)).to(device)
