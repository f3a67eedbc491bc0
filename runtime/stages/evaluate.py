"""evaluate: one model tries held-out tasks of its domains, once each.

Every model of a run tries the same tasks in the same order, because the tasks follow from the run's seed and the domain alone; that
is what makes the paired comparison of the scoreboard possible. Ranks play every n-th task; the first rank puts them back in order.
"""

import hashlib
import json
import shutil
from typing import Any

from ...specs.diagnostics import ExitCode, UserError
from ...specs.model import Domain, Evaluate
from ..data.renderer import Renderer
from ..data.tokenizers import load_tokenizer_folder
from ..engines.protocol import SamplingSettings
from ..engines.registry import open_engines
from ..files import write_json
from ..jobs import JobContext
from ..judging import open_judge
from ..report.statistics import wilson
from ..rewards import outcome_alone
from ..rollouts import RolloutRequest, collect
from ..simulated_user import open_users
from ..worlds.protocol import Task, World, WorldError
from ..worlds.registry import open_world
from .on_policy import derived_seed

PARTS = ".staging-parts"


def run(context: JobContext) -> None:
    """Evaluate the job's model on its domains."""
    stage = context.setting("stage", Evaluate)
    model_folder = context.input_folder("model")
    tokenizer = load_tokenizer_folder(model_folder)
    engine = open_engines(context, "rollout", {"model": model_folder}, tokenizer)["model"]
    judge = open_judge(context)
    names = sorted(context.job.settings["domains"])
    total, before = stage.episodes * len(names), 0
    part: dict[str, Any] = {}
    drawn: dict[str, list[Task]] = {}
    for name in names:
        domain = context.setting_of("domains", name, Domain)
        assert domain.limits is not None
        world = open_world(context, name, domain)
        drawn[name] = heldout_tasks(world, name, stage.episodes, context.plan.seed)
        own = drawn[name][context.rank :: context.world_size]
        trajectories = collect(
            engine,
            {name: Renderer(tokenizer, world.tools)},
            {name: world},
            [RolloutRequest(domain=name, task=task, limits=domain.limits, reward=outcome_alone(domain.reward)) for task in own],
            SamplingSettings(temperature=stage.temperature, top_p=1.0),
            derived_seed(context.plan.seed, "evaluate", name, context.rank),
            # Ranks move at about one pace, and only the first one shows it.
            lambda progress, before=before: context.progress(before + progress.done * context.world_size, total, "episodes"),
            judge,
            open_users({name: domain}),
        )
        part[name] = {
            "outcomes": [one.outcome for one in trajectories],
            "truncated": sum(one.status == "TRUNCATED" for one in trajectories),
            "forced": sum(one.status == "FORCED" for one in trajectories),
        }
        before += stage.episodes
    parts = context.folder / PARTS
    write_json(parts / f"{context.rank}.json", part)
    context.barrier()
    result: dict[str, Any] = {}
    if context.is_first_rank:
        found = [json.loads((parts / f"{rank}.json").read_text()) for rank in range(context.world_size)]
        domains = {name: merge([one[name] for one in found], drawn[name]) for name in names}
        result = {"subject": context.job.settings["subject"], "domains": domains}
        shutil.rmtree(parts)
        context.progress(total, total, "episodes")
    context.finish(result)


def heldout_tasks(world: World, domain: str, episodes: int, run_seed: int) -> list[Task]:
    """The tasks that every model of a run tries in a domain.

    Raises:
        UserError: the world has fewer.
    """
    try:
        return world.tasks("heldout", episodes, derived_seed(run_seed, domain, "heldout"))
    except WorldError as error:
        raise UserError(f"domain `{domain}`: {error}", exit_code=ExitCode.SPEC, fix="lower evaluate.episodes") from error


def merge(parts: list[dict[str, Any]], tasks: list[Task]) -> dict[str, Any]:
    """The parts of all ranks as one domain's result, outcomes in the order of the tasks."""
    outcomes: list[float] = [0.0] * len(tasks)
    for rank, part in enumerate(parts):
        outcomes[rank :: len(parts)] = part["outcomes"]
    score = wilson(sum(outcomes), len(outcomes))
    return {
        "episodes": len(outcomes),
        "score": score.value,
        "ci95": score.interval,
        "outcomes": outcomes,
        "truncated": sum(part["truncated"] for part in parts),
        "forced": sum(part["forced"] for part in parts),
        "tasks_digest": hashlib.sha256("\n".join(task.key for task in tasks).encode()).hexdigest(),
    }
