"""How many slots to offer now, and in how large pulls."""

from dataclasses import dataclass

from mesh.scheduling.bids import BEST, HANDOVER_S

SHORT_S = 10 * HANDOVER_S
"""Runs shorter than this are worth fetching ahead when the queue is deep."""
SHORTEST_S = 1e-6
DEEP = 4
"""A queue is deep when so many tasks wait for each slot of the fleet."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One pull: so many slots, served while at least `bid` tasks wait."""

    slots: int
    bid: int = BEST


def slots_to_offer(slots: int, in_flight: int, offered: int) -> int:
    """Free slots to put into one more pull, 0 to wait.

    Every pull costs a message, so returned slots are collected while others are still on offer: with one
    slot each is offered at once, with a hundred a deep queue is fetched in batches of fifty.
    """
    free = slots - in_flight - offered
    if free <= 0:
        return 0
    return free if offered == 0 or 2 * free >= slots else 0


def asks(free: int, bid: int, *, probes: bool) -> tuple[Ask, ...]:
    """The pulls for free slots at a bid. A probe takes one task whatever the bid."""
    if free <= 0:
        return ()
    if bid == BEST or not probes:
        return (Ask(free, bid),)
    return (Ask(1), Ask(free - 1, bid)) if free > 1 else (Ask(1),)


def ahead(slots: int, mean_s: float, fleet_slots: int) -> Ask | None:
    """What to fetch beyond the slots, so that short tasks follow each other without a round trip between them.

    The server serves it only while the queue is so deep that each of these tasks would wait longer in it, so it ends
    with the queue by itself. None where tasks take long, or nothing is known of them.
    """
    if not 0 < mean_s <= SHORT_S:
        return None
    return Ask(min(slots, 1 + int(slots * HANDOVER_S / max(mean_s, SHORTEST_S))), DEEP * max(fleet_slots, slots))
