"""`mesh trace` and `mesh status`: a task, everything below it, and what it waits for, as the mesh has it now."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mesh import Agent, Context, Handoff, Mesh, Permanent, Transient
from mesh.bus.connection import Bus
from mesh.human import agent as people
from mesh.settings import Settings
from mesh.testing import eventually, hosting
from mesh.whereabouts import Where, trace

agent = Agent("shop", version="1")
gates: dict[str, asyncio.Event] = {}
tries: list[int] = []


@agent.handles("lookup", concurrency=64)
async def lookup(number: int, ctx: Context) -> int:
    ctx.spent(tokens_in=10, usd=0.01)
    ctx.explain(confidence=0.75, model="small")
    return number


@agent.handles("flaky")
async def flaky(name: str) -> str:
    tries.append(1)
    if len(tries) == 1:
        raise Transient("busy", after_s=0.05)
    return name


@agent.handles("expert")
async def expert(name: str, ctx: Context) -> str:
    ctx.send(lookup, 7)
    return name


@agent.handles("front")
async def front(name: str, ctx: Context) -> Any:
    return Handoff(expert, name, reason="too hard", confidence=0.25)


@agent.handles("order")
async def order(name: str, ctx: Context) -> str:
    await ctx.compensate(print, "undone", name="refund")
    await ctx.step("charge", lambda: 1)
    await ctx.gather(ctx.call(lookup, 1), ctx.call(flaky, "f"))
    await ctx.call(front, "z")
    await ctx.sleep(0.1)
    paid: str = await ctx.signal("paid", returns=str, within_s=600)
    if paid != "cash":
        raise Permanent("not cash")
    return name


@agent.handles("hold")
async def hold(gate: str, ctx: Context) -> str:
    await ctx.call("gate", gate)
    return gate


@agent.handles("gate")
async def gate(name: str, ctx: Context) -> str:
    await gates.setdefault(name, asyncio.Event()).wait()
    return name


@agent.handles("fan")
async def fan(count: int, ctx: Context) -> int:
    return len(await ctx.map(lookup, range(count)))


@agent.handles("nap")
async def nap(seconds: float, ctx: Context) -> None:
    await ctx.sleep(seconds)


@agent.handles("ask")
async def ask(ctx: Context) -> None:
    await ctx.call("nobody", name="first")


@pytest.fixture
def brief(settings: Settings) -> Settings:
    """Settings of peers that park what waits, almost at once."""
    return settings.model_copy(update={"hot_wait_s": 0.1})


@pytest.fixture
async def shop(brief: Settings) -> AsyncIterator[None]:
    gates.clear()
    tries.clear()
    async with hosting(agent, people, settings=brief):
        yield
        for each in gates.values():
            each.set()


async def parked(mesh: Mesh, capability: str, key: str) -> None:
    async def is_parked() -> bool:
        return (await mesh.status(capability, key)).where is Where.PARKED

    await eventually(is_parked)


async def waits_for_payment(mesh: Mesh, key: str) -> None:
    """Wait until an order waits for nothing but its signal."""

    async def is_waiting() -> bool:
        found = await mesh.status("order", key)
        return found.where is Where.PARKED and "the signal paid" in found.detail

    await eventually(is_waiting)


async def test_a_trace_tells_what_a_workflow_did_and_what_came_of_it(command_line: Any, shop: None, mesh: Mesh) -> None:
    handle = await mesh.submit(order, "x", key="o-1")
    await waits_for_payment(mesh, "o-1")
    waiting = await command_line("trace", "order/o-1")
    await mesh.signal(order, "o-1", "paid", "cheque", by="ann")
    await handle.outcome(within_s=20)

    ended = await command_line("trace", "o-1")

    first, *rest = waiting.out.splitlines()
    assert first.startswith("order/o-1  parked for ")
    assert any(line.startswith("  waits for the signal paid until ") for line in rest)
    first, *rest = ended.out.splitlines()
    assert first.startswith("order/o-1  failed in ")
    assert ": not cash" in first
    told = [
        "  step charge  in ",
        "  flaky 30f8b180d635-c0  done in ",
        "    attempt 1 failed on ",
        "  lookup 6b86b273ff34-c0  done in ",
        "  front 20c400557af0-c0  done in ",
        "    handed to expert: too hard (confidence 0.25)",
        "    handed over expert  done in ",
        "      sent lookup ",
        "  slept until ",
        "  signal paid by ann",
        "  ends failed, once all it did is undone: not cash",
        "  undone: refund",
    ]
    positions = [next((at for at, line in enumerate(rest) if line.startswith(start)), None) for start in told]
    assert None not in positions, dict(zip(told, positions, strict=True))
    assert any("confidence 0.75, by small, 10 tokens, $0.01" in line for line in rest)
    assert rest[-1] == "6 tasks, 20 tokens, $0.02"


async def test_the_same_tree_as_json_and_as_a_status(command_line: Any, shop: None, mesh: Mesh) -> None:
    handle = await mesh.submit(order, "x", key="o-1")
    await waits_for_payment(mesh, "o-1")
    await mesh.signal(order, "o-1", "paid", "cash")
    await handle.result(within_s=20)

    document = (await command_line("trace", "order", "o-1", "--json")).document
    status = await command_line("status", "order/o-1", "--tree", "--json")

    assert status.document == document
    root = document["root"]
    assert (root["state"], root["capability"], root["id"]) == ("done", "order", "o-1")
    children = {child["capability"]: child for child in root["children"]}
    assert children["flaky"]["attempt"] == 2
    assert children["lookup"]["confidence"] == 0.75
    assert children["front"]["children"][0]["edge"] == "handoff"
    assert children["front"]["children"][0]["children"][0]["edge"] == "send"
    assert [leaf["name"] for leaf in root["leaves"] if leaf["mark"] == "step"] == ["charge"]
    assert document["spent"] == {"tokens_in": 20, "usd": 0.02}
    assert (document["tasks"], document["left_out"]) == (6, 0)


async def test_what_runs_is_told_with_its_peer_and_what_nobody_serves_is_told_so(
    command_line: Any, brief: Settings, mesh: Mesh
) -> None:
    gates.clear()
    async with hosting(agent, settings=brief) as peer:
        await mesh.submit(hold, "g", key="h-1")
        await mesh.submit(ask, key="a-1")
        await eventually(lambda: "g" in gates)
        await parked(mesh, "ask", "a-1")

        running = (await command_line("trace", "hold/h-1", "--json")).document["root"]
        unserved = await command_line("trace", "ask/a-1")
        gates["g"].set()

    assert running["state"] in ("waiting", "parked")
    (child,) = running["children"]
    assert (child["state"], child["peer"]) == ("running", peer.id)
    assert running["waits_for"] == [f"gate/{child['id']}"]
    assert "nobody first  queued for " in unserved.out
    assert "and no peer serves it" in unserved.out


async def test_a_large_fan_is_bounded_and_counted(command_line: Any, shop: None, mesh: Mesh) -> None:
    handle = await mesh.submit(fan, 2_000, key="f-1")
    assert await handle.result(within_s=60) == 2_000

    told = await command_line("trace", "fan/f-1")
    whole = await command_line("trace", "fan/f-1", "--limit", "5000", "--json")

    lines = told.out.splitlines()
    assert len(lines) < 20
    assert "  … 1,990 more lookup, all done" in lines
    assert lines[-1] == "2,001 tasks, 20,000 tokens, $20"
    assert "--limit 2001 shows all" in told.err
    assert len(whole.document["root"]["children"]) == 2_000
    assert whole.document["left_out"] == 0


async def test_an_id_alone_is_enough_where_it_stands_for_one_task(command_line: Any, shop: None, mesh: Mesh) -> None:
    for capability in ("lookup", "gate"):
        gates.setdefault("1", asyncio.Event()).set()
        await mesh.submit(capability, 1 if capability == "lookup" else "1", key="same")
    alone = await mesh.submit(lookup, 1)
    await alone.result(within_s=20)

    several = await command_line("trace", "same")
    none = await command_line("trace", "nope")
    session = await command_line("trace", mesh.session)
    child = await command_line("trace", alone.id)

    assert several.code == 2
    assert "gate/same, lookup/same" in several.err
    assert none.code == 1
    assert f"  lookup {alone.id.rpartition('~')[2]}  done in " in session.out
    assert child.out.startswith(f"lookup/{alone.id}  done in ")


async def test_a_parked_task_says_for_what_it_waits_and_since_when(command_line: Any, shop: None, mesh: Mesh) -> None:
    await mesh.submit(order, "x", key="o-1")
    await mesh.submit(nap, 600, key="n-1")
    await mesh.submit(ask, key="a-1")
    await mesh.submit("human", {"proposal": 1}, key="p-1")
    await waits_for_payment(mesh, "o-1")
    for capability, key in (("nap", "n-1"), ("ask", "a-1"), ("human", "p-1")):
        await parked(mesh, capability, key)

    async def told(name: str) -> str:
        return str((await command_line("status", name)).out)

    signal, sleep, child, person = [await told(name) for name in ("order/o-1", "nap/n-1", "ask/a-1", "human/p-1")]

    assert "is parked since" in signal
    assert "): waits for the signal paid, until " in signal
    assert signal.rstrip().endswith("(in 10 min)")
    assert "), until " in sleep
    assert child.rstrip().endswith(": waits for nobody/a-1.~first")
    assert person.rstrip().endswith(": waits for somebody's answer")


async def test_a_task_that_waits_in_memory_is_told_from_one_that_runs(mesh: Mesh, settings: Settings) -> None:
    gates.clear()
    async with hosting(agent, settings=settings) as peer:
        handle = await mesh.submit(hold, "g", key="h-1")
        await eventually(lambda: "g" in gates)

        found = await handle.status()
        gates["g"].set()
        await handle.result(within_s=20)

    assert (found.where, found.peer) == (Where.WAITING, peer.id)
    assert found.detail.startswith("waits for gate/h-1.~")


async def test_a_woken_task_whose_peers_are_gone_is_told_so(mesh: Mesh, brief: Settings) -> None:
    async with hosting(agent, settings=brief):
        await mesh.submit(order, "x", key="o-1")
        await waits_for_payment(mesh, "o-1")
    await mesh.signal(order, "o-1", "paid", "cash")

    found = await mesh.status(order, "o-1")
    tree = await trace(mesh.bus, mesh.handle(order, "o-1").task)

    assert (found.where, found.detail) == (Where.PARKED, "woken, and no peer serves order now")
    assert tree is not None
    assert tree.root.state == "unserved"


async def test_a_signal_is_sent_once_and_whoever_comes_second_is_told(
    command_line: Any, shop: None, mesh: Mesh
) -> None:
    handle = await mesh.submit(order, "x", key="o-1")
    await waits_for_payment(mesh, "o-1")

    first = await command_line("signal", "order/o-1", "paid", '"cash"', "--by", "till")
    value = await handle.result(within_s=20)
    late = await command_line("signal", "order/o-1", "paid", '"card"')
    unknown = await command_line("signal", "order/o-2", "paid", "-", stdin="1")
    nonsense = await command_line("signal", "order", "paid")

    assert (first.code, first.out) == (0, "paid is signalled to order/o-1\n")
    assert value == "x"
    assert (late.code, unknown.code, nonsense.code) == (5, 5, 2)
    assert "is over" in late.err
    assert "no task order/o-2 is kept" in unknown.err


async def test_where_no_mesh_was_made_a_command_says_so_instead_of_waiting(
    command_line: Any, settings: Settings
) -> None:
    commands = (
        ("status", "a/1"), ("result", "a/1"), ("cancel", "a/1"), ("trace", "a/1"), ("trace", "1"),
        ("signal", "a/1", "s"), ("inbox", "ls"), ("inbox", "answer", "1"), ("schedule", "ls"),
        ("schedule", "set", "s", "@daily", "a"), ("dead", "show", "a/1"),
    )  # fmt: skip

    ended = await asyncio.gather(*(command_line(*command) for command in commands))

    assert [one.code for one in ended] == [3] * len(commands)
    assert all("start a peer" in one.err for one in ended)
    async with Bus.connect(settings, "test") as bus:
        assert (await bus.api("STREAM.NAMES", {"subject": f"{settings.prefix}.>"}))["total"] == 0
