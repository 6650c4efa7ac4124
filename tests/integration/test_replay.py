"""Another run of a handler: what it finds, and what it is told when it asks for something else."""

import asyncio
import random
import time
from collections import Counter

import msgspec
import pytest

from contracts.outcome import FailureKind
from contracts.workflow import Step
from mesh import Agent, Context, Mesh, Permanent, TaskCancelled, TaskExpired, TaskFailed, Transient
from mesh.bus import topology
from mesh.bus.steps import write_step
from mesh.settings import Settings
from mesh.testing import eventually, hosting


def brief(settings: Settings) -> Settings:
    """Waits park almost at once, so that nearly every verb is met by a run of its own."""
    return settings.model_copy(update={"hot_wait_s": 0.01})


async def test_steps_and_children_run_once_however_often_the_handler_does(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("tester")
    runs: Counter[str] = Counter()

    @agent.handles("echo")
    async def echo(text: str) -> str:
        runs[f"child {text}"] += 1
        await asyncio.sleep(0.1)
        return text

    @agent.handles("chain")
    async def chain(ctx: Context) -> list[str]:
        runs["handler"] += 1
        told: list[str] = []
        for name in ("a", "b", "c"):

            def note(name: str = name) -> str:
                runs[f"step {name}"] += 1
                return name

            told.append(await ctx.step(name, note))
            told.append(await ctx.call(echo, name))
        return told

    async with hosting(agent, settings=brief(settings)):
        handle = await mesh.submit(chain)
        assert await handle.result(within_s=20) == ["a", "a", "b", "b", "c", "c"]

    assert runs.pop("handler") >= 4
    assert set(runs.values()) == {1}
    assert len(runs) == 6


async def test_a_group_of_fibers_asks_for_the_same_children_in_every_run(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("tester")
    dice = random.Random(7)
    runs: Counter[str] = Counter()

    @agent.handles("echo", concurrency=64)
    async def echo(text: str) -> str:
        runs[f"child {text}"] += 1
        await asyncio.sleep(dice.uniform(0, 0.2))
        return text

    @agent.handles("branches")
    async def branches(ctx: Context) -> list[str]:
        runs["handler"] += 1
        told: dict[int, str] = {}

        async def branch(number: int) -> None:
            await asyncio.sleep(dice.uniform(0, 0.005))
            first = await ctx.call(echo, f"{number % 3}")
            await asyncio.sleep(dice.uniform(0, 0.005))
            told[number] = first + await ctx.call(echo, f"then {number}")

        async with asyncio.TaskGroup() as group:
            for number in range(8):
                group.create_task(branch(number))
        return [told[number] for number in sorted(told)]

    async with hosting(agent, settings=brief(settings)):
        handle = await mesh.submit(branches)
        assert await handle.result(within_s=30) == [f"{number % 3}then {number}" for number in range(8)]
        children = await topology.queued(mesh.bus, mesh.bus.subjects.results_of("echo"))

    assert runs["handler"] >= 2
    assert len(children) == 16
    assert sum(count for name, count in runs.items() if name != "handler") == 16


async def test_something_else_under_a_name_is_told_with_what_was_asked_then_and_now(
    mesh: Mesh, settings: Settings
) -> None:
    agent = Agent("tester")
    asked: list[str] = []

    @agent.handles("echo")
    async def echo(text: str) -> str:
        return text

    @agent.handles("wavering")
    async def wavering(ctx: Context) -> str:
        asked.append(f"text {len(asked)}")
        told = await ctx.call(echo, asked[-1], name="fixed")
        raise Transient(f"again after {told}", after_s=0.0)

    async with hosting(agent, settings=settings):
        handle = await mesh.submit(wavering)
        with pytest.raises(TaskFailed, match=r"~fixed is fixed by its name .* then .* now .*text 1") as told:
            await handle.result(within_s=20)

    assert told.value.failure.kind is FailureKind.NON_DETERMINISM
    assert len(asked) == 2


async def test_another_capability_under_a_name_is_told_too(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("tester")
    runs: list[int] = []

    @agent.handles("one")
    async def one() -> int:
        return 1

    @agent.handles("two")
    async def two() -> int:
        return 2

    @agent.handles("wavering")
    async def wavering(ctx: Context) -> int:
        runs.append(1)
        await ctx.call(one if len(runs) == 1 else two, name="fixed")
        raise Transient("again", after_s=0.0)

    async with hosting(agent, settings=settings):
        handle = await mesh.submit(wavering)
        with pytest.raises(TaskFailed, match="stands for another capability than two"):
            await handle.result(within_s=20)


async def test_other_arguments_under_a_steps_name_are_told(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("tester")
    asked: list[int] = []

    @agent.handles("wavering")
    async def wavering(ctx: Context) -> int:
        asked.append(len(asked))
        await ctx.step("charge", abs, asked[-1])
        raise Transient("again", after_s=0.0)

    async with hosting(agent, settings=settings):
        handle = await mesh.submit(wavering)
        with pytest.raises(TaskFailed, match=r"step 'charge' of .* other arguments: then digest .* now .*: \(1,\)"):
            await handle.result(within_s=20)


async def test_a_name_used_twice_in_one_run_fails_at_once(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("tester")

    @agent.handles("twice")
    async def twice(ctx: Context) -> None:
        await ctx.step("charge", lambda: 1)
        await ctx.step("charge", lambda: 2)

    async with hosting(agent, settings=settings):
        handle = await mesh.submit(twice)
        with pytest.raises(TaskFailed, match=r"step 'charge' of twice/.* is used twice in one run"):
            await handle.result(within_s=20)


async def test_a_step_that_fails_for_good_fails_alike_in_every_run(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("tester")
    charged: list[int] = []

    @agent.handles("buy")
    async def buy(ctx: Context) -> str:
        def charge() -> None:
            charged.append(1)
            raise Permanent("card refused")

        try:
            await ctx.step("charge", charge)
        except Permanent as error:
            if len(charged) == 1 and ctx.attempt == 1:
                raise Transient("the peer stumbles", after_s=0.0) from error
            return str(error)
        return "paid"

    async with hosting(agent, settings=settings):
        handle = await mesh.submit(buy)
        assert await handle.result(within_s=20) == "card refused"

    assert charged == [1]


async def test_a_task_that_began_before_a_change_keeps_to_the_old_code(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("tester")

    @agent.handles("ship")
    async def old(ctx: Context) -> str:
        await ctx.signal("go")
        return "old way"

    changed = Agent("tester")

    @changed.handles("ship")
    async def new(ctx: Context) -> str:
        version = await ctx.version("new-way", 2)
        await ctx.signal("go")
        return f"way {version}"

    async with hosting(agent, settings=settings) as peer:
        before = await mesh.submit("ship", key="before")
        await eventually(lambda: peer.metrics.registry.get_sample_value("mesh_parks_total", {"capability": "ship"}))
    async with hosting(changed, settings=settings):
        after = await mesh.submit("ship", key="after")
        await mesh.signal("ship", "before", "go")
        await mesh.signal("ship", "after", "go")
        assert await before.result(within_s=20) == "way 0"
        assert await after.result(within_s=20) == "way 2"


async def test_a_drain_parks_what_waits_and_another_peer_goes_on(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("tester")

    @agent.handles("slow")
    async def slow() -> str:
        await asyncio.sleep(1.0)
        return "done"

    asking = Agent("tester")

    @asking.handles("ask")
    async def ask(ctx: Context) -> str:
        return await ctx.call("slow", returns=str)

    patient = settings.model_copy(update={"hot_wait_s": 600.0})
    async with hosting(agent, settings=settings):
        async with hosting(asking, settings=patient) as first:
            handle = await mesh.submit(ask)
            await eventually(lambda: first.host.waiting)
        async with hosting(asking, settings=patient):
            assert await handle.result(within_s=20) == "done"


async def test_a_wait_that_outlasts_the_records_is_refused_when_it_is_asked_for(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("tester")

    @agent.handles("nap")
    async def nap(ctx: Context) -> None:
        await ctx.sleep(10 * 86_400)

    async with hosting(agent, settings=settings):
        handle = await mesh.submit(nap)
        with pytest.raises(TaskFailed, match="outlasts the records of nap/"):
            await handle.result(within_s=20)


async def test_a_verb_inside_a_step_is_refused(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("tester")

    @agent.handles("nested")
    async def nested(ctx: Context) -> None:
        async def within() -> None:
            await ctx.sleep(1)

        await ctx.step("outer", within)

    async with hosting(agent, settings=settings):
        handle = await mesh.submit(nested)
        with pytest.raises(TaskFailed, match="a durable verb inside the step nested/"):
            await handle.result(within_s=20)


async def test_what_a_step_spent_counts_once_however_often_it_is_replayed(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("tester")

    @agent.handles("think")
    async def think(ctx: Context) -> None:
        def model() -> str:
            ctx.spent(tokens_in=10, tokens_out=5, usd=0.25)
            return "thought"

        await ctx.step("model", model)
        await ctx.sleep(0.3)

    async with hosting(agent, settings=brief(settings)):
        outcome = await (await mesh.submit(think)).outcome(within_s=20)

    assert outcome.attempt > 1
    assert outcome.spent is not None
    assert (outcome.spent.tokens_in, outcome.spent.tokens_out, outcome.spent.usd) == (10, 5, 0.25)


def saga(agent: Agent, done: list[str], *, fails: bool = True) -> None:
    @agent.handles("book", attempts=2)
    async def book(ctx: Context) -> str:
        for name in ("flight", "hotel", "car"):
            await ctx.compensate(done.remove, name, name=name)
            await ctx.step(name, done.append, name)
        await ctx.signal("confirmed")
        if fails:
            raise Permanent("no seats after all")
        return "booked"


async def test_what_a_failed_task_did_is_undone_last_first(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("tester")
    log: list[str] = []

    @agent.handles("book")
    async def book(ctx: Context) -> None:
        for name in ("flight", "hotel", "car"):
            await ctx.compensate(log.append, f"undo {name}", name=name)
            await ctx.step(name, log.append, f"do {name}")
        raise Permanent("no seats after all")

    async with hosting(agent, settings=settings):
        handle = await mesh.submit(book)
        with pytest.raises(TaskFailed, match="no seats after all"):
            await handle.result(within_s=20)

    assert log == ["do flight", "do hotel", "do car", "undo car", "undo hotel", "undo flight"]


async def test_a_parked_task_that_is_cancelled_is_undone(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("tester")
    done: list[str] = []
    saga(agent, done)

    async with hosting(agent, settings=settings) as peer:
        handle = await mesh.submit("book", key="b-1")
        await eventually(lambda: peer.metrics.registry.get_sample_value("mesh_parks_total", {"capability": "book"}))
        await eventually(lambda: not peer.host.running)
        assert done == ["flight", "hotel", "car"]
        await handle.cancel()
        with pytest.raises(TaskCancelled):
            await handle.result(within_s=20)

    assert done == []


async def test_a_parked_task_past_its_deadline_is_undone(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("tester")
    done: list[str] = []
    saga(agent, done)

    async with hosting(agent, settings=settings):
        handle = await mesh.submit("book", deadline_s=1.5)
        with pytest.raises(TaskExpired):
            await handle.result(within_s=20)

    assert done == []


async def test_a_task_that_ends_well_undoes_nothing(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("tester")
    done: list[str] = []
    saga(agent, done, fails=False)

    async with hosting(agent, settings=settings):
        handle = await mesh.submit("book", key="b-1")
        await eventually(lambda: len(done) == 3)
        await mesh.signal("book", "b-1", "confirmed")
        assert await handle.result(within_s=20) == "booked"

    assert done == ["flight", "hotel", "car"]


@pytest.mark.parametrize("wait", ["signal", "until", "sleep"])
async def test_a_compensation_registered_last_before_a_wait_is_run(mesh: Mesh, settings: Settings, wait: str) -> None:
    agent = Agent("tester")
    undone: list[str] = []

    @agent.handles("book")
    async def book(at: float, ctx: Context) -> None:
        await ctx.step("flight", lambda: None)
        await ctx.compensate(undone.append, "flight")
        if wait == "signal":
            await ctx.signal("go")
        elif wait == "until":
            await ctx.until(at)
        else:
            await ctx.sleep(100)

    async with hosting(agent, settings=settings) as peer:
        handle = await mesh.submit(book, time.time() + 100, key="b-1")
        await eventually(lambda: peer.metrics.registry.get_sample_value("mesh_parks_total", {"capability": "book"}))
        await handle.cancel()
        with pytest.raises(TaskCancelled):
            await handle.result(within_s=20)

    assert undone == ["flight"]


@pytest.mark.parametrize("is_branching", [False, True])
async def test_a_run_whose_step_another_run_recorded_first_ends_and_undoes_nothing(
    mesh: Mesh, settings: Settings, is_branching: bool
) -> None:
    agent = Agent("tester")
    ran: Counter[str] = Counter()

    @agent.handles("errand")
    async def errand(ctx: Context) -> list[str]:
        ran["handler"] += 1

        async def overtaken() -> str:
            """Another run, in all that this one can see, does the step meanwhile."""
            ran["first"] += 1
            ahead = Step(value=msgspec.Raw(b'"theirs"'), peer="another", at=time.time())
            await write_step(mesh.bus, ctx.identity, "first", ahead, ttl_s=60)
            return "mine"

        async def later(name: str) -> str:
            ran[name] += 1
            return name

        async def branch() -> list[str]:
            return [await ctx.step("first", overtaken), await ctx.step("second", later, "second")]

        def undo() -> None:
            ran["undo"] += 1

        await ctx.compensate(undo)
        if not is_branching:
            return await branch()
        async with asyncio.TaskGroup() as group:
            told = group.create_task(branch())
        return told.result()

    async with hosting(agent, settings=settings) as peer:
        handle = await mesh.submit(errand)
        assert await handle.result(within_s=30) == ["theirs", "second"]
        label = {"capability": "errand", "reason": "overtaken by another run"}
        assert peer.metrics.registry.get_sample_value("mesh_handed_back_total", label) == 1

    assert ran == {"handler": 2, "first": 1, "second": 1}
