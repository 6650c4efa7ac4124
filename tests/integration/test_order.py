"""Lines: tasks with the same order key run one at a time, in the order of their submission."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from tenacity.wait import wait_fixed

from contracts import wire
from contracts.line import LineMark, LinePlace
from contracts.outcome import FailureKind, Outcome, Status
from contracts.subjects import Identity, Line
from mesh import (
    Agent,
    BlockingContext,
    Context,
    Handle,
    IdempotencyConflict,
    Mesh,
    Permanent,
    TaskCancelled,
    TaskExpired,
    TaskFailed,
    Transient,
)
from mesh.bus import topology
from mesh.bus.commit import commit
from mesh.bus.connection import Headers
from mesh.bus.dead_letters import read_dead_letter, redrive
from mesh.bus.lines import RESULT_S_MIN
from mesh.bus.parks import is_parked
from mesh.bus.records import read
from mesh.errors import ContractError, PublishUnconfirmed
from mesh.settings import Settings
from mesh.testing import eventually, hosting
from tests.integration.conftest import CommandLine

LINE = Line("work", "account-42")
WITHIN_S = 20.0


class Job(msgspec.Struct):
    """What a task does: it runs, `waits` for its gate, then `ends`."""

    name: str = ""
    waits: bool = False
    ends: str = "done"
    run_s: float = 0.0


class Office:
    """An agent that notes what it runs, and gates that hold its handlers."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.running: dict[str, int] = defaultdict(int)
        self.most: dict[str, int] = defaultdict(int)
        self.gates: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.agent = agent = Agent("office")

        @agent.handles("work", concurrency=8, wait=wait_fixed(0.5))
        async def work(job: Job, ctx: Context) -> str:
            line = ctx.id.partition(".")[0]
            self.began.append(job.name or ctx.id)
            self.running[line] += 1
            self.most[line] = max(self.most[line], self.running[line])
            try:
                await asyncio.sleep(job.run_s)
                if job.waits:
                    await self.gates[job.name].wait()
                if job.ends == "failed":
                    raise Permanent("no")
                if job.ends == "much later":
                    raise Transient("not now", after_s=3_600)
                if job.ends == "retried" and ctx.attempt < 2:
                    raise Transient("not yet")
            finally:
                self.running[line] -= 1
            return job.name

        @agent.handles("narrow", concurrency=1)
        async def narrow(job: Job, ctx: Context) -> str:
            self.began.append(job.name)
            if job.waits:
                await self.gates[job.name].wait()
            return job.name

        @agent.handles("plain", concurrency=8)
        def plain(job: Job, ctx: BlockingContext) -> str:
            self.began.append(job.name)
            self.running[ctx.id.partition(".")[0]] += 1
            time.sleep(job.run_s)
            self.most["plain"] = max(self.most["plain"], *self.running.values())
            self.running[ctx.id.partition(".")[0]] -= 1
            return job.name

        @agent.handles("durable", concurrency=8)
        async def durable(job: Job, ctx: Context) -> str:
            self.began.append(job.name)
            return await ctx.signal("go", returns=str) if job.waits else job.name

    @asynccontextmanager
    async def open(self, settings: Settings, *, peers: int = 1) -> AsyncIterator[None]:
        """Peers that host it, and every gate opened when they leave."""
        try:
            if not peers:
                yield
                return
            async with hosting(self.agent, settings=settings), self.open(settings, peers=peers - 1):
                yield
        finally:
            for gate in self.gates.values():
                gate.set()


@pytest.fixture
def office() -> Office:
    return Office()


async def submit(mesh: Mesh, name: str = "", *, order_key: str = LINE.key, **more: Any) -> Handle[Any]:
    options = {option: more.pop(option) for option in ("key", "deadline_s") if option in more}
    capability = more.pop("capability", "work")
    return await mesh.submit(capability, Job(name, **more), order_key=order_key, **options)


async def parked(mesh: Mesh, *tasks: Handle[Any]) -> None:
    for handle in tasks:
        await eventually(lambda task=handle.task: is_parked(mesh.bus, task), within_s=WITHIN_S)


