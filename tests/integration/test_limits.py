"""Limits that all peers share: three peers in one process, and what operators, deaths and restarts do to them."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from contracts import headers as names
from contracts import wire
from contracts.control import Pause
from contracts.errors import ContractError
from contracts.limit import Limit, Seats
from contracts.outcome import FailureKind
from contracts.subjects import key_limit
from mesh import Agent, BlockingContext, Context, Mesh, TaskCancelled, TaskFailed
from mesh.bus import control, topology
from mesh.bus.limits import in_use
from mesh.bus.records import read
from mesh.errors import SetupError
from mesh.local.server import local_server
from mesh.peer import Peer
from mesh.settings import Settings
from mesh.testing.fixtures import fresh_settings
from mesh.testing.hosting import eventually, hosting
from tests.faults.limits import began, fullest, mark, marks, turn, user

PEERS = 3


class Crowd:
    """How many are inside a limit at once, over all peers of this process."""

    def __init__(self) -> None:
        self.inside = 0
        self.most = 0
        self.entered: list[int] = []
        self.may_leave = asyncio.Semaphore(0)

    async def visit(self, number: int) -> None:
        self.entered.append(number)
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            await self.may_leave.acquire()
        finally:
            self.inside -= 1

    def let_leave(self, count: int = 1_000) -> None:
        for _ in range(count):
            self.may_leave.release()


def caller(crowd: Crowd, *, within_s: float = 30.0, timeout_s: float = 5.0, attempts: int = 1, **limit: Any) -> Agent:
    agent = Agent("caller")
    if limit:
        agent.limit("llm", **limit)

    @agent.handles("ask", concurrency=16, timeout_s=timeout_s, attempts=attempts)
    async def ask(number: int, ctx: Context) -> float:
        async with ctx.limit("llm", tokens=100, within_s=within_s) as grant:
            await crowd.visit(number)
        return grant.waited_s

    return agent


@asynccontextmanager
async def peers(agent: Agent, settings: Settings, count: int = PEERS) -> AsyncIterator[list[Peer]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(hosting(agent, settings=settings)) for _ in range(count)]


def counted(peers: Sequence[Peer], name: str, resource: str = "llm") -> float:
    found = [peer.metrics.registry.get_sample_value(f"mesh_limit_{name}", {"resource": resource}) for peer in peers]
    return sum(value or 0.0 for value in found)


async def answer(mesh: Mesh, payload: Any) -> Any:
    handle = await mesh.submit("ask", payload)
    return await handle.result(within_s=20)


async def holdings(mesh: Mesh) -> dict[str, Any]:
    _, seats, _ = await in_use(mesh.bus)
    return seats.get("llm", Seats()).holdings


async def test_no_more_seats_are_taken_than_the_whole_mesh_has(settings: Settings, mesh: Mesh) -> None:
    crowd = Crowd()
    async with peers(caller(crowd, concurrent=4), settings) as hosted:
        handles = [await mesh.submit("ask", number) for number in range(30)]
        await eventually(lambda: crowd.inside == 4)
        assert sum(holding.seats for holding in (await holdings(mesh)).values()) == 4
        crowd.let_leave()
        for handle in handles:
            await handle.result(within_s=20)
        assert counted(hosted, "granted_total") == 30
        assert counted(hosted, "wait_seconds_count") == 30

    assert crowd.most == 4
    assert len(crowd.entered) == 30
    assert await holdings(mesh) == {}


async def test_peers_share_seats_evenly(settings: Settings, mesh: Mesh) -> None:
    crowd = Crowd()
    async with peers(caller(crowd, concurrent=3), settings):
        for number in range(40):
            await mesh.submit("ask", number)

        await eventually(lambda: crowd.inside == 3)
        crowd.let_leave(6)
        await eventually(lambda: len(crowd.entered) == 9)

        async def is_even() -> bool:
            return [holding.seats for holding in (await holdings(mesh)).values()] == [1, 1, 1]

        await eventually(is_even)
        crowd.let_leave()


async def test_an_operator_changes_a_limit_while_it_is_used(settings: Settings, mesh: Mesh) -> None:
    crowd = Crowd()
    async with peers(caller(crowd, concurrent=1), settings) as hosted:

        async def all_hear_of(limit: Limit | None) -> None:
            await eventually(lambda: all(peer.host.controls.limit_of("llm") == limit for peer in hosted))

        handles = [await mesh.submit("ask", number) for number in range(12)]
        await eventually(lambda: crowd.inside == 1)

        await control.set_limit(mesh.bus, "llm", Limit(concurrent=5))
        await eventually(lambda: crowd.inside == 5)

        await control.set_limit(mesh.bus, "llm", Limit(concurrent=2))
        await all_hear_of(Limit(concurrent=2))
        crowd.let_leave(3)
        await eventually(lambda: crowd.inside == 2)
        crowd.let_leave(1)
        await eventually(lambda: len(crowd.entered) == 6)
        assert crowd.inside == 2

        assert await control.drop_limit(mesh.bus, "llm")
        await all_hear_of(None)
        crowd.let_leave(1)
        await eventually(lambda: crowd.inside == 1)
        crowd.let_leave()
        for handle in handles:
            await handle.result(within_s=20)


async def test_a_resource_without_a_limit_passes_at_once_and_stores_nothing(settings: Settings, mesh: Mesh) -> None:
    crowd = Crowd()
    crowd.let_leave()
    async with peers(caller(crowd), settings, 1) as hosted:
        assert await answer(mesh, 1) == 0.0
        assert counted(hosted, "granted_total", "(none)") == 1

    assert await in_use(mesh.bus) == (pytest.approx(time.time(), abs=60), {}, {})


async def test_a_task_handed_back_because_the_turn_came_too_late_has_used_no_attempt(
    settings: Settings, mesh: Mesh
) -> None:
    crowd = Crowd()
    async with peers(caller(crowd, within_s=0.0, concurrent=1), settings) as hosted:
        first = await mesh.submit("ask", 1)
        await eventually(lambda: crowd.inside == 1)
        second = await mesh.submit("ask", 2)
        await eventually(lambda: counted(hosted, "refused_total") >= 2)
        crowd.let_leave()

        outcomes = [await first.outcome(within_s=20), await second.outcome(within_s=20)]

    assert [outcome.status for outcome in outcomes] == ["done", "done"]
    assert crowd.entered == [1, 2]


async def test_a_turn_that_would_come_too_late_is_refused_at_once_and_books_nothing(
    settings: Settings, mesh: Mesh
) -> None:
    crowd = Crowd()
    crowd.let_leave()
    async with peers(caller(crowd, within_s=5.0, tokens_per_minute=100, burst_s=60), settings) as hosted:
        await answer(mesh, 1)
        _, _, before = await in_use(mesh.bus)
        await mesh.submit("ask", 2)
        await eventually(lambda: counted(hosted, "refused_total") == 1)

        _, _, after = await in_use(mesh.bus)
        assert after == before
    assert crowd.entered == [1]


async def test_waiting_for_a_turn_counts_for_no_timeout(settings: Settings, mesh: Mesh) -> None:
    crowd = Crowd()
    limit = Limit(requests_per_minute=30, burst_s=0.1)
    async with peers(caller(crowd, timeout_s=0.5, concurrent=1), settings, 1) as (peer,):
        await control.set_limit(mesh.bus, "llm", limit)
        await eventually(lambda: peer.host.controls.limit_of("llm") == limit)
        crowd.let_leave()
        handles = [await mesh.submit("ask", number) for number in range(2)]

        waited = sorted([await handle.result(within_s=20) for handle in handles])

    assert waited[1] > 0.5


async def test_a_plain_handler_waits_in_its_thread(settings: Settings, mesh: Mesh) -> None:
    agent, inside = Agent("plain"), []
    agent.limit("llm", concurrent=1, tokens_per_minute=6_000)

    @agent.handles("ask", timeout_s=0.5)
    def ask(number: int, ctx: BlockingContext) -> int:
        with ctx.limit("llm", tokens=4_000) as grant:
            inside.append(number)
            grant.correct(tokens=10)
            assert inside.pop() == number
            assert not inside
        return number

    async with peers(agent, settings, 2):
        handles = [await mesh.submit("ask", number) for number in range(6)]
        assert sorted([await handle.result(within_s=20) for handle in handles]) == list(range(6))

        async def is_corrected() -> bool:
            now, _, rates = await in_use(mesh.bus)
            record, _ = rates["llm"]
            return record.tokens.until < now + 60 * 100 / 6_000

        await eventually(is_corrected)


async def test_what_a_call_did_not_use_is_there_for_others(settings: Settings, mesh: Mesh) -> None:
    agent = Agent("frugal")
    agent.limit("llm", tokens_per_minute=1_000)

    @agent.handles("ask")
    async def ask(_: int, ctx: Context) -> None:
        async with ctx.limit("llm", tokens=1_000, within_s=20) as grant:
            pass
        grant.correct(tokens=900)
        grant.correct(tokens=1)

    async with peers(agent, settings):
        # Ten such calls would take ten minutes.
        for number in range(10):
            await answer(mesh, number)


async def test_a_record_is_kept_for_as_long_as_its_bucket_is_not_full(settings: Settings, mesh: Mesh) -> None:
    crowd = Crowd()
    crowd.let_leave()
    async with peers(caller(crowd, tokens_per_minute=0.1, burst_s=86_400), settings, 1):
        await answer(mesh, 1)

    stored = await read(mesh.bus, mesh.bus.subjects.limit("rate", "llm"), stream=mesh.bus.subjects.limit_stream)
    assert stored is not None
    # 100 tokens take 60,000 s to be earned again.
    assert int(stored.headers[names.TTL].rstrip("s")) > 60_000


async def test_a_cancelled_waiter_leaves_nothing_behind(settings: Settings, mesh: Mesh) -> None:
    crowd = Crowd()
    async with peers(caller(crowd, concurrent=1, timeout_s=60), settings):
        first = await mesh.submit("ask", 1)
        await eventually(lambda: crowd.inside == 1)
        others = [await mesh.submit("ask", number) for number in (2, 3, 4)]

        async def all_wait() -> bool:
            return sum(holding.wants for holding in (await holdings(mesh)).values()) == 3

        await eventually(all_wait)
        await others[0].cancel()
        with pytest.raises(TaskCancelled):
            await others[0].result(within_s=20)
        crowd.let_leave()
        for handle in (first, *others[1:]):
            await handle.result(within_s=20)

        async def nobody_holds() -> bool:
            return not await holdings(mesh)

        await eventually(nobody_holds)
    assert 2 not in crowd.entered


async def test_more_tokens_than_the_bucket_ever_holds_fail_for_good(settings: Settings, mesh: Mesh) -> None:
    async with peers(caller(Crowd(), tokens_per_minute=90, attempts=5), settings, 1):
        with pytest.raises(TaskFailed) as failed:
            await answer(mesh, 1)

    assert failed.value.failure.kind == FailureKind.PERMANENT
    assert "llm: 100 tokens exceed the 90 that its bucket holds" in failed.value.failure.message
    assert "tokens_per_minute 90" in failed.value.failure.message


async def test_what_cannot_be_asked_for_fails_and_says_why(settings: Settings, mesh: Mesh) -> None:
    agent = Agent("clumsy")

    @agent.handles("ask")
    async def ask(_: None, ctx: Context) -> None:
        async with ctx.limit("llm", tokens=-1):
            pass

    async with peers(agent, settings, 1):
        with pytest.raises(TaskFailed) as failed:
            await answer(mesh, None)

    assert failed.value.failure.kind == FailureKind.CONTRACT
    assert "tokens is -1, outside 0 to" in failed.value.failure.message


async def test_a_limit_that_an_older_peer_cannot_read_leaves_the_one_before(settings: Settings, mesh: Mesh) -> None:
    crowd = Crowd()
    async with peers(caller(crowd), settings, 1) as (peer,):
        await control.set_limit(mesh.bus, "llm", Limit(concurrent=1))
        await eventually(lambda: peer.host.controls.limit_of("llm"))
        await mesh.bus.store(mesh.bus.subjects.control_record(key_limit("llm")), b'{"v": 99}')
        await mesh.bus.store(mesh.bus.subjects.control_record("pause.other"), wire.encode(Pause(at=1.0)))
        await eventually(lambda: peer.host.controls.is_paused("other"))

        assert peer.host.controls.limit_of("llm") == Limit(concurrent=1)


async def test_a_record_of_a_newer_format_gives_nothing_out(settings: Settings, mesh: Mesh) -> None:
    crowd = Crowd()
    crowd.let_leave()
    subject = mesh.bus.subjects.limit("seats", "llm")
    await mesh.bus.store(subject, b'{"v": 99}')
    async with peers(caller(crowd, concurrent=1), settings, 1) as hosted:
        handle = await mesh.submit("ask", 1)
        await eventually(lambda: counted(hosted, "refused_total") >= 1)
        assert crowd.entered == []
        await mesh.bus.store(subject, b"{}")

        await handle.result(within_s=20)


async def test_agents_of_one_peer_that_disagree_about_a_limit_cannot_be_hosted() -> None:
    one, other = caller(Crowd(), concurrent=1), Agent("other")
    other.limit("llm", concurrent=2)

    with pytest.raises(SetupError, match="different limits for 'llm'"):
        Peer(one.hosted, other.hosted, settings=Settings(nats_url="nats://nowhere"))


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        (Limit(), "needs one of"),
        (Limit(concurrent=0), "concurrent is 0, outside 1 to"),
        (Limit(tokens_per_minute=-5), "tokens_per_minute is -5, outside"),
        (Limit(requests_per_minute=float("nan")), "requests_per_minute is nan, outside"),
        (Limit(concurrent=1, burst_s=0), "burst_s is 0, outside"),
    ],
)
async def test_a_limit_that_cannot_be_kept_is_not_stored(mesh: Mesh, limit: Limit, told: str) -> None:
    with pytest.raises(ContractError, match=told):
        await control.set_limit(mesh.bus, "llm", limit)

    assert await control.limits(mesh.bus) == {}


# What the server saw.


async def test_four_peers_together_stay_within_a_rate_by_the_servers_clock(settings: Settings, mesh: Mesh) -> None:
    agent = Agent("busy")
    agent.limit("llm", requests_per_minute=1_200, burst_s=0.5)
    async with marks(mesh.bus):

        @agent.handles("ask", concurrency=16)
        async def ask(number: int, ctx: Context) -> None:
            async with ctx.limit("llm"):
                await mark(mesh.bus, "in", number)

        async with peers(agent, settings, 4):
            for handle in [await mesh.submit("ask", number) for number in range(60)]:
                await handle.result(within_s=30)
        times = await began(mesh.bus)

    assert len(times) == 60
    # A bucket of 10; what a busy machine makes late may come closer to the next ones by a second's worth.
    assert fullest(times, per_s=20) <= 10 + 20


async def test_the_seats_of_a_killed_process_are_free_after_its_lease_whatever_clocks_say(
    settings: Settings, mesh: Mesh
) -> None:
    short = settings.model_copy(update={"limit_lease_s": 1.0})
    async with (
        marks(mesh.bus),
        user("hold", short, clock_off_s=3_600) as holder,
    ):
        await turn(holder)
        async with user("take", short, clock_off_s=-3_600) as taker:

            async def waits() -> bool:
                return any(holding.wants for holding in (await holdings(mesh)).values())

            await eventually(waits)
            standing = await holdings(mesh)
            # Renewed again and again: nobody gets in while it lives.
            await eventually(lambda: _renewed_twice(mesh, standing))
            assert len(await began(mesh.bus)) == 1
            holder.kill()
            await holder.wait()
            for _ in range(3):
                await turn(taker)


async def _renewed_twice(mesh: Mesh, before: dict[str, Any]) -> bool:
    now = await holdings(mesh)
    return all(now[peer].until > holding.until + 0.6 for peer, holding in before.items() if holding.seats)


async def test_a_broker_that_is_killed_and_comes_back_gives_no_seat_twice() -> None:
    crowd = Crowd()
    with local_server() as server:
        settings = fresh_settings(server.url).model_copy(update={"limit_lease_s": 1.5})
        async with Mesh.connect(settings=settings) as mesh:
            await topology.ensure(mesh.bus, topology.of_mesh(settings))
            # An outage longer than `ack_wait` may count as a crash of whoever comes back last.
            async with peers(caller(crowd, concurrent=2, timeout_s=60, attempts=3), settings):
                handles = [await mesh.submit("ask", number) for number in range(8)]
                await eventually(lambda: crowd.inside == 2)
                server.kill()
                since = time.monotonic()
                # Longer than the lease: nobody could renew.
                await eventually(lambda: time.monotonic() > since + 2.0)
                server.restart()
                await eventually(lambda: mesh.bus.is_connected)

                async def is_renewed() -> bool:
                    now, seats, _ = await in_use(mesh.bus)
                    return sum(one.seats for one in seats["llm"].holdings.values() if one.until > now) == 2

                await eventually(is_renewed)
                crowd.let_leave()
                for handle in handles:
                    await handle.result(within_s=30)

    assert crowd.most == 2
