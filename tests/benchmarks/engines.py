"""Rollouts and scores of the embedded engine, of vLLM in a process of its own, and of vLLM over HTTP, side by side.

    python tests/benchmarks/engines.py RUN [--job distill] [--at-once 1 8 64 256] [--rounds 3] [--k 8]

RUN is the folder of a finished run; the model is the one that the job made. All three engines are open at the same time, in
float32, and are asked in turns, so that whatever else the machine does hits them alike. Times are of the clock.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from polymath.compiler.plan import read_plan
from polymath.runtime.data.renderer import Renderer
from polymath.runtime.data.tokenizers import load_tokenizer_folder
from polymath.runtime.engines.protocol import SamplingSettings
from polymath.runtime.engines.transformers_engine import TransformersEngine
from polymath.runtime.engines.vllm import connect, start_server, start_worker
from polymath.runtime.engines.vllm_launch import EngineSettings
from polymath.runtime.rollouts import RolloutRequest, collect
from polymath.runtime.worlds.registry import make_world
from polymath.specs.build import from_json
from polymath.specs.model import Domain

PLAIN = SamplingSettings(temperature=1.0, top_p=1.0)


def open_all(folder: Path, longest: int, tokenizer: Any, cleanup: ExitStack) -> dict[str, Any]:
    """The three engines on one model."""
    settings = EngineSettings(
        folder=folder, dtype="float32", context_tokens=longest, sequences=256, batched_tokens=8192, cache_bytes=2**28, tensor=1
    )
    logs = Path(cleanup.enter_context(tempfile.TemporaryDirectory()))
    engines: dict[str, Any] = {
        "embedded": TransformersEngine(
            folder,
            tokenizer_digest=tokenizer.digest,
            pad_id=tokenizer.pad_id,
            invalid_ids=tokenizer.invalid_ids,
            num_tokens=len(tokenizer.hf),
        )
    }
    for name, start in (("process", start_worker), ("http", start_server)):
        began = time.perf_counter()
        copy = start(settings, logs / f"{name}.log", cleanup)
        copy.wait()
        engines[name] = connect(copy.facts, folder, tokenizer)
        print(f"{name}: ready after {time.perf_counter() - began:.1f} s", flush=True)
    return engines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--job", default="distill")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--k", type=int, default=8)
    options = parser.parse_args()
    plan = read_plan(options.run / "plan")
    folder = options.run / "jobs" / plan.job(options.job).folder / "model"
    domains = {name: from_json(Domain, block) for name, block in plan.job("distill").settings["domains"].items()}
    tokenizer = load_tokenizer_folder(folder)
    worlds = {name: make_world(domain.world or "", domain.settings) for name, domain in domains.items()}
    renderers = {name: Renderer(tokenizer, world.tools) for name, world in worlds.items()}
    longest = max(domain.limits.context_tokens for domain in domains.values() if domain.limits is not None)
    with ExitStack() as cleanup:
        engines = open_all(folder, longest, tokenizer, cleanup)
        played = []
        for count in options.at_once:
            rates: dict[str, list[float]] = {name: [] for name in engines}
            for number in range(options.rounds + 1):
                requests = [
                    RolloutRequest(domain=name, task=task, limits=domain.limits, reward=domain.reward)
                    for place, (name, domain) in enumerate(domains.items())
                    if domain.limits is not None
                    for task in worlds[name].tasks("train", count, number)[: (count + place) // len(domains)]
                ]
                for name, engine in engines.items():
                    began = time.perf_counter()
                    played = collect(engine, renderers, worlds, requests, PLAIN, number)
                    written = sum(sum(one.written) for one in played)
                    rates[name].append(written / (time.perf_counter() - began))
            medians = {name: round(statistics.median(values[1:])) for name, values in rates.items()}  # the first round warms up
            print(f"{count} episodes at once: written tokens per second {medians}", flush=True)
        sequences = [one.ids for one in played]
        embedded = engines["embedded"].score_top_k(sequences, options.k)
        for name in ("process", "http"):
            engine, before = engines[name], engines[name].traffic.received_bytes
            began = time.perf_counter()
            tops = engine.score_top_k(sequences, options.k)
            took = time.perf_counter() - began
            scored = sum(len(sequence) - 1 for sequence in sequences)
            gap = max((one.logprobs_TK - two.logprobs_TK).abs().max().item() for one, two in zip(tops, embedded, strict=True))
            received = (engine.traffic.received_bytes - before) / scored
            print(
                f"{name}: {scored} positions at k={options.k}, {scored / took:,.0f} a second, {received:.0f} bytes each received, "
                f"largest difference from the embedded engine {gap:.2g}"
            )
    print(json.dumps({"load": os.getloadavg()[0]}))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
