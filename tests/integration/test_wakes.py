"""Wakes that race with parks: the narrow moments, held open."""

import asyncio

import pytest

from contracts.subjects import Identity, Kind
from mesh import Agent, Context, Mesh
from mesh.bus.commit import ack as real_ack
from mesh.bus.connection import Bus
from mesh.bus.parks import is_parked, publish_wake, wake
from mesh.bus.pull import Delivery
from mesh.human import agent as people
from mesh.runtime import settle
from mesh.settings import Settings
from mesh.testing import eventually, hosting
from mesh.workflow.inbox import Inbox, unanswered


async def test_a_child_that_ends_between_its_parents_last_look_and_its_ack_wakes_it(
    mesh: Mesh, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = Agent("tester")
    may_end = {"first": asyncio.Event(), "second": asyncio.Event()}

    @agent.handles("child", concurrency=8)
    async def child(name: str) -> str:
        await may_end[name].wait()
        return name

    @agent.handles("parent")
    async def parent(ctx: Context) -> list[str]:
        return [await ctx.call(child, name) for name in ("first", "second")]

    never_again = settings.model_copy(update={"hot_wait_s": 0.05, "wake_again_s": 3_600.0, "ack_wait_s": 30.0})
    async with hosting(agent, settings=never_again) as peer:

        async def ack(bus: Bus, delivery: Delivery) -> None:
            # The parent's run under its first wake has looked for the second child, and is about to ack.
            if bus.subjects.parse(delivery.subject).kind is Kind.WAKE and not may_end["second"].is_set():
                may_end["second"].set()
                await eventually(lambda: not any(task.capability == "child" for task in peer.host.running))
            await real_ack(bus, delivery)

        monkeypatch.setattr(settle, "ack", ack)
        handle = await mesh.submit(parent)
        await eventually(lambda: peer.metrics.registry.get_sample_value("mesh_parks_total", {"capability": "parent"}))
        may_end["first"].set()

        assert await handle.result(within_s=20) == ["first", "second"]


async def test_a_wake_that_meets_another_one_is_left_for_later(mesh: Mesh) -> None:
    task, subjects = Identity("parent", "p-1"), mesh.bus.subjects
    await mesh.bus.store(subjects.park(task), b"{}")

    assert await wake(mesh.bus, task)
    assert await wake(mesh.bus, task)
    assert await wake(mesh.bus, task)

    assert not await publish_wake(mesh.bus, task)
    info = await mesh.bus.api(f"STREAM.INFO.{subjects.stream}", {"subjects_filter": ">"})
    assert set(info["state"]["subjects"]) == {
        subjects.park(task),
        subjects.wake(task),
        subjects.wake(task, is_again=True),
    }


async def test_a_task_that_is_not_parked_or_has_a_result_is_not_woken(mesh: Mesh) -> None:
    fresh, done, subjects = Identity("parent", "p-1"), Identity("parent", "p-2"), mesh.bus.subjects
    await mesh.bus.store(subjects.park(done), b"{}")
    await mesh.bus.store(subjects.result(done), b"{}")

    assert not await wake(mesh.bus, fresh)
    assert await wake(mesh.bus, done)

    assert not await is_parked(mesh.bus, fresh)
    info = await mesh.bus.api(f"STREAM.INFO.{subjects.stream}", {"subjects_filter": ">"})
    assert set(info["state"]["subjects"]) == {subjects.park(done), subjects.result(done)}


async def test_a_branch_that_is_about_to_ask_is_not_parked_away(
    mesh: Mesh, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = Agent("hasty")
    admit = Inbox.admit

    async def slow(self: Inbox, task: Identity) -> None:
        await asyncio.sleep(0.1)  # a slow link is the fault
        await admit(self, task)

    monkeypatch.setattr(Inbox, "admit", slow)

    @agent.handles("hasty")
    async def hasty(ctx: Context) -> None:
        await ctx.gather(ctx.approve("now"), ctx.signal("enough"))

    async with hosting(agent, people, settings=settings):
        await mesh.submit(hasty, key="x-1")
        await eventually(lambda: unanswered(mesh.bus), within_s=5)
