"""Retries on a real server: what is throttled, what is never tried again, and the share that a peer makes."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

import httpx2
import pytest
from prometheus_client import CollectorRegistry
from tenacity.wait import wait_fixed, wait_none, wait_random

from contracts.outcome import FailureKind, Status
from contracts.subjects import Identity
from mesh import Agent, Context, Handle, Mesh, Throttled, Transient
from mesh.bus.ledger import read_ledger
from mesh.runtime import settle
from mesh.settings import Settings
from mesh.testing import eventually, hosting
from mesh.whereabouts import Where, Whereabouts

WITHIN_S = 25.0
log = logging.getLogger("tests.retries")


@dataclass
class Callee:
    """Something that handlers call: it does as it is told, and takes note of when it was called."""

    answers: list[Exception | None]
    calls: list[float] = field(default_factory=list)

    def __call__(self) -> str:
        self.calls.append(time.time())
        answer = self.answers[min(len(self.calls), len(self.answers)) - 1]
        if answer is not None:
            raise answer
        return "done"


def answered(status: int, **headers: str) -> Exception:
    """What an HTTP client raises for a status."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    response = httpx2.Response(
        status, headers=named, request=httpx2.Request("GET", "https://me:pw@callee.test/v1/things?key=secret")
    )
    with pytest.raises(httpx2.HTTPStatusError) as caught:
        response.raise_for_status()
    return caught.value


def caller(callee: Callee, **limits: Any) -> Agent:
    agent = Agent("caller", version="1")

    @agent.handles("ask", **limits)
    async def ask(word: str) -> str:
        return callee()

    return agent


def counted(registry: CollectorRegistry, name: str) -> float:
    return registry.get_sample_value(name, {"capability": "ask"}) or 0.0


async def test_a_throttled_task_comes_again_when_its_callee_says_and_costs_no_attempt(
    mesh: Mesh, settings: Settings
) -> None:
    callee = Callee([*[answered(429, retry_after="1")] * 3, None])

    async with hosting(caller(callee, attempts=2, wait=wait_fixed(600)), settings=settings) as peer:
        handle = await mesh.submit("ask", "x", key="k")
        outcome = await handle.outcome(within_s=WITHIN_S)
        ledger = await read_ledger(mesh.bus, Identity("ask", "k"), is_redelivered=False)
        throttled = counted(peer.metrics.registry, "mesh_throttled_total")
        retried = counted(peer.metrics.registry, "mesh_retries_total")

    waits = [later - earlier for earlier, later in zip(callee.calls, callee.calls[1:], strict=False)]
    assert outcome.status is Status.DONE
    assert outcome.attempt == 4
    assert all(wait >= 1.0 for wait in waits)
    assert (ledger.throttles, ledger.failures) == (3, 0)
    assert (throttled, retried) == (3, 0)


async def test_a_date_to_come_back_at_is_kept_to(mesh: Mesh, settings: Settings) -> None:
    back_at = int(time.time()) + 2
    callee = Callee([answered(503, retry_after=formatdate(back_at, usegmt=True)), None])

    async with hosting(caller(callee, attempts=1, wait=wait_fixed(600)), settings=settings):
        assert await (await mesh.submit("ask", "x")).result(within_s=WITHIN_S) == "done"

    assert callee.calls[1] >= back_at


async def test_a_throttled_task_without_a_time_waits_as_its_capability_does(mesh: Mesh, settings: Settings) -> None:
    callee = Callee([answered(429), Throttled("not now"), None])

    async with hosting(caller(callee, attempts=1, wait=wait_fixed(0.2)), settings=settings):
        assert await (await mesh.submit("ask", "x")).result(within_s=WITHIN_S) == "done"

    assert callee.calls[1] - callee.calls[0] >= 0.2


async def test_status_says_until_when_a_task_is_throttled(mesh: Mesh, settings: Settings) -> None:
    callee = Callee([answered(429, retry_after="30")])

    async with hosting(caller(callee), settings=settings):
        handle = await mesh.submit("ask", "x")
        await eventually(lambda: callee.calls)
        found = await eventually(lambda: is_at(handle, Where.RETRYING))
        await handle.cancel()

    assert found.until is not None
    assert 29 < found.until - callee.calls[0] < 35
    assert found.detail.startswith("429 Too Many Requests from https://callee.test/v1/things")
    assert "secret" not in found.detail


