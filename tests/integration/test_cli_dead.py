"""Dead letters: listed, shown, tried again once however many people do it, and dropped alone."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from contracts import headers, wire
from contracts.outcome import Failure, FailureKind
from contracts.subjects import Identity
from contracts.task import Task
from mesh import Agent, Mesh, Permanent
from mesh.bus.connection import Bus
from mesh.bus.dead_letters import DeadLetter, census, dead_letters, drop, read_dead_letter, redrive
from mesh.bus.records import read
from mesh.settings import Settings
from mesh.testing import eventually, hosting

agent = Agent("clerk", version="1")
is_mended = asyncio.Event()


@agent.handles("stamp")
async def stamp(name: str) -> str:
    if not is_mended.is_set():
        raise Permanent(f"no ink for [{name}]")
    return f"stamped {name}"


@pytest.fixture
async def desk(settings: Settings) -> AsyncIterator[None]:
    is_mended.clear()
    async with hosting(agent, settings=settings):
        yield


async def _bury(bus: Bus, task: Identity, *, envelope: bytes = b"", payload: bytes = b'"x"') -> DeadLetter:
    """A dead letter as a peer would have written it."""
    found = {headers.DEAD: wire.encode(Failure(kind=FailureKind.PERMANENT, message="why")).decode()}
    if envelope:
        found[headers.TASK] = envelope.decode()
    await bus.store(bus.subjects.dead_letter(task), payload, found)
    return await _letter(bus, task)


async def _letter(bus: Bus, task: Identity) -> DeadLetter:
    letter = await read_dead_letter(bus, task)
    assert letter is not None
    return letter


async def _die(mesh: Mesh, key: str) -> DeadLetter:
    """Submit a task that is given up; its letter, which stands a moment after its result."""
    await mesh.submit("stamp", "a", key=key)

    async def letter() -> DeadLetter | None:
        return await read_dead_letter(mesh.bus, Identity("stamp", key))

    found = await eventually(letter)
    assert found is not None
    return found


async def test_a_dead_letter_is_listed_and_shown(command_line: Any, desk: None, mesh: Mesh) -> None:
    await _die(mesh, "d1")

    listed = await command_line("dead", "ls")
    as_json = await command_line("dead", "ls", "--capability", "stamp", "--json")
    others = await command_line("dead", "ls", "--capability", "other", "--json")
    shown = await command_line("dead", "show", "stamp/d1", "--json")

    assert "stamp/d1" in listed.out
    assert "Permanent: no ink for [a]" in listed.out
    assert [letter["id"] for letter in as_json.document["dead_letters"]] == ["d1"]
    assert others.document == {"dead_letters": []}
    assert shown.document["payload"] == "a"
    assert shown.document["failure"]["kind"] == "permanent"


async def test_a_redriven_task_runs_again_and_its_letter_goes(command_line: Any, desk: None, mesh: Mesh) -> None:
    letter = await _die(mesh, "d1")
    is_mended.set()

    redriven = await command_line("dead", "redrive", "stamp", "d1", "--json")
    again = await command_line("dead", "redrive", "stamp/d1")

    child = f"d1.~redrive-{letter.sequence}"
    assert redriven.document == {"redriven": [{"capability": "stamp", "dead": "d1", "id": child, "is_new": True}]}
    assert await mesh.handle("stamp", child).result(within_s=10) == "stamped a"
    assert again.code == 1
    assert "is no dead letter" in again.err


async def test_all_dead_letters_of_a_capability_are_redriven_once_each(
    command_line: Any, desk: None, mesh: Mesh
) -> None:
    async for mapped in mesh.map("stamp", [str(n) for n in range(20)]):
        assert mapped.error is not None

    async def all_died() -> bool:
        return (await census(mesh.bus, "stamp")).letters == 20

    await eventually(all_died)

    # The redriven tasks die too: what comes after the command began is not chased.
    ended = await command_line("dead", "redrive", "--all", "--capability", "stamp")

    assert (ended.code, ended.out, ended.err) == (0, "20 redriven\n", "")

    async def all_died_again() -> bool:
        standing = await census(mesh.bus, "stamp")
        letters = [letter async for letter in dead_letters(mesh.bus, "stamp", up_to=standing.last_sequence)]
        return len(letters) == 20 and all(letter.task.id.count("~redrive") == 1 for letter in letters)

    await eventually(all_died_again)


async def test_a_dropped_letter_is_gone_and_its_task_stays_answered(command_line: Any, desk: None, mesh: Mesh) -> None:
    await _die(mesh, "d1")

    dropped = await command_line("dead", "drop", "stamp/d1")
    again = await command_line("dead", "drop", "stamp/d1")
    outcome = await mesh.handle("stamp", "d1").outcome(within_s=5)

    assert (dropped.code, dropped.out) == (0, "stamp/d1 is dropped\n")
    assert again.code == 1
    assert outcome.status == "failed"


async def test_which_letters_are_meant_must_be_clear(command_line: Any, mesh: Mesh) -> None:
    codes = [
        (await command_line("dead", *arguments)).code
        for arguments in (("redrive",), ("redrive", "--all"), ("redrive", "stamp/d1", "--all"), ("drop",))
    ]

    assert codes == [2, 2, 2, 2]


async def test_people_who_redrive_one_letter_at_once_start_it_once(mesh: Mesh, settings: Settings) -> None:
    letter = await _bury(mesh.bus, Identity("stamp", "d1"))

    async with Bus.connect(settings, "another") as other:
        redriven = await asyncio.gather(*(redrive(bus, letter) for bus in (mesh.bus, other) * 10))

    assert {one.task for one in redriven} == {Identity("stamp", f"d1.~redrive-{letter.sequence}")}
    assert sum(one.is_new for one in redriven) == 1
    assert await read_dead_letter(mesh.bus, letter.task) is None


async def test_a_redrive_repeated_from_an_older_look_starts_nothing(mesh: Mesh) -> None:
    task = Identity("stamp", "d1")
    letter = await _bury(mesh.bus, task)
    await redrive(mesh.bus, letter)
    assert await read_dead_letter(mesh.bus, task) is None

    # The letter as the one who died left it, at the sequence he read it at.
    second = await redrive(mesh.bus, letter)

    assert not second.is_new


async def test_a_stale_look_removes_no_younger_letter(mesh: Mesh) -> None:
    task = Identity("stamp", "d1")
    stale = await _bury(mesh.bus, task)
    assert await drop(mesh.bus, stale)
    younger = await _bury(mesh.bus, task, payload=b'"younger"')

    assert not await drop(mesh.bus, stale)

    assert await _letter(mesh.bus, task) == younger


async def test_each_letter_of_one_task_has_a_redrive_of_its_own(mesh: Mesh) -> None:
    task = Identity("stamp", "d1")
    first = await redrive(mesh.bus, await _bury(mesh.bus, task))

    second = await redrive(mesh.bus, await _bury(mesh.bus, task, payload=b'"other"'))

    assert second.is_new
    assert second.task != first.task


async def test_a_redriven_envelope_is_kept_but_for_its_deadline(mesh: Mesh) -> None:
    envelope = wire.encode(Task(deadline=1.0, conversation="c", reason="r", lineage=("boss",)))
    envelope = wire.amend(envelope, {"from_the_future": [1, 2]})
    letter = await _bury(mesh.bus, Identity("stamp", "root.~child-1"), envelope=envelope)

    redriven = await redrive(mesh.bus, letter)

    stored = await read(mesh.bus, mesh.bus.subjects.task(redriven.task))
    assert stored is not None
    assert stored.data == letter.payload
    raw = stored.headers[headers.TASK].encode()
    task = wire.decode(Task, raw)
    assert (task.deadline, task.conversation, task.reason) == (None, "c", "r")
    assert task.redrive_of == "root.~child-1"
    assert task.lineage == ("boss", "stamp")
    assert msgspec.json.decode(raw)["from_the_future"] == [1, 2]


async def test_a_raw_task_without_an_envelope_can_be_redriven(mesh: Mesh) -> None:
    letter = await _bury(mesh.bus, Identity("stamp", "raw"))

    redriven = await redrive(mesh.bus, letter)

    stored = await read(mesh.bus, mesh.bus.subjects.task(redriven.task))
    assert stored is not None
    task = wire.decode(Task, stored.headers[headers.TASK].encode())
    assert (task.redrive_of, task.lineage) == ("raw", ("stamp",))
