"""A published checkpoint verifies or is refused, and reading one runs no code."""

import io
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from polymath.runtime.checkpoints.manager import (
    MANIFEST,
    RestrictedPlanner,
    RestrictedReader,
    latest_step,
    verify_checkpoint,
)
from polymath.runtime.files import describe_files, write_json
from polymath.specs.diagnostics import ExitCode, UserError

RECIPE = "a" * 64


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("checkpoints") / "step-10"
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    dcp.save({"weight": torch.arange(6.0), "state": {"step": 10}}, checkpoint_id=folder)
    write_json(folder / MANIFEST, {"recipe_digest": RECIPE, "world_size": 1, "files": describe_files(folder)})
    yield folder
    dist.destroy_process_group()


@pytest.fixture
def checkpoint(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "step-10"))


def _refusal(folder: Path, recipe: str = RECIPE) -> str:
    with pytest.raises(UserError) as caught:
        verify_checkpoint(folder, recipe)
    assert caught.value.exit_code == ExitCode.STALE
    return str(caught.value)


def test_an_untouched_checkpoint_loads_through_the_restricted_reader(checkpoint: Path) -> None:
    verify_checkpoint(checkpoint, RECIPE)
    loaded = {"weight": torch.zeros(6), "state": {"step": 0}}
    dcp.load(loaded, storage_reader=RestrictedReader(checkpoint), planner=RestrictedPlanner())
    assert loaded["weight"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert loaded["state"] == {"step": 10}


def test_one_flipped_bit_is_refused_by_name(checkpoint: Path) -> None:
    shard = checkpoint / "__0_0.distcp"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert "__0_0.distcp has changed" in _refusal(checkpoint)


def test_a_truncated_missing_or_extra_file_is_refused_by_name(checkpoint: Path) -> None:
    shard = checkpoint / "__0_0.distcp"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    assert "__0_0.distcp has changed" in _refusal(checkpoint)
    shard.unlink()
    assert "__0_0.distcp is missing" in _refusal(checkpoint)
    shard.write_bytes(whole)
    (checkpoint / "__1_0.distcp").write_bytes(b"")
    assert "__1_0.distcp is not listed" in _refusal(checkpoint)


def test_a_checkpoint_of_another_recipe_is_refused(checkpoint: Path) -> None:
    assert "another recipe" in _refusal(checkpoint, "b" * 64)


def test_a_step_without_a_manifest_is_never_the_latest(checkpoint: Path) -> None:
    (checkpoint.parent / "step-20").mkdir()
    (checkpoint.parent / ".staging-step-30").mkdir()
    shutil.copy(checkpoint / MANIFEST, checkpoint.parent / ".staging-step-30")
    assert latest_step(checkpoint.parent) == 10


class _Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.canary,))


def test_crafted_metadata_runs_no_code(checkpoint: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (checkpoint / ".metadata").write_bytes(pickle.dumps(_Payload(canary)))
    with pytest.raises(pickle.UnpicklingError, match="DCP does not use"):
        RestrictedReader(checkpoint).read_metadata()
    assert not canary.exists()


def test_metadata_cannot_reach_through_a_known_module(checkpoint: Path) -> None:
    module, name = b"torch.distributed.checkpoint.filesystem", b"os.system"
    reach = b"\x80\x04\x8c" + bytes([len(module)]) + module + b"\x8c" + bytes([len(name)]) + name + b"\x93."
    (checkpoint / ".metadata").write_bytes(reach)
    with pytest.raises(pickle.UnpicklingError, match=r"os\.system"):
        RestrictedReader(checkpoint).read_metadata()
    assert pickle.Unpickler(io.BytesIO(reach)).load() is not None  # an open unpickler would have got there


@pytest.mark.parametrize("manifest", ["[]", "null", "{}", '{"files": {}}', '{"recipe_digest": "a", "files": ["x"]}', "{", "\x00"])
def test_a_manifest_of_another_form_is_refused(checkpoint: Path, manifest: str) -> None:
    (checkpoint / MANIFEST).write_text(manifest)
    assert f"{MANIFEST} is missing or unreadable" in _refusal(checkpoint)


def test_folders_that_only_resemble_a_step_are_passed_over(checkpoint: Path) -> None:
    for name in ("step-20.bak", "step-", "step-x", "step-30 copy", ".staging-step-40"):
        shutil.copytree(checkpoint, checkpoint.parent / name)
    assert latest_step(checkpoint.parent) == 10
