"""Rollouts: episodes of a policy in worlds.

What it does: an episode's next turn is generated, read by the renderer, answered by its world and extended, until the world is
done or a limit of the domain ends it. Token ids are only ever appended, but for the one turn that a forced answer rolls back;
nothing is tokenised twice. An embedded engine plays in lockstep: the next turn of every live episode is one batch, and the
simulated users of all of them are asked at once. An engine that takes many requests plays side by side: every episode goes on as
soon as its own turn and its own world are done. Either way at most `EPISODES_AT_ONCE` are open; of a finished one only its tokens,
messages and verdicts are kept.
What it does not do: choose tasks, score for a teacher, or train.

Statuses (Agents-A1, arXiv 2606.30616, training recipe): COMPLETED, the world said so. FORCED, the same after a limit on turns,
calls or context was hit and the domain's `finalize` asked for an answer. TRUNCATED, a limit on turns, calls, response, context or
time was hit: the prefix is kept, without the observation that did not fit or an end-of-turn that was not written. ABORTED, the
world or the engine was interrupted: the episode starts again, at most twice; no aborted episode is returned. DROPPED, the engine
wrote a turn with other weights than the trainer gave it: whoever gives it the weights again may have the episode played again, from
the start and with the same random numbers; no dropped episode is returned.
"""

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Literal, cast

from ..specs.diagnostics import ExitCode, UserError
from ..specs.model import Limits
from ..specs.reward import Reward
from .data.renderer import Renderer
from .engines.judge import at_once
from .engines.protocol import Engine, EngineInterrupted, Generation, SamplingSettings, StaleEngine
from .finalisation import Finalisation
from .judging import EpisodeJudge, Transcript, Verdict
from .rewards import compose_reward, process_score
from .worlds.protocol import Episode, Message, SimulatedUser, Step, TalkingEpisode, Task, World