async def is_at(handle: Handle[Any], where: Where) -> Whereabouts | None:
    found = await handle.status()
    return found if found.where is where else None


async def test_a_task_that_is_throttled_for_too_long_fails_and_says_so(mesh: Mesh, settings: Settings) -> None:
    callee = Callee([Throttled("not now", after_s=0.2)])

    async with hosting(caller(callee, throttled_for_s=0.7), settings=settings):
        outcome = await (await mesh.submit("ask", "x")).outcome(within_s=WITHIN_S)

    assert outcome.failure is not None
    assert outcome.failure.kind is FailureKind.EXHAUSTED
    assert outcome.failure.message.startswith("not now; throttled ")
    assert "its limit is 0.7 s in all (throttled_for_s)" in outcome.failure.message
    assert 2 <= len(callee.calls) <= 4


async def test_a_callee_that_says_tomorrow_ends_the_task_at_once(mesh: Mesh, settings: Settings) -> None:
    callee = Callee([answered(429, retry_after="86400")])

    async with hosting(caller(callee), settings=settings):
        outcome = await (await mesh.submit("ask", "x")).outcome(within_s=WITHIN_S)

    assert outcome.failure is not None
    assert outcome.failure.kind is FailureKind.EXHAUSTED
    assert "its limit is 3600 s in all" in outcome.failure.message
    assert len(callee.calls) == 1


async def test_a_throttled_task_is_expired_where_its_callee_says_after_its_deadline(
    mesh: Mesh, settings: Settings
) -> None:
    callee = Callee([answered(429, retry_after="60")])

    async with hosting(caller(callee), settings=settings):
        outcome = await (await mesh.submit("ask", "x", deadline_s=20)).outcome(within_s=WITHIN_S)

    assert outcome.status is Status.EXPIRED
    assert outcome.failure is not None
    assert "429" in outcome.failure.message


async def test_throttles_and_failures_are_counted_apart(mesh: Mesh, settings: Settings) -> None:
    throttled, failed = Throttled("not now", after_s=0.0), Transient("broken", after_s=0.0)
    callee = Callee([throttled, failed, throttled, throttled, failed])

    async with hosting(caller(callee, attempts=2), settings=settings):
        outcome = await (await mesh.submit("ask", "x")).outcome(within_s=WITHIN_S)

    assert outcome.failure is not None
    assert (outcome.failure.kind, outcome.failure.attempts) == (FailureKind.EXHAUSTED, 2)
    assert outcome.failure.message == "broken"
    assert len(callee.calls) == 5


async def test_what_a_callee_refuses_is_not_asked_again_and_the_failure_names_it(
    mesh: Mesh, settings: Settings
) -> None:
    callee = Callee([answered(422)])

    async with hosting(caller(callee), settings=settings):
        outcome = await (await mesh.submit("ask", "x")).outcome(within_s=WITHIN_S)

    assert outcome.failure is not None
    assert outcome.failure.kind is FailureKind.PERMANENT
    assert outcome.failure.message.startswith("422 Unprocessable ")
    assert "from https://callee.test/v1/things: " in outcome.failure.message
    assert "secret" not in outcome.failure.message
    assert "pw" not in outcome.failure.message
    assert len(callee.calls) == 1


class NoSuchThingError(LookupError):
    """An author's own."""


async def test_an_author_names_what_no_attempt_can_mend(mesh: Mesh, settings: Settings) -> None:
    refused = Callee([NoSuchThingError("no thing of that name")])
    allowed = Callee([answered(404), None])

    async with hosting(caller(refused, permanent=(LookupError,)), settings=settings):
        outcome = await (await mesh.submit("ask", "x")).outcome(within_s=WITHIN_S)
    async with hosting(caller(allowed, transient=(httpx2.HTTPError,), wait=wait_none()), settings=settings):
        value = await (await mesh.submit("ask", "x")).result(within_s=WITHIN_S)

    assert outcome.failure is not None
    assert (outcome.failure.kind, outcome.failure.error) == (FailureKind.PERMANENT, "NoSuchThingError")
    assert len(refused.calls) == 1
    assert value == "done"


