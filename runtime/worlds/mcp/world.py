"""Questions whose tools are those of an MCP server. Every episode has a server of its own, so that none sees another's state.

A task is a row `question, answer`, and perhaps `calls`: what the demonstrator calls before it answers. The answer is right where it
is the row's, apart from case, spaces and a full stop, or the same number. Whatever a server does, a call is an observation: one
that hangs, floods or dies is answered with an error, and the next call finds a new server, as often as `restarts` allows.
"""

from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation
from functools import cached_property
from typing import Any

from ....specs.diagnostics import ExitCode, UserError
from ....specs.worlds import McpSettings
from ..protocol import Message, Step, Task
from ..rows import FunctionCall, RowWorld, Script, bad_field, call_message, calls_of, read_json_lines
from .client import McpServer, ServerCommand, ServerGone

CUT = "\n[the rest of the answer was cut off]"


class McpWorld(RowWorld):
    """Tasks of a file, tools of a server."""

    name = "mcp"

    def __init__(self, settings: McpSettings) -> None:
        super().__init__(settings.split)
        self.settings = settings
        self.how = ServerCommand(
            command=settings.command,
            environment=settings.environment,
            start_seconds=settings.start_seconds,
            call_seconds=settings.call_seconds,
        )

    @cached_property
    def tools(self) -> list[dict[str, Any]]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The server's tools as OpenAI function schemas; a server is started once to ask.

        Raises:
            UserError: it does not start, or says nothing sensible (exit 5).
        """
        try:
            server = McpServer(self.how)
            try:
                found = server.tools()
            finally:
                server.close()
        except ServerGone as error:
            fix = "run the command by hand; it must speak MCP on its standard input and output"
            raise UserError(f"MCP server `{' '.join(self.how.command)}`: {error}", exit_code=ExitCode.UNFIT, fix=fix) from error
        return [
            {
                "type": "function",
                "function": {"name": one.name, "description": one.description or "", "parameters": one.inputSchema},
            }
            for one in sorted(found, key=lambda one: one.name)
        ]

    def read(self) -> Iterator[Task]:
        for row in read_json_lines(self.settings.data):
            question, answer, calls = row.get("question"), row.get("answer"), row.get("calls", [])
            if not isinstance(question, str) or not isinstance(answer, str) or not isinstance(calls, list):
                raise bad_field(self.settings.data, row, "it wants `question` and `answer`, and `calls` as a list where it has any")
            if not all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in calls):
                raise bad_field(self.settings.data, row, "each of `calls` has a `name` and `arguments`")
            yield Task(world=self.name, key=question.strip(), payload={"question": question, "answer": answer, "calls": calls})

    def start(self, task: Task) -> "McpEpisode":
        return McpEpisode(self, task)

    def reference(self, task: Task) -> Script:
        calls = [FunctionCall(one["name"], one.get("arguments") or {}) for one in task.payload["calls"]]
        messages = [call_message([call], number) for number, call in enumerate(calls, start=1)]
        return Script([*messages, {"role": "assistant", "content": task.payload["answer"]}])


class McpEpisode:
    """One question in progress."""

    def __init__(self, world: McpWorld, task: Task) -> None:
        self.steps: list[Step] = []
        self.done = False
        self._world, self._task = world, task
        self._observations: list[str] = []
        self._server: McpServer | None = None
        self._starts_left = 1 + world.settings.restarts
        self._outcome = 0.0

    def opening(self) -> list[Message]:
        """The question."""
        return [{"role": "user", "content": self._task.payload["question"]}]

    def act(self, message: Message) -> list[Message]:
        """Carry out calls, or take the answer."""
        if self.done:
            return []
        if message.get("tool_calls"):
            return [self._carry_out(message, number, call) for number, call in enumerate(calls_of(message))]
        self.done = True
        if self._server is not None:
            self._server.close()
        answer = str(message.get("content") or "")
        self._outcome = float(same_answer(answer, self._task.payload["answer"]))
        self._record(message, None, self._outcome, readable=bool(answer.strip()))
        return []

    def outcome(self) -> float:
        """1.0 where the answer was right."""
        return self._outcome

    def _carry_out(self, message: Message, number: int, call: FunctionCall | None) -> Message:
        text, readable = self._answer(call)
        most = self._world.settings.observation_characters
        text = text if len(text) <= most else text[:most] + CUT
        self._record(message, text, None, readable=readable)
        self._observations.append(text)
        raw = message["tool_calls"][number]
        identity = raw.get("id") if isinstance(raw, dict) else None
        return {"role": "tool", "tool_call_id": identity or f"call_{len(self._observations)}", "content": text}

    def _answer(self, call: FunctionCall | None) -> tuple[str, bool]:
        if call is None:
            return "error: the call cannot be read: it wants a name and a JSON object of arguments", False
        if call.name not in {tool["function"]["name"] for tool in self._world.tools}:
            return f"error: there is no tool {call.name}", False
        try:
            if self._server is None:
                if not self._starts_left:
                    return "error: the server has ended too often in this episode", False
                self._starts_left -= 1
                self._server = McpServer(self._world.how)
            return self._server.call(call.name, call.arguments)
        except ServerGone as error:
            if self._server is not None:
                self._server.close()
                self._server = None
            return f"error: {error}", False

    def _record(self, message: Message, observation: str | None, verdict: float | None, *, readable: bool) -> None:
        state: Mapping[str, Any] = {"evidence": [self._task.key], "observations": list(self._observations)}
        self.steps.append(Step(state=state, action=message, observation=observation, verdict=verdict, readable=readable))


def same_answer(given: str, wanted: str) -> bool:
    """Whether two answers are the same text, apart from case, spaces and a full stop, or the same number."""
    one, other = (" ".join(text.split()).strip(" .").casefold() for text in (given, wanted))
    if one == other:
        return True
    try:
        return Decimal(one.replace(",", "")) == Decimal(other.replace(",", ""))
    except InvalidOperation:
        return False
