"""`mesh events`, `mesh decisions` and what `mesh trace` tells of decisions, as a person and a script meet them."""

import asyncio
import json
import time
from typing import Any

import pytest

from contracts import wire
from contracts.errors import ContractError
from contracts.event import Event
from contracts.subjects import Identity
from mesh import Agent, Context, Mesh
from mesh.bus.connection import Bus
from mesh.bus.records import Stored
from mesh.cli.events import line, moment
from mesh.settings import Settings
from mesh.testing import eventually, hosting

agent = Agent("judges", version="3")


@agent.handles("judge")
async def judge(how: str, ctx: Context) -> str:
    ctx.explain(model="m", prompt_digest=f"prompt of {how}")
    ctx.decide("guilty", "it is\nwritten", 0.75, {"how": how})
    return how


@agent.handles("court")
async def court(how: str, ctx: Context) -> str:
    ctx.decide("ask a judge")
    answer: str = await ctx.call(judge, how)
    await ctx.signal("end", within_s=60)
    return answer


def documents(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


async def stored(bus: Bus, count: int) -> None:
    """Return when so many events are kept."""

    async def messages() -> bool:
        info = await bus.api(f"STREAM.INFO.{bus.subjects.event_stream}")
        return bool(info["state"]["messages"] >= count)

    await eventually(messages)


async def store(bus: Bus, kind: str, **more: Any) -> None:
    event = {"v": 1, "kind": kind, "at": time.time(), "peer": "p", "capability": "c", "id": "k", **more}
    await bus.store(bus.subjects.event(kind, Identity("c", "k")), wire.encode(event))


async def test_events_of_a_task_are_told_with_everything_below_it(
    mesh: Mesh, settings: Settings, command_line: Any
) -> None:
    settings = settings.model_copy(update={"hot_wait_s": 0.0})
    async with hosting(agent, settings=settings):
        handle = await mesh.submit("court", "fine", key="k")
        await (await mesh.submit("judge", "else", key="other")).result(within_s=10)
        await eventually(lambda: _is_parked(mesh))
        trace = await command_line("trace", "court/k", "--json")
        plain = await command_line("trace", "court/k")
        await mesh.signal("court", "k", "end")
        await handle.result(within_s=10)
        await stored(mesh.bus, 9)
        told = await command_line("events", "--id", "k", "--json")
        lines = await command_line("events", "--id", "k")
        one = await command_line("events", "-c", "judge", "--kind", "decided", "--limit", "1", "--json")

    found = documents(told.out)
    assert {event["id"].partition(".")[0] for event in found} == {"k"}
    assert {(event["capability"], event["kind"]) for event in found} >= {
        ("court", "decided"),
        ("court", "parked"),
        ("court", "woken"),
        ("court", "ended"),
        ("judge", "decided"),
        ("judge", "ended"),
    }
    assert [event["sequence"] for event in found] == sorted(event["sequence"] for event in found)
    assert "guilty (confidence 0.75, model m, prompt prompt of fi): it is written" in lines.out
    assert len(documents(one.out)) == 1

    root = trace.document["root"]
    (decided,) = (leaf for leaf in root["leaves"] if leaf["mark"] == "decision")
    assert decided["decision"]["choice"] == "ask a judge"
    (child,) = root["children"]
    assert [leaf["decision"]["confidence"] for leaf in child["leaves"] if leaf["mark"] == "decision"] == [0.75]
    assert "decided ask a judge" in plain.out
    assert "decided guilty (confidence 0.75" in plain.out


async def _is_parked(mesh: Mesh) -> bool:
    info = await mesh.bus.api(f"STREAM.INFO.{mesh.bus.subjects.event_stream}", {"subjects_filter": ">"})
    (child,) = [subject for subject in info["state"].get("subjects") or () if ".ended.judge.k." in subject] or [""]
    return bool(child) and mesh.bus.subjects.event("parked", Identity("court", "k")) in info["state"]["subjects"]


async def test_following_prints_the_newest_and_then_what_happens(mesh: Mesh, command_line: Any) -> None:
    for number in range(3):
        await store(mesh.bus, "retried", detail=f"n{number}")

    async with (
        asyncio.timeout(25),
        command_line.running("events", "--follow", "--limit", "2", "--json") as process,
    ):
        before = [json.loads(await process.stdout.readline())["detail"] for _ in range(2)]
        await store(mesh.bus, "retried", detail="now")
        after = json.loads(await process.stdout.readline())["detail"]

    assert (before, after) == (["n1", "n2"], "now")


async def test_kinds_and_fields_of_a_newer_version_are_told(mesh: Mesh, command_line: Any) -> None:
    await store(mesh.bus, "teleported", detail="elsewhere", status="exalted", colour="red")
    await mesh.bus.store(mesh.bus.subjects.event("torn", Identity("c", "k")), b"\x00not json")

    lines = await command_line("events")
    found = documents((await command_line("events", "--json")).out)

    assert "teleported" in lines.out
    assert "exalted" in lines.out
    assert "elsewhere" in lines.out
    assert "unreadable" in lines.out
    assert found[0]["colour"] == "red"
    assert found[1]["kind"] == "unreadable"


async def test_where_there_is_nothing_it_says_why_that_may_be(mesh: Mesh, command_line: Any) -> None:
    empty = await command_line("events")
    await store(mesh.bus, "retried")
    other = await command_line("events", "--kind", "ended")
    undecided = await command_line("decisions")
    await mesh.bus.api(f"STREAM.DELETE.{mesh.bus.subjects.event_stream}")
    gone = await command_line("events")

    assert (empty.code, empty.out) == (0, "")
    assert "older than 7 d, or peers publish none (MESH_EVENTS=off)" in empty.err
    assert "no such events since" in other.err
    assert "1 of other kinds or tasks" in other.err
    assert "no decisions since" in undecided.err
    assert (gone.code, "has no stream of events" in gone.err) == (3, True)


async def test_decisions_are_counted_and_changes_of_a_prompt_are_told(
    mesh: Mesh, settings: Settings, command_line: Any
) -> None:
    async with hosting(agent, settings=settings):
        for key, how in (("a", "fine"), ("b", "fine"), ("c", "other")):
            await (await mesh.submit("judge", how, key=key)).result(within_s=10)
        await stored(mesh.bus, 7)

    found = await command_line("decisions", "judge", "--json")
    lines = await command_line("decisions")

    choice = {"capability": "judge", "version": "3", "choice": "guilty", "count": 3, "confidence": 0.75}
    assert found.document["choices"] == [{**choice, "is_by_people": False}]
    (change,) = found.document["changes"]
    assert (change["before"]["prompt_digest"], change["after"]["prompt_digest"]) == (
        "prompt of fine",
        "prompt of other",
    )
    assert "judge 3 changed without a new version" in lines.out
    assert "prompt of fi -> prompt of ot" in lines.out


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", 9_910.0),
        ("15m", 9_100.0),
        ("15min", 9_100.0),
        ("1h30m", 4_600.0),
        ("0.5h", 8_200.0),
        ("1970-01-01T01:00:00+00:00", 3_600.0),
        ("1970-01-01T01:00:00Z", 3_600.0),
    ],
)
def test_a_moment_is_a_length_of_time_before_now_or_an_iso_time(text: str, expected: float) -> None:
    assert moment(text, 10_000.0) == expected


@pytest.mark.parametrize("text", ["", "soon", "5", "1y", "-1h", "2026-13-01"])
def test_what_is_neither_is_told_with_examples(text: str) -> None:
    with pytest.raises(ContractError, match="a length of time as 90s"):
        moment(text, 10_000.0)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--since", "soon"), "--since is 'soon'"),
        (("--id", "a b"), "no task can have the id 'a b'"),
        (("--kind", "*"), "--kind is '*'"),
        (("-c", "a.b"), "capability 'a.b' must be letters"),
    ],
)
async def test_an_illegal_option_is_named(arguments: tuple[str, ...], told: str, alone: Any) -> None:
    ended = await alone("events", *arguments)

    assert ended.code == 2
    assert told in ended.err


def test_a_line_has_no_line_ends_of_others() -> None:
    event = Event(kind="retried", at=1.0, peer="p", capability="c", id="k", detail="one\ntwo\x1b[31m")

    printed = line(Stored("mesh.event.retried.c.k", 1, 1.0, wire.encode(event), {}), now=2.0)

    assert "\n" not in printed
    assert "\x1b" not in printed
    assert "one two" in printed