async def test_of_several_failures_in_a_group_one_that_is_throttled_says_when(mesh: Mesh, settings: Settings) -> None:
    group = ExceptionGroup("both", [ValueError("x"), ExceptionGroup("in", [answered(429, retry_after="1")])])
    callee = Callee([group, None])

    async with hosting(caller(callee, attempts=1), settings=settings):
        assert await (await mesh.submit("ask", "x")).result(within_s=WITHIN_S) == "done"

    assert callee.calls[1] - callee.calls[0] >= 1.0


async def test_undoing_that_is_throttled_goes_on_when_the_callee_says(mesh: Mesh, settings: Settings) -> None:
    agent, undone = Agent("saga", version="1"), Callee([*[Throttled("not now", after_s=0.1)] * 4, None])

    @agent.handles("book", attempts=1)
    async def book(word: str, ctx: Context) -> str:
        async def undo() -> None:
            undone()

        await ctx.step("reserve", lambda: "seat")
        await ctx.compensate(undo)
        raise answered(400)

    async with hosting(agent, settings=settings):
        outcome = await (await mesh.submit("book", "x")).outcome(within_s=WITHIN_S)

    assert outcome.failure is not None
    assert outcome.failure.message.startswith("400 Bad Request")
    assert "not all of it is undone" not in outcome.failure.message
    assert len(undone.calls) == 5


@dataclass
class Dependency:
    """What all tasks of an outage need: down for a while from its first call, and called far too often meanwhile."""

    down_s: float
    calls: list[float] = field(default_factory=list)

    async def call(self) -> str:
        now = time.monotonic()
        self.calls.append(now)
        if now < self.calls[0] + self.down_s:
            raise ConnectionRefusedError("the dependency is down")
        return "served"

    @property
    def calls_while_down(self) -> int:
        return sum(call < self.calls[0] + self.down_s for call in self.calls)


async def outage(
    settings: Settings, *, tasks: int, down_s: float, wait_s: float
) -> tuple[Dependency, list[object], float]:
    """Tasks that all need a dependency which is down: it, what they came to, and the retries that were delayed."""
    dependency, agent = Dependency(down_s), Agent("needy", version="1")

    @agent.handles("ask", attempts=50, concurrency=64, wait=wait_fixed(wait_s) + wait_random(0, wait_s))
    async def ask(number: int) -> str:
        return await dependency.call()

    async with Mesh.connect(settings=settings) as mesh, hosting(agent, settings=settings) as peer:
        came = [item.value async for item in mesh.map("ask", range(tasks), in_flight=tasks)]
        return dependency, came, counted(peer.metrics.registry, "mesh_retries_delayed_total")