async def forget(mesh: Mesh, subject: str, stream: str = "") -> None:
    """Take a record away, as its end of time does."""
    stream = stream or mesh.bus.subjects.stream
    stored = await read(mesh.bus, subject, stream=stream)
    assert stored is not None
    await mesh.bus.api(f"STREAM.MSG.DELETE.{stream}", {"seq": stored.sequence})


async def mark(mesh: Mesh) -> LineMark | None:
    stored = await read(mesh.bus, mesh.bus.subjects.line(LINE), stream=mesh.bus.subjects.line_stream)
    return None if stored is None else wire.decode(LineMark, stored.data)


async def settled(mesh: Mesh) -> None:
    """Return when every task is acked."""

    patterns = (mesh.bus.subjects.tasks_of(), *mesh.bus.subjects.wakes_of("*"))

    async def is_empty() -> bool:
        return not any([await topology.queued(mesh.bus, each) for each in patterns])

    await eventually(is_empty, within_s=WITHIN_S)


# One at a time, in order.


async def test_tasks_of_two_submitters_run_one_at_a_time_in_the_order_in_which_they_were_accepted(
    mesh: Mesh, settings: Settings, office: Office
) -> None:
    async def send(client: Mesh, name: str) -> list[Handle[Any]]:
        return [await submit(client, f"{name}-{number}", run_s=0.002) for number in range(15)]

    async with Mesh.connect(settings=settings) as other, office.open(settings, peers=3):
        async with asyncio.TaskGroup() as submitters:
            sending = [submitters.create_task(send(client, name)) for client, name in ((mesh, "a"), (other, "b"))]
        handles = [handle for sent in sending for handle in sent.result()]
        names = {handle.id: await handle.result(within_s=WITHIN_S) for handle in handles}

    assert sorted(names) == sorted(LINE.at(position).id for position in range(1, 31))
    assert office.began == [names[LINE.at(position).id] for position in range(1, 31)]
    assert [name for name in office.began if name.startswith("a")] == [f"a-{number}" for number in range(15)]
    assert office.most == {LINE.key: 1}


async def test_calls_made_at_once_by_one_client_are_in_the_order_of_the_calls(
    mesh: Mesh, settings: Settings, office: Office
) -> None:
    async with asyncio.TaskGroup() as calls:
        made = [calls.create_task(submit(mesh, f"{number}")) for number in range(20)]
    async with office.open(settings, peers=2):
        for call in made:
            await call.result().result(within_s=WITHIN_S)

    assert office.began == [f"{number}" for number in range(20)]


async def test_other_lines_and_tasks_in_none_go_on_while_a_line_is_blocked(
    mesh: Mesh, settings: Settings, office: Office
) -> None:
    async with office.open(settings):
        await submit(mesh, "first", waits=True)
        blocked = [await submit(mesh, f"blocked-{number}") for number in range(20)]
        await parked(mesh, *blocked)

        others = [await submit(mesh, f"other-{number}", order_key=f"key-{number % 3}") for number in range(9)]
        others += [await mesh.submit("work", Job(f"free-{number}")) for number in range(9)]
        for handle in others:
            await handle.result(within_s=WITHIN_S)

        assert not any(name.startswith("blocked") for name in office.began)
        office.gates["first"].set()
        await blocked[-1].result(within_s=WITHIN_S)
    assert office.began[-20:] == [f"blocked-{number}" for number in range(20)]


async def test_a_predecessor_that_is_parked_holds_its_line(mesh: Mesh, settings: Settings, office: Office) -> None:
    settings = settings.model_copy(update={"hot_wait_s": 0.05})
    async with office.open(settings, peers=2):
        first = await submit(mesh, "first", capability="durable", waits=True)
        await parked(mesh, first)
        second = await submit(mesh, "second", capability="durable")
        await parked(mesh, second)
        assert "behind account-42.~~1" in f"{(await second.status()).detail} ".replace("durable/", "")

        await mesh.signal("durable", first.id, "go", "gone")

        assert await first.result(within_s=WITHIN_S) == "gone"
        assert await second.result(within_s=WITHIN_S) == "second"
        assert (await second.outcome()).attempt == 1
    assert office.began == ["first", "first", "second"]


