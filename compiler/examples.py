"""A failing example of every code, as a change of the spec that `polymath init` writes, and how to mend it.

`explain.py` runs the example and shows what is said; `docs/errors/` holds the same pages, checked fresh by a test.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

ROW = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'

_LONG_ROW = '{"messages": [{"role": "user", "content": "a"}' + 2 * ', {"role": "assistant", "content": "b"}' + "]}\n"


@dataclass(frozen=True, slots=True)
class Example:
    """One mistake. Pairs of `changes` replace their first occurrence each."""

    fix: str
    changes: tuple[tuple[str, str], ...]
    files: Mapping[str, str] = field(default_factory=dict[str, str])  # beside the spec
    overrides: tuple[str, ...] = ()
    verb: str = "validate"


_SEARCH = "{synthesize: 2000, habit_rate: 0.65, slip_rate: 0.05}"
_SHAPE = (
    "  shape: {hidden: 64, layers: 2, heads: 4, kv_heads: 2, head_dim: 32, experts: 4, experts_per_token: 2, expert_hidden: 64, "
    "context_tokens: 128}"
)
_SFT_PHASE = (
    "{method: sft, domains: [search], trajectories: clean, steps: 100, batch_sequences: 32, sequence_tokens: 128, learning_rate"
)
_IDLE = """  idle:
    from: base
    phases:
      - {method: sft, domains: [tools], steps: 1, batch_sequences: 2, sequence_tokens: 64, learning_rate: 1e-3}
