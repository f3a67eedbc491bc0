"""The language: every block a spec may hold, as frozen dataclasses. Together with `reward.py`, `training.py`, `self_play.py`,
`distillation.py`, `alarms.py` and `machine.py`, this file is the single source of truth.

Sources: method.md sections 4 to 6 of the Agents-A1 report (arXiv 2606.30616) name the training fields; each default that the
report does not state is ours and its documentation says so.
"""

# ruff: noqa: RUF009  (spec_field returns a dataclass field, never a shared default)

from dataclasses import dataclass
from typing import Any, Literal

from .distillation import Distill
from .fields import Identity, is_given, spec_field
from .machine import Checkpoint, Cluster, Engines, Placement, Precision, Service, Storage
from .reward import Reward
from .self_play import SelfPlay
from .training import Optimization, Sampling

PLACEMENT, LABEL = Identity.PLACEMENT, Identity.LABEL
NAME = r"^[a-z][a-z0-9_-]{0,62}$"


@dataclass(frozen=True, kw_only=True, slots=True)
class HybridShape:
    """What a `qwen3_5_moe` has beyond a `qwen3_moe`: gated DeltaNet in most layers, and an expert that every token visits."""

    full_attention_every: int = spec_field(
        "Every which layer attends in full; the others are gated DeltaNet.", default=4, minimum=1, maximum=65_536, unit="layers"
    )
    key_heads: int = spec_field("Number of DeltaNet's query heads, which is that of its key heads.", minimum=1, maximum=65_536)
    value_heads: int = spec_field("Number of DeltaNet's value heads; a multiple of `key_heads`.", minimum=1, maximum=65_536)
    key_head_dim: int = spec_field("Width of one DeltaNet query or key head.", minimum=8)
    value_head_dim: int = spec_field("Width of one DeltaNet value head.", minimum=8)
    conv_kernel: int = spec_field("Positions that DeltaNet's causal convolutions see.", default=4, minimum=2)
    rotary_dim: int = spec_field("Width of an attention head that rotary positions turn; even, at most `head_dim`.", minimum=2)
    shared_expert_hidden: int = spec_field("Inner width of the gated expert that every token visits.", minimum=8)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """The dimensions of a model that starts from random weights."""

    hidden: int = spec_field("Width of the residual stream.", minimum=8)
    layers: int = spec_field("Number of transformer layers.", minimum=1, maximum=65_536)
    heads: int = spec_field("Number of query heads.", minimum=1, maximum=65_536)
    kv_heads: int = spec_field("Number of key and value heads; divides `heads`.", minimum=1, maximum=65_536)
    head_dim: int = spec_field("Width of one attention head.", minimum=8)
    experts: int = spec_field("Number of routed experts per layer.", minimum=1, maximum=65_536)
    experts_per_token: int = spec_field("Experts that each token visits.", minimum=1, maximum=65_536)
    expert_hidden: int = spec_field("Inner width of one expert.", minimum=8)
    context_tokens: int = spec_field("Longest sequence the model may see.", unit="tokens", minimum=8)
    rope_theta: float = spec_field("Base of the rotary position embedding.", default=1e6, exclusive_minimum=0)
    tied_embeddings: bool = spec_field("Whether input and output embeddings share their weights.", default=False)
    hybrid: HybridShape | None = spec_field("The rest of family `qwen3_5_moe`, which needs it; no other has it.", default=None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """The model that is the base, the student and every teacher."""

    family: Literal["qwen3_moe", "qwen3_5_moe"] = spec_field("Architecture family.", examples=("qwen3_moe",))
    size: Literal["30b-a3b", "35b-a3b"] | None = spec_field(
        "Name of published dimensions of the family, for a random model or for a checkpoint; needed where the checkpoint's "
        "config.json is not on this machine.",
        default=None,
        examples=("35b-a3b",),
    )
    checkpoint: str = spec_field(
        "`random`, or the path or URL of a Hugging Face checkpoint folder (safetensors only).",
        examples=("random", "file:///models/qwen3-30b-a3b"),
    )
    tokenizer: str = spec_field(
        "`from-checkpoint`, `builtin:tiny-words`, `builtin:bytes`, or the path of a Hugging Face tokenizer folder.",
        default="from-checkpoint",
        examples=("builtin:tiny-words",),
    )
    shape: ModelShape | None = spec_field("Dimensions of a random model that has no `size`; refused elsewhere.", default=None)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrajectorySource:
    """Where trajectories come from: exactly one of `path` and `synthesize`."""

    name: str = spec_field("What stages select this source by.", default="default", pattern=NAME)
    path: str | None = spec_field("Path or fsspec URL of a JSONL file, relative to the spec.", default=None)
    format: Literal["openai", "question_answer"] = spec_field(
        "How a row reads: chat messages in OpenAI form (`messages` or `traj`), or `question` and `answer`.", default="openai"
    )
    minimum_reward: float | None = spec_field(
        "Keep only rows whose `reward` is at least this; rows without one are kept.", default=None
    )
    synthesize: int | None = spec_field("Number of demonstrations that the world's oracle writes.", default=None, minimum=1)
    habit_rate: float = spec_field(
        "Share of the harder tasks on which the demonstrator follows the world's fixed wrong habit.",
        default=0.0,
        minimum=0,
        maximum=1,
    )
    slip_rate: float = spec_field(
        "Probability that one action of the demonstrator slips at random.", default=0.0, minimum=0, maximum=1
    )
    tools: bool = spec_field(
        "Whether demonstrations call tools; without, the demonstrator answers at once, and no tool is offered.", default=True
    )
    self_play: SelfPlay | None = spec_field(
        "Who plays, where the world writes its own tasks; left out, its programs do.", default=None
    )

    @property
    def is_played(self) -> bool:
        """Whether models play in it, so that its trajectories are a job of their own."""
        return self.self_play is not None and bool(self.self_play.models or self.self_play.services)

    @property
    def has_model_solver(self) -> bool:
        """Whether a model solves its tasks, within the `limits` of the domain and with its `user`."""
        return self.self_play is not None and self.self_play.solver is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompts:
    """How many tasks of a world are used."""

    train: int = spec_field("Distinct training tasks that rollouts draw from.", unit="tasks", minimum=1)
    heldout: int = spec_field("Distinct held-out tasks that an evaluation may draw from.", unit="tasks", minimum=1)


ASK_FOR_ANSWER = "You have no more turns. Answer now with what you know, without a tool."


@dataclass(frozen=True, kw_only=True, slots=True)
class Finalize:
    """How an episode ends that reaches `turns`, `tool_calls` or `context_tokens` before the policy has answered (report, search
    data): the turn that reaches the limit is rolled back, its call not carried out, and a user's message forces an answer.
    """

    prompt: str = spec_field(
        "What the user says; never trained on. Room for it and for a turn of `response_tokens` is kept free in the context.",
        default=ASK_FOR_ANSWER,
        pattern=r"^[\s\S]*\S[\s\S]*$",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """When an episode is cut off; the prefix is kept as TRUNCATED."""

    turns: int = spec_field("Most assistant turns in an episode.", unit="turns", minimum=1)
    response_tokens: int = spec_field("Most tokens the model may write in one turn.", unit="tokens", minimum=1)
    context_tokens: int = spec_field("Most tokens in an episode.", unit="tokens", minimum=8)
    tool_calls: int | None = spec_field("Most tool calls in an episode; left out, turns alone bound them.", default=None, minimum=1)
    wall_seconds: float | None = spec_field(
        "Most seconds of an episode, looked at between turns. Which episodes it cuts off depends on the machine.",
        default=None,
        unit="seconds",
        exclusive_minimum=0,
        identity=LABEL,
        numerics_when=is_given,
    )
    finalize: Finalize | None = spec_field(
        "The forced answer; left out, an episode at a limit is cut off, and in self-play asked for in the default words.",
        default=None,
        identity=LABEL,
        numerics_when=is_given,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Domain:
    """One domain: a world to act in, or trajectories to learn from, or both."""

    world: str | None = spec_field(
        "World to act in: a built-in one or an installed entry point.", default=None, examples=("search",)
    )
    settings: dict[str, Any] = spec_field("Settings of the world, such as its difficulty.", default_factory=dict)
    trajectories: tuple[TrajectorySource, ...] = spec_field("Trajectory sources.", default=())
    prompts: Prompts | None = spec_field("Task counts; needed for rollouts and evaluation.", default=None)
    limits: Limits | None = spec_field("Episode limits; needed for rollouts, evaluation and self-play of models.", default=None)
    reward: Reward = spec_field("How episodes are rewarded.", default_factory=lambda: Reward())
    user: Service | None = spec_field(
        "Model that speaks for the user in a world that has one, in rollouts, evaluation and self-play that a model solves; left "
        "out, the world's script does.",
        default=None,
        identity=LABEL,
        numerics_when=is_given,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Sft(Optimization):
    """Supervised fine-tuning on trajectories; loss on what the model wrote only. Exactly one of `epochs` and `steps`."""

    domains: Literal["all"] | tuple[str, ...] = spec_field(
        "Domains whose trajectories are used.", default="all", reference="domains"
    )
    trajectories: str = spec_field("Name of the trajectory sources that are used.", default="default", pattern=NAME)
    epochs: float | None = spec_field("Passes over the data.", default=None, exclusive_minimum=0)
    steps: int | None = spec_field("Optimizer steps; the data repeats as needed.", default=None, minimum=1)
    batch_sequences: int = spec_field("Packed rows per optimizer step, over all ranks.", unit="rows", minimum=1)
    balance_window: int = spec_field(
        "Steps over which rows of like cost meet, so that ranks finish together; 1: a random order.", default=1, minimum=1
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentSft(Sft):
    """Stage 1: full-domain SFT (report section on the training recipe)."""

    start: Literal["base"] = spec_field("What the weights start from.", default="base", key="from")


@dataclass(frozen=True, kw_only=True, slots=True)
class Merge:
    """Weights of the student computed from its teachers' without training. Each routed teacher counts once."""

    method: Literal["average", "task_arithmetic"] = spec_field(
        "`average`: the mean of the teachers' weights. `task_arithmetic` (Ilharco et al. 2023): SFT's weights plus `scale` times "
        "the sum of what each teacher changed of them.",
    )
    scale: float | None = spec_field(
        "Weight of that sum, which task arithmetic needs; its source chooses it on data set aside.",
        default=None,
        exclusive_minimum=0,
        examples=(0.3,),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Student:
    """The student's stages. It inherits from its teachers by `distill` or by `merge`, or stays what SFT made it."""

    sft: StudentSft = spec_field("Stage 1: full-domain SFT.")
    distill: Distill | None = spec_field("Stage 3: routed distillation.", default=None)
    merge: Merge | None = spec_field("In place of distillation, a baseline that merges the teachers' weights.", default=None)

    @property
    def inherits_by(self) -> Literal["distill", "merge"] | None:
        """The stage, and the job, that makes the student of its teachers; None where it stays what SFT made it."""
        return "distill" if self.distill is not None else "merge" if self.merge is not None else None


@dataclass(frozen=True, kw_only=True, slots=True)
class SftPhase(Sft):
    """A teacher's SFT phase."""

    method: Literal["sft"] = spec_field("Names the kind of phase.")


@dataclass(frozen=True, kw_only=True, slots=True)
class KeepMixed:
    """Which tasks a phase trains on: those that its starting model solves in some attempts and fails in others."""

    attempts: int = spec_field("Attempts at each task.", minimum=2, unit="rollouts")
    tasks: int | None = spec_field("Most tasks of a domain that are kept.", default=None, minimum=1, unit="tasks")


@dataclass(frozen=True, kw_only=True, slots=True)
class GrpoPhase(Optimization):
    """A teacher's GRPO phase: group-normalised advantages and an asymmetric clip (report section 5)."""

    method: Literal["grpo"] = spec_field("Names the kind of phase.")
    domains: tuple[str, ...] = spec_field("Domains whose prompts are used.", reference="domains", item_minimum_count=1)
    steps: int = spec_field("Rollout batches.", minimum=1)
    prompts: int = spec_field("Prompts per rollout batch.", unit="prompts", minimum=1)
    samples: int = spec_field("Rollouts of each prompt; their rewards are normalised together.", unit="rollouts", minimum=2)
    updates: int = spec_field("Optimizer updates per rollout batch, each on its own share of the groups.", default=1, minimum=1)
    clip: tuple[float, float] = spec_field(
        "How far the ratio may fall below and rise above 1.",
        default=(0.2, 0.28),
        minimum=0,
        maximum=1,
        limit_reason="how far from 1, not the bounds themselves: [0.2, 0.28] keeps the ratio between 0.8 and 1.28",
    )
    reference_kl: float = spec_field("Weight of the KL to the phase's starting weights.", default=0.0, minimum=0)
    entropy: float = spec_field("Weight of the entropy bonus.", default=0.0, minimum=0)
    advantage: Literal["outcome", "process"] = spec_field(
        "`outcome` normalises rewards in their group; `process` adds credit that ranks the failures by their steps.",
        default="outcome",
    )
    process_weight: float = spec_field("Weight of the process credit; the report states 0.5.", default=0.5, exclusive_minimum=0)
    dynamic_sampling: bool = spec_field("Whether groups whose rewards are all equal are dropped.", default=True)
    keep_mixed: KeepMixed | None = spec_field("Filter of the tasks by difficulty.", default=None)
    settings: dict[str, Any] = spec_field(
        "Settings of the domains' worlds that differ in this phase, such as a harder difficulty.", default_factory=dict
    )
    sampling: Sampling = spec_field("How rollouts are sampled.", default_factory=lambda: Sampling())


@dataclass(frozen=True, kw_only=True, slots=True)
class Teacher:
    """A domain teacher."""

    start: str = spec_field("`base`, `student.sft` or the name of another teacher.", key="from", examples=("base", "student.sft"))
    phases: tuple[SftPhase | GrpoPhase, ...] = spec_field("Phases in order.", item_minimum_count=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """One routing rule. Rules are exclusive and their order does not matter."""

    domains: tuple[str, ...] = spec_field("Domains whose prompts go to this teacher.", reference="domains", item_minimum_count=1)
    teacher: str = spec_field("The teacher that scores them.", reference="teachers")


@dataclass(frozen=True, kw_only=True, slots=True)
class Contamination:
    """What becomes of a run whose training data holds tasks that it evaluates on. Every trajectory source is looked into."""

    action: Literal["warn", "refuse"] = spec_field(
        "`warn`: an event and a mark on the report page. `refuse`: the run ends.", default="warn", identity=LABEL
    )
    similarity: float | None = spec_field(
        "Likeness from which a text counts as a task, by MinHash, and the share of a task's words that a text may quote; left out, "
        "only the same words count: questions that a template makes are nearly alike.",
        default=None,
        exclusive_minimum=0,
        maximum=1,
        identity=LABEL,
        examples=(0.8,),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluate:
    """The scoreboard."""

    models: Literal["all"] | tuple[str, ...] = spec_field(
        "`all`, or some of `base`, `sft`, `student`, `sft_continued` and teachers' names.",
        default="all",
        item_minimum_count=1,
        distinct=True,
        identity=LABEL,
    )
    episodes: int = spec_field("Held-out episodes per domain, each another task.", unit="episodes", minimum=1)
    temperature: float = spec_field("Sampling temperature; 0 is greedy.", default=0.0, minimum=0)
    continued_sft: bool = spec_field(
        "Whether to train the control: SFT continued for as many tokens as distillation saw.", default=False, identity=LABEL
    )
    contamination: Contamination = spec_field(
        "Tasks of the evaluations in training data.", default_factory=lambda: Contamination(), identity=LABEL
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    """A whole spec."""

    polymath: Literal[1] = spec_field("Version of the language.", identity=LABEL)
    extends: str | None = spec_field(
        "Another spec that this one changes, relative to this file and in its folder or below.", default=None, identity=LABEL
    )
    name: str = spec_field("Name of the run.", pattern=NAME, identity=LABEL)
    seed: int = spec_field("Seed of everything random.", minimum=0, maximum=2**31 - 1)
    model: Model = spec_field("The model.")
    domains: dict[str, Domain] = spec_field("Domains by name.", item_minimum_count=1, pattern=NAME)
    student: Student = spec_field("The student's stages.")
    teachers: dict[str, Teacher] = spec_field("Teachers by name.", default_factory=dict, pattern=NAME)
    routing: tuple[Route, ...] = spec_field("Which teacher scores which domain.", default=())
    cluster: Cluster = spec_field("The machine.", identity=PLACEMENT)
    placement: Placement = spec_field("Meshes.", default_factory=lambda: Placement(), identity=PLACEMENT)
    engines: Engines = spec_field("Engines.", default_factory=lambda: Engines())
    precision: Precision = spec_field("Number formats.", default_factory=lambda: Precision())
    checkpoint: Checkpoint = spec_field("Checkpoints.", default_factory=lambda: Checkpoint(), identity=PLACEMENT)
    storage: Storage = spec_field("Storage.", default_factory=lambda: Storage(), identity=LABEL)
    evaluate: Evaluate | None = spec_field("The scoreboard.", default=None)
    export: tuple[Literal["float32", "bfloat16"], ...] = spec_field("Formats of the exported student.", default=(), distinct=True)
