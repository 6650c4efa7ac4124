"""Waiting tasks under faults: nothing recorded is done again, no wait is forgotten, nothing stays half done."""

import asyncio
import os
import random
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from contracts.outcome import Status
from contracts.subjects import Identity
from contracts.workflow import Answer, Verdict
from mesh.bus import topology
from mesh.bus.parks import publish_wake, wake
from mesh.bus.records import read
from mesh.client import Mesh
from mesh.testing import eventually
from mesh.testing.faults import Fault, KillBroker, KillPeer, RestartBroker, Scene, repeated_until_done
from mesh.testing.history import UNDO, Entry, Findings, What
from mesh.testing.kill_points import Point
from mesh.verbs import ANSWER
from tests.faults.scene import ask, findings, scene, seed
from tests.faults.workflows import STEPS, Burst, Leaf, Pay, Trip, Weave, step_of

WITHIN_S = 100.0
FOR_EVER_S = 3_600.0
"""Nothing looks at a parked task before the test is over, so that a lost wake shows."""
DOOMED = (Status.FAILED,)

slow = pytest.mark.slow


def flows(folder: Path, *, peers: int, seed: int, **changes: Any) -> AbstractAsyncContextManager[Scene]:
    """A scene whose peers wait for others."""
    settings = {"hot_wait_s": 0.2, "wake_again_s": FOR_EVER_S, **changes}
    return scene(folder, peers=peers, seed=seed, workload="tests.faults.workflows", **settings)


@asynccontextmanager
async def striking(here: Scene, faults: Sequence[Fault], *, every_s: float) -> AsyncIterator[None]:
    """Some fault again and again until left; the last one ends what it holds."""
    calm = asyncio.Event()

    async def strike() -> None:
        while faults and not calm.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(here.dice.uniform(0.5, 1.5) * every_s):
                    await calm.wait()
            if not calm.is_set():
                await here.dice.choice(faults).strike(here)

    async with asyncio.TaskGroup() as fibers:
        fibers.create_task(strike())
        try:
            yield
        finally:
            calm.set()


async def play(
    here: Scene,
    asking: Iterable[Coroutine[Any, Any, Any]],
    *,
    faults: Sequence[Fault] = (),
    every_s: float = 1.0,
    within_s: float = WITHIN_S,
) -> Findings:
    """What the history proves once all that is asked is answered; past `within_s` seconds, as it stands."""
    began = time.monotonic()
    try:
        async with (
            asyncio.timeout(within_s),
            striking(here, faults, every_s=every_s),
            asyncio.TaskGroup() as fibers,
        ):
            for one in asking:
                fibers.create_task(one)
        found = await findings(here)
    except TimeoutError:
        found = await findings(here, within_s=0.0)
    sys.stdout.write(f"{time.monotonic() - began:.1f} s {found.figures}\n")
    return found


def ask_flow(here: Scene, capability: str, key: str, payload: Any, **more: Any) -> Coroutine[Any, Any, Any]:
    return ask(here, capability, key, payload, is_workflow=True, **more)


def results(here: Scene) -> dict[str, Entry]:
    """What stands at the end, by task."""
    return {entry.task: entry for entry in here.history.read(What.RECORDED)}


def below(here: Scene, root: str) -> Counter[str]:
    """How many results stand below a root, by capability."""
    tasks = (task.partition("/") for task in results(here))
    return Counter(capability for capability, _, id_ in tasks if id_.startswith(f"{root}."))


def confirmed(here: Scene) -> set[str]:
    return {entry.task for entry in here.history.read(What.CONFIRMED)}


async def parked(here: Scene, capability: str, count: int) -> None:
    """Return when so many of a capability's tasks are parked, and settled."""
    bus = here.client.bus

    async def are_parked() -> bool:
        if len(await topology.queued(bus, bus.subjects.parks_of(capability))) < count:
            return False
        info = await bus.api(f"CONSUMER.INFO.{bus.subjects.stream}.{capability}")
        return not info["num_pending"] and not info["num_ack_pending"]

    await eventually(are_parked, within_s=WITHIN_S)


