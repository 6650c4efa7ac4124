"""`mesh map`: what it makes of a live mesh of several owners, versions, callers and handoffs."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from mesh import Agent, Context, Handoff, Ladder, Mesh
from mesh.settings import Settings
from mesh.testing import hosting

desk = Agent("desk", version="2.0", owner="care")
stock = Agent("stock", version="1.1", owner="sales")
newer = Agent("stock", version="1.2", owner="sales")


@desk.handles("triage")
async def triage(text: str, ctx: Context) -> str:
    """Sort a ticket."""
    first, second = await ctx.gather(ctx.call(lookup, 1), ctx.call(lookup, 2))
    return f"{text} {first} {second}"


@desk.handles("front", ladder=Ladder(0.5, "human"))
async def front(text: str, ctx: Context) -> str | Handoff:
    """Hand every ticket over."""
    return Handoff(triage, text)


@stock.handles("lookup", queue_max=77)
async def lookup(number: int) -> str:
    """Look a number up."""
    return str(number)


@newer.handles("lookup")
async def lookup_more(number: int | str) -> str:
    """Look anything up."""
    return str(number)


@pytest.fixture
async def live(settings: Settings) -> AsyncIterator[None]:
    async with hosting(desk, settings=settings), hosting(stock, settings=settings):
        yield


def _calls(document: Any) -> dict[tuple[str, str], int]:
    return {(edge["source"], edge["target"]): edge["count"] for edge in document["edges"] if edge["kind"] == "calls"}


async def test_calls_handoffs_and_clients_are_counted_once_for_each_answer(
    command_line: Any, live: None, settings: Settings
) -> None:
    async with Mesh.connect(settings=settings, name="web") as web:
        for number in range(3):
            assert await (await web.submit(triage, f"t{number}")).result(within_s=20) == f"t{number} 1 2"
        assert await (await web.submit(front, "f", key="ticket-1")).result(within_s=20) == "f 1 2"
        # The same key again starts nothing, and counts nothing.
        assert await (await web.submit(front, "f", key="ticket-1")).result(within_s=20) == "f 1 2"

    document = (await command_line("map", "--json")).document
    text = (await command_line("map")).out

    assert _calls(document) == {
        ("web", "triage"): 3,
        ("web", "front"): 1,
        ("front", "triage"): 1,
        ("triage", "lookup"): 8,
    }
    assert {service["capability"]: service["owner"] for service in document["services"]} == {
        "front": "care",
        "triage": "care",
        "lookup": "sales",
    }
    assert document["notes"] == ["front escalates to human, which no live peer serves"]
    assert text.index("care") < text.index("front") < text.index("triage") < text.index("sales")
    assert "asked by      triage 8" in text


async def test_a_rollout_shows_both_versions_and_whom_to_call(
    command_line: Any, live: None, settings: Settings
) -> None:
    async with hosting(newer, settings=settings):
        ended = await command_line("map", "--capability", "lookup")
        agents = await command_line("agents")

    assert ended.out.startswith("sales\n  lookup   stock 1.1   contract ")
    assert "lookup   stock 1.2   contract " in ended.out
    assert "lookup is served under 2 contracts" in ended.out
    assert "triage" not in ended.out
    assert " 77" in agents.out


async def test_a_capability_whose_peers_are_gone_is_found_by_its_queue(
    command_line: Any, mesh: Mesh, settings: Settings
) -> None:
    async with hosting(stock, settings=settings):
        pass
    await mesh.submit("lookup", 1, key="late")

    async with hosting(desk, settings=settings):
        found = await command_line("map", "-c", "lookup", "--json")
        unknown = await command_line("map", "-c", "look", "--json")
        nobody = await command_line("map", "--owner", "ops")

    assert found.document["unserved"] == [{"capability": "lookup", "waiting": 1}]
    assert found.document["notes"] == ["lookup has a queue, and 1 task waiting there, and no live peer serves it"]
    assert unknown.document["services"] == unknown.document["unserved"] == []
    assert nobody.code == 1
    assert "nothing here is owned by 'ops'; owners are care" in nobody.err


async def test_drawings_are_for_mermaid_and_graphviz(command_line: Any, live: None) -> None:
    mermaid = await command_line("map", "--mermaid")
    dot = await command_line("map", "--dot")
    both = await command_line("map", "--dot", "--json")

    assert mermaid.out.startswith("flowchart LR\n")
    assert '-.->|"below 0.5"|' in mermaid.out.replace("#46;", ".")
    assert dot.out.startswith("digraph mesh {\n")
    assert dot.out.endswith("}\n")
    assert both.code == 2


async def test_without_peers_it_says_so(command_line: Any, mesh: Mesh) -> None:
    ended = await command_line("map", "--within-s", "0.1")

    assert ended.code == 1
    assert "no peer answers" in ended.err