async def test_plain_handlers_run_one_at_a_time_in_order_too(mesh: Mesh, settings: Settings, office: Office) -> None:
    async with office.open(settings, peers=2):
        handles = [await submit(mesh, f"{number}", capability="plain", run_s=0.01) for number in range(10)]
        for handle in handles:
            await handle.result(within_s=WITHIN_S)

    assert office.began == [f"{number}" for number in range(10)]
    assert office.most == {"plain": 1}


async def test_a_predecessor_that_fails_lets_its_line_go_on_and_one_that_is_tried_again_holds_it(
    mesh: Mesh, settings: Settings, office: Office
) -> None:
    async with office.open(settings, peers=2):
        failed = await submit(mesh, "failed", ends="failed")
        retried = await submit(mesh, "retried", ends="retried")
        last = await submit(mesh, "last")

        with pytest.raises(TaskFailed):
            await failed.result(within_s=WITHIN_S)
        assert await retried.result(within_s=WITHIN_S) == "retried"
        assert await last.result(within_s=WITHIN_S) == "last"
    assert office.began == ["failed", "retried", "retried", "last"]


async def test_a_follower_that_is_cancelled_or_too_late_is_answered_at_once_and_the_line_stays_in_order(
    mesh: Mesh, settings: Settings, office: Office
) -> None:
    async with office.open(settings, peers=2):
        await submit(mesh, "first", waits=True)
        late = await submit(mesh, "late", deadline_s=0.5)
        cancelled = [await submit(mesh, f"cancelled-{number}") for number in range(3)]
        last = await submit(mesh, "last")
        await parked(mesh, late, *cancelled, last)
        for handle in reversed(cancelled):
            await handle.cancel()

        for handle in cancelled:
            with pytest.raises(TaskCancelled) as told:
                await handle.result(within_s=WITHIN_S)
            assert told.value.outcome.is_early
        with pytest.raises(TaskExpired):
            await late.result(within_s=WITHIN_S)
        marker = await mesh.submit("work", Job("marker"))
        await marker.result(within_s=WITHIN_S)
        assert office.began == ["first", "marker"]
        office.gates["first"].set()

        assert await last.result(within_s=WITHIN_S) == "last"
        assert not (await last.outcome()).is_early


async def test_a_queued_follower_that_is_cancelled_does_not_let_the_next_one_pass(
    mesh: Mesh, settings: Settings, office: Office
) -> None:
    # The only slot is taken, so that what follows is not looked at.
    async with office.open(settings):
        await submit(mesh, "first", capability="narrow", waits=True)
        await eventually(lambda: office.began, within_s=WITHIN_S)
        second, third = [await submit(mesh, name, capability="narrow") for name in ("second", "third")]
        await second.cancel()
        assert (await second.outcome(within_s=WITHIN_S)).is_early

        async with hosting(office.agent, settings=settings):
            await parked(mesh, third)

            assert office.began == ["first"]
            office.gates["first"].set()
            assert await third.result(within_s=WITHIN_S) == "third"


async def test_a_predecessor_that_is_cancelled_while_it_waits_for_a_retry_lets_its_line_go_on(
    mesh: Mesh, settings: Settings, office: Office
) -> None:
    async with office.open(settings):
        first = await submit(mesh, "first", ends="much later")
        second = await submit(mesh, "second")
        await parked(mesh, second)
        await eventually(lambda: office.running[LINE.key] == 0 and office.began)

        await first.cancel()

        assert await second.result(within_s=WITHIN_S) == "second"


async def test_results_of_a_line_are_kept_for_long_enough_to_find_its_end(
    mesh: Mesh, settings: Settings, office: Office
) -> None:
    async with office.open(settings.model_copy(update={"result_ttl_s": 1.0})):
        handle = await submit(mesh, "first")
        await handle.outcome(within_s=WITHIN_S)

        stored = await read(mesh.bus, mesh.bus.subjects.result(handle.task))
        assert stored is not None
        assert stored.headers["Nats-TTL"] == f"{RESULT_S_MIN:.0f}s"


