"""Putting a backup back, and what follows from that: the records are older than what happened.

What a restore rewinds, and what it does about it:

- Tasks that were accepted before the backup began and finished after it run again; those submitted since are unknown,
  and so are their results: their keys are free. So every capability comes up paused, with the list of what stands, and
  nothing runs before an operator has looked.
- Steps repeat under the idempotency keys that they had, so a far side that honours them does nothing twice. Steps on
  record in the backup are not repeated.
- What a consumer knew of what it had handed out is of another moment than the records: all of them hand out
  everything again, and the peers look for a record of each before they run it.
- Timers and wakes may be missing: every park without a result is woken, looks for itself, and parks again.
- Seats, buckets and breakers tell of calls that are long over: they are dropped. Limits that operators set stay.
- Sequences go back. A peer that went through it would take news for old: there may be none while it is done.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from contracts.subjects import LANES, Identity, key_breaker
from mesh.bus import backup, control, topology
from mesh.bus.backup import Manifest, StreamPart
from mesh.bus.connection import Bus
from mesh.bus.parks import publish_wake
from mesh.bus.plan import patiently
from mesh.bus.records import read_many
from mesh.bus.replies import STREAM_NOT_FOUND, ApiError
from mesh.errors import SetupError

AT_ONCE: Final = 200


@dataclass(frozen=True, slots=True)
class Unsettled:
    """A task that the backup has no result of: it runs, again perhaps, once its capability is resumed."""

    task: Identity
    lane: str = ""
    is_parked: bool = False


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore came to."""

    manifest: Manifest
    messages: int
    late: int
    paused: tuple[str, ...]
    """Capabilities that this restore paused; those that were paused in the backup stay so, and are not among them."""
    unsettled: tuple[Unsettled, ...] = ()
    woken: int = 0
    dropped: dict[str, int] = field(default_factory=dict)


async def restore(
    bus: Bus,
    folder: Path,
    *,
    replace: bool = False,
    replicas: int | None = None,
    by: str = "",
    told: Callable[[str], None],
) -> Restored:
    """Restore a whole backup, with every capability paused. `told` hears of each step.

    Nothing is touched unless the backup is whole. Safe to repeat with `replace`, which deletes what the mesh has now.
    There may be no live peers; who calls sees to that.

    Raises:
        Torn: the backup is not whole.
        SetupError: it is of another mesh, there are streams already, or the server refuses one.
        BusUnavailable, PublishUnconfirmed: the server does not answer; repeat it with `replace`.
    """
    manifest = backup.read_manifest(folder)
    subjects = bus.subjects
    if manifest.prefix != subjects.prefix:
        raise SetupError(
            f"this is a backup of the mesh {manifest.prefix!r}; MESH_PREFIX names {subjects.prefix!r}, and a record's"
            " subjects cannot be changed"
        )
    there = await topology.existing(bus)
    if there and not replace:
        raise SetupError(
            f"the mesh has streams: {', '.join(there)}; a restore takes their place with --replace, and what they hold"
            " is gone then"
        )
    await backup.check_can_put_back(bus)
    for name in there:
        told(f"deleting {name}")
        await _delete(bus, name)

    messages = late = 0
    paused: list[str] = []
    # Peers that start meanwhile find the pauses first and the tasks last.
    for part in sorted(manifest.streams, key=lambda part: _ORDER.get(_what(bus, part), 1)):
        told(f"restoring {part.name}")
        account = await backup.put_back(bus, part, folder, replicas=replicas)
        await _until_led(bus, part.name)
        messages += int(account["state"]["messages"])
        late += await backup.put_late(bus, part, folder)
        if part.name == subjects.control_stream:
            paused += await _pause(bus, manifest.capabilities, manifest, by=by)
    paused += await _pause(bus, sorted(await backup.capabilities(bus) - set(paused)), manifest, by=by)
    dropped = await _drop_stale(bus)
    for part in manifest.streams:
        await _hand_out_again(bus, part)
    queued, parked = await _queued(bus), await _parked(bus)
    told(f"waking {len(parked):,} parked tasks" if parked else "nothing is parked")
    return Restored(
        manifest=manifest,
        messages=messages,
        late=late,
        paused=tuple(sorted(set(paused))),
        unsettled=(*queued, *parked),
        woken=await _wake([one.task for one in parked], bus),
        dropped=dropped,
    )


