"""The part of the language that says where and in what numbers a recipe is computed: machine, placement, engines, precision."""

# ruff: noqa: RUF009  (spec_field returns a dataclass field, never a shared default)

from dataclasses import dataclass
from typing import Literal

from .fields import Identity, spec_field

PLACEMENT, LABEL = Identity.PLACEMENT, Identity.LABEL
Auto = Literal["auto"]
MOST = 65_536  # devices of a machine room, and parts that anything is divided into


@dataclass(frozen=True, kw_only=True, slots=True)
class Software:
    """What is installed on the machine. Left out, it is what the accelerator needs."""

    torch: Literal["2.13.0", "2.15.0"] | None = spec_field(
        "Version of PyTorch: one of the two that Polymath was tried with. By default 2.13.0 on a CPU, 2.15.0 on GPUs.",
        default=None,
        identity=PLACEMENT,
        examples=("2.15.0",),
    )
    cuda: str | None = spec_field(
        'Version of CUDA, in quotes; of GPUs only. By default "13.0".',
        default=None,
        pattern=r"^[0-9]{2}\.[0-9]$",
        identity=PLACEMENT,
        examples=("13.0",),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """The machine or machines."""

    accelerator: Literal["cpu", "a100", "h100", "h200", "b200"] = spec_field("Kind of device.", identity=PLACEMENT)
    nodes: int = spec_field("Number of machines.", default=1, minimum=1, maximum=MOST, identity=PLACEMENT)
    per_node: int = spec_field(
        "Devices of a machine; on a CPU, processes.", unit="devices", minimum=1, maximum=MOST, identity=PLACEMENT
    )
    software: Software = spec_field("What is installed.", default_factory=lambda: Software(), identity=PLACEMENT)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerPlacement:
    """The mesh of a training job: `replicate` x `fsdp` x `context` x `tensor` x `pipeline` is `devices`."""

    devices: int = spec_field("Ranks.", unit="devices", minimum=1, maximum=MOST, identity=PLACEMENT)
    expert: Auto | int = spec_field(
        "Expert parallel degree; divides `fsdp` x `context` x `tensor` and the number of experts.",
        default="auto",
        minimum=1,
        maximum=MOST,
        identity=PLACEMENT,
    )
    tensor: Auto | int = spec_field(
        "Tensor parallel degree; divides the number of key and value heads.",
        default="auto",
        minimum=1,
        maximum=MOST,
        identity=PLACEMENT,
    )
    context: Auto | int = spec_field(
        "Context parallel degree: the parts that a row is cut into.", default="auto", minimum=1, maximum=MOST, identity=PLACEMENT
    )
    pipeline: Auto | int = spec_field("Pipeline stages.", default="auto", minimum=1, maximum=MOST, identity=PLACEMENT)
    replicate: Auto | int = spec_field("Replicas of the sharded model.", default=1, minimum=1, maximum=MOST, identity=PLACEMENT)
    fsdp: Auto | int = spec_field(
        "Shards per replica; `auto` takes the ranks that are left.", default="auto", minimum=1, maximum=MOST, identity=PLACEMENT
    )
    micro_batch: Auto | int = spec_field(
        "Rows that a rank computes at once.", unit="rows", default="auto", minimum=1, maximum=MOST, identity=PLACEMENT
    )
    activation_checkpoint: Literal["auto", "none", "selective", "full"] = spec_field(
        "Activations that the backward pass computes anew: none, those that are cheap, or all of a layer.",
        default="auto",
        identity=PLACEMENT,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class EnginePlacement:
    """The devices of an engine with processes of its own; an embedded engine is part of the trainer's."""

    devices: int = spec_field("Devices, of all copies together.", unit="devices", minimum=1, maximum=MOST, identity=PLACEMENT)
    tensor: Auto | int = spec_field(
        "Devices that hold one copy of the model; divides `devices`.", default="auto", minimum=1, maximum=MOST, identity=PLACEMENT
    )
    shared: bool = spec_field(
        "On the first of the trainer's GPUs, whose memory both then fill, instead of devices of its own.",
        default=False,
        identity=PLACEMENT,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class SftPlacement:
    """Where an SFT job runs."""

    trainer: TrainerPlacement = spec_field("The torchrun invocation.", identity=PLACEMENT)


@dataclass(frozen=True, kw_only=True, slots=True)
class GrpoPlacement:
    """Where the roles of a GRPO job run."""

    trainer: TrainerPlacement = spec_field("The torchrun invocation.", identity=PLACEMENT)
    rollout: EnginePlacement | None = spec_field("The engine that acts.", default=None, identity=PLACEMENT)
    scorer: EnginePlacement | None = spec_field(
        "The engine that scores under the starting weights, for `reference_kl`.", default=None, identity=PLACEMENT
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillPlacement:
    """Where the roles of distillation run."""

    trainer: TrainerPlacement = spec_field("The torchrun invocation.", identity=PLACEMENT)
    rollout: EnginePlacement | None = spec_field("The engine that acts.", default=None, identity=PLACEMENT)
    scorer: EnginePlacement | None = spec_field("The engine that scores for the teachers.", default=None, identity=PLACEMENT)


@dataclass(frozen=True, kw_only=True, slots=True)
class ActingPlacement:
    """Where a job runs in which models act and none is trained."""

    rollout: EnginePlacement = spec_field("The engine that acts.", identity=PLACEMENT)


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Placement per kind of job. A kind of training left out uses every device of the cluster."""

    sft: SftPlacement | None = spec_field("SFT jobs.", default=None, identity=PLACEMENT)
    grpo: GrpoPlacement | None = spec_field("GRPO jobs.", default=None, identity=PLACEMENT)
    distill: DistillPlacement | None = spec_field("Distillation.", default=None, identity=PLACEMENT)
    synthesize: ActingPlacement | None = spec_field("Self-play of models of the run.", default=None, identity=PLACEMENT)
    evaluate: ActingPlacement | None = spec_field("Evaluations.", default=None, identity=PLACEMENT)


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """A language model that somebody serves behind an OpenAI-compatible endpoint."""

    url_env: str = spec_field(
        "Environment variable that holds the endpoint's URL.",
        pattern=r"^[A-Z][A-Z0-9_]*$",
        identity=PLACEMENT,
        examples=("JUDGE_URL",),
    )
    model: str = spec_field("Name of the model at the endpoint.", examples=("qwen3-235b-a22b-instruct",))
    key_env: str | None = spec_field(
        "Environment variable that holds the endpoint's key, where it wants one; `<key_env>_FILE` may name a file that does.",
        default=None,
        pattern=r"^[A-Z][A-Z0-9_]*$",
        identity=PLACEMENT,
        examples=("JUDGE_KEY",),
    )
    remote: bool = spec_field(
        "Consent to send tasks and episodes to another machine, with a key; without, the URL must be of this one (loopback).",
        default=False,
        identity=PLACEMENT,
    )
    patience_seconds: float = spec_field(
        "Most seconds that an answer is waited for, over all attempts.",
        default=900.0,
        unit="seconds",
        exclusive_minimum=0,
        identity=PLACEMENT,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Listen:
    """Where vLLM's servers of a job answer besides loopback, for whoever uses their models: never with a route that changes one."""

    address_env: str = spec_field(
        "Environment variable that holds an address of the machine with a port, such as 10.0.0.5:8000. Where a job starts more "
        "servers than one, the others take the ports that follow.",
        pattern=r"^[A-Z][A-Z0-9_]*$",
        identity=PLACEMENT,
        examples=("ENGINE_ADDRESS",),
    )
    key_env: str = spec_field(
        "Environment variable that holds the key that is wanted there; `<key_env>_FILE` may name a file that does.",
        pattern=r"^[A-Z][A-Z0-9_]*$",
        identity=PLACEMENT,
        examples=("ENGINE_KEY",),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Engines:
    """What generates, scores and judges. `transformers` is embedded in the trainer; `vllm` has processes of its own."""

    rollout: Literal["transformers", "vllm"] = spec_field("Engine that acts.", default="transformers")
    scorer: Literal["transformers", "vllm"] = spec_field("Engine that scores for the teachers.", default="transformers")
    transport: Literal["process", "http"] | None = spec_field(
        "How `vllm` is reached: `process`, a worker of ours that answers in tensors, which is what is meant where nothing is said; "
        "`http`, vLLM's own server on loopback.",
        default=None,
        identity=PLACEMENT,
    )
    listen: Listen | None = spec_field(
        "Another address that the servers of `transport: http` answer on. Left out, they answer on loopback alone.",
        default=None,
        identity=PLACEMENT,
    )
    judge: Service | None = spec_field("The judge, where a reward asks for one.", default=None)
    teachers: dict[str, Service] = spec_field(
        "Teachers that somebody serves with vLLM already, by name: they are asked there, after they proved to be the teacher's "
        "checkpoint. The others are asked on `scorer`.",
        default_factory=dict,
        identity=PLACEMENT,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertPrecision:
    """What the experts compute in."""

    format: Literal["float32", "bfloat16", "fp8_blockwise", "fp8_current", "fp8_delayed", "mxfp8"] = spec_field(
        "Format of the experts' products: FP8 scaled per block, per tensor now or per tensor from its history, or MXFP8.",
        default="bfloat16",
    )
    backend: Literal["te", "reference"] | None = spec_field(
        "What computes FP8: Transformer Engine, or plain PyTorch to check it by. Needed for FP8 and MXFP8, refused elsewhere.",
        default=None,
        examples=("te",),
    )
    except_layers: tuple[int, ...] = spec_field(
        "Layers, counted from 0, whose experts are computed in bfloat16 instead of FP8 or MXFP8; naming one changes numerics.",
        default=(),
        minimum=0,
        distinct=True,
        identity=LABEL,
        numerics_when=bool,
        examples=((0, 39),),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Precision:
    """Number formats. Weights and optimizer state are always float32."""

    compute: Literal["float32", "bfloat16"] = spec_field("Format of activations outside the experts.", default="bfloat16")
    experts: ExpertPrecision = spec_field("Format of the experts.", default_factory=lambda: ExpertPrecision())


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """How often training can resume."""

    every_steps: int = spec_field("Steps between checkpoints.", unit="steps", default=20, minimum=1, identity=PLACEMENT)
    keep: int = spec_field("Checkpoints kept.", default=2, minimum=2, identity=PLACEMENT)


@dataclass(frozen=True, kw_only=True, slots=True)
class Storage:
    """Where things are written."""

    runs: str = spec_field("Folder of runs on this machine, relative to the spec.", default="./runs", identity=LABEL)
    artifacts: str | None = spec_field(
        "URL that finished models are copied to.", default=None, identity=LABEL, examples=("s3://bucket/prefix",)
    )
