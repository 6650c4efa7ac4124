"""`mesh top`: its keys on a live mesh, and its snapshot for scripts. The real terminal is in test_cli_top_terminal."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from textual.widgets import DataTable, Static

from mesh import Agent, BlockingContext, Context, Mesh, Permanent
from mesh.bus import control
from mesh.cli.top.collector import LISTED_MAX, Collector
from mesh.cli.top.facts import Facts
from mesh.cli.top.view import KEYS, Confirm, Lines, Top
from mesh.human import agent as people
from mesh.settings import Settings
from mesh.testing import eventually, hosting

desk = Agent("desk", version="1", owner="care")
QUICK = 0.2


@desk.handles("triage", concurrency=2)
async def triage(number: int, ctx: Context) -> int:
    """Sort a ticket."""
    if number < 0:
        raise Permanent("no such ticket")
    return await ctx.call(lookup, number)


@desk.handles("lookup", queue_max=50)
def lookup(number: int, ctx: BlockingContext) -> int:
    """Look a number up."""
    return number + 1


@desk.handles("propose")
async def propose(text: str, ctx: Context) -> str:
    """Ask a person."""
    decision = await ctx.approve(text, reason="is it right?", within_s=600)
    return str(decision.approved)


class Screen:
    """What a test presses and reads."""

    def __init__(self, app: Top, pilot: Any, mesh: Mesh) -> None:
        self.app = app
        self.pilot = pilot
        self.mesh = mesh

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.pilot.pause()

    def line(self, name: str) -> str:
        found: Any = self.app.screen_stack[0].query_one(f"#{name}", Static).content
        return str(found)

    def rows(self) -> dict[str, dict[str, str]]:
        table = self.app.screen_stack[0].query_one(DataTable)
        names = [str(column.label).strip() for column in table.ordered_columns]
        return {
            str(row.key.value): dict(zip(names, map(str, table.get_row(row.key)), strict=True))
            for row in table.ordered_rows
        }

    def lines(self) -> str:
        found: Any = self.app.screen.query_one("#lines", Static).content
        return str(found)

    async def choose(self, key: str) -> None:
        """Put the cursor on a row, by keys."""
        await self.press("home", *["down"] * list(self.rows()).index(key))


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Screen]:
    async with Mesh.connect(settings=settings, name="web") as mesh:
        facts = Facts(settings.prefix, "here", settings.beat_s)
        app = Top(mesh.bus, facts, slow=QUICK)
        async with Collector(mesh.bus, facts, slow=QUICK).open(), app.run_test(size=(80, 24)) as pilot:
            yield Screen(app, pilot, mesh)


@pytest.fixture
async def screen(settings: Settings) -> AsyncIterator[Screen]:
    async with hosting(desk, people, settings=settings), opened(settings) as found:
        await eventually(lambda: "triage" in found.rows())
        yield found


async def test_numbers_on_the_screen_are_those_of_the_mesh(screen: Screen) -> None:
    for number in range(5):
        assert await (await screen.mesh.submit(triage, number)).result(within_s=20) == number + 1
    failed = await screen.mesh.submit(triage, -1)
    await failed.outcome(within_s=20)

    async def is_counted() -> bool:
        await screen.press("1", "enter") if not isinstance(screen.app.screen, Lines) else None
        return "owner care" in screen.lines()

    await screen.choose("triage")
    await eventually(is_counted)
    await eventually(lambda: " 6 " in screen.lines())
    assert "desk 1   owner care   contract" in screen.lines()
    await screen.press("escape")
    assert screen.rows()["triage"]["failed"] == "1"
    await eventually(lambda: "dead letters 1" in screen.line("head"))
    assert screen.line("head").splitlines()[1].startswith("1 live peer ")


async def test_numbers_and_tab_switch_the_screens(screen: Screen) -> None:
    seen = []
    for key in "1234567":
        await screen.press(key)
        seen.append(screen.line("tabs").partition("[")[2].partition("]")[0])
    await screen.press("tab")
    seen.append(screen.line("tabs").partition("[")[2].partition("]")[0])
    await screen.press("shift+tab")
    seen.append(screen.line("tabs").partition("[")[2].partition("]")[0])

    names = ["1 capabilities", "2 peers", "3 breakers", "4 limits", "5 inbox", "6 stuck", "7 events"]
    assert seen == [*names, "1 capabilities", "7 events"]


async def test_rows_are_sorted_and_filtered_by_keys(screen: Screen) -> None:
    await screen.press("s")
    by_name = list(screen.rows())
    await screen.press("r")
    reversed_ = list(screen.rows())
    told = screen.line("tabs")
    await screen.press("slash", *"look", "enter")
    filtered, marked = list(screen.rows()), screen.line("tabs")
    await screen.press("slash", "escape")

    assert by_name == ["human", "lookup", "propose", "triage"]
    assert reversed_ == by_name[::-1]
    assert "by capability, largest first" in told
    assert filtered == ["lookup"]
    assert "/look" in marked
    assert len(screen.rows()) == 4


async def test_the_chosen_row_stays_chosen_while_others_come_and_go(screen: Screen, settings: Settings) -> None:
    await screen.choose("triage")
    async with hosting(_another(), settings=settings):
        await eventually(lambda: "add" in screen.rows())
        chosen = screen.app.chosen()

    assert chosen is not None
    assert chosen.key == "triage"


def _another() -> Agent:
    other = Agent("other")

    @other.handles("add")
    async def add(terms: list[int]) -> int:
        return sum(terms)

    return other


async def test_a_capability_is_paused_and_resumed_only_after_a_yes(screen: Screen) -> None:
    await screen.choose("lookup")
    await screen.press("p")
    assert isinstance(screen.app.screen, Confirm)
    await screen.press("enter")
    assert await control.pauses(screen.mesh.bus) == {}

    await screen.press("p", "y")
    await eventually(lambda: screen.rows()["lookup"]["state"] == "PAUSED")
    pauses = await control.pauses(screen.mesh.bus)
    assert pauses["lookup"].reason == "mesh top"
    await screen.press("p", "y")
    await eventually(lambda: screen.rows()["lookup"]["state"] == "ok")
    assert await control.pauses(screen.mesh.bus) == {}


async def test_a_breaker_is_closed_and_opened_only_after_a_yes(screen: Screen) -> None:
    await control.change_breaker(
        screen.mesh.bus, "llm", control.BreakerChange(state="open", at=0.0, for_s=1e6, by="me"), after=None
    )
    await screen.press("3")
    await eventually(lambda: screen.rows().get("llm", {}).get("state") == "open")

    await screen.press("home", "b", "n")
    assert (await control.breakers(screen.mesh.bus))["llm"].state == "open"
    await screen.press("b", "y")
    await eventually(lambda: screen.rows()["llm"]["state"] == "closed")


async def test_what_waits_for_a_person_is_shown_and_its_tree_opened(screen: Screen) -> None:
    await screen.mesh.submit(propose, "ship it", key="order-1")
    await screen.press("5")
    await eventually(lambda: any("is it right?" in row.get("reason", "") for row in screen.rows().values()))

    assert "inbox 1 (oldest" in screen.line("head")
    await screen.press("home", "enter")
    await eventually(lambda: "human/order-1" in screen.lines())


async def test_a_task_is_traced_by_name_and_one_that_is_not_kept_says_so(screen: Screen) -> None:
    await (await screen.mesh.submit(triage, 1, key="t-1")).result(within_s=20)

    await screen.press("t", *"triage/t-1", "enter")
    await eventually(lambda: "lookup" in screen.lines())
    await screen.press("escape", "t", *"triage/t-2", "enter")
    await eventually(lambda: "nothing of triage/t-2 is kept" in screen.lines())
    await screen.press("escape", "t", *"nonsense", "enter")
    await eventually(lambda: "it failed: which task of 'nonsense'?" in screen.lines())


async def test_dead_letters_are_opened_with_their_reasons(screen: Screen) -> None:
    await (await screen.mesh.submit(triage, -1, key="bad")).outcome(within_s=20)
    await screen.press("6")
    await eventually(lambda: "dead letters triage" in screen.rows())

    await screen.choose("dead letters triage")
    await screen.press("enter")

    await eventually(lambda: "triage/bad" in screen.lines() and "no such ticket" in screen.lines())


async def test_tasks_that_nobody_ever_served_are_named(screen: Screen) -> None:
    await screen.mesh.submit("triaage", 1, key="slip")
    for number in range(50):
        # What comes and goes meanwhile is none of them.
        await screen.mesh.submit(triage, number)
    await screen.press("6")

    await eventually(lambda: screen.rows().get("never served triaage", {}).get("tasks") == "1")
    await eventually(lambda: "unserved 1" in screen.line("head"))


async def test_so_are_some_of_many_where_all_that_wait_are_theirs(screen: Screen) -> None:
    async with asyncio.TaskGroup() as submitting:
        for number in range(LISTED_MAX + 100):
            submitting.create_task(screen.mesh.submit("triaage", number))
    await screen.press("6")

    await eventually(lambda: screen.rows().get("never served triaage", {}).get("tasks") == f"{LISTED_MAX + 100:,}")


async def test_a_held_screen_stands_still_until_it_is_let_go(screen: Screen, settings: Settings) -> None:
    await screen.press("space")
    held = screen.line("head")
    async with hosting(_another(), settings=settings):
        await eventually(lambda: "add" in {name for heard in _peers(screen) for name in heard.beat.load})
        screen.app.draw()
        assert "HELD at" in screen.line("told")
        assert "add" not in screen.rows()
        assert screen.line("head") == held
        await screen.press("space")
        await eventually(lambda: "add" in screen.rows())


def _peers(screen: Screen) -> list[Any]:
    return list(screen.app._facts.peers.values())


async def test_help_names_every_key_and_fits_the_smallest_screen(screen: Screen) -> None:
    await screen.press("question_mark")

    lines = screen.lines().splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert len(lines) <= 22
    assert len(KEYS) <= 80
    await screen.press("escape")
    assert not isinstance(screen.app.screen, Lines)


async def test_a_screen_that_is_about_to_open_may_be_drawn(screen: Screen) -> None:
    opening = Lines(lambda: ["told"])
    screen.app.push_screen(opening)
    screen.app.draw()

    await eventually(lambda: screen.app.screen is opening and opening.is_mounted and screen.lines() == "told")


async def test_a_snapshot_needs_no_terminal_and_no_textual(
    command_line: Any, settings: Settings, tmp_path: Path
) -> None:
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "textual.py").write_text("raise ImportError('blocked')\n")
    inherited = command_line.variables.get("PYTHONPATH", "")
    command_line.variables["PYTHONPATH"] = os.pathsep.join(filter(None, (str(blocked), inherited)))
    async with hosting(desk, settings=settings), Mesh.connect(settings=settings, name="web") as mesh:
        for number in range(4):
            await (await mesh.submit(triage, number)).result(within_s=20)
        text = await command_line("top", "--once")
        data = await command_line("top", "--json")
        bare = await command_line("top")
        command_line.variables["PYTHONPATH"] = inherited
        piped = await command_line("top")

    found = {one["capability"]: one for one in data.document["capabilities"]}
    assert found["triage"]["answered"] == found["lookup"]["answered"] == 4
    assert (found["triage"]["owner"], found["lookup"]["lanes"]["normal"]["bound"]) == ("care", 50)
    assert data.document["totals"]["peers"] == 1
    assert data.document["warning"] == ""
    assert "1 live peer" in text.out
    assert (bare.code, piped.code) == (2, 2)
    assert "pip install 'starling-mesh[top]'" in bare.err
    assert "needs a terminal" in piped.err


async def test_on_a_server_without_a_mesh_it_says_so(command_line: Any) -> None:
    ended = await command_line("top", "--once")

    assert ended.code == 3
    assert "do not exist" in ended.err
