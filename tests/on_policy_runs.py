"""A real model, real worlds and a real ledger for the on-policy stages; only the trainer is a stand-in."""

import dataclasses
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from polymath.compiler.plan import Input, Job, Plan, Sources
from polymath.runtime.data.batch import PackedBatch, slice_rows
from polymath.runtime.data.tokenizers import load_tokenizer
from polymath.runtime.engines.weights import Weights
from polymath.runtime.jobs import JobContext
from polymath.runtime.stages.distill import DistillStage
from polymath.runtime.stages.on_policy import Actors, OnPolicyBatches
from polymath.runtime.teachers.service import open_teachers
from polymath.specs.build import to_json
from polymath.specs.distillation import Distill, DistillLoss, PromptsPerStep, Support
from polymath.specs.machine import Cluster, Engines, ExpertPrecision, Precision
from polymath.specs.model import Domain, Limits, Model, Prompts
from polymath.specs.reward import Reward
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
from weight_streams import weights_of

MODEL = Model(family="qwen3_moe", checkpoint="random", tokenizer="builtin:tiny-words")
TOKENIZER = load_tokenizer(MODEL)
ROW = 64
DOMAINS = {
    name: Domain(
        world=name,
        prompts=Prompts(train=20, heldout=20),
        limits=Limits(turns=2, response_tokens=6, context_tokens=48),
        reward=Reward(outcome=1.0, format=0.5),
    )
    for name in ("science", "search")
}
DISTILL = Distill(
    steps=3,
    prompts_per_step=PromptsPerStep(per_domain=3),
    loss=DistillLoss(support=Support(top_k=8)),
    sequence_tokens=ROW,
    learning_rate=1e-3,
)