async def test_retries_past_the_budget_are_delayed_and_none_is_dropped(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("needy", version="1")

    @agent.handles("ask", concurrency=64, wait=wait_none())
    async def ask(number: int, ctx: Context) -> int:
        if ctx.attempt == 1:
            raise Transient("the dependency is down")
        return number

    async with hosting(agent, settings=settings) as peer:
        came = [item.value async for item in mesh.map("ask", range(100), in_flight=100, ordered=True)]
        delayed = counted(peer.metrics.registry, "mesh_retries_delayed_total")

    assert came == list(range(100))
    # Not delayed are five a second for ten seconds, a fifth of the tasks, and what comes in meanwhile.
    assert 5 <= delayed <= 50


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_in_an_outage_retries_stay_a_share_of_the_traffic(
    settings: Settings, record_property: Callable[[str, object], None]
) -> None:
    tasks, down_s = 1_000, 5.0
    unbounded = settings.model_copy(update={"retry_share": 1_000.0, "prefix": f"{settings.prefix}b"})

    bounded, came, delayed = await outage(settings, tasks=tasks, down_s=down_s, wait_s=0.25)
    free, came_free, delayed_free = await outage(unbounded, tasks=tasks, down_s=down_s, wait_s=0.25)

    while_down, while_down_free = bounded.calls_while_down, free.calls_while_down
    for name, value in {
        "calls while down, with the budget": while_down,
        "calls while down, without": while_down_free,
        "calls in all, with the budget": len(bounded.calls),
        "calls in all, without": len(free.calls),
        "retries delayed": delayed,
        "seconds until the last, with the budget": round(bounded.calls[-1] - bounded.calls[0], 1),
        "seconds until the last, without": round(free.calls[-1] - free.calls[0], 1),
    }.items():
        record_property(name, value)
        log.warning("%s: %g", name, value)
    assert came == came_free == ["served"] * tasks
    assert delayed_free == 0
    # Each task once, a fifth of that and five a second again; what is delayed meanwhile may be as much again.
    assert while_down <= tasks * (1 + 2 * 0.2 * (1 + down_s / 10)) + 2 * 5 * (10 + down_s)
    assert while_down_free > 2 * while_down


async def test_a_wait_that_parks_takes_no_retry(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("patient", version="1")

    @agent.handles("ask", concurrency=64)
    async def ask(number: int, ctx: Context) -> str:
        told: str = await ctx.signal("go")
        return told

    parking = settings.model_copy(update={"hot_wait_s": 0.0, "retry_share": 0.0})
    async with hosting(agent, settings=parking) as peer:
        for number in range(60):
            await mesh.submit("ask", number, key=f"k{number}")
        await eventually(lambda: counted(peer.metrics.registry, "mesh_parks_total") == 60)

        assert peer.host.retries.take(time.monotonic()) == 0.0


async def test_an_author_may_say_that_an_attempt_past_its_timeout_is_the_last(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("late", version="1")

    @agent.handles("ask", timeout_s=0.1, permanent=(TimeoutError,))
    async def ask(number: int) -> None:
        await asyncio.Event().wait()

    async with hosting(agent, settings=settings):
        outcome = await (await mesh.submit("ask", 1)).outcome(within_s=WITHIN_S)

    assert outcome.failure is not None
    assert (outcome.failure.kind, outcome.attempt) == (FailureKind.PERMANENT, 1)
    assert outcome.failure.message == "no result within 0.1 s"


async def test_a_delay_of_the_budget_does_not_end_a_task_that_has_time(mesh: Mesh, settings: Settings) -> None:
    agent, calls = Agent("needy", version="1"), dict[int, int]()

    @agent.handles("ask", attempts=3, wait=wait_none(), concurrency=64)
    async def ask(number: int) -> int:
        calls[number] = calls.get(number, 0) + 1
        if calls[number] == 1:
            raise ConnectionRefusedError("once")
        return number

    async with hosting(agent, settings=settings.model_copy(update={"retry_share": 0.0})):
        handles = [await mesh.submit("ask", number, deadline_s=8) for number in range(120)]
        values = await asyncio.gather(*(handle.result(within_s=WITHIN_S) for handle in handles))

    assert values == list(range(120))


async def test_a_clock_put_right_while_an_attempt_is_recorded_puts_no_retry_off(
    mesh: Mesh, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, runs = Agent("clocked"), 0
    right, ahead_s = time.time, 0.0
    record = settle.record_ended

    @agent.handles("flaky", wait=wait_none())
    async def flaky(text: str) -> str:
        nonlocal ahead_s, runs
        runs += 1
        if runs == 1:
            ahead_s = 7_200.0
            raise Transient("once")
        return text

    async def recorded(*given: Any, **more: Any) -> None:
        nonlocal ahead_s
        await record(*given, **more)
        ahead_s = 0.0

    monkeypatch.setattr(time, "time", lambda: right() + ahead_s)
    monkeypatch.setattr(settle, "record_ended", recorded)
    async with hosting(agent, settings=settings):
        assert await (await mesh.submit(flaky, "soon")).result(within_s=15) == "soon"

    assert runs == 2
