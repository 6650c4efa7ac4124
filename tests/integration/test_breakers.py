"""Circuit breakers on the mesh: what one peer finds out holds for all, and work waits instead of failing."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from tenacity.wait import wait_fixed

from contracts.control import BreakerChange
from contracts.outcome import Outcome, Status
from contracts.subjects import Identity, key_breaker
from mesh import Agent, BlockingContext, Context, Mesh, Permanent, TaskFailed, Transient
from mesh.bus import control, topology
from mesh.capability import Capability
from mesh.errors import BreakerOpen, SetupError
from mesh.local.server import local_server
from mesh.peer import Peer
from mesh.resilience.breaker import State
from mesh.settings import Settings
from mesh.testing import eventually, hosting
from mesh.testing.fixtures import fresh_settings
from tests.integration.conftest import CommandLine

LONG_S = 30.0


class Dependency:
    """Something outside that may be down, or hang, and counts its calls."""

    def __init__(self) -> None:
        self.is_down = False
        self.hangs = False
        self.calls: list[float] = []
        self.at_once = self.most_at_once = 0

    async def call(self) -> str:
        self.calls.append(time.monotonic())
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.hangs:
                await asyncio.Event().wait()
            await asyncio.sleep(0.005)
            if self.is_down:
                raise ConnectionError("down")
            return "answered"
        finally:
            self.at_once -= 1


def caller(there: Dependency, *, attempts: int = 2, open_s: float = 0.5, **rules: float) -> Agent:
    """An agent that calls the dependency through a breaker, and has no other way."""
    agent = Agent("caller")
    agent.breaker("there", calls_min=4, open_s=open_s, **rules)  # type: ignore[arg-type]

    @agent.handles("ask", concurrency=4, attempts=attempts, timeout_s=1.0, wait=wait_fixed(0.5))
    async def ask(number: int, ctx: Context) -> str:
        async with ctx.breaker("there"):
            return await there.call()

    return agent


@asynccontextmanager
async def fleet(settings: Settings, *agents: Agent) -> AsyncIterator[list[Peer]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(hosting(agent, settings=settings)) for agent in agents]


def state(peer: Peer, name: str = "there") -> State | None:
    return peer.host.breakers.states().get(name)


def handed_back(peer: Peer, reason: str) -> float:
    labels = {"capability": "ask", "reason": reason}
    return peer.metrics.registry.get_sample_value("mesh_handed_back_total", labels) or 0.0


async def test_while_a_breaker_is_open_work_waits_on_all_peers_and_no_attempt_is_burnt(
    mesh: Mesh, settings: Settings
) -> None:
    there = Dependency()
    there.is_down = True
    async with fleet(settings, *(caller(there) for _ in range(4))) as peers:
        handles = [await mesh.submit("ask", number) for number in range(100)]
        # Every peer has heard of it, and takes nothing.
        await eventually(lambda: all(peer.host.breakers.held_by("ask") for peer in peers))
        await eventually(lambda: sum(handed_back(peer, "probe failed") for peer in peers) >= 2)
        there.is_down = False
        outcomes = [await handle.outcome(within_s=LONG_S) for handle in handles]
        probes = sum(handed_back(peer, "probe failed") for peer in peers)

    assert {outcome.status for outcome in outcomes} == {Status.DONE}
    # Up to three on each peer before it opens, what its slots run then, and one probe after another.
    assert len(there.calls) - 100 <= 4 * (3 + 4) + probes


async def test_one_peer_at_a_time_probes(mesh: Mesh, settings: Settings) -> None:
    there = Dependency()
    there.is_down = True
    async with fleet(settings, *(caller(there, open_s=0.2) for _ in range(4))) as peers:
        for number in range(40):
            await mesh.submit("ask", number)
        await eventually(lambda: all(peer.host.breakers.held_by("ask") for peer in peers))
        await eventually(lambda: not there.at_once)
        there.most_at_once, before = 0, len(there.calls)
        await eventually(lambda: len(there.calls) >= before + 5)

        assert there.most_at_once == 1


async def test_a_peer_that_never_called_holds_its_calls_back(mesh: Mesh, settings: Settings) -> None:
    there, elsewhere = Dependency(), Dependency()
    there.is_down = True
    other = Agent("other")
    told: list[BreakerOpen] = []

    @other.handles("also")
    async def also(ctx: Context) -> str:
        try:
            async with ctx.breaker("there"):
                return await elsewhere.call()
        except BreakerOpen as refused:
            told.append(refused)
            return "something else"

    async with fleet(settings, caller(there, open_s=20.0), other) as (first, second):
        for number in range(10):
            await mesh.submit("ask", number)
        await eventually(lambda: state(first) is State.OPEN)
        await eventually(lambda: second.host.controls.breaker("there"))
        answers = [await (await mesh.submit("also")).result(within_s=LONG_S) for _ in range(3)]

        assert answers == ["something else"] * 3
        assert not elsewhere.calls
        assert 0 < told[0].retry_after_s <= 20
        # It has another way, so it goes on taking work.
        assert second.host.breakers.held_by("also") == ()


async def test_a_failed_probe_is_no_attempt(mesh: Mesh, settings: Settings) -> None:
    there = Dependency()
    async with fleet(settings, caller(there, attempts=1, open_s=0.1)) as (peer,):
        # Calls that go well first: with one attempt only, those that open it must not be asked for.
        await control.change_breaker(mesh.bus, "there", _opened(0.1), after=None)
        await eventually(lambda: peer.host.controls.breaker("there"))
        there.is_down = True
        handle = await mesh.submit("ask", 1)
        await eventually(lambda: len(there.calls) >= 4)
        there.is_down = False
        outcome = await handle.outcome(within_s=LONG_S)

    assert outcome.status is Status.DONE
    assert outcome.attempt >= 5


async def test_a_lease_whose_holder_died_runs_out(mesh: Mesh, settings: Settings) -> None:
    there = Dependency()
    async with fleet(settings, caller(there)) as (peer,):
        lease = BreakerChange(state="half-open", at=time.time(), for_s=1.0, by="a peer that died")
        await control.change_breaker(mesh.bus, "there", lease, after=None)
        await eventually(lambda: peer.host.controls.breaker("there"))
        handle = await mesh.submit("ask", 1)
        await eventually(lambda: peer.host.breakers.held_by("ask"))
        assert not there.calls

        assert await handle.result(within_s=LONG_S) == "answered"


async def test_a_record_that_nobody_can_read_holds_nobody(mesh: Mesh, settings: Settings) -> None:
    there = Dependency()
    there.is_down = True
    subject = mesh.bus.subjects.control_record(key_breaker("there"))
    await mesh.bus.store(subject, b'{"state":"of another version","at":0,"for_s":600}')
    async with fleet(settings, caller(there, open_s=20.0)) as (peer,):
        await mesh.bus.store(subject, b"not JSON")
        handles = [await mesh.submit("ask", number) for number in range(8)]
        await eventually(lambda: state(peer) is State.OPEN)
        await mesh.bus.store(subject, b"nor this")
        there.is_down = False
        await control.change_breaker(mesh.bus, "there", BreakerChange(state="closed", at=time.time()), after=None)

        assert {(await handle.outcome(within_s=LONG_S)).status for handle in handles} == {Status.DONE}


async def test_a_peer_that_starts_later_knows_what_is_open(mesh: Mesh, settings: Settings) -> None:
    there = Dependency()
    await control.change_breaker(mesh.bus, "there", _opened(600.0), after=None)
    handle = await mesh.submit("ask", 1)
    async with fleet(settings, caller(there)) as (peer,):
        await eventually(lambda: peer.host.breakers.held_by("ask"))
        heard = peer.host.controls.breaker("there")
        assert heard is not None
        assert 500 < heard.left_s <= 600
        await control.change_breaker(mesh.bus, "there", BreakerChange(state="closed", at=time.time()), after=None)

        assert await handle.result(within_s=LONG_S) == "answered"

    assert len(there.calls) == 1


async def test_calls_that_end_with_the_attempts_time_count_as_failed(mesh: Mesh, settings: Settings) -> None:
    there = Dependency()
    there.hangs = True
    async with fleet(settings, caller(there, attempts=3, open_s=20.0)) as (peer,):
        for number in range(4):
            await mesh.submit("ask", number)

        await eventually(lambda: state(peer) is State.OPEN)
        calls = peer.metrics.registry.get_sample_value(
            "mesh_breaker_calls_total", {"breaker": "there", "how": "failed"}
        )
        assert calls == 4


async def test_calls_that_only_take_long_open_it(mesh: Mesh, settings: Settings) -> None:
    there = Dependency()
    async with fleet(settings, caller(there, open_s=20.0, slow_s=0.001)) as (peer,):
        handles = [await mesh.submit("ask", number) for number in range(4)]

        await eventually(lambda: state(peer) is State.OPEN)
        assert {(await handle.outcome(within_s=LONG_S)).status for handle in handles} == {Status.DONE}


async def test_what_cannot_succeed_says_nothing_against_the_dependency(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("caller")
    agent.breaker("there", calls_min=2, failure_ratio=0.1)

    @agent.handles("ask")
    async def ask(ctx: Context) -> str:
        async with ctx.breaker("there"):
            raise Permanent("no such customer")

    async with fleet(settings, agent) as (peer,):
        for _ in range(5):
            with pytest.raises(TaskFailed):
                await (await mesh.submit("ask")).result(within_s=LONG_S)

        assert state(peer) is State.CLOSED


async def test_a_plain_handler_is_guarded_too(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("caller")
    agent.breaker("there", calls_min=2, open_s=20.0)

    @agent.handles("ask", attempts=2, wait=wait_fixed(0.01))
    def ask(ctx: BlockingContext) -> str:
        try:
            with ctx.breaker("there"):
                raise ConnectionError("down")
        except BreakerOpen:
            return "something else"

    async with fleet(settings, agent) as (peer,):
        first = await (await mesh.submit("ask")).outcome(within_s=LONG_S)
        second = await (await mesh.submit("ask")).result(within_s=LONG_S)

        assert first.status is Status.FAILED
        assert state(peer) is State.OPEN
        assert second == "something else"


async def test_a_guarded_callee_that_keeps_failing_is_not_asked_any_more(mesh: Mesh, settings: Settings) -> None:
    agent, asked = Agent("both"), Counter[str]()
    agent.breaker("flaky", calls_min=3, open_s=20.0)

    @agent.handles("flaky", attempts=1)
    async def flaky(number: int) -> str:
        asked["flaky"] += 1
        raise Permanent("never")

    @agent.handles("parent", concurrency=1)
    async def parent(number: int, ctx: Context) -> str:
        try:
            return await ctx.call(flaky, number, is_guarded=True)
        except TaskFailed:
            return "failed"
        except BreakerOpen:
            return "not asked"

    async with fleet(settings, agent):
        answers = [await (await mesh.submit(parent, number)).result(within_s=LONG_S) for number in range(5)]

    assert answers == ["failed"] * 3 + ["not asked"] * 2
    assert asked["flaky"] == 3


async def test_a_childs_result_on_record_is_found_while_its_breaker_is_open(mesh: Mesh, settings: Settings) -> None:
    agent, runs = Agent("both"), Counter[str]()

    @agent.handles("callee")
    async def callee(number: int) -> int:
        return number + 1

    @agent.handles("parent", attempts=2, wait=wait_fixed(0.01))
    async def parent(number: int, ctx: Context) -> int:
        runs["parent"] += 1
        found: int = await ctx.call(callee, number, is_guarded=True)
        if runs["parent"] == 1:
            await control.change_breaker(mesh.bus, "callee", _opened(600.0), after=None)
            await eventually(lambda: state(peer, "callee") is State.OPEN)
            raise Transient("once more")
        return found

    async with fleet(settings, agent) as (peer,):
        assert await (await mesh.submit(parent, 1)).result(within_s=LONG_S) == 2

    assert runs["parent"] == 2


async def test_a_peer_that_is_cut_off_goes_by_its_own_calls(tmp_path: Path) -> None:
    there = Dependency()
    there.is_down = True
    agent, seen = Agent("caller"), list[str]()
    agent.breaker("there", calls_min=4, open_s=0.2)

    @agent.handles("loop", timeout_s=120)
    async def loop(ctx: Context) -> int:
        while len(seen) < 3:
            try:
                async with ctx.breaker("there"):
                    await there.call()
                if "open" in seen:
                    seen.append("answered")
            except BreakerOpen:
                if not seen:
                    seen.append("open")
                    there.is_down = False
                await asyncio.sleep(0.01)
            except ConnectionError:
                pass
        return len(there.calls)

    with local_server(tmp_path / "store") as server:
        settings = fresh_settings(server.url)
        async with Mesh.connect(settings=settings) as mesh:
            await topology.ensure(mesh.bus, topology.of_mesh(settings))
            async with hosting(agent, settings=settings) as peer:
                handle = await mesh.submit("loop")
                await eventually(lambda: peer.host.running)
                server.kill()
                await eventually(lambda: seen.count("answered") == 2)
                server.restart()

                assert await handle.result(within_s=LONG_S) >= 6
                # What it decided alone, it told when the others could hear it, or it is closed as they have it.
                await eventually(lambda: state(peer) is State.CLOSED)


async def test_an_operator_opens_and_closes_a_breaker(
    mesh: Mesh, settings: Settings, command_line: CommandLine
) -> None:
    there = Dependency()
    async with fleet(settings, caller(there)) as (peer,):
        opened = await command_line("breaker", "open", "there", "--for-s", "600", "--reason", "unpaid", "--json")
        handle = await mesh.submit("ask", 1)
        await eventually(lambda: peer.host.breakers.held_by("ask"))
        listed = (await command_line("breaker", "ls", "--json")).document["breakers"]
        fleet_told = await command_line("agents")
        await command_line("breaker", "close", "there")

        assert await handle.result(within_s=LONG_S) == "answered"
        assert opened.document["for_s"] == 600
        assert [(one["breaker"], one["state"], one["reason"]) for one in listed] == [("there", "open", "unpaid")]
        assert "ask (breaker there)" in fleet_told.out
        assert len(there.calls) == 1


async def test_names_and_rules_that_cannot_be_are_refused(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("caller")
    agent.breaker("there", open_s=1.0)
    other = Agent("other")
    other.breaker("there", open_s=2.0)

    @agent.handles("ask")
    async def ask(ctx: Context) -> str:
        async with ctx.breaker("no such name"):
            return "never"

    @other.handles("also")
    async def also() -> str:
        return "never"

    with pytest.raises(SetupError, match="breaker 'there' has its rules twice"):
        agent.breaker("there")
    with pytest.raises(SetupError, match="must be letters"):
        agent.breaker("no such name")
    with pytest.raises(SetupError, match="different breakers for 'there'"):
        Peer(agent.hosted, other.hosted, settings=settings)
    async with fleet(settings, agent):
        outcome: Outcome = await (await mesh.submit("ask")).outcome(within_s=LONG_S)

    assert outcome.failure is not None
    assert "breaker 'no such name' must be letters" in outcome.failure.message


async def test_a_context_made_by_hand_lets_everything_through() -> None:
    ask: Capability[int, str, object] = caller(Dependency()).capabilities["ask"]

    answer = await ask(1, Context(Identity("ask", "k")))  # type: ignore[misc]

    assert answer == "answered"


def _opened(for_s: float) -> BreakerChange:
    return BreakerChange(state="open", at=time.time(), for_s=for_s, by="a test")
