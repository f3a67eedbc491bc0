"""lower: stages become jobs with inputs, roles, settings and torchtitan's overrides. Digests are `emit`'s."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...specs.build import to_json
from ...specs.hardware import ACCELERATORS
from ...specs.installed import code_digest
from ...specs.machine import EnginePlacement
from ...specs.model import Domain, GrpoPhase, Merge, Sft, Spec, StudentSft, TrajectorySource
from ...specs.reward import Reward
from ...specs.worlds import BUILTIN_WORLDS, locations_of
from ..compilation import Compilation
from ..estimates.compute import document_flops
from ..experts import recipe_of
from ..plan import Input, Job, Mesh, Role, Sources
from ..stages import Block, Played, Stage, played, stages
from ..titan import overrides
from .check import model_sources
from .place import placement_of
from .roles import ROLES_OF, judged

PENDING = ""  # a digest that `emit` fills in


def lower(compilation: Compilation) -> Compilation:
    """Make the job graph, in an order in which it can run."""
    spec = compilation.spec
    assert spec is not None and not compilation.diagnostics
    lowering = _Lowering(compilation, spec)
    sources = Sources(
        spec_folder=str(compilation.root), runs=spec.storage.runs, artifacts=spec.storage.artifacts, urls=source_urls(spec)
    )
    return replace(compilation, jobs=tuple(lowering.all_jobs()), sources=sources)


def source_urls(spec: Spec) -> dict[str, str]:
    """Everything that a spec reads from outside, by its key in `sources.json`."""
    urls = {f"model.{field}": url for field, url in model_sources(spec.model).items()}
    for name, domain in spec.domains.items():
        for number, source in enumerate(domain.trajectories):
            if source.path is not None:
                urls[f"source.{name}.{number}"] = source.path
        urls |= {f"world.{name}.{field}": url for field, url in locations_of(domain.world, domain.settings).items()}
    return urls


def job_seed(seed: int, job_id: str) -> int:
    """The seed of one job; 31 bits, so that every generator takes it."""
    return int(hashlib.sha256(f"{seed}:{job_id}".encode()).hexdigest()[:8], 16) >> 1


class _Lowering:
    """Builds the jobs of one spec."""

    def __init__(self, compilation: Compilation, spec: Spec) -> None:
        self.compilation, self.spec = compilation, spec
        self.by_id = {stage.id: stage for stage in stages(spec)}
        self.plays = {one.id: one for one in played(spec)}
        tokenizer = self.source("model.tokenizer") if "tokenizer" in model_sources(spec.model) else None
        self.tokenizer: dict[str, Input] = {"tokenizer": tokenizer} if tokenizer else {}

    def all_jobs(self) -> list[Job]:
        """Every job, each after those that it needs."""
        waiting = {job.id: job for job in self.jobs_as_written()}
        ordered: list[Job] = []

        def put(job: Job) -> None:
            for need in job.needs:
                if need in waiting:
                    put(waiting.pop(need))
            ordered.append(job)

        while waiting:
            put(waiting.pop(next(iter(waiting))))
        return ordered

    def jobs_as_written(self) -> list[Job]:
        spec = self.spec
        checkpoint = {"checkpoint": self.source("model.checkpoint")} if spec.model.checkpoint != "random" else {}
        jobs = [self.job("import", "import", {**checkpoint, **self.tokenizer}, {})]
        written = {name: _for_writing(domain, lambda source: not source.is_played) for name, domain in spec.domains.items()}
        if written := {name: domain for name, domain in written.items() if domain.trajectories}:
            inputs = {**self.tokenizer, **self.worlds(written)}
            jobs.append(self.job("synthesize", "synthesize", inputs, {"domains": to_json(written)}))
        jobs += [self.playing(one) for one in self.plays.values()]
        jobs += self.contamination()
        jobs.append(self.training(self.by_id["sft"], "import"))
        for name in self.compilation.order:
            start = self.last_job(spec.teachers[name].start)
            for number in range(len(spec.teachers[name].phases)):
                jobs.append(self.training(self.by_id[f"teachers.{name}.{number + 1}"], start))
                start = jobs[-1].id
        if "distill" in self.by_id:
            jobs.append(self.distillation(self.by_id["distill"]))
        if spec.student.merge is not None:
            jobs.append(self.merging(spec.student.merge))
        if spec.evaluate is not None:
            if spec.evaluate.continued_sft:
                jobs.append(self.continued_sft())
            jobs += self.evaluations()
        if spec.export:
            student = {"model": _model_of(self.last_job("student"))}
            jobs.append(self.job("export", "export", student, {"formats": list(spec.export)}))
        return jobs

    def last_job(self, model: str) -> str:
        """The job whose output is a model of the spec: `base`, `student.sft`, `student`, a teacher."""
        if model == "base":
            return "import"
        if model in ("student.sft", "sft"):
            return "sft"
        if model == "student":
            return self.spec.student.inherits_by or "sft"
        if model == "sft_continued":
            return "sft_continued"
        return f"teachers.{model}.{len(self.spec.teachers[model].phases)}"

    def playing(self, one: Played) -> Job:
        """Self-play of one source, by models."""
        domain = _for_writing(self.spec.domains[one.domain], lambda source: source is one.source)
        models = {f"model.{name}": _model_of(self.last_job(name)) for name in sorted(set(one.models.values()))}
        inputs = {**models, **self.tokenizer, **self.worlds([one.domain])}
        return self.job(one.id, "synthesize", inputs, {"domains": to_json({one.domain: domain})})

    def contamination(self) -> list[Job]:
        """The job that looks for the evaluations' tasks in every trajectory source. Nothing waits for it but the run's end."""
        evaluate, inputs = self.spec.evaluate, dict[str, Input]()
        for name, domain in self.spec.domains.items():
            for number, source in enumerate(domain.trajectories):
                if source.path is not None:
                    inputs[f"source.{name}.{number}"] = self.source(f"source.{name}.{number}")
                else:
                    inputs[f"trajectories.{name}.{number}"] = self.written(name, source)
        if evaluate is None or not inputs:
            return []
        domains = {name: replace(domain, reward=Reward(), limits=None, user=None) for name, domain in self.spec.domains.items()}
        settings = {"domains": to_json(domains), "episodes": evaluate.episodes, "contamination": to_json(evaluate.contamination)}
        return [self.job("contamination", "contamination", {**inputs, **self.worlds(domains)}, settings)]

    def written(self, domain: str, source: TrajectorySource) -> Input:
        """What a source that is synthesized comes from."""
        played = (one.id for one in self.plays.values() if (one.domain, one.source) == (domain, source))
        return Input(job=next(played, "synthesize"), output="trajectories")

    def training(self, stage: Stage, start: str) -> Job:
        """An SFT or GRPO job."""
        inputs = {"model": _model_of(start), **self.tokenizer, **self.worlds(stage.domains)}
        if isinstance(stage.block, Sft):
            inputs |= self.trajectories(stage.domains, stage.block.trajectories)
            domains = self.domains(stage.domains, _for_training(stage.block))
        else:
            domains = self.domains(stage.domains, _for_rollouts)
        if isinstance(stage.block, GrpoPhase):
            changed = stage.block.settings
            domains = {name: replace(domain, settings={**domain.settings, **changed}) for name, domain in domains.items()}
        return self.stage_job(stage, inputs, {"domains": to_json(domains), **self.document_flops(stage.block)})

    def document_flops(self, block: Block) -> dict[str, Any]:
        """What balancing rows by their cost needs to know of the model."""
        if not isinstance(block, Sft) or block.balance_window == 1:
            return {}
        assert self.compilation.dimensions is not None
        return {"document_flops": document_flops(self.compilation.dimensions)}

    def distillation(self, stage: Stage) -> Job:
        inputs, routing = self.routed()
        inputs |= self.worlds(stage.domains)
        return self.stage_job(stage, inputs, {"domains": to_json(self.domains(stage.domains, _for_rollouts)), "routing": routing})

    def merging(self, block: Merge) -> Job:
        inputs, routing = self.routed()
        settings = {"stage": to_json(block), "stage_type": "Merge", "routing": routing}
        return self.job("merge", "merge", inputs, settings)

    def routed(self) -> tuple[dict[str, Input], dict[str, str]]:
        """What a job that makes the student of its teachers reads, and which teacher owns which domain."""
        routing = dict(self.compilation.owners)
        teachers = {f"teacher.{teacher}": _model_of(self.last_job(teacher)) for teacher in sorted(set(routing.values()))}
        return {"model": _model_of("sft"), **self.tokenizer, **teachers}, routing

    def continued_sft(self) -> Job:
        """The control: SFT's data under distillation's optimizer, for as many tokens as distillation trained on."""
        sft, distill = self.spec.student.sft, self.spec.student.distill
        assert distill is not None
        shared = ("learning_rate", "schedule", "final_lr_fraction", "warmup", "weight_decay", "betas", "clip_norm")
        block: StudentSft = replace(sft, epochs=None, steps=distill.steps, **{name: getattr(distill, name) for name in shared})
        stage = replace(self.by_id["sft"], id="sft_continued", block=block)
        budget = Input(job="distill", output="result")
        inputs = {"model": _model_of("sft"), **self.tokenizer, "budget": budget, **self.worlds(stage.domains)}
        inputs |= self.trajectories(stage.domains, sft.trajectories)
        settings = {"domains": to_json(self.domains(stage.domains, _for_training(sft))), **self.document_flops(block)}
        return self.stage_job(stage, inputs, settings, budget=True)

    def evaluations(self) -> list[Job]:
        evaluate, owners = self.spec.evaluate, self.compilation.owners
        assert evaluate is not None
        models = ["base", "sft", *(name for name in self.compilation.order if name in owners.values())]
        models += ["sft_continued"] if evaluate.continued_sft else []
        models += ["student"] if self.spec.student.inherits_by is not None else []
        jobs: list[Job] = []
        for model in models:
            if evaluate.models != "all" and model not in evaluate.models:
                continue
            own = [name for name in self.spec.domains if owners.get(name) == model] if model in self.spec.teachers else None
            domains = self.domains(own or tuple(self.spec.domains), _for_rollouts)
            settings = {"stage": to_json(evaluate), "stage_type": "Evaluate", "subject": model, "domains": to_json(domains)}
            inputs = {"model": _model_of(self.last_job(model)), **self.tokenizer, **self.worlds(domains)}
            jobs.append(self.job(f"evaluate.{model}", "evaluate", inputs, settings))
        return jobs

    def stage_job(self, stage: Stage, inputs: dict[str, Input], settings: dict[str, Any], *, budget: bool = False) -> Job:
        mesh = self.compilation.meshes["sft" if stage.id == "sft_continued" else stage.id]
        stage_settings = {"stage": to_json(stage.block), "stage_type": type(stage.block).__name__, **settings}
        job = self.job(stage.id, stage.kind, inputs, stage_settings, mesh)
        titan = overrides(self.spec, stage, mesh, job.seed)
        open_ended = ("training.steps", "lr_scheduler.warmup_steps")  # distillation's tokens decide them
        return replace(job, titan=tuple(one for one in titan if not (budget and one.path in open_ended)))

    def job(self, job_id: str, kind: str, inputs: dict[str, Input], settings: dict[str, Any], mesh: Mesh | None = None) -> Job:
        """A job on its own mesh; one without runs on the devices of SFT, so that it can share SFT's processes."""
        spec = self.spec
        devices = mesh.devices if mesh else placement_of(spec, "sft").devices
        nodes = max(1, -(-devices // spec.cluster.per_node))
        torchrun = (f"--nnodes={nodes}", f"--nproc-per-node={devices // nodes}")
        environment = {"OMP_NUM_THREADS": "1"} if spec.cluster.accelerator == "cpu" else {}
        trainer = Role(devices=devices, torchrun=torchrun, environment=environment, mesh=mesh)
        shared = {name: to_json(getattr(spec, name)) for name in ("model", "precision", "engines", "checkpoint")}
        recipe = recipe_of(spec.precision.experts) if mesh is not None else None
        if recipe is not None:
            shared["experts_recipe"] = recipe
        needs = sorted({one.job for one in inputs.values() if one.job is not None})
        return Job(
            id=job_id,
            kind=kind,
            needs=tuple(needs),
            seed=job_seed(spec.seed, job_id),
            recipe_digest=PENDING,
            exact_digest=PENDING,
            roles={"trainer": trainer, **self.engines(job_id, kind, settings)},
            inputs=inputs,
            settings={**shared, **settings},
        )

    def engines(self, job_id: str, kind: str, settings: Mapping[str, Any]) -> dict[str, Role]:
        """The roles beside the trainer: engines that have devices of their own, and the judge of the job's rewards."""
        placed = {name: role for name, role in self.engine_placements(job_id, kind).items() if role is not None}
        found = {
            name: Role(
                devices=role.devices,
                torchrun=(),
                environment={},
                engine=getattr(self.spec.engines, name),
                tensor=self.compilation.decisions[("placement", kind, name, "tensor")].value
                if role.tensor == "auto"
                else role.tensor,
                shared=role.shared,
                weights=self.way_of_weights(role, kind, settings) if name == "rollout" else None,
            )
            for name, role in placed.items()
        }
        judge = self.spec.engines.judge
        asking = [name for name, _ in judged(self.spec) if name in settings.get("domains", {})]
        if judge is not None and asking and kind in ("grpo", "evaluate"):
            found["judge"] = Role(devices=0, torchrun=(), environment={}, engine=judge.model, url_env=judge.url_env)
        for name in settings.get("domains", {}) if kind in ("grpo", "distill", "evaluate") else ():
            if (user := self.spec.domains[name].user) is not None:
                found[f"user.{name}"] = Role(devices=0, torchrun=(), environment={}, engine=user.model, url_env=user.url_env)
        if (one := self.plays.get(job_id)) is not None and one.source.self_play is not None:
            for role, service in one.source.self_play.services.items():
                found[role] = Role(devices=0, torchrun=(), environment={}, engine=service.model, url_env=service.url_env)
            user = self.spec.domains[one.domain].user
            if one.source.has_model_solver and user is not None:
                found[f"user.{one.domain}"] = Role(devices=0, torchrun=(), environment={}, engine=user.model, url_env=user.url_env)
        routed = set(settings.get("routing", {}).values()) if kind == "distill" else set[str]()
        for name, service in self.spec.engines.teachers.items():
            if name in routed:
                found[f"teacher.{name}"] = Role(
                    devices=0, torchrun=(), environment={}, engine=service.model, url_env=service.url_env
                )
        return found

    def way_of_weights(self, role: EnginePlacement, kind: str, settings: Mapping[str, Any]) -> str | None:
        """How a policy that is trained gets from the trainer to the engine that acts."""
        if kind in ("evaluate", "synthesize") or settings["stage"].get("rollouts") == "teacher":
            return None
        if not ACCELERATORS[self.spec.cluster.accelerator].is_gpu:
            return "folder"
        return "ipc" if role.shared else "nccl"

    def engine_placements(self, job_id: str, kind: str) -> dict[str, EnginePlacement | None]:
        """What the spec places for the engines of a job; a phase without `reference_kl` scores nothing, and programs
        and endpoints need no engine."""
        block = getattr(self.spec.placement, kind, None)
        placed = {name: getattr(block, name) for name in ROLES_OF.get(kind, ())} if block is not None else {}
        stage = self.by_id.get(job_id)
        if stage is not None and isinstance(stage.block, GrpoPhase) and not stage.block.reference_kl:
            placed.pop("scorer", None)
        if kind == "synthesize" and not (job_id in self.plays and self.plays[job_id].models):
            placed.pop("rollout", None)
        return placed

    def trajectories(self, domains: Sequence[str], name: str) -> dict[str, Input]:
        """The inputs of the trajectory sources of one name."""
        inputs: dict[str, Input] = {}
        for domain in domains:
            mine = [(number, one) for number, one in enumerate(self.spec.domains[domain].trajectories) if one.name == name]
            for place, (number, source) in enumerate(mine):
                if source.path is not None:
                    inputs[f"source.{domain}.{place}"] = self.source(f"source.{domain}.{number}")
                else:
                    inputs[f"trajectories.{domain}" if source.is_played else "trajectories"] = self.written(domain, source)
        return inputs

    def worlds(self, domains: Iterable[str]) -> dict[str, Input]:
        """What the worlds of these domains read: files of the user's, and the code of those that packages bring."""
        inputs: dict[str, Input] = {}
        for name in domains:
            domain = self.spec.domains[name]
            for field in locations_of(domain.world, domain.settings):
                inputs[f"world.{name}.{field}"] = self.source(f"world.{name}.{field}")
            if domain.world is not None and domain.world not in BUILTIN_WORLDS:
                key = f"world.{name}.code"
                inputs[key] = Input(source=key, digest=code_digest(domain.world))
        return inputs

    def source(self, key: str) -> Input:
        return Input(source=key, digest=self.compilation.digests.get(key))

    def domains(self, names: Sequence[str], keep: Callable[[Domain], Domain]) -> Mapping[str, Domain]:
        """The domains of a job, without what cannot change its outcome."""
        return {name: keep(self.spec.domains[name]) for name in self.spec.domains if name in names}


def _model_of(job: str) -> Input:
    return Input(job=job, output="model")


def _for_writing(domain: Domain, wanted: Callable[[TrajectorySource], bool]) -> Domain:
    """A domain with those sources to write that are wanted."""
    sources = tuple(one for one in domain.trajectories if one.synthesize is not None and wanted(one))
    user = domain.user if any(one.has_model_solver for one in sources) else None
    return replace(domain, reward=Reward(), user=user, trajectories=sources)


def _for_training(block: Sft) -> Callable[[Domain], Domain]:
    def keep(domain: Domain) -> Domain:
        sources = tuple(one for one in domain.trajectories if one.name == block.trajectories)
        return replace(domain, reward=Reward(), prompts=None, limits=None, user=None, trajectories=sources)

    return keep


def _for_rollouts(domain: Domain) -> Domain:
    return replace(domain, trajectories=())
