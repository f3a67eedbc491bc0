"""Where every value came from: the line that wrote it, `--set`, a default, or the pass that chose it and why.

`compile` publishes this as `origins.json` beside the plan, outside its digests: a comment moves lines, not meaning.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, cast

from ..specs.build import Path, from_json, show_path, to_json
from ..specs.diagnostics import Span
from .compilation import Compilation
from .plan import Job
from .stages import stages

ORIGINS = "origins.json"
MESH_NAMES = {"shard": "fsdp"}  # where the mesh calls a field of `placement` otherwise
_STAGE, _MESH = ("settings", "stage"), ("roles", "trainer", "mesh")
_ADAM = "optimizer.param_groups.0.optimizer_kwargs"
TITAN: Mapping[str, Path | str] = {  # what of a job decides torchtitan's setting, or why `lower` does
    "debug.seed": ("seed",),
    "training.seq_len": (*_STAGE, "sequence_tokens"),
    "training.local_batch_size": (*_MESH, "micro_batch"),
    "training.global_batch_size": (*_STAGE, "batch_sequences"),
    "training.steps": (*_STAGE, "steps"),
    "training.max_norm": (*_STAGE, "clip_norm"),
    "training.mixed_precision_param": ("settings", "precision", "compute"),
    "parallelism.data_parallel_replicate_degree": (*_MESH, "replicate"),
    "parallelism.data_parallel_shard_degree": (*_MESH, "shard"),
    "parallelism.expert_parallel_degree": (*_MESH, "expert"),
    "parallelism.tensor_parallel_degree": (*_MESH, "tensor"),
    "parallelism.context_parallel_degree": (*_MESH, "context"),
    "parallelism.pipeline_parallel_degree": (*_MESH, "pipeline"),
    "parallelism.spmd_backend": "lower: the capability table, by the version of torch",
    f"{_ADAM}.lr": (*_STAGE, "learning_rate"),
    f"{_ADAM}.betas": (*_STAGE, "betas"),
    f"{_ADAM}.eps": "lower: AdamW's usual value; the report states none",
    f"{_ADAM}.weight_decay": (*_STAGE, "weight_decay"),
    "lr_scheduler.warmup_steps": (*_STAGE, "warmup"),
    "lr_scheduler.decay_type": (*_STAGE, "schedule"),
    "lr_scheduler.min_lr_factor": (*_STAGE, "final_lr_fraction"),
    "checkpoint.interval": ("settings", "checkpoint", "every_steps"),
    "checkpoint.keep_latest_k": ("settings", "checkpoint", "keep"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """A value of the resolved spec: `my.yaml:12`, `--set seed=8`, `default`, or `<pass>: <reason>`."""

    value: Any
    origin: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Origins:
    """The origin of everything. What a job holds comes from a path of the spec (a key of `spec`) or from a pass."""

    spec: Mapping[str, Origin] = field(default_factory=dict[str, Origin])
    jobs: Mapping[str, Mapping[str, str]] = field(default_factory=dict[str, dict[str, str]])  # by job id and path in its file


def find_origins(compilation: Compilation) -> Origins:
    """The origins of a compiled spec."""
    assert compilation.spec is not None
    values = dict(leaves(to_json(compilation.spec)))
    spec = {path: _spec_origin(compilation, path, value) for path, value in values.items()}
    spec |= {  # an open value of a block that the spec does not hold, such as a mesh that was left out whole
        path: _spec_origin(compilation, path, decision.value)
        for path, decision in compilation.decisions.items()
        if path not in values and path[0] != "jobs"
    }
    jobs = {job.id: dict(_job_origins(compilation, job, spec)) for job in compilation.jobs}
    return Origins(
        spec={show_path(path): origin for path, origin in spec.items()},
        jobs={job: {show_path(path): text for path, text in found.items()} for job, found in jobs.items()},
    )


def read_origins(folder: FilePath) -> Origins:
    """The origins beside a plan; empty where there are none, as the plan itself does without."""
    try:
        return from_json(Origins, json.loads((folder / ORIGINS).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return Origins()


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every value below a path; a list of scalars is one value."""
    if isinstance(value, Mapping) and value:
        for key, item in cast(Mapping[str, Any], value).items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, (list, tuple)) and any(isinstance(item, (Mapping, list, tuple)) for item in cast(list[Any], value)):
        for number, item in enumerate(cast(list[Any], value)):
            yield from leaves(item, (*path, number))
    else:
        yield path, value