async def effect(here: Scene, task: str, what: str, *, count: int = 1) -> list[int]:
    """The processes that did something outside for a task, once there are so many."""

    def found() -> list[int]:
        done = [e for e in here.history.read(What.EFFECT) if e.task == task and e.detail == what]
        return [int(entry.peer) for entry in done] if len(done) >= count else []

    return await eventually(found, within_s=WITHIN_S)


# Many children.


@pytest.mark.parametrize("count", [600, pytest.param(2_000, marks=slow)])
async def test_a_map_gives_each_item_once_while_one_peer_in_five_is_killed_again_and_again(
    tmp_path: Path, count: int
) -> None:
    async with flows(tmp_path, peers=5, seed=seed()) as here:
        found = await play(here, [ask_flow(here, "spread", "s", count)], faults=[KillPeer()], every_s=0.4)

        assert not found.violations, str(found)
        assert found.figures["fault_kill-peer"] >= 1
        assert msgspec.json.decode(results(here)["spread/s"].value) == [number**2 for number in range(count)]
        assert below(here, "s") == {"square": count}


@pytest.mark.parametrize(
    ("depth", "width", "faults"),
    [
        (100, 300, [KillPeer()]),
        pytest.param(100, 10_000, [], marks=slow),
        pytest.param(100, 2_000, [KillPeer()], marks=slow),
    ],
)
@pytest.mark.timeout(300)
async def test_a_capability_that_asks_for_itself_with_one_slot_a_peer_does_not_wedge(
    tmp_path: Path, depth: int, width: int, faults: list[Fault]
) -> None:
    async with flows(tmp_path, peers=4, seed=seed()) as here:
        asking = [ask_flow(here, "down", "d", depth), ask_flow(here, "wide", "w", Leaf(width))]
        found = await play(here, asking, faults=faults, every_s=0.3, within_s=250.0)

        assert not found.violations, str(found)
        assert results(here)["down/d"].value == str(depth)
        assert results(here)["wide/w"].value == str(width)
        assert below(here, "d") == {"down": depth}
        assert below(here, "w") == {"wide": width}


@pytest.mark.parametrize(("tasks", "replays"), [(6, 34), pytest.param(4, 200, marks=slow)])
async def test_branches_that_interleave_otherwise_in_each_of_200_replays_ask_for_the_same_children(
    tmp_path: Path, tasks: int, replays: int
) -> None:
    branches = 6
    async with flows(tmp_path, peers=3, seed=seed(), hot_wait_s=0.05) as here:
        asking = [ask_flow(here, "weave", f"w{number}", Weave(branches, replays)) for number in range(tasks)]
        found = await play(here, asking, faults=[KillPeer()], every_s=0.5)

        assert not found.violations, str(found)
        runs = Counter(entry.task for entry in here.history.read(What.RAN) if entry.task.startswith("weave/"))
        # A peer may die between the record that an attempt began and its handler's start.
        assert min(runs.values()) >= replays - found.figures["fault_kill-peer"]
        assert sum(runs.values()) >= 200
        value = str(sum(n**2 + (100 + n**2) ** 2 + 49 for n in range(branches)))
        for number in range(tasks):
            assert results(here)[f"weave/w{number}"].value == value
            assert below(here, f"w{number}") == {"square": 3 * branches}


# Wakes.

DAWDLE = {
    Point.PARK_BEGUN: 0.02,
    Point.PARKED: 0.02,
    Point.TIMED: 0.02,
    Point.LOOKED: 0.02,
    Point.WAKE_DUE: 0.02,
    Point.WOKEN: 0.02,
    Point.AGAIN_WOKEN: 0.02,
}
DEADLY = {
    **dict.fromkeys(DAWDLE, 0.001),
    Point.WAKE_DUE: 0.005,
    Point.UNCOMMITTED: 0.001,
    Point.COMMITTED: 0.002,
    Point.ACK_LOST: 0.01,
}


