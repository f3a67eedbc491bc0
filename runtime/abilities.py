"""What this runtime cannot do yet, said before anything starts.

The compiler takes, checks and estimates more than this version runs. A plan that asks for such a thing is refused as a whole, with
every field that asks for it, rather than after hours of the jobs that come before.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..compiler.plan import Job, Plan, Sources
from ..specs.build import from_json
from ..specs.diagnostics import ExitCode, UserError
from ..specs.hardware import ACCELERATORS
from ..specs.machine import Engines, Service
from ..specs.model import Domain
from ..te_kernels import INSTALL
from .engines.endpoint import endpoint_of
from .engines.outside import check_outside
from .engines.vllm_launch import copies_of, engine_python
from .simulated_user import user_endpoint

DEGREES = ("context", "pipeline")
TENSOR_BACKEND = "partial_dtensor"  # tensor parallelism is tested with it alone
TRAINED = ("sft", "grpo", "distill")
ACTING = ("synthesize", "grpo", "distill", "evaluate")
GPU_DEVICES = ("/dev", "nvidia[0-9]*")


def refuse_what_cannot_run(plan: Plan, sources: Sources, jobs: Sequence[Job]) -> None:
    """Refuse jobs that this version, or this machine, cannot run.

    Raises:
        UserError: exit code 5; names every field of the spec that asks for too much, and the jobs that need it.
    """
    asked: dict[str, list[str]] = {}
    for job in jobs:
        for what in _beyond(job, plan):
            asked.setdefault(what, []).append(job.id)
    lines = [f"  {what} ({_listed(ids)})" for what, ids in asked.items()]
    if sources.artifacts is not None:
        lines.append("  storage.artifacts: models are not copied anywhere yet")
    if lines:
        raise UserError(
            "\n".join([f"this version of Polymath cannot run plan `{plan.name}` yet:", *lines]),
            exit_code=ExitCode.UNFIT,
            fix="change these fields and compile again; validate, compile, diff and estimate know them already",
        )
    _check_machine(plan)
    _check_transformer_engine(plan, jobs)
    if any(role.engine == "vllm" for job in jobs for role in job.roles.values()):
        engine_python()  # the job itself will look for it; to say so after hours would be late
    _check_transfer(plan, jobs)
    for job in jobs:
        servers = sum(copies_of(role) for role in job.roles.values())
        if servers and (listen := from_json(Engines, job.settings["engines"]).listen) is not None:
            check_outside(listen, servers)
        if "judge" in job.roles:
            judge = from_json(Engines, job.settings["engines"]).judge
            assert judge is not None
            endpoint_of(judge, "engines.judge")  # the job itself will read it; to say so after hours would be late
        for role in job.roles:
            if role.startswith("user."):
                name = role.removeprefix("user.")
                user = from_json(Domain, job.settings["domains"][name]).user
                assert user is not None
                user_endpoint(name, user)
            if role.startswith("teacher."):
                name = role.removeprefix("teacher.")
                endpoint_of(from_json(Engines, job.settings["engines"]).teachers[name], f"engines.teachers.{name}")
        for role, service in _players(job):
            endpoint_of(service, f"self_play.{role}")


def _players(job: Job) -> Iterator[tuple[str, Service]]:
    """The endpoints that play in a job, each with its role."""
    for domain in job.settings["domains"].values() if job.kind == "synthesize" else ():
        for source in from_json(Domain, domain).trajectories:
            if source.self_play is not None:
                yield from source.self_play.services.items()


def _beyond(job: Job, plan: Plan) -> Iterator[str]:
    """What a job asks for beyond this runtime: the field, and what it says."""
    model = job.settings.get("model")
    if model and model["checkpoint"] == "random" and model["shape"] is None:
        yield f"model.size: {model['size']} from random weights; describe a random model by `shape`"
    if job.kind in ACTING:
        yield from _engines(job, plan)
    if job.kind in TRAINED:
        mesh = job.roles["trainer"].mesh
        for name in DEGREES:
            if mesh is not None and getattr(mesh, name) > 1:
                yield f"placement.{job.kind}.trainer.{name}: {getattr(mesh, name)}"
        if mesh is not None and mesh.tensor > 1:
            yield from _tensor(job, f"placement.{job.kind}.trainer.tensor: {mesh.tensor}")
        if mesh is not None and mesh.loss_chunks > 1:
            yield f"{_path(job)}.sequence_tokens: the logits of a row fit only in {mesh.loss_chunks} parts"


def _tensor(job: Job, asked: str) -> Iterator[str]:
    """What stands against tensor parallelism."""
    backend = next(one.value for one in job.titan if one.path == "parallelism.spmd_backend")
    if backend != TENSOR_BACKEND:
        yield f"{asked} with {backend}, the backend of torch above 2.13"
    if "experts_recipe" in job.settings:
        yield f"{asked} with experts in {job.settings['precision']['experts']['format']}, which was never tried"


def _engines(job: Job, plan: Plan) -> Iterator[str]:
    """What a job asks of engines with processes of their own, beyond what this runtime has."""
    ranks = job.roles["trainer"].devices
    for name, role in job.roles.items():
        if name not in ("rollout", "scorer") or role.engine != "vllm":
            continue
        if plan.cluster.accelerator != "cpu" and plan.cluster.nodes > 1:
            yield f"engines.{name}: vllm on {plan.cluster.nodes} machines; an engine answers on the machine that it runs on"
        copies, models = role.devices // role.tensor, _models(job, name)
        if copies // models > ranks:
            yield f"placement.{job.kind}.{name}.devices: {copies // models} copies of a model, and {ranks} ranks to ask them"
        if copies < models and job.settings["engines"]["transport"] == "http":
            yield f"engines.transport: http; {models} teachers would take turns on {copies} of vLLM's servers"


def _models(job: Job, role: str) -> int:
    """How many models an engine role of a job is asked for."""
    if job.kind == "synthesize":
        return sum(name.startswith("model.") for name in job.inputs)
    teachers = set(job.settings.get("routing", {}).values()) - job.settings["engines"]["teachers"].keys()
    plays = "rollout" if job.settings["stage"].get("rollouts") == "teacher" else "scorer"
    return len(teachers) if teachers and role == plays else 1


def _path(job: Job) -> str:
    """Where the spec writes the stage of a training job."""
    if not job.id.startswith("teachers."):
        return "student.distill" if job.kind == "distill" else "student.sft"
    teacher, _, number = job.id.removeprefix("teachers.").rpartition(".")
    return f"teachers.{teacher}.phases[{int(number) - 1}]"


def _check_machine(plan: Plan) -> None:
    """Refuse a machine that is not the planned one.

    Raises:
        UserError: exit code 5.
    """
    cluster = plan.cluster
    folder, pattern = GPU_DEVICES
    there = len(list(Path(folder).glob(pattern)))
    if cluster.accelerator != "cpu" and there < cluster.per_node:
        raise UserError(
            f"plan `{plan.name}` is for machines with {cluster.per_node} x {cluster.accelerator}; this has {there} GPUs",
            exit_code=ExitCode.UNFIT,
            fix="launch it there, or describe this machine under `cluster` and compile again",
        )
    try:
        installed = version("torch").partition("+")[0]
    except PackageNotFoundError:
        return  # an environment for launching only; the workers' own will say
    if cluster.software.torch is not None and installed != cluster.software.torch:
        raise UserError(
            f"plan `{plan.name}` is for torch {cluster.software.torch}; {installed} is installed",
            exit_code=ExitCode.UNFIT,
            fix=f"install that, or write `software: {{torch: {installed}}}` under `cluster` and compile again",
        )


def _check_transfer(plan: Plan, jobs: Sequence[Job]) -> None:
    """Refuse jobs whose weights go from GPU to GPU where the trainer's side of that is not installed.

    Raises:
        UserError: exit code 5.
    """
    ways = {role.weights for job in jobs for role in job.roles.values()} & {"nccl", "ipc"}
    if ways and not importlib.util.find_spec("vllm"):
        raise UserError(
            f"plan `{plan.name}` sends weights to vLLM by {ways.pop()}, and vLLM is not installed beside the trainer",
            exit_code=ExitCode.UNFIT,
            fix="install it in this environment too: docs/engines.md says how",
        )


def _check_transformer_engine(plan: Plan, jobs: Sequence[Job]) -> None:
    """Refuse jobs whose experts want Transformer Engine where it is not installed; whether it works, the job finds out first.

    Raises:
        UserError: exit code 5.
    """
    wanted = [job for job in jobs if job.settings.get("experts_recipe") and job.settings["precision"]["experts"]["backend"] == "te"]
    if not wanted or not _is_installed("torch") or _is_installed("transformer-engine"):
        return
    recipe, capability = wanted[0].settings["experts_recipe"]["name"], ACCELERATORS[plan.cluster.accelerator].compute_capability
    where = f"{plan.cluster.accelerator}, compute capability {'.'.join(map(str, capability or ()))}"
    raise UserError(
        f"plan `{plan.name}` computes experts by Transformer Engine's {recipe} ({where}), and it is not installed here",
        exit_code=ExitCode.UNFIT,
        fix=f"install it beside the GPU's torch: {INSTALL}",
    )


def _is_installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def _listed(jobs: Sequence[str]) -> str:
    shown = ", ".join(jobs[:3])
    return f"{shown} and {len(jobs) - 3} more" if len(jobs) > 3 else shown