def place_of(span: Span, root: FilePath) -> str:
    """A span as `file:line`, the file relative to the spec's folder, so that it reads the same from anywhere."""
    return f"{FilePath(os.path.relpath(span.file, root)).as_posix()}:{span.line}" if span.line else span.file


def _spec_origin(compilation: Compilation, path: Path, value: Any) -> Origin:
    span = compilation.spans.values.get(path)
    written = place_of(span, compilation.root) if span else "default"
    decision = compilation.decisions.get(path)
    if decision is not None:
        return Origin(value=to_json(decision.value), origin=f"{decision.by}: {decision.reason} (left open: {written})")
    return Origin(value=value, origin=written)


def _job_origins(compilation: Compilation, job: Job, spec: Mapping[Path, Origin]) -> Iterator[tuple[Path, str]]:
    found: dict[Path, str] = {}

    def from_spec(path: Path, value: Any, *candidates: Path, otherwise: str) -> None:
        same = (candidate for candidate in candidates if candidate in spec and spec[candidate].value == value)
        match = next(same, None)
        found[path] = show_path(match) if match is not None else otherwise

    for path, value in leaves(to_json(job.settings)):
        unread = f"lower: not read by a job of kind {job.kind}"
        if path[0] == "experts_recipe":
            unread = "lower: Transformer Engine's recipe of `precision.experts.format`, every argument written out"
        from_spec(("settings", *path), value, *_settings_sources(compilation, job, path), otherwise=unread)
    found |= {("settings", name): f"lower: what `{job.id}` is" for name in ("stage_type", "subject") if name in job.settings}
    found[("seed",)] = "lower: sha256 of the spec's `seed` and the job's id"
    like = "sft" if job.id == "sft_continued" else job.id  # the control is placed as SFT is
    for name, role in job.roles.items():
        for path, value in leaves(to_json(role)):
            here = ("roles", name, *path)
            decision = compilation.decisions.get(("jobs", like, *here))
            if decision is not None:
                found[here] = f"{decision.by}: {decision.reason}"
            elif path[0] in ("devices", "mesh"):
                field_name = MESH_NAMES.get(str(path[-1]), str(path[-1]))
                asked = ("placement", "sft" if like == "sft" else job.kind, name, field_name)
                from_spec(here, value, asked, otherwise=_unplaced(job, path))
            else:
                found[here] = "lower: from the devices and the accelerator"
    for one in job.titan:
        source = TITAN.get(one.path, "lower: torchtitan 0.3.0 needs it")
        found[("titan", one.path)] = source if isinstance(source, str) else found.get(source, "lower")
    yield from found.items()


def _unplaced(job: Job, path: Path) -> str:
    """Why a role has devices or a degree that `placement` does not say."""
    if job.roles["trainer"].mesh is None:
        return "lower: it trains nothing, and shares the devices of SFT"
    return "place: every device of the cluster, as `placement` names none" if path[-1] == "devices" else "default"


def _settings_sources(compilation: Compilation, job: Job, path: Path) -> tuple[Path, ...]:
    """The paths of the spec that a setting of a job may come from, likeliest first."""
    head, rest = path[0], path[1:]
    if head == "formats":
        return (("export",),)
    if head == "routing":
        rules = enumerate(_spec(compilation).routing)
        return tuple(("routing", number, "teacher") for number, rule in rules if rest and rest[0] in rule.domains)
    if head in ("episodes", "contamination"):
        return (("evaluate", *path),)
    if head == "stage":
        if job.kind == "evaluate":
            return (("evaluate", *rest),)
        if job.kind == "merge":
            return (("student", "merge", *rest),)
        if job.id == "sft_continued":
            return (("student", "distill", *rest), ("student", "sft", *rest))
        return tuple((*stage.path, *rest) for stage in stages(_spec(compilation)) if stage.id == job.id)
    if head == "domains" and rest[1:2] == ("trajectories",) and len(rest) > 3:
        name = job.settings["domains"][rest[0]]["trajectories"][rest[2]]["name"]  # a job has only the sources that it reads
        written = enumerate(_spec(compilation).domains[str(rest[0])].trajectories)
        return tuple(("domains", rest[0], "trajectories", number, *rest[3:]) for number, one in written if one.name == name)
    return (path,)


def _spec(compilation: Compilation) -> Any:
    assert compilation.spec is not None
    return compilation.spec
