"""Who gets the next task: fast peers before slow ones, urgent tasks before others, and nobody starves."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from contracts.errors import ContractError
from mesh import Agent, Context, Mesh, Permanent
from mesh.peer import Peer
from mesh.scheduling.bids import Offer
from mesh.settings import Settings
from mesh.testing import eventually, hosting


class Worker:
    """An agent of one peer that serves `work` in so many seconds, one at a time."""

    def __init__(self, run_s: float, *, slots: int = 1, fails: bool = False) -> None:
        self.run_s = run_s
        self.fails = fails
        self.done: list[Any] = []
        self.agent = Agent("worker")

        @self.agent.handles("work", concurrency=slots, attempts=1)
        async def work(number: int) -> int:
            self.done.append(number)
            if self.fails:
                raise Permanent("no")
            await asyncio.sleep(self.run_s)
            return number


def quick(settings: Settings) -> Settings:
    return settings.model_copy(update={"beat_s": 0.1})


def sample(peer: Peer, name: str, **labels: str) -> float | None:
    return peer.metrics.registry.get_sample_value(name, {"capability": "work", **labels})


async def run(mesh: Mesh, count: int, *, every_s: float) -> None:
    """So many tasks, one after another at a pace, all done."""
    handles = []
    for number in range(count):
        handles.append(await mesh.submit("work", number))
        await asyncio.sleep(every_s)  # the load
    for handle in handles:
        await handle.outcome(within_s=30)


async def test_a_slow_peer_is_passed_over_until_it_recovers(mesh: Mesh, settings: Settings) -> None:
    fast, slow = Worker(0.01, slots=4), Worker(0.3, slots=4)
    async with hosting(fast.agent, settings=quick(settings)), hosting(slow.agent, settings=quick(settings)) as peer:
        await eventually(lambda: run_until_bid(mesh, peer), within_s=30)
        assert sample(peer, "mesh_bid") == peer.intakes[0].load().bid
        await eventually(lambda: sample(peer, "mesh_idle_slots", why="passed over"))

        fast.done.clear()
        slow.done.clear()
        await run(mesh, 100, every_s=0.01)
        assert len(slow.done) <= 10
        assert len(fast.done) >= 90

        slow.run_s = 0.01
        await eventually(lambda: run_until_bid(mesh, peer, bid=1), within_s=30)


async def run_until_bid(mesh: Mesh, peer: Peer, *, bid: int | None = None) -> bool:
    """Whether a peer bids so, or above 1, after some more work."""
    await run(mesh, 20, every_s=0.01)
    current = peer.intakes[0].load().bid
    return current > 1 if bid is None else current == bid


async def test_a_slow_peer_helps_when_the_queue_is_deep_and_stays_when_the_fast_one_is_gone(
    mesh: Mesh, settings: Settings
) -> None:
    fast, slow = Worker(0.02), Worker(0.2)
    async with hosting(slow.agent, settings=quick(settings)) as peer:
        async with hosting(fast.agent, settings=quick(settings)):
            await eventually(lambda: run_until_bid(mesh, peer), within_s=30)
            slow.done.clear()
            await run(mesh, 60, every_s=0.0)
            assert len(slow.done) >= 3
        slow.done.clear()
        await run(mesh, 5, every_s=0.0)
        assert len(slow.done) == 5


async def test_a_peer_relies_on_no_faster_ones_that_are_not_there(mesh: Mesh, settings: Settings) -> None:
    worker = Worker(0.05)
    async with hosting(worker.agent, settings=settings) as peer:
        await run(mesh, 3, every_s=0.0)
        peer.host.offers_of = lambda _: [Offer(8, 0.001)]
        await eventually(lambda: peer.intakes[0].load().bid > 20)
        worker.done.clear()

        await run(mesh, 15, every_s=0.0)

        assert len(worker.done) == 15
        assert peer.intakes[0].load().bid == 1


async def test_a_peer_that_fails_at_once_is_not_taken_for_a_fast_one(mesh: Mesh, settings: Settings) -> None:
    failing, working = Worker(0.0, fails=True), Worker(0.05)
    async with (
        hosting(failing.agent, settings=quick(settings)) as broken,
        hosting(working.agent, settings=quick(settings)) as peer,
    ):
        await run(mesh, 40, every_s=0.02)

        assert failing.done
        assert (broken.intakes[0].load().delay_s, peer.intakes[0].load().bid) == (0.0, 1)


async def test_without_bids_whoever_is_free_takes_what_comes(mesh: Mesh, settings: Settings) -> None:
    fast, slow = Worker(0.001), Worker(0.1)
    plain = quick(settings).model_copy(update={"bids": False})
    async with hosting(fast.agent, settings=plain), hosting(slow.agent, settings=plain) as peer:
        await run(mesh, 60, every_s=0.02)

        assert peer.intakes[0].load().bid == 1
        assert len(slow.done) >= 8


async def test_payloads_of_a_class_are_compared_with_their_own(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("worker")

    @agent.handles("work", concurrency=2, payload_class=lambda number: "large" if number >= 1_000 else "small")
    async def work(number: int) -> int:
        await asyncio.sleep(0.2 if number >= 1_000 else 0.001)
        return number

    async with hosting(agent, settings=quick(settings)) as peer:
        for number in (1, 2, 1_000):
            await (await mesh.submit(work, number)).result(within_s=10)

        classes = peer.intakes[0].load().classes
        assert set(classes) == {"small", "large"}
        assert classes["large"] > 10 * classes["small"]


async def test_urgent_tasks_start_before_those_that_wait_and_no_lane_starves(mesh: Mesh, settings: Settings) -> None:
    started: list[str] = []
    agent = Agent("worker")

    @agent.handles("work", concurrency=1)
    async def work(name: str) -> str:
        started.append(name.partition("-")[0])
        await asyncio.sleep(0.03)
        return name

    handles = [await mesh.submit(work, f"bulk-{n}", priority="bulk") for n in range(10)]
    handles += [await mesh.submit(work, f"normal-{n}") for n in range(40)]
    handles += [await mesh.submit(work, f"urgent-{n}", priority="urgent") for n in range(20)]
    async with hosting(agent, settings=settings) as peer:
        for handle in handles:
            await handle.result(within_s=60)
        assert sample(peer, "mesh_bid_to_start_seconds_count") == 70

    assert Counter(started) == {"bulk": 10, "normal": 40, "urgent": 20}
    assert started[:25].count("urgent") >= 18
    assert started[:25].count("normal") >= 2
    assert "bulk" in started[:45]
    assert started.index("bulk") > 3


@pytest.mark.parametrize("slots", [1, 4])
async def test_an_urgent_task_does_not_wait_for_a_backlog(mesh: Mesh, settings: Settings, slots: int) -> None:
    worker = Worker(0.1, slots=slots)
    async with hosting(worker.agent, settings=settings):
        handles = [await mesh.submit("work", number) for number in range(20 * slots)]
        await eventually(lambda: len(worker.done) > slots)
        urgent = await mesh.submit("work", -1, priority="urgent")
        await urgent.result(within_s=10)
        assert len(worker.done) < 10 * slots
        for handle in handles:
            await handle.result(within_s=60)


async def test_children_have_the_priority_of_their_parent(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("worker")
    seen: list[str] = []

    @agent.handles("leaf")
    async def leaf(ctx: Context) -> str:
        seen.append(ctx.task.priority)
        return "leaf"

    @agent.handles("tree")
    async def tree(ctx: Context) -> str:
        ctx.send(leaf)
        return await ctx.call(leaf)

    async with hosting(agent, settings=settings):
        await (await mesh.submit(tree, priority="bulk")).result(within_s=10)
        await eventually(lambda: len(seen) == 2)

    assert seen == ["bulk", "bulk"]


async def test_an_unknown_priority_is_refused_by_name(mesh: Mesh) -> None:
    with pytest.raises(ContractError, match=r"priority 'asap' is none of urgent, normal, bulk"):
        await mesh.submit("work", 1, priority="asap")  # type: ignore[call-overload]
