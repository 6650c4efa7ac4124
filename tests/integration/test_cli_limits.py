"""`mesh limits`: set, listed with what is in use, and taken away."""

import asyncio
from typing import Any

from mesh import Agent, Context, Mesh
from mesh.settings import Settings
from mesh.testing import eventually, hosting


async def test_a_limit_is_set_listed_with_its_use_and_taken_away(
    command_line: Any, settings: Settings, mesh: Mesh
) -> None:
    agent, may_leave, inside = Agent("busy"), asyncio.Event(), []
    agent.limit("declared", concurrent=3)

    @agent.handles("ask")
    async def ask(number: int, ctx: Context) -> None:
        async with ctx.limit("openai", tokens=30_000), ctx.limit("declared"):
            inside.append(number)
            await may_leave.wait()

    async with hosting(agent, settings=settings) as peer:
        limits = ("--concurrent", "2", "--requests-per-minute", "500", "--tokens-per-minute", "90000")
        done = await command_line("limits", "set", "openai", *limits)
        await eventually(lambda: peer.host.controls.limit_of("openai"))
        handles = [await mesh.submit("ask", number) for number in range(3)]
        await eventually(lambda: len(inside) == 2)
        listed = await command_line("limits", "ls", "--json")
        table = await command_line("limits", "ls")
        may_leave.set()
        for handle in handles:
            await handle.result(within_s=30)
        removed = await command_line("limits", "rm", "openai")
        again = await command_line("limits", "rm", "openai")

    assert (done.code, done.out) == (0, "openai: 2 at once, 500 requests/min, 90,000 tokens/min\n")
    declared, openai = listed.document["limits"]
    assert (declared["resource"], declared["concurrent"], declared["is_set"]) == ("declared", 3, False)
    assert (openai["resource"], openai["is_set"], openai["waiting"]) == ("openai", True, 1)
    assert openai["seats"] == {peer.id: 2}
    assert 30_000 <= openai["tokens"] < 90_000
    assert openai["requests"] > 490
    assert "2/2" in table.out
    assert "in code" in table.out
    assert (removed.code, removed.out) == (0, "openai has no limit but what code declares\n")
    assert (again.code, again.err) == (1, "mesh: no limit is set for 'openai'; `mesh limits ls` lists them\n")


async def test_what_cannot_be_a_limit_is_refused(command_line: Any, mesh: Mesh) -> None:
    for arguments, told in (
        (("set", "open.ai", "--concurrent", "1"), "resource 'open.ai' must be letters"),
        (("set", "openai"), "a limit needs one of"),
        (("set", "openai", "--concurrent", "0"), "concurrent is 0, outside 1 to 100000"),
        (("rm", "open.ai"), "resource 'open.ai' must be letters"),
    ):
        ended = await command_line("limits", *arguments)
        assert ended.code == 2
        assert told in ended.err

    listed = await command_line("limits", "ls")
    assert (listed.code, listed.out) == (0, "")
    assert "no limits" in listed.err
