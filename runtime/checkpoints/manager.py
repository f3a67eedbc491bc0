"""torchtitan's checkpoint manager, publishing so that a checkpoint verifies or is refused.

A step is written to a staging folder, flushed, described by `MANIFEST.json` (sizes and sha256) and renamed into place. Loading
checks the manifest before anything is unpickled, reads DCP's own metadata with an unpickler that knows only DCP's classes, and
reads every other object with `weights_only`.
"""

import io
import json
import pickle
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint._nested_dict import set_element
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem
from torchtitan.components.checkpoint import MODEL, AsyncMode, CheckpointManager

from ...specs.diagnostics import ExitCode, UserError
from ..files import describe_files, full_disk_is_clear, publish, sha256_of, staging_folder, write_json

MANIFEST = "MANIFEST.json"
DCP_METADATA = "torch.distributed.checkpoint.metadata"


class PublishingCheckpointManager(CheckpointManager):
    """Checkpoints in `checkpoints/step-N`, and the final weights as a Hugging Face folder."""

    @dataclass(kw_only=True, slots=True)
    class Config(CheckpointManager.Config):
        recipe_digest: str = ""  # of the job; a checkpoint of another recipe is refused

    def __init__(self, config: Config, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.recipe_digest = config.recipe_digest

    def dcp_save(
        self,
        state_dict: dict[str, Any],
        checkpoint_id: str,
        async_mode: AsyncMode,
        enable_garbage_collection: bool = False,
        to_hf: bool = False,
    ) -> None:
        """Save synchronously into a staging folder, then publish. Collective.

        A failure to save is raised on all ranks; one to publish on the first alone, with which torchrun ends the others.
        """
        assert async_mode == AsyncMode.DISABLED
        final = Path(checkpoint_id)
        staging = staging_folder(final)
        with full_disk_is_clear(staging):
            if dist.get_rank() == 0:
                shutil.rmtree(staging, ignore_errors=True)
                staging.mkdir(parents=True)
            dist.barrier()
            super().dcp_save(state_dict, str(staging), async_mode, enable_garbage_collection, to_hf)
            dist.barrier()
            if dist.get_rank() == 0 and not to_hf:
                manifest = {"recipe_digest": self.recipe_digest, "world_size": dist.get_world_size()}
                write_json(staging / MANIFEST, {**manifest, "files": describe_files(staging)})
                publish(staging, final)
        dist.barrier()

    def save_hugging_face(self, folder: Path, start_folder: Path) -> None:
        """Publish the current weights as safetensors with the config and tokenizer of the folder they started from. Collective."""
        self.dcp_save(self.states[MODEL].state_dict(), str(folder), AsyncMode.DISABLED, to_hf=True)
        if dist.get_rank() == 0:
            staging = staging_folder(folder)
            with full_disk_is_clear(staging):
                shutil.rmtree(staging / "sharded", ignore_errors=True)
                for path in sorted(start_folder.iterdir()):
                    if path.is_file() and not path.name.startswith("model") and path.name != MANIFEST:
                        shutil.copyfile(path, staging / path.name)
                publish(staging, folder)
        dist.barrier()

    def dcp_load(self, state_dict: dict[str, Any], checkpoint_id: str, from_hf: bool, from_quantized: bool) -> None:
        """Load a verified checkpoint, or a Hugging Face folder through torchtitan's own reader."""
        if from_hf:
            super().dcp_load(state_dict, checkpoint_id, from_hf, from_quantized)
            return
        verify_checkpoint(Path(checkpoint_id), self.recipe_digest)
        dcp.load(state_dict, storage_reader=RestrictedReader(checkpoint_id), planner=RestrictedPlanner())
        self.states[MODEL].load_state_dict(state_dict)

    def _find_load_step(self, folder: str = "") -> int:
        """The latest published step; staging folders have other names, so they never count."""
        return latest_step(Path(folder or self.folder))


def latest_step(folder: Path) -> int:
    """The highest step with a manifest, or -1."""
    found = [re.fullmatch(r"step-([0-9]+)", path.parent.name) for path in folder.glob(f"step-*/{MANIFEST}")]
    return max((int(step[1]) for step in found if step), default=-1)


def verify_checkpoint(folder: Path, recipe_digest: str) -> None:
    """Refuse a checkpoint whose files are not exactly what its manifest lists.

    Raises:
        UserError: names the first file that is missing, extra or changed, or the recipe that differs.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        recipe = manifest["recipe_digest"]
        listed = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise _refused(folder, f"{MANIFEST} is missing or unreadable") from None
    if recipe != recipe_digest:
        raise _refused(folder, "it belongs to another recipe")
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {MANIFEST}
    for name in sorted(present ^ set(listed)):
        raise _refused(folder, f"{name} is {'not listed' if name in present else 'missing'}")
    for name, (size, sha256) in listed.items():
        path = folder / name
        if path.stat().st_size != size or sha256_of(path) != sha256:
            raise _refused(folder, f"{name} has changed since it was written")


def _refused(folder: Path, why: str) -> UserError:
    return UserError(
        f"checkpoint {folder} is refused: {why}",
        exit_code=ExitCode.STALE,
        fix=f"delete {folder} to go on from the checkpoint before it",
    )


class _DcpUnpickler(pickle.Unpickler):
    """Knows the classes that DCP's metadata is made of, and nothing else."""

    KNOWN = frozenset(
        {
            *(
                (DCP_METADATA, name)
                for name in ("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties", "_MEM_FORMAT_ENCODING")
            ),
            *((DCP_METADATA, name) for name in ("BytesStorageMetadata", "ChunkStorageMetadata", "TensorStorageMetadata")),
            ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
            ("torch", "Size"),
            ("torch.serialization", "_get_layout"),
            ("collections", "OrderedDict"),
            ("pathlib", "PosixPath"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        is_data_type = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_data_type and (module, name) not in self.KNOWN:
            raise pickle.UnpicklingError(f"checkpoint metadata names {module}.{name}, which DCP does not use")
        return super().find_class(module, name)


class RestrictedReader(FileSystemReader):
    """Reads DCP's metadata without letting it run code."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        metadata = _DcpUnpickler(io.BytesIO((Path(self.path) / ".metadata").read_bytes())).load()
        assert isinstance(metadata, Metadata)
        if getattr(metadata, "storage_meta", None) is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class RestrictedPlanner(DefaultLoadPlanner):
    """Reads objects that are not tensors with `weights_only`."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        loaded = torch.load(value, weights_only=True)
        name = read_item.dest_index.fqn
        if self.flatten_state_dict:
            set_element(self.original_state_dict, self.mappings[name], loaded)
        else:
            self.state_dict[name] = loaded
