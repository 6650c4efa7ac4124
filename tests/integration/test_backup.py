"""A mesh that is backed up while it works, loses its store, and comes back from the backup."""

import asyncio
import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from pydantic import SecretStr

from contracts import wire
from contracts.control import BreakerChange
from contracts.limit import Holding, Limit, Seats
from contracts.subjects import Identity
from contracts.workflow import Recurring
from mesh import Agent, Context, Mesh
from mesh.bus import backup, control, restore, timers, topology
from mesh.bus.backup import Torn
from mesh.bus.connection import Bus
from mesh.bus.records import read_many
from mesh.errors import SetupError
from mesh.local.server import LocalServer, local_server
from mesh.settings import Settings
from mesh.testing import eventually, hosting
from mesh.testing.fixtures import fresh_settings


def quiet(_: str) -> None:
    """What a backup tells of its steps is not asked for here."""


class Payments:
    """A payment endpoint that honours idempotency keys: it charges once for each, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.charged: dict[str, int] = {}
        self._lock = threading.Lock()

    def charge(self, key: str) -> int:
        with self._lock:
            self.asked[key] += 1
            return self.charged.setdefault(key, len(self.charged) + 1)

    @contextlib.contextmanager
    def serving(self) -> Iterator[str]:
        payments = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = json.dumps(payments.charge(self.path.removeprefix("/"))).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class names it so
                """Say nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def shop(url: str, runs: "Counter[Identity]", gate: asyncio.Event) -> Agent:
    """Charges, then waits for a lookup while parked, then charges the fee."""
    agent = Agent("shop")

    def get(key: str) -> int:
        with urlopen(f"{url}/{key}", timeout=10) as answer:
            return int(json.load(answer))

    # More than there are that wait at the gate, or these keep the others from running.
    @agent.handles("lookup", concurrency=64)
    async def lookup(number: int, ctx: Context) -> int:
        runs[ctx.identity] += 1
        if number % 4 == 0:
            await gate.wait()
        return number

    @agent.handles("buy", concurrency=8)
    async def buy(number: int, ctx: Context) -> list[int]:
        runs[ctx.identity] += 1

        async def charge(idempotency_key: str) -> int:
            return await asyncio.to_thread(get, idempotency_key.replace("/", "-"))

        first = await ctx.step("charge", charge)
        await ctx.call(lookup, number)
        return [first, await ctx.step("fee", charge)]

    return agent


