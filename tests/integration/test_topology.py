"""`mesh topology`: what it plans, what it changes, and what peers with other settings leave alone."""

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from contracts import headers as names
from contracts import wire
from contracts.subjects import Identity
from contracts.workflow import Recurring
from mesh import Agent, Mesh
from mesh.bus import plan, shared_timers, timers, topology
from mesh.bus.changes import Way
from mesh.bus.queues import bound_of
from mesh.bus.topology import NANOS
from mesh.settings import Settings
from mesh.testing import eventually, hosting

AGENT = """
from mesh import Agent

agent = Agent("clerk")


@agent.handles("add", queue_max={queue_max})
async def add(terms: list[int]) -> int:
    return sum(terms)
"""


async def configs(mesh: Mesh) -> dict[str, Any]:
    """Every stream and consumer of the mesh as the server has it."""
    found: dict[str, Any] = {}
    bus = mesh.bus
    for capability in ("add", "lookup"):
        for spec in (*topology.of_mesh(bus.settings), *topology.of_capability(bus.settings, capability)):
            account = await topology.inspect(bus, spec)
            if account is not None:
                found[str(spec)] = account["config"]
    return found


async def test_a_mesh_is_planned_made_and_found_to_be_as_wanted(
    command_line: Any, settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "clerk.py").write_text(AGENT.format(queue_max=7))
    named = ("clerk.py", "--capability", "lookup")

    planned = await command_line("topology", "plan", *named, "--json")
    told = await command_line("topology", "plan", *named)
    made = await command_line("topology", "apply", *named, "--json")
    again = await command_line("topology", "apply", *named, "--json")
    after = await command_line("topology", "plan", *named)
    async with Mesh.connect(settings=settings) as mesh:
        found = await configs(mesh)

    specs = [*topology.of_mesh(settings)]
    specs += [spec for name in ("add", "lookup") for spec in topology.of_capability(settings, name)]
    assert {change["name"] for change in planned.document["changes"]} == set(map(str, specs)) == set(found)
    assert (planned.code, told.code, made.code) == (2, 2, 0)
    assert f"make     make stream {settings.subjects.stream}\n" in told.out
    assert [step["is_done"] for step in made.document["done"]] == [True] * len(specs)
    assert (again.code, again.document["done"], again.document["left"]["changes"]) == (0, [], [])
    assert (after.code, after.out.splitlines()[0]) == (0, "streams and consumers are as wanted")
    assert bound_of(found[f"{settings.subjects.stream} > add"]) == 7
    assert bound_of(found[f"{settings.subjects.stream} > lookup"]) == settings.queue_max


async def test_what_needs_care_or_cannot_be_changed_is_left_and_told(command_line: Any, mesh: Mesh) -> None:
    settings = mesh.bus.settings
    await topology.ensure(mesh.bus, topology.of_capability(settings, "add"))
    spec = topology.consumer(settings, "add")
    config = {**spec.config, "ack_wait": 60 * NANOS, "max_deliver": 3}
    await mesh.bus.api(
        f"CONSUMER.CREATE.{spec.stream}.{spec.name}", {"stream_name": spec.stream, "config": config, "action": "update"}
    )
    lines = mesh.bus.subjects.line_stream
    await mesh.bus.api(f"STREAM.DELETE.{lines}")
    await mesh.bus.api(
        f"STREAM.CREATE.{lines}",
        {"name": lines, "subjects": mesh.bus.subjects.lines_stored, "storage": "memory", "max_msgs_per_subject": 1},
    )

    careless = await command_line("topology", "apply")
    careful = await command_line("topology", "apply", "--with-care", "--json")

    assert careless.code == 2
    assert f"changed {spec}: max_deliver 3 -> -1" in careless.out
    assert f"CARE     {spec}: ack_wait 60 s -> 2 s" in careless.out
    assert f"CANNOT   {lines}: storage memory -> file" in careless.out
    assert careful.code == 2
    assert [step["what"] for step in careful.document["done"]] == [f"changed {spec}: ack_wait 60 s -> 2 s"]
    assert [change["field"] for change in careful.document["left"]["changes"]] == ["storage"]


