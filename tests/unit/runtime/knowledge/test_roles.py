"""Roles that models play: the student through an engine, and any OpenAI-compatible endpoint."""

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from polymath.runtime.cli import main
from polymath.runtime.data.renderer import Renderer
from polymath.runtime.data.tokenizers import load_tokenizer
from polymath.runtime.engines.endpoint import Patience, endpoint_of
from polymath.runtime.engines.protocol import Capabilities, Generation, SamplingSettings
from polymath.runtime.knowledge.branches import attempts
from polymath.runtime.knowledge.endpoint_chat import EndpointChat
from polymath.runtime.knowledge.generators.base import ScriptedSolver
from polymath.runtime.knowledge.generators.registry import make_generator
from polymath.runtime.knowledge.graph import GraphStore
from polymath.runtime.knowledge.records import read_records, written_by_model
from polymath.runtime.knowledge.roles import EngineChat, Reply, Roles
from polymath.runtime.knowledge.selfplay import Goal, accepted, self_play
from polymath.runtime.worlds.base import is_heldout
from polymath.specs.diagnostics import UserError
from polymath.specs.machine import Service
from polymath.specs.model import Model
from scripted_service import send, serving

QUICK = Patience(attempts=2, unreadable=2, answer_seconds=5.0, total_seconds=10.0)


def oracle_message(generator: Any, messages: Sequence[Any]) -> dict[str, Any]:
    """What the oracle would say next in a conversation."""
    asked = messages[0]["content"]
    solver = ScriptedSolver(generator, next(one for one in generator.drawn if one.instruction == asked), seed=0)
    said = solver.next([])
    for message in messages[1:]:
        if message["role"] != "assistant":
            said = solver.next([message])
    return said


def remembering(generator: Any) -> Any:
    """The generator, which keeps what it drew."""
    generator.drawn = []
    draw = generator.draw

    def drawing(*rngs: Any) -> Any:
        task = draw(*rngs)
        if task is not None:
            generator.drawn.append(task)
        return task

    generator.draw = drawing
    return generator


def chains(path: Path) -> Any:
    return remembering(make_generator("scientific_chains", {}, GraphStore.create(path)))


def endpoint(url: str, **more: Any) -> EndpointChat:
    service = Service(url_env="MODEL_URL", model="m", **more)
    return EndpointChat(endpoint_of(service, "test", {"MODEL_URL": url, "MODEL_KEY": "secret"}), "m", patience=QUICK)


def test_an_endpoint_solves_with_tools_and_its_tokens_are_counted(tmp_path: Path) -> None:
    generator = chains(tmp_path / "a.sqlite")

    def reply(handler: Any, question: dict[str, Any]) -> None:
        assert question["tools"] == list(generator.tools) and handler.headers["Authorization"] == "Bearer secret"
        message = oracle_message(generator, question["messages"])
        usage = {"prompt_tokens": 7, "completion_tokens": 3}
        send(handler, json.dumps({"choices": [{"message": message}], "usage": usage}).encode())

    with serving(reply) as url:
        report = self_play(generator, Roles(solver=endpoint(url, key_env="MODEL_KEY")), Goal(accepted=3))
    assert report.accepted == 3 and report.tokens == 10 * sum(
        one["role"] == "assistant" for record in accepted(generator) for one in record.messages
    )
    assert all(record.provenance["solver"] == "m" for record in accepted(generator))


@pytest.mark.parametrize(
    "body",
    [b"", b"hello", b"{}", b'{"choices": []}', b'{"choices": [{"message": {"content": null}}]}', b"[" * 100_000, b"\xff\xfe"],
)
def test_an_endpoint_that_answers_nonsense_is_an_outcome(body: bytes, tmp_path: Path) -> None:
    generator = chains(tmp_path / "a.sqlite")
    with serving(lambda handler, question: send(handler, body)) as url:
        report = self_play(generator, Roles(solver=endpoint(url)), Goal(accepted=1, attempts=1, rounds=1, patience=2))
    assert report.accepted == 0 and report.attempts > 0
    assert report.statuses == {"solver: the endpoint wrote nonsense": report.attempts}
    refused = list(attempts(generator.store, accepted=False))
    assert len(refused) == report.attempts and not any(written_by_model(one) for record in refused for one in record.messages)


