"""Grade-school mathematics: GSM8K, read from its own file. The number at the end of the answer decides.

An answer's number is what follows its last `####`; without one, what its last `\\boxed{}` holds; else its last number.
"""

import re
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation

from ...specs.worlds import Gsm8kSettings
from .protocol import Message, Task
from .rows import AnswerEpisode, RowWorld, Script, bad_field, read_json_lines

_NUMBER = re.compile(r"-?\$?\s?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_CALCULATION = re.compile(r"<<[^<>]*>>")  # the data's calculator annotations
MOST_CHARACTERS = 200_000


class Gsm8kWorld(RowWorld):
    """Questions with one number for an answer."""

    name = "gsm8k"

    def __init__(self, settings: Gsm8kSettings) -> None:
        super().__init__(settings.split)
        self._data = settings.data

    def read(self) -> Iterator[Task]:
        for row in read_json_lines(self._data):
            question, answer = row.get("question"), row.get("answer")
            if not isinstance(question, str) or not isinstance(answer, str) or "####" not in answer or final_number(answer) is None:
                raise bad_field(self._data, row, "it wants `question`, and `answer` that ends in `#### number`")
            yield Task(world=self.name, key=question.strip(), payload={"question": question, "answer": answer})

    def start(self, task: Task) -> "Gsm8kEpisode":
        return Gsm8kEpisode(task)

    def reference(self, task: Task) -> Script:
        return Script([{"role": "assistant", "content": _CALCULATION.sub("", task.payload["answer"])}])


class Gsm8kEpisode(AnswerEpisode):
    """One question."""

    def opening(self) -> list[Message]:
        ask = "Solve the problem step by step. End with a line `#### ` and the number."
        return [{"role": "system", "content": ask}, {"role": "user", "content": self.task.payload["question"]}]

    def judge(self, message: Message) -> bool:
        found = final_number(str(message.get("content") or ""))
        return found is not None and found == final_number(self.task.payload["answer"])


def final_number(text: str) -> Decimal | None:
    """The number that a text ends in, as the verifier reads it; None where there is none."""
    text = text[-MOST_CHARACTERS:]
    if "####" in text:
        after = _NUMBER.match(text.rpartition("####")[2].lstrip())
        found = [after[0]] if after else []
    elif boxed := _BOXED.findall(text):
        found = _NUMBER.findall(boxed[-1])[:1]
    else:
        found = _NUMBER.findall(text)[-1:]
    try:
        return Decimal(re.sub(r"[,$\s]", "", found[0])) if found else None
    except InvalidOperation:
        return None
