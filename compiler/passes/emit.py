"""emit: jobs get their digests and their processes, and become the plan.

`recipe_digest` covers what decides the weights: every `numerics` field of the settings, the content of the inputs, the recipes
upstream and the seed. `exact_digest` adds what decides the last bit: mesh, torchtitan's settings and versions.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from ...specs import machine, model
from ...specs.build import kept, to_json
from ...specs.fields import Identity
from ...specs.worlds import locations_of
from ..canonical import digest
from ..compilation import Compilation
from ..plan import Job, Plan, compiler_version
from ..routing import routing_table
from ..waves import group, waves

PINNED = {"torchtitan": "0.3.0", "transformers": "5.19"}  # what the plan's settings were written for
NUMERICS = (Identity.NUMERICS,)
EVERYTHING_BUT_LABELS = (Identity.NUMERICS, Identity.PLACEMENT)
_BLOCKS: dict[str, type[Any]] = {
    "model": model.Model,
    "precision": machine.Precision,
    "engines": machine.Engines,
    "checkpoint": machine.Checkpoint,
}


def emit(compilation: Compilation) -> Compilation:
    """Digest the jobs in order and gather them."""
    spec = compilation.spec
    assert spec is not None
    software = spec.cluster.software
    versions = {**PINNED, "torch": software.torch, "cuda": software.cuda, "polymath": compiler_version()}
    jobs: dict[str, Job] = {}
    for job in compilation.jobs:
        recipe = digest(_recipe(job, jobs))
        jobs[job.id] = replace(job, recipe_digest=recipe, exact_digest=digest(_exact(job, recipe, jobs, versions)))
    ordered, there = tuple(jobs.values()), spec.cluster.nodes * spec.cluster.per_node
    processes = group(ordered, there)
    plan = Plan(
        name=spec.name,
        seed=spec.seed,
        compiler=compiler_version(),
        recipe_digest=digest({job.id: job.recipe_digest for job in jobs.values()}),
        exact_digest=digest({job.id: job.exact_digest for job in jobs.values()}),
        cluster=spec.cluster,
        jobs=ordered,
        processes=processes,
        waves=waves(processes, ordered, there),
        routing=routing_table(spec, compilation.owners),
    )
    return replace(compilation, plan=plan)


def _recipe(job: Job, upstream: Mapping[str, Job]) -> dict[str, Any]:
    inputs: dict[str, Any] = {}
    for name, one in job.inputs.items():
        content = upstream[one.job].recipe_digest if one.job is not None else one.digest
        inputs[name] = {"output": one.output, "content": content}
    return {"kind": job.kind, "seed": job.seed, "settings": _kept(job.settings, NUMERICS), "inputs": inputs}


def _exact(job: Job, recipe: str, upstream: Mapping[str, Job], versions: Mapping[str, str | None]) -> dict[str, Any]:
    return {
        "recipe": recipe,
        "upstream": {need: upstream[need].exact_digest for need in job.needs},
        "roles": {name: to_json(role) for name, role in job.roles.items()},
        "titan": to_json(job.titan),
        "settings": _kept(job.settings, EVERYTHING_BUT_LABELS),
        "versions": versions,
    }


def _without_locations(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without the paths of inputs: an input is what it holds, wherever it lies."""
    found = dict(settings)
    block = found["model"] = dict(settings["model"])
    if block["checkpoint"] != "random":
        block["checkpoint"] = "source"
    if block["tokenizer"] != "from-checkpoint" and not block["tokenizer"].startswith("builtin:"):
        block["tokenizer"] = "source"
    if "domains" in found:
        found["domains"] = {name: dict(domain) for name, domain in settings["domains"].items()}
        for domain in found["domains"].values():
            domain["trajectories"] = [{**one, "path": one["path"] and "source"} for one in domain["trajectories"]]
            places = dict.fromkeys(locations_of(domain["world"], domain["settings"]), "source")
            domain["settings"] = {**domain["settings"], **places}
    return found


def _kept(settings: Mapping[str, Any], classes: Collection[Identity]) -> dict[str, Any]:
    """The settings without locations and with only the fields of some identity classes."""
    found = _without_locations(settings)
    for name, block in _BLOCKS.items():
        found[name] = kept(block, found[name], classes)
    if "domains" in found:
        found["domains"] = {name: kept(model.Domain, domain, classes) for name, domain in found["domains"].items()}
    if "stage" in found:
        found["stage"] = kept(getattr(model, found["stage_type"]), found["stage"], classes)
    return found
