"""The estimate's bytes are those that torch's own tracker sees in a real pass of a model of 114 million parameters."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from polymath.compiler.estimates.activations import Formats
from polymath.compiler.estimates.degrees import Degrees
from polymath.compiler.estimates.memory import Load, memory
from polymath.compiler.estimates.parameters import total
from polymath.specs.families import of_config

SCRIPT = Path(__file__).with_name("measured_bytes.py")
TOLERANCE = 0.1
ROWS, SEQUENCE_TOKENS = 2, 192  # as in the script
CONFIG = {
    "model_type": "qwen3_moe",
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "moe_intermediate_size": 512,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "vocab_size": 8192,
    "max_position_embeddings": 2048,
    "rope_theta": 1e4,
    "tie_word_embeddings": False,
}
CASES = {  # by ranks: compute format, experts' format, checkpointing
    1: [("bfloat16", "bfloat16", "none"), ("float32", "float32", "full")],
    2: [("float32", "bfloat16", "none"), ("bfloat16", "bfloat16", "selective")],
}
BYTES = {"bfloat16": 2, "float32": 4}


@pytest.mark.parametrize("ranks", CASES)
@pytest.mark.multi_rank
def test_bytes_by_category_are_those_of_a_real_pass(ranks: int, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    cases = [{"compute": compute, "experts": experts, "checkpointing": kept} for compute, experts, kept in CASES[ranks]]
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", str(SCRIPT), str(tmp_path)]
    finished = subprocess.run([sys.executable, *command, json.dumps(cases)], capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr[-2000:]
    measured = json.loads(next(line for line in finished.stdout.splitlines() if line.startswith("[{")))

    model = of_config("qwen3_moe", CONFIG)
    assert total(model) >= 100e6
    for (compute, experts, checkpointing), found in zip(CASES[ranks], measured, strict=True):
        formats = Formats(compute=BYTES[compute], experts=BYTES[experts], fused_norms=False, checkpointing=checkpointing)
        load = Load(rows=ROWS, sequence_tokens=SEQUENCE_TOKENS, formats=formats)
        ours = memory(model, Degrees(shard=ranks), load)
        kept_by_loss = 4 * CONFIG["vocab_size"] * ROWS * SEQUENCE_TOKENS  # of `logits`, what outlives the forward pass
        estimated = {
            "parameters": ours.parameters.value,
            "gradients": ours.gradients.value,
            "optimizer": ours.optimizer.value,
            "buffers": ours.buffers.value,
            "activations": ours.activations.value + kept_by_loss,
        }
        for category, value in estimated.items():
            assert value == pytest.approx(found[category], rel=TOLERANCE), f"{category} of {compute}, {experts}, {checkpointing}"
        assert ours.total - ours.optimizer.value >= found["peak"] * (1 - TOLERANCE)
