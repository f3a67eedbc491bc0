"""A job context of one rank whose earlier jobs are made by hand."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from polymath.compiler.plan import Input, Job, Plan, Role, Sources, compiler_version
from polymath.runtime.jobs import JobContext
from polymath.specs.build import to_json
from polymath.specs.machine import Cluster, Engines, Precision
from polymath.specs.model import Domain, Evaluate, Limits, Model, ModelShape, Prompts, TrajectorySource

SHAPE = ModelShape(
    hidden=32,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=32,
    experts=4,
    experts_per_token=2,
    expert_hidden=32,
    context_tokens=256,
    rope_theta=10000.0,
    tied_embeddings=True,
)
MakeContext = Callable[..., JobContext]


def random_model(shape: ModelShape = SHAPE) -> dict[str, Any]:
    return to_json(Model(family="qwen3_moe", checkpoint="random", tokenizer="builtin:tiny-words", shape=shape))


def tools_domain(*sources: TrajectorySource) -> dict[str, Any]:
    limits = Limits(turns=4, response_tokens=12, context_tokens=128)
    return to_json(Domain(world="tools", trajectories=sources, prompts=Prompts(train=30, heldout=20), limits=limits))


def plan_of(jobs: list[Job], seed: int = 7) -> Plan:
    return Plan(
        name="tiny",
        seed=seed,
        compiler=compiler_version(),
        recipe_digest="a" * 64,
        exact_digest="b" * 64,
        cluster=Cluster(accelerator="cpu", per_node=2),
        jobs=tuple(jobs),
        processes=(),
    )


def job_of(job_id: str, kind: str, settings: Mapping[str, Any], inputs: Mapping[str, Input] | None = None, seed: int = 5) -> Job:
    return Job(
        id=job_id,
        kind=kind,
        needs=(),
        seed=seed,
        recipe_digest="c" * 64,
        exact_digest="d" * 64,
        roles={"trainer": Role(devices=1, torchrun=(), environment={})},
        inputs=inputs or {},
        settings=settings,
    )


@pytest.fixture
def make_context(tmp_path: Path) -> MakeContext:
    """A context for the last of the given jobs."""

    def make(*jobs: Job, run: str = "run", rank: int = 0, world_size: int = 1, urls: Mapping[str, str] | None = None) -> JobContext:
        return JobContext(
            plan=plan_of(list(jobs)),
            sources=Sources(spec_folder=str(tmp_path), runs="runs", urls=urls or {}),
            job=jobs[-1],
            run_dir=tmp_path / run,
            rank=rank,
            world_size=world_size,
            barrier=lambda: None,
        )

    return make


def import_job(**changes: Any) -> Job:
    return job_of("import", "import", {"model": random_model()}, **changes)


def evaluate_job(subject: str, episodes: int = 12) -> Job:
    settings = {
        "stage": to_json(Evaluate(episodes=episodes)),
        "stage_type": "Evaluate",
        "subject": subject,
        "domains": {"tools": tools_domain()},
        "precision": {**to_json(Precision()), "compute": "float32"},
        "engines": to_json(Engines()),
    }
    # Jobs have seeds of their own; what an evaluation draws must not depend on it.
    seed = sum(subject.encode())
    return job_of(f"evaluate.{subject}", "evaluate", settings, {"model": Input(job="import", output="model")}, seed)
