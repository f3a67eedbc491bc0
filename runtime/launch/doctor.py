"""`polymath doctor`: whether this machine can run Polymath, and a plan. Looks, measures and changes nothing that stays."""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from ...compiler.plan import Plan, read_plan, read_sources
from ...specs.diagnostics import UserError
from .machine import check_nodes, check_port, needed_bytes
from .services import TEACHER, silent_services

OLDEST_PYTHON = (3, 11)
PACKAGES = ("torch", "torchtitan", "transformers", "tokenizers", "safetensors", "spmd_types", "fsspec", "pyyaml")
ROOMY_BYTES = 5 * 2**30
FSYNCS, FSYNC_BYTES, SLOW_SECONDS = 10, 4096, 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One line."""

    status: Literal["ok", "warn", "fail"]
    what: str
    detail: str


def examine(plan_folder: Path | None) -> list[Finding]:
    """Every check, those of a plan too where one is given.

    Raises:
        UserError: the folder holds no plan, or the plan was edited.
    """
    plan = read_plan(plan_folder) if plan_folder is not None else None
    folder = Path.cwd() if plan_folder is None or plan is None else read_sources(plan_folder).runs_folder
    found = [_python(), *_packages(), *_devices(plan), _sandbox(plan), *_disk(folder, plan), _port()]
    if plan is not None and plan_folder is not None:
        found.append(_abilities(plan, plan_folder))
        found += _services(plan, plan_folder)
    return found


def _python() -> Finding:
    here = ".".join(str(part) for part in sys.version_info[:3])
    enough = sys.version_info[:2] >= OLDEST_PYTHON
    return Finding(status="ok" if enough else "fail", what="python", detail=here if enough else f"{here}; 3.11 or newer is needed")


def _packages() -> Iterator[Finding]:
    """What is installed against what the package asks for."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(one) for one in requires("polymath") or ()]
    except PackageNotFoundError:
        wanted = []
        yield Finding(status="warn", what="polymath", detail="a source tree that is not installed; versions are not checked")
    needed = {one.name.lower(): one.specifier for one in wanted if one.marker is None}
    for name in PACKAGES:
        try:
            installed = version(name)
        except PackageNotFoundError:
            yield Finding(status="fail", what=name, detail="not installed")
            continue
        range_ = needed.get(name.lower())
        fits = range_ is None or range_.contains(installed, prereleases=True)
        detail = installed if fits else f"{installed} is installed, {range_} is needed"
        yield Finding(status="ok" if fits else "fail", what=name, detail=detail)


def _devices(plan: Plan | None) -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0))
    gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    if plan is None:
        yield Finding(status="ok", what="devices", detail=f"{cores} CPU cores, {gpus} GPUs")
        return
    cluster = plan.cluster
    wanted = f"{cluster.nodes} x {cluster.per_node} {cluster.accelerator}"
    if cluster.accelerator == "cpu":
        few = cores < cluster.per_node
        detail = f"{cores} CPU cores for {cluster.per_node} processes" + ("; they will share" if few else "")
        yield Finding(status="warn" if few else "ok", what="devices", detail=detail)
    else:
        there = gpus >= cluster.per_node
        yield Finding(status="ok" if there else "fail", what="devices", detail=f"{gpus} GPUs here, the plan is for {wanted}")
    try:
        check_nodes(plan.jobs)
    except UserError as error:
        yield Finding(status="fail", what="machines", detail=error.message)


def _sandbox(plan: Plan | None) -> Finding:
    """Whether programs that a model writes can be isolated; only some worlds have any."""
    from ..worlds.sandbox import require_sandbox

    domains = [domain for job in plan.jobs for domain in job.settings.get("domains", {}).values()] if plan else []
    runs_python = any(domain["settings"].get("language") == "python" for domain in domains)
    try:
        require_sandbox(False)
    except UserError as error:
        return Finding(status="fail" if runs_python else "warn", what="bubblewrap", detail=error.message)
    return Finding(status="ok", what="bubblewrap", detail="isolates a program")


def _disk(folder: Path, plan: Plan | None) -> Iterator[Finding]:
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    needed = needed_bytes(plan.jobs) if plan is not None else ROOMY_BYTES
    detail = f"{free / 2**30:,.1f} GiB free in {folder}" + (f", the plan needs {needed / 2**30:,.1f}" if plan is not None else "")
    yield Finding(status="ok" if free >= needed else "fail" if plan is not None else "warn", what="disk", detail=detail)
    try:
        seconds = _fsync_seconds(folder)
    except OSError as error:
        yield Finding(status="fail", what="fsync", detail=f"{folder} cannot be written: {error.strerror or error}")
        return
    slow = seconds > SLOW_SECONDS
    detail = f"{seconds * 1000:.1f} ms" + ("; checkpoints and ledgers will wait for this disk" if slow else "")
    yield Finding(status="warn" if slow else "ok", what="fsync", detail=detail)


def _fsync_seconds(folder: Path) -> float:
    """The median time that a small write takes to reach the disk."""
    taken: list[float] = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(FSYNCS):
            file.write(os.urandom(FSYNC_BYTES))
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            taken.append(time.perf_counter() - began)
    return sorted(taken)[FSYNCS // 2]


def _port() -> Finding:
    try:
        check_port(0)
    except UserError as error:
        return Finding(status="fail", what="loopback", detail=error.message)
    return Finding(status="ok", what="loopback", detail="a port of 127.0.0.1 can be listened on")


def _abilities(plan: Plan, plan_folder: Path) -> Finding:
    from ..abilities import refuse_what_cannot_run

    try:
        refuse_what_cannot_run(plan, read_sources(plan_folder), plan.jobs)
    except UserError as error:
        return Finding(status="fail", what="plan", detail=error.message)
    return Finding(status="ok", what="plan", detail=f"`{plan.name}` can be run by this version")


def _services(plan: Plan, plan_folder: Path) -> Iterator[Finding]:
    """Whether the teachers that somebody serves answer."""
    run_dir = read_sources(plan_folder).runs_folder / plan.name
    for job in plan.jobs:
        roles = [role for role in job.roles if role.startswith(TEACHER)]
        if not roles:
            continue
        try:
            problems = silent_services(plan, job, run_dir)
        except UserError as error:
            problems = [error.message]
        detail = "\n".join(problems) or f"{', '.join(roles)}: those that are trained answer"
        yield Finding(status="fail" if problems else "ok", what="services", detail=detail)
