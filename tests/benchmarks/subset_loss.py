"""Ways to compute the distillation loss and its gradients from hidden states: ours, the plain one, and others beside them.

One comparison, the ways in turn within one process, and the memory of each in a process of its own:

    python tests/benchmarks/subset_loss.py [--tokens 512] [--width 256] [--k 64] [--supports alike|apart] [--dtype float32]
    python tests/benchmarks/subset_loss.py --cosine [RUN]

Supports that are `alike` are drawn with probability falling steeply in the id, as supports of real text overlap; `apart` is the
worst case, ids drawn evenly from the whole vocabulary. Everything starts from random weights.

Shapes: N tokens, H hidden width, V vocabulary, K tokens of the support.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from polymath.runtime.losses import distill, subset
from polymath.runtime.losses.watched import watch
from torch import Tensor

VOCABULARY = 151_936  # of Qwen3
THREADS = 2
ROUNDS = 7
RANDOM = Path()  # no run
TRL_TOKENS_AT_MOST = 512  # more take minutes


@dataclass(kw_only=True)
class Problem:
    """Hidden states, a head, and a teacher's supports."""

    hidden_NH: Tensor
    head_VH: Tensor
    ids_NK: Tensor
    logprobs_NK: Tensor
    kept: tuple[Tensor, Tensor] | None = None  # gradients from an earlier round, to accumulate into

    def forget_gradients(self) -> None:
        self.hidden_NH.grad = self.head_VH.grad = None

    def floor_bytes(self) -> int:
        """Every distinct row of the head that some support names, read once, and its gradient written once."""
        return 2 * self.ids_NK.unique().numel() * self.head_VH.shape[1] * self.head_VH.element_size()


def problem(*, tokens: int, width: int, k: int, supports: str, dtype: torch.dtype, vocabulary: int = VOCABULARY) -> Problem:
    """A random problem, the same every time."""
    generator = torch.Generator().manual_seed(0)
    if supports == "alike":
        drawn = [(torch.rand(4 * k, generator=generator) ** 4 * vocabulary).long().unique()[:k] for _ in range(tokens)]
    else:
        drawn = [torch.randint(vocabulary, (2 * k,), generator=generator).unique()[:k] for _ in range(tokens)]
    return Problem(
        hidden_NH=torch.randn(tokens, width, generator=generator).to(dtype).requires_grad_(),
        head_VH=(torch.randn(vocabulary, width, generator=generator) * 0.02).to(dtype).requires_grad_(),
        ids_NK=torch.stack(drawn),
        logprobs_NK=torch.randn(tokens, k, generator=generator).log_softmax(-1),
    )


def ours(p: Problem) -> float:
    """What the trainer computes."""
    loss = subset.token_loss(p.hidden_NH, p.head_VH, p.ids_NK, p.logprobs_NK).mean()
    loss.backward()
    return loss.item()


def plain(p: Problem) -> float:
    """The k rows of every token gathered, a product, autograd."""
    student_NK = torch.einsum("nh,nkh->nk", p.hidden_NH, p.head_VH[p.ids_NK]).float().log_softmax(-1)
    loss = (student_NK.exp() * (student_NK - p.logprobs_NK)).sum(-1).mean()
    loss.backward()
    return loss.item()


def in_chunks(p: Problem) -> float:
    """32 tokens at a time, rows gathered, gradients accumulated by hand."""
    return _in_chunks(p, torch.zeros_like(p.hidden_NH), torch.zeros_like(p.head_VH))


def accumulating(p: Problem) -> float:
    """The same into gradients that are there already, so that making them costs it nothing."""
    p.kept = p.kept or (torch.zeros_like(p.hidden_NH), torch.zeros_like(p.head_VH))
    return _in_chunks(p, *p.kept)


@torch.no_grad()
def _in_chunks(p: Problem, hidden_gradient: Tensor, head_gradient: Tensor) -> float:
    total = 0.0
    for start in range(0, len(p.hidden_NH), 32):
        part = slice(start, start + 32)
        ids, hidden = p.ids_NK[part], p.hidden_NH[part]
        rows = p.head_VH[ids]
        student = torch.bmm(rows, hidden.unsqueeze(-1)).squeeze(-1).float().log_softmax(-1)
        gap = student - p.logprobs_NK[part]
        kl = (student.exp() * gap).sum(-1, keepdim=True)
        total += kl.sum().item() / len(p.hidden_NH)
        slope = (student.exp() * (gap - kl) / len(p.hidden_NH)).to(rows.dtype)
        hidden_gradient[part] = torch.bmm(slope.unsqueeze(1), rows).squeeze(1)
        torch.mul(slope.unsqueeze(-1), hidden.unsqueeze(1), out=rows)
        head_gradient.index_add_(0, ids.reshape(-1), rows.view(-1, rows.shape[-1]))
    p.hidden_NH.grad, p.head_VH.grad = hidden_gradient, head_gradient
    return total


