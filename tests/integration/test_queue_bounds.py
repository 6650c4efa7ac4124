"""Bounded queues: what a client that knows nothing of the agent's code is told, and what is never refused."""

import asyncio
import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from contracts.subjects import consumer_name
from mesh import Agent, Context, Handle, Mesh, Overloaded
from mesh.bus import plan, survey, topology
from mesh.bus.queues import BOUND, bound_of
from mesh.bus.topology import consumer, inspect, queued, streams
from mesh.cli.doctor import queue_bounds
from mesh.errors import BusUnavailable
from mesh.local.server import local_server
from mesh.settings import Settings
from mesh.testing import eventually, hosting
from mesh.testing.fixtures import fresh_settings
from tests.integration.conftest import CommandLine

WITHIN_S = 25.0


def slow(gate: asyncio.Event, queue_max: int | None = 3) -> Agent:
    """An agent that answers when its gate is open, one task at a time."""
    agent = Agent("slow", version="1")

    @agent.handles("work", concurrency=1, queue_max=queue_max)
    async def work(number: int) -> int:
        await gate.wait()
        return number

    return agent


async def waiting(mesh: Mesh, name: str = "work") -> int:
    info = await inspect(mesh.bus, consumer(mesh.bus.settings, *name.split("@")))
    assert info is not None
    pending: int = info["num_pending"]
    return pending


async def fill(mesh: Mesh, bound: int) -> None:
    """As many tasks as one slot holds and the queue may."""
    await mesh.submit("work", 0)
    await eventually(lambda: is_empty(mesh))
    for number in range(bound):
        await mesh.submit("work", number)


async def is_empty(mesh: Mesh) -> bool:
    return await waiting(mesh) == 0


async def test_past_its_bound_a_queue_takes_no_more_and_the_client_is_told_why(mesh: Mesh, settings: Settings) -> None:
    gate = asyncio.Event()
    async with hosting(slow(gate), settings=settings):
        await fill(mesh, 3)

        with pytest.raises(Overloaded) as caught:
            await mesh.submit("work", 9)
        depth = await waiting(mesh)
        gate.set()

    assert str(caught.value).startswith("3 tasks wait for work in its normal lane, its bound is 3; try again in ")
    assert 0.1 <= caught.value.retry_after_s <= 30
    assert depth == 3


async def test_another_client_that_knows_nothing_is_refused_at_its_first_task(mesh: Mesh, settings: Settings) -> None:
    gate = asyncio.Event()
    async with hosting(slow(gate), settings=settings):
        await fill(mesh, 3)

        async with Mesh.connect(settings=settings) as stranger:
            with pytest.raises(Overloaded, match="its bound is 3"):
                await stranger.submit("work", 9)
        gate.set()


async def test_each_lane_has_its_own_bound(mesh: Mesh, settings: Settings) -> None:
    gate = asyncio.Event()
    async with hosting(slow(gate), settings=settings):
        await fill(mesh, 3)

        urgent = await mesh.submit("work", 7, priority="urgent")
        gate.set()

        assert await urgent.result(within_s=WITHIN_S) == 7


async def test_submissions_at_once_stop_at_the_bound(mesh: Mesh, settings: Settings) -> None:
    gate = asyncio.Event()
    async with hosting(slow(gate, 20), settings=settings):
        await mesh.submit("work", 0)
        await eventually(lambda: is_empty(mesh))

        came = await asyncio.gather(*(mesh.submit("work", number) for number in range(60)), return_exceptions=True)
        depth = await waiting(mesh)
        gate.set()

    assert sum(isinstance(what, Overloaded) for what in came) == 40
    assert depth == 20


async def test_a_line_is_bounded_as_its_queue_is(mesh: Mesh, settings: Settings) -> None:
    gate = asyncio.Event()
    async with hosting(slow(gate), settings=settings):
        await fill(mesh, 3)

        with pytest.raises(Overloaded, match="its bound is 3"):
            await mesh.submit("work", 9, order_key="customer-1")
        gate.set()