@pytest.mark.parametrize(
    ("parents", "signals"), [(60, 60), *[pytest.param(300, 300, marks=slow, id=f"storm{n}") for n in range(10)]]
)
@pytest.mark.timeout(300)
async def test_no_task_stays_parked_when_what_it_waits_for_is_there(tmp_path: Path, parents: int, signals: int) -> None:
    chosen = seed()
    dice = random.Random(f"{chosen} storm")

    async def send(here: Scene, number: int) -> None:
        task = Identity("listen", f"l{number}")
        await eventually(lambda: str(task) in confirmed(here), within_s=WITHIN_S, every_s=0.2)
        await asyncio.sleep(dice.uniform(0, 0.3))  # another moment for each
        for nth in range(3):
            await asyncio.sleep(dice.uniform(0, 0.15))  # another moment for each
            await repeated_until_done(lambda nth=nth: here.client.signal("listen", task.id, f"signal-{nth}", nth))

    async with flows(tmp_path, peers=4, seed=chosen, hot_wait_s=0.02, pauses=DAWDLE, points=DEADLY) as here:
        storms = [
            Burst(tuple(tuple(dice.uniform(0.0, 0.09) for _ in range(dice.choice((1, 2, 6)))) for _ in range(3)))
            for _ in range(parents)
        ]
        asking = [ask_flow(here, "burst", f"b{number}", storm) for number, storm in enumerate(storms)]
        asking += [ask_flow(here, "listen", f"l{number}", 3) for number in range(signals)]
        asking += [send(here, number) for number in range(signals)]
        found = await play(here, asking, faults=[KillPeer()], every_s=2.0, within_s=40.0 if parents < 100 else 200.0)

        assert not found.violations, str(found)
        for number, storm in enumerate(storms):
            assert results(here)[f"burst/b{number}"].value == str(sum(map(len, storm.rounds)))
            assert below(here, f"b{number}") == {"tick": sum(map(len, storm.rounds))}
        for number in range(signals):
            assert results(here)[f"listen/l{number}"].value == "[0,1,2]"


async def test_a_wake_that_meets_one_already_looked_for_and_one_already_spent_is_not_lost(mesh: Mesh) -> None:
    task, bus, subjects = Identity("parent", "p"), mesh.bus, mesh.bus.subjects
    await bus.store(subjects.park(task), b"{}")
    await wake(bus, task)
    await wake(bus, task)
    # The run under the first wake ends, and whoever has the second one turns it into a wake, and is slow to ack it.
    await settled(mesh, subjects.wake(task))
    await publish_wake(bus, task)

    async with asyncio.TaskGroup() as fibers:
        # The run under that wake has made its last look when another child ends.
        waking = fibers.create_task(wake(bus, task))
        await asyncio.wait([waking], timeout=0.5)
        await settled(mesh, subjects.wake(task, is_again=True))
        await settled(mesh, subjects.wake(task))

    assert await topology.queued(bus, subjects.wakes_of("parent")[0])


async def settled(mesh: Mesh, subject: str) -> None:
    """Take a message away, as its ack does."""
    stored = await read(mesh.bus, subject)
    assert stored is not None
    await mesh.bus.api(f"STREAM.MSG.DELETE.{mesh.bus.subjects.stream}", {"seq": stored.sequence})


# Sagas.

DONE_PLACES = [f"{when} {step}" for step in STEPS for when in ("before", "inside", "after")]
UNDO_PLACES = [f"{when} undo {step}" for step in reversed(STEPS) for when in ("before", "inside", "after")]
EVERY_DEATH = [
    *[Trip("done", place) for place in (*DONE_PLACES, "last")],
    *[Trip("failed", place) for place in (*DONE_PLACES, "last", *UNDO_PLACES)],
]


def half_done(entries: Iterable[Entry]) -> list[str]:
    """Trips that are neither wholly done nor wholly undone, for a far side that honours keys."""
    keys: set[str] = set()
    told: dict[str, list[str]] = defaultdict(list)
    recorded: set[tuple[str, str]] = set()
    outcomes: dict[str, str] = {}
    wrong: list[str] = []
    for entry in entries:
        if entry.what is What.EFFECT:
            if (entry.task, entry.detail) in recorded:
                wrong.append(f"{entry.task} did {entry.detail} after its record")
            if entry.value not in keys:
                keys.add(entry.value)
                told[entry.task].append(entry.detail)
        elif entry.what is What.STEPPED:
            recorded.add((entry.task, step_of(entry.detail)))
        elif entry.what is What.RECORDED and "trip/" in entry.task:
            outcomes[entry.task] = entry.status
    for task, status in outcomes.items():
        done = [what for what in told[task] if what in STEPS]
        undone = [what.removeprefix("undo ") for what in told[task] if what not in STEPS]
        in_order = told[task] == [*done, *(f"undo {step}" for step in undone)] and done == list(STEPS[: len(done)])
        if not in_order or undone != sorted(undone, key=STEPS.index, reverse=True):
            wrong.append(f"{task} out of order: {told[task]}")
        elif status == Status.DONE and (undone or done != list(STEPS)):
            wrong.append(f"{task} is done, and did {told[task]}")
        elif status != Status.DONE and not set(done) <= set(undone):
            wrong.append(f"{task} is {status}, and did {told[task]}")
    return wrong


