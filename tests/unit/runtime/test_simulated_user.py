"""Promises of users in rollouts: what they say is context, counts, and is the same again; a model that speaks for one may fail."""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from polymath.runtime import simulated_user
from polymath.runtime.data.renderer import Renderer
from polymath.runtime.data.tokenizers import load_tokenizer
from polymath.runtime.engines import endpoint
from polymath.runtime.engines.endpoint import Patience, endpoint_of
from polymath.runtime.engines.protocol import Capabilities, Generation, SamplingSettings
from polymath.runtime.rollouts import RolloutRequest, Trajectory, collect
from polymath.runtime.simulated_user import EndpointUser, UserSilent
from polymath.runtime.worlds.protocol import Message, SimulatedUser
from polymath.runtime.worlds.registry import make_world
from polymath.specs.diagnostics import ExitCode, UserError
from polymath.specs.generators import GENERATOR_WORLDS, USER_WORLDS
from polymath.specs.machine import Service
from polymath.specs.model import Limits, Model
from polymath.specs.reward import Reward
from scripted_service import completion, send, serving

BYTES = load_tokenizer(Model(family="qwen3_moe", checkpoint="random", tokenizer="builtin:bytes"))
WORLD: Any = make_world("tool_subgraphs", {"people": 8})
TASKS = WORLD.tasks("train", 4, 0)
LIMITS = Limits(turns=24, response_tokens=400, context_tokens=40_000)
KEY = "sk-very-secret"
USER = Service(url_env="USER_URL", model="a-user", key_env="USER_KEY", patience_seconds=30.0)
ASKING = [{"role": "user", "content": "Set it."}, {"role": "assistant", "content": "What is the name?"}]


class Policy:
    """Plays the oracle of whatever task it is shown. It takes the name from what the user says, in whatever words."""

    policy_version = 1

    def __init__(self, concurrent: bool) -> None:
        self.capabilities = Capabilities(full_vocabulary_scores=False, expert_choices=False, concurrent=concurrent)
        self.renderer = Renderer(BYTES, WORLD.tools)
        self.openings = {tuple(self.renderer.open(WORLD.start(task).opening())): task for task in TASKS}

    def generate(self, prompts: Sequence[Sequence[int]], **_: Any) -> list[Generation]:
        return [self._next(list(prompt)) for prompt in prompts]

    def _next(self, prompt: list[int]) -> Generation:
        opening, task = next((ids, task) for ids, task in self.openings.items() if tuple(prompt[: len(ids)]) == ids)
        solver = WORLD.demonstrator(task, seed=0, habit_rate=0.0, slip_rate=0.0)
        episode, ids, heard = WORLD.start(task), list(opening), list[Message]()
        while True:
            turn = self.renderer.turn(solver.next(heard))
            if len(ids) >= len(prompt):
                return Generation(ids=tuple(turn), logprobs=(-1.0,) * len(turn), stopped=True)
            heard = episode.act(self.renderer.parse(turn))
            ids += turn
            said = BYTES.decode(prompt[len(ids) :])
            if heard[0]["role"] == "user":  # how long it is, the prompt says
                ids += self.renderer.extend(
                    [{"role": "user", "content": said.split("<|im_start|>user\n")[1].split("<|im_end|>")[0]}]
                )
            else:
                ids += self.renderer.extend(heard)


def name_of(task: Any) -> str:
    return WORLD.task_of(task).payload["name"]


def play(concurrent: bool, limits: Limits = LIMITS, users: Mapping[str, SimulatedUser] | None = None) -> list[Trajectory]:
    requests = [RolloutRequest(domain="desk", task=task, limits=limits, reward=Reward(), group=i) for i, task in enumerate(TASKS)]
    policy: Any = Policy(concurrent)
    plain = SamplingSettings(temperature=1.0, top_p=1.0)
    return collect(policy, {"desk": policy.renderer}, {"desk": WORLD}, requests, plain, seed=0, users=users or {})


@pytest.mark.parametrize("concurrent", [False, True])
def test_a_scripted_user_s_words_are_context_and_the_episode_is_won(concurrent: bool) -> None:
    for one, task in zip(play(concurrent), TASKS, strict=True):
        assert (one.status, one.outcome) == ("COMPLETED", 1.0)
        said = list(f"The name is {name_of(task)}.".encode())
        (place,) = (start for start in range(len(one.ids)) if list(one.ids[start : start + len(said)]) == said)
        assert not any(one.written[place : place + len(said)])


def test_user_turns_are_the_same_on_every_engine_and_again() -> None:
    assert play(False) == play(True) == play(False)


def test_user_turns_count_against_the_limits() -> None:
    (whole, *_) = play(False)
    (turns, *_) = play(False, replace(LIMITS, turns=1))
    assert (turns.status, turns.turns) == ("TRUNCATED", 1) and turns.written[-1]
    first = sum(whole.written[: len(turns.ids)])  # what the policy wrote before the user answered
    (context, *_) = play(False, replace(LIMITS, context_tokens=len(turns.ids) + 20))
    assert context.status == "TRUNCATED" and sum(context.written) == first and len(context.ids) <= len(turns.ids) + 20


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_WAIT_SECONDS", 0.001)


def user_at(url: str, patience: Patience = simulated_user.PATIENCE) -> EndpointUser:
    return EndpointUser(endpoint_of(USER, "domains.desk.user", {"USER_URL": url, "USER_KEY": KEY}), USER, patience)


