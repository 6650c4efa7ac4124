"""What a peer answered since its start, and who had asked.

Counted once for each result that this peer recorded. How many callers are told apart is bounded: callers choose
their names. The rest is counted under one name.
"""

from dataclasses import dataclass
from typing import Final

from contracts.card import Calls
from contracts.outcome import Status
from contracts.task import Task

CALLERS_MAX: Final = 100
OTHERS: Final = "(others)"
NAME_LENGTH_MAX: Final = 64

_FAILED = frozenset({Status.FAILED, Status.EXPIRED})


@dataclass(slots=True)
class Tally:
    """Answers of one capability."""

    answered: int = 0
    failed: int = 0


@dataclass(slots=True)
class _Count:
    count: int = 0
    last_at: float = 0.0


class Answered:
    """Counts of one peer."""

    def __init__(self) -> None:
        self._of: dict[str, Tally] = {}
        self._by: dict[tuple[str, str, str, str], _Count] = {}

    def note(self, capability: str, task: Task, status: Status, *, at: float) -> None:
        """Count an answer that was recorded."""
        tally = self.of(capability)
        tally.answered += 1
        tally.failed += status in _FAILED
        caller = task.caller
        sender = task.sender
        agent, version = (sender.agent, sender.version) if sender is not None else ("", "")
        key = (capability, caller, agent, version)
        known = self._by.get(key)
        if known is None:
            known = self._room_for(key)
        known.count += 1
        known.last_at = at

    def of(self, capability: str) -> Tally:
        """The answers of a capability so far; it goes on counting."""
        return self._of.setdefault(capability, Tally())

    def calls(self) -> tuple[Calls, ...]:
        """What was answered, by who had asked: the most frequent first."""
        found = [
            Calls(
                capability=capability,
                caller=caller,
                agent=agent,
                version=version,
                count=known.count,
                last_at=known.last_at,
            )
            for (capability, caller, agent, version), known in self._by.items()
        ]
        return tuple(sorted(found, key=lambda calls: -calls.count))

    def _room_for(self, key: tuple[str, str, str, str]) -> _Count:
        capability, caller, agent, version = key
        key = (capability, caller, agent[:NAME_LENGTH_MAX], version[:NAME_LENGTH_MAX])
        # One place is kept for the others of each capability, which are as few as the peer's capabilities.
        if key not in self._by and len(self._by) >= CALLERS_MAX - len(self._of):
            key = (capability, "", OTHERS, "")
        return self._by.setdefault(key, _Count())
