"""A run whose own SFT model plays, and what must be true of what it plays."""

import json
from pathlib import Path

from .polymath import compile_recipe, job_folder

JOB = "synthesize.texts.solved"

# Holds the words of half the topics and no comma, capital letter or other word: many a constraint is met by it.
TEXT = "harbour night repair bell old map walking uphill baking bread long bridge sound rain garden wall"
TOPICS = ("an old map", "baking bread", "a market day", "night trains", "the first frost", "a lost umbrella", "a garden wall")
RULES = (
    "Use no comma.",
    "Do not use the word kettle.",
    "Use no capital letters.",
    "Use at most 97 words.",
    "Begin with exactly: Listen.",
)
SFT = "batch_sequences: 4, sequence_tokens: 256, learning_rate: 5e-3"
SPEC = f"""
polymath: 1
name: playing
seed: 3
model:
  family: qwen3_moe
  checkpoint: random
  tokenizer: builtin:bytes
  shape: {{hidden: 64, layers: 2, heads: 4, kv_heads: 2, head_dim: 32, experts: 2, experts_per_token: 1, expert_hidden: 64,
          context_tokens: 1024}}
domains:
  texts:
    world: constraints
    settings: {{fewest: 1, most: 1}}
    trajectories:
      - {{path: demonstrations.jsonl}}
      - name: solved
        synthesize: 3
        self_play: {{solver: student.sft, attempts: 1, rounds: 1, sampling: {{temperature: 0}}}}
    prompts: {{train: 8, heldout: 4}}
    limits: {{turns: 2, response_tokens: 128, context_tokens: 1024}}
student:
  sft: {{steps: 120, {SFT}}}
  merge: {{method: average}}
teachers:
  writer:
    from: student.sft
    phases: [{{method: sft, trajectories: solved, steps: 2, {SFT}}}]
routing: [{{domains: [texts], teacher: writer}}]
cluster: {{accelerator: cpu, per_node: 1}}
precision: {{compute: float32, experts: {{format: float32}}}}
"""


def compile_playing(folder: Path, *settings: str) -> Path:
    """A plan of the run in a folder, with some settings."""
    tasks = [f"Write about {topic}. {rule}" for topic in TOPICS for rule in RULES]
    rows = [{"messages": [{"role": "user", "content": task}, {"role": "assistant", "content": TEXT}]} for task in tasks]
    (folder / "demonstrations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "playing.yaml").write_text(SPEC, encoding="utf-8")
    return compile_recipe(folder / "playing.yaml", folder, *settings)


def require_solved(plan: Path, run_dir: Path) -> None:
    """The student solved three tasks as SFT taught it; most constraints are not met by the one text that it knows."""
    played = job_folder(plan, run_dir, JOB)
    solved = [json.loads(line) for line in (played / "trajectories" / "texts.solved.jsonl").read_text().splitlines()]
    assert len(solved) == 3 and all(row["provenance"]["solver"] == "student.sft" and row["reward"] == 1.0 for row in solved)
    assert all(row["messages"][-1]["content"] == TEXT for row in solved)
    report = json.loads((played / "result.json").read_text())["demonstrations"]["texts.solved.jsonl"]["self_play"]
    assert report["refused"]["answered"] > 0 and report["tokens"] > 0
