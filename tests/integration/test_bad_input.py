"""Bad input gets a clear error that names the field or the limit; nothing is retried that cannot succeed."""

import asyncio
from typing import Any

import msgspec
import pytest

from contracts import headers
from contracts.outcome import FailureKind
from contracts.subjects import Identity, stand_in
from mesh import Agent, Mesh, MeshError, Overloaded, TaskFailed
from mesh.bus.commit import read_outcome, read_result
from mesh.bus.records import Stored
from mesh.bus.topology import ensure, of_mesh, queued
from mesh.errors import ContractError
from mesh.settings import Settings
from mesh.testing import eventually, hosting


class Line(msgspec.Struct):
    price: int


class Order(msgspec.Struct):
    lines: list[Line]


def shop() -> Agent:
    agent = Agent("shop")

    @agent.handles("bill", concurrency=4)
    async def bill(order: Order) -> int:
        return sum(line.price for line in order.lines)

    @agent.handles("repeat", concurrency=4)
    async def repeat(times: int) -> str:
        return "x" * times

    @agent.handles("take")
    async def take(anything: Any) -> None:
        assert anything is not None

    @agent.handles("lie")
    async def lie() -> Order:
        return Order([Line("dear")])  # type: ignore[arg-type]

    return agent


async def answer(mesh: Mesh, task: Identity) -> Stored:
    return await eventually(lambda: read_result(mesh.bus, task), within_s=15)


@pytest.mark.parametrize(
    ("body", "path", "told"),
    [
        (b"{not json", "", "malformed"),
        (b"", "", "Expected `object`, got `null`"),
        (b"\xff\xfe", "", "malformed"),
        (b'{"lines":[{"price":1},{"price":"2"}]}', "$.lines[1].price", "Expected `int`, got `str`"),
    ],
)
async def test_a_malformed_payload_is_a_dead_letter_that_names_the_path(
    mesh: Mesh, settings: Settings, body: bytes, path: str, told: str
) -> None:
    task = Identity("bill", "k")
    async with hosting(shop(), settings=settings):
        await mesh.bus.nc.publish(mesh.bus.subjects.task(task), body)

        failure = read_outcome(await answer(mesh, task)).failure

    assert failure is not None
    assert (failure.kind, failure.path, failure.attempts) == (FailureKind.CONTRACT, path, 1)
    assert told in failure.message


async def test_a_payload_nested_too_deep_is_a_dead_letter(mesh: Mesh, settings: Settings) -> None:
    task = Identity("take", "k")
    async with hosting(shop(), settings=settings):
        await mesh.bus.nc.publish(mesh.bus.subjects.task(task), b"[" * 100_000)

        failure = read_outcome(await answer(mesh, task)).failure

    assert failure is not None
    assert failure.kind is FailureKind.CONTRACT
    assert "recursion" in failure.message


async def test_a_malformed_envelope_is_told_apart_from_the_payload(mesh: Mesh, settings: Settings) -> None:
    task = Identity("bill", "k")
    async with hosting(shop(), settings=settings):
        await mesh.bus.nc.publish(
            mesh.bus.subjects.task(task), b'{"lines":[]}', headers={headers.TASK: '{"deadline":"soon"}'}
        )

        failure = read_outcome(await answer(mesh, task)).failure

    assert failure is not None
    assert (failure.kind, failure.path) == (FailureKind.CONTRACT, "$.deadline")


@pytest.mark.parametrize("task_id", ["two.tokens", "x" * 513, "~own", "order-42.~child."[:-1] + ".plain"])
async def test_an_illegal_id_of_a_raw_publisher_is_recorded_under_its_hash(
    mesh: Mesh, settings: Settings, task_id: str
) -> None:
    async with hosting(shop(), settings=settings):
        await mesh.bus.nc.publish(mesh.bus.subjects.task(Identity("bill", task_id)), b'{"lines":[]}')

        failure = read_outcome(await answer(mesh, Identity("bill", stand_in(task_id)))).failure
        await eventually(lambda: nothing_queued(mesh))

    assert failure is not None
    assert failure.kind is FailureKind.CONTRACT
    assert "is illegal" in failure.message


async def nothing_queued(mesh: Mesh) -> bool:
    return not await queued(mesh.bus, mesh.bus.subjects.tasks_of())


@pytest.mark.parametrize("key", ["", "a.b", "a b", "*", "~x", "x" * 513, "a\nb", "\ud800"])
async def test_an_illegal_key_is_refused_before_anything_is_sent(mesh: Mesh, key: str) -> None:
    with pytest.raises(ContractError, match="key"):
        await mesh.submit("bill", Order([]), key=key)


@pytest.mark.parametrize("capability", ["", "a.b", "-x", "x" * 64, "a b"])
async def test_an_illegal_capability_is_refused_before_anything_is_sent(mesh: Mesh, capability: str) -> None:
    with pytest.raises(ContractError, match="capability"):
        await mesh.submit(capability, None)


async def test_a_payload_over_the_limit_is_refused_with_both_sizes(settings: Settings) -> None:
    tight = settings.model_copy(update={"payload_bytes_max": 1_000_000})
    async with Mesh.connect(settings=tight) as mesh:
        with pytest.raises(ContractError, match="payload of 1000003 bytes exceeds 1000000 bytes"):
            await mesh.submit("repeat", "x" * 1_000_001)