def test_an_endpoint_that_refuses_stops_the_run_which_goes_on_later(tmp_path: Path) -> None:
    generator = chains(tmp_path / "a.sqlite")
    said = {"count": 0}

    def reply(handler: Any, question: dict[str, Any]) -> None:
        said["count"] += 1
        message = oracle_message(generator, question["messages"])
        if said["count"] == 12:
            send(handler, b'{"error": "no credit"}', status=402)
        else:
            send(handler, json.dumps({"choices": [{"message": message}]}).encode())

    with serving(reply) as url:
        with pytest.raises(UserError, match="402"):
            self_play(generator, Roles(solver=endpoint(url)), Goal(accepted=4))
        report = self_play(generator, Roles(solver=endpoint(url)), Goal(accepted=4))
    assert report.accepted == 4 and len({record.task.key for record in accepted(generator)}) == 4


def test_the_student_solves_through_the_engine_protocol(tmp_path: Path) -> None:
    generator = chains(tmp_path / "a.sqlite")
    renderer = Renderer(load_tokenizer(Model(family="qwen3_moe", checkpoint="random", tokenizer="builtin:bytes")), generator.tools)

    class Student:
        """An engine that has learnt the oracle by heart; now and then a turn does not end."""

        turns, capabilities = 0, Capabilities(full_vocabulary_scores=False, expert_choices=False)

        def generate(self, prompts: Sequence[Sequence[int]], *, limits: Any, stop_ids: Any, **_: Any) -> list[Generation]:
            text = renderer.tokenizer.decode(list(prompts[0]))
            messages = [{"role": "user", "content": text.split("<|im_start|>user\n")[1].split("<|im_end|>")[0]}]
            for part in text.split("<tool_response>")[1:]:
                messages.append({"role": "tool", "content": part.split("</tool_response>")[0]})
            ids = renderer.turn(oracle_message(generator, messages))
            self.turns += 1
            return [Generation(ids=tuple(ids), logprobs=(0.0,) * len(ids), stopped=self.turns % 7 != 0)]

    chat = EngineChat(
        "student.sft",
        Student(),
        lambda tools: renderer,
        SamplingSettings(temperature=1.0, top_p=1.0),
        response_tokens=256,
        context_tokens=4096,
    )
    report = self_play(generator, Roles(solver=chat), Goal(accepted=3, attempts=3))
    assert report.accepted == 3 and report.statuses["solver: cut off"] > 0


class Asked:
    """Notes how many ask at once. Where several may, the first waits until another asks too."""

    def __init__(self, at_once: int, fails_at: int = 0) -> None:
        self.at_once, self.fails_at = at_once, fails_at  # of all questions
        self.asked = self.most = self.here = 0
        self.others, self.lock = threading.Event(), threading.Lock()

    def __enter__(self) -> None:
        with self.lock:
            self.asked, self.here = self.asked + 1, self.here + 1
            self.most = max(self.most, self.here)
            if self.here > 1:
                self.others.set()
            fails = self.asked == self.fails_at
        if self.at_once > 1:
            assert self.others.wait(10.0)
        self.lock.acquire()
        self.here -= 1
        if fails:
            self.lock.release()
            raise UserError("it is gone", exit_code=6)

    def __exit__(self, *_: object) -> None:
        self.lock.release()


class Knows:
    """A model that says what the oracle would, or at some seeds gives up."""

    name = "knows"

    def __init__(self, generator: Any, asked: Asked) -> None:
        self.generator, self.asked, self.at_once = generator, asked, asked.at_once

    def reply(self, messages: Sequence[Any], tools: Sequence[Any], seed: int) -> Reply:
        with self.asked:
            said = oracle_message(self.generator, messages) if seed % 5 else {"role": "assistant", "content": "unknown"}
        return Reply(message=said, read_tokens=10, written_tokens=1)


