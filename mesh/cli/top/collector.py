"""Keeps the facts of `mesh top`: what peers say by themselves is heard, the rest is asked for now and then.

What it costs does not grow with tasks. Heard are beats, which peers publish anyway, and events of kinds that are
seldom; asked for is what `mesh.bus.glance` counts, one fiber for each question, each with a time limit. While the
connection is gone nothing is asked; after a reconnection everything is, at once.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Final, TypeVar

from contracts import wire
from contracts.card import Beat
from contracts.errors import ContractError, MeshError
from contracts.event import ROUTINE, Event, EventKind
from contracts.subjects import LANES
from mesh.bus import control, glance, topology
from mesh.bus.connection import Bus, Headers
from mesh.bus.glance import QueueLook, Standing
from mesh.cli.fleet import describe
from mesh.cli.limits import Use, uses_of
from mesh.cli.top.facts import Facts, Letters, Look, Waiting
from mesh.cli.top.model import LOOK_S
from mesh.fibers import serving
from mesh.inbox import Question, read_questions
from mesh.workflow.inbox import unanswered

T = TypeVar("T")

WITHIN_S: Final = 5.0
TICK_S: Final = 0.2
DESCRIBE_S: Final = 120.0
"""How often all peers are asked for their cards, beside when there is a new one."""
DESCRIBE_S_MIN: Final = 5.0
DESCRIBE_WITHIN_S: Final = 0.7
QUESTIONS_READ_MAX: Final = 60
"""Proposals read at one look; the rest is counted."""
QUESTIONS_SHOWN: Final = 30
CAPABILITIES_MAX: Final = 200
LISTED_MAX: Final = 1_000
"""Queued tasks that are listed at each look."""
NAMED_FROM_MAX: Final = 100_000
"""Queued tasks that are listed to name those that nobody ever served."""
SUSPECT_LOOKS: Final = 3
SUSPECT_AGAIN_S: Final = 0.3

WATCHED: Final = frozenset(EventKind) - ROUTINE - {EventKind.DECIDED, EventKind.ESCALATED, EventKind.HANDED_OFF}
"""Kinds of which there is not one for each task."""


class Collector:
    """Asks and listens over one bus, for as long as it is open. `slow` stretches all intervals."""

    def __init__(self, bus: Bus, facts: Facts, *, slow: float = 1.0) -> None:
        self._bus = bus
        self.facts = facts
        self._slow = slow
        self._stirred = {name: asyncio.Event() for name in LOOK_S}
        self._described: set[str] = set()
        self._named: tuple[int, dict[str, int]] = (0, {})
        self._questions: dict[str, Question] = {}

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Keep the facts until left."""
        fibers = [self._keep_looking(name, ask) for name, ask in self._looks().items()]
        async with self.hearing(), serving(self._keep_watch(), self._keep_describing(), *fibers):
            yield

    @asynccontextmanager
    async def hearing(self) -> AsyncIterator[None]:
        """Note what is said by itself, until left."""
        subjects = self._bus.subjects
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._bus.listening(subjects.beats, self._beat))
            for kind in sorted(WATCHED):
                for subject in subjects.events_of(kind):
                    await stack.enter_async_context(self._bus.listening(subject, self._event))
            await stack.enter_async_context(self._bus.listening(subjects.control_echoes, self._controls_changed))
            stack.callback(self._bus.on_reconnect(self._reconnected))
            yield

    async def look_once(self) -> None:
        """Ask for everything once."""
        async with asyncio.TaskGroup() as asking:
            asking.create_task(self._describe())
            for ask in self._looks().values():
                asking.create_task(ask())

    def _looks(self) -> dict[str, Callable[[], Coroutine[Any, Any, None]]]:
        facts = self.facts
        return {
            "queues": lambda: self._ask(facts.queues, self._queues),
            "controls": self._controls,
            "limits": lambda: self._ask(facts.limits, self._limits),
            "letters": lambda: self._ask(facts.letters, self._letters),
            "unserved": lambda: self._ask(facts.unserved, self._unserved),
            "inbox": lambda: self._ask(facts.inbox, self._inbox),
        }

    # What is heard.

    def _beat(self, _: str, data: bytes, __: Headers) -> None:
        for beat in wire.readable(Beat, [data]):
            self.facts.beat_heard(beat, time.monotonic())

    def _event(self, _: str, data: bytes, __: Headers) -> None:
        for event in wire.readable(Event, [data]):
            self.facts.event_heard(event)

    def _controls_changed(self, subject: str, _: bytes, __: Headers) -> None:
        with suppress(ContractError):
            if self._bus.subjects.control_key(subject).partition(".")[0] != "cancel":
                self._stirred["controls"].set()

    def _reconnected(self) -> None:
        self.facts.connection(True, time.monotonic())
        for stirred in self._stirred.values():
            stirred.set()

    # What is asked for.

    async def _keep_watch(self) -> None:
        while True:
            now = time.monotonic()
            self.facts.connection(self._bus.is_connected, now)
            self.facts.forget(now)
            await asyncio.sleep(TICK_S)

    async def _keep_looking(self, name: str, ask: Callable[[], Coroutine[Any, Any, None]]) -> None:
        stirred = self._stirred[name]
        while True:
            await self._bus.until_connected()
            stirred.clear()
            await ask()
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S[name] * self._slow):
                    await stirred.wait()

    async def _keep_describing(self) -> None:
        asked_at = -DESCRIBE_S
        while True:
            await self._bus.until_connected()
            now = time.monotonic()
            is_new = not self.facts.peers.keys() <= self._described
            if now - asked_at > (DESCRIBE_S_MIN if is_new else DESCRIBE_S):
                asked_at = now
                await self._describe()
            await asyncio.sleep(1.0)

    async def _describe(self) -> None:
        # A peer that does not answer is asked again with the next new one.
        asked = set(self.facts.peers)
        with suppress(MeshError, TimeoutError):
            peers = await describe(self._bus, within_s=DESCRIBE_WITHIN_S)
            self.facts.described(peers)
            asked |= {peer.beat.peer for peer in peers}
        self._described = asked

    async def _ask(self, look: Look[T], ask: Callable[[], Awaitable[T]]) -> None:
        try:
            async with asyncio.timeout(WITHIN_S):
                value = await ask()
        except (MeshError, TimeoutError) as error:
            look.error = str(error) or f"no answer within {WITHIN_S:g} s"
        except ExceptionGroup as group:
            look.error = str(group.exceptions[0])
        else:
            look.took(value, time.monotonic())

    async def _queues(self) -> tuple[QueueLook, ...]:
        return await glance.queues(self._bus)

    async def _controls(self) -> None:
        await self._ask(self.facts.pauses, lambda: control.pauses(self._bus))
        await self._ask(self.facts.breakers, lambda: control.breakers(self._bus))

    async def _limits(self) -> list[Use]:
        return await uses_of(self._bus)

    async def _letters(self) -> Letters:
        subjects = self._bus.subjects
        every = await self._standing(subjects.dead_letters_of())
        if not every.count:
            return Letters()
        names = sorted(self._capabilities())[:CAPABILITIES_MAX]
        async with asyncio.TaskGroup() as asking:
            asked = {name: asking.create_task(self._standing(subjects.dead_letters_of(name))) for name in names}
        return Letters(every, {name: one.result() for name, one in asked.items()})

    async def _unserved(self) -> dict[str, int]:
        """Tasks of capabilities without a consumer, by name.

        Few tasks are listed. Of many, what stands in the stream and in no queue is counted in turns, the stream first
        and then the queues first, since tasks come and go in between; only what is left over each time is looked for
        by name, once for each number. So a few that nobody served may be overlooked while many wait.
        """
        if await self._tasks() <= LISTED_MAX:
            return await topology.unserved(self._bus, capabilities_max=CAPABILITIES_MAX)
        for turn in range(SUSPECT_LOOKS):
            left_over, tasks = await self._left_over(is_stream_first=turn % 2 == 0)
            if left_over <= 0:
                return {}
            await asyncio.sleep(SUSPECT_AGAIN_S)
        if left_over != self._named[0]:
            if tasks > NAMED_FROM_MAX:
                found = {"(too many tasks to name it)": left_over}
            else:
                found = await topology.unserved(self._bus, capabilities_max=CAPABILITIES_MAX)
            self._named = (left_over, found)
        return self._named[1]

    async def _left_over(self, *, is_stream_first: bool) -> tuple[int, int]:
        tasks = await self._tasks() if is_stream_first else 0
        in_queues = sum(look.waiting + look.in_hand for look in await glance.queues(self._bus))
        tasks = tasks if is_stream_first else await self._tasks()
        return tasks - in_queues, tasks

    async def _tasks(self) -> int:
        """Tasks and wakes that stand in the stream."""
        subjects = self._bus.subjects
        filters = [subjects.tasks_of(lane=lane) for lane in ("", *LANES)]
        return sum([(await self._standing(one)).count for one in (*filters, *subjects.wakes_of("*"))])

    async def _inbox(self) -> Waiting:
        waiting = {task.id for task in await unanswered(self._bus)}
        known = {task_id: question for task_id, question in self._questions.items() if task_id in waiting}
        oldest = sorted(known, key=lambda task_id: known[task_id].asked_at)[:QUESTIONS_SHOWN]
        # Those that are shown are read again: an answer, or the asker's end, changes them.
        new = sorted(waiting - known.keys())[: QUESTIONS_READ_MAX - len(oldest)]
        read = await read_questions(self._bus, [*oldest, *new])
        known |= {question.task.id: question for question in read}
        self._questions = known
        open_ = sorted((one for one in known.values() if one.is_open), key=lambda one: one.asked_at)
        count = len(waiting) - (len(known) - len(open_))
        return Waiting(count, open_[0].asked_at if open_ else None, tuple(open_[:QUESTIONS_SHOWN]))

    async def _standing(self, filter_subject: str) -> Standing:
        return await glance.standing(self._bus, self._bus.subjects.stream, filter_subject)

    def _capabilities(self) -> set[str]:
        beats = (heard.beat.load for heard in self.facts.peers.values())
        return {look.capability for look in self.facts.queues.value}.union(*beats)