def save_model(folder: Path, seed: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = Qwen3MoeConfig(
            vocab_size=TOKENIZER.vocabulary_size,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=32,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
            max_position_embeddings=128,
            initializer_range=0.2,
            norm_topk_prob=True,
            tie_word_embeddings=True,
        )
        Qwen3MoeForCausalLM(config).save_pretrained(folder)
    TOKENIZER.save(folder)


class StubTrainer:
    """Weights and a layout, and the loss as the trainer forms it."""

    def __init__(self, folder: Path, data_parallel_size: int = 2, micro_batch: int = 2) -> None:
        self.model = Qwen3MoeForCausalLM.from_pretrained(folder)
        self.data_parallel_size = data_parallel_size
        self.config = types.SimpleNamespace(training=types.SimpleNamespace(local_batch_size=micro_batch))
        self.syncs = 0

    def weights(self) -> Weights:
        self.syncs += 1
        return weights_of(self.model)

    def loss(self, stage: Any, batch: PackedBatch) -> tuple[float, dict[str, float]]:
        """Accumulate gradients over all ranks' micro-batches; the loss, and the stage's metrics."""
        self.model.zero_grad()
        rows = self.config.training.local_batch_size
        assert batch.tokens_BL.shape[0] % (rows * self.data_parallel_size) == 0
        total, sums = 0.0, {}
        for start in range(0, batch.tokens_BL.shape[0], rows):
            micro = slice_rows(batch, start, start + rows)
            hidden_BLH = torch.stack([self._packed_hidden(*row) for row in zip(micro.tokens_BL, micro.documents_BL, strict=True)])
            trained_BL = micro.loss_weight_BL != 0
            tokens = types.SimpleNamespace(
                labels_N=micro.labels_BL[trained_BL],
                weight_N=micro.loss_weight_BL[trained_BL],
                extras={name: extra[trained_BL] for name, extra in micro.extras.items()},
            )
            loss_N, extra_sums = (
                stage.hidden_loss(hidden_BLH[trained_BL], self.model.lm_head.weight, tokens)
                if hasattr(stage, "hidden_loss")
                else stage.token_loss(self.model.lm_head(hidden_BLH[trained_BL]), tokens)
            )
            loss = (loss_N * tokens.weight_N).sum()
            loss.backward()
            total += loss.item()
            for name, value in extra_sums.items():
                known = sums.get(name, torch.zeros_like(value))
                sums[name] = torch.maximum(known, value) if name.endswith("_max") else known + value
        return total, stage.summarize(sums)

    def reduced(self, sums: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        return sums

    def expert_choices(self, batch: PackedBatch) -> list[tuple[PackedBatch, torch.Tensor]]:
        """Of each document alone, as attention that keeps documents apart sees it; one micro-batch."""
        rows = []
        for tokens_L, documents_L in zip(batch.tokens_BL, batch.documents_BL, strict=True):
            lengths = torch.unique_consecutive(documents_L, return_counts=True)[1].tolist()
            parts = [self.model.model(part[None], output_router_logits=True).router_logits for part in tokens_L.split(lengths)]
            layers = [torch.cat(layer) for layer in zip(*parts, strict=True)]
            rows.append(torch.stack([logits_LE.topk(2, dim=-1).indices for logits_LE in layers], dim=1))
        return [(batch, torch.stack(rows))]

    def logits(self, batch: PackedBatch) -> list[tuple[PackedBatch, torch.Tensor]]:
        """Of rows that hold one document each; one micro-batch."""
        with torch.no_grad():
            return [(batch, self.model(batch.tokens_BL).logits.float())]

    def _packed_hidden(self, tokens_L: torch.Tensor, documents_L: torch.Tensor) -> torch.Tensor:
        lengths = torch.unique_consecutive(documents_L, return_counts=True)[1].tolist()
        return torch.cat([self.model.model(part[None]).last_hidden_state[0] for part in tokens_L.split(lengths)])

    def gradient(self) -> torch.Tensor:
        return torch.cat([one.grad.flatten() for one in self.model.parameters() if one.grad is not None])


def make_run(
    run_dir: Path, models: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch, world_size: int = 1, engines: Engines | None = None
) -> JobContext:
    settings = {
        "model": to_json(MODEL),
        "precision": to_json(Precision(compute="float32", experts=ExpertPrecision(format="float32"))),
        "engines": to_json(engines or Engines()),
    }
    job = Job(
        id="distill",
        kind="distill",
        needs=("sft",),
        seed=3,
        recipe_digest="0" * 64,
        exact_digest="0" * 64,
        roles={},
        inputs={"model": Input(job="sft", output="model")},
        settings=settings,
    )
    cluster = Cluster(accelerator="cpu", per_node=world_size)
    plan = Plan(name="t", seed=1, compiler="t", recipe_digest="", exact_digest="", cluster=cluster, jobs=(job,), processes=())
    monkeypatch.setattr(JobContext, "input_folder", lambda _, name: models["student"])
    sources = Sources(spec_folder="", runs="", urls={})
    return JobContext(plan=plan, sources=sources, job=job, run_dir=run_dir, rank=0, world_size=world_size, barrier=lambda: None)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folders = {name: tmp_path_factory.mktemp(name) / "model" for name in ("student", "a", "b")}
    for seed, folder in enumerate(folders.values()):
        save_model(folder, seed)
    return folders


@pytest.fixture
def context(tmp_path: Path, models: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> JobContext:
    return make_run(tmp_path, models, monkeypatch)


def distill_stage(
    context: JobContext, models: Mapping[str, Path], trainer: StubTrainer, settings: Distill = DISTILL, **changes: Any
) -> DistillStage:
    settings = dataclasses.replace(settings, **changes)
    actors = Actors(context, DOMAINS, settings.sampling, ROW)
    role = "rollout" if settings.rollouts == "teacher" else "scorer"
    teachers = open_teachers(context, role, {name: models[name] for name in ("a", "b")}, TOKENIZER, ROW)
    stage = DistillStage(settings, actors, OnPolicyBatches(context, actors), teachers, {"science": "a", "search": "b"})
    stage.attach(trainer)  # type: ignore[arg-type]
    return stage
