"""The only training entry: `torchrun --nproc-per-node N -m polymath.runtime PLAN --job ID [--job ID ...]`.

Verifies the plan, joins the ranks and runs the jobs one after the other in this process. Every rank leaves
`outcome.<rank>.json` in the folder of each job it ran: torchrun turns every exit code into 1, and `polymath launch` reads these.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from ..compiler.plan import Plan, Sources, read_plan, read_sources
from ..specs.diagnostics import ExitCode, UserError
from .abilities import refuse_what_cannot_run
from .files import full_disk_is_clear
from .jobs import Interrupted, JobContext, is_done, say_outcome
from .launch.watch import exit_with_launcher

DISTRIBUTED_DEFAULTS = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the named jobs; returns the exit code of the first that did not succeed."""
    options = _parse(arguments)
    exit_with_launcher()
    for name, value in DISTRIBUTED_DEFAULTS.items():
        os.environ.setdefault(name, value)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        plan, sources = read_plan(options.plan), read_sources(options.plan)
        run_dir = options.run_dir or sources.runs_folder / plan.name
        contexts = [_context(plan, sources, job_id, run_dir, rank, world_size) for job_id in options.job]
        refuse_what_cannot_run(plan, sources, [context.job for context in contexts])
    except UserError as error:
        if rank == 0:
            print(error.render(), file=sys.stderr)
        return error.exit_code

    from .trainer.build import start_distributed

    start_distributed()
    for context in contexts:
        if is_done(context.folder, context.job):
            continue
        code = _run_job(context)
        if code != ExitCode.OK:
            return code
    return ExitCode.OK


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="polymath.runtime", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("plan", type=Path, help="plan folder")
    parser.add_argument("--job", action="append", required=True, metavar="ID", help="job to run; repeat for more, in order")
    parser.add_argument("--run-dir", type=Path, help="folder of the run (default: <runs>/<name> of the plan)")
    return parser.parse_args(arguments)


def _context(plan: Plan, sources: Sources, job_id: str, run_dir: Path, rank: int, world_size: int) -> JobContext:
    try:
        job = plan.job(job_id)
    except KeyError:
        known = ", ".join(job.id for job in plan.jobs)
        raise UserError(f"the plan has no job `{job_id}`", exit_code=ExitCode.USAGE, fix=f"its jobs are {known}") from None
    devices = job.roles["trainer"].devices
    if world_size != devices:
        raise UserError(
            f"job `{job_id}` is planned for {devices} ranks, and {world_size} were started",
            exit_code=ExitCode.UNFIT,
            fix=f"torchrun --nproc-per-node {devices} -m polymath.runtime <plan> --job {job_id}, or change `placement` and compile",
        )
    return JobContext(
        plan=plan, sources=sources, job=job, run_dir=run_dir, rank=rank, world_size=world_size, barrier=_barrier, any_rank=_any_rank
    )


def _barrier() -> None:
    import torch.distributed

    torch.distributed.barrier()


def _any_rank(flag: bool) -> bool:
    import torch

    found = torch.tensor(float(flag))
    torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
    return bool(found)


def _run_job(context: JobContext) -> ExitCode:
    try:
        with context.cleanup, full_disk_is_clear(context.folder):
            context.folder.mkdir(parents=True, exist_ok=True)
            stage_runner(context.job.kind, context.job.id)(context)
        outcome, code = "finished", ExitCode.OK
    except Interrupted as stop:
        outcome, code = str(stop), ExitCode.INTERRUPTED
    except UserError as error:
        outcome, code = error.render(), error.exit_code
    except Exception as error:  # a bug of ours: keep the traceback for the log, one line for the user
        traceback.print_exc()
        outcome, code = f"a bug in Polymath: {type(error).__name__}: {error}", ExitCode.BUG
    say_outcome(context, code, outcome)
    return code


def stage_runner(kind: str, job_id: str) -> Callable[[JobContext], None]:
    """The stage that runs a kind of job, imported only when it runs."""
    if kind == "import":
        from .stages.import_model import run
    elif kind == "synthesize":
        from .stages.synthesize import run
    elif kind == "contamination":
        from .stages.contamination import run
    elif kind == "sft" and job_id == "sft_continued":
        from .stages.sft import run_continued as run
    elif kind == "sft":
        from .stages.sft import run
    elif kind == "grpo":
        from .stages.grpo import run
    elif kind == "distill":
        from .stages.distill import run
    elif kind == "merge":
        from .stages.merge import run
    elif kind == "evaluate":
        from .stages.evaluate import run
    elif kind == "export":
        from .stages.export import run
    else:
        raise AssertionError(f"no stage runs a job of kind {kind}")
    return run


if __name__ == "__main__":
    exit_code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Another rank may still wait in a collective; leaving at once lets torchrun end it.
    os._exit(exit_code)
