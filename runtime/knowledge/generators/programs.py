"""Programs of an episode, in the sandbox: each in a process of its own, and the same program only once.

What a program printed is kept by the program's content address, as it sees nothing but itself: no clock that matters to a task, no
network, no files of another run.
"""

from collections import OrderedDict

from ...worlds.sandbox import run_python
from ..graph import address

KEPT = 16_384  # results


class Programs:
    """Runs programs, with a bound on what each may take.

    Args:
        characters: of an output that are kept.
    """

    def __init__(self, *, seconds: float, memory_mib: int, characters: int) -> None:
        self._seconds, self._memory_mib, self._characters = seconds, memory_mib, characters
        self._kept: OrderedDict[str, str] = OrderedDict()

    def output(self, program: str) -> str:
        """What a program prints; a failure's traceback is output too."""
        key = address(program)
        if key not in self._kept:
            ran = run_python(program, seconds=self._seconds, memory_mib=self._memory_mib)
            self._kept[key] = ran.output[: self._characters]
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return self._kept[key]
