"""The part of the language that says who plays the roles of self-play, how often, and what models may use in all.

Source: Agents-A1 report (arXiv 2606.30616), section on the knowledge-action infrastructure, which names the roles and states none
of the numbers.
"""

# ruff: noqa: RUF009  (spec_field returns a dataclass field, never a shared default)

from collections.abc import Iterator
from dataclasses import dataclass

from .fields import Identity, spec_field
from .machine import Service
from .training import Sampling

LABEL = Identity.LABEL
PLAYERS = ("proposer", "solver", "verifier")
WHO = "`base`, `student.sft`, a teacher, or an endpoint; left out, the world's program"


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What the models of a source may use in all, over every launch of the run. More of it lets a run that stopped go on."""

    tokens: int | None = spec_field("Tokens that they may read and write.", default=None, minimum=1, unit="tokens", identity=LABEL)
    money: float | None = spec_field(
        "Money that they may cost, in the unit of the prices.", default=None, exclusive_minimum=0, identity=LABEL
    )
    read_price: float = spec_field("Price of a million tokens that are read.", default=0.0, minimum=0, identity=LABEL)
    written_price: float = spec_field("Price of a million tokens that are written.", default=0.0, minimum=0, identity=LABEL)
    requests_per_minute: float | None = spec_field("Most requests in a minute.", default=None, exclusive_minimum=0, identity=LABEL)


@dataclass(frozen=True, kw_only=True, slots=True)
class SelfPlay:
    """Who plays the roles in a world that writes its own tasks. The five checks decide, whoever plays."""

    proposer: str | Service | None = spec_field(f"Who words the tasks: {WHO}.", default=None, examples=("student.sft",))
    solver: str | Service | None = spec_field(f"Who solves them: {WHO}.", default=None, examples=("student.sft",))
    verifier: str | Service | None = spec_field(
        f"Who may refuse what the checks accept: {WHO}, which refuses nothing.", default=None, examples=("base",)
    )
    attempts: int = spec_field("Most attempts at a task.", default=2, minimum=1)
    rounds: int = spec_field("Most tasks that are proposed of a region of the graph, until one is accepted.", default=2, minimum=1)
    sampling: Sampling = spec_field("How the models are sampled.", default_factory=lambda: Sampling())
    budget: Budget = spec_field("What the models may use.", default_factory=lambda: Budget(), identity=LABEL)

    @property
    def models(self) -> dict[str, str]:
        """The models of the run that play, by role."""
        return {role: who for role, who in self._players() if isinstance(who, str)}

    @property
    def services(self) -> dict[str, Service]:
        """The endpoints that play, by role."""
        return {role: who for role, who in self._players() if isinstance(who, Service)}

    def _players(self) -> Iterator[tuple[str, str | Service | None]]:
        return ((role, getattr(self, role)) for role in PLAYERS)
