"""Bytes and operations of an expert layer, pass by pass, from its shape alone.

    python tests/gpu/traffic.py        # the tables of docs/fp8.md

A pass reads its inputs once and writes its outputs once; what a cache keeps between passes is not counted. Products count the
operands that they read in FP8 or bfloat16 and what they write. R = tokens * experts per token rows, without padding.
"""

from collections.abc import Iterator
from dataclasses import dataclass

BF16, FP32, FP8, BOTH = 2, 4, 1, 2  # bytes of a number; FP8 row-wise and column-wise
SCALES = 4 / 128  # bytes of a number's share of its block's scale, one block of 1 x 128


@dataclass(frozen=True)
class Shape:
    """A layer on one rank."""

    tokens: int
    experts: int = 256  # of this rank
    per_token: int = 8
    width: int = 2048
    hidden: int = 512

    @property
    def rows(self) -> int:
        return self.tokens * self.per_token

    @property
    def weights(self) -> int:
        """Numbers in gate, up and down projections."""
        return self.experts * 3 * self.width * self.hidden

    def flops(self, *, backward: bool = True) -> int:
        """Of the products: two per weight and row forward, twice that backward."""
        return 2 * self.rows * 3 * self.width * self.hidden * (3 if backward else 1)


@dataclass(frozen=True)
class Pass:
    """One step over the data. `kind` is "product", or what is moved for it."""

    name: str
    kind: str  # product | quantise | pad | permute | swiglu
    bytes: float
    backward: bool = False


def passes(shape: Shape, way: str) -> list[Pass]:
    """The passes of a forward and a backward through a layer.

    Args:
        way: "bf16" (torchtitan's layer), "separate" (FP8 with padding, SwiGLU and quantisation each for itself) or "fused" (as
            `backend: te` computes `fp8_blockwise`: padding in the permutation, quantisation in SwiGLU).
    """
    return list({"bf16": _bf16, "separate": _separate, "fused": _fused}[way](shape))


def _bf16(shape: Shape) -> Iterator[Pass]:
    wide, narrow, weights = shape.rows * shape.width * BF16, shape.rows * shape.hidden * BF16, shape.weights * BF16
    yield from _permute_in_torch(shape)
    yield Pass("gate and up", "product", 2 * wide + 2 * narrow + weights * 2 / 3)
    yield Pass("SwiGLU", "swiglu", 5 * narrow)  # silu, then times up
    yield Pass("down", "product", narrow + wide + weights / 3)
    yield Pass("gradient of hidden", "product", wide + narrow + weights / 3, True)
    yield Pass("gradient of down", "product", wide + narrow + weights / 3, True)
    yield Pass("gradient of SwiGLU", "swiglu", 10 * narrow, True)
    yield Pass("gradient of input", "product", 2 * (narrow + wide) + 3 * wide + weights * 2 / 3, True)  # two, and their sum
    yield Pass("gradients of gate and up", "product", 2 * (narrow + wide) + weights * 2 / 3, True)


def _permute_in_torch(shape: Shape) -> Iterator[Pass]:
    wide, tokens = shape.rows * shape.width * BF16, shape.tokens * shape.width * BF16
    yield Pass("gather", "permute", 2 * wide)
    # To float32, times the score, back to bfloat16, and added up.
    yield Pass("score and scatter", "permute", wide * (1 + 2 + 2 + 2 + 2 + 1 + 1) + tokens)
    yield Pass("gradient of score and scatter", "permute", wide * (1 + 1 + 2 + 2 + 2 + 2 + 1 + 2), True)
    yield Pass("gradient of gather", "permute", wide + tokens, True)


def _scaled_products(shape: Shape) -> Iterator[Pass]:
    wide, narrow, weights = shape.rows * shape.width, shape.rows * shape.hidden, shape.weights
    yield Pass("gate and up", "product", wide * FP8 + 2 * narrow * BF16 + weights * 2 / 3)
    yield Pass("down", "product", narrow * FP8 + wide * BF16 + weights / 3)
    yield Pass("gradient of hidden", "product", wide * FP8 + narrow * BF16 + weights / 3, True)
    yield Pass("gradient of down", "product", (wide + narrow) * FP8 + weights / 3 * BF16, True)
    yield Pass("gradient of input", "product", 2 * narrow * FP8 + wide * BF16 + weights * 2 / 3, True)
    yield Pass("gradients of gate and up", "product", (wide + 2 * narrow) * FP8 + weights * 2 / 3 * BF16, True)