async def test_a_line_goes_on_after_a_peer_that_died_between_its_result_and_the_next_one(
    mesh: Mesh, settings: Settings, office: Office
) -> None:
    async with office.open(settings):
        first = await submit(mesh, "first", waits=True)
        second = await submit(mesh, "second")
        await parked(mesh, second)
        record = wire.encode(Outcome(status=Status.DONE, value=msgspec.Raw(b'"first"')))
        await commit(mesh.bus, first.task, record, ttl_s=600, as_type="application/json")

        office.gates["first"].set()

        assert await second.result(within_s=WITHIN_S) == "second"


async def test_a_follower_whose_payload_breaks_the_contract_is_answered_in_its_turn(
    mesh: Mesh, settings: Settings, office: Office
) -> None:
    async with office.open(settings):
        await submit(mesh, "first", waits=True)
        bad = await mesh.submit("work", {"name": 7}, order_key=LINE.key)
        last = await submit(mesh, "last")
        await parked(mesh, bad, last)
        office.gates["first"].set()

        outcome = await bad.outcome(within_s=WITHIN_S)
        assert (outcome.status, outcome.is_early) == (Status.FAILED, False)
        assert await last.result(within_s=WITHIN_S) == "last"


async def test_that_a_result_before_its_turn_expired_does_not_prove_its_line_over(
    mesh: Mesh, settings: Settings, office: Office
) -> None:
    async with office.open(settings):
        await submit(mesh, "first", waits=True)
        second = await submit(mesh, "second")
        await parked(mesh, second)
        await second.cancel()
        await second.outcome(within_s=WITHIN_S)
        await eventually(lambda: mark(mesh), within_s=WITHIN_S)
        await forget(mesh, mesh.bus.subjects.result(second.task))
        await forget(mesh, mesh.bus.subjects.park(second.task))

        third = await submit(mesh, "third")
        await parked(mesh, third)

        assert third.id == LINE.at(3).id
        assert office.began == ["first"]
        office.gates["first"].set()


# Idempotency keys.


async def test_a_key_is_one_of_its_line_and_starts_once(mesh: Mesh, settings: Settings, office: Office) -> None:
    async with office.open(settings), Mesh.connect(settings=settings) as other:
        first = await submit(mesh, "first", key="k", waits=True)
        follower = await submit(mesh, "follower", key="f")
        elsewhere = await submit(mesh, "elsewhere", order_key="account-7", key="k")
        await parked(mesh, follower)

        again = [await submit(client, "first", key="k", waits=True) for client in (mesh, other)]
        waiting = await submit(other, "follower", key="f")
        with pytest.raises(IdempotencyConflict):
            await submit(other, "another", key="k")
        office.gates["first"].set()
        await follower.result(within_s=WITHIN_S)
        after = await submit(other, "first", key="k", waits=True)

        assert [handle.is_new for handle in (first, follower, elsewhere)] == [True, True, True]
        assert {(handle.id, handle.is_new) for handle in (*again, after)} == {(first.id, False)}
        assert (waiting.id, waiting.is_new) == (follower.id, False)
        assert elsewhere.id == "account-7.~~1"
        assert await after.result(within_s=WITHIN_S) == "first"
    assert sorted(office.began) == ["elsewhere", "first", "follower"]


async def test_many_submitters_of_one_key_start_it_once(mesh: Mesh, settings: Settings, office: Office) -> None:
    async with office.open(settings), Mesh.connect(settings=settings) as other:
        async with asyncio.TaskGroup() as calls:
            same = [calls.create_task(submit(client, "same", key="k")) for client in (mesh, other) * 5]
            more = [calls.create_task(submit(client, "more")) for client in (mesh, other) * 5]
        for call in (*same, *more):
            await call.result().result(within_s=WITHIN_S)

    assert len({call.result().id for call in same}) == 1
    assert sum(call.result().is_new for call in same) == 1
    assert sorted(office.began) == [*["more"] * 10, "same"]


