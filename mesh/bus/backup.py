"""A mesh's streams as files, and back: JetStream's own snapshots, with what they need to fit together.

Each stream is a snapshot of its own, taken one after the other while the mesh works. Rules that make them one backup:

- A task that was accepted before the backup began is in it: as a task, a park or a result.
- A snapshot is not of one moment: it may lack a task that was acked while it was written, and the result, too, which
  came after its beginning (seen under load). So what was stored since is read afterwards and kept beside the snapshot
  (`late`), tasks before records. Nothing is acked before what takes its place is stored, so one of the two has every
  task. What late results send is relayed by the restore.
- Objects and lines come before the records that refer to them, and what was added to them is kept beside them as well.
  So a reference finds its object, a line's mark never says that a task is over which the records still have, and no
  position is given twice.
- Timers are not relied upon: what is parked is woken after a restore, looks for itself, and parks again.
- The manifest is written last, and names the size and digest of every file: without it, or where one differs, the
  backup is torn, and nothing is restored from it.

A snapshot holds the stream's messages, their sequences and times, and its consumers. The server compresses it.
"""

import asyncio
import base64
import hashlib
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec
from nats.aio.msg import Msg

from contracts import headers as names
from contracts import wire
from contracts.errors import ContractError
from contracts.line import LineMark
from contracts.outcome import Outcome
from contracts.subjects import LANES, is_capability, served_by
from mesh.bus import topology
from mesh.bus.commit import relay
from mesh.bus.connection import Bus, Headers
from mesh.bus.records import read, read_range
from mesh.bus.replies import ApiError
from mesh.bus.survey import server_version
from mesh.errors import BusError, BusUnavailable, PublishUnconfirmed, SequenceConflict, SetupError

log = logging.getLogger("mesh.bus")

MANIFEST: Final = "manifest.json"
FORMAT: Final = 1
CHUNK_BYTES: Final = 128 * 1024
SILENT_S: Final = 60.0
"""Longest wait for the next part of a snapshot, and for the server to unpack one."""
UNPACK_S: Final = 600.0
_SERVER_HEADERS: Final = (
    "Nats-Expected",
    "Nats-Sequence",
    "Nats-Subject",
    "Nats-Stream",
    "Nats-Time-Stamp",
    "Nats-Num",
)


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a backup."""

    file: str
    bytes: int
    digest: str


class StreamPart(msgspec.Struct, frozen=True, kw_only=True):
    """One stream of a backup: its snapshot, and the server's account of it when that began."""

    name: str
    config: dict[str, Any]
    state: dict[str, Any]
    began_at: float
    ended_at: float
    snapshot: Part
    late: Part | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup consists of. Times are this machine's Unix times."""

    format: int
    prefix: str
    began_at: float
    ended_at: float
    mesh_version: str
    server_version: str
    capabilities: tuple[str, ...]
    streams: tuple[StreamPart, ...]


class Late(msgspec.Struct, frozen=True):
    """A message that was stored after a stream's snapshot was begun."""

    subject: str
    headers: Headers
    data: str


class Torn(BusError):
    """A backup that is not whole, or not what it should be; nothing was restored."""


async def backup(bus: Bus, folder: Path, *, mesh_version: str, told: Callable[[str], None]) -> Manifest:
    """Back up every stream of the mesh into an empty or new folder, while the mesh works. `told` hears of each step.

    Cancelled or failed midway, the folder holds a torn backup, which no restore takes.

    Raises:
        SetupError: the folder holds something, or there is no such mesh.
        ApiError: the server refuses; it wants an operator's rights.
        BusUnavailable, PublishUnconfirmed: the connection broke, or the server does not answer.
    """
    subjects, began_at = bus.subjects, time.time()
    streams = await topology.existing(bus)
    if subjects.stream not in streams:
        raise SetupError(f"there is no stream {subjects.stream}: MESH_PREFIX names another mesh, or none was made")
    _make_room(folder)
    early = [name for name in (subjects.object_stream, subjects.line_stream) if name in streams]
    parts: dict[str, StreamPart] = {}
    for name in (*early, subjects.stream, *streams):
        if name not in parts:
            told(f"{name} ...")
            parts[name] = await take(bus, name, folder)
        if name == subjects.stream:
            for before in (name, *early):
                parts[before] = await take_late(bus, parts[before], folder)
    manifest = Manifest(
        format=FORMAT,
        prefix=subjects.prefix,
        began_at=began_at,
        ended_at=time.time(),
        mesh_version=mesh_version,
        server_version=server_version(bus),
        capabilities=tuple(sorted(await capabilities(bus))),
        streams=tuple(parts.values()),
    )
    write_manifest(folder, manifest)
    return manifest


async def capabilities(bus: Bus) -> set[str]:
    """Capabilities that have consumers, or for which something is queued, running or parked."""
    found = {served_by(name) for name in await topology.served(bus)}
    for pattern in (*(bus.subjects.tasks_of(lane=lane) for lane in ("", *LANES)), bus.subjects.parks_of()):
        found |= {bus.subjects.capability_of(subject) for subject in await topology.queued(bus, pattern)}
    return {name for name in found if is_capability(name)}


