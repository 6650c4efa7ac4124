"""What a peer with rights of its own cannot make others believe, and what it is told where it has none."""

import asyncio
import logging
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from contracts import headers as names
from contracts import wire
from contracts.control import Pause
from contracts.outcome import Outcome, Status
from contracts.subjects import Identity, key_pause
from mesh import Agent, Context, Mesh
from mesh.bus import control, topology
from mesh.bus.connection import Bus
from mesh.bus.records import read
from mesh.errors import PermissionDenied, SetupError
from mesh.local.server import LocalServer
from mesh.settings import Settings
from mesh.testing import eventually, hosting

# One may do everything; the other asks for records of `own`, and answers come wherever it says.
USERS = """
accounts {
  A {
    jetstream: enabled
    users: [
      {user: all, password: all}
      {
        user: few, password: few
        permissions {
          publish: [
            "mesh.result.own.>", "$JS.API.DIRECT.GET.MESH.mesh.result.own.>", "mesh.ctl.>", "$JS.API.STREAM.INFO.>"
          ]
          subscribe: ["_INBOX_few.>"]
        }
      }
    ]
  }
}
"""


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with tempfile.TemporaryDirectory() as folder:
        server = LocalServer.start(Path(folder), more=USERS)
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture
def everything(server: LocalServer) -> Settings:
    return Settings(nats_url=server.url, nats_user="all", nats_password="all", ack_wait_s=1, beat_s=0.2)


@pytest.fixture
async def few(server: LocalServer) -> AsyncIterator[Bus]:
    settings = Settings(nats_url=server.url, nats_user="few", nats_password="few", nats_inbox_prefix="_INBOX_few")
    async with Bus.connect(settings, "few") as bus:
        yield bus


@pytest.fixture
async def mesh(everything: Settings) -> AsyncIterator[Mesh]:
    async with Mesh.connect(settings=everything) as mesh:
        await topology.ensure(mesh.bus, topology.of_mesh(everything))
        yield mesh


async def lie(few: Bus, key: str, body: bytes, to: str, *, headers: dict[str, str] | None = None) -> None:
    """Have the server send what this user stored as its own result to a subject of its choice."""
    record = f"mesh.result.own.{key}"
    await few.store(record, body, headers)
    await few.publish(f"$JS.API.DIRECT.GET.MESH.{record}", b"", to)
    await few.nc.flush()


async def test_what_only_looks_like_the_echo_of_a_result_is_none(mesh: Mesh, few: Bus, everything: Settings) -> None:
    agent, go_on = Agent("other"), asyncio.Event()

    @agent.handles("other")
    async def other(text: str) -> str:
        await go_on.wait()
        return text

    async with hosting(agent, settings=everything):
        handle = await mesh.submit(other, "true")
        waiting = asyncio.create_task(handle.result())
        forged = wire.encode(Outcome(status=Status.DONE, value="false"))
        meant = {names.STREAM: "MESH", names.SUBJECT: mesh.bus.subjects.result(handle.task), names.SEQUENCE: "9999"}

        await lie(few, "plain", forged, mesh.bus.subjects.done(handle.task))
        await lie(few, "with-headers", forged, mesh.bus.subjects.done(handle.task), headers=meant)
        await mesh.bus.nc.flush()
        go_on.set()

        assert await waiting == "true"


async def test_streamed_parts_that_the_server_sends_are_none(mesh: Mesh, few: Bus, everything: Settings) -> None:
    agent, go_on = Agent("talker"), asyncio.Event()

    @agent.handles("talk")
    async def talk(text: str, ctx: Context) -> str:
        await ctx.emit("one")
        await go_on.wait()
        await ctx.emit("two")
        return text

    async with hosting(agent, settings=everything):
        handle = await mesh.submit(talk, "hello")
        heard = []
        async for part in handle.stream():
            heard.append(getattr(part, "value", part))
            if not go_on.is_set():
                await lie(few, "part", b'"false"', mesh.bus.subjects.part(handle.task), headers={names.PART: "1.1"})
                await mesh.bus.nc.flush()
                go_on.set()

    assert heard == ["one", "two"]


