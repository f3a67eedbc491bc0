"""The layer by Transformer Engine's functions is the layer of the reference, where they do what their sources say."""

import pytest
import stand_in
import torch
from fp8_layers import FORMATS, arithmetic, layer, passed, recipe
from polymath.te_kernels.grouped import EngineArithmetic
from polymath.te_kernels.history import AmaxHistory

ROWS = (32, 0, 176)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_the_engine_computes_what_the_reference_says(name: str, dtype: torch.dtype) -> None:
    tensors = [tensor.detach().to(dtype) for tensor in layer(rows=ROWS)]
    history = AmaxHistory(recipe=recipe(name), experts=3) if name == "fp8_delayed" else None
    by_engine, by_reference = EngineArithmetic(recipe(name), stand_in.engine(recipe(name)), history), arithmetic(name)
    for step in range(2):  # delayed scaling's second step has scales of its own
        found, expected = passed(tensors, ROWS, by_engine), passed(tensors, ROWS, by_reference)
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other), step
        if history is not None and by_reference.history is not None:
            assert torch.equal(history.amax_EO, by_reference.history.amax_EO)
            history.step()
            by_reference.history.step()
