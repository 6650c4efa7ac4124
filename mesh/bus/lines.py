"""Lines: tasks that share an order key run one at a time, in the order in which the stream accepted them.

A task's position in its line is part of its id, and the positions of a line have no gaps. So whoever has the task at
n knows which one comes before it, and asks the records whether that is over. Rules:

- A position is given to a task by a guarded publish, and only once the position before it was given to another; see
  `mesh.bus.places`.
- It is a task's turn when every task before it is over: its result stands, or it stands in no state at all, having
  ended so long ago that its result expired. That it stands in no state is asked of the stream's leader.
- A task may end before its turn, cancelled or expired. Its result says so, and then proves nothing of those before it:
  whoever looks back looks past it.
- What waits for its turn is parked, whatever its capability. Who parks looks once more after the park is written, and
  who ends a task asks the leader for the next one's park after the result is written. So one of the two sees the other.
- Who ends a task, or finds it ended, wakes the next one that has no result, then raises the line's mark, then acks.
- The mark says up to where positions were given and tasks are over. It outlives results, so that looking back ends, and
  a position whose result expired is not taken for a free one.
"""

import asyncio
from dataclasses import dataclass
from typing import Final

from contracts import headers as names
from contracts import wire
from contracts.errors import ContractError, NewerFormat
from contracts.line import LineMark
from contracts.subjects import Identity, Line, in_line
from mesh.bus.commit import create_once, read_outcome, ttl
from mesh.bus.connection import Bus
from mesh.bus.leader import read_at_leader, standing
from mesh.bus.parks import is_parked, publish_wake, wake
from mesh.bus.records import Stored, read
from mesh.settings import Settings

MARK_S_MIN: Final = 30 * 86_400.0
"""How long a line's mark is kept, from the last task that ended, and at least twice as long as any result in it."""
RESULT_S_MIN: Final = 600.0
"""How long a result in a line is kept at least: a submitter relies on what it knows of a line for a tenth of it."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A line's mark as it was read, all 0 where there is none."""

    used: int = 0
    over: int = 0
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Turn:
    """Whether it is a task's turn in its line."""

    mark: Mark
    behind: Identity | None = None
    """The task before it that is not over; None when it is its turn."""
    is_passed: bool = False
    """The line has gone past the position: a task there was over before, and its result has expired."""


async def turn(bus: Bus, line: Line, position: int) -> Turn:
    """Whether it is the turn of the task at a position. Waits for ever where nobody answers.

    Raises:
        NewerFormat: the line's mark, or a result before it, is of a newer format.
    """
    before = position - 1
    async with asyncio.TaskGroup() as reading:
        asked = reading.create_task(_read_mark(bus, line))
        result = await read(bus, bus.subjects.result(line.at(before))) if before else None
    mark = _mark(asked.result())
    if mark.over >= position:
        return Turn(mark, is_passed=True)
    while before > mark.over:
        task = line.at(before)
        result = result or await read(bus, bus.subjects.result(task))
        if result is None and await standing(bus, task, bus.subjects.any_state(task)):
            # Asked last: what is said here holds the longest, and whoever commits from now on finds the park.
            result = await read_at_leader(bus, task, bus.subjects.result(task))
            if result is None:
                return Turn(mark, behind=task)
        if result is not None and not _is_early(result):
            break
        before, result = before - 1, None
    return Turn(mark)


async def read_mark(bus: Bus, line: Line) -> Mark:
    """How far a line has come. On a replica that lags it may be behind.

    Raises:
        NewerFormat: the mark is of a newer format.
    """
    return _mark(await _read_mark(bus, line))


async def pass_on(bus: Bus, task: Identity, *, is_early: bool, mark: Mark | None, ttl_s: float) -> None:
    """Let a line go on once a task of it has its result. Safe to repeat; nothing for a task in no line.

    `mark` is what is known of it, `ttl_s` how long it is kept.

    Raises:
        PublishRejected: the server refuses a wake or the mark for good.
    """
    if (found := in_line(task)) is None:
        return
    line, position = found
    try:
        mark = await read_mark(bus, line) if mark is None else mark
        if mark.over < position:
            await wake_next(bus, task)
            await _raise(bus, line, mark, used=position, over=0 if is_early else position, ttl_s=ttl_s)
    except NewerFormat:
        # A newer peer raises it, and whoever is next may have to do without.
        await wake_next(bus, task)


async def wake_next(bus: Bus, task: Identity) -> None:
    """Wake the next task of a line that has no result, if it is parked; what is not looks for itself."""
    found = in_line(task)
    while found is not None:
        line, position = found
        after = line.at(position + 1)
        has_park = await is_parked(bus, after)
        if has_park and await publish_wake(bus, after):
            return
        if not await standing(bus, after, bus.subjects.result(after)):
            if has_park:
                await wake(bus, after)
            return
        found = in_line(after)


def mark_ttl_s(settings: Settings, result_ttl_s: float) -> float:
    """How long a line's mark is kept, in seconds, where a result is kept for `result_ttl_s`."""
    return max(MARK_S_MIN, 4 * settings.workflow_ttl_s, 2 * settings.result_ttl_s, 2 * result_ttl_s)


async def _raise(bus: Bus, line: Line, mark: Mark, *, used: int, over: int, ttl_s: float) -> None:
    while mark.used < used or mark.over < over:
        record = LineMark(used=max(mark.used, used), over=max(mark.over, over))
        unchanged = {names.EXPECTED_SUBJECT_SEQUENCE: str(mark.sequence)}
        data, kept = wire.encode(record), {names.TTL: ttl(ttl_s)}
        if await create_once(bus, bus.subjects.line(line), data, kept, within=unchanged):
            return
        mark = await read_mark(bus, line)


async def _read_mark(bus: Bus, line: Line) -> Stored | None:
    return await read(bus, bus.subjects.line(line), stream=bus.subjects.line_stream)


def _mark(stored: Stored | None) -> Mark:
    if stored is None:
        return Mark()
    try:
        record = wire.decode(LineMark, stored.data)
    except NewerFormat:
        raise
    except ContractError:
        # As good as none: the next task that ends writes it anew.
        return Mark(sequence=stored.sequence)
    return Mark(record.used, record.over, stored.sequence)


def _is_early(result: Stored) -> bool:
    try:
        return read_outcome(result).is_early
    except NewerFormat:
        raise
    except ContractError:
        # It is over, and proves no more than that.
        return True