async def test_consumers_that_nobody_serves_are_told_and_go_only_on_request(command_line: Any, mesh: Mesh) -> None:
    await topology.ensure(mesh.bus, topology.of_capability(mesh.bus.settings, "lookup"))
    await (await mesh.submit("lookup", 1, key="k")).cancel()

    told = await command_line("topology", "plan", "--json")
    refused = await command_line("topology", "apply", "--prune", "lookup")
    await mesh.bus.api(f"STREAM.PURGE.{mesh.bus.subjects.stream}", {"filter": mesh.bus.subjects.tasks_of("lookup")})
    named = await command_line("topology", "apply", "--prune", "lookup", "--capability", "lookup")
    planned = await command_line("topology", "plan", "--prune", "lookup")
    pruned = await command_line("topology", "apply", "--prune", "lookup")
    after = await command_line("topology", "plan", "--json")

    assert told.code == 0, told.out
    assert told.document["unserved"] == [{"capability": "lookup", "waiting": 1, "in_hand": 0, "parked": 0}]
    assert (refused.code, "1 tasks stand for it" in refused.out) == (1, True), refused.out + refused.err
    assert (named.code, "nothing was changed" in named.err) == (1, True), named.out + named.err
    assert (planned.code, "delete   the consumers of lookup" in planned.out) == (2, True)
    assert pruned.code == 0, pruned.out + pruned.err
    assert f"deleted stream {mesh.bus.subjects.timer_stream('lookup')}" in pruned.out
    assert (after.code, after.document["unserved"]) == (0, [])


async def test_timers_of_a_capability_that_has_no_consumers_yet_are_seen_to_as_well(
    command_line: Any, mesh: Mesh
) -> None:
    await timers.set_schedule(mesh.bus, "hourly", Recurring(capability="later", payload=1, schedule="@hourly"))
    spec = topology.timers(mesh.bus.settings, "later")
    account = await topology.inspect(mesh.bus, spec)
    assert account is not None
    await mesh.bus.api(f"STREAM.UPDATE.{spec.name}", {**account["config"], "allow_direct": False})

    applied = await command_line("topology", "apply")

    assert applied.code == 0, applied.out + applied.err
    assert f"changed {spec}: allow_direct False -> True" in applied.out
    assert await topology.served(mesh.bus) == set()


async def test_peers_with_other_settings_change_nothing_that_is_there(
    command_line: Any, mesh: Mesh, tmp_path: Path
) -> None:
    (tmp_path / "one.py").write_text(AGENT.format(queue_max=7))
    (tmp_path / "two.py").write_text(AGENT.format(queue_max=70))
    others = {
        "MESH_ACK_WAIT_S": "30",
        "MESH_STREAM_BYTES_MAX": str(2**27),
        "MESH_OBJECTS_BYTES_MAX": str(2**27),
        "MESH_EVENTS_BYTES_MAX": str(2**25),
        "MESH_EVENTS_TTL_S": "60",
        "MESH_QUEUE_MAX": "9",
        "MESH_RESULT_TTL_S": "60",
    }
    seen: list[dict[str, Any]] = []
    for turn in range(4):
        file = ("one.py", "two.py")[turn % 2]
        more = others if turn % 2 else dict.fromkeys(others)
        before = dict(command_line.variables)
        command_line.variables |= {name: value for name, value in more.items() if value is not None}
        async with command_line.running("run", file) as peer:
            handle = await mesh.submit("add", [turn, 1], key=f"k{turn}")
            assert await handle.result(within_s=20) == turn + 1
            seen.append(await configs(mesh))
            peer.send_signal(signal.SIGTERM)
            await peer.wait()
        command_line.variables = before
    planned = await command_line("topology", "plan", "two.py")

    assert seen[1:] == seen[:1] * 3
    assert planned.code == 2
    assert "metadata queue_max 7 -> queue_max 70" in planned.out


async def test_of_two_applies_at_once_the_last_wins_and_each_says_what_it_did(mesh: Mesh) -> None:
    bus, settings = mesh.bus, mesh.bus.settings
    sides = [
        settings.model_copy(update={"ack_wait_s": 2.5 + side, "stream_bytes_max": (side + 3) * 2**20})
        for side in (0, 1)
    ]
    wanted = [
        [*topology.of_mesh(one), *topology.of_capability(one, "add", queue_max=round(one.ack_wait_s))] for one in sides
    ]

    for _ in range(5):
        done = await asyncio.gather(*(plan.carry_out(bus, specs, with_care=True) for specs in wanted))
        found = await configs(mesh)

        for spec_one, spec_two in zip(*wanted, strict=True):
            config = found[str(spec_one)]
            assert not topology.differences(spec_one, config) or not topology.differences(spec_two, config), config
        overtaken = [step for steps in done for step in steps if not step.is_done]
        assert all("somebody else changed it meanwhile" in step.reason for step in overtaken)
    settled = await plan.carry_out(bus, wanted[0], with_care=True)
    assert all(step.is_done for step in settled)
    assert await plan.carry_out(bus, wanted[0]) == []


