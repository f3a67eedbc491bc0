"""SFT on what self-play wrote raises the score of its world: a tiny model, before and after, on held-out tasks.

    python tests/benchmarks/self_play_sft.py FOLDER [--steps 200]

The world is `constraints` with one rule beside the topic. The tokenizer is a byte-pair one of the demonstrations' own words, so
that a model of 0.1 million parameters has something to learn in a minute. Prints the scoreboard.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from polymath.runtime.data.build_tokenizers import BYTES_CALL, BYTES_CONTROL, _with_control
from polymath.runtime.data.tokenizers import BUILTIN_FOLDERS
from polymath.runtime.knowledge.generators.registry import make_generator
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
    context_tokens: 256, tied_embeddings: true}}
domains:
  texts:
    world: constraints
    settings: {{fewest: 1, most: 1}}
    trajectories: [{{synthesize: 400}}]
    prompts: {{train: 400, heldout: 100}}
    limits: {{turns: 1, response_tokens: 128, context_tokens: 256}}
student:
  sft: {{from: base, steps: {steps}, batch_sequences: 8, sequence_tokens: 256, learning_rate: 4e-3, schedule: cosine, warmup: 0.05}}
cluster: {{accelerator: cpu, per_node: 1}}
placement:
  sft: {{trainer: {{devices: 1}}}}
precision: {{compute: float32, experts: {{format: float32}}}}
evaluate: {{models: [base, sft], episodes: 100}}
"""


def main() -> None:
    """Build the tokenizer, run the spec, and print what the models score."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    build_tokenizer(options.folder / "tokenizer")
    (options.folder / "sft.yaml").write_text(SPEC.format(steps=options.steps))
    subprocess.run([sys.executable, "-m", "polymath.runtime.cli", "run", "sft.yaml"], cwd=options.folder, check=True)
    for path in sorted((options.folder / "runs" / "selfplay" / "jobs").glob("evaluate*/result.json")):
        print(path.parent.name, json.dumps(json.loads(path.read_text())))


def build_tokenizer(folder: Path) -> None:
    """A byte-level BPE tokenizer of the words of 300 tasks, with the control tokens and the template of `builtin:bytes`."""
    tasks = make_generator("constraints", {"fewest": 1, "most": 1}).tasks("train", 300, 0)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [f"{task.payload['instruction']} {task.payload['target']}" for task in tasks]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False))
    hf = _with_control(tokenizer, BYTES_CONTROL, BYTES_CALL, pad="<|pad|>", bos=None, eos="<|im_end|>", unk=None)
    hf.chat_template = (BUILTIN_FOLDERS["builtin:bytes"] / "chat_template.jinja").read_text(encoding="utf-8")
    hf.save_pretrained(folder)


if __name__ == "__main__":
    main()