RETRIES = 2
ANSWERED = ("COMPLETED", "FORCED")
EPISODES_AT_ONCE = 256  # open, per rank
TELL_SECONDS = 0.5  # between two words on how far they are
Status = Literal["COMPLETED", "FORCED", "TRUNCATED", "ABORTED", "DROPPED"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutRequest:
    """One episode to play."""

    domain: str
    task: Task
    limits: Limits
    reward: Reward
    group: int = 0  # episodes of one prompt share it; their rewards are normalised together


@dataclass(frozen=True, kw_only=True, slots=True)
class Trajectory:
    """One episode as it was played. `ids`, `written` and `logprobs` have one entry per token."""

    ids: tuple[int, ...]
    written: tuple[bool, ...]  # the policy wrote this token
    logprobs: tuple[float, ...]  # of the policy at temperature 1 without truncation; 0 where it did not write
    status: Status
    reward: float
    outcome: float
    process: float  # how right the steps were, 0 to 1
    domain: str
    task_key: str
    group: int
    turns: int
    interruptions: int  # how often the episode was aborted and started again
    dropped: int  # how often it was dropped and played again
    policy_version: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutProgress:
    """How far a batch of episodes is."""

    episodes: int
    finished: Mapping[Status, int]  # episodes by their status
    tokens: int  # of all episodes so far

    @property
    def done(self) -> int:
        return sum(self.finished.values())


class StaleEpisodes(StaleEngine):
    """Episodes were dropped. `kept`: the others of their batch, by their place in it."""

    def __init__(self, cause: StaleEngine, kept: Mapping[int, Trajectory], dropped: int) -> None:
        super().__init__(cause.found, cause.wanted)
        self.kept, self.dropped = kept, dropped


def collect(
    engine: Engine,
    renderers: Mapping[str, Renderer],
    worlds: Mapping[str, World],
    requests: Sequence[RolloutRequest],
    sampling: SamplingSettings,
    seed: int,
    on_progress: Callable[[RolloutProgress], None] = lambda progress: None,
    judge: EpisodeJudge | None = None,
    users: Mapping[str, SimulatedUser] = MappingProxyType({}),
    kept: Mapping[int, Trajectory] | None = None,
) -> list[Trajectory]:
    """Play every request once, and give its trajectory in the same order.

    Args:
        renderers: by domain.
        worlds: by domain.
        seed: decides every sample; each turn gets a seed of its own.
        on_progress: told after every turn in lockstep, and now and then side by side.
        users: who speaks for the user, by domain; elsewhere the world does.
        judge: decides where a reward asks for a judge; without one, the worlds decide.
        kept: what `StaleEpisodes` kept, by its place; the others are played again as they would have been.

    Raises:
        StaleEpisodes: some were dropped.
        UserError: an episode was interrupted three times (the message names its task and the last cause), or the judge failed.
    """
    found, version = dict(kept or {}), engine.policy_version
    playing = [
        _Play(
            place=place,
            request=one,
            of_domain=renderers[one.domain],
            world=worlds[one.domain],
            user=users.get(one.domain),
            dropped=int(kept is not None),
        )
        for place, one in enumerate(requests)
        if place not in found
    ]
    play_all = _side_by_side if engine.capabilities.concurrent else _in_lockstep
    play_all(engine, playing, sampling, seed, lambda: on_progress(_progress(playing)))
    fresh = [play for play in playing if play.stale is None]
    verdicts = judge.verdicts([play.transcript() for play in fresh]) if judge is not None else [Verdict()] * len(fresh)
    found |= {play.place: play.trajectory(version, verdict) for play, verdict in zip(fresh, verdicts, strict=True)}
    for play in playing:
        if play.stale is not None:
            raise StaleEpisodes(play.stale, found, len(requests) - len(found))
    return [found[place] for place in range(len(requests))]


def _progress(playing: Sequence["_Play"]) -> RolloutProgress:
    finished = Counter(play.status for play in playing if play.status is not None)
    return RolloutProgress(episodes=len(playing), finished=finished, tokens=sum(len(play.ids) for play in playing))


def _in_lockstep(
    engine: Engine, playing: Sequence["_Play"], sampling: SamplingSettings, seed: int, tell: Callable[[], None]
) -> None:
    """One batch a turn, in waves: a wave of the same rows to its end lets an engine keep what it has read of them."""
    turn = 0
    for first in range(0, len(playing), EPISODES_AT_ONCE):
        wave = playing[first : first + EPISODES_AT_ONCE]
        for play in wave:
            play.guard(play.open)
        while live := [play for play in wave if play.status is None]:
            turn += 1
            try:
                generations = engine.generate(
                    [play.ids for play in live],
                    limits=[play.turn_limit for play in live],
                    sampling=sampling,
                    stop_ids=sorted({play.renderer.tokenizer.end_of_turn_id for play in live}),
                    seed=_turn_seed(seed, turn),
                )
            except EngineInterrupted as cause:
                for play in live:
                    play.abort(cause)
                continue
            turns = [(play, partial(play.take_turn, generation)) for play, generation in zip(live, generations, strict=True)]
            for play, take in turns:
                if play.user is None:
                    play.guard(take)
            at_once(lambda turn: turn[0].guard(turn[1]), [turn for turn in turns if turn[0].user is not None])
            tell()


def _side_by_side(
    engine: Engine, playing: Sequence["_Play"], sampling: SamplingSettings, seed: int, tell: Callable[[], None]
) -> None:
    """One thread an episode. What an episode draws depends on its place and its turn alone, not on which comes first."""
    over = threading.Event()

    def play_out(play: _Play) -> None:
        play.guard(play.open)
        while play.status is None and not over.is_set():
            try:
                (generation,) = engine.generate(
                    [play.ids],
                    limits=[play.turn_limit],
                    sampling=sampling,
                    stop_ids=[play.renderer.tokenizer.end_of_turn_id],
                    seed=_turn_seed(seed, play.generated + 1, play.place, play.interruptions),
                )
            except EngineInterrupted as cause:
                play.abort(cause)
            except StaleEngine as cause:
                play.drop(cause)
            else:
                play.guard(partial(play.take_turn, generation))

    with ThreadPoolExecutor(EPISODES_AT_ONCE, thread_name_prefix="episode") as pool:
        pending = [pool.submit(play_out, play) for play in playing]
        try:
            told = time.monotonic()
            for one in as_completed(pending):
                one.result()
                if time.monotonic() - told >= TELL_SECONDS:
                    told = time.monotonic()
                    tell()
        except BaseException:
            over.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _turn_seed(seed: int, *place: int) -> int:
    return int(hashlib.sha256(":".join(map(str, (seed, *place))).encode()).hexdigest()[:8], 16) >> 1


@dataclass(frozen=True, slots=True)
class _Mark:
    """How much of everything an episode had before its last turn and what the policy read ahead of it."""

    ids: int
    messages: int
    actions: int
    steps: int
    heard: tuple[Message, ...]


@dataclass(kw_only=True)
class _Play:
    """An episode in progress."""

    place: int  # in its batch: with the turn it decides what is drawn
    request: RolloutRequest
    of_domain: Renderer
    world: World
    user: SimulatedUser | None = None
    dropped: int = 0  # how often, before this
    interruptions: int = 0
    status: Status | None = None
    stale: StaleEngine | None = None  # why it was dropped
    turns: int = 0  # that the episode has
    generated: int = 0  # turns, with the one that was rolled back: no two draw with one seed
    cut_off_turns: int = 0
    outcome: float = 0.0  # stays 0 for an episode that a limit cut off: it never finished
    ids: list[int] = field(default_factory=list)
    written: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    actions: list[Message] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)  # of a finished episode: what the world recorded of the turns that it has
    episode: Episode | None = None  # while it is open
    renderer: Renderer = field(init=False)  # with the task's tools, while the episode is open
    finalisation: Finalisation | None = None
    mark: _Mark = _Mark(0, 0, 0, 0, ())
    rolled_back: range = range(0)  # steps of the world that the episode does not have
    began: float = 0.0

    def open(self) -> None:
        """Start, or start again, from the task's opening."""
        self.status, self.turns, self.generated, self.cut_off_turns, self.began = None, 0, 0, 0, time.monotonic()
        self.ids, self.written, self.logprobs, self.messages, self.actions = [], [], [], [], []
        finalize = self.request.limits.finalize
        self.finalisation = None if finalize is None else Finalisation(prompt=finalize.prompt)
        self.rolled_back = range(0)
        self.renderer = self.of_domain.offering(self.request.task.tools)
        self.require_words()
        self.episode = self.world.start(self.request.task)
        if self.user is not None:
            cast(TalkingEpisode, self.episode).user = self.user
        self._hear(self.episode.opening())
        if self._room == 0:
            self.status = "TRUNCATED"
            limit = self.request.limits.context_tokens
            self.ids, self.written, self.logprobs = self.ids[:limit], self.written[:limit], self.logprobs[:limit]

    @property
    def turn_limit(self) -> int:
        """Most tokens of the next turn; at least 1 while the episode is live."""
        return min(self.request.limits.response_tokens, self._room)

    @property
    def _room(self) -> int:
        return max(0, self.request.limits.context_tokens - self._reserve - len(self.ids))

    @property
    def _reserve(self) -> int:
        """Tokens kept free for the forced answer: what asks for it, and a whole turn."""
        if self.finalisation is None or self.finalisation.asked:
            return 0
        prompt = {"role": "user", "content": self.finalisation.prompt}
        return len(self.renderer.extend([prompt])) + self.request.limits.response_tokens

    @property
    def _is_late(self) -> bool:
        seconds = self.request.limits.wall_seconds
        return seconds is not None and time.monotonic() - self.began >= seconds

    def require_words(self) -> None:
        """Refuse tools that the tokenizer cannot call, and a forced answer that it has no words to ask for.

        Raises:
            UserError: exit code 3; or the chat template takes no user's message there.
        """
        self.renderer.require_readable_calls()
        if (finalize := self.request.limits.finalize) is None:
            return
        tokenizer = self.renderer.tokenizer
        self.renderer.extend([{"role": "tool", "content": "o"}, {"role": "user", "content": finalize.prompt}])
        lost = [word for word in finalize.prompt.split() if tokenizer.hf.unk_token_id in tokenizer.text_ids(word)]
        if lost:
            raise UserError(
                f"tokenizer {tokenizer.name} has no token for {', '.join(map(repr, lost))} of "
                f"domains.{self.request.domain}.limits.finalize.prompt",
                exit_code=ExitCode.SPEC,
                fix="write the prompt in words of its vocabulary",
            )

    def take_turn(self, generation: Generation) -> None:
        """Append what the policy wrote, let the world answer, and append the answer if there is room for it."""
        assert self.episode is not None
        asked = self.finalisation is not None and self.finalisation.asked
        fills_room = self._room == len(generation.ids) < self.request.limits.response_tokens
        self.ids += generation.ids
        self.written += [True] * len(generation.ids)
        self.logprobs += generation.logprobs
        self.turns += 1
        self.generated += 1
        if not generation.stopped:
            self.cut_off_turns += 1
            self._end(rolls_back=fills_room)
            return
        self.actions.append(self.renderer.parse(list(generation.ids)))
        self.messages.append(self.actions[-1])
        at_cap = self.turns == self.request.limits.turns
        if self._is_beyond_calls or (self.finalisation is not None and self.finalisation.refuses(self.actions[-1], at_cap=at_cap)):
            self._end(rolls_back=True)  # the call is not served; an answer would still have counted
            return
        observations = self.episode.act(self.actions[-1])
        if self.episode.done:
            self.outcome = self.episode.outcome()
            self.status = "FORCED" if asked else "COMPLETED"
        elif at_cap or asked or self._is_late:
            self._end(rolls_back=False)
        elif len(self.renderer.extend(observations)) >= self._room:
            self._end(rolls_back=True)
        else:
            self._hear(observations)

    @property
    def _is_beyond_calls(self) -> bool:
        most = self.request.limits.tool_calls
        return most is not None and sum(len(action.get("tool_calls", ())) for action in self.actions) > most

    def _end(self, *, rolls_back: bool) -> None:
        """Cut the episode off, or force an answer in place of its last turn.

        The roll-back keeps the episode on-policy. The last turn goes whole, back to before what the policy read ahead of it; that
        is read again with the user's message behind it. So every token that the policy wrote and that is still there was drawn
        given exactly the ids before it, the message is context that is never trained on, and the answer is drawn anew given all
        of it, with random numbers that the turn before it has not used.
        """
        assert self.episode is not None
        if not rolls_back or self.finalisation is None or self.finalisation.asked or self._is_late:
            self.status = "TRUNCATED"
            return
        mark = self.mark
        del self.ids[mark.ids :], self.written[mark.ids :], self.logprobs[mark.ids :]
        del self.messages[mark.messages :], self.actions[mark.actions :]
        self.rolled_back = range(mark.steps, len(self.episode.steps))  # of a call that was served, and whose answer had no room
        self.turns -= 1
        self.cut_off_turns = 0
        self._hear([*mark.heard, self.finalisation.ask()])
        if self._room == 0:
            self.status = "TRUNCATED"

    def guard(self, action: Callable[[], None]) -> None:
        """Do it; an exception of the world aborts the episode, so that one broken sandbox does not end a run."""
        try:
            action()
            if self.status is not None:
                self._let_go()
        except UserError:
            raise
        except Exception as cause:
            self.abort(cause)

    def abort(self, cause: Exception) -> None:
        """Throw the attempt away and start again.

        Raises:
            UserError: that was the last attempt.
        """
        self.status = "ABORTED"
        self.interruptions += 1
        if self.interruptions > RETRIES:
            raise UserError(
                f"an episode of domain `{self.request.domain}` was interrupted {self.interruptions} times "
                f"(task {self.request.task.key}): {type(cause).__name__}: {cause}",
                exit_code=ExitCode.FAILED,
                fix="what was finished is kept; mend the world or the engine and launch again",
            ) from cause
        self.guard(self.open)

    def drop(self, cause: StaleEngine) -> None:
        """Throw the episode away: its last answer is of other weights."""
        self.status, self.stale, self.episode = "DROPPED", cause, None
        self.ids, self.written, self.logprobs, self.messages, self.actions = [], [], [], [], []

    def _let_go(self) -> None:
        """Keep of the world's records what a reward reads, and let go of the world's episode, with whatever it holds open."""
        assert self.episode is not None
        kept = [step for number, step in enumerate(self.episode.steps) if number not in self.rolled_back]
        self.steps = [replace(step, state={}, action={}, observation=None) for step in kept]
        self.episode, self.renderer = None, self.of_domain

    def _hear(self, messages: Sequence[Message]) -> None:
        """Append what the policy reads before its next turn."""
        assert self.episode is not None
        self.mark = _Mark(len(self.ids), len(self.messages), len(self.actions), len(self.episode.steps), tuple(messages))
        self.messages += messages
        ids = self.renderer.extend(messages) if self.ids else self.renderer.open(messages)
        self.ids += ids
        self.written += [False] * len(ids)
        self.logprobs += [0.0] * len(ids)

    def transcript(self) -> Transcript:
        """The finished episode in words."""
        answer = str(self.actions[-1].get("content") or "") if self.status in ANSWERED else None
        return Transcript(
            task=self.request.task, world=self.world, reward=self.request.reward, messages=self.messages, answer=answer
        )

    def trajectory(self, policy_version: int, verdict: Verdict) -> Trajectory:
        """The finished episode in numbers."""
        assert self.status is not None
        outcome = self.outcome if verdict.outcome is None else verdict.outcome
        process = process_score(self.steps) if verdict.process is None else verdict.process
        return Trajectory(
            ids=tuple(self.ids),
            written=tuple(self.written),
            logprobs=tuple(self.logprobs),
            status=self.status,
            reward=compose_reward(
                self.request.reward,
                actions=self.actions,
                steps=self.steps,
                outcome=outcome,
                process=process,
                cut_off_turns=self.cut_off_turns,
            ),
            outcome=outcome,
            process=process,
            domain=self.request.domain,
            task_key=self.request.task.key,
            group=self.request.group,
            turns=self.turns,
            interruptions=self.interruptions,
            dropped=self.dropped,
            policy_version=policy_version,
        )
