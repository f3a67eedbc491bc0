"""The ledger: what was rolled out and scored, as files, before any of it becomes a gradient.

Every rollout batch is one folder `<index, 6 digits>/` with a part per rank (`part-<rank>.safetensors` holds the numbers,
`part-<rank>.json` the words) and `manifest.json` (size and sha256 of each part). Ranks fill a staging folder; the first rank
publishes it by a rename. A batch is there completely or not at all, and its bytes depend on nothing but its samples. A resumed run
reads it instead of rolling out again; it is also what a researcher opens to see what the model was taught.

Layout of the tensors: the samples one after the other. Scores stand at written tokens only (all that is ever trained).

Shapes: S samples of a part, T tokens of one sample, W written tokens of one sample, K tokens of a teacher's support.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from ..specs.diagnostics import ExitCode, UserError
from .files import full_disk_is_clear, publish, sha256_of, staging_folder, write_json
from .rollouts import Status

LEDGER_FORMAT = "polymath.ledger/3"
MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LedgerSample:
    """One trajectory with all that the losses need."""

    number: int  # place in the batch, from 0; the order does not depend on the number of ranks
    ids: tuple[int, ...]
    written: tuple[bool, ...]
    logprobs: tuple[float, ...]  # one per token, 0 where the policy did not write
    domain: str
    task_key: str
    group: int
    status: Status
    reward: float
    outcome: float
    process: float  # how right the steps were, 0 to 1
    turns: int
    interruptions: int
    dropped: int  # how often it was thrown away, because other weights than the policy's had written it, and played again
    policy_version: int
    teacher: str | None = None
    support_ids_WK: Tensor | None = None  # int64, the teacher's most likely tokens where each written token stands
    support_logprobs_WK: Tensor | None = None  # float32; without ids, of every token that the assistant may write, in order
    teacher_logprobs_W: Tensor | None = None  # float32, of the written tokens under the teacher
    reference_logprobs_W: Tensor | None = None  # float32, of the written tokens under the reference

    @property
    def num_written(self) -> int:
        return sum(self.written)


WORDS = (
    "domain",
    "task_key",
    "group",
    "status",
    "reward",
    "outcome",
    "process",
    "turns",
    "interruptions",
    "dropped",
    "policy_version",
    "teacher",
    "number",
)
SCORES = ("support_ids_WK", "support_logprobs_WK", "teacher_logprobs_W", "reference_logprobs_W")


class Ledger:
    """The batches of one job."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, index: int) -> Path:
        """Where a published batch stands."""
        return self.folder / f"{index:06d}"

    def exists(self, index: int) -> bool:
        """Whether a batch is published. A folder without a manifest never is."""
        return (self.path(index) / MANIFEST).is_file()

    def write_part(self, index: int, rank: int, samples: Sequence[LedgerSample]) -> None:
        """Stage one rank's samples. Nothing reads them before `publish`; an earlier attempt's part is replaced.

        Raises:
            UserError: the disk is full; what was half written is removed.
        """
        staging = staging_folder(self.path(index))
        tensors, words = _part_path(staging, rank, "safetensors"), _part_path(staging, rank, "json")
        try:
            with full_disk_is_clear(tensors):
                staging.mkdir(parents=True, exist_ok=True)
                tensors.write_bytes(save(_tensors(samples)))
                words.write_text(_words(samples), encoding="utf-8")
        except BaseException:
            tensors.unlink(missing_ok=True)
            words.unlink(missing_ok=True)
            raise

    def publish(self, index: int, world_size: int) -> None:
        """Make a batch of all ranks' parts. Only the first rank calls it, after all have written theirs.

        Raises:
            UserError: the disk is full; the batch is not published.
        """
        destination = self.path(index)
        staging = staging_folder(destination)
        expected = [_part_path(staging, rank, kind) for rank in range(world_size) for kind in ("safetensors", "json")]
        for stale in set(staging.iterdir()) - set(expected):  # parts of an attempt with more ranks
            stale.unlink()
        with full_disk_is_clear(destination):
            parts = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in expected}
            write_json(staging / MANIFEST, {"format": LEDGER_FORMAT, "index": index, "parts": parts})
            publish(staging, destination)
        for abandoned in self.folder.glob(staging_folder(self.folder / "*").name):
            shutil.rmtree(abandoned, ignore_errors=True)

    def read(self, index: int) -> list[LedgerSample]:
        """The samples of a published batch, in order, after every byte was checked against the manifest.

        Raises:
            UserError: a file is missing or not what was written; the message names it.
        """
        folder = self.path(index)
        try:
            manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
            parts: dict[str, dict[str, Any]] = manifest["parts"]
            found = manifest["format"]
        except (OSError, ValueError, KeyError, TypeError) as cause:
            raise _damaged(folder, MANIFEST, "is missing or is not a manifest") from cause
        if found != LEDGER_FORMAT:
            raise _damaged(folder, MANIFEST, f"is of another version of Polymath ({found!r})")
        for name, part in sorted(parts.items()):
            path = folder / name
            if not path.is_file() or path.stat().st_size != part["bytes"] or sha256_of(path) != part["sha256"]:
                raise _damaged(folder, name, "is missing or is not what was written")
        samples: list[LedgerSample] = []
        for path in sorted(folder / name for name in parts if name.endswith(".json")):
            samples += _samples(path.read_text(encoding="utf-8"), load(path.with_suffix(".safetensors").read_bytes()))
        samples.sort(key=lambda sample: sample.number)
        if [sample.number for sample in samples] != list(range(len(samples))):
            raise _damaged(folder, MANIFEST, "does not list every sample once")
        return samples