def dense(p: Problem) -> float:
    """The definition: all logits, then the support."""
    loss = distill.token_loss(p.hidden_NH @ p.head_VH.T, p.ids_NK, p.logprobs_NK).loss_N.mean()
    loss.backward()
    return loss.item()


def trl_chunked(p: Problem) -> float:
    """TRL's distillation trainer: reverse KL over the whole vocabulary, in chunks. It needs the teacher's hidden states instead."""
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    teacher_NH = p.hidden_NH.detach() + 0.3
    mask = torch.ones(1, len(teacher_NH), dtype=torch.long)
    loss = _chunked_divergence_loss(p.hidden_NH[None], teacher_NH[None], p.head_VH, p.head_VH.detach(), mask, 1.0)[0]
    loss.backward()
    return loss.item()


def trl_gkd(p: Problem) -> float:
    """TRL's GKD trainer: reverse KL of whole logits."""
    from trl.experimental.gkd import GKDTrainer

    with torch.no_grad():
        teacher_NV = (p.hidden_NH + 0.3) @ p.head_VH.T
    labels = torch.zeros(1, len(p.hidden_NH), dtype=torch.long)
    loss = GKDTrainer.generalized_jsd_loss((p.hidden_NH @ p.head_VH.T)[None], teacher_NV[None], labels=labels, beta=1.0)
    loss.backward()
    return loss.item()


WAYS: dict[str, Callable[[Problem], float]] = {
    "ours": ours,
    "in chunks": in_chunks,
    "accumulating": accumulating,
    "plain": plain,
    "dense": dense,
    "trl chunked": trl_chunked,
    "trl gkd": trl_gkd,
}


def seconds(ways: list[str], p: Problem, rounds: int) -> dict[str, list[float]]:
    """Time of loss and gradients from nothing, the ways in turn."""
    spent: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds + 1):
        for way in ways:
            p.forget_gradients()
            started = time.perf_counter()
            WAYS[way](p)
            spent[way].append(time.perf_counter() - started)
    return {way: values[1:] for way, values in spent.items()}  # the first is a warm-up


def extra_bytes(way: str, p: Problem) -> dict[str, int]:
    """Growth of the resident memory at its peak, and of that what the two gradients hold, in this process."""
    WAYS[way](p)
    p.forget_gradients()
    before, peak, done = _resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, _resident())
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    WAYS[way](p)
    done.set()
    watcher.join()
    after = _resident()
    return {"peak": max(peak, after) - before, "gradients": after - before}