@pytest.fixture
async def doomed(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[LocalServer, Settings]]:
    """A server of the test's own, and a mesh on it whose waits park at once."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"MESH_{name.upper()}", raising=False)
    with local_server() as server:
        yield server, fresh_settings(server.url).model_copy(update={"hot_wait_s": 0.0, "http_port": -1})


async def test_what_ran_twice_after_a_restore_was_unsettled_in_the_backup_and_charged_once(
    doomed: tuple[LocalServer, Settings], tmp_path: Path
) -> None:
    server, settings = doomed
    payments, runs, gate = Payments(), Counter[Identity](), asyncio.Event()
    before = [Identity("buy", f"b{number}") for number in range(40)]
    after = [Identity("buy", f"a{number}") for number in range(10)]
    with payments.serving() as url:
        agent = shop(url, runs, gate)
        async with Mesh.connect(settings=settings) as mesh, hosting(agent, settings=settings):
            for number, task in enumerate(before):
                await mesh.submit("buy", number, key=task.id)
            await eventually(lambda: sum(runs[task] > 1 for task in before) >= 20)
            manifest = await backup.backup(mesh.bus, tmp_path / "b", mesh_version="1", told=quiet)
            gate.set()
            for number, task in enumerate(after):
                await mesh.submit("buy", number, key=task.id)
            told = {task: await mesh.handle("buy", task.id).result(within_s=30) for task in (*before, *after)}
        finished_first = Counter(runs)
        charged_before = dict(payments.charged)

        server.kill()
        with local_server() as fresh:
            elsewhere = settings.model_copy(update={"nats_url": fresh.url})
            async with Bus.connect(elsewhere, "operator") as bus:
                restored = await restore.restore(bus, tmp_path / "b", told=quiet)
            async with Mesh.connect(settings=elsewhere) as mesh, hosting(agent, settings=elsewhere):
                known = await _known(mesh.bus, [*before, *after])
                assert set(control_names := await control.pauses(mesh.bus)) == {"buy", "lookup"}, control_names
                assert runs == finished_first, "nothing runs before an operator has looked"
                await restore.resume(mesh.bus, restored)
                again = {task: await mesh.handle("buy", task.id).result(within_s=30) for task in before}
                for number, task in enumerate(after):
                    await mesh.submit("buy", number, key=task.id)
                    again[task] = await mesh.handle("buy", task.id).result(within_s=30)

    unsettled = {one.task for one in restored.unsettled}
    twice = {task for task in runs if runs[task] > finished_first[task]}
    assert set(restored.paused) == {"buy", "lookup"} == set(manifest.capabilities)
    assert known == set(before), "every task from before the backup is there, none from after it"
    assert unsettled & set(before), "some were under way when the backup was taken"
    assert {task for task in twice if task.capability == "buy"} <= unsettled | set(after)
    assert {task for task in twice if task.id.split(".")[0][0] == "b"} <= unsettled | {
        task for task in twice if Identity("buy", task.id.split(".")[0]) in unsettled
    }
    assert again == told, "whoever asks again is told what he was told before"
    assert payments.charged == charged_before, "no key was charged that had not been charged before"
    assert max(payments.asked.values()) > 1, "some were asked for twice"


async def _known(bus: Bus, tasks: list[Identity]) -> set[Identity]:
    found: set[Identity] = set()
    for subjects in (bus.subjects.task, bus.subjects.park, bus.subjects.result):
        stored = await read_many(bus, [subjects(task) for task in tasks])
        found |= {task for task, record in zip(tasks, stored, strict=True) if record is not None}
    return found


async def test_a_backup_taken_under_load_holds_every_task_that_was_accepted_before_it(
    doomed: tuple[LocalServer, Settings], tmp_path: Path
) -> None:
    _, settings = doomed
    agent = Agent("busy")

    @agent.handles("work", concurrency=32)
    async def work(number: int) -> int:
        return number

    accepted: list[Identity] = []
    is_over = False

    async def submitting(mesh: Mesh, name: str) -> None:
        while not is_over:
            key = f"{name}-{len(accepted)}"
            await mesh.submit("work", 1, key=key)
            accepted.append(Identity("work", key))

    taken: list[tuple[Path, int]] = []
    async with (
        Mesh.connect(settings=settings) as mesh,
        hosting(agent, settings=settings),
        asyncio.TaskGroup() as submitters,
    ):
        for name in "abcdefgh":
            submitters.create_task(submitting(mesh, name))
        for number in range(3):
            await eventually(lambda number=number: len(accepted) > 300 * (number + 1))
            taken.append((tmp_path / f"b{number}", len(accepted)))
            await backup.backup(mesh.bus, taken[-1][0], mesh_version="", told=quiet)
        is_over = True
    with local_server() as fresh:
        elsewhere = settings.model_copy(update={"nats_url": fresh.url})
        async with Bus.connect(elsewhere, "operator") as bus:
            for folder, count in taken:
                await restore.restore(bus, folder, replace=True, told=quiet)
                assert await _known(bus, accepted[:count]) == set(accepted[:count])


async def test_a_torn_backup_is_recognised_and_restores_nothing(
    doomed: tuple[LocalServer, Settings], tmp_path: Path
) -> None:
    _, settings = doomed
    whole = tmp_path / "whole"
    async with Mesh.connect(settings=settings) as mesh:
        await topology.ensure(mesh.bus, topology.streams(settings))
        await mesh.submit("work", 1, key="k")
        await backup.backup(mesh.bus, whole, mesh_version="", told=quiet)
        stream = settings.subjects.stream

        for number, (name, damage, said) in enumerate(
            [
                ("manifest.json", lambda file: file.unlink(), "no backup, or one that was not finished"),
                ("manifest.json", lambda file: file.write_bytes(file.read_bytes()[:-9]), "cannot be read"),
                (f"{stream}.snapshot", lambda file: file.unlink(), "is missing: the backup is torn"),
                (f"{stream}.snapshot", lambda file: file.write_bytes(file.read_bytes()[:-1]), "the backup is torn"),
                (f"{stream}.snapshot", lambda file: file.write_bytes(b"x" * file.stat().st_size), "is damaged"),
            ]
        ):
            torn = tmp_path / f"torn{number}"
            torn.mkdir()
            for file in whole.iterdir():
                (torn / file.name).write_bytes(file.read_bytes())
            damage(torn / name)
            with pytest.raises(Torn, match=said):
                await restore.restore(mesh.bus, torn, replace=True, told=quiet)

        with pytest.raises(SetupError, match=r"the mesh has streams: .* --replace"):
            await restore.restore(mesh.bus, whole, told=quiet)
        with pytest.raises(SetupError, match="is not empty"):
            await backup.backup(mesh.bus, whole, mesh_version="", told=quiet)
        assert len((await restore.restore(mesh.bus, whole, replace=True, told=quiet)).unsettled) == 1


async def test_what_is_stale_after_a_restore_is_dropped_and_what_an_operator_set_stays(
    doomed: tuple[LocalServer, Settings], tmp_path: Path
) -> None:
    _, settings = doomed
    async with Mesh.connect(settings=settings) as mesh:
        bus = mesh.bus
        await topology.ensure(bus, (*topology.of_mesh(settings), *topology.of_capability(settings, "call")))
        await control.set_limit(bus, "provider", Limit(concurrent=3, requests_per_minute=60, at=1.0))
        held = Seats(holdings={"a-peer-that-is-gone": Holding(seats=3, until=time.time() + 3_600)})
        await bus.store(bus.subjects.limit("seats", "provider"), wire.encode(held))
        await control.pause(bus, "other", by="me", reason="mine")
        await control.change_breaker(bus, "flaky", BreakerChange(state="open", at=1.0, for_s=999.0), after=None)
        await timers.set_schedule(bus, "hourly", Recurring(capability="call", payload=1, schedule="@hourly"))
        await backup.backup(bus, tmp_path / "b", mesh_version="", told=quiet)

        restored = await restore.restore(bus, tmp_path / "b", replace=True, told=quiet)

        assert restored.dropped == {"breakers": 1, "limits in use": 1}
        assert await control.breakers(bus) == {}
        assert (await control.limits(bus))["provider"].concurrent == 3
        assert (await control.pauses(bus))["other"].reason == "mine"
        assert [one.name for one in await timers.schedules(bus)] == ["hourly"]
        await restore.resume(bus, restored)
        assert set(await control.pauses(bus)) == {"other"}


async def test_the_commands_back_up_refuse_and_restore(command_line: Any, mesh: Mesh, tmp_path: Path) -> None:
    agent = Agent("one")

    @agent.handles("work")
    async def work(number: int) -> int:
        return number

    folder = str(tmp_path / "backup")
    async with hosting(agent, settings=mesh.bus.settings):
        await (await mesh.submit("work", 1, key="k")).result(within_s=20)
        taken = await command_line("backup", folder, "--json")
        live = await command_line("restore", folder, "--replace")
    there = await command_line("restore", folder)
    checked = await command_line("restore", folder, "--check")
    done = await command_line("restore", folder, "--replace")

    assert (taken.code, taken.document["capabilities"]) == (0, ["work"])
    assert (live.code, "1 live peer answers" in live.err) == (1, True)
    assert (there.code, "--replace" in there.err) == (2, True)
    assert (checked.code, "is whole" in checked.out) == (0, True)
    assert done.code == 0, done.err
    assert "mesh resume work" in done.out
    assert await mesh.handle("work", "k").result(within_s=5) == 1


SERVICES = ("$JS.API.>", "$JS.ACK.>", "$JS.SNAPSHOT.>", "mesh.task.>")
ACCOUNTS = f"""
accounts {{
  MESH {{
    jetstream: enabled
    users: [ {{user: keeper, password: keeper}} ]
    exports: [ {", ".join(f'{{service: "{subject}"}}' for subject in SERVICES)}, {{stream: "_INBOX.>"}} ]
  }}
  MESH_AGENTS {{
    users: [ {{user: ops, password: ops}} ]
    imports: [
      {", ".join(f'{{service: {{account: MESH, subject: "{subject}"}}}}' for subject in SERVICES)}
      {{stream: {{account: MESH, subject: "_INBOX.>"}}}}
    ]
  }}
}}
"""


async def test_a_user_of_another_account_may_back_up_and_is_refused_a_restore_before_anything_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"MESH_{name.upper()}", raising=False)
    server = LocalServer.start(tmp_path / "store", more=ACCOUNTS)
    try:
        ours = fresh_settings(server.url).model_copy(update={"prefix": "mesh"})
        users = {
            user: ours.model_copy(update={"nats_user": user, "nats_password": SecretStr(user)})
            for user in ("keeper", "ops")
        }
        async with Mesh.connect(settings=users["ops"]) as mesh:
            await topology.ensure(mesh.bus, (*topology.of_mesh(ours), *topology.of_capability(ours, "work")))
            await mesh.submit("work", 1, key="k")
            await backup.backup(mesh.bus, tmp_path / "b", mesh_version="", told=quiet)
            with pytest.raises(SetupError, match=r"through another account.*nothing was changed"):
                await restore.restore(mesh.bus, tmp_path / "b", replace=True, told=quiet)
            assert await _known(mesh.bus, [Identity("work", "k")]) == {Identity("work", "k")}
        async with Bus.connect(users["keeper"], "keeper") as bus:
            restored = await restore.restore(bus, tmp_path / "b", replace=True, told=quiet)
            streams = await topology.existing(bus)
    finally:
        server.stop()

    assert [one.task for one in restored.unsettled] == [Identity("work", "k")]
    assert set(streams) == {part.name for part in restored.manifest.streams}