class Persona:
    """Tells the name in words of its own when it is asked, and leaves when nothing is asked."""

    def __init__(self, faults: Sequence[tuple[int, bytes]] = ()) -> None:
        self.faults = list(faults)
        self.shown: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()

    def __call__(self, handler: BaseHTTPRequestHandler, question: dict[str, Any]) -> None:
        self.keys.add(handler.headers["Authorization"])
        if self.faults:
            status, body = self.faults.pop(0)
            return send(handler, body, status)
        assert question["temperature"] == 0 and question["model"] == "a-user"
        shown = json.loads(question["messages"][1]["content"])
        self.shown.append(shown)
        asked = shown["dialogue"][-1]["text"]
        name = shown["brief"].split("The name is ")[1].split(".")[0]
        send(handler, completion({"say": f"Sure, {name} it is!"} if "?" in asked else {"end": True}))


@pytest.mark.parametrize("concurrent", [False, True])
def test_a_model_speaks_for_the_user_and_its_words_are_context(concurrent: bool) -> None:
    persona = Persona()
    with serving(persona) as url:
        played = play(concurrent, users={"desk": user_at(url)})
        assert play(concurrent, users={"desk": user_at(url)}) == played
    for one, task in zip(played, TASKS, strict=True):
        said = list(f"Sure, {name_of(task)} it is!".encode())
        (place,) = (start for start in range(len(one.ids)) if list(one.ids[start : start + len(said)]) == said)
        assert not any(one.written[place : place + len(said)]) and one.status == "COMPLETED"
    assert persona.keys == {f"Bearer {KEY}"}
    first = persona.shown[0]
    assert [line["from"] for line in first["dialogue"]] == ["user", "assistant"]
    assert not any("tool" in line["text"] for shown in persona.shown for line in shown["dialogue"]), "a user sees no calls"


@pytest.mark.parametrize("concurrent", [False, True])
def test_users_of_several_episodes_are_asked_at_once(concurrent: bool) -> None:
    persona, lock, together, flying = Persona(), threading.Lock(), threading.Event(), 0

    def reply(handler: BaseHTTPRequestHandler, question: dict[str, Any]) -> None:
        nonlocal flying
        with lock:
            flying += 1
            if flying == 2:
                together.set()
        together.wait(1)  # for another question, which never comes where users wait for each other
        with lock:
            flying -= 1
            persona(handler, question)

    with serving(reply) as url:
        play(concurrent, users={"desk": user_at(url)})
    assert together.is_set()


FAULTS = {
    "loading": (500, b"the model is loading"),
    "HTML": (200, b"<html>welcome to the gateway</html>"),
    "half a JSON": (200, completion({"say": "a"})[:-9]),
    "nothing said": (200, completion({"say": " "})),
    "another form": (200, completion({"answer": "a"})),
    "a flood": (200, completion({"say": "a" * 5000})),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_user_that_fails_once_is_asked_again(fault: str) -> None:
    with serving(Persona([FAULTS[fault]])) as url:
        user = user_at(url)
        assert user.reply("The name is Ada.", ASKING) == "Sure, Ada it is!"


def test_a_user_that_fails_for_long_aborts_the_episode_which_is_played_again() -> None:
    persona, faults = Persona(), [FAULTS["HTML"][1]] * 3

    def reply(handler: BaseHTTPRequestHandler, question: dict[str, Any]) -> None:
        is_first = f"The name is {name_of(TASKS[0])}." in question["messages"][1]["content"]
        send(handler, faults.pop()) if is_first and faults else persona(handler, question)

    with serving(reply) as url:
        played = play(False, users={"desk": user_at(url)})
    assert [one.interruptions for one in played] == [1, 0, 0, 0]
    assert {one.status for one in played} == {"COMPLETED"}


@pytest.mark.parametrize("fault", ["down", "slow", "HTML", "a wrong key"])
def test_a_user_that_never_answers_ends_the_run_with_one_message(fault: str) -> None:
    def reply(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
        body = {"HTML": FAULTS["HTML"][1], "slow": b"{" + b" " * 9}.get(fault, b"no such key")
        send(handler, body, 401 if fault == "a wrong key" else 200, promised=10_000 if fault == "slow" else None)
        if fault == "slow":
            handler.wfile.flush()
            handler.connection.settimeout(5)
            handler.connection.recv(1)  # until whoever asked has had enough

    patience = replace(simulated_user.PATIENCE, attempts=2, unreadable=2, answer_seconds=0.1)
    with serving(reply) as url:
        user = user_at("http://127.0.0.1:9/v1" if fault == "down" else url, patience)
        with pytest.raises(UserError, match="interrupted 3 times") as caught:
            play(False, users={"desk": user})
    assert caught.value.exit_code == ExitCode.FAILED
    assert "the simulated user at http://127.0.0.1" in caught.value.message and KEY not in str(caught.value)


def test_a_user_that_refuses_is_an_interruption_that_names_the_endpoint() -> None:
    with serving(lambda handler, _: send(handler, b"no such model", 404)) as url, pytest.raises(UserSilent, match=f"{url}/chat"):
        user_at(url).reply("You asked.", ASKING)


def test_every_world_that_a_spec_may_give_a_user_has_one_that_knows_what_it_wants() -> None:
    assert set(USER_WORLDS) <= set(GENERATOR_WORLDS)
    for name in USER_WORLDS:
        world: Any = make_world(name, {})
        task = world.tasks("train", 1, 0)[0]
        record = world.task_of(task)
        assert record.instruction in world.brief(record) and world.start(task).user is None