async def old_timers(mesh: Mesh) -> str:
    """A stream of timers as older versions made it, by raw JSON."""
    subjects = mesh.bus.subjects
    name, head = subjects.shared_timer_stream, subjects.prefix
    stream = {
        "name": name,
        "subjects": [f"{head}.{word}.>" for word in ("timer", "due", "cron", "tick")],
        "retention": "workqueue",
        "storage": "file",
        "max_msgs_per_subject": 1,
        "discard": "old",
        "allow_direct": True,
        "allow_msg_ttl": True,
        "allow_msg_schedules": True,
    }
    consumer = {
        "durable_name": "timekeeper",
        "ack_policy": "explicit",
        "ack_wait": 2 * NANOS,
        "max_deliver": -1,
        "max_ack_pending": 100_000,
        "max_waiting": 8_192,
        "filter_subjects": [f"{head}.due.>", f"{head}.tick.>"],
        "priority_groups": ["slots"],
        "priority_policy": "overflow",
    }
    await mesh.bus.api(f"STREAM.CREATE.{name}", stream)
    await mesh.bus.api(
        f"CONSUMER.CREATE.{name}.timekeeper", {"stream_name": name, "config": consumer, "action": "create"}
    )
    return name


@pytest.mark.parametrize("is_cut_short", [False, True])
async def test_the_shared_stream_of_timers_from_before_is_moved(
    command_line: Any, mesh: Mesh, is_cut_short: bool
) -> None:
    bus, subjects = mesh.bus, mesh.bus.subjects
    await topology.ensure(bus, [topology.consumer(bus.settings, name) for name in ("nap", "tally")])
    old = await old_timers(mesh)
    agent = Agent("sleeper")
    runs: list[str] = []

    @agent.handles("nap")
    async def nap(_: int) -> None:
        runs.append("nap")

    @agent.handles("tally")
    async def tally(_: int) -> None:
        runs.append("tally")

    # Timers as an older peer sets them: one that is due soon, one far ahead, one that fired and was not taken yet.
    soon, far = time.time() + 0.5, time.time() + 3_600
    for task, at in ((Identity("nap", "soon"), soon), (Identity("nap", "far"), far)):
        timer = f"{round(at * 1000):x}"
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
        headers = {names.SCHEDULE: f"@at {stamp}", names.SCHEDULE_TARGET: subjects.due(task, timer)}
        await bus.store(subjects.timer(task, timer), b"", headers)
    recurring = Recurring(capability="tally", payload=1, schedule="@every 1s")
    cron = {names.SCHEDULE: "@every 1s", names.SCHEDULE_TARGET: f"{subjects.prefix}.tick.count"}
    await bus.store(f"{subjects.prefix}.cron.count", wire.encode(recurring), cron)
    illegible = {names.SCHEDULE: "@hourly", names.SCHEDULE_TARGET: f"{subjects.prefix}.tick.illegible"}
    await bus.store(f"{subjects.prefix}.cron.illegible", b"nonsense", illegible)
    if is_cut_short:
        shared = await shared_timers.found(bus)
        assert shared is not None
        await shared_timers.give_up_subjects(bus, shared)

    planned = await command_line("topology", "plan", "--json")
    told = await command_line("topology", "plan")
    applied = await command_line("topology", "apply")
    again = await command_line("topology", "apply")

    assert Way.MOVE in {change["way"] for change in planned.document["changes"]}
    assert (told.code, f"MOVE     move what stream {old} holds" in told.out) == (2, True), told.out + told.err
    assert applied.code == 0, applied.out + applied.err
    assert f"and schedules from {old}, and deleted it" in applied.out
    assert again.code == 0
    assert await shared_timers.found(bus) is None
    assert [one.name for one in await timers.schedules(bus)] == ["count"]
    kept = (await bus.api(f"STREAM.INFO.{subjects.timer_stream('nap')}", {"subjects_filter": ">"}))["state"]["subjects"]
    assert any(subject.startswith(subjects.timer(Identity("nap", "far"), "")) for subject in kept)
    async with hosting(agent, settings=bus.settings):
        await eventually(lambda: "tally" in runs)
        left = f"{subjects.prefix}.due.nap.>"
        await eventually(lambda: _is_empty(mesh, "nap", left))


async def _is_empty(mesh: Mesh, capability: str, pattern: str) -> bool:
    stream = mesh.bus.subjects.timer_stream(capability)
    state = (await mesh.bus.api(f"STREAM.INFO.{stream}", {"subjects_filter": pattern}))["state"]
    return not state.get("subjects")
