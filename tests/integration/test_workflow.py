"""Durable verbs on a real mesh: what is done stays done, and a run goes on where the last one ended."""

import asyncio
from collections import Counter

import pytest

from mesh import Agent, Context, DeadlineExceeded, Handle, Mesh, TaskFailed
from mesh.settings import Settings
from mesh.testing import eventually, hosting


async def test_a_parent_calls_a_child_and_goes_on_with_its_value(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("tester")

    @agent.handles("double")
    async def double(number: int) -> int:
        return 2 * number

    @agent.handles("add-up")
    async def add_up(numbers: list[int], ctx: Context) -> int:
        return sum([await ctx.call(double, number) for number in numbers])

    async with hosting(agent, settings=settings):
        handle = await mesh.submit(add_up, [1, 2, 3])

        assert await handle.result(within_s=20) == 12


async def test_nested_calls_of_one_capability_with_one_slot_do_not_wedge(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("tester")

    @agent.handles("down", concurrency=1)
    async def down(depth: int, ctx: Context) -> int:
        return 0 if depth == 0 else 1 + await ctx.call("down", depth - 1, returns=int)

    async with hosting(agent, settings=settings):
        handle = await mesh.submit(down, 100)

        assert await handle.result(within_s=60) == 100


async def test_a_map_gives_every_item_once_and_in_order(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("tester")
    runs: Counter[int] = Counter()

    @agent.handles("square", concurrency=32)
    async def square(number: int) -> int:
        runs[number] += 1
        return number * number

    @agent.handles("squares")
    async def squares(count: int, ctx: Context) -> list[int]:
        return await ctx.map(square, range(count))

    async with hosting(agent, settings=settings):
        handle = await mesh.submit(squares, 500)

        assert await handle.result(within_s=60) == [number * number for number in range(500)]
    assert set(runs.values()) == {1}


async def test_a_sleep_longer_than_memory_parks_and_wakes(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("tester")
    runs = Counter[str]()

    @agent.handles("nap")
    async def nap(seconds: float, ctx: Context) -> str:
        runs["handler"] += 1

        def note() -> str:
            runs["step"] += 1
            return "noted"

        told = await ctx.step("note", note)
        await ctx.sleep(seconds)
        return told

    brief = settings.model_copy(update={"hot_wait_s": 0.1})
    async with hosting(agent, settings=brief) as peer:
        handle = await mesh.submit(nap, 0.7)

        assert await handle.result(within_s=20) == "noted"
        assert peer.metrics.registry.get_sample_value("mesh_parks_total", {"capability": "nap"}) == 1
    assert runs == {"handler": 2, "step": 1}


async def test_a_signal_wakes_a_parked_task(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("tester")

    @agent.handles("order")
    async def order(item: str, ctx: Context) -> str:
        paid: str = await ctx.signal("paid", returns=str)
        return f"{item} paid by {paid}"

    async with hosting(agent, settings=settings):
        handle = await mesh.submit(order, "tea", key="o-1")
        await asyncio.sleep(0.5)
        await mesh.signal(order, "o-1", "paid", "card")

        assert await handle.result(within_s=20) == "tea paid by card"


async def test_a_childs_failure_fails_the_parent_for_good(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("tester")

    @agent.handles("refuse")
    async def refuse() -> None:
        from mesh import Permanent

        raise Permanent("no")

    @agent.handles("ask")
    async def ask(ctx: Context) -> None:
        await ctx.call(refuse)

    async with hosting(agent, settings=settings):
        handle = await mesh.submit(ask)
        with pytest.raises(TaskFailed, match=r"refuse/.* failed") as told:
            await handle.result(within_s=20)

    assert told.value.outcome.attempt == 1


async def test_a_result_that_came_between_two_waits_is_found_at_once(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("tester")

    @agent.handles("order")
    async def order(ctx: Context) -> str:
        return await ctx.signal("paid", returns=str)

    async with hosting(agent, settings=settings):
        handle = await mesh.submit(order, key="o-1")
        with pytest.raises(DeadlineExceeded):
            await handle.result(within_s=0.5)
        await mesh.signal(order, "o-1", "paid", "card")
        await eventually(lambda: _is_over(handle))

        assert await handle.result(within_s=2) == "card"


async def _is_over(handle: Handle[str]) -> bool:
    return (await handle.status()).outcome is not None
