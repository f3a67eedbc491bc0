"""IFBench as a world: the answer keeps every constraint of its prompt, or it does not. The file publishes no answers."""

from collections.abc import Iterator

from ....specs.worlds import IfBenchSettings
from ..protocol import Message, Solver, Task, WorldError
from ..rows import AnswerEpisode, RowWorld, bad_field, read_json_lines
from .constraints import CHECKS, Asked


class IfBenchWorld(RowWorld):
    """Prompts with constraints."""

    name = "ifbench"

    def __init__(self, settings: IfBenchSettings) -> None:
        super().__init__(settings.split)
        self._data = settings.data

    def read(self) -> Iterator[Task]:
        for row in read_json_lines(self._data):
            prompt, kinds, arguments = row.get("prompt"), row.get("instruction_id_list"), row.get("kwargs")
            if not isinstance(prompt, str) or not isinstance(kinds, list) or not isinstance(arguments, list):
                raise bad_field(self._data, row, "it wants `prompt`, `instruction_id_list` and `kwargs`")
            if not kinds or len(kinds) != len(arguments):
                raise bad_field(self._data, row, f"{len(kinds)} instructions, {len(arguments)} sets of arguments")
            unknown = sorted({str(kind) for kind in kinds if kind not in CHECKS})
            if unknown:
                raise bad_field(self._data, row, f"no check for {', '.join(unknown)}")
            given = [{name: value for name, value in (one or {}).items() if value is not None} for one in arguments]
            payload = {"prompt": prompt, "constraints": [list(pair) for pair in zip(kinds, given, strict=True)]}
            yield Task(world=self.name, key=prompt.strip(), payload=payload)

    def start(self, task: Task) -> "IfBenchEpisode":
        return IfBenchEpisode(task)

    def reference(self, task: Task) -> Solver:
        raise WorldError("IFBench publishes no answers, so nothing can be demonstrated", fix="take demonstrations from elsewhere")


class IfBenchEpisode(AnswerEpisode):
    """One prompt."""

    def opening(self) -> list[Message]:
        return [{"role": "user", "content": self.task.payload["prompt"]}]

    def judge(self, message: Message) -> bool:
        answer = str(message.get("content") or "")
        prompt = self.task.payload["prompt"]
        return all(CHECKS[kind](answer, Asked(arguments, prompt)) for kind, arguments in self.task.payload["constraints"])
