"""Merging: the arithmetic is exact on small checkpoints, and the folder is a model like any other."""

import json
from pathlib import Path

import pytest
import torch
from polymath.compiler.plan import Input
from polymath.runtime.jobs import is_done
from polymath.runtime.stages.import_model import run as run_import
from polymath.runtime.stages.merge import merge_models, run
from polymath.specs.build import to_json
from polymath.specs.model import Merge
from safetensors.torch import load_file, save_file
from stage_contexts import MakeContext, import_job, job_of, random_model
from torch import Tensor
from transformers import AutoModelForCausalLM

AVERAGE, ARITHMETIC = Merge(method="average"), Merge(method="task_arithmetic", scale=0.5)


def model(folder: Path, *files: dict[str, Tensor]) -> Path:
    """A model folder of one file, or of several with an index."""
    folder.mkdir()
    names = ["model.safetensors"] if len(files) == 1 else [f"model-{number}.safetensors" for number in range(len(files))]
    for name, tensors in zip(names, files, strict=True):
        save_file(tensors, folder / name)
    if len(files) > 1:
        weight_map = {key: name for name, tensors in zip(names, files, strict=True) for key in tensors}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text("{}")
    return folder


def merged(tmp_path: Path, sft: Path, teachers: list[Path], stage: Merge) -> dict[str, Tensor]:
    (tmp_path / "out").mkdir()
    merge_models(sft, teachers, tmp_path / "out", stage)
    return {key: tensor for path in sorted((tmp_path / "out").glob("*.safetensors")) for key, tensor in load_file(path).items()}


@pytest.mark.parametrize(("stage", "expected"), [(AVERAGE, [4.0, 0.0]), (ARITHMETIC, [1.0 + 0.5 * (2.0 + 4.0), 2.0 + 0.5 * -4.0])])
def test_weights_are_merged_exactly(tmp_path: Path, stage: Merge, expected: list[float]) -> None:
    sft = model(tmp_path / "sft", {"w": torch.tensor([1.0, 2.0])})
    teachers = [model(tmp_path / "a", {"w": torch.tensor([3.0, 4.0])}), model(tmp_path / "b", {"w": torch.tensor([5.0, -4.0])})]
    assert merged(tmp_path, sft, teachers, stage)["w"].tolist() == expected
    assert (tmp_path / "out" / "config.json").read_text() == "{}"


def test_files_keep_sft_s_layout_however_a_teacher_s_are_cut(tmp_path: Path) -> None:
    one, two = {"a": torch.ones(2)}, {"b": torch.zeros(3)}
    sft = model(tmp_path / "sft", one, two)
    teacher = model(tmp_path / "t", {"a": torch.full((2,), 3.0), "b": torch.full((3,), 4.0)})
    found = merged(tmp_path, sft, [teacher], AVERAGE)
    assert found["a"].tolist() == [3.0, 3.0] and found["b"].tolist() == [4.0, 4.0, 4.0]
    assert load_file(tmp_path / "out" / "model-0.safetensors").keys() == {"a"}
    assert (tmp_path / "out" / "model.safetensors.index.json").exists()


def test_sums_are_taken_in_float32_and_counters_stay(tmp_path: Path) -> None:
    def at(value: float) -> dict[str, Tensor]:
        return {"w": torch.tensor([value], dtype=torch.bfloat16), "steps": torch.tensor([7 if value == 1.0 else 9])}

    sft = model(tmp_path / "sft", at(1.0))
    teachers = [model(tmp_path / f"t{number}", at(1.0 + 2**-7)) for number in range(4)]
    found = merged(tmp_path, sft, teachers, ARITHMETIC)
    assert found["w"].dtype == torch.bfloat16 and found["w"].item() == 1.0 + 2**-6
    assert found["steps"].item() == 7


def test_a_model_of_another_shape_is_never_merged(tmp_path: Path) -> None:
    sft = model(tmp_path / "sft", {"w": torch.ones(2)})
    for number, tensors in enumerate(({"w": torch.ones(3)}, {"v": torch.ones(2)})):
        with pytest.raises(ValueError, match="holds w as"):
            merge_models(sft, [model(tmp_path / f"t{number}", tensors)], tmp_path, AVERAGE)


def test_a_merged_model_loads_with_transformers(make_context: MakeContext) -> None:
    other = job_of("other", "import", {"model": random_model()}, seed=6)
    for job in (import_job(), other):
        run_import(make_context(job))
    inputs = {"model": Input(job="import", output="model"), "teacher.a": Input(job="other", output="model")}
    settings = {"stage": to_json(AVERAGE), "stage_type": "Merge", "routing": {"tools": "a"}}
    context = make_context(import_job(), other, job_of("merge", "merge", settings, inputs))
    run(context)
    assert is_done(context.folder, context.job)
    student = AutoModelForCausalLM.from_pretrained(context.folder / "model")
    teacher = AutoModelForCausalLM.from_pretrained(context.input_folder("teacher.a"))
    tokens_BL = torch.arange(8)[None]
    assert torch.equal(student(tokens_BL).logits, teacher(tokens_BL).logits)
