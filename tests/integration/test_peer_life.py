"""A peer's life: ready, paused, draining, and what it tells about itself."""

import asyncio
import json
import os
import signal
import sys
import urllib.error
import urllib.request
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from contracts import headers, wire
from contracts.card import Described
from contracts.control import WhoRuns
from contracts.event import Event, EventKind
from contracts.outcome import Ended, FailureKind, Status
from contracts.subjects import Identity, key_pause
from mesh import Agent, Context, Mesh, TaskFailed
from mesh.bus import control, topology
from mesh.bus.ledger import read_ledger
from mesh.peer import Peer
from mesh.runtime.sweep import Sweep
from mesh.settings import Settings
from mesh.testing import eventually, hosting


def echo_agent() -> Agent:
    agent = Agent("echo", version="3", owner="platform")

    @agent.handles("echo", concurrency=2)
    async def echo(text: str) -> str:
        return text

    return agent


async def get(url: str) -> tuple[int, str]:
    def fetch() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return await asyncio.to_thread(fetch)


async def test_metrics_tell_what_happened_apart_by_capability_and_outcome(mesh: Mesh, settings: Settings) -> None:
    async with hosting(echo_agent(), settings=settings) as peer:
        for text in "abc":
            await (await mesh.submit("echo", text)).result(within_s=10)
        with pytest.raises(TaskFailed):
            await (await mesh.submit("echo", 7)).result(within_s=10)
        await eventually(lambda: not peer.host.running)
        status, text = await get(f"{peer.metrics_url}/metrics")

    lines = text.splitlines()
    assert status == 200
    assert 'mesh_tasks_total{capability="echo",status="done",version="3"} 3.0' in lines
    assert 'mesh_tasks_total{capability="echo",status="failed",version="3"} 1.0' in lines
    assert 'mesh_dead_letters_total{capability="echo",reason="contract"} 1.0' in lines
    assert 'mesh_task_queue_seconds_count{capability="echo"} 4.0' in lines
    assert 'mesh_task_run_seconds_count{capability="echo"} 4.0' in lines
    assert 'mesh_task_commit_seconds_count{capability="echo"} 4.0' in lines
    assert 'mesh_slots{capability="echo"} 2.0' in lines
    assert 'mesh_in_flight_tasks{capability="echo"} 0.0' in lines
    assert 'mesh_duplicates_total{at="start",capability="echo"} 0.0' in lines
    assert any(line.startswith("mesh_build_info{") for line in lines)