@pytest.mark.parametrize("is_taken", [False, True])
async def test_a_place_that_a_dead_submitter_left_is_taken_up_or_given_up(
    mesh: Mesh, settings: Settings, office: Office, is_taken: bool
) -> None:
    subjects = mesh.bus.subjects
    await submit(mesh, "before")
    await mesh.bus.store(subjects.place(LINE, "k"), wire.encode(LinePlace(position=2)))
    if is_taken:
        await submit(mesh, "another")

    handle = await submit(mesh, "kept", key="k")
    again = await submit(mesh, "kept", key="k")

    assert (handle.id, handle.is_new) == (LINE.at(3 if is_taken else 2).id, True)
    assert (again.id, again.is_new) == (handle.id, False)
    async with office.open(settings):
        await handle.result(within_s=WITHIN_S)


async def test_a_key_deep_in_a_line_is_found_by_who_knows_little_of_it(mesh: Mesh) -> None:
    for number in range(10):
        await submit(mesh, f"{number}")
    kept = await submit(mesh, "kept", key="k")
    mesh._places._end(LINE).learn(3)

    again = await submit(mesh, "kept", key="k")

    assert (again.id, again.is_new) == (kept.id, False)


async def test_a_place_far_behind_the_end_of_a_line_makes_no_gap(mesh: Mesh) -> None:
    await mesh.bus.store(mesh.bus.subjects.place(LINE, "k"), wire.encode(LinePlace(position=17)))

    assert (await submit(mesh, "kept", key="k")).id == LINE.at(1).id


