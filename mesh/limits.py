"""What a handler gets of a resource with a limit, and limits in memory for contexts made by hand."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, Protocol

from contracts.errors import ContractError
from contracts.limit import Limit, check_limit
from contracts.subjects import check_resource
from mesh.errors import Overloaded, Permanent
from mesh.resilience import rate

WITHIN_S: Final = 30.0
TOKENS_MAX: Final = 10**12
NO_SEAT_RETRY_S: Final = 1.0
"""Nobody knows when a seat falls free; who got none asks again so much later at the earliest."""


class Grant:
    """A call's turn. `tokens` is what is booked for it, `waited_s` how long it took to come."""

    def __init__(self, resource: str, tokens: int, waited_s: float, *, correct: Callable[[int], None]) -> None:
        self.resource = resource
        self.tokens = tokens
        self.waited_s = waited_s
        self._correct = correct

    def correct(self, *, tokens: int) -> None:
        """Book what the call really used in place of what was asked for. May be repeated, also after the block.

        What it used less is given back, as far as the bucket has not earned it again by now; what it used more is
        taken, and those after it wait for it. Returns at once: it is booked soon after, or never if the peer dies
        or the server is away for long.

        Raises:
            ContractError: `tokens` is no whole number, or negative.
        """
        check_tokens(tokens)
        unused, self.tokens = self.tokens - tokens, tokens
        if unused:
            self._correct(unused)


class Holds(Protocol):
    """Where a context's turns come from."""

    def hold(self, resource: str, *, tokens: int, within_s: float) -> AbstractAsyncContextManager[Grant]: ...


class MemoryLimits:
    """Limits that only this process knows. Waits for a rate pass at once, unless they would be too long."""

    def __init__(self, limits: Mapping[str, Limit] | None = None) -> None:
        self._limits = {resource: check_limit(limit) for resource, limit in (limits or {}).items()}
        self._seats = {
            resource: asyncio.Semaphore(limit.concurrent)
            for resource, limit in self._limits.items()
            if limit.concurrent is not None
        }
        self._levels: dict[str, rate.Level] = {}

    @asynccontextmanager
    async def hold(self, resource: str, *, tokens: int, within_s: float) -> AsyncIterator[Grant]:
        """Have a turn; see `Context.limit`."""
        check_ask(resource, tokens, within_s)
        limit = self._limits.get(resource)
        if limit is None:
            yield Grant(resource, tokens, 0.0, correct=lambda _: None)
            return
        check_fits(resource, limit, tokens)
        seats = self._seats.get(resource)
        if seats is not None:
            try:
                async with asyncio.timeout(None if math.isinf(within_s) else within_s):
                    await seats.acquire()
            except TimeoutError:
                raise no_seat(resource, within_s) from None
        try:
            correct = self._book(resource, limit, tokens, within_s)
            yield Grant(resource, tokens, 0.0, correct=correct)
        finally:
            if seats is not None:
                seats.release()

    def _book(self, resource: str, limit: Limit, tokens: int, within_s: float) -> Callable[[int], None]:
        price, now = price_of(limit), time.monotonic()
        level = self._levels.get(resource, rate.Level())
        self._levels[resource], (booked,) = rate.book(level, price, [rate.Ask(tokens, now + within_s)], now=now)
        if isinstance(booked, rate.TooLate):
            raise too_late(resource, booked.turn - now, within_s)

        def correct(unused: int) -> None:
            correction = rate.Correction(booked, 0.0, unused * price.token_s)
            self._levels[resource] = rate.correct(self._levels[resource], correction)

        return correct


def price_of(limit: Limit) -> rate.Price:
    """What a call costs under a limit."""
    return rate.Price.of(limit.requests_per_minute, limit.tokens_per_minute, limit.burst_s)


def check_tokens(tokens: int) -> None:
    if type(tokens) is not int:
        raise ContractError(f"tokens is {tokens!r}, not a whole number")
    if not 0 <= tokens <= TOKENS_MAX:
        raise ContractError(f"tokens is {tokens}, outside 0 to {TOKENS_MAX}")


def check_ask(resource: str, tokens: int, within_s: float) -> None:
    """Nothing, if such a turn can be asked for.

    Raises:
        ContractError: the name is illegal, or a number out of bounds.
    """
    check_resource(resource)
    check_tokens(tokens)
    if not within_s >= 0:
        raise ContractError(f"within_s is {within_s:g}, less than 0")


def check_fits(resource: str, limit: Limit, tokens: int) -> None:
    """Nothing, if the resource's bucket can ever hold so many tokens.

    Raises:
        Permanent: it cannot.
    """
    if not price_of(limit).fits(tokens):
        raise Permanent(
            f"{resource}: {tokens} tokens exceed the {limit.tokens_max:g} that its bucket holds when full"
            f" (tokens_per_minute {limit.tokens_per_minute:g}, burst_s {limit.burst_s:g})"
        )


def too_late(resource: str, wait_s: float, within_s: float) -> Overloaded:
    return Overloaded(
        f"{resource}: the next turn comes in {wait_s:.3g} s, later than within_s={within_s:g}", retry_after_s=wait_s
    )


def no_seat(resource: str, within_s: float) -> Overloaded:
    return Overloaded(f"{resource}: no seat within {within_s:g} s", retry_after_s=NO_SEAT_RETRY_S)