async def resume(bus: Bus, restored: Restored) -> None:
    """Take back the pauses that a restore made. Safe to repeat."""
    for capability in restored.paused:
        await control.resume(bus, capability)


_ORDER: Final = {"control": 0, "tasks": 2}


def _what(bus: Bus, part: StreamPart) -> str:
    return {bus.subjects.control_stream: "control", bus.subjects.stream: "tasks"}.get(part.name, "")


async def _until_led(bus: Bus, stream: str) -> None:
    """Wait until a stream that was just made and its consumers answer: on a cluster each elects a leader.

    Raises:
        BusUnavailable, PublishUnconfirmed: one does not, for long.
    """
    await patiently(partial(bus.api, f"STREAM.INFO.{stream}"))
    for name in await patiently(partial(topology.consumers_of, bus, stream)):
        await patiently(partial(bus.api, f"CONSUMER.INFO.{stream}.{name}"))


async def _delete(bus: Bus, stream: str) -> None:
    try:
        await bus.api(f"STREAM.DELETE.{stream}")
    except ApiError as error:
        if error.code != STREAM_NOT_FOUND:
            raise SetupError(f"the server does not delete {stream}: {error}") from error


async def _pause(bus: Bus, capabilities: Iterable[str], manifest: Manifest, *, by: str) -> list[str]:
    standing = await control.pauses(bus)
    made = []
    for capability in capabilities:
        if capability not in standing:
            await control.pause(bus, capability, by=by, reason=f"restored from a backup of {_clock(manifest.began_at)}")
            made.append(capability)
    return made


async def _drop_stale(bus: Bus) -> dict[str, int]:
    """Forget seats, buckets and breakers. How many records of each went."""
    subjects = bus.subjects
    found = {}
    breakers = subjects.control_record(key_breaker("*"))
    for what, stream, purged in (
        ("limits in use", subjects.limit_stream, subjects.limits_stored),
        ("breakers", subjects.control_stream, breakers),
    ):
        try:
            found[what] = int((await bus.api(f"STREAM.PURGE.{stream}", {"filter": purged}))["purged"])
        except ApiError as error:
            if error.code != STREAM_NOT_FOUND:
                raise SetupError(f"the server does not purge {purged} from {stream}: {error}") from error
    return found


async def _hand_out_again(bus: Bus, part: StreamPart) -> None:
    for name in await patiently(partial(topology.consumers_of, bus, part.name)):
        again = partial(bus.api, f"CONSUMER.RESET.{part.name}.{name}", {"seq": max(1, int(part.state["first_seq"]))})
        await patiently(again)


async def _queued(bus: Bus) -> list[Unsettled]:
    subjects = bus.subjects
    found: dict[Identity, Unsettled] = {}
    for lane in ("", *LANES):
        for subject in await topology.every_queued(bus, subjects.tasks_of(lane=lane)):
            task = subjects.parse(subject).identity
            found[task] = Unsettled(task, lane)
    results = await read_many(bus, [subjects.result(task) for task in found])
    # A finished one whose ack was not stored yet is met by its result.
    return [one for one, result in zip(found.values(), results, strict=True) if result is None]


async def _parked(bus: Bus) -> list[Unsettled]:
    subjects = bus.subjects
    tasks = [subjects.parse(subject).identity for subject in await topology.every_queued(bus, subjects.parks_of())]
    results = await read_many(bus, [subjects.result(task) for task in tasks])
    return [Unsettled(task, is_parked=True) for task, result in zip(tasks, results, strict=True) if result is None]


async def _wake(tasks: Sequence[Identity], bus: Bus) -> int:
    for first in range(0, len(tasks), AT_ONCE):
        async with asyncio.TaskGroup() as waking:
            for task in tasks[first : first + AT_ONCE]:
                waking.create_task(publish_wake(bus, task))
    return len(tasks)


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
