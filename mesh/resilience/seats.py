"""Seats that peers share fairly: who may take a free one, from what all of them say of themselves.

Every peer comes to the same answer from the same record, so that each takes its own part and they rarely collide. A
free seat goes to the peer that holds fewest, and among equals to the one that stands in line longest. What is allotted
to a peer that does not take it stays free until its holding ends.
"""

import heapq
from collections.abc import Mapping

from contracts.limit import Holding


def alive(holdings: Mapping[str, Holding], now: float) -> dict[str, Holding]:
    """The holdings that count: who held a lapsed one died, or was cut off."""
    return {peer: holding for peer, holding in holdings.items() if holding.until > now}


def allotted(holdings: Mapping[str, Holding], peer: str, count: int) -> int:
    """How many more of `count` seats one peer may take now."""
    free = count - sum(holding.seats for holding in holdings.values())
    line = [(holding.seats, holding.since, name, holding.wants) for name, holding in holdings.items() if holding.wants]
    heapq.heapify(line)
    mine = 0
    while free > 0 and line:
        seats, since, name, wants = line[0]
        mine += name == peer
        free -= 1
        if wants > 1:
            heapq.heapreplace(line, (seats + 1, since, name, wants - 1))
        else:
            heapq.heappop(line)
    return mine
