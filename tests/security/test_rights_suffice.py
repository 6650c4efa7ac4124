"""With exactly the generated permissions everything works, and the server has nothing to refuse."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from contracts.workflow import Verdict
from mesh.bus import control
from mesh.bus.dead_letters import read_dead_letter
from mesh.cli.fleet import describe
from mesh.client import Mesh
from mesh.errors import TaskCancelled, TaskFailed
from mesh.inbox import give, read_inbox
from mesh.testing import eventually
from mesh.whereabouts import Where
from tests.security.scene import Behind, Order, at_work, behind_permissions, ladder, open_vault, order, verified

WITHIN_S = 30.0
COMMANDS = (
    "doctor",
    "agents --json",
    "status desk {task} --json",
    "trace desk {task} --json",
    "result desk {task} --json",
    "report --json",
    "map --json",
    "events --json",
    "decisions --json",
    "dead ls --json",
    "limits ls --json",
    "limits set till --concurrent 3",
    "limits rm till",
    "breaker ls --json",
    "schedule set nightly @daily desk {payload}",
    "schedule ls --json",
    "schedule rm nightly",
    "inbox ls --json",
    "pause price --reason lunch",
    "resume price",
    'submit price --json "ops"',
)


@pytest_asyncio.fixture
async def behind(tmp_path: Path) -> AsyncIterator[Behind]:
    async with behind_permissions(tmp_path) as found, at_work(found):
        yield found


async def done(mesh: Mesh, how: str, item: str = "pear", **more: str) -> str:
    async with asyncio.timeout(WITHIN_S):
        return await (await mesh.submit(order, Order(item, how), **more)).result()  # type: ignore[arg-type]


async def test_every_verb_of_a_handler_works_and_nothing_is_refused(behind: Behind) -> None:
    async with behind.client("shop") as mesh:
        found = {
            how: await done(mesh, how)
            for how in (
                *("call", "guarded", "map", "parked", "sleep", "handoff"),
                *("send", "limit", "breaker", "step", "emit"),
            )
        }
        large = await done(mesh, "large")
        sure = [await (await mesh.submit(one, Order("pear"))).result() for one in (ladder, verified)]
        with pytest.raises(TaskFailed):
            await done(mesh, "fail")
        with pytest.raises(TaskFailed):
            await done(mesh, "retry")

    assert (found["call"], found["parked"], found["sleep"]) == ("pear: 7", "pear at last", "slept")
    assert found["map"].count(": 7") == 5
    assert len(large) > 300_000
    assert sure == ["expert on pear", "pear"]
    assert behind.refused() == []


async def test_everything_that_a_client_does_works_and_nothing_is_refused(behind: Behind) -> None:
    async with behind.client("shop") as mesh:
        lined = [
            await mesh.submit(order, Order(f"n{number}"), order_key="line", key=f"k{number}") for number in range(4)
        ]
        values = [await handle.result(within_s=WITHIN_S) for handle in lined]
        again = await mesh.submit(order, Order("n0"), order_key="line", key="k0")
        mapped = [each async for each in mesh.map(order, [Order(f"m{number}") for number in range(5)])]
        parts = [part async for part in (await mesh.submit(order, Order("pear", "emit"))).stream()]
        urgent = await (await mesh.submit(order, Order("pear"), priority="urgent")).result(within_s=WITHIN_S)
        bulk = await (await mesh.submit(order, Order("pear", text="z" * 50_000), priority="bulk")).result(
            within_s=WITHIN_S
        )
        waiting = await mesh.submit(order, Order("pear", "signal"), key="order-1")
        await eventually(lambda: _is(waiting, Where.PARKED))
        await mesh.signal(order, "order-1", "paid", "yes")
        paid = await waiting.result(within_s=WITHIN_S)
        cancelled = await mesh.submit(order, Order("pear", "approve"), key="order-2")
        await eventually(lambda: _is(cancelled, Where.PARKED))
        await cancelled.cancel(reason="changed my mind")
        with pytest.raises(TaskCancelled):
            await cancelled.result(within_s=WITHIN_S)

    assert values == [f"n{number}: 7" for number in range(4)]
    assert not again.is_new
    assert [each.value for each in mapped if each.error is None] != []
    assert len(parts) >= 1
    assert (urgent, bulk, paid) == ("pear: 7", "pear: 7", "yes")
    # A client may not read steps: where a task is it is told without its attempts, which it asks for once.
    assert [line for line in behind.refused() if "DIRECT.GET.MESH.mesh.step.desk." not in line] == []


async def test_a_clerk_answers_what_people_are_asked_and_nothing_is_refused(behind: Behind) -> None:
    async with behind.client("shop") as mesh, behind.client("clerk") as clerk, behind.client("ops") as ops:
        asked = await mesh.submit(order, Order("pear", "approve"), key="order-3")
        (question,) = await eventually(lambda: read_inbox(ops.bus))
        await give(clerk, question, Verdict.APPROVED, by="kim")
        verdict = await asked.result(within_s=WITHIN_S)

    assert verdict == "approved"
    assert behind.refused() == []


async def test_a_task_that_its_consumer_skipped_is_handed_out_again_by_a_peer_with_its_rights(behind: Behind) -> None:
    async with behind.client("keeper") as keeper, behind.client("ops") as ops, revived(ops) as told:
        await control.pause(ops.bus, "vault")
        await eventually(lambda: _is_paused(ops))
        skipped = await keeper.submit(open_vault, "gold")
        last = (await ops.bus.api("STREAM.INFO.MESH"))["state"]["last_seq"]
        await ops.bus.api("CONSUMER.RESET.MESH.vault", {"seq": last + 1})
        await control.resume(ops.bus, "vault")

        assert await skipped.result(within_s=WITHIN_S) == "secret of gold"
        await eventually(lambda: bool(told))

    assert behind.refused() == []


@asynccontextmanager
async def revived(mesh: Mesh) -> AsyncIterator[list[bytes]]:
    """What peers say of messages that they had handed out again, until left."""
    told: list[bytes] = []
    async with mesh.bus.listening("mesh.event.revived.>", lambda _, data, __: told.append(data)):
        await mesh.bus.nc.flush()
        yield told


async def _is_paused(ops: Mesh) -> bool:
    return any(
        (load := peer.beat.load.get("vault")) and load.is_paused for peer in await describe(ops.bus, within_s=0.5)
    )


@pytest.mark.timeout(300)
async def test_every_command_of_an_operator_works_and_nothing_is_refused(behind: Behind) -> None:
    async with behind.client("shop") as mesh:
        handle = await mesh.submit(order, Order("pear"), key="order-9")
        await handle.result(within_s=WITHIN_S)
    payload = json.dumps({"item": "pear"})

    told = {}
    for line in COMMANDS:
        arguments = [part.format(task="order-9", payload=payload) for part in line.split(" ")]
        told[line] = await command(behind, "ops", *arguments)

    assert {line: text for line, (code, text) in told.items() if code} == {}
    assert behind.refused() == []


async def test_a_monitor_sees_what_waits_and_which_peers_there_are_and_nothing_is_refused(behind: Behind) -> None:
    code, text = await command(behind, "watch", "agents", "--json")

    assert code == 0, text
    cards = [card for peer in json.loads(text)["peers"] for card in peer["cards"]]
    assert {"desk", "prices", "vault"} <= {card["name"] for card in cards}
    assert behind.refused() == []


@pytest.mark.timeout(120)
async def test_a_monitor_is_told_what_it_may_not_look_at_and_all_the_rest(behind: Behind) -> None:
    async with behind.client("keeper") as keeper, behind.client("shop") as shop, behind.client("ops") as ops:
        await keeper.submit("attic", "nobody is there")
        await shop.submit(order, Order("pear", "approve"))
        dead = await shop.submit(order, Order("pear", "no such way"))
        with pytest.raises(TaskFailed):
            await dead.result(within_s=WITHIN_S)
        await eventually(lambda: read_inbox(ops.bus))
        await eventually(lambda: read_dead_letter(ops.bus, dead.task))

    code, told = await command(behind, "watch", "doctor")
    code_of_dead, dead_told = await command(behind, "watch", "dead", "ls")

    assert (code, code_of_dead) == (1, 5), told + dead_told
    assert "1 task waiting for attic, which no live peer serves" in told
    assert "stuck         not looked at: this user may not read tasks" in told
    assert "what waits for a person is not looked at" in told
    assert "dead letters  1 task given up" in told
    assert "mesh: this user may not publish to $JS.API.DIRECT.GET.MESH" in dead_told


async def command(behind: Behind, user: str, *arguments: str) -> tuple[int, str]:
    """The exit code of `mesh` as a user, and all that it said."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mesh", *arguments),
        env={**ours, **behind.variables(user)},
        cwd=behind.folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(60):
        out, _ = await process.communicate()
    return process.returncode or 0, out.decode()


async def _is(handle: object, where: Where) -> bool:
    return (await handle.status()).where is where  # type: ignore[attr-defined]
