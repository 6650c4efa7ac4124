"""Peers of today meet what a later version wrote: they read it, keep it as it is, or leave it to a newer peer."""

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from pydantic import SecretStr

from contracts import headers as names
from contracts import wire
from contracts.limit import Limit
from contracts.subjects import Identity, key_breaker, key_cancel, key_limit, key_pause
from mesh import Agent, Context, Mesh
from mesh.bus import control, topology
from mesh.bus.parks import read_park
from mesh.bus.records import read
from mesh.local.server import LocalServer
from mesh.peer import Peer
from mesh.settings import Settings
from mesh.testing import eventually, hosting
from mesh.testing.fixtures import fresh_settings

NEWER = wire.FORMAT + 1
UNKNOWN: dict[str, Any] = {"v": NEWER, "status": {"is": "something else"}, "priority": "sooner", "how": 7, "state": [1]}
"""A record of a newer format, in which nothing is as today's version reads it."""


def newer() -> bytes:
    return json.dumps(UNKNOWN).encode()


def clerk(runs: list[str]) -> Agent:
    agent = Agent("clerk")

    @agent.handles("add", attempts=2)
    async def add(number: int, ctx: Context) -> int:
        runs.append(ctx.identity.id)
        return number + 1

    @agent.handles("nap")
    async def nap(number: int, ctx: Context) -> int:
        runs.append(ctx.identity.id)
        await ctx.sleep(0.5)
        return await ctx.step("twice", lambda: 2 * number)

    @agent.handles("seat")
    async def seat(number: int, ctx: Context) -> int:
        runs.append(ctx.identity.id)
        async with ctx.limit("provider"):
            return number

    return agent


@pytest.fixture
def parking(settings: Settings) -> Settings:
    """Settings with which every wait parks."""
    return settings.model_copy(update={"hot_wait_s": 0.0})


async def is_left(mesh: Mesh, capability: str, key: str, caplog: pytest.LogCaptureFixture) -> bool:
    """Whether peers said that they leave the task to a newer one; it is neither answered nor a dead letter."""
    task = Identity(capability, key)
    assert await read(mesh.bus, mesh.bus.subjects.result(task)) is None
    assert await read(mesh.bus, mesh.bus.subjects.dead_letter(task)) is None
    return any(
        f"{task} is left to a newer peer" in one.getMessage() or f"{task} comes again" in one.getMessage()
        for one in caplog.records
    )


