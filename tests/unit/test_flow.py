"""Who holds a slot while verbs wait and steps run, and when a run parks."""

import asyncio
from collections.abc import Callable

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from mesh.workflow.flow import Clock, Flow
from mesh.workflow.parking import SETTLE_S, Wait, next_due, parks_at
from mesh.workflow.slots import Slot, Slots

waits = st.lists(st.builds(Wait, is_long=st.booleans()), max_size=5)


@given(waits, st.booleans(), st.floats(0, 100), st.floats(0, 100))
def test_a_run_parks_only_when_everything_in_it_waits(
    some: list[Wait], busy: bool, changed_at: float, hot_s: float
) -> None:
    long = sum(wait.is_long for wait in some)

    at = parks_at(some, long_waits=long, is_busy=busy, changed_at=changed_at, hot_s=hot_s)

    if busy or not some:
        assert at is None
    else:
        assert at == changed_at + (SETTLE_S if long == len(some) else hot_s)


@given(st.lists(st.floats(0, 1_000) | st.none(), max_size=5), st.floats(0, 1_000), st.floats(1, 100))
def test_a_parked_task_is_looked_at_when_its_first_wait_ends_and_no_later_than_again(
    dues: list[float | None], now: float, again_s: float
) -> None:
    at = next_due([Wait(due=due) for due in dues], now=now, again_s=again_s, limits=(None, 2_000.0))

    assert at <= now + again_s
    assert all(at <= due for due in dues if due is not None)
    assert at in {now + again_s, 2_000.0, *dues}


def test_only_the_time_with_a_slot_counts_for_the_timeout() -> None:
    clock = Clock(10.0)

    assert clock.start(100.0) == 110.0
    clock.stop(104.0)
    assert clock.start(1_000.0) == 1_006.0


class Scene:
    """One run over one slot of a peer that has `count`."""

    def __init__(self, count: int = 1, *, hot_s: float = 60.0, timeout_s: float = 60.0) -> None:
        self.told: list[bool] = []
        self.slots = Slots(count, on_free=lambda: None)
        self.slot = Slot(self.slots)
        self.stopped: list[bool] = []
        self.flow = Flow(
            self.slot,
            timeout_s=timeout_s,
            deadline_at=None,
            hot_s=hot_s,
            on_waiting=self.told.append,
            on_stopped=self.stopped.append,
        )

    async def run(self, handler: Callable[[], object]) -> bool:
        """Whether it parked."""
        await self.slot.take()
        try:
            async with self.flow.timeout() as scope:
                await handler()  # type: ignore[misc]
        except TimeoutError:
            assert scope.expired()
        finally:
            self.flow.close()
        return self.flow.is_parking


async def test_a_slot_is_given_back_while_a_verb_waits_and_held_again_after_it() -> None:
    scene = Scene()
    held: list[bool] = []

    async def handler() -> None:
        held.append(scene.slot.is_held)
        async with scene.flow.waiting(Wait()):
            held.append(scene.slot.is_held)
            assert scene.slots.in_use == 0
        held.append(scene.slot.is_held)

    assert not await scene.run(handler)
    assert held == [True, False, True]
    assert scene.told == [True, False]


async def test_a_branch_that_goes_on_beside_a_wait_takes_no_slot_but_a_step_does() -> None:
    scene = Scene()
    first, second = asyncio.Event(), asyncio.Event()
    held: dict[str, bool] = {}

    async def wait(event: asyncio.Event, name: str) -> None:
        async with scene.flow.waiting(Wait()):
            await event.wait()
        held[name] = scene.slot.is_held

    async def handler() -> None:
        async with asyncio.TaskGroup() as group:
            one = group.create_task(wait(first, "after the first wait"))
            two = group.create_task(wait(second, "after the last wait"))
            await asyncio.sleep(0)
            async with scene.flow.working():
                held["in a step"] = scene.slot.is_held
            held["after the step"] = scene.slot.is_held
            first.set()
            await one
            second.set()
            await two

    await scene.run(handler)
    assert held == {
        "in a step": True,
        "after the step": False,
        "after the first wait": False,
        "after the last wait": True,
    }


async def test_two_runs_of_one_slot_take_turns() -> None:
    slots = Slots(1, on_free=lambda: None)
    order: list[str] = []
    waiting = asyncio.Event()

    async def run(name: str) -> None:
        slot = Slot(slots)
        flow = Flow(slot, timeout_s=60, deadline_at=None, hot_s=60, on_waiting=lambda _: None)
        await slot.take()
        async with flow.timeout():
            order.append(f"{name} runs")
            async with flow.waiting(Wait()):
                await waiting.wait()
            order.append(f"{name} goes on")
        slot.give()
        flow.close()

    async with asyncio.TaskGroup() as group:
        group.create_task(run("a"))
        group.create_task(run("b"))
        await asyncio.sleep(0.01)
        assert order == ["a runs", "b runs"]
        waiting.set()
    assert order[2:] == ["a goes on", "b goes on"]
    assert slots.in_use == 0


async def test_a_run_whose_every_wait_is_long_parks_soon() -> None:
    scene = Scene(hot_s=3_600.0)

    async def handler() -> None:
        async with scene.flow.waiting(Wait(records=("signal",), is_long=True)):
            await asyncio.Event().wait()

    assert await scene.run(handler)
    assert [wait.records for wait in scene.flow.parked_waits] == [("signal",)]
    assert not scene.slot.is_held