async def test_readiness_tells_the_truth_about_start_and_drain(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("slow")
    started, go_on = asyncio.Event(), asyncio.Event()

    @agent.handles("wait")
    async def wait() -> str:
        started.set()
        await go_on.wait()
        return "done"

    async with asyncio.TaskGroup() as fibers:
        peer = Peer(agent.hosted, settings=settings)
        assert peer.is_ready() == (False, "starting")
        running = fibers.create_task(peer.run())
        await eventually(lambda: peer.is_ready()[0])
        assert await get(f"{peer.metrics_url}/readyz") == (200, "ready\n")
        assert (await get(f"{peer.metrics_url}/healthz"))[0] == 200

        handle = await mesh.submit(wait)
        await started.wait()
        peer.stop()
        await eventually(lambda: not peer.is_ready()[0])
        assert await get(f"{peer.metrics_url}/readyz") == (503, "draining\n")
        go_on.set()

        assert await handle.result(within_s=10) == "done"
        await running


async def test_a_drain_hands_back_what_outlives_the_grace_period_at_once(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("slow")
    started = asyncio.Event()
    is_second_peer = False

    @agent.handles("wait", attempts=2)
    async def wait(_: None, ctx: Context) -> str:
        if is_second_peer:
            return f"attempt {ctx.attempt}"
        started.set()
        await asyncio.Event().wait()
        return "never"

    impatient = settings.model_copy(update={"grace_s": 0.1, "ack_wait_s": 60.0})
    async with hosting(agent, settings=impatient):
        handle = await mesh.submit(wait, None, key="k")
        await started.wait()
    ledger = await read_ledger(mesh.bus, Identity("wait", "k"), is_redelivered=False)
    is_second_peer = True

    async with hosting(agent, settings=impatient):
        assert await handle.result(within_s=20) == "attempt 2"

    assert [(number, end.how) for number, end in ledger.ended] == [(1, Ended.HANDED_BACK)]
    assert ledger.used == 0


async def test_a_paused_capability_takes_no_work_until_it_is_resumed(mesh: Mesh, settings: Settings) -> None:
    async with hosting(echo_agent(), settings=settings) as peer:
        await control.pause(mesh.bus, "echo", by="test")
        await eventually(lambda: peer.intakes[0].is_paused and not any(peer.intakes[0].offering.offered.values()))
        handle = await mesh.submit("echo", "hello", returns=str)
        assert (await handle.status()).where.value == "queued"
        assert peer.is_ready() == (True, "ready, paused: echo")

        await control.resume(mesh.bus, "echo")

        assert await handle.result(within_s=10) == "hello"


async def test_a_peer_that_starts_learns_what_was_paused_before(mesh: Mesh, settings: Settings) -> None:
    await control.pause(mesh.bus, "echo")

    async with hosting(echo_agent(), settings=settings) as peer:
        assert peer.intakes[0].is_paused
        await mesh.bus.store(mesh.bus.subjects.control_record(key_pause("echo")), b"", {"KV-Operation": "PURGE"})
        await eventually(lambda: not peer.intakes[0].is_paused)


async def test_peers_describe_themselves_and_their_agents(mesh: Mesh, settings: Settings) -> None:
    async with hosting(echo_agent(), settings=settings) as peer:
        (answer,) = await mesh.bus.gather(mesh.bus.subjects.ctl("all", "describe"), b"", within_s=5, enough=1)

    described = wire.decode(Described, answer)
    assert (described.beat.peer, described.metrics_url) == (peer.id, peer.metrics_url)
    (card,) = described.cards
    assert (card.name, card.version, card.owner, card.capabilities[0].name) == ("echo", "3", "platform", "echo")
    assert card.capabilities[0].input_schema == {"type": "string"}


async def test_lifecycle_events_are_published(mesh: Mesh, settings: Settings) -> None:
    heard: list[Event] = []

    async def hear(message: object) -> None:
        heard.append(wire.decode(Event, message.data))  # type: ignore[attr-defined]

    await mesh.bus.nc.subscribe(mesh.bus.subjects.events, cb=hear)
    await mesh.bus.nc.flush()
    async with hosting(echo_agent(), settings=settings) as peer:
        with pytest.raises(TaskFailed):
            await (await mesh.submit("echo", 7, key="k")).result(within_s=10)
        await eventually(lambda: EventKind.DEAD_LETTERED in {event.kind for event in heard})
    await eventually(lambda: EventKind.LEFT in {event.kind for event in heard})

    joined, ended, *rest = heard
    kinds = [EventKind.DEAD_LETTERED, EventKind.DRAINING, EventKind.LEFT]
    assert [joined.kind, *(event.kind for event in rest)] == [EventKind.JOINED, *kinds]
    assert (ended.kind, ended.status, ended.failure) == (EventKind.ENDED, Status.FAILED, FailureKind.CONTRACT)
    assert (ended.capability, ended.id, ended.peer) == ("echo", "k", peer.id)


async def test_a_task_of_a_newer_format_is_left_to_a_newer_peer(mesh: Mesh, settings: Settings) -> None:
    async with hosting(echo_agent(), settings=settings) as peer:
        subject = mesh.bus.subjects.task(Identity("echo", "k"))
        await mesh.bus.store(subject, b'"hello"', {headers.TASK: '{"v":99,"shape":"unknown"}'})

        await eventually(
            lambda: peer.metrics.registry.get_sample_value(
                "mesh_handed_back_total", {"capability": "echo", "reason": "newer format"}
            )
        )
        assert (await topology.queued(mesh.bus, subject)) == {subject: 1}


async def test_a_malformed_record_stops_its_task_and_not_its_peer(mesh: Mesh, settings: Settings) -> None:
    async with hosting(echo_agent(), settings=settings) as peer:
        task = Identity("echo", "k")
        await mesh.bus.store(mesh.bus.subjects.attempt(task, 1, "ended"), b"{not json")
        await mesh.bus.store(mesh.bus.subjects.task(task), b'"hello"')

        await eventually(
            lambda: peer.metrics.registry.get_sample_value(
                "mesh_handed_back_total", {"capability": "echo", "reason": "malformed record"}
            )
        )

        assert await (await mesh.submit("echo", "others go on")).result(within_s=10) == "others go on"


async def test_a_message_that_no_consumer_would_hand_out_is_set_going_again(mesh: Mesh, settings: Settings) -> None:
    quiet = settings.model_copy(update={"sweep_s": 3600.0})
    spec = topology.consumer(quiet, "echo")
    await topology.ensure(mesh.bus, [spec])
    handle = await mesh.submit("echo", "lost", key="k", returns=str)
    info = await mesh.bus.api(f"STREAM.INFO.{mesh.bus.subjects.stream}")
    await topology.reset_consumer(mesh.bus, spec, info["state"]["last_seq"] + 1)

    async with hosting(echo_agent(), settings=quiet) as peer:
        assert (await handle.status()).where.value == "orphaned"
        sweep, capability = Sweep(peer.host), peer.intakes[0].capability
        assert await sweep.round(capability) == 0
        assert await sweep.round(capability) == 1

        assert await handle.result(within_s=10) == "lost"


async def test_a_consumer_that_forgets_its_deliveries_runs_nothing_beside_its_owner(
    mesh: Mesh, settings: Settings
) -> None:
    agent = Agent("held")
    go_on, runs = asyncio.Event(), 0

    @agent.handles("hold", concurrency=4)
    async def hold() -> str:
        nonlocal runs
        runs += 1
        await go_on.wait()
        return "held"

    def came_again(peer: Peer) -> float:
        samples = [
            ("mesh_redeliveries_total", {"capability": "hold"}),
            *(("mesh_handed_back_total", {"capability": "hold", "reason": reason}) for reason in ("running",)),
        ]
        return sum(peer.metrics.registry.get_sample_value(name, labels) or 0 for name, labels in samples)

    async with hosting(agent, settings=settings) as one, hosting(agent, settings=settings) as two:
        handles = [await mesh.submit(hold, None) for _ in range(6)]
        await eventually(lambda: runs == 6)
        question = wire.encode(WhoRuns())
        await mesh.bus.gather(mesh.bus.subjects.ctl("hold", "distrust"), question, within_s=1, enough=2)
        await topology.reset_consumer(mesh.bus, topology.consumer(settings, "hold"), 1)
        await eventually(lambda: came_again(one) + came_again(two) >= 6)
        go_on.set()

        assert [await handle.result(within_s=20) for handle in handles] == ["held"] * 6

    assert runs == 6


async def test_tasks_that_nobody_serves_show_as_a_metric(mesh: Mesh, settings: Settings) -> None:
    await mesh.submit("nobody-home", 1)

    async with hosting(echo_agent(), settings=settings) as peer:
        label = {"capability": "nobody-home"}
        await eventually(lambda: peer.metrics.registry.get_sample_value("mesh_unserved_tasks", label) == 1)


AGENT_FILE = """
from mesh import Agent

agent = Agent("greeter")

@agent.handles("greet")
async def greet(name: str) -> str:
    return f"Hello {name}"
"""


async def test_faststream_runs_an_agents_app_and_ends_it_on_sigterm(
    mesh: Mesh, settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "greeter.py").write_text(AGENT_FILE)
    environment = {**os.environ, "MESH_NATS_URL": str(settings.nats_url), "MESH_PREFIX": settings.prefix}
    environment["MESH_LOG_FORMAT"] = "json"
    command = Path(sys.executable).with_name("faststream")
    process = await asyncio.create_subprocess_exec(
        command, "run", "greeter:agent.app", "--app-dir", str(tmp_path), env=environment, cwd=tmp_path, stderr=PIPE
    )
    try:
        assert await (await mesh.submit("greet", "Ada", returns=str)).result(within_s=30) == "Hello Ada"

        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            _, logged = await process.communicate()
        assert process.returncode == 0
        told = [json.loads(line) for line in logged.decode().splitlines() if line.startswith("{")]
        assert {line["message"].partition(" ")[2] for line in told if "message" in line} >= {"serves greet"}
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_peer_without_a_server_says_so_and_a_broken_topology_ends_it(mesh: Mesh, settings: Settings) -> None:
    from mesh.errors import SetupError, TopologyDrift

    with pytest.raises(SetupError, match="set MESH_NATS_URL"):
        Peer(echo_agent().hosted, settings=settings.model_copy(update={"nats_url": None}))

    stream = settings.subjects.stream
    config = (await mesh.bus.api(f"STREAM.INFO.{stream}"))["config"]
    await mesh.bus.api(f"STREAM.UPDATE.{stream}", {**config, "allow_direct": False})
    with pytest.raises(TopologyDrift, match="allow_direct"):
        await Peer(echo_agent().hosted, settings=settings).run()