async def test_there_is_room_again_when_tasks_have_left(mesh: Mesh, settings: Settings) -> None:
    gate = asyncio.Event()
    async with hosting(slow(gate), settings=settings):
        await fill(mesh, 3)
        with pytest.raises(Overloaded):
            await mesh.submit("work", 9)
        gate.set()

        handle = await eventually(lambda: submitted(mesh, 9))

        assert await handle.result(within_s=WITHIN_S) == 9


async def submitted(mesh: Mesh, number: int) -> Handle[Any] | None:
    try:
        return await mesh.submit("work", number)
    except Overloaded:
        return None


async def test_a_map_waits_while_its_queue_is_full(mesh: Mesh, settings: Settings) -> None:
    gate = asyncio.Event()
    gate.set()
    async with hosting(slow(gate, 5), settings=settings):
        values = [item.unwrap() async for item in mesh.map("work", range(60), in_flight=60)]

    assert sorted(values) == list(range(60))


async def test_what_runs_is_never_refused(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("parent", version="1")

    @agent.handles("leaf", concurrency=1, queue_max=1)
    async def leaf(number: int) -> int:
        return number

    @agent.handles("root", timeout_s=20)
    async def root(count: int, ctx: Context) -> int:
        ctx.send("leaf", 1_000)
        ctx.send("leaf", 1_001)
        return sum(await ctx.gather(*(ctx.call(leaf, number) for number in range(count))))

    async with hosting(agent, settings=settings):
        assert await (await mesh.submit("root", 30)).result(within_s=WITHIN_S) == sum(range(30))


async def test_a_queue_that_no_peer_has_served_has_no_bound(mesh: Mesh) -> None:
    handles = [await mesh.submit("nobody", number) for number in range(5)]

    assert len(await queued(mesh.bus, mesh.bus.subjects.tasks_of("nobody"))) == len(handles)


async def test_without_a_bound_of_its_own_a_queue_has_the_meshs(mesh: Mesh, settings: Settings) -> None:
    gate = asyncio.Event()
    gate.set()
    async with hosting(slow(gate, None), settings=settings.model_copy(update={"queue_max": 17})):
        info = await inspect(mesh.bus, consumer(settings, "work", "bulk"))

    assert info is not None
    assert bound_of(info["config"]) == 17
    # The server keeps notes of its own beside it.
    assert set(info["config"]["metadata"]) > {BOUND}


async def test_replicas_that_want_other_bounds_leave_it_as_it_is(
    mesh: Mesh, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    gate = asyncio.Event()
    gate.set()
    async with hosting(slow(gate, 5), settings=settings):
        with caplog.at_level(logging.WARNING, "mesh.peer"):
            async with hosting(slow(gate, 50), settings=settings):
                info = await inspect(mesh.bus, consumer(settings, "work"))

    assert info is not None
    assert bound_of(info["config"]) == 5
    told = "work: metadata is {'mesh-queue-max': '5'}, wanted {'mesh-queue-max': '50'}"
    assert any(told in record.getMessage() for record in caplog.records)


async def test_an_operator_changes_the_bound_to_what_the_peers_want_and_nothing_else(
    mesh: Mesh, settings: Settings
) -> None:
    gate = asyncio.Event()
    gate.set()
    async with hosting(slow(gate, 5), settings=settings):
        pass
    spec = consumer(settings, "work")
    config = dict((await inspect(mesh.bus, spec) or {})["config"])
    config["metadata"] |= {"team": "ours"}
    body = {"stream_name": spec.stream, "config": config, "action": "update"}
    await mesh.bus.api(f"CONSUMER.CREATE.{spec.stream}.{spec.name}", body)

    done = await plan.carry_out(mesh.bus, await survey.of_capabilities(mesh.bus, {"work": 8}))
    again = await plan.carry_out(mesh.bus, await survey.of_capabilities(mesh.bus, {"work": 8}))
    unasked = await plan.carry_out(mesh.bus, await survey.of_capabilities(mesh.bus))

    after = (await inspect(mesh.bus, spec) or {})["config"]
    assert sorted(step.what.partition(": ")[0] for step in done) == [
        f"changed {spec.stream} > {name}" for name in ("work", "work@bulk", "work@urgent")
    ]
    assert (again, unasked) == ([], [])
    assert (bound_of(after), after["metadata"]["team"]) == (8, "ours")
    assert {**after, "metadata": None} == {**config, "metadata": None}


async def test_a_consumer_from_before_is_served_as_it_is_and_has_no_bound(mesh: Mesh, settings: Settings) -> None:
    gate = asyncio.Event()
    await topology.ensure(mesh.bus, [*streams(settings), consumer(settings, "work")])

    async with hosting(slow(gate, 1), settings=settings):
        handles = [await mesh.submit("work", number) for number in range(10)]
        gate.set()

        assert [await handle.result(within_s=WITHIN_S) for handle in handles] == list(range(10))


async def test_a_client_that_may_not_ask_is_not_bounded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    gate = asyncio.Event()
    with local_server(tmp_path) as server:
        with (tmp_path / "nats.conf").open("a") as config:
            config.write(USERS)
        os.kill(server.pid, signal.SIGHUP)
        boss = fresh_settings(server.url).model_copy(update={"nats_user": "boss", "nats_password": SecretStr("b")})
        guest = boss.model_copy(update={"nats_user": "guest", "nats_password": SecretStr("g")})
        await eventually(lambda: is_refused(boss.model_copy(update={"nats_user": "nobody", "connect_within_s": 0.3})))

        async with hosting(slow(gate), settings=boss), Mesh.connect(settings=boss) as mesh:
            await fill(mesh, 3)
            async with Mesh.connect(settings=guest) as stranger:
                with caplog.at_level(logging.WARNING, "mesh.bus"):
                    handle = await stranger.submit("work", 9)
            gate.set()

    assert handle.is_new
    assert any("the queue work cannot be looked at" in record.getMessage() for record in caplog.records)


USERS = """
authorization {
  users = [
    {user: boss, password: b}
    {user: guest, password: g, permissions: {publish: {deny: ["$JS.API.CONSUMER.INFO.>"]}}}
  ]
}
"""


async def is_refused(settings: Settings) -> bool:
    try:
        async with Mesh.connect(settings=settings):
            return False
    except BusUnavailable:
        return True


@pytest.mark.parametrize("metadata", [None, {}, {BOUND: "many"}, {BOUND: "-3"}, {BOUND: ""}])
def test_a_bound_that_is_no_number_is_none(metadata: dict[str, str] | None) -> None:
    assert bound_of({"metadata": metadata}) == bound_of({}) == 0


async def test_the_command_line_tells_a_refusal_and_the_doctor_a_full_queue(
    mesh: Mesh, settings: Settings, command_line: CommandLine
) -> None:
    gate = asyncio.Event()
    async with hosting(slow(gate), settings=settings):
        await fill(mesh, 3)

        refused = await command_line("submit", "work", "9")
        examined = await command_line("doctor", "--json")
        gate.set()

    assert refused.code == 5
    assert "3 tasks wait for work in its normal lane, its bound is 3; try again in 1.0 s" in refused.err
    (told,) = [finding for finding in examined.document["findings"] if finding["check"] == "queues"]
    assert told["text"] == f"{consumer_name('work')} has 3 tasks waiting, its bound is 3: clients are refused"
    assert told["level"] == "problem"


def test_where_peers_differ_the_least_bound_is_wanted() -> None:
    from contracts.card import AgentCard, Beat, CapabilityCard, Described, PeerState

    def peer(**bounds: int) -> Described:
        cards = tuple(CapabilityCard(name=name, queue_max=bound) for name, bound in bounds.items())
        beat = Beat(peer="p", at=0.0, state=PeerState.READY)
        return Described(beat=beat, cards=(AgentCard(name="a", capabilities=cards),))

    assert queue_bounds([peer(a=5, b=0), peer(a=3), peer(b=9)], default=7) == {"a": 3, "b": 7}
