"""Timers and recurring tasks: what fires, and what the server is asked for."""

import time

import pytest

from contracts.errors import ContractError
from contracts.subjects import Identity
from contracts.workflow import Recurring
from mesh import Agent, Context, Mesh
from mesh.bus import topology
from mesh.bus.timers import drop_schedule, read_schedule, schedules, set_schedule, set_timer
from mesh.settings import Settings
from mesh.testing import eventually, hosting


async def test_a_recurring_task_starts_once_a_tick_however_many_peers_keep_time(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("reporter")
    ran: list[str] = []

    @agent.handles("report")
    async def report(topic: str, ctx: Context) -> str:
        ran.append(ctx.id)
        return topic

    assert await set_schedule(mesh.bus, "hourly", Recurring(capability="report", payload="sales", schedule="@every 1s"))
    async with hosting(agent, settings=settings), hosting(agent, settings=settings):
        await eventually(lambda: len(ran) >= 3)
        handle = mesh.handle(report, ran[0])
        assert await handle.result(within_s=20) == "sales"

    assert len(ran) == len(set(ran))
    assert all(task_id.startswith("hourly-20") for task_id in ran)


async def test_a_name_is_taken_once_and_free_when_it_is_dropped(mesh: Mesh) -> None:
    daily = Recurring(capability="report", schedule="0 0 9 * * *", time_zone="Europe/Berlin", by="ann")

    assert await set_schedule(mesh.bus, "daily", daily)
    assert not await set_schedule(mesh.bus, "daily", daily)
    assert [(one.name, one.recurring) for one in await schedules(mesh.bus)] == [("daily", daily)]
    assert await drop_schedule(mesh.bus, "daily")
    assert not await drop_schedule(mesh.bus, "daily")
    assert await read_schedule(mesh.bus, "daily") is None
    assert await set_schedule(mesh.bus, "daily", daily)


@pytest.mark.parametrize(
    ("schedule", "zone"), [("whenever", ""), ("0 9 * * *", ""), ("@every 10ms", ""), ("0 0 9 * * *", "Mars/Olympus")]
)
async def test_a_schedule_that_the_server_does_not_understand_is_refused_in_plain_words(
    mesh: Mesh, schedule: str, zone: str
) -> None:
    with pytest.raises(ContractError, match="six cron fields"):
        await set_schedule(mesh.bus, "odd", Recurring(capability="report", schedule=schedule, time_zone=zone))


async def test_a_timer_of_a_task_that_is_not_parked_wakes_nobody_and_is_gone(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("idle")

    @agent.handles("idle")
    async def idle() -> None:
        return None

    async with hosting(agent, settings=settings):
        await set_timer(mesh.bus, Identity("idle", "nobody"), time.time())
        await set_timer(mesh.bus, Identity("idle", "nobody"), time.time() + 0.3)
        await eventually(lambda: _timers(mesh, settings, 0))
        wakes = await topology.queued(mesh.bus, mesh.bus.subjects.wakes_of("idle")[0])

    assert wakes == {}


async def _timers(mesh: Mesh, settings: Settings, count: int) -> bool:
    stream = topology.timers(settings, "idle")
    info = await topology.inspect(mesh.bus, stream)
    assert info is not None
    return bool(info["state"]["messages"] == count)
