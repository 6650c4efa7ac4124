"""The bid: how many tasks must wait before one more of them is better served here than left to faster peers.

Every pull names it (`min_pending`), and the server compares it with the queue at the moment of hand-over: a peer
that is as fast as the others bids 1 and takes whatever comes, a slow one is passed over until the queue is so deep
that waiting for a faster peer would take longer. So work is bound to a peer as late as it can be, nothing is
prefetched to keep a slow peer out, and no gossip decides: beats tell peers how fast the others are, which changes
slowly, and the server knows how deep the queue is, which changes fast.

The rule is the threshold of the slow-server problem (W. Lin and P. R. Kumar, "Optimal control of a queueing system
with two heterogeneous servers", 1984): with faster peers that finish `rate` tasks a second, the task at place n of
the queue starts there after n / rate seconds, so this peer helps from about n = rate x (own delay - theirs) on. A
quarter of that is bid: tasks behind the one that is taken gain as well.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

BEST = 1
HANDOVER_S = 0.002
"""What handing a task over costs beside its run: peers that differ by less do not differ."""
ALIKE = 2.0
"""Peers whose delays differ by less than this factor are alike: averages of a few runs say no more."""
PATIENCE = 0.25
BID_MAX = 1_000_000

PROBE_S = 2.0
"""How long a peer that is passed over waits before it takes a task all the same."""
PROBE_SHARE = 5
"""A probe costs a task this peer's delay: there are at least so many delays between two."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What one peer offers: slots, and the seconds in which one of them serves a task, by class where it is known."""

    slots: int
    delay_s: float
    classes: Mapping[str, float] = field(default_factory=dict)


def delay_s(mean_s: float, *, slots: int, standing: int = 0, lag_s: float = 0.0) -> float:
    """In how many seconds a slot serves one more task.

    That is its mean run, stretched by tasks that stand in line for a slot here already, and what the peer's event
    loop is late.
    """
    return mean_s * (1 + standing / slots) + lag_s


def bid(own: Offer, others: Iterable[Offer]) -> int:
    """How many tasks must wait before one more is better served here, 1 for at once.

    `others` are peers that take work; one without a known delay is taken for a peer like this one.
    """
    slots, rate = _faster(own, others)
    if not slots:
        return BEST
    return min(BID_MAX, BEST + int(PATIENCE * rate * (own.delay_s + HANDOVER_S - slots / rate)))


def is_at_pace(run_s: float, own: Offer, others: Iterable[Offer]) -> bool:
    """Whether a run took no longer than it does on peers that are clearly faster; False where there are none."""
    slots, rate = _faster(own, others)
    return bool(slots) and run_s + HANDOVER_S < ALIKE * slots / rate


def probe_after_s(own_delay_s: float) -> float:
    """How long a peer lets itself be passed over before it takes one task to see whether it is still slow."""
    return max(PROBE_S, PROBE_SHARE * own_delay_s)


def _faster(own: Offer, others: Iterable[Offer]) -> tuple[int, float]:
    """Slots of peers that are clearly faster, and the tasks a second that they finish."""
    slots, rate = 0, 0.0
    for other in others:
        other_s = _comparable_s(other, own) + HANDOVER_S
        if other.delay_s > 0 and other_s * ALIKE < own.delay_s + HANDOVER_S:
            slots += other.slots
            rate += other.slots / other_s
    return slots, rate


def _comparable_s(other: Offer, own: Offer) -> float:
    """The other's delay, had it the mix of classes that this peer has."""
    shared = own.classes.keys() & other.classes.keys()
    own_s = sum(own.classes[class_] for class_ in shared)
    if not own_s:
        return other.delay_s
    return own.delay_s * sum(other.classes[class_] for class_ in shared) / own_s
