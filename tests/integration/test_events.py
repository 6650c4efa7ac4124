"""What happens to tasks and peers, as the stream of events keeps it, and what was decided, as records keep it."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from contracts import wire
from contracts.decision import Decision
from contracts.event import Event, EventKind
from contracts.outcome import Outcome, Status
from contracts.subjects import Identity
from contracts.workflow import Answer, Verdict
from mesh import Agent, BlockingContext, Context, Escalate, Handoff, Ladder, Mesh, Permanent, Transient
from mesh.bus import control, topology
from mesh.bus.connection import Bus
from mesh.bus.history import NoStream, read_on
from mesh.human import agent as people
from mesh.local.server import local_server
from mesh.peer import Peer
from mesh.runtime.events import Events
from mesh.settings import Settings
from mesh.telemetry.metrics import Metrics
from mesh.testing import eventually, hosting
from mesh.testing.fixtures import fresh_settings
from mesh.verbs import ANSWER

agent = Agent("judges", version="3", owner="court")
tries: list[str] = []


@agent.handles("judge")
async def judge(how: str, ctx: Context) -> str:
    ctx.explain(confidence=0.9, model="m", model_digest="d1")
    ctx.spent(usd=0.5)
    ctx.decide("guilty", "it is written", 0.75, {"how": how})
    if how == "fails":
        raise Permanent("no more")
    if how == "waits":
        await ctx.signal("go", within_s=60)
        ctx.decide("after all")
    if how == "dies once" and ctx.id not in tries:
        tries.append(ctx.id)
        ctx.decide("never told")
        raise Transient("not this time", after_s=0.01)
    return how


@agent.handles("plain")
def plain(how: str, ctx: BlockingContext) -> str:
    ctx.decide(how)
    return how


@agent.handles("front")
async def front(how: str, ctx: Context) -> Any:
    ctx.decide("not mine")
    return Handoff(judge, how, reason="of law")


@agent.handles("unsure", ladder=Ladder(0.5, "human"))
async def unsure(how: str, ctx: Context) -> str:
    ctx.decide("unsure", confidence=0.1)
    return Escalate("who knows", confidence=0.1, value=how)  # type: ignore[return-value]


async def kept(bus: Bus, *, task_id: str = "", kind: str = "*") -> list[Event]:
    filters = bus.subjects.events_of(kind, "*", task_id)
    async with aclosing(read_on(bus, bus.subjects.event_stream, filters)) as found:
        return [wire.decode(Event, stored.data) async for stored in found]


async def kinds(bus: Bus, task_id: str) -> list[str]:
    return [event.kind for event in await kept(bus, task_id=task_id)]


def choices(outcome: Outcome) -> list[str]:
    return [decision.choice for decision in outcome.decisions]


async def outcome_of(mesh: Mesh, capability: str, payload: Any, key: str) -> Outcome:
    return await (await mesh.submit(capability, payload, key=key)).outcome(within_s=20)


async def test_what_a_task_decided_stands_in_its_record_and_is_told_once(mesh: Mesh, settings: Settings) -> None:
    async with hosting(agent, settings=settings) as peer:
        outcome = await outcome_of(mesh, "judge", "fine", "k")
        await outcome_of(mesh, "plain", "left", "p")
        await eventually(lambda: kept(mesh.bus, task_id="k", kind="decided"))

    (decision,) = outcome.decisions
    assert msgspec.structs.replace(decision, at=0.0) == Decision(
        choice="guilty",
        reason="it is written",
        confidence=0.75,
        inputs={"how": "fine"},
        version="3",
        model="m",
        model_digest="d1",
    )
    ended, decided = sorted(await kept(mesh.bus, task_id="k"), key=lambda event: event.kind, reverse=True)
    assert decided.decision == decision
    assert (decided.capability, decided.id, decided.at, decided.owner) == ("judge", "k", decision.at, "court")
    assert (ended.status, ended.attempt, ended.agent, ended.version) == ("done", 1, "judges", "3")
    assert (ended.caller, ended.confidence, ended.owner, ended.peer) == ("(client)", 0.9, "court", peer.id)
    assert ended.spent is not None
    assert ended.spent.usd == 0.5
    assert [event.decision.choice for event in await kept(mesh.bus, task_id="p") if event.decision] == ["left"]


async def test_a_task_that_fails_has_decided_all_the_same(mesh: Mesh, settings: Settings) -> None:
    async with hosting(agent, settings=settings):
        failed = await outcome_of(mesh, "judge", "fails", "f")
        mended = await outcome_of(mesh, "judge", "dies once", "m")
        await eventually(lambda: kept(mesh.bus, task_id="m", kind="decided"))

    assert (failed.status, choices(failed)) == (Status.FAILED, ["guilty"])
    assert choices(mended) == ["guilty"]
    assert sorted(await kinds(mesh.bus, "f")) == ["dead-lettered", "decided", "ended"]
    assert sorted(await kinds(mesh.bus, "m")) == ["decided", "ended", "retried"]


async def parked(mesh: Mesh, task: Identity) -> None:
    """Return when the task is parked and its delivery settled."""
    subjects = mesh.bus.subjects

    async def is_parked() -> bool:
        told = await kept(mesh.bus, task_id=task.id, kind=EventKind.PARKED)
        return bool(told) and not await topology.queued(mesh.bus, subjects.tasks_of(task.capability))

    await eventually(is_parked)


async def test_what_was_decided_before_a_park_is_told_then_and_not_again(mesh: Mesh, settings: Settings) -> None:
    settings = settings.model_copy(update={"hot_wait_s": 0.0})
    async with hosting(agent, settings=settings):
        handle = await mesh.submit("judge", "waits", key="k")
        await parked(mesh, Identity("judge", "k"))
        (before,) = await kept(mesh.bus, task_id="k", kind="decided")
        await mesh.signal("judge", "k", "go")
        outcome = await handle.outcome(within_s=20)
        await eventually(lambda: _told(mesh, "k", 2))

    assert choices(outcome) == ["guilty", "after all"]
    assert before.decision == outcome.decisions[0]
    assert sorted(await kinds(mesh.bus, "k")) == ["decided", "decided", "ended", "parked", "woken"]


async def test_a_task_that_is_cancelled_while_parked_has_decided_what_it_had(mesh: Mesh, settings: Settings) -> None:
    settings = settings.model_copy(update={"hot_wait_s": 0.0})
    async with hosting(agent, settings=settings):
        handle = await mesh.submit("judge", "waits", key="k")
        await parked(mesh, Identity("judge", "k"))
        await handle.cancel()
        outcome = await handle.outcome(within_s=20)

    assert (outcome.status, choices(outcome)) == (Status.CANCELLED, ["guilty"])


async def test_a_task_that_is_cancelled_while_it_is_queued_has_ended(mesh: Mesh, settings: Settings) -> None:
    async with hosting(agent, settings=settings) as peer:
        await control.pause(mesh.bus, "judge")
        await eventually(lambda: peer.host.controls.is_paused("judge"))
        handle = await mesh.submit("judge", "fine", key="k")
        await handle.cancel()
        outcome = await handle.outcome(within_s=20)
        (ended,) = await eventually(lambda: kept(mesh.bus, task_id="k", kind=EventKind.ENDED))

    assert outcome.status is Status.CANCELLED
    assert (ended.status, ended.owner, ended.caller) == ("cancelled", "court", "(client)")


async def test_who_hands_over_and_who_is_asked_have_each_decided_what_they_did(mesh: Mesh, settings: Settings) -> None:
    async with hosting(agent, settings=settings):
        outcome = await outcome_of(mesh, "front", "fine", "k")
        await eventually(lambda: _told(mesh, "k", 2))

    assert choices(outcome) == ["not mine"]
    told = await kept(mesh.bus, task_id="k", kind="decided")
    assert {(event.capability, event.decision.choice) for event in told if event.decision} == {
        ("front", "not mine"),
        ("judge", "guilty"),
    }
    (passed,) = await kept(mesh.bus, task_id="k", kind=EventKind.HANDED_OFF)
    assert passed.detail == "to judge: of law"


async def test_what_a_person_decides_stands_beside_what_the_agent_did(mesh: Mesh, settings: Settings) -> None:
    async with hosting(agent, people, settings=settings):
        handle = await mesh.submit("unsure", "perhaps", key="k")
        (asked,) = await eventually(lambda: kept(mesh.bus, task_id="k", kind=EventKind.ESCALATED))
        parks = await eventually(lambda: topology.queued(mesh.bus, mesh.bus.subjects.parks_of("human")))
        (question,) = (mesh.bus.subjects.parse(subject).identity for subject in parks)
        answer = Answer(verdict=Verdict.APPROVED, by="ada", note="it may stand", at=5.0)
        await mesh.signal("human", question.id, ANSWER, answer)
        outcome = await handle.outcome(within_s=20)

    assert asked.detail == "to human: who knows"
    assert choices(outcome) == ["unsure", "approved"]
    assert outcome.decisions[1] == Decision(choice="approved", reason="it may stand", at=5.0, by="ada")


@pytest.mark.parametrize(("wanted", "told"), [("off", []), ("notable", ["decided"]), ("all", ["decided", "ended"])])
async def test_an_operator_chooses_what_is_told(wanted: str, told: list[str], mesh: Mesh, settings: Settings) -> None:
    settings = settings.model_copy(update={"events": wanted})
    async with hosting(agent, settings=settings):
        outcome = await outcome_of(mesh, "judge", "fine", "k")

    assert sorted(await kinds(mesh.bus, "k")) == told
    assert choices(outcome) == ["guilty"]


async def test_a_task_is_answered_where_no_stream_takes_its_events(mesh: Mesh, settings: Settings) -> None:
    async with hosting(agent, settings=settings) as peer:
        await mesh.bus.api(f"STREAM.DELETE.{mesh.bus.subjects.event_stream}")
        outcomes = [await outcome_of(mesh, "judge", "fine", f"k{number}") for number in range(3)]
        assert [choices(outcome) for outcome in outcomes] == [["guilty"]] * 3
        await eventually(lambda: lost(peer) >= 3)
        await eventually(lambda: not peer.host.running)


async def test_while_the_connection_is_gone_events_are_dropped_and_counted(tmp_path: Path) -> None:
    metrics = Metrics()
    with local_server(tmp_path) as server:
        settings = fresh_settings(server.url)
        async with Bus.connect(settings, "peer") as bus:
            await topology.ensure(bus, topology.of_mesh(settings))
            events = Events(bus, settings, "peer", metrics)
            await events.tell(EventKind.JOINED)
            await eventually(lambda: kept(bus))
            server.kill()
            await eventually(lambda: not bus.is_connected)
            await events.tell(EventKind.LEFT)
            server.restart()
            await eventually(lambda: bus.is_connected)

            assert [event.kind for event in await kept(bus)] == [EventKind.JOINED]
    assert metrics.registry.get_sample_value("mesh_events_lost_total") == 1


def lost(peer: Peer) -> float:
    return peer.metrics.registry.get_sample_value("mesh_events_lost_total") or 0.0


async def test_a_mesh_that_was_made_without_the_stream_gets_it(mesh: Mesh, settings: Settings) -> None:
    stream = mesh.bus.subjects.event_stream
    await mesh.bus.api(f"STREAM.DELETE.{stream}")
    with pytest.raises(NoStream):
        await kept(mesh.bus)

    async with hosting(agent, settings=settings):
        config = (await mesh.bus.api(f"STREAM.INFO.{stream}"))["config"]

    assert config["max_bytes"] == settings.events_bytes_max
    assert config["max_age"] == settings.events_ttl_s * 1e9
    assert config["discard"] == "old"


async def test_a_peer_serves_where_the_server_has_no_room_for_events(
    mesh: Mesh, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    await mesh.bus.api(f"STREAM.DELETE.{mesh.bus.subjects.event_stream}")

    async with hosting(agent, settings=settings.model_copy(update={"events_bytes_max": 2**60})):
        outcome = await (await mesh.submit("plain", "fine")).outcome(within_s=20)

    assert choices(outcome) == ["fine"]
    assert f"{mesh.bus.subjects.event_stream}: insufficient storage" in caplog.text
    assert "this peer goes on without it" in caplog.text


async def test_a_stream_of_events_that_an_operator_made_otherwise_is_kept_as_it_is(
    mesh: Mesh, settings: Settings
) -> None:
    (events,) = (spec for spec in topology.streams(settings) if spec.is_optional)
    await mesh.bus.api(f"STREAM.DELETE.{events.name}")
    await mesh.bus.api(f"STREAM.CREATE.{events.name}", {"name": events.name, **events.config, "discard": "new"})

    ensured = await topology.ensure(mesh.bus, topology.of_mesh(settings))

    assert [str(difference) for difference in ensured.tolerated] == [f"{events}: discard is 'new', wanted 'old'"]


# Reading them.


async def publish(bus: Bus, numbers: range) -> None:
    for number in numbers:
        event = Event(kind=EventKind.RETRIED, at=time.time(), peer="p", capability="c", id=f"k{number}")
        await bus.store(bus.subjects.event(EventKind.RETRIED, Identity("c", f"k{number}")), wire.encode(event))


@asynccontextmanager
async def following(bus: Bus, seen: list[str]) -> AsyncIterator[None]:
    async def follow() -> None:
        reading = read_on(bus, bus.subjects.event_stream, bus.subjects.events_of(), follow=True)
        async with aclosing(reading) as found:
            async for stored in found:
                seen.append(wire.decode(Event, stored.data).id)  # noqa: PERF401  # it is read while it grows

    async with asyncio.TaskGroup() as fibers:
        fiber = fibers.create_task(follow())
        try:
            yield
        finally:
            fiber.cancel()


async def test_following_leaves_nothing_out_and_repeats_nothing_over_a_brokers_death(tmp_path: Path) -> None:
    with local_server(tmp_path) as server:
        settings = fresh_settings(server.url)
        async with Bus.connect(settings, "reader") as reader, Bus.connect(settings, "writer") as writer:
            await topology.ensure(writer, topology.of_mesh(settings))
            seen: list[str] = []
            await publish(writer, range(20))
            async with following(reader, seen):
                await eventually(lambda: len(seen) == 20)
                server.kill()
                server.restart()
                await writer.until_connected()
                await eventually(lambda: writer.is_connected)
                await repeated(writer, range(20, 40))
                await eventually(lambda: len(seen) >= 40)

    assert seen == [f"k{number}" for number in range(40)]


async def repeated(bus: Bus, numbers: range) -> None:
    """Publish each, in order, until it is stored once."""
    from mesh.bus.events import store_once

    for number in numbers:
        event = Event(kind=EventKind.RETRIED, at=time.time(), peer="p", capability="c", id=f"k{number}")
        subject = bus.subjects.event(EventKind.RETRIED, Identity("c", f"k{number}"))
        assert await store_once(bus, {subject: wire.encode(event)}, within_s=20)


async def test_reading_begins_at_a_time_and_ends_with_what_was_there(mesh: Mesh) -> None:
    bus = mesh.bus
    await publish(bus, range(3))
    (*_, last) = [stored async for stored in read_on(bus, bus.subjects.event_stream, bus.subjects.events_of())]
    await publish(bus, range(3, 6))

    reading = read_on(bus, bus.subjects.event_stream, bus.subjects.events_of(), since=last.stored_at + 1e-6)
    found = [wire.decode(Event, stored.data).id async for stored in reading]
    below = [event.id for event in await kept(bus, task_id="k4")]

    assert found == ["k3", "k4", "k5"]
    assert below == ["k4"]


async def _told(mesh: Mesh, task_id: str, count: int) -> bool:
    return len(await kept(mesh.bus, task_id=task_id, kind="decided")) >= count
