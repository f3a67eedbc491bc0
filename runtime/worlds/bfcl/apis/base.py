"""What the eight simulated services share: a state that is plain data, and functions that change it or say why they cannot."""

import copy
from collections.abc import Mapping
from typing import Any, ClassVar


class ApiError(Exception):
    """A call that the service refuses. It becomes the observation `{"error": ...}`."""


class Api:
    """One service. Its public methods are its functions; its public attributes are its state."""

    INITIAL: ClassVar[Mapping[str, Any]] = {}  # the state where a task's `initial_config` says nothing

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Start from a task's configuration; keys that are no state of this service are ignored, as the benchmark does."""
        for name, value in self.INITIAL.items():
            setattr(self, name, copy.deepcopy(config.get(name, value)))

    def state(self) -> dict[str, Any]:
        """What two runs are compared by."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


def require(condition: Any, message: str) -> None:
    """Refuse a call whose condition does not hold.

    Raises:
        ApiError: it does not.
    """
    if not condition:
        raise ApiError(message)