async def test_a_value_over_the_limit_is_a_failure_with_both_sizes(mesh: Mesh, settings: Settings) -> None:
    async with hosting(shop(), settings=settings.model_copy(update={"payload_bytes_max": 1_000_000})):
        with pytest.raises(TaskFailed, match="value of 1000003 bytes exceeds 1000000 bytes") as caught:
            await (await mesh.submit("repeat", 1_000_001)).result(within_s=10)

        assert caught.value.failure.kind is FailureKind.TOO_LARGE
        assert await (await mesh.submit("repeat", 3)).result(within_s=10) == "xxx"


async def test_a_message_over_the_servers_limit_does_not_cost_the_connection(mesh: Mesh) -> None:
    limit = mesh.bus.nc.max_payload

    with pytest.raises(MeshError, match=f"exceeds the server's {limit} bytes"):
        await mesh.bus.publish("anything", b"x" * (limit - 10), headers={"a": "b"})

    assert (await mesh.bus.api("INFO"))["streams"] >= 2


async def test_a_value_that_is_not_of_the_declared_type_is_a_failure_that_names_the_path(
    mesh: Mesh, settings: Settings
) -> None:
    async with hosting(shop(), settings=settings):
        with pytest.raises(TaskFailed, match="Expected `int`, got `str`") as caught:
            await (await mesh.submit("lie")).result(within_s=10)

    assert caught.value.failure.path == "$.lines[0].price"


async def test_a_deadline_in_the_past_is_refused(mesh: Mesh) -> None:
    with pytest.raises(ContractError, match="deadline_s is -1"):
        await mesh.submit("bill", Order([]), deadline_s=-1)


async def test_a_full_stream_refuses_tasks_before_commits(settings: Settings) -> None:
    small = settings.model_copy(update={"stream_msgs_max": 200, "full_at": 0.5})
    async with Mesh.connect(settings=small) as mesh:
        await ensure(mesh.bus, of_mesh(small))
        handles = [await mesh.submit("repeat", 1) for _ in range(100)]
        with pytest.raises(Overloaded, match="stream is 50% full with 0 submissions under way") as caught:
            await mesh.submit("repeat", 1)

        async with hosting(shop(), settings=small):
            values = [await handle.result(within_s=15) for handle in handles]

    assert caught.value.retry_after_s > 0
    assert values == ["x"] * 100


async def test_submissions_at_once_cannot_fill_the_stream_past_the_reserve(settings: Settings) -> None:
    small = settings.model_copy(update={"stream_msgs_max": 40, "full_at": 0.5})
    async with Mesh.connect(settings=small) as mesh:
        await ensure(mesh.bus, of_mesh(small))
        submitting = [mesh.submit("repeat", 1) for _ in range(60)]
        came = await asyncio.gather(*submitting, return_exceptions=True)

        standing = await queued(mesh.bus, mesh.bus.subjects.tasks_of())

    assert sum(isinstance(what, Overloaded) for what in came) == 40
    assert len(standing) == 20


async def test_a_map_slows_down_where_the_mesh_is_overloaded(settings: Settings) -> None:
    small = settings.model_copy(update={"stream_msgs_max": 40, "full_at": 0.5, "result_ttl_s": 1.0})
    async with Mesh.connect(settings=small) as mesh, hosting(shop(), settings=small):
        values = [item.unwrap() async for item in mesh.map("repeat", [1] * 60, in_flight=60)]

    assert values == ["x"] * 60


async def test_a_commit_that_meets_a_full_stream_is_held_and_not_dropped(settings: Settings) -> None:
    small = settings.model_copy(update={"stream_msgs_max": 50})
    async with Mesh.connect(settings=small) as mesh:
        await ensure(mesh.bus, of_mesh(small))
        for number in range(50):
            body = b'{"lines":[{"price":1}]}'
            await mesh.bus.store(mesh.bus.subjects.task(Identity("bill", f"k{number}")), body)
        with pytest.raises(MeshError, match="maximum messages exceeded"):
            await mesh.bus.store(mesh.bus.subjects.task(Identity("bill", "one-more")), b"{}")

        async with hosting(shop(), settings=small):
            await eventually(lambda: commits_wait(mesh, "bill"))
            update = {**(await mesh.bus.api(f"STREAM.INFO.{mesh.bus.subjects.stream}"))["config"], "max_msgs": 500}
            await mesh.bus.api(f"STREAM.UPDATE.{mesh.bus.subjects.stream}", update)

            for number in range(50):
                outcome = read_outcome(await answer(mesh, Identity("bill", f"k{number}")))
                assert bytes(outcome.value) == b"1"  # type: ignore[arg-type]


async def commits_wait(mesh: Mesh, capability: str) -> bool:
    """Whether as many results are held as may be: four that gave their slots to the next, and those four."""
    info = await mesh.bus.api(f"CONSUMER.INFO.{mesh.bus.subjects.stream}.{capability}")
    # A few more were fetched ahead and wait for a slot, how many depends on what was on its way; most stay queued.
    return 8 <= info["num_ack_pending"] < 25 and info["num_pending"] + info["num_ack_pending"] == 50
