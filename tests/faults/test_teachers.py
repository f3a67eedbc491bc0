"""What becomes of a run whose teachers are served by a server that fails: rows T2 to T9 of the faults.

The student, the worlds, the ledger and the HTTP are real; the server answers as vLLM does, from a tiny model, until a test says
what goes wrong. Whatever goes wrong, no weight of the student moves and the ledger keeps nothing of it.
"""

import dataclasses
import json
import shutil
import threading
import time
import tracemalloc
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import torch
from on_policy_runs import StubTrainer, distill_stage, make_run
from polymath.runtime.engines import endpoint, served_engine
from polymath.runtime.jobs import JobContext
from polymath.runtime.launch.events import read_events, wait_lines
from polymath.runtime.ledger import Ledger
from polymath.runtime.stages.distill import DistillStage
from polymath.specs.build import to_json
from polymath.specs.diagnostics import ExitCode, UserError
from polymath.specs.machine import Engines, Service
from scripted_engine import Change, ScriptedEngine, served
from scripted_service import serving

PATIENT, IMPATIENT = 120.0, 3.0  # seconds


@dataclasses.dataclass
class Run:
    """A run with two served teachers."""

    context: JobContext
    trainer: StubTrainer
    servers: dict[str, ScriptedEngine]
    models: Mapping[str, Path]
    ports: dict[str, int]
    up: dict[str, ExitStack]

    def stage(self, patience_seconds: float = PATIENT) -> DistillStage:
        services = {
            name: Service(
                url_env=f"{name.upper()}_URL",
                model="model",
                key_env=None if server.key is None else f"{name.upper()}_KEY",
                patience_seconds=patience_seconds,
            )
            for name, server in self.servers.items()
        }
        self.context.job.settings["engines"] = to_json(Engines(scorer="vllm", teachers=services))  # type: ignore[index]
        return distill_stage(self.context, self.models, self.trainer)

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.context.folder / "batches")

    def events(self, name: str) -> list[dict[str, Any]]:
        return [event for event in read_events(self.context.run_dir) if event["event"] == name]

    def stop(self, name: str) -> None:
        self.up[name].close()

    def start(self, name: str) -> None:
        self.up[name].enter_context(served(self.servers[name], self.ports[name]))

    def weights(self) -> list[torch.Tensor]:
        return [one.clone() for one in self.trainer.model.state_dict().values()]


