"""Which lane a free slot is offered to: urgent before normal before bulk, and none starves.

Rules.
- Only a pull that is served, refused or left waiting tells whether a lane is empty, and what is known of it is void
  when every slot was taken for a while.
- A lane that may have work is looked at (a pull of one that does not wait) before the slots go to the one below it.
- A lane that has more work than was just handed over has all free slots.
- Slots of a lane that is known to be empty stay on offer there, and are offered to the next lane as well. Two lanes
  may so fill one slot at the same moment; then a task stands in line for a slot that is about to be free.
- A lower lane that may have work is looked at after so many starts from others: normal tasks have at least one start
  of 9, bulk one of 17.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

URGENT = "urgent"
NORMAL = ""
BULK = "bulk"
ORDER = (URGENT, NORMAL, BULK)

EMPTY_AFTER_S = 0.02
"""A pull that waits so long shows that its lane is empty."""
_DUE_AFTER = {NORMAL: 8, BULK: 16}


class Known(Enum):
    """What is known of a lane."""

    NOTHING = 0
    EMPTY = 1
    BACKLOG = 2


@dataclass(frozen=True, slots=True)
class Step:
    """Offer slots to a lane. A look takes one task if one is there, and does not wait."""

    lane: str
    slots: int
    is_look: bool = False


class Lanes:
    """What is known of the lanes of one capability, and whose turn it is."""

    def __init__(self) -> None:
        self._known = dict.fromkeys(ORDER, Known.NOTHING)
        self._since = dict.fromkeys(_DUE_AFTER, 0)

    def known(self, lane: str) -> Known:
        return self._known[lane]

    def arrived(self, lane: str, *, pending: int) -> None:
        """A task of the lane was handed over, so many wait behind it."""
        self._known[lane] = Known.BACKLOG if pending else Known.EMPTY
        for other in self._since:
            self._since[other] = 0 if other == lane else self._since[other] + 1

    def is_empty(self, lane: str) -> None:
        """A look found nothing, or a pull waited."""
        self._known[lane] = Known.EMPTY
        if lane in self._since:
            self._since[lane] = 0

    def are_full(self) -> None:
        """Every slot is taken: what is known of the lanes will be old when one is free."""
        self._known = {lane: known if known is Known.BACKLOG else Known.NOTHING for lane, known in self._known.items()}

    def plan(self, free: int, offered: Mapping[str, int]) -> list[Step]:
        """Where to offer free slots, beside what is on offer already."""
        if free <= 0:
            return []
        steps = [
            Step(lane, 1, is_look=True)
            for lane, after in _DUE_AFTER.items()
            if self._since[lane] >= after and self._known[lane] is not Known.EMPTY and not offered[lane]
        ]
        for lane in ORDER:
            slots = free - offered[lane]
            known = self._known[lane]
            if lane == URGENT and known is Known.NOTHING:
                if not offered[lane]:
                    steps.append(Step(lane, 1, is_look=True))
                continue
            if slots > 0:
                steps.append(Step(lane, slots))
            if known is not Known.EMPTY:
                break
        looked = {step.lane for step in steps if step.is_look}
        return [step for step in steps if step.is_look or step.lane not in looked]