@pytest.mark.parametrize("share", [0.25, pytest.param(1.0, marks=slow)])
@pytest.mark.timeout(300)
async def test_a_saga_killed_at_each_point_in_turn_is_wholly_done_or_wholly_undone(
    tmp_path: Path, share: float
) -> None:
    chosen = seed()
    trips = random.Random(chosen).sample(EVERY_DEATH, int(share * len(EVERY_DEATH)))
    async with flows(tmp_path, peers=4, seed=chosen) as here:
        asking = [
            ask_flow(here, "trip", f"{trip.ends}-{trip.dies}".replace(" ", "-"), trip, is_doomed=trip.ends == "failed")
            for trip in trips
        ]
        found = await play(here, asking, within_s=250.0)

        assert not found.violations, str(found)
        assert half_done(here.history.read()) == []
        # Another trip's death may come first at the one place that a run passes only once.
        alive = {e.task for e in here.history.read(What.ATTEMPTED)} - {e.task for e in here.history.read(What.FAULT)}
        assert [task for task in alive if "after-undo" not in task] == []
        for task, entry in results(here).items():
            assert entry.status == task.removeprefix("trip/").partition("-")[0]


async def test_a_saga_that_is_cancelled_late_or_out_of_attempts_is_wholly_undone(tmp_path: Path) -> None:
    async def cancelled(here: Scene, key: str, trip: Trip) -> None:
        asked = asyncio.TaskGroup()
        async with asked as fibers:
            fibers.create_task(ask_flow(here, "trip", key, trip))
            await effect(here, f"trip/{key}", "car")
            if trip.ends != "held":
                await eventually(lambda: is_parked(here, Identity("trip", key)), within_s=WITHIN_S)
            await here.client.cancel("trip", key)

    async with flows(tmp_path, peers=3, seed=seed()) as here:
        asking = [
            cancelled(here, "cancelled-parked", Trip("signal")),
            cancelled(here, "cancelled-asleep", Trip("sleep")),
            cancelled(here, "cancelled-running", Trip("held")),
            ask_flow(here, "trip", "expired-parked", Trip("signal"), deadline_s=3.0),
            ask_flow(here, "trip", "expired-asleep", Trip("sleep"), deadline_s=3.0),
            ask_flow(here, "trip", "expired-running", Trip("held"), deadline_s=3.0),
            ask_flow(here, "frail-trip", "failed-crashing", Trip("done", "always inside dinner"), is_doomed=True),
        ]
        found = await play(here, asking)

        assert not found.violations, str(found)
        assert half_done(here.history.read()) == []
        for task, entry in results(here).items():
            assert entry.status == task.partition("/")[2].partition("-")[0], task
        steps = [entry for entry in here.history.read(What.STEPPED) if entry.sequence]
        undone = Counter(entry.task for entry in steps if entry.detail.startswith(UNDO))
        assert undone == {task: 4 if "frail" in task else 3 for task in results(here)}


@pytest.mark.parametrize("how", [Status.CANCELLED, Status.EXPIRED])
async def test_sagas_that_are_ended_from_outside_while_peers_are_killed_are_wholly_undone(
    tmp_path: Path, how: Status
) -> None:
    keys = [f"{how}-{number}" for number in range(6)]

    async def cancel(here: Scene, key: str) -> None:
        # Some are parked by then, some run, some were just killed.
        await asyncio.sleep(here.dice.uniform(0.3, 1.5))  # another moment for each
        await eventually(lambda: f"trip/{key}" in confirmed(here), within_s=WITHIN_S)
        await here.client.cancel("trip", key)

    async with flows(tmp_path, peers=2, seed=seed()) as here:
        deadline_s = 4.0 if how is Status.EXPIRED else None
        asking = [ask_flow(here, "trip", key, Trip("signal"), deadline_s=deadline_s) for key in keys]
        if how is Status.CANCELLED:
            asking += [cancel(here, key) for key in keys]
        found = await play(here, asking, faults=[KillPeer()], every_s=0.8)

        assert not found.violations, str(found)
        assert half_done(here.history.read()) == []
        assert {entry.status for entry in results(here).values()} == {how}