async def test_a_submission_whose_answer_was_lost_finds_itself(
    mesh: Mesh, settings: Settings, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    await submit(mesh, "before")
    store, lost = mesh.bus.store, []

    async def lose_the_answer(subject: str, data: bytes, headers: Headers | None = None) -> int:
        sequence = await store(subject, data, headers)
        if not lost and subject == mesh.bus.subjects.task(LINE.at(2)):
            lost.append(sequence)
            async with Mesh.connect(settings=settings) as other:
                await submit(other, "between")
            raise PublishUnconfirmed("no answer")
        return sequence

    monkeypatch.setattr(mesh.bus, "store", lose_the_answer)
    handle = await submit(mesh, "lost")

    assert lost
    assert (handle.id, handle.is_new) == (LINE.at(2).id, True)
    async with office.open(settings):
        await (await submit(mesh, "after")).result(within_s=WITHIN_S)
    assert office.began == ["before", "lost", "between", "after"]


# Where a line ends.


async def test_a_client_that_knows_nothing_or_too_little_of_a_line_finds_its_end(
    mesh: Mesh, settings: Settings, office: Office
) -> None:
    async with office.open(settings):
        await submit(mesh, "first", waits=True)
        for number in range(40):
            await submit(mesh, f"{number}")

        async with Mesh.connect(settings=settings) as other:
            found = await submit(other, "found")
        mesh._places._end(LINE).learn(3)
        late = await submit(mesh, "late")

        assert (found.id, late.id) == (LINE.at(42).id, LINE.at(43).id)
        office.gates["first"].set()
        await late.result(within_s=WITHIN_S)
        await settled(mesh)
        assert await mark(mesh) == LineMark(used=43, over=43)


async def test_a_line_whose_mark_is_lost_or_behind_goes_on_in_order(
    mesh: Mesh, settings: Settings, office: Office
) -> None:
    subjects = mesh.bus.subjects
    async with office.open(settings):
        for number in range(5):
            await (await submit(mesh, f"{number}")).result(within_s=WITHIN_S)
        await settled(mesh)
        await forget(mesh, subjects.line(LINE), subjects.line_stream)
        async with Mesh.connect(settings=settings) as other:
            sixth = await submit(other, "5")
            await sixth.result(within_s=WITHIN_S)
        await settled(mesh)
        assert await mark(mesh) == LineMark(used=6, over=6)

        await mesh.bus.store(subjects.line(LINE), wire.encode(LineMark(used=2, over=2)))
        async with Mesh.connect(settings=settings) as other:
            seventh = await submit(other, "6")
            await seventh.result(within_s=WITHIN_S)

    assert (sixth.id, seventh.id) == (LINE.at(6).id, LINE.at(7).id)
    assert office.began == [f"{number}" for number in range(7)]


async def test_a_line_whose_mark_and_first_results_are_gone_is_not_begun_anew(
    mesh: Mesh, settings: Settings, office: Office
) -> None:
    subjects = mesh.bus.subjects
    async with office.open(settings):
        handles = [await submit(mesh, f"{number}") for number in range(3)]
        await handles[-1].result(within_s=WITHIN_S)
        await settled(mesh)
        now = await submit(mesh, "now", waits=True)
        for handle in handles:
            await forget(mesh, subjects.result(handle.task))
        await forget(mesh, subjects.line(LINE), subjects.line_stream)

        async with Mesh.connect(settings=settings) as other:
            after = await submit(other, "after")
        await parked(mesh, after)

        assert (now.id, after.id) == (LINE.at(4).id, LINE.at(5).id)
        office.gates["now"].set()
        assert await mesh.handle("work", after.id).result(within_s=WITHIN_S) == "after"


async def test_a_line_all_of_whose_results_expired_goes_on_after_its_mark(
    mesh: Mesh, settings: Settings, office: Office
) -> None:
    subjects = mesh.bus.subjects
    async with office.open(settings):
        handles = [await submit(mesh, f"{number}") for number in range(3)]
        await handles[-1].result(within_s=WITHIN_S)
        await settled(mesh)
        for handle in handles:
            await forget(mesh, subjects.result(handle.task))

        async with Mesh.connect(settings=settings) as other:
            fourth = await submit(other, "3")
            assert await fourth.result(within_s=WITHIN_S) == "3"
            assert fourth.id == LINE.at(4).id


async def test_a_mark_that_cannot_be_read_is_written_anew(mesh: Mesh, settings: Settings, office: Office) -> None:
    await mesh.bus.store(mesh.bus.subjects.line(LINE), b"nonsense")
    async with office.open(settings):
        for number in range(2):
            await (await submit(mesh, f"{number}")).result(within_s=WITHIN_S)

        await settled(mesh)
        assert await mark(mesh) == LineMark(used=2, over=2)


async def test_a_line_of_which_nothing_is_kept_begins_anew(mesh: Mesh, settings: Settings, office: Office) -> None:
    subjects = mesh.bus.subjects
    async with office.open(settings):
        first = await submit(mesh, "first")
        await first.result(within_s=WITHIN_S)
        await settled(mesh)
        await forget(mesh, subjects.result(first.task))
        await forget(mesh, subjects.line(LINE), subjects.line_stream)

        async with Mesh.connect(settings=settings) as other:
            anew = await submit(other, "anew")
            assert (anew.id, await anew.result(within_s=WITHIN_S)) == (first.id, "anew")


async def test_a_task_put_where_its_line_was_long_ago_is_not_run(
    mesh: Mesh, settings: Settings, office: Office
) -> None:
    subjects = mesh.bus.subjects
    async with office.open(settings):
        handles = [await submit(mesh, f"{number}") for number in range(3)]
        await handles[-1].result(within_s=WITHIN_S)
        await settled(mesh)
        await submit(mesh, "now", waits=True)
        for handle in handles:
            await forget(mesh, subjects.result(handle.task))

        # A submitter that was frozen for longer than results are kept.
        mesh._places._end(LINE).learn(1)
        stale = await submit(mesh, "stale")

        with pytest.raises(TaskFailed) as told:
            await stale.result(within_s=WITHIN_S)
        assert stale.id == LINE.at(2).id
        assert told.value.outcome.failure is not None
        assert told.value.outcome.failure.kind is FailureKind.TOO_OLD
    assert "stale" not in office.began


# What does not belong into a line, and what leaves it.


@pytest.mark.parametrize("order_key", ["", "two words", "a.b", "a>", "*", "~x", "x" * 513])
async def test_an_illegal_order_key_is_refused_by_its_name(mesh: Mesh, order_key: str) -> None:
    with pytest.raises(ContractError, match="order_key"):
        await mesh.submit("work", Job(), order_key=order_key)


async def test_a_raw_publisher_gets_no_position_and_holds_up_nobody(
    mesh: Mesh, settings: Settings, office: Office
) -> None:
    async with office.open(settings):
        await submit(mesh, "first", waits=True)
        await mesh.bus.store(mesh.bus.subjects.task(LINE.at(2)), b'{"name": "raw"}')
        third = await submit(mesh, "third")
        await parked(mesh, third)
        raw = await mesh.handle("work", LINE.at(2).id).outcome(within_s=WITHIN_S)

        assert raw.failure is not None
        assert (raw.failure.kind, raw.is_early) == (FailureKind.CONTRACT, True)
        assert office.began == ["first"]
        office.gates["first"].set()
        assert await third.result(within_s=WITHIN_S) == "third"


async def test_an_id_that_only_looks_like_a_position_is_an_ordinary_one(
    mesh: Mesh, settings: Settings, office: Office
) -> None:
    async with office.open(settings):
        await submit(mesh, "first", waits=True)
        lookalike = await mesh.submit("work", Job("lookalike"), key="account-42~2")

        assert await lookalike.result(within_s=WITHIN_S) == "lookalike"


async def test_a_redriven_dead_letter_runs_outside_of_its_line(mesh: Mesh, settings: Settings, office: Office) -> None:
    async with office.open(settings):
        failed = await submit(mesh, "failed", ends="failed")
        await failed.outcome(within_s=WITHIN_S)
        letter = await eventually(lambda: read_dead_letter(mesh.bus, failed.task), within_s=WITHIN_S)
        await submit(mesh, "next", waits=True)
        redriven = (await redrive(mesh.bus, letter)).task

        outcome = await mesh.handle("work", redriven.id).outcome(within_s=WITHIN_S)

        assert (outcome.status, outcome.submitted_as) == (Status.FAILED, "")
        assert office.running[LINE.key] == 1


async def test_the_result_of_a_task_in_a_line_says_as_what_it_was_submitted(
    mesh: Mesh, settings: Settings, office: Office
) -> None:
    async with office.open(settings):
        keyed, other = await submit(mesh, "keyed", key="k"), await submit(mesh, "other")

        assert (await keyed.outcome(within_s=WITHIN_S)).submitted_as == "k"
        assert (await other.outcome(within_s=WITHIN_S)).submitted_as.startswith(mesh.session)


async def test_children_of_a_task_in_a_line_wake_it(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("parents")

    @agent.handles("child")
    async def child(number: int) -> int:
        await asyncio.sleep(0.2)
        return number

    @agent.handles("parent")
    async def parent(number: int, ctx: Context) -> int:
        found: int = await ctx.call(child, number)
        return found

    soon = settings.model_copy(update={"hot_wait_s": 0.02, "wake_again_s": 3_600.0})
    async with hosting(agent, settings=soon):
        handles = [await mesh.submit(parent, number, order_key="k") for number in range(3)]

        assert [await handle.result(within_s=WITHIN_S) for handle in handles] == [0, 1, 2]


async def test_a_woken_task_that_runs_is_found_by_whoever_submits_it_again(mesh: Mesh, settings: Settings) -> None:
    agent, gate = Agent("sleeper"), asyncio.Event()

    @agent.handles("sleeper")
    async def sleeper(ctx: Context) -> None:
        await ctx.signal("go")
        await gate.wait()

    async with hosting(agent, settings=settings):
        handle = await mesh.submit(sleeper, key="s-1")
        await eventually(lambda: is_parked(mesh.bus, Identity("sleeper", "s-1")), within_s=WITHIN_S)
        await mesh.signal("sleeper", "s-1", "go")
        await eventually(lambda: topology.queued(mesh.bus, mesh.bus.subjects.wakes_of("sleeper")[0]))

        again = await mesh.submit(sleeper, key="s-1", deadline_s=WITHIN_S)

        assert not again.is_new
        gate.set()
        await handle.result(within_s=WITHIN_S)


async def test_the_command_line_submits_into_a_line(
    command_line: CommandLine, mesh: Mesh, settings: Settings, office: Office
) -> None:
    async with office.open(settings):
        ended = await command_line("submit", "work", '{"name": "a"}', "--order-key", LINE.key, "--json")

        assert (ended.document["id"], ended.document["value"]) == (LINE.at(1).id, "a")
        refused = await command_line("submit", "work", "{}", "--order-key", "a b")
        assert refused.code != 0
        assert "order_key" in refused.err
