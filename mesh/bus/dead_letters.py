"""Dead letters: tasks that were given up, kept with the reason until a person redrives or drops them.

A dead letter is one message, and its stream sequence names it for ever: another one may come to stand on the
same subject later, never on the same sequence. Two rules rest on that.

- A redrive of the dead letter with sequence n is the task `<id>.~redrive-<n>`. Whoever redrives the same letter
  submits the same identity, so the submit guard lets one of them through, however they race and however often
  one of them died midway. (Counting the redrives that exist would not do: a count changes between two people.)
  It holds for as long as any key: while the task or its result is kept.
- A dead letter is removed by its sequence. A purge of its subject would also take a younger letter that came to
  stand there after the one that was looked at.

- A large payload is kept as an object, which the letter refers to and which is kept as long. A redrive has a copy of
  it, since the letter's goes with the letter.

Listing and removing need an operator's rights: `DIRECT.GET` and `STREAM.MSG.DELETE` of the whole stream.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from contracts import headers as names
from contracts import wire
from contracts.errors import ContractError
from contracts.objects import Kept
from contracts.outcome import Failure, FailureKind
from contracts.subjects import SESSION, Identity, child_id
from contracts.task import Task
from mesh.bus import objects
from mesh.bus.commit import create_once
from mesh.bus.connection import Bus, Headers
from mesh.bus.leader import standing
from mesh.bus.records import Stored, read, read_range
from mesh.bus.replies import STREAM_NOT_FOUND, ApiError
from mesh.bus.submit import guard
from mesh.errors import ObjectGone

_KEPT = (names.TASK, names.CONTENT_TYPE, *names.TRACE)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A task as it was when it was given up, and why. `headers` are those of the stored message."""

    task: Identity
    sequence: int
    buried_at: float
    failure: Failure
    payload: bytes
    headers: Headers

    @property
    def kept(self) -> Kept | None:
        """Where its payload is kept, if `payload` is a reference."""
        return objects.readable_payload(self.headers, self.payload, self.task)


@dataclass(frozen=True, slots=True)
class Census:
    """How many dead letters stand, at most 100,000, and the last sequence of their stream."""

    letters: int
    last_sequence: int


@dataclass(frozen=True, slots=True)
class Redriven:
    """What a redrive came to. `is_new` is False where somebody else had submitted the same one."""

    task: Identity
    is_new: bool


async def census(bus: Bus, capability: str = "*") -> Census:
    """How many dead letters stand, of one capability or of all.

    Raises:
        ApiError: the stream cannot be asked; see `ApiError.code`.
    """
    wanted = {"subjects_filter": bus.subjects.dead_letters_of(capability)}
    try:
        state = (await bus.api(f"STREAM.INFO.{bus.subjects.stream}", wanted))["state"]
    except ApiError as error:
        if error.code == STREAM_NOT_FOUND:
            return Census(0, 0)
        raise
    return Census(len(state.get("subjects") or ()), state["last_seq"])


async def dead_letters(bus: Bus, capability: str = "*", *, up_to: int) -> AsyncIterator[DeadLetter]:
    """Dead letters, oldest first, up to a sequence of their stream.

    Those that come while the first ones are redriven lie past `census().last_sequence`.
    """
    if not up_to:
        return
    async for stored in read_range(bus, bus.subjects.stream, bus.subjects.dead_letters_of(capability)):
        if stored.sequence > up_to:
            return
        yield _letter(bus, stored)


async def read_dead_letter(bus: Bus, task: Identity) -> DeadLetter | None:
    """The dead letter of a task, or None."""
    stored = await read(bus, bus.subjects.dead_letter(task))
    return None if stored is None else _letter(bus, stored)


