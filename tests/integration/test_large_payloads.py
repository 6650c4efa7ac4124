"""Payloads and values too large for a message: kept in chunks beside the stream, and gone with their task's records."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from contracts import headers as names
from contracts import wire
from contracts.outcome import FailureKind, Outcome
from contracts.subjects import Identity
from contracts.workflow import Answer, Check, Claim, Proposal, Verdict
from mesh import Agent, Context, Escalate, Handoff, Ladder, Mesh, Permanent, TaskFailed, Verifiers
from mesh.bus import objects
from mesh.bus.commit import read_outcome, read_result
from mesh.bus.dead_letters import drop, read_dead_letter, redrive
from mesh.bus.parks import read_park
from mesh.bus.topology import ensure, of_mesh
from mesh.errors import ContractError, IdempotencyConflict, ObjectGone, Overloaded
from mesh.human import agent as people
from mesh.inbox import give, read_inbox
from mesh.local.server import local_server
from mesh.settings import Settings
from mesh.testing import eventually, hosting
from mesh.testing.fixtures import fresh_settings
from tests.integration.conftest import CommandLine

LARGE = 300_000
INLINE = 128 * 1024


class Page(msgspec.Struct):
    title: str
    lines: list[str]


class Order(msgspec.Struct):
    """What a test asks a workflow for."""

    text: str
    count: int = 1


def page(title: str, size: int = LARGE) -> Page:
    return Page(title, [title[0] * 1000] * (size // 1000))


def copier() -> Agent:
    agent = Agent("copier", version="1")

    @agent.handles("copy", concurrency=8, attempts=3)
    async def copy(page: Page) -> Page:
        return Page(f"copy of {page.title}", page.lines)

    @agent.handles("measure", concurrency=8)
    async def measure(page: Page) -> int:
        return sum(map(len, page.lines))

    @agent.handles("write", concurrency=8)
    async def write(order: Order) -> str:
        return order.text * order.count

    return agent


async def chunks(mesh: Mesh) -> dict[str, int]:
    """Subjects of all chunks that stand."""
    stream = mesh.bus.subjects.object_stream
    info = await mesh.bus.api(f"STREAM.INFO.{stream}", {"subjects_filter": ">"})
    return info["state"].get("subjects") or {}


async def kinds(mesh: Mesh) -> list[str]:
    """What the objects that stand are, each once."""
    found = {tuple(subject.rsplit(".", 2)[:2]) for subject in await chunks(mesh)}
    return sorted(name.partition("-")[0] for _, name in found)


def has_gone(mesh: Mesh) -> Callable[[], Awaitable[bool]]:
    """Whether no chunk stands."""

    async def gone() -> bool:
        return not await chunks(mesh)

    return gone


def only(mesh: Mesh, *wanted: str) -> Callable[[], Awaitable[bool]]:
    async def are() -> bool:
        return await kinds(mesh) == list(wanted)

    return are


async def test_a_payload_and_a_value_of_5_mb_arrive_as_what_they_were(mesh: Mesh, settings: Settings) -> None:
    large = page("report", 5_000_000)
    async with hosting(copier(), settings=settings):
        handle = await mesh.submit("copy", large, returns=Page)
        assert await handle.result(within_s=30) == Page("copy of report", large.lines)

        outcome = await handle.outcome()
        assert outcome.value_at is None
        assert len(bytes(outcome.value)) > 5_000_000  # type: ignore[arg-type]
        stored = await read_result(mesh.bus, handle.task)
        assert stored is not None
        assert len(stored.data) < 2_000
        record = read_outcome(stored)
        kept = record.value_at
        assert record.v > wire.PLAIN
        assert kept is not None
        assert kept.bytes == len(bytes(outcome.value))  # type: ignore[arg-type]


async def test_a_payload_goes_with_its_task_and_a_value_with_its_result(settings: Settings) -> None:
    brief = settings.model_copy(update={"result_ttl_s": 1.0})
    async with Mesh.connect(settings=brief) as mesh, hosting(copier(), settings=brief):
        handle = await mesh.submit("copy", page("a"), key="k", returns=Page)
        await handle.result(within_s=20)

        await eventually(only(mesh, "value"))
        await eventually(has_gone(mesh))
        assert await read_result(mesh.bus, handle.task) is None


@pytest.mark.parametrize(("size", "kept"), [(INLINE - 1, 0), (INLINE, 0), (INLINE + 1, 1)])
async def test_what_is_above_the_threshold_travels_as_a_reference(
    mesh: Mesh, settings: Settings, size: int, kept: int
) -> None:
    text = "x" * (size - 2)

    handle = await mesh.submit("write", text, key="k")

    assert len(await chunks(mesh)) == kept
    (queued,) = [await objects.read(mesh.bus, mesh.bus.subjects.task(handle.task))]
    assert queued is not None
    assert (names.OBJECT in queued.headers) is bool(kept)
    # A peer that cannot follow a reference leaves the task to others.
    assert (json.loads(queued.headers[names.TASK])["v"] > wire.PLAIN) is bool(kept)
    assert (len(queued.data) == size) is not bool(kept)


@pytest.mark.parametrize("content_type", ["application/json", "application/msgpack"])
async def test_many_large_ones_at_once_and_in_either_encoding(
    mesh: Mesh, settings: Settings, content_type: str
) -> None:
    pages = [page(f"{number} page") for number in range(12)]
    async with hosting(copier(), settings=settings):
        copied = [
            item.unwrap()
            async for item in mesh.map("copy", pages, returns=Page, ordered=True, content_type=content_type)  # type: ignore[arg-type]
        ]

    assert copied == [Page(f"copy of {one.title}", one.lines) for one in pages]
    await eventually(only(mesh, *["value"] * 12))


async def test_a_workflow_has_large_steps_children_and_sends(mesh: Mesh, settings: Settings) -> None:
    agent = copier()
    runs: list[str] = []

    def compute(title: str) -> Page:
        runs.append(title)
        return page(title)

    @agent.handles("bind")
    async def bind(order: Order, ctx: Context) -> list[str]:
        first = await ctx.step("first", compute, order.text)
        second = await ctx.call("copy", first, returns=Page)
        await ctx.sleep(0.4)
        others = await ctx.map("copy", [page(f"{n}") for n in range(3)], returns=Page)
        ctx.send("measure", second, name="measured")
        return [first.title, second.title, *(other.title for other in others), second.lines[0][:3]]

    parking = settings.model_copy(update={"hot_wait_s": 0.0})
    async with hosting(agent, settings=parking):
        handle = await mesh.submit("bind", Order("abc"), key="w", returns=list[str])
        value = await handle.result(within_s=30)
        measured = mesh.handle("measure", "w.~measured", returns=int)
        assert await measured.result(within_s=10) == LARGE

    assert value == ["abc", "copy of abc", "copy of 0", "copy of 1", "copy of 2", "aaa"]
    assert runs == ["abc"]
    # Children's payloads are gone, and what the records refer to is not.
    await eventually(only(mesh, "step", *["value"] * 4))


async def test_many_small_sends_that_fill_a_record_are_kept_beside_it(mesh: Mesh, settings: Settings) -> None:
    agent = copier()

    @agent.handles("spread")
    async def spread(order: Order, ctx: Context) -> None:
        for number in range(order.count):
            ctx.send("measure", page(f"{number}", 90_000), name=f"n{number}")

    async with hosting(agent, settings=settings):
        await (await mesh.submit("spread", Order("", 20), key="s")).result(within_s=20)
        sizes = [await mesh.handle("measure", f"s.~n{n}", returns=int).result(within_s=20) for n in range(20)]

    assert sizes == [90_000] * 20
    await eventually(has_gone(mesh))


async def test_the_same_payload_again_is_recognised_and_another_one_is_a_conflict(
    mesh: Mesh, settings: Settings
) -> None:
    first = await mesh.submit("copy", page("a"), key="k", returns=Page)
    again = await mesh.submit("copy", page("a"), key="k", returns=Page)
    with pytest.raises(IdempotencyConflict, match="another payload"):
        await mesh.submit("copy", page("b"), key="k")
    with pytest.raises(IdempotencyConflict, match="another payload"):
        await mesh.submit("copy", page("small", 1000), key="k")
    assert (first.is_new, again.is_new) == (True, False)
    assert await kinds(mesh) == ["payload"]

    async with hosting(copier(), settings=settings):
        assert (await again.result(within_s=20)).title == "copy of a"
        late = await mesh.submit("copy", page("a"), key="k", returns=Page)
        with pytest.raises(IdempotencyConflict, match="another payload"):
            await mesh.submit("copy", page("b"), key="k")

        assert not late.is_new
        assert (await late.result(within_s=20)).title == "copy of a"
    await eventually(only(mesh, "value"))


async def test_of_many_submissions_at_once_one_starts_and_the_others_leave_nothing(
    mesh: Mesh, settings: Settings
) -> None:
    handles = await asyncio.gather(*(mesh.submit("copy", page("a"), key="k", returns=Page) for _ in range(6)))

    assert sum(handle.is_new for handle in handles) == 1
    await eventually(only(mesh, "payload"))
    async with hosting(copier(), settings=settings):
        assert {(await handle.result(within_s=20)).title for handle in handles} == {"copy of a"}


async def test_a_large_dead_letter_is_tried_again_and_leaves_nothing(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("desk")
    is_mended = asyncio.Event()

    @agent.handles("stamp")
    async def stamp(page: Page) -> int:
        if not is_mended.is_set():
            raise Permanent("no ink")
        return len(page.lines)

    task = Identity("stamp", "k")
    async with hosting(agent, settings=settings):
        with pytest.raises(TaskFailed, match="no ink"):
            await (await mesh.submit("stamp", page("a"), key="k")).result(within_s=20)
        letter = await eventually(lambda: read_dead_letter(mesh.bus, task))
        assert letter.kept is not None
        assert await kinds(mesh) == ["payload"]

        is_mended.set()
        redriven = await asyncio.gather(*(redrive(mesh.bus, letter) for _ in range(3)))
        value = await mesh.handle("stamp", redriven[0].task.id, returns=int).result(within_s=20)

    assert sum(one.is_new for one in redriven) == 1
    assert value == 300
    await eventually(has_gone(mesh))


async def test_a_large_dead_letter_that_is_dropped_takes_its_payload_along(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("desk")

    @agent.handles("stamp")
    async def stamp(page: Page) -> int:
        raise Permanent("no ink")

    async with hosting(agent, settings=settings):
        with pytest.raises(TaskFailed):
            await (await mesh.submit("stamp", page("a"), key="k")).result(within_s=20)
        letter = await eventually(lambda: read_dead_letter(mesh.bus, Identity("stamp", "k")))
        assert await drop(mesh.bus, letter)

    await eventually(has_gone(mesh))


async def test_a_payload_that_has_expired_is_a_clear_failure(mesh: Mesh, settings: Settings) -> None:
    handle = await mesh.submit("copy", page("a"), key="k")
    for subject in await chunks(mesh):
        await mesh.bus.store(subject, b"", {names.TTL: "1s"})
    await eventually(has_gone(mesh))

    async with hosting(copier(), settings=settings):
        with pytest.raises(TaskFailed, match=r"the payload of copy/k, an object of 3.* is not kept any more") as caught:
            await handle.result(within_s=20)

        assert caught.value.failure.kind is FailureKind.TOO_OLD
        letter = await eventually(lambda: read_dead_letter(mesh.bus, handle.task))
        with pytest.raises(ObjectGone):
            await redrive(mesh.bus, letter)
        assert await (await mesh.submit("measure", page("b"), returns=int)).result(within_s=20) == LARGE


async def test_a_payload_waits_for_as_long_as_it_is_told(settings: Settings) -> None:
    brief = settings.model_copy(update={"payload_ttl_s": 1.0})
    async with Mesh.connect(settings=brief) as mesh:
        await ensure(mesh.bus, of_mesh(brief))
        await mesh.submit("copy", page("a"))
        assert await chunks(mesh)

        await eventually(has_gone(mesh))


async def test_a_damaged_payload_is_a_failure_and_not_a_value(mesh: Mesh, settings: Settings) -> None:
    handle = await mesh.submit("copy", page("a"))
    first = min(await chunks(mesh))
    await mesh.bus.store(first, b"x" * objects.CHUNK_BYTES)

    async with hosting(copier(), settings=settings):
        with pytest.raises(TaskFailed, match="is damaged"):
            await handle.result(within_s=20)


async def test_a_value_whose_object_is_gone_is_told_where_it_is_asked_for(mesh: Mesh, settings: Settings) -> None:
    async with hosting(copier(), settings=settings):
        handle = await mesh.submit("write", Order("x", LARGE))
        await handle.result(within_s=20)
        for subject in await chunks(mesh):
            await mesh.bus.store(subject, b"", {names.TTL: "1s"})

        with pytest.raises(ObjectGone, match=r"the value of write/.* is not kept any more"):
            await handle.result()


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"no reference", "malformed"),
        (b'{"v":1,"kept":{"name":"a.b","bytes":9,"chunks":1,"digest":"%s"}}' % (b"0" * 64), "object name"),
        (b'{"v":1,"kept":{"name":"a","bytes":9,"chunks":99999,"digest":"%s"}}' % (b"0" * 64), "99999 chunks"),
        (b'{"v":1,"kept":{"name":"a","bytes":9,"chunks":1,"line":"z","digest":"%s"}}' % (b"0" * 64), "not the line"),
        (b'{"v":1,"kept":{"name":"a","bytes":99999999999,"chunks":1,"digest":"%s"}}' % (b"0" * 64), "exceeds"),
        (b'{"v":1,"kept":{"name":"a","bytes":9,"chunks":1,"digest":"%s"}}' % (b"0" * 64), "not kept any more"),
    ],
)
async def test_a_reference_that_is_wrong_fails_its_task_alone(
    mesh: Mesh, settings: Settings, body: bytes, told: str
) -> None:
    task = Identity("copy", "raw")
    await mesh.bus.store(mesh.bus.subjects.task(task), body, {names.OBJECT: "1"})

    async with hosting(copier(), settings=settings):
        with pytest.raises(TaskFailed, match=told):
            await mesh.handle("copy", "raw").result(within_s=20)
        assert await (await mesh.submit("write", Order("ok"))).result(within_s=20) == "ok"


async def test_what_a_step_or_a_child_has_above_the_limit_is_refused_naming_it(mesh: Mesh, settings: Settings) -> None:
    agent = copier()

    @agent.handles("steps")
    async def steps(order: Order, ctx: Context) -> None:
        await ctx.step("big", lambda: "x" * order.count)

    @agent.handles("asks")
    async def asks(order: Order, ctx: Context) -> None:
        await ctx.call("write", "x" * order.count)

    @agent.handles("sends")
    async def sends(order: Order, ctx: Context) -> None:
        ctx.send("write", "x" * order.count)

    tight = settings.model_copy(update={"payload_bytes_max": 400_000})
    async with hosting(agent, settings=tight):
        for capability in ("steps", "asks", "sends"):
            with pytest.raises(TaskFailed, match=r"of 500002 bytes .*exceeds 400000 bytes"):
                await (await mesh.submit(capability, Order("", 500_000))).result(within_s=20)
    await eventually(has_gone(mesh))


async def test_a_full_stream_of_objects_refuses_payloads_and_keeps_a_reserve_for_values(settings: Settings) -> None:
    small = settings.model_copy(update={"objects_bytes_max": 2**20, "full_at": 0.6})
    async with Mesh.connect(settings=small) as mesh:
        await ensure(mesh.bus, of_mesh(small))
        with pytest.raises(ContractError, match=r"payload of 9.* does not fit below 60% of the 1048576 bytes"):
            await mesh.submit("copy", page("too large for ever", 900_000))
        await mesh.submit("copy", page("a"), key="a")
        await mesh.submit("copy", page("b"), key="b")
        with pytest.raises(Overloaded, match=r"stream of objects is .*% full") as caught:
            await mesh.submit("copy", page("c"), key="c")
        standing = await kinds(mesh)
        assert await (await mesh.submit("write", Order("x"), key="small")).status()

        async with hosting(copier(), settings=small):
            for key in ("a", "b"):
                assert (await mesh.handle("copy", key, returns=Page).result(within_s=20)).title == f"copy of {key}"

    assert caught.value.retry_after_s > 0
    assert standing == ["payload", "payload"]


async def test_a_value_that_meets_a_full_stream_of_objects_is_held_and_not_dropped(settings: Settings) -> None:
    small = settings.model_copy(update={"objects_bytes_max": 2**20})
    async with Mesh.connect(settings=small) as mesh:
        await ensure(mesh.bus, of_mesh(small))
        filler = Identity("filler", "f")
        filled = await objects.put(mesh.bus, filler, "payload", b"x" * 1_000_000, ttl_s=60)

        async with hosting(copier(), settings=small):
            handle = await mesh.submit("write", Order("x", LARGE), returns=str)
            other = await mesh.submit("write", Order("y"), returns=str)
            assert await other.result(within_s=20) == "y"
            assert await read_result(mesh.bus, handle.task) is None

            await objects.remove(mesh.bus, filler, filled)
            assert await handle.result(within_s=20) == "x" * LARGE


async def test_a_large_task_is_handed_over_verified_and_escalated(mesh: Mesh, settings: Settings) -> None:
    agent = copier()

    @agent.handles("specialist")
    async def specialist(page: Page, ctx: Context) -> Page:
        return Page(f"special {page.title}", page.lines)

    @agent.handles("triage")
    async def triage(page: Page, ctx: Context) -> Page | Handoff:
        ctx.send("measure", page, name="measured")
        return Handoff("specialist", page)

    @agent.handles("check")
    async def check(claim: Claim, ctx: Context) -> Check:
        return Check(agrees=claim.payload["lines"] == claim.value["lines"])

    @agent.handles("checked", verified_by=Verifiers("check", agree=1), ladder=Ladder(0.5, "specialist"))
    async def checked(page: Page, ctx: Context) -> Page | Escalate:
        if page.title == "hard":
            return Escalate("too hard", value=page)
        return page

    parking = settings.model_copy(update={"hot_wait_s": 0.0, "result_ttl_s": 1.0, "workflow_ttl_s": 20.0})
    async with hosting(agent, settings=parking):
        assert await ask(mesh, "triage", page("a"), key="t") == "special a"
        assert await mesh.handle("measure", "t.~measured", returns=int).result(within_s=10) == LARGE
        assert await ask(mesh, "checked", page("easy")) == "easy"
        assert await ask(mesh, "checked", page("hard")) == "special hard"
        await eventually(lambda: no_payloads(mesh))


async def ask(mesh: Mesh, capability: str, what: Page, key: str | None = None) -> str:
    handle = await mesh.submit(capability, what, key=key, returns=Page)
    answer = await handle.result(within_s=30)
    assert answer.lines == what.lines
    return answer.title


async def no_payloads(mesh: Mesh) -> bool:
    return "payload" not in await kinds(mesh)


async def test_a_person_sees_a_large_proposal_and_approves_it(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("desk")

    @agent.handles("publish")
    async def publish(page: Page, ctx: Context) -> int:
        decision = await ctx.approve(page, reason="it is long")
        return len(decision.value.lines)

    async with hosting(agent, people, settings=settings):
        handle = await mesh.submit("publish", page("a"), returns=int)

        async def asked() -> bool:
            return any(question.is_parked for question in await read_inbox(mesh.bus))

        await eventually(asked)
        (question,) = await read_inbox(mesh.bus)
        assert isinstance(question.proposal, Proposal)
        assert question.proposal.reason == "it is long"
        assert question.proposal.proposal["lines"] == page("a").lines
        await give(mesh, question, Verdict.APPROVED, by="ann")

        assert await handle.result(within_s=20) == 300
        human = await mesh.handle("human", question.task.id, returns=Answer).result(within_s=10)
        assert human.by == "ann"


async def test_large_tasks_keep_their_order(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("printer")
    printed: list[str] = []

    @agent.handles("print", concurrency=4)
    async def print_page(page: Page) -> int:
        printed.append(page.title)
        return len(page.lines)

    handles = [await mesh.submit("print", page(f"{n}"), order_key="o", returns=int) for n in range(4)]
    keyed = [await mesh.submit("print", page("k"), order_key="o", key="k", returns=int) for _ in range(2)]
    with pytest.raises(IdempotencyConflict):
        await mesh.submit("print", page("other"), order_key="o", key="k")

    async with hosting(agent, settings=settings):
        assert [await handle.result(within_s=20) for handle in (*handles, *keyed)] == [300] * 6

    assert printed == ["0", "1", "2", "3", "k"]
    assert [handle.is_new for handle in keyed] == [True, False]
    await eventually(has_gone(mesh))


async def test_a_parked_task_keeps_its_payload_for_as_long_as_it_may_wait(settings: Settings) -> None:
    agent = copier()

    @agent.handles("wait")
    async def wait(page: Page, ctx: Context) -> int:
        await ctx.signal("go")
        return len(page.lines)

    brief = settings.model_copy(update={"payload_ttl_s": 1.0, "hot_wait_s": 0.0, "workflow_ttl_s": 500.0})
    async with Mesh.connect(settings=brief) as mesh, hosting(agent, settings=brief):
        handle = await mesh.submit("wait", page("a"), key="w")
        await eventually(lambda: read_park(mesh.bus, handle.task))

        for subject in await chunks(mesh):
            chunk = await objects.read(mesh.bus, subject, stream=mesh.bus.subjects.object_stream)
            assert chunk is not None
            assert int(chunk.headers[names.TTL].removesuffix("s")) > 400

        await mesh.signal("wait", "w", "go")
        assert await handle.result(within_s=20) == 300
        await eventually(has_gone(mesh))


async def test_a_cancelled_large_task_undoes_what_it_did_and_leaves_nothing(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("desk")
    undone: list[str] = []

    @agent.handles("book")
    async def book(page: Page, ctx: Context) -> None:
        await ctx.compensate(undone.append, page.title)
        await ctx.signal("never")

    async with hosting(agent, settings=settings.model_copy(update={"hot_wait_s": 0.0})):
        handle = await mesh.submit("book", page("a"), key="w")
        await eventually(lambda: read_park(mesh.bus, handle.task))
        await handle.cancel()

        assert (await handle.outcome(within_s=20)).status == "cancelled"
    assert undone == ["a"]
    await eventually(has_gone(mesh))


async def test_a_cancelled_large_task_leaves_nothing(mesh: Mesh, settings: Settings) -> None:
    handle = await mesh.submit("copy", page("a"), key="k")
    await handle.cancel()

    async with hosting(copier(), settings=settings):
        outcome: Outcome = await handle.outcome(within_s=20)

    assert outcome.status == "cancelled"
    await eventually(has_gone(mesh))


async def test_a_broker_that_is_killed_while_chunks_are_stored_loses_nothing(tmp_path: Path) -> None:
    with local_server(tmp_path / "store") as server:
        settings = fresh_settings(server.url)
        async with Mesh.connect(settings=settings) as mesh, hosting(copier(), settings=settings):
            large = page("a", 20_000_000)
            async with asyncio.TaskGroup() as fibers:
                submitting = fibers.create_task(mesh.submit("copy", large, key="k", returns=Page))
                await eventually(lambda: chunks(mesh), every_s=0.001)
                was_under_way = not submitting.done()
                server.kill()
                server.restart()
            handle = submitting.result()
            assert await handle.result(within_s=40) == Page("copy of a", large.lines)

    assert was_under_way


async def test_the_command_line_tells_of_large_ones(command_line: CommandLine, mesh: Mesh, settings: Settings) -> None:
    agent = copier()

    @agent.handles("stamp")
    async def stamp(page: Page) -> int:
        raise Permanent("no ink")

    async with hosting(agent, settings=settings):
        copied = await mesh.submit("copy", page("a"), key="k", returns=Page)
        await copied.result(within_s=20)
        with pytest.raises(TaskFailed):
            await (await mesh.submit("stamp", page("b"), key="d")).result(within_s=20)
        await eventually(lambda: read_dead_letter(mesh.bus, Identity("stamp", "d")))

        result = await command_line("result", "copy/k", "--json")
        shown = await command_line("dead", "show", "stamp/d")
        listed = await command_line("dead", "ls", "--json")
        trace = await command_line("trace", "copy/k")
        redriven = await command_line("dead", "redrive", "stamp/d")

    assert result.document["value"]["lines"] == page("a").lines
    (letter,) = listed.document["dead_letters"]
    assert letter["payload_bytes"] > LARGE
    assert f"{letter['payload_bytes']} bytes, kept as an object with digest" in shown.out
    assert "value of 3" in trace.out
    assert redriven.code == 0, redriven.err