# What is asked for by hand.


async def trace_lines(bus: Bus, named: str, *, limit: int = 300) -> list[str]:
    """The tree of a task, named as CAPABILITY/ID, as lines."""
    from mesh.cli.console import identity
    from mesh.cli.trace import lines
    from mesh.cli.view import hidden, view
    from mesh.whereabouts import trace

    async def read() -> list[str]:
        tree = await trace(bus, identity(named, None))
        if tree is None:
            return [f"nothing of {named} is kept: it was never submitted, or its result has expired"]
        shown = view(tree, limit=limit)
        more = hidden(shown)
        return [*lines(shown, time.time()), *([f"{more:,} tasks and steps are left out"] if more else [])]

    return await _told(read())


async def letter_lines(bus: Bus, capability: str, *, most: int = 20) -> list[str]:
    """The oldest dead letters of a capability, as lines."""
    from mesh.bus.dead_letters import dead_letters
    from mesh.cli.console import clock, one_line

    async def read() -> list[str]:
        found: list[str] = []
        async for letter in dead_letters(bus, capability, up_to=2**62):
            told = f"{letter.failure.kind}: {one_line(letter.failure.message, 120)}"
            found += [f"{letter.task}   {clock(letter.buried_at)}", f"    {told}"]
            if len(found) >= 2 * most:
                return [*found, "...", "`mesh dead ls` lists all of them"]
        return found or ["none is left"]

    return await _told(read())


async def order(bus: Bus, what: str, name: str, *, by: str) -> str:
    """Carry an order out: `pause`, `resume`, `open` or `close`; what came of it, in words."""
    from contracts.control import BreakerChange

    async def given() -> list[str]:
        match what:
            case "pause":
                await control.pause(bus, name, by=by, reason="mesh top")
            case "resume":
                await control.resume(bus, name)
            case _:
                is_open = what == "open"
                change = BreakerChange(
                    state="open" if is_open else "closed",
                    at=time.time(),
                    for_s=60.0 if is_open else 0.0,
                    by=by,
                    reason="mesh top",
                )
                await control.change_breaker(bus, name, change, after=None)
        return [f"{what} {name}: done"]

    (told,) = await _told(given())
    return told


async def _told(asked: Awaitable[list[str]]) -> list[str]:
    try:
        async with asyncio.timeout(2 * WITHIN_S):
            return await asked
    except (MeshError, TimeoutError) as error:
        return [f"it failed: {str(error) or f'no answer within {2 * WITHIN_S:g} s'}"]
