"""Comparing a whole mesh with what is wanted of it, and making it so.

`look` changes nothing. `carry_out` makes what is missing first and changes what exists then, streams before
consumers, and looks again when it is done. Each step is one request that the server takes or refuses as a whole, so a
run that ends midway leaves a mesh that works, and the next run goes on. Two runs at once may each have their turn: the
last one wins, field by field of what it wants, and the other says that it was overtaken.

Peers never change what exists (`mesh.bus.topology.ensure`), so a rollout whose replicas differ in settings changes
nothing. This needs an operator's rights.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, TypeVar

from contracts.subjects import LANES, served_by
from mesh.bus import shared_timers, topology
from mesh.bus.changes import Change, Way, allowed, changes
from mesh.bus.connection import Bus
from mesh.bus.records import read_many
from mesh.bus.replies import CONSUMER_NOT_FOUND, STREAM_NOT_FOUND, ApiError
from mesh.bus.topology import Spec
from mesh.errors import BusUnavailable, PublishUnconfirmed, SetupError, TopologyDrift
from mesh.scheduling.lanes import ORDER

TRIES: Final = 5
AGAIN_S: Final = 1.0
"""A stream that elects a leader, or a cluster that is busy with a change, answers a moment later."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Unserved:
    """A capability that has consumers, and that no live peer serves and nobody named."""

    capability: str
    waiting: int
    in_hand: int
    parked: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What differs between a mesh and what is wanted of it."""

    changes: tuple[Change, ...] = ()
    unserved: tuple[Unserved, ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """One step that was taken: `what` was made or changed, or why not."""

    what: str
    is_done: bool = True
    reason: str = ""


async def wanted(bus: Bus, *, named: Mapping[str, int], bounds: Mapping[str, int]) -> list[Spec]:
    """Every stream and consumer that the mesh should have: of `named` capabilities and of those that have any.

    `named` and `bounds` say how many tasks may wait for a capability, `named` first; of a queue in neither, and of one
    that exists and is named with 0, nothing is wanted.
    """
    settings, specs = bus.settings, list(topology.of_mesh(bus.settings))
    there = await _consumers(bus)
    capabilities = {served_by(name) for name in there} - {""} | set(named)
    for capability in sorted(capabilities):
        bound = named.get(capability) or bounds.get(capability)
        for spec in topology.of_capability(settings, capability, queue_max=bound):
            if bound is None and spec.stream == settings.subjects.stream and spec.name not in there:
                lane = spec.name.partition("@")[2]
                specs.append(topology.consumer(settings, capability, lane, queue_max=settings.queue_max))
            else:
                specs.append(spec)
        more = [lane for lane in LANES if lane not in ORDER and f"{capability}@{lane}" in there]
        specs += [topology.consumer(settings, capability, lane, queue_max=bound) for lane in more]
    # A schedule may be set for a capability before its first peer starts.
    timed = {name.removeprefix(bus.subjects.timer_streams) for name in await topology.timer_streams(bus)}
    return [*specs, *(topology.timers(settings, capability) for capability in sorted(timed - capabilities))]


async def look(bus: Bus, specs: Iterable[Spec], *, served: Iterable[str]) -> Plan:
    """What differs from the specs, and which capabilities with consumers are not among the `served`."""
    found: list[Change] = []
    if (shared := await shared_timers.found(bus)) is not None:
        found.append(Change(shared, Way.MOVE, shared_timers.MEANS))
    for spec in specs:
        found += changes(spec, await topology.inspect(bus, spec))
    consumers = await _consumers(bus)
    kept = {served_by(name) for name in consumers} - {""}
    return Plan(tuple(found), tuple([await _unserved(bus, name, consumers) for name in sorted(kept - set(served))]))


async def carry_out(bus: Bus, specs: Sequence[Spec], *, with_care: bool = False) -> list[Done]:
    """Make and change what differs. Safe to repeat, and to run twice at once.

    What needs care is left alone unless `with_care`; what JetStream does not change is always left alone. What the
    server refuses is told and does not keep the rest from being done.

    Cancelled or failed midway, what was done stays.

    Raises:
        BusUnavailable, PublishUnconfirmed: no answer, although it was asked several times.
        BusError: timers that capabilities shared cannot be copied; those that are left stay where they are.
    """
    done: list[Done] = []
    made: list[Change] = []
    if (shared := await shared_timers.found(bus)) is not None:
        try:
            await patiently(partial(shared_timers.give_up_subjects, bus, shared))
        except SetupError as error:
            done.append(Done(f"stream {shared}", is_done=False, reason=str(error)))
            shared = None
    # Consumers need their streams.
    for spec in sorted(specs, key=lambda spec: spec.kind == "consumer"):
        account = await patiently(partial(topology.inspect, bus, spec))
        now = allowed(changes(spec, account), with_care=with_care)
        if not now:
            continue
        try:
            if account is None:
                if await patiently(partial(topology.create, bus, spec)):
                    done.append(Done(f"made {spec.kind} {spec}"))
                else:
                    done.append(Done(f"{spec.kind} {spec} was made by somebody else meanwhile"))
                await topology.appeared(bus, spec)
            else:
                fields = {change.field for change in now}
                config = {field: value for field, value in spec.config.items() if field in fields}
                await patiently(partial(topology.update, bus, replace(spec, config=config), account["config"]))
                done += [Done(f"changed {change}") for change in now]
                made += now
        except (SetupError, TopologyDrift) as error:
            if not (account is None and spec.is_optional):
                done.append(Done(f"{spec.kind} {spec}", is_done=False, reason=str(error)))
    if shared is not None:
        moved = await patiently(partial(shared_timers.move, bus, shared))
        done.append(Done(f"moved {moved:,} timers and schedules from {shared}, and deleted it"))
    for change in made:
        account = await patiently(partial(topology.inspect, bus, change.spec))
        left = {other.field: other for other in changes(change.spec, account)}
        if (other := left.get(change.field)) is not None:
            reason = f"somebody else changed it meanwhile: {other}"
            done.append(Done(str(change.spec), is_done=False, reason=reason))
    return done


async def prune(bus: Bus, capability: str) -> list[Done]:
    """Delete the consumers and the timers' stream of a capability. Safe to repeat.

    A task that is submitted meanwhile stays in the stream, and the next peer of the capability makes its consumers. The
    server deletes no stream on condition: a timer that is set at the very moment of it goes with it.

    Raises:
        SetupError: tasks or parks stand for it, or timers are set; nothing was deleted, or (where they came meanwhile)
            the consumers alone.
        ApiError: the server refuses; it wants an operator's rights.
    """
    stands = await _stands_for(bus, capability)
    if stands:
        told = ", ".join(f"{count:,} {what}" for what, count in stands.items())
        raise SetupError(f"{capability} is not deleted: {told} stand for it; let a peer finish them, or cancel them")
    done: list[Done] = []
    for name in sorted(await _consumers(bus)):
        if served_by(name) != capability:
            continue
        try:
            await bus.api(f"CONSUMER.DELETE.{bus.subjects.stream}.{name}")
        except ApiError as error:
            if error.code != CONSUMER_NOT_FOUND:
                raise
        else:
            done.append(Done(f"deleted consumer {bus.subjects.stream} > {name}"))
    if set_meanwhile := await _timers_set(bus, capability):
        raise SetupError(f"the timers of {capability} are not deleted: {set_meanwhile:,} were set meanwhile")
    stream = bus.subjects.timer_stream(capability)
    try:
        await bus.api(f"STREAM.DELETE.{stream}")
    except ApiError as error:
        if error.code != STREAM_NOT_FOUND:
            raise
    else:
        done.append(Done(f"deleted stream {stream}"))
    return done


async def _unserved(bus: Bus, capability: str, consumers: Iterable[str]) -> Unserved:
    waiting = in_hand = 0
    for name in consumers:
        if served_by(name) == capability:
            info = await topology.inspect(bus, topology.consumer(bus.settings, capability, name.partition("@")[2]))
            waiting += info["num_pending"] if info else 0
            in_hand += info["num_ack_pending"] if info else 0
    return Unserved(capability, waiting, in_hand, len(await _parked(bus, capability)))


async def _stands_for(bus: Bus, capability: str) -> dict[str, int]:
    subjects = bus.subjects
    tasks = [await topology.count(bus, subjects.tasks_of(capability, lane)) for lane in ("", *LANES)]
    wakes = [await topology.count(bus, wakes) for wakes in subjects.wakes_of(capability)]
    found = {"tasks": sum(tasks), "wakes": sum(wakes), "parks": len(await _parked(bus, capability))}
    found["timers and schedules"] = await _timers_set(bus, capability)
    return {what: count for what, count in found.items() if count}


async def _timers_set(bus: Bus, capability: str) -> int:
    stream = await topology.inspect(bus, topology.timers(bus.settings, capability))
    return int(stream["state"]["messages"]) if stream else 0


async def _parked(bus: Bus, capability: str) -> list[str]:
    """Subjects of a capability's parks without a result; of those that have one nothing is left to do."""
    subjects = bus.subjects
    parks = await topology.every_queued(bus, subjects.parks_of(capability))
    results = [subjects.result(subjects.parse(park).identity) for park in parks]
    found = await read_many(bus, results)
    return [park for park, result in zip(parks, found, strict=True) if result is None]


async def _consumers(bus: Bus) -> set[str]:
    try:
        return await topology.served(bus)
    except ApiError as error:
        if error.code == STREAM_NOT_FOUND:
            return set()
        raise


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """What a request comes to that is safe to repeat.

    Raises:
        BusUnavailable, PublishUnconfirmed: nobody answered, several times.
    """
    for _ in range(TRIES - 1):
        try:
            return await ask()
        except (BusUnavailable, PublishUnconfirmed):
            await asyncio.sleep(AGAIN_S)
    return await ask()
