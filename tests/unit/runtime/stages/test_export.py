"""Exporting: what comes out is the same model, and transformers takes it."""

import json

import pytest
import torch
from polymath.compiler.plan import Input
from polymath.runtime.jobs import is_done
from polymath.runtime.stages.export import run
from polymath.runtime.stages.import_model import run as run_import
from stage_contexts import MakeContext, import_job, job_of, random_model
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.mark.parametrize(("form", "tolerance"), [("float32", 1e-4), ("bfloat16", 5e-2)])
def test_an_exported_model_loads_with_transformers_and_gives_the_same_logits(
    make_context: MakeContext, form: str, tolerance: float
) -> None:
    started = make_context(import_job())
    run_import(started)
    settings = {"model": random_model(), "formats": [form]}
    job = job_of("export", "export", settings, {"model": Input(job="import", output="model")})
    context = make_context(import_job(), job)
    run(context)
    assert is_done(context.folder, context.job)

    folder = context.folder / form
    exported = AutoModelForCausalLM.from_pretrained(folder)
    original = AutoModelForCausalLM.from_pretrained(started.folder / "model", dtype="float32")
    assert exported.dtype == getattr(torch, form)
    tokens_BL = torch.arange(24).reshape(2, 12) % exported.config.vocab_size
    with torch.no_grad():
        logits_BLV, expected_BLV = exported(tokens_BL).logits.float(), original(tokens_BL).logits
    assert torch.allclose(logits_BLV, expected_BLV, atol=tolerance)
    assert AutoTokenizer.from_pretrained(folder).chat_template
    card = (folder / "README.md").read_text()
    assert "tiny" in card and "a" * 64 in card
    listed = json.loads((context.folder / "DONE.json").read_text())["files"]
    assert f"{form}/model.safetensors" in listed and f"{form}/README.md" in listed
