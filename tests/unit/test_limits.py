"""Limits on contexts made by hand, and what cannot be asked for or declared."""

import asyncio
from typing import Any

import pytest

from contracts.errors import ContractError
from contracts.limit import Bucket, Holding, Limit, Rate, Seats
from contracts.subjects import Identity
from mesh import Agent, BlockingContext, Context, Overloaded, Permanent
from mesh.cli.limits import told, use_of
from mesh.errors import SetupError
from mesh.limits import Grant

TASK = Identity("ask", "k1")


def context(**limit: Any) -> Context:
    return Context(TASK, limits={"llm": Limit(**limit)} if limit else None)


async def test_without_limits_a_context_made_by_hand_limits_nothing() -> None:
    ctx = context()

    async with ctx.limit("llm", tokens=10**9) as one, ctx.limit("llm") as other:
        assert (one.tokens, one.waited_s, other.tokens) == (10**9, 0.0, 0)
        one.correct(tokens=3)
        assert one.tokens == 3


async def test_a_context_made_by_hand_counts_seats() -> None:
    ctx = context(concurrent=1)

    async with ctx.limit("llm"):
        with pytest.raises(Overloaded, match="llm: no seat within 0 s") as refused:
            async with ctx.limit("llm", within_s=0):
                pass
        async with ctx.limit("another"):
            pass
    async with ctx.limit("llm", within_s=0):
        pass

    assert refused.value.retry_after_s > 0


async def test_who_waits_in_memory_has_the_seat_when_it_is_free() -> None:
    ctx, order = context(concurrent=1), []

    async def visit(number: int) -> None:
        async with ctx.limit("llm"):
            order.append(number)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as visits:
        for number in range(5):
            visits.create_task(visit(number))

    assert order == [0, 1, 2, 3, 4]


async def test_a_context_made_by_hand_books_a_rate_and_passes_short_waits() -> None:
    ctx = context(tokens_per_minute=60)

    async with ctx.limit("llm", tokens=60) as grant:
        pass
    with pytest.raises(Overloaded, match=r"the next turn comes in .* later than within_s=5"):
        async with ctx.limit("llm", tokens=30, within_s=5):
            pass
    grant.correct(tokens=0)
    async with ctx.limit("llm", tokens=30, within_s=5):
        pass
    async with ctx.limit("llm", tokens=34, within_s=5):
        pass


async def test_more_than_a_full_bucket_holds_is_refused_for_good() -> None:
    ctx = context(tokens_per_minute=600, burst_s=6)

    with pytest.raises(Permanent, match=r"llm: 61 tokens exceed the 60 that its bucket holds when full"):
        async with ctx.limit("llm", tokens=61):
            pass


def test_a_plain_handlers_context_made_by_hand_limits_too() -> None:
    ctx = BlockingContext(TASK, limits={"llm": Limit(concurrent=1, tokens_per_minute=60)})

    for _ in range(2):
        with ctx.limit("llm", tokens=60) as grant:
            grant.correct(tokens=0)
    with pytest.raises(RuntimeError, match="mine"), ctx.limit("llm"):
        raise RuntimeError("mine")
    with ctx.limit("llm"), pytest.raises(Overloaded), ctx.limit("llm", within_s=0):
        pass


@pytest.mark.parametrize(
    ("resource", "asked", "why"),
    [
        ("open.ai", {}, "resource 'open.ai' must be letters"),
        ("", {}, "resource '' must be letters"),
        ("x" * 64, {}, "resource of 64 characters exceeds 63"),
        ("llm", {"tokens": -1}, "tokens is -1, outside 0 to"),
        ("llm", {"tokens": 1.5}, "tokens is 1.5, not a whole number"),
        ("llm", {"within_s": -1}, "within_s is -1, less than 0"),
        ("llm", {"within_s": float("nan")}, "within_s is nan, less than 0"),
    ],
)
async def test_what_cannot_be_asked_for_says_why(resource: str, asked: dict[str, Any], why: str) -> None:
    with pytest.raises(ContractError, match=why):
        async with context().limit(resource, **asked):
            pass


def test_a_correction_is_a_whole_number_from_0() -> None:
    grant = Grant("llm", 10, 0.0, correct=lambda _: None)

    with pytest.raises(ContractError, match="tokens is -3"):
        grant.correct(tokens=-3)

    assert grant.tokens == 10


@pytest.mark.parametrize(
    ("resource", "limit", "why"),
    [
        ("open ai", {"concurrent": 1}, "resource 'open ai' must be letters"),
        ("llm", {}, "limit 'llm': a limit needs one of concurrent"),
        ("llm", {"concurrent": 2.5}, "concurrent is 2.5, not a whole number"),
        ("llm", {"tokens_per_minute": 0}, "tokens_per_minute is 0, outside 0.001 to"),
        ("llm", {"requests_per_minute": "many"}, "requests_per_minute is 'many', outside"),
    ],
)
def test_a_limit_that_cannot_be_kept_cannot_be_declared(resource: str, limit: dict[str, Any], why: str) -> None:
    with pytest.raises(SetupError, match=why):
        Agent("a").limit(resource, **limit)


def test_one_agent_declares_a_limit_once() -> None:
    agent = Agent("a")
    agent.limit("llm", concurrent=1)
    agent.limit("llm", concurrent=1)

    with pytest.raises(SetupError, match="agent 'a' limits 'llm' twice"):
        agent.limit("llm", concurrent=2)


def test_what_is_in_use_is_told_as_of_now() -> None:
    limit = Limit(concurrent=4, requests_per_minute=60, tokens_per_minute=600)
    seats = Seats(
        holdings={
            "a": Holding(seats=2, wants=1, until=110.0),
            "b": Holding(seats=1, until=101.0),
            "dead": Holding(seats=1, until=99.0),
        }
    )
    rate = Rate(requests=Bucket(until=130.0), tokens=Bucket(until=150.0, fresh=1.0), turn=103.0)

    use = use_of("llm", limit, True, seats, rate, 95.0, 100.0)

    assert use.seats == {"a": 2, "b": 1}
    assert use.waiting == 1
    assert use.requests == pytest.approx(30.0)
    assert use.tokens == pytest.approx(100.0)
    assert use.next_in_s == pytest.approx(3.0)
    assert told(limit) == "4 at once, 60 requests/min, 600 tokens/min"