@pytest.fixture
def run(tmp_path: Path, models: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    monkeypatch.setattr(endpoint, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(endpoint, "LONGEST_WAIT_SECONDS", 0.1)
    context = make_run(tmp_path, models, monkeypatch)
    servers = {name: ScriptedEngine(models[name]) for name in ("a", "b")}
    found = Run(context, StubTrainer(models["student"]), servers, models, {}, {name: ExitStack() for name in servers})
    for name, server in servers.items():
        url = found.up[name].enter_context(served(server))
        found.ports[name] = int(url.split(":")[2].split("/")[0])
        monkeypatch.setenv(f"{name.upper()}_URL", url)
    yield found
    for stack in found.up.values():
        stack.close()


def _sample_bytes(ledger: Ledger, index: int) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(ledger.path(index).iterdir())}


def _refused(run: Run, code: ExitCode, says: str, patience_seconds: float = PATIENT) -> UserError:
    """A start that is refused before anything is rolled out."""
    with pytest.raises(UserError, match=says) as caught:
        run.stage(patience_seconds)
    assert caught.value.exit_code == code and not run.ledger.folder.exists() and run.trainer.syncs == 0
    return caught.value


def _thrown_away(run: Run, stage: DistillStage, code: ExitCode, says: str) -> UserError:
    """A second step that ends the run, without a trace of what was scored in it."""
    before = run.weights()
    with pytest.raises(UserError, match=says) as caught:
        stage.next_batch(2)
    assert caught.value.exit_code == code
    assert run.ledger.exists(0) and not run.ledger.exists(1)
    assert all(torch.equal(one, other) for one, other in zip(before, run.weights(), strict=True))
    return caught.value


def test_served_teachers_teach_as_embedded_ones_do(
    run: Run, models: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.stage().next_batch(1)
    embedded = make_run(tmp_path / "embedded", models, monkeypatch)
    distill_stage(embedded, models, run.trainer).next_batch(1)
    for found, expected in zip(run.ledger.read(0), Ledger(embedded.folder / "batches").read(0), strict=True):
        assert (found.ids, found.teacher) == (expected.ids, expected.teacher)
        assert found.support_ids_WK is not None and torch.equal(found.support_ids_WK, expected.support_ids_WK)
        torch.testing.assert_close(found.support_logprobs_WK, expected.support_logprobs_WK, atol=1e-5, rtol=0)


def test_a_teacher_that_is_down_at_the_start_is_refused_before_anything_is_rolled_out(run: Run) -> None:
    run.stop("b")
    error = _refused(run, ExitCode.UNFIT, "teacher `b` at http://127.0.0.1:.* cannot be asked for /v1/models: .*refused", IMPATIENT)
    assert "start it" in str(error.fix)


def test_a_teacher_that_comes_back_scores_the_same_step_identically(run: Run, models: Mapping[str, Path]) -> None:
    undisturbed = run.stage()
    undisturbed.next_batch(1)
    undisturbed.next_batch(2)
    expected = _sample_bytes(run.ledger, 1)
    shutil.rmtree(run.ledger.folder)
    disturbed = run.stage()
    disturbed.next_batch(1)
    run.stop("a")
    back = threading.Timer(0.4, run.start, ["a"])
    back.start()
    disturbed.next_batch(2)
    back.join()
    assert _sample_bytes(run.ledger, 1) == expected
    assert [event["service"] for event in run.events("service_waits")] == ["teacher `a`"]
    assert len(run.events("service_answers")) == 1 and not wait_lines(run.context.run_dir, run.context.job.folder)


def test_a_teacher_that_never_comes_back_ends_the_run_which_can_go_on(run: Run) -> None:
    stage = run.stage(IMPATIENT)
    stage.next_batch(1)
    run.stop("a")
    error = _thrown_away(run, stage, ExitCode.INTERRUPTED, "the engine of teacher `a` at http://127.* does not answer: .*refused")
    assert "launch again" in str(error.fix)
    (line,) = wait_lines(run.context.run_dir, run.context.job.folder)
    assert line.startswith("waiting for teacher `a`, ") and "ConnectionRefusedError" in line
    run.start("a")
    run.stage().next_batch(2)
    assert run.ledger.exists(1)


def test_a_slow_teacher_is_waited_for_with_a_bound_on_what_is_asked_of_it_and_a_word(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "TOLD_SECONDS", 0.2)
    stage = run.stage()
    run.servers["a"].delay_seconds = 0.8  # an answer takes 15 ms
    stage.next_batch(1)
    assert run.servers["a"].most_at_once <= served_engine.AT_ONCE
    waits = [event["cause"] for event in run.events("service_waits") if event["service"] == "teacher `a`"]
    assert set(waits) == {"no answer yet"} and run.events("service_answers")
    assert run.ledger.exists(0)


def _swap_two_words(folder: Path, swapped: Path) -> None:
    """A model with another tokenizer of the same size: two words have each other's ids."""
    shutil.copytree(folder, swapped)
    tokenizer = json.loads((swapped / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = [word for word in vocabulary if word.isalpha()][:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (swapped / "tokenizer.json").write_text(json.dumps(tokenizer))


def test_another_tokenizer_of_the_same_size_is_refused(run: Run, models: Mapping[str, Path], tmp_path: Path) -> None:
    _swap_two_words(models["a"], tmp_path / "swapped")
    run.servers["a"].tokenizer = ScriptedEngine(tmp_path / "swapped").tokenizer
    _refused(run, ExitCode.UNFIT, "teacher `a` at .* has another tokenizer: the text .* becomes .* and not")


def test_another_chat_template_is_refused(run: Run, models: Mapping[str, Path], tmp_path: Path) -> None:
    shutil.copytree(models["a"], tmp_path / "other")
    template = tmp_path / "other" / "chat_template.jinja"
    template.write_text("<user>" + template.read_text())
    run.servers["a"].tokenizer = ScriptedEngine(tmp_path / "other").tokenizer
    _refused(run, ExitCode.UNFIT, "has another tokenizer: a conversation in the chat template becomes")


def test_another_revision_with_the_right_tokenizer_is_refused(run: Run, models: Mapping[str, Path]) -> None:
    run.servers["a"].serve(models["b"])
    _refused(run, ExitCode.UNFIT, "teacher `a` at .* is not the checkpoint in .*: log-probabilities of 124 known tokens differ by")


def test_a_server_of_another_name_or_of_fewer_tokens_is_refused(run: Run) -> None:
    run.servers["a"].max_model_len = 64
    _refused(run, ExitCode.UNFIT, "takes 64 tokens, and 65 are needed")
    run.servers["a"].name = "another"
    _refused(run, ExitCode.UNFIT, "serves another, and not `model`")


def test_a_model_that_is_swapped_in_the_middle_is_caught_and_trains_nobody(run: Run, models: Mapping[str, Path]) -> None:
    stage = run.stage()
    stage.next_batch(1)
    run.servers["b"].serve(models["a"])
    _thrown_away(run, stage, ExitCode.FAILED, "teacher `b` is no longer its checkpoint: .* step 2 is thrown away")
    (event,) = run.events("wrong_teacher")
    assert (event["teacher"], event["steps"], event["trained"]) == ("b", [2], [])
    run.servers["b"].serve(models["b"])
    run.stage().next_batch(2)
    assert run.ledger.exists(1)


def _positions(change: Any) -> Change:
    """A change of the positions of every scored prompt."""

    def changed(answer: dict[str, Any]) -> dict[str, Any]:
        for choice in answer["choices"]:
            if choice["prompt_logprobs"] is not None:
                choice["prompt_logprobs"] = change(choice["prompt_logprobs"])
        return answer

    return changed


def _logprobs(value: float) -> Change:
    def change(positions: list[Any]) -> list[Any]:
        for entry in next(position for position in positions if position).values():
            entry["logprob"] = value
        return positions

    return _positions(change)


def _shifted(positions: list[Any]) -> list[Any]:
    return [None, *positions[2:], positions[1]]


def _shifted_behind_the_right_tokens(positions: list[Any]) -> list[Any]:
    """Off by one in a way that no form shows: every token that is asked about is there."""
    shifted = _shifted(positions)
    return [None, *(_renamed(found, right) for found, right in zip(shifted[1:], positions[1:], strict=True))]


def _with_another_token(found: dict[str, Any]) -> dict[str, Any]:
    *kept, (_, last) = found.items()
    return {**dict(kept), "999999": last}


def _renamed(found: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    count = min(len(found), len(right))
    return dict(zip(list(right)[:count], list(found.values())[:count], strict=True)) | dict(list(right.items())[count:])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_positions(lambda positions: positions[:-1]), "scores of .* positions for sequences of"),
        (_positions(lambda positions: [*positions, positions[-1]]), "scores of more positions than there are"),
        (_positions(lambda positions: []), "scores of .* positions for sequences of"),
        (_logprobs(float("nan")), "a log-probability that is no finite number of at most 0: nan"),
        (_logprobs(0.5), "a log-probability that is no finite number of at most 0: 0.5"),
        (_logprobs(float("inf")), "a log-probability that is no finite number of at most 0: inf"),
        (_positions(_shifted), "not of the token that stands there"),
        (
            _positions(lambda positions: [None, *[dict(list(one.items())[:3]) for one in positions[1:]]]),
            "tokens at position 1, and",
        ),
        (
            _positions(lambda positions: [None, *map(_with_another_token, positions[1:])]),
            "999999 is none of the model's",
        ),
        (lambda answer: {"choices": answer["choices"][:-1]}, "positions for sequences of"),
        (lambda answer: b"<html><body>welcome to the gateway</body></html>", "not a completion: '<html>"),
        (lambda answer: json.dumps(answer).encode()[:-20], "not a completion|breaks off|not the scores"),
        (lambda answer: json.dumps(answer).encode()[:300], "not a completion|breaks off|not the scores"),
        (lambda answer: b"[" * 100_000, "not a completion"),
        (lambda answer: {"choices": "none"}, "not a completion"),
    ],
)
def test_scores_that_are_not_of_the_form_are_refused_after_a_few_attempts(run: Run, change: Change, says: str) -> None:
    stage = run.stage()
    stage.next_batch(1)
    asked = len(run.servers["a"].asked)
    run.servers["a"].change = change
    _thrown_away(run, stage, ExitCode.FAILED, f"the engine of teacher `a` .* gives no answer that can be used: .*(?:{says})")
    assert len(run.servers["a"].asked) - asked == served_engine.PATIENCE.unreadable
    run.servers["a"].change = None
    run.stage().next_batch(2)


def test_a_shift_that_no_form_shows_is_caught_by_the_canary(run: Run) -> None:
    stage = run.stage()
    stage.next_batch(1)
    run.servers["a"].change = _positions(_shifted_behind_the_right_tokens)
    _thrown_away(run, stage, ExitCode.FAILED, "teacher `a` is no longer its checkpoint")


def test_a_body_of_a_gigabyte_is_not_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = run.stage()
    stage.next_batch(1)
    sent = 0

    def endless(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
        nonlocal sent
        handler.send_response(200)
        handler.send_header("Content-Length", str(1 << 30))
        handler.end_headers()
        while sent < 1 << 30:
            handler.wfile.write(b" " * 65_536)
            sent += 65_536

    run.stop("a")
    with serving(endless, run.ports["a"]):
        tracemalloc.start()
        began = time.monotonic()
        _thrown_away(run, stage, ExitCode.FAILED, "an answer of more than [0-9]+ bytes")
        assert time.monotonic() - began < 10 and tracemalloc.get_traced_memory()[1] < 32 << 20
        tracemalloc.stop()
    assert sent < 64 << 20


@pytest.mark.parametrize("fault", ["repeated", "another key"])
def test_a_key_is_in_no_message_and_in_no_file_of_the_run(
    run: Run, fault: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    key = "sk-never-shown-anywhere"
    run.servers["a"].key = key
    monkeypatch.setenv("A_KEY", key)
    stage = run.stage(IMPATIENT)
    stage.next_batch(1)
    if fault == "repeated":
        run.servers["a"].change = lambda answer: f"<html>no use for {key}</html>".encode()
    else:
        monkeypatch.setattr(run.servers["a"], "_answer", lambda *_: (403, f"{key} has expired".encode()))
    with pytest.raises(UserError) as caught:
        stage.next_batch(2)
    assert "***" in str(caught.value)
    shown = (str(caught.value) + repr(caught.value.__cause__) + "".join(capfd.readouterr())).encode()
    files = [path.read_bytes() for path in run.context.run_dir.rglob("*") if path.is_file()]
    assert files and not any(key[:8].encode() in content for content in (shown, *files))