async def test_a_change_that_only_looks_like_an_echo_pauses_nobody(mesh: Mesh, few: Bus, everything: Settings) -> None:
    agent = Agent("other")

    @agent.handles("steady")
    async def steady(text: str) -> str:
        return text

    async with hosting(agent, settings=everything) as peer:
        echo = mesh.bus.subjects.control_echo[1].replace(">", key_pause("steady"))
        await lie(few, "pause", wire.encode(Pause(at=1.0)), echo)
        await control.pause(mesh.bus, "marker")
        await eventually(lambda: peer.host.controls.is_paused("marker"))

        assert await (await mesh.submit(steady, "goes on")).result(within_s=10) == "goes on"
        assert not peer.host.controls.is_paused("steady")


async def test_a_question_is_answered_to_an_inbox_and_nowhere_else(mesh: Mesh, few: Bus, everything: Settings) -> None:
    agent = Agent("other")

    @agent.handles("asked")
    async def asked(text: str) -> str:
        return text

    victim = Identity("asked", "victim")
    async with hosting(agent, settings=everything):
        for verb in ("describe", "who-runs"):
            await few.publish(mesh.bus.subjects.ctl("all", verb), b"{}", mesh.bus.subjects.result(victim))
            await few.publish(mesh.bus.subjects.ctl("all", verb), b"{}", mesh.bus.subjects.task(victim))
        answers = await few.gather(mesh.bus.subjects.ctl("all", "describe"), b"", within_s=5, enough=1)

        assert len(answers) == 1
        assert await read(mesh.bus, mesh.bus.subjects.result(victim)) is None
        assert await topology.queued(mesh.bus, mesh.bus.subjects.task(victim)) == {}


async def test_a_forged_ack_takes_no_record_of_another_capability_away(mesh: Mesh, everything: Settings) -> None:
    agent = Agent("two")

    @agent.handles("mine")
    async def mine(text: str) -> str:
        return text

    @agent.handles("theirs")
    async def theirs(text: str) -> str:
        return text

    async with hosting(agent, settings=everything):
        await (await mesh.submit(theirs, "kept", key="kept")).result(within_s=10)
        for number in range(3):
            await (await mesh.submit(mine, str(number))).result(within_s=10)
        last = (await topology.inspect(mesh.bus, topology.streams(everything)[0]) or {})["state"]["last_seq"]

        for sequence in range(1, last + 1):
            for order in (b"+ACK", b"+TERM"):
                await mesh.bus.publish(f"$JS.ACK.MESH.mine.1.{sequence}.1.1700000000000000000.0", order)
        await mesh.bus.nc.flush()
        await (await mesh.submit(mine, "marker")).result(within_s=10)

        assert await read(mesh.bus, mesh.bus.subjects.result(Identity("theirs", "kept"))) is not None


async def test_what_a_user_may_not_do_is_told_at_once_and_once(few: Bus, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "mesh.bus"):
        for _ in range(3):
            with pytest.raises(PermissionDenied, match=r"this user may not publish to mesh\.result\.other\.x"):
                await few.store("mesh.result.other.x", b"{}")

    assert [record.message for record in caplog.records] == ["few: this user may not publish to mesh.result.other.x"]


async def test_whoever_may_not_make_what_is_missing_says_who_may(few: Bus, mesh: Mesh) -> None:
    with pytest.raises(SetupError, match="stream MESH_TIMERS@new is missing, and this user may not make it"):
        await topology.ensure(few, topology.of_capability(few.settings, "new"))


async def test_a_subscription_that_is_denied_is_told(few: Bus, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "mesh.bus"):
        async with few.listening("mesh.done.>", lambda *_: None):
            await eventually(lambda: bool(caplog.records))

    assert "may not subscribe to mesh.done.>" in caplog.text