def _part_path(folder: Path, rank: int, kind: str) -> Path:
    return folder / f"part-{rank:05d}.{kind}"


def _damaged(folder: Path, name: str, what: str) -> UserError:
    return UserError(
        f"the ledger cannot be read: {folder / name} {what}",
        exit_code=ExitCode.STALE,
        fix=f"delete {folder} and launch again: the batch is rolled out anew",
    )


def _words(samples: Sequence[LedgerSample]) -> str:
    rows = [{name: getattr(sample, name) for name in WORDS} for sample in samples]
    return (
        json.dumps({"format": LEDGER_FORMAT, "samples": rows}, ensure_ascii=False, indent=1, sort_keys=True, allow_nan=False) + "\n"
    )


def _tensors(samples: Sequence[LedgerSample]) -> dict[str, Tensor]:
    """The numbers of a part, samples concatenated. Scores are all there or all absent."""
    tensors = {
        "lengths": torch.tensor([len(sample.ids) for sample in samples], dtype=torch.int64),
        "ids": torch.tensor([one for sample in samples for one in sample.ids], dtype=torch.int32),
        "written": torch.tensor([one for sample in samples for one in sample.written], dtype=torch.bool),
        "logprobs": torch.tensor([one for sample in samples for one in sample.logprobs], dtype=torch.float32),
    }
    for name in SCORES:
        scores = [getattr(sample, name) for sample in samples]
        present = [score for score in scores if score is not None]
        assert len(present) in (0, len(samples)), f"{name} is there for {len(present)} of {len(samples)} samples"
        if present:
            joined = torch.cat(present)
            tensors[name] = joined.to(torch.int32) if joined.dtype == torch.int64 else joined
    return tensors


def _samples(words: str, tensors: dict[str, Tensor]) -> list[LedgerSample]:
    rows = json.loads(words)["samples"]
    lengths = tensors["lengths"].tolist()
    ids, written, logprobs = (tensors[name].split(lengths) for name in ("ids", "written", "logprobs"))
    num_written = [int(one.sum()) for one in written]
    scores = {name: tensors[name].split(num_written) for name in SCORES if name in tensors}
    samples = []
    for sample, row in enumerate(rows):
        own = {name: parts[sample].long() if name == "support_ids_WK" else parts[sample] for name, parts in scores.items()}
        samples.append(
            LedgerSample(
                ids=tuple(ids[sample].tolist()),
                written=tuple(written[sample].tolist()),
                logprobs=tuple(logprobs[sample].tolist()),
                **row,
                **own,
            )
        )
    return samples