class Talks:
    """A user who tells the name when asked for it."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked

    def reply(self, brief: str, dialogue: Sequence[Any]) -> str | None:
        name = brief.split("The name is ")[1].split(".")[0]
        with self.asked:
            return f"The name is {name}." if dialogue[-1]["content"].endswith("?") else None


def played_with(
    path: Path, asked: Asked, world: str = "scientific_chains", user: Talks | None = None, fails: Asked | None = None
) -> tuple[Any, Any]:
    generator = remembering(make_generator(world, {}, GraphStore.create(path)))
    roles, goal = Roles(solver=Knows(generator, asked), user=user), Goal(accepted=6, seed=2)
    if fails is not None:
        with pytest.raises(UserError, match="it is gone"):
            self_play(generator, roles, goal)
    report = self_play(generator, roles, goal)
    rows = "SELECT number, outcome, counts FROM proposals ORDER BY number"
    return report, ([one.line() for one in attempts(generator.store)], generator.store.sql.execute(rows).fetchall())


def test_what_is_played_side_by_side_is_what_is_played_one_after_another(tmp_path: Path) -> None:
    alone, several = Asked(1), Asked(4)
    report, written = played_with(tmp_path / "1.sqlite", alone)
    same, also_written = played_with(tmp_path / "4.sqlite", several)
    assert alone.most == 1 < several.most <= 4
    assert written == also_written and report == same and report.refused["answered"]
    assert several.asked == alone.asked, "nothing is played that is not needed"


def test_the_users_of_proposals_in_flight_are_asked_side_by_side_and_what_is_written_is_the_same(tmp_path: Path) -> None:
    alone, several = Asked(1), Asked(4)
    report, written = played_with(tmp_path / "1.sqlite", Asked(1), "tool_subgraphs", Talks(alone))
    same, also_written = played_with(tmp_path / "4.sqlite", Asked(4), "tool_subgraphs", Talks(several))
    assert alone.most == 1 < several.most <= 4
    assert written == also_written and report == same and report.accepted == 6
    assert several.asked == alone.asked, "nobody is asked without need"


def test_a_failure_keeps_what_was_finished_before_it_and_counts_what_it_cost(tmp_path: Path) -> None:
    report, written = played_with(tmp_path / "whole.sqlite", Asked(1))
    asked = Asked(4, fails_at=30)
    resumed, also_written = played_with(tmp_path / "failed.sqlite", asked, fails=asked)
    assert written == also_written and resumed.accepted == report.accepted == 6
    assert resumed.tokens == 11 * (asked.asked - 1) > report.tokens, "all answers but the one that did not come"


def test_a_user_who_fails_keeps_what_was_finished_and_self_play_goes_on_to_the_same(tmp_path: Path) -> None:
    report, written = played_with(tmp_path / "whole.sqlite", Asked(1), "tool_subgraphs", Talks(Asked(1)))
    user = Asked(4, fails_at=9)
    resumed, also_written = played_with(tmp_path / "failed.sqlite", Asked(4), "tool_subgraphs", Talks(user), fails=user)
    assert written == also_written and resumed.accepted == report.accepted == 6 and resumed.tokens > report.tokens


def test_the_command_line_plays_writes_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph, output = str(tmp_path / "a.sqlite"), str(tmp_path / "a.jsonl")
    assert main(["self-play", "tool_subgraphs", graph, "-o", output, "--accepted", "5", "--set", "people=30"]) == 0
    first = list(read_records(output))
    assert not any(is_heldout("tool_subgraphs", record.task.key) for record in first), "a spec may evaluate on those"
    assert main(["self-play", "tool_subgraphs", graph, "-o", output, "--accepted", "8", "--set", "people=30", "--json"]) == 0
    assert [record.id for record in read_records(output)][:5] == [record.id for record in first]
    out = capsys.readouterr().out
    assert json.loads(out[out.index("{") :])["written"] == 8
    assert main(["self-play", "tool_subgraphs", graph, "-o", output, "--accepted", "9", "--set", "people=31"]) == 3
    assert main(["self-play", "tool_subgraphs", str(tmp_path / "b.sqlite"), "-o", output, "--set", "peopel=3"]) == 3
    assert main(["self-play", "tool_subgraphs", graph, "-o", output, "--solver", "NOWHERE_URL:m"]) == 5
    assert main(["self-play", "tool_subgraphs", graph, "-o", output, "--most-money", "3"]) == 64