async def is_parked(here: Scene, task: Identity) -> bool:
    bus = here.client.bus
    return bool(await topology.queued(bus, bus.subjects.park(task)))


async def test_branches_that_run_at_once_are_all_undone(tmp_path: Path) -> None:
    async def cancel(here: Scene) -> None:
        await effect(here, "twin-trip/t", "ship")
        await eventually(lambda: [e for e in here.history.read(What.STEPPED) if e.detail == STEPS[-1]])
        await here.client.cancel("twin-trip", "t")

    async with flows(tmp_path, peers=2, seed=seed()) as here:
        found = await play(here, [ask_flow(here, "twin-trip", "t", None), cancel(here)])

        assert not found.violations, str(found)
        assert results(here)["twin-trip/t"].status == Status.CANCELLED
        undone = [e.detail for e in here.history.read(What.EFFECT) if e.detail.startswith("undo ")]
        assert sorted(undone) == sorted(f"undo {step}" for step in ("ship", *STEPS))


async def test_a_parked_task_that_is_cancelled_while_every_peer_is_away_is_undone_when_one_is_back(
    tmp_path: Path,
) -> None:
    async def cancel(here: Scene) -> None:
        await parked(here, "trip", 1)
        async with here.fleet.away():
            await here.client.cancel("trip", "t")

    async with flows(tmp_path, peers=2, seed=seed()) as here:
        found = await play(here, [ask_flow(here, "trip", "t", Trip("signal")), cancel(here)], within_s=20.0)

        assert not found.violations, str(found)
        assert results(here)["trip/t"].status == Status.CANCELLED
        assert half_done(here.history.read()) == []


async def test_a_saga_that_kills_its_peer_even_while_it_is_undone_ends(tmp_path: Path) -> None:
    async with flows(tmp_path, peers=3, seed=seed()) as here:
        asking = [
            ask_flow(here, "frail-trip", "between", Trip("done", "always last"), is_doomed=True),
            ask_flow(here, "frail-trip", "within", Trip("failed", "always inside undo hotel"), is_doomed=True),
        ]
        found = await play(here, asking, within_s=60.0)

        assert not found.violations, str(found)
        assert found.figures["results_failed"] == 2


async def test_a_step_of_a_frozen_peer_that_another_did_meanwhile_is_recorded_once(tmp_path: Path) -> None:
    async def freeze(here: Scene, key: str) -> None:
        owner, *_ = await effect(here, f"trip/{key}", "car")
        here.tell("freeze-peer", f"trip/{key}")
        os.kill(owner, signal.SIGSTOP)
        try:
            await effect(here, f"trip/{key}", "car", count=2)
        finally:
            os.kill(owner, signal.SIGCONT)

    async with flows(tmp_path, peers=3, seed=seed()) as here:

        async def freeze_and_release() -> None:
            await freeze(here, "held")
            (tmp_path / "release").touch()

        found = await play(here, [ask_flow(here, "trip", "held", Trip("held")), freeze_and_release()])

        assert not found.violations, str(found)
        assert results(here)["trip/held"].status == Status.DONE
        first, *others = [e for e in here.history.read(What.STEPPED) if e.detail == "car"]
        assert {entry.value for entry in others} == {first.value}
        assert Counter(entry.value for entry in here.history.read(What.EFFECT)) == {
            f"trip/held/{step}": 2 if step == "car" else 1 for step in STEPS
        }


# People and clocks.


