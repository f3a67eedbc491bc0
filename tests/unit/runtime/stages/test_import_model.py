"""Importing: the same bytes for the same seed, and nothing that could run code or belongs to another model."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from polymath.compiler.plan import Input
from polymath.runtime.jobs import is_done
from polymath.runtime.stages.import_model import run
from polymath.specs.build import to_json
from polymath.specs.diagnostics import UserError
from polymath.specs.model import Model
from safetensors.torch import load_file, save_file
from stage_contexts import MakeContext, import_job, job_of
from transformers import AutoConfig, AutoModelForCausalLM


def hashes(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "DONE.json").read_text())["files"]


def test_a_random_model_is_the_same_bytes_for_the_same_seed_and_others_for_another(make_context: MakeContext) -> None:
    torch.manual_seed(0)
    contexts = [make_context(import_job(seed=seed), run=name) for name, seed in (("first", 5), ("second", 5), ("third", 6))]
    for context in contexts:
        run(context)
        torch.rand(7)  # what the caller draws in between changes nothing
    first, second, third = (hashes(context.folder) for context in contexts)
    assert first == second
    assert first["model/model.safetensors"] != third["model/model.safetensors"]


def test_importing_leaves_the_callers_random_numbers_alone(make_context: MakeContext) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    run(make_context(import_job()))
    assert torch.equal(torch.rand(3), expected)


def test_a_random_model_is_the_mixture_of_experts_that_the_spec_describes(make_context: MakeContext) -> None:
    context = make_context(import_job())
    run(context)
    assert is_done(context.folder, context.job)
    folder = context.folder / "model"
    config = AutoConfig.from_pretrained(folder)
    assert config.model_type == "qwen3_moe" and config.norm_topk_prob and config.decoder_sparse_step == 1
    assert config.mlp_only_layers == [] and config.rope_parameters["rope_theta"] == 10000.0 and config.tie_word_embeddings
    names = load_file(folder / "model.safetensors").keys()
    assert "model.layers.1.mlp.experts.3.down_proj.weight" in names and "model.layers.0.mlp.gate.weight" in names
    assert "lm_head.weight" not in names
    result = json.loads((context.folder / "result.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    assert result["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    deviation = model.model.embed_tokens.weight.std().item()
    assert deviation == pytest.approx(0.02, rel=0.05)


@pytest.fixture
def checkpoint(make_context: MakeContext) -> Path:
    context = make_context(import_job(), run="original")
    run(context)
    return context.folder / "model"


def import_of(make_context: MakeContext, checkpoint: Path, url: str | None = None, tokenizer: str = "from-checkpoint") -> Any:
    model = Model(family="qwen3_moe", checkpoint="given", tokenizer=tokenizer)
    job = job_of("import", "import", {"model": to_json(model)}, {"checkpoint": Input(source="model.checkpoint")})
    return make_context(job, urls={"model.checkpoint": url or str(checkpoint)})


def test_a_checkpoint_goes_in_as_it_is(make_context: MakeContext, checkpoint: Path) -> None:
    context = import_of(make_context, checkpoint, url=f"file://{checkpoint}")
    run(context)
    copied = load_file(context.folder / "model" / "model.safetensors")
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        assert torch.equal(copied[name], tensor)


def test_code_beside_a_checkpoint_is_neither_copied_nor_pointed_to(make_context: MakeContext, checkpoint: Path) -> None:
    (checkpoint / "modeling_evil.py").write_text("raise SystemExit")
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}}))
    context = import_of(make_context, checkpoint)
    run(context)
    folder = context.folder / "model"
    assert not list(folder.glob("*.py")) and "auto_map" not in json.loads((folder / "config.json").read_text())


def spoil_with_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def spoil_family(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))


def spoil_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}")


def spoil_end(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-1])


def spoil_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def spoil_index(folder: Path) -> None:
    index = {"metadata": {}, "weight_map": {"a": "model.safetensors", "b": "../outside.safetensors"}}
    save_file({"b": torch.zeros(1)}, folder.parent / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_with_pickle, r"pytorch_model\.bin, a pickle: reading one can run any code"),
        (spoil_family, r"is a 'llama' model"),
        (spoil_header, r"cannot be read as safetensors"),
        (spoil_end, r"cannot be read as safetensors"),
        (spoil_tokenizer, r"holds no tokenizer\.json"),
        (spoil_index, r"which is not in the folder"),
    ],
)
def test_a_bad_checkpoint_is_refused_and_leaves_nothing_behind(
    make_context: MakeContext, checkpoint: Path, spoil: Any, words: str
) -> None:
    spoil(checkpoint)
    context = import_of(make_context, checkpoint)
    with pytest.raises(UserError, match=words) as caught:
        run(context)
    assert caught.value.exit_code == 3
    assert not (context.folder / "model").exists() and not list(context.folder.glob(".staging-*"))


def test_a_tokenizer_with_more_tokens_than_the_checkpoint_has_embeddings_is_refused(
    make_context: MakeContext, checkpoint: Path
) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "vocab_size": 8}))
    with pytest.raises(UserError, match="embeddings for 8"):
        run(import_of(make_context, checkpoint))


@pytest.mark.parametrize("url", ["s3://bucket/model", "/no/such/folder", "https://example.org/model"])
def test_a_checkpoint_that_is_not_a_folder_here_is_refused(make_context: MakeContext, checkpoint: Path, url: str) -> None:
    with pytest.raises(UserError) as caught:
        run(import_of(make_context, checkpoint, url=url))
    assert caught.value.exit_code == 3


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from stage_contexts import SHAPE, random_model
from polymath.runtime.data.tokenizers import load_tokenizer
from polymath.runtime.files import published_folder
from polymath.runtime.stages.import_model import write_random_model
from polymath.specs.build import from_json
from polymath.specs.diagnostics import UserError
from polymath.specs.model import Model
tokenizer = load_tokenizer(from_json(Model, random_model()))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try:
    with published_folder(Path(sys.argv[2])) as staging:
        write_random_model(staging, SHAPE, tokenizer, 1)
except UserError as error:
    assert error.exit_code == 6 and "the disk is full: could not write" in error.message, error
    sys.exit(0)
sys.exit("nothing was refused")
"""


def test_a_disk_that_fills_up_under_the_weights_is_one_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(Path(__file__).parent), str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())
