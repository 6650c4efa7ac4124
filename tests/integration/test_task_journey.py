"""One task from submission to result, in every way it can end."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import pydantic
import pytest
from faststream import Depends
from tenacity.wait import wait_fixed

from contracts.outcome import FailureKind, Status
from contracts.subjects import Identity
from mesh import (
    Agent,
    BlockingContext,
    Context,
    DeadlineExceeded,
    Handle,
    IdempotencyConflict,
    Mesh,
    Permanent,
    TaskCancelled,
    TaskExpired,
    TaskFailed,
    Transient,
)
from mesh.bus.topology import queued
from mesh.settings import Settings
from mesh.testing import eventually, hosting
from mesh.whereabouts import Where, Whereabouts


class Order(msgspec.Struct):
    lines: int
    note: str = ""


class Receipt(msgspec.Struct):
    total: int
    attempt: int


@dataclass
class Point:
    x: int
    y: int


class Form(pydantic.BaseModel):
    name: str = pydantic.Field(min_length=2)


def shop(runs: list[str] | None = None) -> Agent:
    agent = Agent("shop", version="2.1", owner="sales")
    runs = runs if runs is not None else []

    @agent.handles("bill", concurrency=16, wait=wait_fixed(0.05))
    async def bill(order: Order, ctx: Context) -> Receipt:
        runs.append(ctx.id)
        if order.note == "once" and ctx.attempt == 1:
            raise Transient("the till jams", after_s=0.05)
        if order.note == "jam":
            raise Transient("the till jams")
        if order.note == "refuse":
            raise Permanent("no such product")
        if order.note == "bug":
            raise KeyError("price")
        ctx.spent(tokens_in=3, usd=0.5)
        ctx.explain(confidence=0.9, reason="counted", model="abacus")
        return Receipt(order.lines * 10, ctx.attempt)

    return agent


async def test_a_submitted_task_is_answered_once_and_its_record_says_by_whom(mesh: Mesh, settings: Settings) -> None:
    async with hosting(shop(), settings=settings) as peer:
        handle = await mesh.submit("bill", Order(3), returns=Receipt)

        assert await handle.result(within_s=10) == Receipt(30, 1)
        outcome = await handle.outcome()

    assert outcome.status is Status.DONE
    assert outcome.peer == peer.id
    assert outcome.decided_by is not None
    assert (outcome.decided_by.agent, outcome.decided_by.version, outcome.decided_by.model) == ("shop", "2.1", "abacus")
    assert outcome.spent is not None
    assert (outcome.spent.tokens_in, outcome.spent.usd) == (3, 0.5)
    assert (outcome.confidence, outcome.reason) == (0.9, "counted")
    assert outcome.run_s > 0


async def test_a_key_runs_once_however_often_it_is_submitted(mesh: Mesh, settings: Settings) -> None:
    runs: list[str] = []
    async with hosting(shop(runs), settings=settings):
        first = await mesh.submit("bill", Order(1), key="order-42", returns=Receipt)
        again = await mesh.submit("bill", Order(1), key="order-42", returns=Receipt)
        await first.result(within_s=10)
        after = await mesh.submit("bill", Order(1), key="order-42", returns=Receipt)

        assert await again.result(within_s=10) == await after.result(within_s=10) == Receipt(10, 1)

    assert (first.is_new, again.is_new, after.is_new) == (True, False, False)
    assert runs == ["order-42"]


async def test_a_key_with_another_payload_is_a_conflict_while_queued_and_when_done(
    mesh: Mesh, settings: Settings
) -> None:
    handle = await mesh.submit("bill", Order(1), key="order-42")
    with pytest.raises(IdempotencyConflict, match="bill/order-42 was submitted before with another payload"):
        await mesh.submit("bill", Order(2), key="order-42")

    async with hosting(shop(), settings=settings):
        await handle.result(within_s=10)
        with pytest.raises(IdempotencyConflict):
            await mesh.submit("bill", Order(2), key="order-42")


async def test_the_same_key_under_two_capabilities_is_two_tasks(mesh: Mesh) -> None:
    one = await mesh.submit("bill", Order(1), key="order-42")
    two = await mesh.submit("ship", Order(2), key="order-42")

    assert one.is_new
    assert two.is_new


async def test_a_submitter_that_died_gets_its_result_with_the_key(mesh: Mesh, settings: Settings) -> None:
    async with Mesh.connect(settings=settings) as dead:
        await dead.submit("bill", Order(4), key="order-7")

    async with hosting(shop(), settings=settings):
        handle = mesh.handle("bill", "order-7", returns=Receipt)

        assert await handle.result(within_s=10) == Receipt(40, 1)


async def test_a_transient_failure_is_tried_again(mesh: Mesh, settings: Settings) -> None:
    async with hosting(shop(), settings=settings):
        handle = await mesh.submit("bill", Order(1, "once"), returns=Receipt)

        assert await handle.result(within_s=10) == Receipt(10, 2)


@pytest.mark.parametrize(
    ("note", "kind", "attempts", "message"),
    [
        ("jam", FailureKind.EXHAUSTED, 3, "the till jams"),
        ("refuse", FailureKind.PERMANENT, 1, "no such product"),
        ("bug", FailureKind.EXHAUSTED, 3, "'price'"),
    ],
)
async def test_a_failure_says_why_and_leaves_a_dead_letter(
    mesh: Mesh, settings: Settings, note: str, kind: FailureKind, attempts: int, message: str
) -> None:
    async with hosting(shop(), settings=settings):
        handle = await mesh.submit("bill", Order(1, note), key="k")

        with pytest.raises(TaskFailed) as caught:
            await handle.result(within_s=15)
        letter = await eventually(lambda: dead_letter(mesh, "bill", "k"))

    failure = caught.value.failure
    assert (failure.kind, failure.attempts, failure.message) == (kind, attempts, message)
    assert msgspec.json.decode(letter) == {"lines": 1, "note": note}


async def dead_letter(mesh: Mesh, capability: str, task_id: str) -> bytes | None:
    from mesh.bus.records import read

    stored = await read(mesh.bus, mesh.bus.subjects.dead_letter(Identity(capability, task_id)))
    return stored.data if stored is not None else None


async def test_an_attempt_past_its_timeout_has_failed(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("slow")

    @agent.handles("wait", timeout_s=0.1, attempts=1)
    async def wait(_: None) -> None:
        await asyncio.Event().wait()

    async with hosting(agent, settings=settings):
        with pytest.raises(TaskFailed, match=r"no result within 0\.1 s"):
            await (await mesh.submit(wait, None)).result(within_s=10)


async def test_a_task_past_its_deadline_is_answered_expired_and_not_run(mesh: Mesh, settings: Settings) -> None:
    runs: list[str] = []
    handle = await mesh.submit("bill", Order(1), deadline_s=0.05)
    deadline = time.time() + 0.05
    await eventually(lambda: time.time() > deadline)

    async with hosting(shop(runs), settings=settings):
        with pytest.raises(TaskExpired, match="passed its deadline"):
            await handle.result(within_s=10)

    assert runs == []


async def test_a_deadline_ends_a_running_handler(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("slow")

    @agent.handles("wait")
    async def wait(_: None) -> None:
        await asyncio.Event().wait()

    async with hosting(agent, settings=settings):
        with pytest.raises(TaskExpired):
            await (await mesh.submit(wait, None, deadline_s=0.5)).result(within_s=10)


async def test_waiting_may_end_before_the_task_does(mesh: Mesh) -> None:
    handle = await mesh.submit("bill", Order(1))

    with pytest.raises(DeadlineExceeded, match="it goes on"):
        await handle.result(within_s=0.05)


async def test_a_queued_task_that_is_cancelled_is_never_run(mesh: Mesh, settings: Settings) -> None:
    runs: list[str] = []
    handle = await mesh.submit("bill", Order(1), key="k")
    await handle.cancel(reason="changed my mind")

    async with hosting(shop(runs), settings=settings):
        with pytest.raises(TaskCancelled):
            await handle.result(within_s=10)

    assert runs == []


async def test_a_task_queued_behind_busy_slots_is_cancelled_without_waiting_for_one(
    mesh: Mesh, settings: Settings
) -> None:
    agent = Agent("busy")
    go_on = asyncio.Event()

    @agent.handles("hold", concurrency=1)
    async def hold(_: None) -> str:
        await go_on.wait()
        return "held"

    async with hosting(agent, settings=settings) as one, hosting(agent, settings=settings) as two:
        running = [await mesh.submit(hold, None) for _ in range(2)]
        await eventually(lambda: len(one.host.running) == len(two.host.running) == 1)
        waiting = await mesh.submit(hold, None, key="k")
        await waiting.cancel()

        with pytest.raises(TaskCancelled):
            await waiting.result(within_s=10)
        go_on.set()

        assert [await handle.result(within_s=10) for handle in running] == ["held", "held"]
        await eventually(lambda: is_queue_empty(mesh))


async def test_a_task_that_waits_for_its_retry_is_cancelled_without_waiting_for_it(
    mesh: Mesh, settings: Settings
) -> None:
    agent = Agent("later")

    @agent.handles("later")
    async def later(_: None) -> str:
        raise Transient("in an hour", after_s=3600)

    async with hosting(agent, settings=settings):
        handle = await mesh.submit(later, None, key="k")
        await eventually(lambda: is_retrying(handle))
        await handle.cancel()

        with pytest.raises(TaskCancelled):
            await handle.result(within_s=10)


async def is_retrying(handle: Handle[str]) -> bool:
    return (await handle.status()).where is Where.RETRYING


async def is_queue_empty(mesh: Mesh) -> bool:
    return not await queued(mesh.bus, mesh.bus.subjects.tasks_of())


async def test_a_running_task_is_cancelled_with_its_children(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("tree")
    started: list[str] = []

    @agent.handles("grow")
    async def grow(depth: int, ctx: Context) -> str:
        if depth:
            ctx.send("grow", 0, name="child")
            return "sent"
        started.append(ctx.id)
        await asyncio.Event().wait()
        return "never"

    async with hosting(agent, settings=settings):
        root = await mesh.submit(grow, 1, key="root")
        await root.result(within_s=10)
        await eventually(lambda: started)

        # The root is done, so its handle cancels nothing; the child is cancelled through its own handle.
        child = mesh.handle("grow", "root.~child", returns=str)
        await root.cancel()
        assert (await child.status()).where is Where.RUNNING
        await child.cancel()
        with pytest.raises(TaskCancelled):
            await child.result(within_s=10)


async def test_cancelling_a_task_cancels_what_hangs_below_it(mesh: Mesh, settings: Settings) -> None:
    from mesh.bus import control

    agent = Agent("tree")
    started: list[str] = []

    @agent.handles("grow")
    async def grow(depth: int, ctx: Context) -> str:
        if depth:
            ctx.send("grow", depth - 1, name="child")
            return "sent"
        started.append(ctx.id)
        await asyncio.Event().wait()
        return "never"

    async with hosting(agent, settings=settings):
        await (await mesh.submit(grow, 2, key="root")).result(within_s=10)
        await eventually(lambda: started)

        await control.cancel(mesh.bus, Identity("grow", "root"), ttl_s=60)

        with pytest.raises(TaskCancelled):
            await mesh.handle("grow", "root.~child.~child", returns=str).result(within_s=10)


async def test_what_a_task_sends_starts_with_its_outcome_and_only_with_success(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("router")
    seen: list[tuple[str, tuple[str, ...]]] = []

    @agent.handles("route", attempts=2, wait=wait_fixed(0.01))
    async def route(succeed: bool, ctx: Context) -> list[str]:
        children = [ctx.send("leaf", number) for number in (1, 2, 2)]
        if not succeed:
            raise Transient("not now")
        return children

    @agent.handles("leaf")
    async def leaf(number: int, ctx: Context) -> int:
        seen.append((ctx.id, ctx.task.lineage))
        return number

    async with hosting(agent, settings=settings):
        with pytest.raises(TaskFailed):
            await (await mesh.submit(route, False, key="bad")).result(within_s=10)
        children = await (await mesh.submit(route, True, key="good")).result(within_s=10)
        await eventually(lambda: len(seen) == 3)
        values = [await mesh.handle(leaf, child).result(within_s=10) for child in children]

    assert values == [1, 2, 2]
    assert len(set(children)) == 3
    assert all(task_id.startswith("good.~leaf-") and lineage == ("route",) for task_id, lineage in seen)


async def test_a_child_named_like_an_attempts_record_is_not_taken_for_it(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("tree")

    @agent.handles("grow", wait=wait_fixed(0.01))
    async def grow(depth: int, ctx: Context) -> str:
        if depth and ctx.attempt == 1:
            raise Transient("leave a record")
        if depth:
            ctx.send("grow", 0, name="began-2")
        return "grown"

    async with hosting(agent, settings=settings):
        await (await mesh.submit(grow, 1, key="root")).result(within_s=10)

        assert await mesh.handle(grow, "root.~began-2").result(within_s=10) == "grown"


async def test_a_plain_handler_runs_in_a_thread_beside_others(mesh: Mesh, settings: Settings) -> None:
    import threading

    agent = Agent("threads")
    together = threading.Barrier(2, timeout=10)

    @agent.handles("meet", concurrency=2)
    def meet(name: str, ctx: BlockingContext) -> str:
        together.wait()
        ctx.emit(f"hello {name}")
        return f"{name} in {threading.current_thread().name}"

    async with hosting(agent, settings=settings):
        one, two = await mesh.submit(meet, "ada"), await mesh.submit(meet, "bob")

        assert await one.result(within_s=15) == "ada in mesh-meet"
        assert await two.result(within_s=15) == "bob in mesh-meet"
        assert (await one.outcome()).parts == 1


async def test_faststream_dependencies_reach_handlers(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("shop")
    closed: list[str] = []

    async def till() -> AsyncIterator[str]:
        yield "till 3"
        closed.append("till 3")

    @agent.handles("bill")
    async def bill(order: Order, till: Annotated[str, Depends(till)], ctx: Context) -> str:
        return f"{order.lines} at {till} for {ctx.id}"

    async with hosting(agent, settings=settings):
        assert await (await mesh.submit(bill, Order(2), key="k")).result(within_s=10) == "2 at till 3 for k"

    assert closed == ["till 3"]


@pytest.mark.parametrize("content_type", ["application/json", "application/msgpack"])
async def test_types_come_from_annotations_in_either_encoding(
    mesh: Mesh, settings: Settings, content_type: Any
) -> None:
    agent = Agent("types")

    @agent.handles("mirror")
    async def mirror(point: Point) -> Point:
        assert isinstance(point, Point)
        return Point(point.y, point.x)

    @agent.handles("greet")
    async def greet(forms: list[Form]) -> dict[str, Form]:
        return {form.name: form for form in forms}

    @agent.handles("now")
    async def now() -> bytes:
        return b"\x00\xff"

    async with hosting(agent, settings=settings):
        mirrored = await mesh.submit(mirror, Point(1, 2), content_type=content_type)
        greeted = await mesh.submit(greet, [Form(name="ada")], content_type=content_type)
        empty = await mesh.submit(now, content_type=content_type)

        assert await mirrored.result(within_s=10) == Point(2, 1)
        assert await greeted.result(within_s=10) == {"ada": Form(name="ada")}
        assert await empty.result(within_s=10) == b"\x00\xff"


async def test_map_yields_every_item_and_failures_as_values(mesh: Mesh, settings: Settings) -> None:
    drawn, out, most = 0, 0, 0

    def orders() -> Any:
        nonlocal drawn, most
        for number in range(300):
            drawn += 1
            most = max(most, drawn - out)
            yield Order(number, "refuse" if number % 50 == 0 else "")

    seen: dict[int, int | None] = {}
    async with hosting(shop(), settings=settings):
        async for item in mesh.map("bill", orders(), in_flight=20, returns=Receipt):
            out += 1
            seen[item.index] = item.unwrap().total if item.is_done else None

    assert seen == {number: None if number % 50 == 0 else number * 10 for number in range(300)}
    assert most <= 21


async def test_an_ordered_map_yields_in_the_payloads_order(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("uneven")
    ran = [asyncio.Event() for _ in range(61)]

    @agent.handles("wait")
    async def wait(number: int) -> int:
        if number % 7 == 0:
            # Overtaken by the next one.
            await ran[number + 1].wait()
        ran[number].set()
        return number

    async with hosting(agent, settings=settings):
        values = [item.unwrap() async for item in mesh.map(wait, range(60), in_flight=10, ordered=True)]

    assert values == list(range(60))


async def test_a_map_left_early_leaves_what_was_submitted_to_run(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("uneven")
    others = asyncio.Event()
    finished: set[int] = set()

    @agent.handles("wait", concurrency=10)
    async def wait(number: int) -> int:
        if number:
            await others.wait()
        finished.add(number)
        return number

    async with hosting(agent, settings=settings) as peer:
        async for _ in mesh.map(wait, range(10), in_flight=10):
            await eventually(lambda: len(peer.host.running) == 9)
            break
        others.set()

        await eventually(lambda: finished == set(range(10)))


async def test_one_process_hosts_several_agents(mesh: Mesh, settings: Settings) -> None:
    other = Agent("post", version="9")

    @other.handles("ship")
    async def ship(order: Order) -> str:
        return f"{order.lines} parcels"

    async with hosting(shop(), other, settings=settings):
        billed = await (await mesh.submit("bill", Order(1), returns=Receipt)).outcome(within_s=10)
        shipped = await (await mesh.submit(ship, Order(5))).outcome(within_s=10)

    assert billed.decided_by is not None
    assert shipped.decided_by is not None
    assert (billed.decided_by.agent, shipped.decided_by.agent) == ("shop", "post")
    assert billed.peer == shipped.peer


async def test_status_tells_queued_running_retrying_and_done_apart(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("stages")
    go_on = asyncio.Event()

    @agent.handles("stage")
    async def stage(_: None, ctx: Context) -> str:
        if ctx.attempt == 1:
            raise Transient("later", after_s=2.0)
        await go_on.wait()
        return "done"

    async def where() -> Where:
        return (await mesh.status("stage", "k")).where

    assert await where() is Where.UNKNOWN
    handle = await mesh.submit(stage, None, key="k")
    assert await where() is Where.UNSERVED

    async with hosting(agent, settings=settings) as peer:
        retrying = await eventually(lambda: at(mesh, Where.RETRYING))
        running = await eventually(lambda: at(mesh, Where.RUNNING))
        go_on.set()
        await handle.result(within_s=10)
        done = await handle.status()

    assert retrying.detail == "later"
    assert retrying.until is not None
    assert (running.peer, running.attempt) == (peer.id, 2)
    assert (done.where, done.peer) == (Where.DONE, peer.id)


async def at(mesh: Mesh, where: Where) -> Whereabouts | None:
    found = await mesh.status("stage", "k")
    return found if found.where is where else None