@pytest.mark.parametrize("is_broker_killed", [pytest.param(False, marks=slow), True], ids=["peers", "peers and broker"])
async def test_approvals_outlive_every_process(tmp_path: Path, is_broker_killed: bool) -> None:
    async def answer(here: Scene) -> None:
        await parked(here, "pay", 3)
        await parked(here, "human", 3)
        async with here.fleet.away():
            if is_broker_killed:
                await KillBroker().strike(here)
            approved = Answer(verdict=Verdict.APPROVED, by="ann")
            await here.client.signal("human", await proposal(here, 100), ANSWER, approved)
            await asyncio.sleep(max(0.0, due - time.time()))  # the passing of time is the fault
        await eventually(lambda: "pay/p2" in answered(here), within_s=WITHIN_S)
        await here.client.signal("human", await proposal(here, 300), ANSWER, approved)

    async with flows(tmp_path, peers=2, seed=seed()) as here:
        due = time.time() + 3.0
        asking = [
            ask_flow(here, "pay", "p1", Pay(100)),
            ask_flow(here, "pay", "p2", Pay(200, within_s=2.5, at_deadline="approve")),
            ask_flow(here, "pay", "p3", Pay(300, within_s=600.0)),
            answer(here),
        ]
        found = await play(here, asking)

        assert not found.violations, str(found)
        assert [results(here)[f"pay/p{number}"].value for number in (1, 2, 3)] == [
            '"approved 100 by ann"',
            '"approved 200 by nobody"',
            '"approved 300 by ann"',
        ]
        # Once until it waits, once when it is over: nobody looks in between.
        assert Counter(e.task for e in here.history.read(What.RAN)) == dict.fromkeys(("pay/p1", "pay/p2", "pay/p3"), 2)


def answered(here: Scene) -> set[str]:
    return {entry.task for entry in here.history.read(What.ANSWERED)}


async def proposal(here: Scene, euros: int) -> str:
    """The id of the proposal about so much."""
    bus = here.client.bus
    for subject in await topology.queued(bus, bus.subjects.parks_of("human")):
        park = await bus.request(f"$JS.API.DIRECT.GET.{bus.subjects.stream}.{subject}")
        if msgspec.json.decode(park.data)["proposal"] == euros:
            return bus.subjects.parse(subject).id
    raise AssertionError(f"no proposal of {euros} euros is parked")


@pytest.mark.parametrize(("count", "lead_s", "over_s"), [(400, 2.5, 3.0), pytest.param(10_000, 25.0, 10.0, marks=slow)])
@pytest.mark.timeout(300)
async def test_timers_fire_once_each_however_often_the_broker_dies(
    tmp_path: Path, count: int, lead_s: float, over_s: float
) -> None:
    deadly = {Point.WAKE_DUE: 4 / count, Point.WOKEN: 4 / count, Point.ACK_LOST: 8 / count}
    async with flows(tmp_path, peers=3, seed=seed(), hot_wait_s=0.1, points=deadly) as here:
        first = time.time() + lead_s
        dues = [first + over_s * number / count for number in range(count)]
        here.dice.shuffle(dues)
        room = asyncio.Semaphore(1_000)

        async def nap(number: int) -> None:
            async with room:
                handle = await submitted(here, "nap", f"n{number}", dues[number])
            await handle.outcome()

        faults: list[Fault] = [KillBroker(), KillBroker(for_s=0.5), RestartBroker()]
        found = await play(here, map(nap, range(count)), faults=faults, every_s=max(1.0, over_s / 5), within_s=200.0)

        assert not found.violations, str(found)
        assert found.figures["results_done"] == count
        assert sum(number for name, number in found.figures.items() if "broker" in name) >= 3
        rang = Counter(entry.value for entry in here.history.read(What.EFFECT))
        assert len(rang) == count
        assert await timers(here) == 0


async def submitted(here: Scene, capability: str, key: str, payload: Any) -> Any:
    task = Identity(capability, key)
    here.history.add(Entry(What.ATTEMPTED, task=str(task), is_workflow=True))
    handle = await repeated_until_done(lambda: here.client.submit(capability, payload, key=key))
    here.history.add(Entry(What.CONFIRMED, task=str(task), is_new=handle.is_new))
    return handle


async def timers(here: Scene) -> int:
    """How many are set, or due."""
    bus = here.client.bus
    infos = [await bus.api(f"STREAM.INFO.{stream}") for stream in await topology.timer_streams(bus)]
    return sum(int(info["state"]["messages"]) for info in infos)
