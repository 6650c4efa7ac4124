"""A peer and a client with valid credentials who mean harm, on a real server, while a victim works.

The table of `docs/security.md` is made of the same attempts: `python -m tests.security.test_hostile` prints it.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from mesh.bus.connection import Bus
from mesh.client import Mesh
from mesh.testing import eventually
from mesh.whereabouts import Where
from tests.security.attempts import ATTEMPTS, PROBE, USERS, Attempt, Stage
from tests.security.scene import Behind, Raw, at_work, behind_permissions, open_vault

PAGE = Path(__file__).resolve().parents[2] / "docs/security.md"
BEGIN, END = "<!-- attempts -->\n", "<!-- end of attempts -->"
MINE = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Victim:
    """What there is to attack."""

    behind: Behind
    keeper: Mesh
    ops: Bus
    taken: str

    async def standing(self) -> dict[str, Any]:
        """Everything of the victims: each record with its sequence, streams and consumers as configured.

        But what they themselves ask for meanwhile, to see that they still can.
        """
        records: dict[str, Any] = {}
        for capability in ("vault", "attic"):
            for stream in ("MESH", "MESH_OBJECTS", "MESH_LINES", f"MESH_TIMERS@{capability}"):
                filter_subject = f"mesh.*.{capability}.>"
                for subject in await self._subjects(stream, filter_subject):
                    records[subject] = await self._sequence(stream, subject)
            dead = await self._subjects("MESH", f"mesh.dead.letter.{capability}.>")
            records |= {subject: await self._sequence("MESH", subject) for subject in dead}
        controls = await self._subjects("KV_MESH_CONTROL", "$KV.MESH_CONTROL.*.vault.>")
        controls |= await self._subjects("KV_MESH_CONTROL", "$KV.MESH_CONTROL.pause.*")
        streams = {
            name: (await self.ops.api(f"STREAM.INFO.{name}"))["config"] for name in ("MESH", "MESH_TIMERS@vault")
        }
        consumers = {
            name: (await self.ops.api(f"CONSUMER.INFO.MESH.{name}"))["config"] for name in ("vault", "attic", "@keeper")
        }
        records = {subject: sequence for subject, sequence in records.items() if f".{PROBE}" not in subject}
        return {"records": records, "controls": controls, "streams": streams, "consumers": consumers}

    async def _subjects(self, stream: str, filter_subject: str) -> dict[str, int]:
        info = await self.ops.api(f"STREAM.INFO.{stream}", {"subjects_filter": filter_subject})
        return info["state"].get("subjects") or {}

    async def _sequence(self, stream: str, subject: str) -> str:
        found = await self.ops.request(f"$JS.API.DIRECT.GET.{stream}.{subject}")
        return (found.headers or {}).get("Nats-Sequence", "")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def victim(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Victim]:
    folder = tmp_path_factory.mktemp("hostile")
    async with (
        behind_permissions(folder) as behind,
        at_work(behind),
        behind.client("keeper") as keeper,
        behind.client("ops") as ops,
    ):
        for key, what in (("done", "gold"), ("large", "large")):
            await (await keeper.submit(open_vault, what, key=key)).result(within_s=20)
        waiting = await keeper.submit(open_vault, "wait", key="waiting")
        for key in ("taken", "queued"):
            await keeper.submit("attic", key, key=key)

        async def is_parked() -> bool:
            return (await ops.status("vault", waiting.id)).where is Where.PARKED

        await eventually(is_parked)
        async with behind.raw("attic") as attic:
            inbox = attic.nc.new_inbox()
            came = await attic.listen(inbox)
            body = b'{"batch":1,"expires":5000000000,"group":"slots"}'
            await attic.publish("$JS.API.CONSUMER.MSG.NEXT.MESH.attic", body, reply=inbox)
            await eventually(lambda: bool(came))
            async with beating(attic, came[0].reply):
                yield Victim(behind, keeper, ops.bus, came[0].reply)


class beating:  # noqa: N801  # reads as a verb
    """Somebody who has a task in hand, and says so."""

    def __init__(self, raw: Raw, reply: str) -> None:
        self.raw, self.reply = raw, reply

    async def __aenter__(self) -> None:
        self.fiber = asyncio.create_task(self._beat())  # ended below

    async def _beat(self) -> None:
        while True:
            await self.raw.nc.publish(self.reply, b"+WPI")
            await asyncio.sleep(0.4)

    async def __aexit__(self, *_: object) -> None:
        self.fiber.cancel()


@MINE
@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: attempt.name)
async def test_nothing_comes_of_an_attempt(victim: Victim, attempt: Attempt) -> None:
    before = await victim.standing()

    async with victim.behind.raw(USERS.get(attempt.by, "shop")) as raw:
        await attempt.run(Stage(victim.behind, raw, victim.keeper, victim.taken))

    assert await victim.standing() == before


@MINE
async def test_after_all_of_it_the_victims_work_is_done(victim: Victim) -> None:
    value = await (await victim.keeper.submit(open_vault, "silver")).result(within_s=20)
    done = await victim.keeper.handle("vault", "done").result(within_s=20)
    large = await victim.keeper.handle("vault", "large").result(within_s=20)

    assert (value, done) == ("secret of silver", "secret of gold")
    assert large == "secret" * 2_000


def table() -> str:
    """The attempts as the table of the page."""
    lines = ["| # | attempt | by | what happens | closed by |", "|---|---|---|---|---|"]
    lines += [
        f"| {number} | {one.what} | {one.by} | {one.happens} | {one.closed_by} |"
        for number, one in enumerate(ATTEMPTS, 1)
    ]
    return "\n".join(lines) + "\n"


def test_there_are_enough_of_them_and_the_page_lists_each() -> None:
    page = PAGE.read_text(encoding="utf-8")

    assert len(ATTEMPTS) >= 45
    assert page.partition(BEGIN)[2].partition(END)[0] == table()


if __name__ == "__main__":
    print(table())  # noqa: T201  # it is what it is run for
