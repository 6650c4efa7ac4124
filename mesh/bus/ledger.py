"""Attempts on record: what counts against a task's limit, and what does not.

Delivery counts rise with drains, broker restarts and recreated consumers, so they count nothing here. A
second or later attempt writes a record when it begins; a failure or a clean hand-back writes one when it
ends. What began and neither ended nor left a result was a crash. The first attempt of a task begins without
a record, which keeps the usual path short.
"""

import time
from contextlib import suppress

from contracts import headers as names
from contracts import wire
from contracts.errors import ContractError
from contracts.outcome import AttemptBegan, AttemptEnded
from contracts.subjects import Identity
from mesh.bus.commit import create_once, ttl
from mesh.bus.connection import Bus
from mesh.bus.records import Stored, read_many
from mesh.resilience.retry import Ledger, in_server_time

_FIRST_PAGE = 2
_PAGE = 8


async def read_ledger(bus: Bus, task: Identity, *, is_redelivered: bool) -> Ledger:
    """Everything on record about a task's earlier attempts."""
    began: set[int] = set()
    ended: list[tuple[int, AttemptEnded]] = []
    traced: dict[int, str] = {}
    first, count = 1, _FIRST_PAGE
    while True:
        numbers = range(first, first + count)
        found = await read_many(
            bus, [_subject(bus, task, word, number) for number in numbers for word in ("began", "ended")]
        )
        for number, (start, end) in zip(numbers, zip(found[::2], found[1::2], strict=True), strict=True):
            if start is not None:
                began.add(number)
                traced[number] = _traceparent(start)
            if end is not None:
                ended.append((number, in_server_time(wire.decode(AttemptEnded, end.data), end.stored_at)))
                traced[number] = ended[-1][1].traceparent or traced.get(number, "")
        # Attempts are numbered without gaps, but the first, which may have left no record.
        if found[-1] is None and found[-2] is None:
            runs = tuple((number, told) for number, told in sorted(traced.items()) if told)
            return Ledger(frozenset(began), tuple(ended), is_redelivered, runs)
        first, count = first + count, _PAGE


async def record_began(
    bus: Bus, task: Identity, number: int, *, peer: str, ttl_s: float, traceparent: str = ""
) -> bool:
    """Record that an attempt begins. False: another peer has begun the same one."""
    record = AttemptBegan(peer=peer, at=time.time(), traceparent=traceparent)
    return await create_once(bus, _subject(bus, task, "began", number), wire.encode(record), {names.TTL: ttl(ttl_s)})


async def record_ended(bus: Bus, task: Identity, number: int, end: AttemptEnded, *, ttl_s: float) -> None:
    """Record that an attempt ended without an outcome. Safe to repeat."""
    await create_once(bus, _subject(bus, task, "ended", number), wire.encode(end), {names.TTL: ttl(ttl_s)})


def _traceparent(began: Stored) -> str:
    with suppress(ContractError):
        return wire.decode(AttemptBegan, began.data).traceparent
    return ""


def _subject(bus: Bus, task: Identity, word: str, number: int) -> str:
    return bus.subjects.attempt(task, number, word)