async def take(bus: Bus, stream: str, folder: Path) -> StreamPart:
    """Snapshot one stream, its consumers included, into a file of its own.

    Raises:
        ApiError: the server refuses.
        BusUnavailable: the connection broke, or the server fell silent; the file is not whole.
    """
    began_at, reconnects = time.time(), bus.reconnects
    arrived: asyncio.Queue[Msg] = asyncio.Queue()
    inbox = bus.nc.new_inbox()
    subscription = await bus.nc.subscribe(inbox, cb=arrived.put, pending_msgs_limit=0, pending_bytes_limit=0)
    file = folder / f"{stream}.snapshot"
    try:
        wanted = {"deliver_subject": inbox, "chunk_size": CHUNK_BYTES}
        account = await bus.api(f"STREAM.SNAPSHOT.{stream}", wanted, within_s=SILENT_S)
        part = await _written(file, _chunks(bus, stream, arrived))
    finally:
        await subscription.unsubscribe()
    if bus.reconnects != reconnects:
        raise BusUnavailable(f"the connection broke while {stream} was being backed up")
    return StreamPart(
        name=stream,
        config=account["config"],
        state=account["state"],
        began_at=began_at,
        ended_at=time.time(),
        snapshot=part,
    )


async def take_late(bus: Bus, part: StreamPart, folder: Path) -> StreamPart:
    """Keep beside a stream's snapshot what was stored since that began.

    Of the tasks' stream what may be acked meanwhile comes first, and what takes its place after it.
    """
    subjects = bus.subjects
    passes: list[tuple[str, ...]] = [(">",)]
    if part.name == subjects.stream:
        tasks = tuple(subjects.tasks_of(lane=lane) for lane in ("", *LANES))
        passes = [tasks, (subjects.parks_of(), subjects.results_of(), subjects.steps_of(), subjects.dead_letters_of())]

    async def lines() -> AsyncIterator[bytes]:
        first = int(part.state["last_seq"]) + 1
        for patterns in passes:
            last = int((await bus.api(f"STREAM.INFO.{part.name}"))["state"]["last_seq"])
            for pattern in patterns:
                async for stored in read_range(bus, part.name, pattern, first=first, last=last):
                    kept = {name: text for name, text in stored.headers.items() if not name.startswith(_SERVER_HEADERS)}
                    late = Late(stored.subject, kept, base64.b64encode(stored.data).decode())
                    yield msgspec.json.encode(late) + b"\n"

    late = await _written(folder / f"{part.name}.late", lines())
    return msgspec.structs.replace(part, late=late)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Say that the backup is whole. Nothing may be written after it."""
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    draft = folder / f"{MANIFEST}.draft"
    with draft.open("wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(folder / MANIFEST)
    entry = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(entry)
    finally:
        os.close(entry)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a backup, once every file of it was found to be whole.

    Raises:
        Torn: there is none, it is of a newer format, or a file is missing or damaged.
    """
    place = folder / MANIFEST
    try:
        manifest = msgspec.json.decode(place.read_bytes(), type=Manifest)
    except FileNotFoundError:
        raise Torn(f"{folder} has no {MANIFEST}: it is no backup, or one that was not finished") from None
    except (OSError, msgspec.DecodeError) as error:
        raise Torn(f"{place} cannot be read: {error}") from error
    if manifest.format > FORMAT:
        raise Torn(f"{place} is of format {manifest.format}, this version reads {FORMAT} and older ones")
    for part in _parts(manifest.streams):
        _check(folder, part)
    return manifest


async def check_can_put_back(bus: Bus) -> None:
    """Nothing, if this connection can restore a stream; asked with a restore that has nothing in it.

    The server adds a header to what comes from another account, and takes it for a part of the snapshot (measured on
    2.15.1). So it never sees the end of one, which is an empty message.

    Raises:
        SetupError: it cannot, as it reaches the streams' account through another one.
    """
    name = f"{bus.subjects.stream}_PROBE_{secrets.token_hex(4)}"
    nothing = {"messages": 0, "bytes": 0, "first_seq": 0, "last_seq": 0, "consumer_count": 0}
    config = {"name": name, "retention": "limits", "storage": "file", "num_replicas": 1, "discard": "old"}
    try:
        answer = await bus.api(f"STREAM.RESTORE.{name}", {"config": config, "state": nothing})
    except ApiError as error:
        raise SetupError(f"the server restores nothing: {error}") from error
    ended = await bus.request(answer["deliver_subject"], b"", within_s=SILENT_S)
    # A cluster keeps the name of what was not restored.
    with suppress(ApiError, BusUnavailable, PublishUnconfirmed):
        await bus.api(f"STREAM.DELETE.{name}")
    if not ended.data:
        raise SetupError(
            f"this user reaches the streams of {bus.subjects.prefix!r} through another account, and the server restores"
            " only what comes from their own: use one of the `restorers` of the access file (docs/security.md);"
            " nothing was changed"
        )