def memory_of_own_process(way: str, arguments: list[str]) -> dict[str, int]:
    """`extra_bytes` in a process that computes nothing else and returns at once what it frees."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, *arguments, "--memory-of", way]
    return json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


Cosines = dict[int, tuple[float, float, float]]
"""Per k: cosine of our gradient to that of the full reverse KL, for hidden states and head, and the mean coverage."""


def cosines(hidden_NH: Tensor, head_VH: Tensor, teacher_NV: Tensor, ks: Sequence[int], invalid_ids: Sequence[int] = ()) -> Cosines:
    """Of the mean over some tokens.

    Args:
        teacher_NV: log-probabilities in the whole vocabulary.
        invalid_ids: ids that no support holds.
    """
    hidden_NH, head_VH = (one.detach().requires_grad_() for one in (hidden_NH, head_VH))
    student_NV = (hidden_NH @ head_VH.T).log_softmax(-1)
    full = torch.autograd.grad((student_NV.exp() * (student_NV - teacher_NV)).sum(-1).mean(), (hidden_NH, head_VH))
    valid_NV = teacher_NV.index_fill(1, torch.tensor(invalid_ids, dtype=torch.int64), -torch.inf)
    found = {}
    for k in ks:
        top = valid_NV.topk(k, dim=-1)
        loss = subset.token_loss(hidden_NH, head_VH, top.indices, top.values).mean()
        own = torch.autograd.grad(loss, (hidden_NH, head_VH))
        hidden, head = (
            torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).item() for a, b in zip(own, full, strict=True)
        )
        found[k] = (hidden, head, watch(hidden_NH, head_VH, top.indices, top.indices[:, 0]).coverage_M.mean().item())
    return found


def random_cosines(tokens: int = 128, width: int = 256, scale: float = 0.25) -> Cosines:
    """Of random weights; the teacher is the student with noise."""
    generator = torch.Generator().manual_seed(0)
    hidden_NH = torch.randn(tokens, width, generator=generator)
    head_VH = torch.randn(VOCABULARY, width, generator=generator) * scale
    teacher_NV = ((hidden_NH + 0.3 * torch.randn(tokens, width, generator=generator)) @ head_VH.T).log_softmax(-1)
    return cosines(hidden_NH, head_VH, teacher_NV, (2, 8, 32, 64, 128, 512))


@torch.no_grad()
def trained_cosines(run: Path) -> dict[str, Cosines]:
    """Of the student of a finished run, as distillation began and as it ended, at the tokens of its first and of its last batch."""
    from polymath.compiler.plan import read_plan, read_sources
    from polymath.runtime.data.tokenizers import load_tokenizer_folder
    from polymath.runtime.jobs import JobContext
    from polymath.runtime.ledger import Ledger
    from transformers import AutoModelForCausalLM

    plan, sources = read_plan(run / "plan"), read_sources(run / "plan")
    job = plan.job("distill")
    context = JobContext(plan=plan, sources=sources, job=job, run_dir=run, rank=0, world_size=1, barrier=lambda: None)
    ledger, last = Ledger(context.folder / "batches"), job.settings["stage"]["steps"] - 1
    invalid_ids = sorted(load_tokenizer_folder(context.input_folder("model")).invalid_ids)
    teachers = {
        name: AutoModelForCausalLM.from_pretrained(context.input_folder(f"teacher.{name}"))
        for name in set(job.settings["routing"].values())
    }
    found = {}
    for when, folder, index in (("begins", context.input_folder("model"), 0), ("ended", context.folder / "model", last)):
        student = AutoModelForCausalLM.from_pretrained(folder)
        hidden, logprobs = [], []
        for sample in ledger.read(index):
            written_T = torch.tensor(sample.written[1:])
            ids_1T = torch.tensor([sample.ids])
            hidden.append(student.model(ids_1T).last_hidden_state[0, :-1][written_T])
            logprobs.append(teachers[sample.teacher](ids_1T).logits[0, :-1][written_T].log_softmax(-1))
        with torch.enable_grad():
            arguments = (torch.cat(hidden), student.lm_head.weight, torch.cat(logprobs))
            found[f"{when}, {len(arguments[0])} tokens"] = cosines(*arguments, (2, 4, 8, 16, 32, 128), invalid_ids)
    return found


def main() -> None:
    """Print one comparison as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    parser.add_argument("--supports", choices=("alike", "apart"), default="alike")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["ours", "plain", "accumulating"])
    parser.add_argument("--memory-of", choices=WAYS, help="print the memory of one way as JSON and stop")
    parser.add_argument(
        "--cosine",
        nargs="?",
        const=RANDOM,
        type=Path,
        metavar="RUN",
        help="print cosines to the full reverse KL's gradient (of the student of a finished RUN) and stop",
    )
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.cosine is not None:
        tables = {"random weights": random_cosines()} if chosen.cosine == RANDOM else trained_cosines(chosen.cosine)
        for title, table in tables.items():
            print(title)
            for k, (hidden, head, mean) in table.items():
                print(f"k {k:4d}   cosine: hidden {hidden:.4f}, head {head:.4f}   coverage {mean:.4f}")
        return
    p = problem(
        tokens=chosen.tokens,
        width=chosen.width,
        k=chosen.k,
        supports=chosen.supports,
        dtype=getattr(torch, chosen.dtype),
        vocabulary=chosen.vocabulary,
    )
    if chosen.memory_of:
        print(json.dumps(extra_bytes(chosen.memory_of, p)))
        return
    floor = p.floor_bytes()
    print(f"floor: {floor / 1e6:.1f} MB, distinct head rows read and their gradient written")
    spent = seconds(chosen.ways, p, chosen.rounds)
    for way, values in spent.items():
        memory = memory_of_own_process(way, sys.argv[1:])
        beyond = (memory["peak"] - memory["gradients"]) / 1e6
        print(
            f"{way:12s} best {min(values) * 1e3:8.1f} ms   median {median(values) * 1e3:8.1f} ms   "
            f"{floor / min(values) / 1e9:6.2f} GB/s of the floor   "
            f"gradients {memory['gradients'] / 1e6:7.1f} MB   beyond them {beyond:7.1f} MB"
        )


if __name__ == "__main__":
    main()