async def test_a_run_with_a_step_in_flight_does_not_park() -> None:
    scene = Scene(hot_s=0.0)
    steps: list[str] = []

    async def step() -> None:
        async with scene.flow.working():
            await asyncio.sleep(10 * SETTLE_S)
            steps.append("done")

    async def handler() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(step())
            async with scene.flow.waiting(Wait(is_long=True)):
                await asyncio.Event().wait()

    assert await scene.run(handler)
    assert steps == ["done"]


async def test_a_child_that_is_being_submitted_keeps_the_run_in_memory() -> None:
    scene = Scene(hot_s=0.0)
    submitted: list[str] = []

    async def handler() -> None:
        async with scene.flow.waiting(Wait(is_long=True)):
            with scene.flow.arming():
                await asyncio.sleep(5 * SETTLE_S)
                submitted.append("child")
            await asyncio.Event().wait()

    assert await scene.run(handler)
    assert submitted == ["child"]


async def test_a_verb_of_a_run_that_is_being_parked_is_cancelled() -> None:
    scene = Scene(hot_s=0.0)
    met: list[str] = []

    async def handler() -> None:
        try:
            async with scene.flow.waiting(Wait()):
                await asyncio.Event().wait()
        finally:
            try:
                async with scene.flow.working():
                    met.append("ran")
            except asyncio.CancelledError:
                met.append("cancelled")

    assert await scene.run(handler)
    assert met == ["cancelled"]


async def test_time_spent_waiting_counts_for_no_timeout_and_time_spent_working_does() -> None:
    scene = Scene(timeout_s=0.2)
    reached: list[str] = []

    async def handler() -> None:
        async with scene.flow.waiting(Wait()):
            await asyncio.sleep(0.4)
        reached.append("after the wait")
        await asyncio.sleep(60)
        reached.append("after the timeout")

    assert not await scene.run(handler)
    assert reached == ["after the wait"]


async def test_a_stopped_clock_counts_nothing_keeps_the_slot_and_stays_in_memory() -> None:
    scene = Scene(timeout_s=0.2, hot_s=0.0)
    reached: list[str] = []

    async def handler() -> None:
        with scene.flow.stopped(), scene.flow.stopped():
            await asyncio.sleep(0.4)
            assert scene.slot.is_held
            assert not scene.flow.is_waiting
        reached.append("after the clock was stopped")
        await asyncio.sleep(60)

    assert not await scene.run(handler)
    assert reached == ["after the clock was stopped"]
    assert scene.stopped == [True, False]
    assert scene.told == []


async def test_a_clock_stays_stopped_when_the_wait_of_another_branch_ends() -> None:
    scene = Scene(timeout_s=0.2)
    reached: list[str] = []

    async def stop() -> None:
        with scene.flow.stopped():
            await asyncio.sleep(0.4)
        reached.append("stopped")

    async def wait() -> None:
        async with scene.flow.waiting(Wait()):
            await asyncio.sleep(0.1)
        reached.append("waited")

    async def handler() -> None:
        async with asyncio.TaskGroup() as branches:
            branches.create_task(stop())
            branches.create_task(wait())
        await asyncio.sleep(60)

    assert not await scene.run(handler)
    assert reached == ["waited", "stopped"]
    assert scene.told == [True, False]
    assert scene.stopped == [True, True, False]


async def test_a_clock_goes_on_with_the_end_of_the_wait_when_it_was_stopped_within_it() -> None:
    scene = Scene(timeout_s=0.2)
    reached: list[str] = []

    async def stop() -> None:
        with scene.flow.stopped():
            await asyncio.sleep(0.1)

    async def wait() -> None:
        async with scene.flow.waiting(Wait()):
            await asyncio.sleep(0.5)
        reached.append("waited")

    async def handler() -> None:
        async with asyncio.TaskGroup() as branches:
            branches.create_task(stop())
            branches.create_task(wait())
        await asyncio.sleep(60)

    assert not await scene.run(handler)
    assert reached == ["waited"]
    assert scene.stopped == [True]


async def test_a_failure_in_a_wait_is_met_with_the_slot_held() -> None:
    scene = Scene()

    async def handler() -> None:
        with pytest.raises(ValueError, match="refused"):
            async with scene.flow.waiting(Wait()):
                raise ValueError("refused")
        assert scene.slot.is_held

    assert not await scene.run(handler)


async def test_a_run_told_to_hurry_parks_although_it_has_time() -> None:
    scene = Scene(hot_s=3_600.0)

    async def handler() -> None:
        async with scene.flow.waiting(Wait()):
            scene.flow.hurry()
            await asyncio.Event().wait()

    assert await scene.run(handler)


def test_a_run_told_twice_to_hurry_parks_on_the_loop_that_peers_use_too() -> None:
    async def main() -> None:
        scene = Scene(hot_s=3_600.0)

        async def handler() -> None:
            async with scene.flow.waiting(Wait()):
                scene.flow.hurry()
                scene.flow.hurry()
                await asyncio.Event().wait()

        assert await scene.run(handler)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