async def put_back(bus: Bus, part: StreamPart, folder: Path, *, replicas: int | None = None) -> dict[str, Any]:
    """Restore one stream from its snapshot. The server's account of it.

    Raises:
        SetupError: the server refuses it; there is such a stream, or it cannot hold it.
        BusUnavailable, PublishUnconfirmed: it does not answer; the stream may or may not be there.
    """
    config = part.config if replicas is None else {**part.config, "num_replicas": replicas}
    try:
        answer = await bus.api(f"STREAM.RESTORE.{part.name}", {"config": config, "state": part.state})
        with (folder / part.snapshot.file).open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                _refuse(await bus.request(answer["deliver_subject"], chunk, within_s=SILENT_S))
        done = _refuse(await bus.request(answer["deliver_subject"], b"", within_s=UNPACK_S))
    except ApiError as error:
        raise SetupError(f"the server does not restore {part.name}: {error}") from error
    last, wanted = int(done["state"]["last_seq"]), int(part.state["last_seq"])
    if last < wanted:
        raise SetupError(f"{part.name} was restored up to message {last:,}, the backup goes up to {wanted:,}")
    return done


async def put_late(bus: Bus, part: StreamPart, folder: Path) -> int:
    """Store what was kept beside a stream's snapshot, and relay what results in it send. Safe to repeat.

    How many messages were stored.
    """
    if part.late is None:
        return 0
    count, results = 0, bus.subjects.results_of().partition("*")[0]
    with (folder / part.late.file).open("rb") as file:
        for line in file:
            late = msgspec.json.decode(line, type=Late)
            data = base64.b64decode(late.data)
            if bus.subjects.is_line_mark(late.subject):
                data = await _mark(bus, part.name, late.subject, data)
            try:
                await bus.store(late.subject, data, late.headers)
                count += 1
            except SequenceConflict:
                # The snapshot, written while this came, has it as well.
                pass
            if late.subject.startswith(results):
                await _relay(bus, late.subject, data, late.headers)
    return count


async def _relay(bus: Bus, subject: str, data: bytes, headers: Headers) -> None:
    as_type = wire.content_type(headers.get(names.CONTENT_TYPE))
    try:
        outcome = wire.decode(Outcome, data, as_type)
    except ContractError as error:
        log.error("%s cannot be read, what it sends is not relayed: %s", subject, error)
        return
    await relay(bus, outcome, as_type=as_type)


async def _mark(bus: Bus, stream: str, subject: str, late: bytes) -> bytes:
    """A line's mark with the positions that were given by the end, and only those over that were at the start."""
    early = await read(bus, subject, stream=stream)
    try:
        over = 0 if early is None else wire.decode(LineMark, early.data).over
        return wire.amend(late, {"over": over})
    except ContractError:
        # Of a newer format: as it was is safe, positions are found to be taken.
        return late if early is None else early.data


async def _chunks(bus: Bus, stream: str, arrived: "asyncio.Queue[Msg]") -> AsyncIterator[bytes]:
    while True:
        try:
            async with asyncio.timeout(SILENT_S):
                message = await arrived.get()
        except TimeoutError:
            raise BusUnavailable(f"the server fell silent while {stream} was being backed up") from None
        if not message.data:
            status = (message.headers or {}).get(names.STATUS, "204")
            if status != "204":
                described = (message.headers or {}).get(names.DESCRIPTION, "")
                raise BusUnavailable(f"the server ended the backup of {stream}: {status} {described}")
            return
        yield message.data
        if message.reply:
            await bus.publish(message.reply)


async def _written(file: Path, chunks: AsyncIterator[bytes]) -> Part:
    digest, size = hashlib.sha256(), 0
    with file.open("wb") as target:
        async for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
            target.write(chunk)
        target.flush()
        os.fsync(target.fileno())
    return Part(file=file.name, bytes=size, digest=digest.hexdigest())


def _make_room(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise SetupError(f"{folder} is not empty: a backup wants a folder of its own")
    except OSError as error:
        raise SetupError(f"{folder} cannot be written to: {error}") from error


def _parts(streams: Iterable[StreamPart]) -> list[Part]:
    return [part for stream in streams for part in (stream.snapshot, stream.late) if part is not None]


def _check(folder: Path, part: Part) -> None:
    place = folder / part.file
    if place.parent != folder or not place.is_file():
        raise Torn(f"{place} is missing: the backup is torn")
    size = place.stat().st_size
    if size != part.bytes:
        raise Torn(f"{place} has {size:,} bytes, the manifest says {part.bytes:,}: the backup is torn")
    with place.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != part.digest:
        raise Torn(f"{place} is damaged: its SHA-256 is not what the manifest says")


def _refuse(answer: Msg) -> dict[str, Any]:
    if not answer.data:
        return {}
    reply: dict[str, Any] = msgspec.json.decode(answer.data)
    if error := reply.get("error"):
        raise ApiError(error.get("description", ""), code=error.get("err_code", 0), status=error.get("code", 0))
    return reply
