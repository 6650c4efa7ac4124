"""The central queue: what one line before all servers, first come first served, would do with the same trace.

It costs nothing to hand a task over, and the fastest idle server takes it. With equal servers this is M/G/k, the
bound that the policies are held against; with slower ones among them it is a reference, not a bound.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ops.bench.scheduling.fleets import PEERS, Fleet, Trace


@dataclass(frozen=True, slots=True)
class Server:
    """Does one task at a time, from `from_s` on; `slowness` is asked when a task starts."""

    slowness: Callable[[float], float]
    from_s: float = 0.0


def servers_of(fleet: Fleet) -> list[Server]:
    """Every slot of every peer."""
    return [
        Server(lambda at_s, peer=peer: fleet.slowness(peer, at_s), fleet.comes_at_s(peer))  # type: ignore[misc]
        for peer in range(PEERS)
        for _ in range(fleet.slots)
    ]


def simulate(trace: Trace, servers: Sequence[Server]) -> list[float]:
    """Seconds from each task's arrival to its end."""
    busy = [(server.from_s, number) for number, server in enumerate(servers)]
    heapq.heapify(busy)
    idle: set[int] = set()
    sojourns_s = []
    for arrival_s, work_s in zip(trace.arrivals_s, trace.works_s, strict=True):
        while busy and busy[0][0] <= arrival_s:
            idle.add(heapq.heappop(busy)[1])
        start_s = arrival_s
        if idle:
            server = min(idle, key=lambda number: (servers[number].slowness(start_s), number))
            idle.remove(server)
        else:
            start_s, server = heapq.heappop(busy)
        end_s = start_s + work_s * servers[server].slowness(start_s)
        heapq.heappush(busy, (end_s, server))
        sojourns_s.append(end_s - arrival_s)
    return sojourns_s