async def test_a_task_of_a_newer_format_is_left_and_not_answered(
    mesh: Mesh, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    runs: list[str] = []
    async with hosting(clerk(runs), settings=settings):
        await mesh.bus.store(mesh.bus.subjects.task(Identity("add", "k")), b"1", {names.TASK: newer().decode()})
        await eventually(lambda: is_left(mesh, "add", "k", caplog))
        assert await (await mesh.submit("add", 1, key="other")).result(within_s=20) == 2

    assert runs == ["other"]
    assert await read(mesh.bus, mesh.bus.subjects.task(Identity("add", "k"))) is not None


async def test_a_task_with_more_fields_and_headers_runs_and_keeps_them_while_it_is_parked(
    mesh: Mesh, parking: Settings
) -> None:
    task = Identity("nap", "k")
    envelope = {"v": 1, "since_then": {"colour": "blue"}, "reason": "why"}
    told = {names.TASK: json.dumps(envelope), "Mesh-Since-Then": "1"}
    async with hosting(clerk([]), settings=parking):
        await mesh.bus.store(mesh.bus.subjects.task(task), b"4", told)
        park = await eventually(lambda: read_park(mesh.bus, task))
        assert await mesh.handle("nap", "k", returns=int).result(within_s=20) == 8

    kept = json.loads(park.headers[names.TASK])
    assert {name: kept[name] for name in envelope} == envelope
    assert kept.keys() - envelope.keys() == {"keep_until"}
    assert park.headers["Mesh-Since-Then"] == "1"


async def test_a_result_of_a_newer_format_stands_and_is_left_to_be_relayed(mesh: Mesh, settings: Settings) -> None:
    runs: list[str] = []
    task = Identity("add", "k")
    await mesh.bus.store(mesh.bus.subjects.result(task), newer())
    await mesh.bus.store(mesh.bus.subjects.task(task), b"1")
    queued = mesh.bus.subjects.task(task)
    async with hosting(clerk(runs), settings=settings) as peer:
        handed_back = 'mesh_handed_back_total{capability="add",reason="newer format"'
        await eventually(lambda: _shows(peer, handed_back))
        assert await read(mesh.bus, queued) is not None

    assert runs == []


def _shows(peer: Peer, start: str) -> bool:
    """Whether a counter of the peer that begins so is above 0."""
    lines = generate_latest(peer.metrics.registry).decode().splitlines()
    return any(line.startswith(start) and float(line.rpartition(" ")[2]) > 0 for line in lines)


async def test_a_step_of_a_newer_format_hands_the_run_back_instead_of_failing_the_task(
    mesh: Mesh, parking: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    task = Identity("nap", "k")
    await mesh.bus.store(mesh.bus.subjects.step(task, "twice"), newer())
    async with hosting(clerk([]), settings=parking):
        await mesh.bus.store(mesh.bus.subjects.task(task), b"4")
        await eventually(lambda: is_left(mesh, "nap", "k", caplog))


async def test_seats_of_a_newer_format_give_nothing_out_and_fail_no_task(
    mesh: Mesh, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    runs: list[str] = []
    # Before the peer starts: it may hear of a limit later than of the task.
    await control.set_limit(mesh.bus, "provider", Limit(concurrent=1, at=1.0))
    await mesh.bus.store(mesh.bus.subjects.limit("seats", "provider"), newer())
    async with hosting(clerk(runs), settings=settings):
        await mesh.submit("seat", 1, key="k")
        await eventually(lambda: any("limit provider: format" in one.getMessage() for one in caplog.records))
        assert await read(mesh.bus, mesh.bus.subjects.result(Identity("seat", "k"))) is None
        # Whoever can read it puts it right.
        await mesh.bus.store(mesh.bus.subjects.limit("seats", "provider"), b'{"v":1}')


async def test_control_records_of_a_newer_format_say_what_can_be_known_of_them(
    mesh: Mesh, settings: Settings, command_line: Any
) -> None:
    bus, runs = mesh.bus, list[str]()
    records = {
        key_pause("nap"): newer(),
        key_breaker("flaky"): newer(),
        key_limit("provider"): newer(),
        key_cancel(Identity("add", "k")): newer(),
    }
    for key, data in records.items():
        await bus.store(bus.subjects.control_record(key), data)
    await mesh.submit("add", 1, key="k")
    async with hosting(clerk(runs), settings=settings) as peer:
        with pytest.raises(Exception, match="cancelled"):
            await mesh.handle("add", "k").result(within_s=20)
        assert peer.is_ready() == (True, "ready, paused: nap")
        assert await (await mesh.submit("add", 1, key="other")).result(within_s=20) == 2
        doctor = await command_line("doctor", "--json")

    assert runs == ["other"]
    assert "Traceback" not in doctor.err
    assert list(await control.pauses(bus)) == ["nap"]


async def test_what_fired_of_a_newer_format_waits_for_a_newer_peer(
    mesh: Mesh, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    subjects = mesh.bus.subjects
    tick = subjects.tick("add", "hourly")
    await topology.ensure(mesh.bus, topology.of_capability(settings, "add"))
    await mesh.bus.store(tick, newer())
    async with hosting(clerk([]), settings=settings):
        await eventually(lambda: any(f"{tick} is left to a newer peer" in one.getMessage() for one in caplog.records))
        assert await read(mesh.bus, tick, stream=subjects.timer_stream("add")) is not None


async def test_what_newer_peers_say_and_ask_ends_no_older_one(mesh: Mesh, settings: Settings) -> None:
    bus = mesh.bus
    async with hosting(clerk([]), settings=settings) as peer:
        for said in (newer(), b'{"v":1,"peer":"p","at":1,"state":"napping","load":{}}', b"nonsense"):
            await bus.publish(bus.subjects.beat("p"), said)
            for verb in ("who-runs", "describe"):
                await bus.publish(bus.subjects.ctl("all", verb), said)
            for verb in ("who-runs", "distrust", "parts"):
                await bus.publish(bus.subjects.ctl("add", verb), said)
            await bus.publish(bus.subjects.control_echo[1].replace(">", key_limit("x")), said)
        assert await (await mesh.submit("add", 1, key="k")).result(within_s=20) == 2
        assert peer.is_ready()[0]


async def test_a_peer_beats_by_the_servers_ack_wait_where_that_is_shorter_than_its_own(mesh: Mesh) -> None:
    settings = mesh.bus.settings
    hasty = settings.model_copy(update={"ack_wait_s": 1.0})
    await topology.ensure(mesh.bus, topology.of_capability(hasty, "add"))
    patient = settings.model_copy(update={"ack_wait_s": 30.0})
    async with hosting(clerk([]), settings=patient) as peer:
        assert peer.host.heartbeat.every_s == 0.25


async def test_a_peer_that_may_not_make_its_streams_says_so_and_waits_for_who_may(
    nats_url: str, mesh: Mesh, caplog: pytest.LogCaptureFixture
) -> None:
    # Another stream has the subjects of its timers, as after an upgrade: only an operator may move them.
    settings = fresh_settings(nats_url)
    stream = settings.subjects.shared_timer_stream
    subjects = [f"{settings.prefix}.{word}.>" for word in ("timer", "due", "cron", "tick")]
    await mesh.bus.api(f"STREAM.CREATE.{stream}", {"name": stream, "subjects": subjects})
    try:
        async with asyncio.TaskGroup() as fibers:

            async def operator() -> None:
                await eventually(lambda: any("run `mesh topology apply`" in one.getMessage() for one in caplog.records))
                await mesh.bus.api(f"STREAM.DELETE.{stream}")

            fibers.create_task(operator())
            with caplog.at_level(logging.ERROR):
                async with hosting(clerk([]), settings=settings) as peer:
                    assert peer.is_ready()[0]
    finally:
        for name in (*(spec.name for spec in topology.streams(settings)), *_timer_streams(settings)):
            await mesh.bus.api(f"STREAM.DELETE.{name}")


RIGHTS = """
authorization {
  users = [
    {user: ops, password: ops}
    {
      user: clerk, password: clerk
      permissions: {publish: {deny: ["$JS.API.STREAM.CREATE.>", "$JS.API.CONSUMER.CREATE.>"]}}
    }
  ]
}
"""


async def test_a_peer_with_few_rights_waits_for_an_operator_to_apply(
    alone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"MESH_{name.upper()}", raising=False)
    server = LocalServer.start(tmp_path / "store", more=RIGHTS)
    try:
        settings = fresh_settings(server.url)
        few = settings.model_copy(update={"nats_user": "clerk", "nats_password": SecretStr("clerk")})
        alone.variables |= {
            "MESH_NATS_URL": server.url,
            "MESH_PREFIX": settings.prefix,
            "MESH_NATS_USER": "ops",
            "MESH_NATS_PASSWORD": "ops",
            "MESH_STREAM_BYTES_MAX": str(settings.stream_bytes_max),
            "MESH_OBJECTS_BYTES_MAX": str(settings.objects_bytes_max),
            "MESH_EVENTS_BYTES_MAX": str(settings.events_bytes_max),
        }
        names_of = [word for name in ("add", "nap", "seat") for word in ("--capability", name)]

        async def operator() -> Any:
            await eventually(lambda: any("this user may not make it" in one.getMessage() for one in caplog.records))
            return await alone("topology", "apply", *names_of)

        async with asyncio.TaskGroup() as fibers:
            applied = fibers.create_task(operator())
            async with hosting(clerk([]), settings=few) as peer:
                assert peer.is_ready()[0]
                async with Mesh.connect(settings=few) as client:
                    assert await (await client.submit("add", 1, key="k")).result(within_s=20) == 2
        assert applied.result().code == 0, applied.result().err
    finally:
        server.stop()
    (told,) = {one.getMessage().partition(" waits: ")[2] for one in caplog.records if " waits: " in one.getMessage()}
    assert told == (
        f"stream {settings.subjects.stream} is missing, and this user may not make it:"
        " run `mesh topology apply` as an operator"
    )


def _timer_streams(settings: Settings) -> list[str]:
    return [settings.subjects.timer_stream(name) for name in ("add", "nap", "seat")]
