"""A server on loopback that answers as vLLM's does, from a model that transformers runs; a test may script what goes wrong.

As a process of its own, which can be killed: `python tests/scripted_engine.py FOLDER PORT DELAY_SECONDS` serves FOLDER as `model`.
"""

import contextlib
import copy
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Literal

from polymath.runtime.data.tokenizers import load_tokenizer_folder
from polymath.runtime.engines.protocol import SamplingSettings
from polymath.runtime.engines.transformers_engine import TransformersEngine
from polymath.runtime.engines.weights import Weights
from scripted_service import send, serving
from weight_streams import read_folder

Change = Callable[[dict[str, Any]], Any]
"""From the right answer to the one that is sent: JSON, or bytes as they are."""


class ScriptedEngine:
    """What stands behind the server. `change` and `delay_seconds` are a test's to set."""

    def __init__(self, folder: Path, *, name: str = "model", key: str | None = None) -> None:
        self.name, self.key = name, key
        self.tokenizer = load_tokenizer_folder(folder)
        self.max_model_len = 4096
        self.change: Change | None = None
        self.delay_seconds = 0.0
        self.share_of_update = 1.0  # of the weights, those that an update replaces
        self.resets_cache = True
        self.cache: Literal["none", "salted", "unsalted"] = "none"  # of prefixes, which outlives the weights it was made with
        self._cached: set[tuple[tuple[int, ...], str]] = set()
        self._older: TransformersEngine | None = None
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._counting = threading.Lock()
        self.serve(folder)

    def serve(self, folder: Path) -> None:
        """Answer from the model in this folder from now on."""
        rows = json.loads((folder / "config.json").read_text())["vocab_size"]
        engine = TransformersEngine(folder, tokenizer_digest="", pad_id=0, invalid_ids=(), num_tokens=rows)
        with self._lock:
            self.engine, self._rows = engine, rows

    def reply(self, handler: BaseHTTPRequestHandler, question: dict[str, Any]) -> None:
        """Answer one request."""
        with self._counting:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            self.asked.append((handler.path, question))
        status, body = self._answer(handler, question)
        with self._counting:
            self._at_once -= 1
        send(handler, body, status)

    def _answer(self, handler: BaseHTTPRequestHandler, question: dict[str, Any]) -> tuple[int, bytes]:
        time.sleep(self.delay_seconds)
        if self.key is not None and handler.headers["Authorization"] != f"Bearer {self.key}":
            return 401, b'{"error": "no such key"}'
        routes = {
            "/v1/models": self._models,
            "/v1/completions": self._completions,
            "/tokenize": self._tokenize,
            "/collective_rpc": self._collective_rpc,
            "/reset_prefix_cache": lambda _: {"success": self.resets_cache},
            "/pause": lambda _: {"status": "paused"},
            "/resume": lambda _: {"status": "resumed"},
        }
        if handler.path not in routes or question.get("model", self.name) != self.name:
            return 404, b'{"error": "not found"}'
        answer = routes[handler.path](question)
        if self.change is not None and handler.path == "/v1/completions":
            answer = self.change(answer)
        return 200, answer if isinstance(answer, bytes) else json.dumps(answer).encode()

    def _models(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"object": "list", "data": [{"id": self.name, "max_model_len": self.max_model_len}]}

    def _tokenize(self, question: dict[str, Any]) -> dict[str, Any]:
        if "messages" in question:
            text = self.tokenizer.template.text(question["messages"], question.get("tools") or (), generation_prompt=True)
        else:
            text = question["prompt"]
        ids = list(self.tokenizer.literal_ids(text))
        return {"tokens": ids, "count": len(ids), "max_model_len": self.max_model_len}

    def _collective_rpc(self, question: dict[str, Any]) -> dict[str, Any]:
        (path,) = question["args"]
        weights = read_folder(Path(path))
        taken = dict(sorted(weights.items())[: round(len(weights) * self.share_of_update)])
        with self._lock:
            self._older = copy.deepcopy(self.engine)
            self.engine.load_weights(Weights([{**self.engine._model.state_dict(), **taken}]), policy_version=0)
        return {"results": [path]}

    def _completions(self, question: dict[str, Any]) -> dict[str, Any]:
        prompts = question["prompt"]
        prompts = prompts if isinstance(prompts[0], list) else [prompts]
        with self._lock:
            if question.get("prompt_logprobs") is not None:
                choices = [self._scored(prompt, question["prompt_logprobs"]) for prompt in prompts]
            else:
                choices = [self._continued(prompt, question) for prompt in prompts]
        return {"object": "text_completion", "choices": [{"index": index, **one} for index, one in enumerate(choices)]}

    def _scored(self, prompt: list[int], k: int) -> dict[str, Any]:
        (own_T,) = self.engine.score_tokens([prompt])
        (top,) = self.engine.score_top_k([prompt], max(1, min(k, self._rows)))
        positions: list[dict[str, Any] | None] = [None]
        for token, own, ids, logprobs in zip(
            prompt[1:], own_T.tolist(), top.ids_TK[:, :k].tolist(), top.logprobs_TK[:, :k].tolist(), strict=True
        ):
            entries = {token: own} | dict(zip(ids, logprobs, strict=True))
            positions.append({str(one): {"logprob": value, "rank": 1, "decoded_token": "{"} for one, value in entries.items()})
        return {"text": "", "logprobs": None, "finish_reason": "length", "token_ids": [0], "prompt_logprobs": positions}

    def _continued(self, prompt: list[int], question: dict[str, Any]) -> dict[str, Any]:
        engine = self.engine
        if self.cache != "none":
            prefix = (tuple(prompt), question["cache_salt"] if self.cache == "salted" else "")
            engine = self._older if prefix in self._cached and self._older is not None else engine
            self._cached.add(prefix)
        (generation,) = engine.generate(
            [prompt],
            limits=[question["max_tokens"]],
            sampling=SamplingSettings(temperature=question["temperature"], top_p=question["top_p"]),
            stop_ids=question["stop_token_ids"],
            seed=question["seed"],
        )
        logprobs = {"tokens": [f"token_id:{one}" for one in generation.ids], "token_logprobs": list(generation.logprobs)}
        reason = "stop" if generation.stopped else "length"
        return {
            "text": "",
            "logprobs": logprobs,
            "finish_reason": reason,
            "token_ids": list(generation.ids),
            "prompt_logprobs": None,
        }


@contextlib.contextmanager
def served(engine: ScriptedEngine, port: int = 0) -> Iterator[str]:
    """The base URL of an engine that is being served."""
    with serving(engine.reply, port) as url:
        yield url


if __name__ == "__main__":
    behind = ScriptedEngine(Path(sys.argv[1]))
    behind.delay_seconds = float(sys.argv[3])
    with served(behind, int(sys.argv[2])):
        threading.Event().wait()
