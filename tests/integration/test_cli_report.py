"""`mesh report`: what it says of work that was done on a live mesh."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from mesh import Agent, Context, Mesh, Permanent, Transient
from mesh.settings import Settings
from mesh.testing import eventually, hosting

desk = Agent("desk", version="2", owner="front")
back = Agent("back", version="7", owner="rear")


@desk.handles("ask", concurrency=4, attempts=2)
async def ask(text: str, ctx: Context) -> int:
    if text == "again" and ctx.attempt == 1:
        raise Transient("not now")
    ctx.explain(confidence=0.5)
    return await ctx.call(count, text)


@back.handles("count", concurrency=4)
async def count(text: str, ctx: Context) -> int:
    if not text:
        raise Permanent("nothing to count")
    ctx.spent(tokens_in=10, tokens_out=2, usd=0.25)
    return len(text)


@pytest.fixture
async def work(settings: Settings, mesh: Mesh) -> AsyncIterator[None]:
    async with hosting(desk, back, settings=settings):
        for text in ("one", "three", "again"):
            assert await (await mesh.submit(ask, text)).result(within_s=20) == len(text)
        await (await mesh.submit(ask, "")).outcome(within_s=20)
        yield


async def rows_of(command_line: Any, *options: str, tasks: int) -> dict[str, Any]:
    """The rows of a report, by name, once it has the number of tasks."""

    async def complete() -> dict[str, Any]:
        found = (await command_line("report", "--json", *options)).document["rows"]
        return {row["name"]: row for row in found} if sum(row["tasks"] for row in found) == tasks else {}

    return await eventually(complete)


async def test_a_report_counts_by_capability_with_costs_and_what_went_wrong(command_line: Any, work: None) -> None:
    rows = await rows_of(command_line, tasks=8)

    assert {name: (row["tasks"], row["failed"]) for name, row in rows.items()} == {"ask": (4, 1), "count": (4, 1)}
    assert (rows["count"]["usd"], rows["count"]["tokens_in"], rows["count"]["tokens_out"]) == (0.75, 30, 6)
    assert (rows["ask"]["retried"], rows["ask"]["confidence"], rows["ask"]["dead_lettered"]) == (1, 0.5, 1)
    assert 0 < rows["ask"]["run_s_p50"] <= rows["ask"]["run_s_p95"] <= rows["ask"]["run_s_p99"]


@pytest.mark.parametrize(
    ("by", "names"),
    [
        ("owner", {"front", "rear"}),
        ("version", {"desk 2", "back 7"}),
        ("caller", {"ask", "(client)"}),
    ],
)
async def test_a_report_has_a_row_for_each_team_release_or_caller(
    command_line: Any, work: None, by: str, names: set[str]
) -> None:
    assert set(await rows_of(command_line, "--by", by, tasks=8)) == names


async def test_a_report_for_people_names_the_slowest_and_what_was_spent(command_line: Any, work: None) -> None:
    await rows_of(command_line, "--capability", "count", tasks=4)

    told = (await command_line("report", "--capability", "count")).out

    assert "$0.75 spent" in told
    assert "slowest, from stored to answered:" in told
    assert "count/" in told
    assert "ask" not in told.splitlines()[1]


async def test_a_report_of_nothing_says_so_and_a_wrong_time_is_refused(command_line: Any, mesh: Mesh) -> None:
    async with hosting(desk, back, settings=mesh.bus.settings):
        nothing = await command_line("report")
        wrong = await command_line("report", "--since", "soon")

    assert (nothing.code, nothing.out) == (0, "")
    assert "no task ended since" in nothing.err
    assert wrong.code == 2
    assert "--since is 'soon'" in wrong.err
