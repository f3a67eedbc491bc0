"""SFT on what self-play wrote raises the score of its world: a tiny model, before and after, on held-out tasks.

    python tests/benchmarks/self_play_sft.py FOLDER [--generator constraints] [--steps N]

Scored are held-out tasks of the world that the demonstrations are of, and tasks of one of the same kind over another graph (other
people and records, other ledgers), none of which was trained on. The tokenizer is a byte-pair one of the demonstrations' own words
and its template shows no tool schemas, so that a model of 0.1 million parameters has something to learn in minutes. Prints the
scoreboard.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polymath.runtime.data.build_tokenizers import BYTES_CALL, BYTES_CONTROL, _with_control
from polymath.runtime.data.tokenizers import BUILTIN_FOLDERS
from polymath.runtime.knowledge.generators.registry import make_generator
from polymath.runtime.knowledge.graph import GraphStore
from polymath.runtime.knowledge.roles import Roles
from polymath.runtime.knowledge.selfplay import Goal, accepted, self_play
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPEC = """
polymath: 1
name: selfplay
seed: 5
model:
  family: qwen3_moe
  checkpoint: random
  tokenizer: tokenizer
  shape: {{hidden: 64, layers: 2, heads: 4, kv_heads: 2, head_dim: 16, experts: 4, experts_per_token: 2, expert_hidden: 64,
    context_tokens: {context}, tied_embeddings: true}}
domains:
  trained:
    world: {generator}
    settings: {settings}
    trajectories: [{{synthesize: {episodes}}}]
    prompts: {{train: {episodes}, heldout: {heldout}}}
    limits: {{turns: {turns}, response_tokens: {response}, context_tokens: {context}}}
{elsewhere}student:
  sft: {{from: base, domains: [trained], steps: {steps}, batch_sequences: {sequences}, sequence_tokens: {context},
    learning_rate: 4e-3, schedule: cosine, warmup: 0.05}}
cluster: {{accelerator: cpu, per_node: 1}}
placement:
  sft: {{trainer: {{devices: 1}}}}
precision: {{compute: float32, experts: {{format: float32}}}}
evaluate: {{models: [base, sft], episodes: {heldout}}}
"""
ELSEWHERE = """  elsewhere:
    world: {generator}
    settings: {other}
    prompts: {{train: 1, heldout: {heldout}}}
    limits: {{turns: {turns}, response_tokens: {response}, context_tokens: {context}}}
"""
SHOWS_TOOLS, ENDS = "{%- if tools %}", "{%- endif %}\n"


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A world that a tiny model learns in minutes, and the same over another graph where it has one."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    other: Mapping[str, Any] | None = None
    episodes: int = 400
    heldout: int = 100
    turns: int = 1
    response: int = 128  # tokens
    context: int = 256
    sequences: int = 8  # of a batch
    steps: int = 200


LESSONS = {
    "constraints": Lesson(settings={"fewest": 1, "most": 1}),
    "tool_subgraphs": Lesson(other={"service_seed": 1}, episodes=3000, heldout=200, turns=16, context=512, sequences=4, steps=3600),
    "long_context": Lesson(
        settings={"documents": 3, "document_words": 7},
        other={"documents": 3, "document_words": 7, "corpus_seed": 1},
        episodes=3000,
        heldout=200,
        context=512,
        steps=800,
    ),
    "engineering_tree": Lesson(turns=16, response=512, context=2048, sequences=2, steps=300),
}


def main() -> None:
    """Build the tokenizer, run the spec, and print what the models score."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--generator", choices=LESSONS, default="constraints")
    parser.add_argument("--steps", type=int)
    options = parser.parse_args()
    name, lesson = options.generator, LESSONS[options.generator]
    options.folder.mkdir(parents=True, exist_ok=True)
    build_tokenizer(options.folder / "tokenizer", name, lesson)
    sizes = {one: getattr(lesson, one) for one in ("heldout", "turns", "response", "context")} | {"generator": name}
    elsewhere = "" if lesson.other is None else ELSEWHERE.format(**sizes, other=json.dumps(lesson.other))
    settings, steps = json.dumps(lesson.settings), options.steps or lesson.steps
    spec = SPEC.format(
        **sizes, settings=settings, elsewhere=elsewhere, episodes=lesson.episodes, steps=steps, sequences=lesson.sequences
    )
    (options.folder / "sft.yaml").write_text(spec)
    subprocess.run([sys.executable, "-m", "polymath.runtime.cli", "run", "sft.yaml"], cwd=options.folder, check=True)
    for path in sorted((options.folder / "runs" / "selfplay" / "jobs").glob("evaluate*/result.json")):
        found = json.loads(path.read_text())["domains"]
        shown = {domain: {key: score[key] for key in ("score", "ci95", "episodes")} for domain, score in found.items()}
        print(path.parent.name, json.dumps(shown))


def build_tokenizer(folder: Path, name: str, lesson: Lesson) -> None:
    """A byte-level BPE tokenizer of the words of 300 episodes, with the control tokens and the template of `builtin:bytes`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts_of(name, lesson), trainer)
    hf = _with_control(tokenizer, BYTES_CONTROL, BYTES_CALL, pad="<|pad|>", bos=None, eos="<|im_end|>", unk=None)
    template = (BUILTIN_FOLDERS["builtin:bytes"] / "chat_template.jinja").read_text(encoding="utf-8")
    hf.chat_template = template[template.index(ENDS) + len(ENDS) :] if template.startswith(SHOWS_TOOLS) else template
    hf.save_pretrained(folder)


def texts_of(name: str, lesson: Lesson) -> Iterator[str]:
    """The messages of 300 episodes as texts, calls with what the template writes around them."""
    with tempfile.TemporaryDirectory() as folder, GraphStore.create(Path(folder, "graph.sqlite")) as store:
        generator = make_generator(name, dict(lesson.settings), store)
        self_play(generator, Roles(), Goal(accepted=300, attempts=1))
        for record in accepted(generator):
            for message in record.messages:
                yield str(message.get("content") or "")
                for call in message.get("tool_calls") or ():
                    yield f'{{"name": "{call["function"]["name"]}", "arguments": {call["function"]["arguments"]}}}'


if __name__ == "__main__":
    main()
