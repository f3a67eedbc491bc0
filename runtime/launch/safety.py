"""What of a plan reaches a command line or an environment: words of a closed form, and nothing that makes a process load code.

Commands are lists of words that no shell reads, so a metacharacter does no harm; but the compiler writes none, so someone else did.
"""

import re
from collections.abc import Iterator

from ...compiler.plan import Job, Plan, Role
from ...specs.diagnostics import ExitCode, UserError

JOB = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_-]+)*")
NAME = re.compile(r"[a-z][a-z0-9_-]*")
TORCHRUN = re.compile(r"--(nnodes|nproc-per-node|node-rank|max-restarts|rdzv-[a-z]+|local-addr)=[A-Za-z0-9_.:-]+")
SETTABLE = re.compile(r"(OMP|MKL|NCCL|GLOO|CUDA|TORCH|PYTORCH|TOKENIZERS|VLLM)_[A-Z0-9_]+")
VALUE = re.compile(r"[A-Za-z0-9_.,:/+=-]*")
URL_VARIABLE = re.compile(r"(?!LD_|DYLD_|PYTHON)[A-Z][A-Z0-9_]*")


def refuse_unsafe(plan: Plan) -> None:
    """Refuse a plan with a word that the compiler would not write.

    Raises:
        UserError: exit code 4; names every one.
    """
    found = [*_names(plan), *(what for job in plan.jobs for what in _of_job(job))]
    if found:
        raise UserError(
            f"plan `{plan.name!r}` would start processes with what no compiler wrote: {'; '.join(found)}",
            exit_code=ExitCode.STALE,
            fix="compile it again from a spec that you trust",
        )


def _names(plan: Plan) -> Iterator[str]:
    if not NAME.fullmatch(plan.name):
        yield f"the name {plan.name!r}"


def _of_job(job: Job) -> Iterator[str]:
    if not JOB.fullmatch(job.id):
        yield f"the job {job.id!r}"
    if not re.fullmatch(r"[0-9a-f]{64}", job.recipe_digest):
        yield f"the digest of {job.id!r}"
    for name, role in job.roles.items():
        yield from (f"{what} of {job.id!r}, role {name!r}" for what in _of_role(role))


def _of_role(role: Role) -> Iterator[str]:
    for word in role.torchrun:
        if not TORCHRUN.fullmatch(word):
            yield f"the word {word!r}"
    for name, value in role.environment.items():
        if not SETTABLE.fullmatch(name) or not VALUE.fullmatch(value):
            yield f"the variable {name}={value!r}"
    if role.url_env is not None and not URL_VARIABLE.fullmatch(role.url_env):
        yield f"the variable {role.url_env!r}"
