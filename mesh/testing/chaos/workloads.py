"""What is asked for during a game day: tasks by number, so that a seed asks for the same ones again."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from contracts.subjects import check_capability
from mesh.testing.chaos.agents import Flow, Job

BUILT_IN = "mesh.testing.chaos.agents:agent"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A task to be submitted.

    `is_doomed`: it ends as a dead letter. `is_workflow`: its runs may ask for others. `patience_s`: its submitter
    gives up so soon, and submits it again.
    """

    capability: str
    payload: Any
    is_doomed: bool = False
    is_workflow: bool = False
    patience_s: float | None = None


class Workload(Protocol):
    """Tasks that stand any number of runs: their effects outside the mesh are idempotent."""

    @property
    def targets(self) -> tuple[str, ...]:
        """Agents that its peers host, as `mesh run` takes them."""

    @property
    def is_strict(self) -> bool:
        """Whether every failure is planned, so that a dead letter too many, or too few, breaks a promise."""

    def wanted(self, number: int) -> Wanted:
        """The task with a number, the same one each time."""


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """Plain tasks that send others, tasks that fail for a while or for good, steps, children and timers."""

    seed: int
    targets: tuple[str, ...] = (BUILT_IN,)
    is_strict: bool = True

    def wanted(self, number: int) -> Wanted:
        dice = random.Random(f"{self.seed} task {number}")  # noqa: S311  # a seed that repeats a run, no secret
        kind = dice.random()
        if kind < 0.02:
            return Wanted("chaos-refuse", None, is_doomed=True)
        if kind < 0.25:
            return Wanted(
                "chaos-flow",
                Flow(children=dice.choice((0, 1, 3)), sleep_s=dice.choice((0.0, 0.2, 1.0)), run_s=0.01),
                is_workflow=True,
            )
        job = Job(
            run_s=dice.choice((0.0, 0.02, 0.1, 0.5, 1.0)),
            sends=dice.choice((0, 0, 1, 3)),
            failing=dice.choice((0.0, 0.0, 0.2)),
        )
        # Some submitters are too impatient to hear that they were heard.
        return Wanted("chaos-work", job, patience_s=dice.choice((None, None, None, 0.002)))


@dataclass(frozen=True, slots=True)
class OwnAgents:
    """An author's own agents, asked for one capability with the payloads in turn."""

    targets: tuple[str, ...]
    capability: str
    payloads: Sequence[Any]
    is_strict: bool = False

    def __post_init__(self) -> None:
        check_capability(self.capability)
        assert self.payloads, "at least one payload"

    def wanted(self, number: int) -> Wanted:
        return Wanted(self.capability, self.payloads[number % len(self.payloads)], is_workflow=True)