def _quantise_outside(shape: Shape) -> Iterator[Pass]:
    """What is quantised in a pass of its own either way: weights, the input, and the gradient of the output."""
    wide, out = shape.rows * shape.width, BOTH * (FP8 + SCALES)
    yield Pass("join gate and up", "quantise", shape.weights * 2 / 3 * 2 * BF16)
    yield Pass("quantise weights", "quantise", shape.weights * (BF16 + BOTH * FP8))
    yield Pass("quantise input", "quantise", wide * (BF16 + out))
    yield Pass("quantise gradient of output", "quantise", wide * (BF16 + out), True)


def _separate(shape: Shape) -> Iterator[Pass]:
    wide, narrow, out = shape.rows * shape.width * BF16, shape.rows * shape.hidden, BOTH * (FP8 + SCALES)
    yield from _permute_in_torch(shape)
    yield from (Pass(name, "pad", 3 * wide, back) for name, back in (("pad", False), ("gradient of unpad", True)))  # zeros, copy
    yield from (Pass(name, "pad", 2 * wide, back) for name, back in (("unpad", False), ("gradient of pad", True)))
    yield from _quantise_outside(shape)
    yield from _scaled_products(shape)
    # Both halves to float32, silu, times up, back to bfloat16; the gradient has eight passes in float32 of its own.
    yield Pass("SwiGLU", "swiglu", narrow * (2 * (BF16 + FP32) + 2 * FP32 + 3 * FP32 + FP32 + BF16))
    yield Pass("quantise hidden", "quantise", narrow * (BF16 + out))
    yield Pass("gradient of SwiGLU", "swiglu", narrow * (3 * (BF16 + FP32) + 20 * FP32 + 4 * FP32 + 2 * (FP32 + BF16)), True)
    yield Pass("quantise gradient of hidden", "quantise", 2 * narrow * (BF16 + out), True)


def _fused(shape: Shape) -> Iterator[Pass]:
    wide, tokens = shape.rows * shape.width * BF16, shape.tokens * shape.width * BF16
    narrow, out = shape.rows * shape.hidden, BOTH * (FP8 + SCALES)
    yield Pass("permute and pad", "permute", tokens + wide)
    yield Pass("unpermute with scores", "permute", wide + tokens)
    yield Pass("gradient of unpermute", "permute", tokens + 2 * wide, True)
    yield Pass("gradient of permute", "permute", wide + tokens, True)
    yield from _quantise_outside(shape)
    yield from _scaled_products(shape)
    yield Pass("SwiGLU and quantise", "swiglu", narrow * (2 * BF16 + out))
    yield Pass("gradient of SwiGLU and quantise", "swiglu", narrow * (6 * BF16 + 2 * out), True)  # each half reads all three


def table(shape: Shape) -> str:
    """Gigabytes by kind of pass, and the time that they take at least, in Markdown."""
    kinds = ("product", "quantise", "pad", "permute", "swiglu")
    lines = [
        f"| {shape.tokens:,} tokens, GB | {' | '.join(kinds)} | all | of it between products |",
        "|---|" + "---|" * (len(kinds) + 2),
    ]
    for way in ("bf16", "separate", "fused"):
        found = passes(shape, way)
        by_kind = [sum(one.bytes for one in found if one.kind == kind) / 1e9 for kind in kinds]
        between = 1 - by_kind[0] / sum(by_kind)
        lines.append(f"| {way} | {' | '.join(f'{gb:.1f}' for gb in by_kind)} | {sum(by_kind):.1f} | {between:.0%} |")
    return "\n".join(lines)


def floor_seconds(shape: Shape, way: str, *, bytes_per_second: float, flops_per_second: float) -> tuple[float, float]:
    """The least that products, bound by operations or bytes, and everything between them can take."""
    found = passes(shape, way)
    products = sum(one.bytes for one in found if one.kind == "product") / bytes_per_second
    moved = sum(one.bytes for one in found if one.kind != "product") / bytes_per_second
    return max(shape.flops() / flops_per_second, products), moved


if __name__ == "__main__":
    H200_BYTES, H200_FLOPS = 4.8e12, {"bf16": 989e12, "separate": 1979e12, "fused": 1979e12}  # data sheet, dense
    for tokens in (8_192, 32_768):
        for experts in (256, 32):
            shape = Shape(tokens=tokens, experts=experts)
            print(f"\n{experts} experts on the rank, {shape.rows:,} rows, {shape.flops() / 1e12:.2f} TFLOP\n\n{table(shape)}\n")
            for way, flops in H200_FLOPS.items():
                products, moved = floor_seconds(shape, way, bytes_per_second=H200_BYTES, flops_per_second=flops)
                print(
                    f"{way}: at least {products * 1e3:.1f} ms in products and {moved * 1e3:.1f} ms between them (H200 data sheet)"
                )