"""

EXAMPLES: dict[str, Example] = {
    "E0101": Example(
        "Look at the place and the line before it: an open bracket or quote, a tab, or a missing space after `:`.",
        (("steps: 200", "steps: [200"),),
    ),
    "E0102": Example("Remove one of the two.", (("    steps: 200\n", "    steps: 200\n    steps: 300\n"),)),
    "E0103": Example("Write the value out in every place.", (("seed: 7", "seed: &seed 7"),)),
    "E0104": Example("Remove the tag. Worlds and engines are chosen by name.", (("seed: 7", "seed: !!int 7"),)),
    "E0105": Example("Put the key into quotes, if it is meant.", (("seed: 7", "seed: 7\n1: one"),)),
    "E0106": Example("Keep one spec in one file; `extends` shares what they have in common.", (("seed: 7", "seed: 7\n---"),)),
    "E0107": Example(
        "Look for a bracket that was never closed, or a program that wrote the file.",
        (("seed: 7", "seed: " + "[" * 33 + "]" * 33),),
    ),
    "E0108": Example("Move data into files, and name them in the spec.", (("seed: 7", "seed: 7\n#" + "x" * 262144),)),
    "E0109": Example(
        "Retype the line: text that was copied from a page may hold such characters.",
        (("name: my-student", "name: my\u202e-student"),),
    ),
    "E0110": Example(
        "Let one of the files stand alone.",
        (("polymath: 1", "extends: other.yaml\npolymath: 1"),),
        files={"other.yaml": "extends: my.yaml\n"},
    ),
    "E0111": Example(
        "Copy the file beside the spec, or compile from a spec in the folder above both.",
        (("polymath: 1", "extends: ../other.yaml\npolymath: 1"),),
    ),
    "E0112": Example(
        "Correct the path; it is relative to the file that says `extends`.", (("polymath: 1", "extends: other.yaml\npolymath: 1"),)
    ),
    "E0201": Example(
        "Correct the name, or remove the field. `polymath explain student.sft` lists the fields.",
        (("learning_rate: 4e-3", "learnin_rate: 4e-3"),),
    ),
    "E0202": Example("Write a value of the type that the field takes: `polymath explain FIELD`.", (("seed: 7", "seed: seven"),)),
    "E0203": Example("Add the field; the message says what it is.", (("    sequence_tokens: 128\n", ""),)),
    "E0204": Example("Choose one of the values that the message lists.", (("family: qwen3_moe", "family: qwen3moe"),)),
    "E0205": Example(
        "Choose a number within the limits; `polymath explain FIELD` gives them and their reason.", (("top_k: 16", "top_k: 1"),)
    ),
    "E0206": Example(
        "Use lower-case letters, digits, `-` and `_`, and begin with a letter.", (("name: my-student", "name: My Student"),)
    ),
    "E0207": Example("Add an item, or remove the block.", (("- {domains: [search], teacher", "- {domains: [], teacher"),)),
    "E0208": Example("Correct the name, or add the domain or teacher.", (("teacher: operator", "teacher: operater"),)),
    "E0209": Example("Remove the repetition.", (("domains: [search], trajectories", "domains: [search, search], trajectories"),)),
    "E0210": Example("Correct the path of `--set`.", (), overrides=("student.sft.step=3",)),
    "E0301": Example("Keep `epochs`, or keep `steps`.", (("    steps: 200\n", "    steps: 200\n    epochs: 1\n"),)),
    "E0302": Example(
        "Keep `path`, or keep `synthesize`.", ((_SEARCH, "{synthesize: 2000, path: data.jsonl}"),), files={"data.jsonl": ROW}
    ),
    "E0303": Example(
        "Remove the setting, or make the choice that it belongs to.",
        ((_SEARCH, "{path: data.jsonl, habit_rate: 0.5}"),),
        files={"data.jsonl": ROW},
    ),
    "E0304": Example("Give a random model a `shape`; leave it out where weights are read.", (("  shape: {", "  # shape: {"),)),
    "E0305": Example("Name a tokenizer.", (("tokenizer: builtin:tiny-words", "tokenizer: from-checkpoint"),)),
    "E0306": Example("Change one of the two dimensions that the message names.", (("kv_heads: 2", "kv_heads: 3"),)),
    "E0307": Example(
        "Correct the name, or give a source of the domain that `name`.",
        (("trajectories: clean, steps: 100", "trajectories: clan, steps: 100"),),
    ),
    "E0308": Example(
        "Add what is missing to the domain, or leave the domain out of the stage.",
        (("    limits: {turns: 8, response_tokens: 24, context_tokens: 112}\n", ""),),
    ),
    "E0309": Example(
        "Lengthen the row, or shorten the episode.", (("samples: 8, sequence_tokens: 128", "samples: 8, sequence_tokens: 64"),)
    ),
    "E0310": Example(
        "Shorten the row, or give the model a longer context.", (("    sequence_tokens: 128\n", "    sequence_tokens: 256\n"),)
    ),
    "E0311": Example("Correct the name, or install the package that brings the world.", (("world: search", "world: serch"),)),
    "E0312": Example(
        "Correct the path: it is relative to the folder of the file that wrote it.", ((_SEARCH, "{path: none.jsonl}"),)
    ),
    "E0313": Example("Look at the program that wrote the file.", ((_SEARCH, "{path: data.jsonl}"),), files={"data.jsonl": ""}),
    "E0314": Example(
        "Mend or remove the row, or name the file's `format`.",
        ((_SEARCH, "{path: data.jsonl}"),),
        files={"data.jsonl": ROW + "{}\n"},
        verb="lock",
    ),
    "E0315": Example("Evaluate fewer episodes, or set more tasks aside.", (("episodes: 200", "episodes: 300"),)),
    "E0316": Example("Draw more prompts, or make fewer updates.", (("prompts: 16, samples", "updates: 17, prompts: 16, samples"),)),
    "E0317": Example(
        "Convert the checkpoint to safetensors; files that run code when read are never opened.",
        (("checkpoint: random", "checkpoint: weights"), ("  shape: {", "  # shape: {")),
        files={"weights/pytorch_model.bin": ""},
    ),
    "E0318": Example(
        "Sample above temperature 0, and give the reward a term that can differ.",
        (("samples: 8, sequence_tokens", "samples: 8, sampling: {temperature: 0}, sequence_tokens"),),
    ),
    "E0319": Example("Choose a smaller `top_k`; 64 holds nearly all of a large model's mass.", (("top_k: 16", "top_k: 8192"),)),
    "E0320": Example(
        "Correct the threshold, or add `reward` to the rows.",
        ((_SEARCH, "{path: data.jsonl, minimum_reward: 0.5}"),),
        files={"data.jsonl": ROW},
        verb="lock",
    ),
    "E0321": Example(
        "Raise the limit, or leave the long rows out.",
        ((_SEARCH, "{path: data.jsonl}"), ("limits: {turns: 8,", "limits: {turns: 1,")),
        files={"data.jsonl": _LONG_ROW},
        verb="lock",
    ),
    "E0322": Example(
        "Remove the password, change it, and give it to the provider's own configuration.",
        ((_SEARCH, '{path: "https://ada:lovelace@example.org/data.jsonl"}'),),
    ),
    "E0323": Example(
        "Keep `distill`, or `merge`; a sweep compares the two.",
        (("student:\n", "student:\n  merge: {method: average}\n"),),
    ),
    "E0324": Example(
        "Take the log-probability of the whole vocabulary, or the exact estimator.",
        (("top_k: 16}", "top_k: 16}, estimator: sampled"),),
    ),
    "E0325": Example(
        "Let the right side write, or take the exact estimator.",
        (("support: {top_k: 16}", "support: {source: full}, divergence: forward_kl, estimator: sampled"),),
    ),
    "E0326": Example("Remove it, or count the rest with `tail: bucket`.", (("top_k: 16", "renormalize: false, top_k: 16"),)),
    "E0330": Example("Write a size of the family, or the family of the size.", ((_SHAPE, "  size: 35b-a3b"),)),
    "E0331": Example("Name the backend.", (("experts: {format: float32}", "experts: {format: fp8_blockwise}"),)),
    "E0332": Example(
        "Describe the judge under `engines`, or let the world's verifier decide.",
        (("    world: search\n", "    world: search\n    reward: {outcome_by: judge}\n"),),
    ),
    "E0333": Example(
        "Lengthen the episode, or shorten its turns.",
        (
            (
                "limits: {turns: 8, response_tokens: 24, context_tokens: 112}",
                "limits: {turns: 8, response_tokens: 24, context_tokens: 24, finalize: {prompt: done}}",
            ),
        ),
    ),
    "E0401": Example("Add the domain to a rule of `routing`.", (("  - {domains: [search], teacher: searcher}\n", ""),)),
    "E0402": Example(
        "Keep one of the rules.", (("teacher: searcher}", "teacher: searcher}\n  - {domains: [search], teacher: operator}"),)
    ),
    "E0403": Example("Route a domain to the teacher, or remove it.", (("  operator:\n", _IDLE + "  operator:\n"),)),
    "E0404": Example(
        "Write `base`, `student.sft` or the name of another teacher.",
        (("operator:\n    from: student.sft", "operator:\n    from: serch"),),
    ),
    "E0405": Example(
        "Let one of them start from `base` or `student.sft`.",
        (
            ("searcher:\n    from: student.sft", "searcher:\n    from: operator"),
            ("operator:\n    from: student.sft", "operator:\n    from: searcher"),
        ),
    ),
    "E0406": Example("Rename the teacher.", (("  operator:\n", "  sft:\n"), ("teacher: operator", "teacher: sft"))),
    "E0407": Example("Correct the name, or write `models: all`.", (("episodes: 200", "models: [studnt], episodes: 200"),)),
    "E0408": Example(
        "Train the teacher on something that the student does not see, or by rewards.",
        (
            ("  searcher:\n    from: student.sft", "  searcher:\n    from: base"),
            (
                _SFT_PHASE + ": 1e-3",
                _SFT_PHASE.replace("[search], trajectories: clean, steps: 100", "[search, tools], steps: 200") + ": 4e-3",
            ),
        ),
    ),
    "E0409": Example(
        "Correct the name, or describe an endpoint: `{url_env: SOLVER_URL, model: ...}`.",
        (("world: search\n", "world: scientific_chains\n"), (_SEARCH, "{synthesize: 200, self_play: {solver: student.stf}}")),
    ),
    "E0410": Example(
        "Let a model play that is trained on other trajectories, or let the stage train on another source.",
        (("world: search\n", "world: scientific_chains\n"), (_SEARCH, "{synthesize: 200, self_play: {solver: student.sft}}")),
    ),
    "E0501": Example(
        "Ask for fewer devices, or describe a larger `cluster`.", (("sft: {trainer: {devices: 2", "sft: {trainer: {devices: 4"),)
    ),
    "E0502": Example(
        "Write `fsdp: auto`, or make the product right.", (("sft: {trainer: {devices: 2", "sft: {trainer: {fsdp: 3, devices: 2"),)
    ),
    "E0503": Example(
        "Choose a degree that divides the shards of a replica.",
        (("sft: {trainer: {devices: 2", "sft: {trainer: {replicate: 2, devices: 2"),),
    ),
    "E0504": Example("Choose a degree that divides the model's experts.", (("experts: 4", "experts: 5"),)),
    "E0505": Example(
        "Choose a batch that the message suggests, or fewer rows at once.", (("batch_sequences: 32\n", "batch_sequences: 33\n"),)
    ),
    "E0506": Example(
        "Use whole machines, or a part of one.",
        (
            ("per_node: 2}", "per_node: 3, nodes: 2}"),
            ("sft: {trainer: {devices: 2, expert: 2", "sft: {trainer: {devices: 4, expert: 2"),
        ),
    ),
    "E0507": Example(
        "Take the mesh that the message suggests, more devices, shorter rows, or a smaller model.",
        (("layers: 2", "layers: 2000"), ("hidden: 64", "hidden: 65536"), ("accelerator: cpu", "accelerator: h100")),
    ),
    "E0508": Example(
        "Take devices from a role, or add machines.",
        (("grpo: {trainer: {devices: 2, expert: 2}", "grpo: {trainer: {devices: 2, expert: 2}, rollout: {devices: 2}"),),
        overrides=("engines.rollout=vllm", "placement.distill.rollout.devices=1", "placement.evaluate.rollout.devices=1"),
    ),
    "E0509": Example(
        "Take what the message suggests instead.",
        (("sft: {trainer: {devices: 2, expert: 2}", "sft: {trainer: {devices: 2, pipeline: 2}"),),
    ),
    "E0530": Example(
        "Give the role devices, or use the embedded engine.",
        (("precision: {compute", "engines: {rollout: vllm}\nprecision: {compute"),),
    ),
    "E0531": Example(
        "Choose devices that are a multiple of `tensor`.",
        (
            ("precision: {compute", "engines: {rollout: vllm}\nprecision: {compute"),
            ("per_node: 2}", "per_node: 8}"),
            (
                "  grpo: {trainer: {devices: 2, expert: 2}}",
                "  grpo: {trainer: {devices: 2, expert: 2}, rollout: {devices: 3, tensor: 2}}",
            ),
        ),
    ),
    "E0601": Example(
        "Give the first row every seed that another row has, and let it evaluate SFT and the teachers.",
        (),
        files={
            "sweep.yaml": "polymath_sweep: 1\nname: supports\nbase: my.yaml\nseeds: [7, 8]\nrows:\n  routed: {}\n"
            "  k4: {seeds: [9], change: {student: {distill: {loss: {support: {top_k: 4}}}}}}\n"
        },
        verb="sweep",
    ),
}