async def redrive(bus: Bus, letter: DeadLetter) -> Redriven:
    """Submit a dead letter's task again below its id, then remove the letter.

    The envelope is kept, but for its deadline and its place in a line. Safe to repeat and to race: it starts
    once. While no server answers, or the stream is full, it is repeated; give it a deadline. Cancelled midway, the
    task may be submitted and its letter still stand.

    Raises:
        ContractError: the envelope is malformed or of a newer format, or the new id would be too long.
        PublishRejected: the server refuses the task for good.
        ObjectGone: its payload was kept as an object, and is not any more; the letter stands.
        StreamFull: its payload is kept as an object, for a copy of which there is no room.
        ApiError: the task is submitted, and the letter may not be removed by whoever asks.
    """
    child = Identity(letter.task.capability, child_id(letter.task.id, f"redrive-{letter.sequence}"))
    headers = {name: value for name, value in letter.headers.items() if name in _KEPT}
    headers[names.TASK] = _envelope(letter)
    kept = letter.kept
    if kept is None:
        is_new = await create_once(bus, bus.subjects.task(child), letter.payload, headers, within=guard(bus, child))
    else:
        is_new = await _redrive_object(bus, letter, kept, child, headers)
    await drop(bus, letter)
    return Redriven(child, is_new)


async def drop(bus: Bus, letter: DeadLetter) -> bool:
    """Remove a dead letter, and nothing else. False: it was gone already.

    Raises:
        ApiError: the server refuses, for want of rights.
    """
    is_removed = True
    try:
        await bus.api(f"STREAM.MSG.DELETE.{bus.subjects.stream}", {"seq": letter.sequence, "no_erase": True})
    except ApiError:
        # One code covers a message that is gone and a deletion that failed.
        found = await read_dead_letter(bus, letter.task)
        if found is not None and found.sequence == letter.sequence:
            raise
        is_removed = False
    if (kept := letter.kept) is not None:
        await objects.remove(bus, objects.payload_place(letter.task, kept), kept)
    return is_removed


async def _redrive_object(bus: Bus, letter: DeadLetter, kept: Kept, child: Identity, headers: Headers) -> bool:
    place = objects.payload_place(letter.task, kept)
    try:
        copied = await objects.copy(bus, kept, place, child, "payload", ttl_s=bus.settings.payload_ttl_s)
    except ObjectGone:
        if await standing(bus, child, bus.subjects.any_state(child)):
            # Somebody else redrove it, and removed what the letter referred to.
            return False
        raise
    body, marked = objects.reference(copied)
    is_new = await create_once(bus, bus.subjects.task(child), body, {**headers, **marked}, within=guard(bus, child))
    if not is_new:
        found = await read(bus, bus.subjects.task(child))
        own = None if found is None else objects.readable_payload(found.headers, found.data, child)
        # What stands may be ours, published before without an answer.
        if own is not None and own.name != copied.name:
            await objects.remove(bus, child, copied)
    return is_new


def _envelope(letter: DeadLetter) -> str:
    envelope = letter.headers.get(names.TASK, "").encode() or wire.encode(Task())
    task = wire.decode(Task, envelope)
    depth = letter.task.id.count(".")
    ancestors = task.lineage if len(task.lineage) == depth else (SESSION,) * depth
    changes = {
        "deadline": None,
        "keep_until": None,
        "is_awaited": False,
        "lineage": (*ancestors, letter.task.capability),
        "redrive_of": letter.task.id,
        # Its line has gone on without it.
        "order": None,
    }
    return wire.amend(envelope, changes).decode()


def _letter(bus: Bus, stored: Stored) -> DeadLetter:
    try:
        failure = wire.decode(Failure, stored.headers.get(names.DEAD, "").encode())
    except ContractError as error:
        failure = Failure(kind=FailureKind.CONTRACT, message=f"its reason cannot be read: {error}")
    return DeadLetter(
        task=bus.subjects.parse(stored.subject).identity,
        sequence=stored.sequence,
        buried_at=stored.stored_at,
        failure=failure,
        payload=stored.data,
        headers=stored.headers,
    )
