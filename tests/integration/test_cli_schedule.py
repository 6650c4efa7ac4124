"""`mesh schedule`: recurring tasks are set once, fire once a tick whoever keeps time, and go when removed."""

import re
from datetime import UTC, datetime
from typing import Any

import pytest

from contracts.workflow import Recurring
from mesh import Agent, Context, Mesh
from mesh.bus.timers import submit_tick
from mesh.bus.topology import queued
from mesh.cli.schedule import six_fields
from mesh.settings import Settings
from mesh.testing import eventually, hosting

TICK = re.compile(r"tick-(\d{8}T\d{6}Z)")


class Clock:
    """An agent that notes each run of its task."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, Any]] = []
        self.agent = Agent("clock")

        @self.agent.handles("chime")
        async def chime(payload: Any, ctx: Context) -> None:
            self.ran.append((ctx.id, payload))

    def seconds(self) -> list[int]:
        """The second that each run's id names, in the order in which they ran."""
        found = [TICK.fullmatch(task_id) for task_id, _ in self.ran]
        return [
            int(datetime.strptime(match[1], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp())
            for match in found
            if match is not None
        ]


async def test_a_schedule_submits_one_task_a_tick_whichever_peer_keeps_time(
    command_line: Any, settings: Settings, mesh: Mesh
) -> None:
    clock = Clock()
    async with hosting(clock.agent, settings=settings):
        async with hosting(clock.agent, settings=settings):
            ended = await command_line("schedule", "set", "tick", "@every 1s", "chime", '{"of": "noon"}')
            await eventually(lambda: len(clock.ran) >= 3)
        # One of the two has left; another comes.
        before = len(clock.ran)
        await eventually(lambda: len(clock.ran) > before)
        async with hosting(clock.agent, settings=settings):
            before = len(clock.ran)
            await eventually(lambda: len(clock.ran) > before + 1)
            removed = await command_line("schedule", "rm", "tick")

    assert (ended.code, ended.out) == (0, "tick asks for chime every 1s\n")
    assert (removed.code, removed.out) == (0, "tick is removed\n")
    seconds = clock.seconds()
    assert len(seconds) == len(clock.ran) >= 6
    assert len(set(seconds)) == len(seconds)
    # A tick that nobody took within its second gives way to the next one; a stalled machine may lose one like that.
    assert max(seconds) - min(seconds) <= len(seconds)
    assert all(payload == {"of": "noon"} for _, payload in clock.ran)


async def test_without_peers_a_schedule_waits_and_goes_on_with_them(
    command_line: Any, settings: Settings, mesh: Mesh
) -> None:
    clock = Clock()
    async with hosting(clock.agent, settings=settings):
        await command_line("schedule", "set", "tick", "@every 1s", "chime")
        await eventually(lambda: clock.ran)
    ran = len(clock.ran)

    async with hosting(clock.agent, settings=settings):
        await eventually(lambda: len(clock.ran) > ran + 1)

    assert len(set(clock.seconds())) == len(clock.ran)


async def test_a_tick_that_fired_late_does_not_take_the_next_ones_id(mesh: Mesh) -> None:
    recurring = Recurring(capability="chime", schedule="@every 1s")

    late = await submit_tick(mesh.bus, "tick", recurring, 1_000_000_000.9)
    following = await submit_tick(mesh.bus, "tick", recurring, 1_000_000_001.0)
    again = await submit_tick(mesh.bus, "tick", recurring, 1_000_000_001.0)

    assert (late, following, again) == (True, True, False)
    standing = await queued(mesh.bus, mesh.bus.subjects.tasks_of("chime"))
    assert sorted(subject.rpartition("-")[2] for subject in standing) == ["20010909T014640Z", "20010909T014641Z"]


async def test_schedules_are_listed_shown_and_removed(command_line: Any, mesh: Mesh) -> None:
    made = await command_line(
        "schedule", "set", "morning", "0 30 9 * * mon-fri", "report", '["a"]', "--zone", "Europe/Berlin", "--json"
    )
    await command_line("schedule", "set", "hourly", "@hourly", "sweep")

    as_json = await command_line("schedule", "ls", "--json")
    listed = await command_line("schedule", "ls")
    shown = await command_line("schedule", "show", "morning")
    removed = [await command_line("schedule", "rm", "morning") for _ in range(2)]
    missing = await command_line("schedule", "show", "morning")

    assert made.document["is_new"] is True
    hourly, morning = as_json.document["schedules"]
    assert (hourly["name"], hourly["schedule"], hourly["payload"]) == ("hourly", "@hourly", None)
    assert (morning["capability"], morning["payload"], morning["time_zone"]) == ("report", ["a"], "Europe/Berlin")
    assert [line.split()[0] for line in listed.out.splitlines()] == ["schedule", "hourly", "morning"]
    assert "asks for report at '0 30 9 * * mon-fri', Europe/Berlin" in shown.out
    assert [one.code for one in removed] == [0, 1]
    assert missing.code == 1


async def test_a_name_stands_for_one_schedule(command_line: Any, mesh: Mesh) -> None:
    first, again, other = [
        await command_line("schedule", "set", "s", "@every 10m", "report", payload) for payload in ("1", "1", "2")
    ]

    assert (first.code, again.code, other.code) == (0, 0, 5)
    assert "it was set before" in again.out
    assert "`mesh schedule rm s` first" in other.err


async def test_a_schedule_that_nobody_serves_is_set_and_told_so(command_line: Any, mesh: Mesh) -> None:
    ended = await command_line("schedule", "set", "s", "@daily", "report")

    assert ended.code == 0
    assert "no peer serves report now" in ended.err


@pytest.mark.parametrize(
    ("when", "zone", "told"),
    [
        ("99 * * * *", "", "six cron fields from seconds on"),
        ("tomorrow", "", "six cron fields from seconds on"),
        ("@every 0.1s", "", "1 s at least"),
        ("@daily", "Mars/Base", "in Mars/Base: message schedules time zone is invalid"),
    ],
)
async def test_what_the_server_does_not_understand_is_told(
    command_line: Any, mesh: Mesh, when: str, zone: str, told: str
) -> None:
    ended = await command_line("schedule", "set", "s", when, "report", "--zone", zone)

    assert ended.code == 2
    assert told in ended.err


async def test_names_that_no_schedule_can_have_are_told(command_line: Any, mesh: Mesh) -> None:
    codes = [
        (await command_line("schedule", *arguments)).code
        for arguments in (("set", "a.b", "@daily", "c"), ("set", "a", "@daily", "c d"), ("show", "a b"), ("rm", "a.b"))
    ]

    assert codes == [2, 2, 2, 2]


async def test_five_fields_are_taken_to_begin_with_minutes(command_line: Any, mesh: Mesh) -> None:
    ended = await command_line("schedule", "set", "s", "30 9 * * mon-fri", "report")

    assert ended.code == 0
    assert "taken as '0 30 9 * * mon-fri', at second 0" in ended.err


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("30 9 * * *", "0 30 9 * * *"),
        (" 30  9 * * * ", "0 30 9 * * *"),
        ("15 30 9 * * *", "15 30 9 * * *"),
        ("@every 1h2m3s", "@every 1h2m3s"),
        ("@at a b c d", "@at a b c d"),
        ("9 * *", "9 * *"),
    ],
)
def test_a_schedule_is_given_its_seconds_and_otherwise_left_alone(given: str, taken: str) -> None:
    assert six_fields(given) == taken
