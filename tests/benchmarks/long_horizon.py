"""Long horizons end to end: episodes of 45,000 tokens and more from self-play, and SFT on them in rows of 131,072 tokens.

    python tests/benchmarks/long_horizon.py FOLDER [--episodes 200] [--steps 5] [--turns]

Writes the episodes, a byte-pair tokenizer of 2,048 entries made from Python's own documentation (a token is then about three bytes,
and logits stay small), a spec of a tiny model, and runs it. Prints one JSON document. What exists in the folder is kept. With
`--turns` the episodes have hundreds of turns instead, in contexts of 32,768 tokens that are compacted, and nothing is trained.
"""

import argparse
import json
import pydoc_data.topics
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from polymath.runtime.data.build_tokenizers import BYTES_CALL, BYTES_CONTROL, _with_control
from polymath.runtime.data.renderer import Renderer
from polymath.runtime.data.tokenizers import BUILTIN_FOLDERS, load_tokenizer_folder
from polymath.runtime.knowledge.generators.registry import make_generator
from polymath.runtime.knowledge.graph import GraphStore
from polymath.runtime.knowledge.player import Bounds, Player
from polymath.runtime.knowledge.records import read_records, write_records, written_by_model
from polymath.runtime.knowledge.roles import Roles
from polymath.runtime.knowledge.selfplay import Goal, Report, accepted, self_play
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SETTINGS = {"pages": 1000, "page_words": 400, "mean_tokens": 31_000}
MANY_TURNS = {"pages": 1000, "page_words": 400, "part_characters": 500, "hops": 40, "most_hops": 68, "mean_tokens": 40_000}
LONGEST = 131_072  # tokens of an episode
SPEC = """
polymath: 1
name: long
seed: 3
model:
  family: qwen3_moe
  checkpoint: random
  tokenizer: tokenizer
  shape: {{hidden: 16, layers: 1, heads: 1, kv_heads: 1, head_dim: 8, experts: 2, experts_per_token: 1, expert_hidden: 16,
    context_tokens: 131072, tied_embeddings: true}}
domains:
  search:
    trajectories: [{{path: long.jsonl}}]
student:
  sft: {{from: base, steps: {steps}, batch_sequences: 1, sequence_tokens: 131072, learning_rate: 2e-3, schedule: constant}}
cluster: {{accelerator: cpu, per_node: 1}}
placement:
  sft: {{trainer: {{devices: 1, micro_batch: 1}}}}
precision: {{compute: float32, experts: {{format: float32}}}}
"""


def main() -> None:
    """Make, render, train, and print what it took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--turns", action="store_true")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.turns:
        build_tokenizer(options.folder / "tokenizer")
        print(json.dumps(many_turns(options.folder, options.episodes), indent=1))
        return
    made = make_episodes(options.folder, options.episodes)
    build_tokenizer(options.folder / "tokenizer")
    measured = measure(options.folder)
    (options.folder / "long.yaml").write_text(SPEC.format(steps=options.steps))
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "polymath.runtime.cli", "run", "long.yaml"], cwd=options.folder, check=True)
    print(json.dumps({**made, **measured, "run_seconds": round(time.monotonic() - start)}, indent=1))


def make_episodes(folder: Path, episodes: int) -> dict[str, float]:
    """Self-play until there are enough; CPU seconds and memory."""
    start = time.process_time()
    with GraphStore.create(folder / "graph.sqlite") as store:
        generator = make_generator("search_walks", SETTINGS, store)
        report = self_play(generator, Roles(), Goal(accepted=episodes, attempts=1), Player(Bounds(turns=512)))
        write_records(str(folder / "long.jsonl"), accepted(generator))
    return {
        "proposed": report.proposed,
        "accepted": report.accepted,
        "cpu_seconds_an_episode": round((time.process_time() - start) / episodes, 3),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def many_turns(folder: Path, episodes: int) -> dict[str, object]:
    """Self-play of episodes of hundreds of turns, counted by the tokenizer: least, mean, most; CPU seconds; memory on the way."""
    encode = load_tokenizer_folder(folder / "tokenizer").hf.backend_tokenizer.encode
    player = Player(Bounds(turns=1024, context_tokens=32_768, episode_tokens=LONGEST), lambda text: len(encode(text)))
    memory: dict[int, int] = {}

    def remember(report: Report) -> None:
        if report.accepted in (episodes // 4, episodes):
            memory.setdefault(report.accepted, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)

    start = time.process_time()
    with GraphStore.create(folder / "turns.sqlite") as store:
        generator = make_generator("search_walks", MANY_TURNS, store)
        report = self_play(generator, Roles(), Goal(accepted=episodes, attempts=1), player, remember)
        seconds = time.process_time() - start
        lengths: dict[str, list[int]] = {"turns": [], "tokens": [], "contexts": [], "bytes": []}
        for record in accepted(generator):
            lengths["turns"].append(record.provenance["turns"])
            lengths["tokens"].append(record.provenance["tokens"])
            lengths["contexts"].append(len(record.restarts) + 1)
            lengths["bytes"].append(len(record.line()))
    return {
        **{name: [min(values), round(statistics.mean(values)), max(values)] for name, values in lengths.items()},
        "more_than_200_turns": sum(turns > 200 for turns in lengths["turns"]),
        "report": report.as_json(),
        "cpu_seconds_an_episode": round(seconds / report.attempts, 3),
        "peak_mib": memory,
    }


def build_tokenizer(folder: Path) -> None:
    """A byte-level BPE tokenizer of 2,048 entries with the control tokens and the template of `builtin:bytes`."""
    if folder.exists():
        return
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        pydoc_data.topics.topics.values(), trainers.BpeTrainer(vocab_size=2048, initial_alphabet=alphabet, show_progress=False)
    )
    hf = _with_control(tokenizer, BYTES_CONTROL, BYTES_CALL, pad="<|pad|>", bos=None, eos="<|im_end|>", unk=None)
    hf.chat_template = (BUILTIN_FOLDERS["builtin:bytes"] / "chat_template.jinja").read_text(encoding="utf-8")
    hf.save_pretrained(folder)


def measure(folder: Path) -> dict[str, object]:
    """Tokens, turns and bytes of the episodes, as SFT renders them: least, mean, most."""
    tokenizer = load_tokenizer_folder(folder / "tokenizer")
    lengths: dict[str, list[int]] = {"tokens": [], "turns": [], "bytes": [], "written_tokens": []}
    renderer = None
    for record in read_records(str(folder / "long.jsonl")):
        renderer = renderer or Renderer(tokenizer, record.tools or ())
        rendered = renderer.render(record.messages)
        lengths["tokens"].append(len(rendered.ids))
        lengths["written_tokens"].append(sum(rendered.written))
        lengths["turns"].append(sum(map(written_by_model, record.messages)))
        lengths["bytes"].append(sum(len(str(one["content"]).encode()) for one in record.messages))
    return {name: [min(values), round(statistics.mean(values)), max(values)] for name, values in lengths.items()}


if __name__ == "__main__":
    main()
