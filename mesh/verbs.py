"""The durable verbs of a handler: ask others, do something once, wait.

Each verb records itself under the task's id, so that another run of the handler, on whatever peer, finds what is
done and goes on from there. Rules:

- A child's id comes from what is asked: its capability, its payload, and how often the same was asked before in
  this run. So concurrent branches, and a model that asks for its tools in another order, replay alike, and
  something new that is asked is a new child. `name=` fixes the id instead; asking something else under it later is
  `NonDeterminism`.
- A step has a name, once in a run; other arguments under it later are `NonDeterminism`. Its value is recorded when
  it returns; a failure is recorded if it is `Permanent`, anything else is tried again by the next attempt. A crash
  between an effect and its record runs the step again: hand its idempotency key to what you call.
- Code between verbs runs again on every replay, so it must come to the same verbs from the same answers: clocks,
  dice and anything read from outside belong into steps.
- A task that waits holds no slot. One that waits long is parked: its run is cancelled, and another one starts when
  what it waits for is there.

On a context made by hand the verbs work in memory: steps run, sleeps pass at once, a capability's handler is
called in place, and `answers` stand in for other capabilities and signals.
"""

import asyncio
import inspect
import time
import typing
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterable, Mapping
from contextlib import nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Literal, TypeVar, overload

import msgspec

from contracts.errors import ContractError
from contracts.outcome import Failure, FailureKind, Outcome, Send, Spent, Status
from contracts.subjects import Identity, check_capability, check_key, check_step_name, child_id
from contracts.task import Budget, Task
from contracts.wire import ContentType
from contracts.workflow import Answer, AtDeadline, Proposal, Step, Verdict
from mesh import payload as payloads
from mesh.digest import digest
from mesh.endings import HUMAN, Decision, Escalate, Handoff
from mesh.errors import DuplicateStep, MeshError, NobodyAnswered, NonDeterminism, ObjectGone, Permanent
from mesh.payload import ANYTHING, Shape, shape_of
from mesh.reference import Reference
from mesh.results import Mapped, value_of
from mesh.task_context import DECISIONS_MAX, TaskContext, checked_confidence

I = TypeVar("I")  # noqa: E741  # the pair reads as input and output
O = TypeVar("O")  # noqa: E741
R = TypeVar("R")
T = TypeVar("T")
L = TypeVar("L")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")

IN_FLIGHT = 256
MAP_PAGE = 500
ANSWER: typing.Final = "answer"
"""The signal that a `human` task waits for."""

Failures = Literal["raise", "collect", "quorum"]


@dataclass(slots=True)
class _Running:
    """The step that a fiber is in, and what it has reported as spent."""

    key: str
    spent: Spent | None = None


_step: ContextVar[_Running | None] = ContextVar("mesh_step", default=None)


@dataclass(frozen=True, slots=True)
class Asked(Generic[O]):
    """One child as it is asked for: what would be published, and what comes back."""

    send: Send
    returns: Shape[O]
    is_named: bool
    reference: Reference[Any, O] | None
    payload: Any

    @property
    def identity(self) -> Identity:
        return Identity(self.send.capability, self.send.id)


@dataclass(frozen=True, slots=True)
class Answered:
    """A child's result record."""

    outcome: Outcome
    as_type: ContentType


@dataclass(slots=True)
class Compensation:
    """What undoes a part of what a task did."""

    name: str
    undo: Callable[[], Any]


@dataclass(slots=True)
class _Book:
    """What verbs in memory remember."""

    answers: Mapping[str, Any] = field(default_factory=dict)
    steps: dict[str, Step] = field(default_factory=dict)


class Verbs(TaskContext):
    """A context with durable verbs. `answers` are for contexts made by hand: by capability or signal name."""

    def __init__(
        self, identity: Identity, task: Task | None = None, *, answers: Mapping[str, Any] | None = None, **more: Any
    ) -> None:
        super().__init__(identity, task, **more)
        self.compensations: list[Compensation] = []
        self.fibers: asyncio.TaskGroup | None = None
        self._book = _Book(answers or {})
        self._names: set[str] = set()

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt of this task, and for no other: hand it to what you call outside.

        Inside a step it is the step's own.
        """
        step = _step.get()
        return str(self.identity) if step is None else step.key

    def spent(self, *, tokens_in: int = 0, tokens_out: int = 0, usd: float = 0.0) -> None:
        """Report what was used up; reports add up, and stand in the result record.

        What a step reports is recorded with it, and counts once however often the task is replayed.
        """
        step = _step.get()
        if step is None:
            super().spent(tokens_in=tokens_in, tokens_out=tokens_out, usd=usd)
        else:
            step.spent = (step.spent or Spent()) + Spent(tokens_in=tokens_in, tokens_out=tokens_out, usd=usd)

    # Asking others.

    @overload
    async def call(
        self,
        capability: Reference[I, O],
        payload: I = ...,
        *,
        name: str | None = None,
        deadline_s: float | None = None,
        reason: str = "",
        confidence: float | None = None,
        is_guarded: bool = False,
    ) -> O: ...
    @overload
    async def call(
        self,
        capability: str,
        payload: Any = ...,
        *,
        returns: type[R],
        name: str | None = None,
        deadline_s: float | None = None,
        reason: str = "",
        confidence: float | None = None,
        is_guarded: bool = False,
    ) -> R: ...
    @overload
    async def call(
        self,
        capability: str,
        payload: Any = ...,
        *,
        name: str | None = None,
        deadline_s: float | None = None,
        reason: str = "",
        confidence: float | None = None,
        is_guarded: bool = False,
    ) -> Any: ...
    async def call(
        self,
        capability: Reference[Any, Any] | str,
        payload: Any = None,
        *,
        returns: Any = Any,
        name: str | None = None,
        deadline_s: float | None = None,
        reason: str = "",
        confidence: float | None = None,
        is_guarded: bool = False,
    ) -> Any:
        """Ask for a child task and wait for its value; its result is recorded, so it runs once.

        `deadline_s` is counted from the first time it is asked; without it the child inherits this task's
        deadline. While it waits this task holds no slot. Cancelled midway, the child goes on; asked again, its
        result is found.

        `is_guarded` asks through the capability's circuit breaker (see `Context.breaker`): children that come to no
        value count as failed, and while it is open nobody is asked. What is on record is found all the same.

        Raises:
            BreakerOpen: its breaker is open, and the child was not asked for.
            TaskFailed, TaskCancelled, TaskExpired: the child came to no value; uncaught, this task fails for good.
            NonDeterminism: another capability or payload stands under `name`.
            DuplicateStep: `name` was used before in this run.
            ContractError: the payload cannot travel, or the name is illegal.
            Permanent: the budget of hops is used up.
        """
        asked = self._asked_for(
            capability,
            payload,
            returns=returns,
            name=name,
            deadline_s=deadline_s,
            reason=reason,
            confidence=confidence,
        )
        known = (await self._ask_many([asked]))[0] if is_guarded else None
        async with self._guard(asked.identity.capability) if is_guarded and known is None else nullcontext():
            answered = known or await self._ask(asked, is_missing=is_guarded)
            return value_of(asked.identity, answered.outcome, answered.as_type, asked.returns)

    @overload
    async def gather(self, first: Awaitable[T1], second: Awaitable[T2], /) -> tuple[T1, T2]: ...
    @overload
    async def gather(
        self, first: Awaitable[T1], second: Awaitable[T2], third: Awaitable[T3], /
    ) -> tuple[T1, T2, T3]: ...
    @overload
    async def gather(self, *verbs: Awaitable[T]) -> tuple[T, ...]: ...
    async def gather(self, *verbs: Awaitable[Any]) -> tuple[Any, ...]:
        """Values of several verbs that run at once, in their order.

        Waits for all of them, so that every replay meets the same failure: the first one in their order is
        raised.
        """

        async def settled(verb: Awaitable[Any]) -> tuple[Any, Exception | None]:
            try:
                return await verb, None
            except Exception as error:  # noqa: BLE001  # raised again below, once all have ended
                return None, error

        async with asyncio.TaskGroup() as fibers:
            running = [fibers.create_task(settled(verb)) for verb in verbs]
        ended = [fiber.result() for fiber in running]
        for _, error in ended:
            if error is not None:
                raise error
        return tuple(value for value, _ in ended)

    @overload
    def map(
        self,
        capability: Reference[I, O],
        payloads: Iterable[I],
        *,
        in_flight: int = ...,
        ordered: bool = ...,
        failures: Literal["raise"] = ...,
        deadline_s: float | None = ...,
    ) -> "Fan[O, O]": ...
    @overload
    def map(
        self,
        capability: Reference[I, O],
        payloads: Iterable[I],
        *,
        in_flight: int = ...,
        ordered: bool = ...,
        failures: Literal["collect", "quorum"],
        quorum: int = ...,
        deadline_s: float | None = ...,
    ) -> "Fan[O, Mapped[O]]": ...
    @overload
    def map(
        self,
        capability: str,
        payloads: Iterable[Any],
        *,
        returns: type[R] = ...,
        in_flight: int = ...,
        ordered: bool = ...,
        failures: Literal["raise"] = ...,
        deadline_s: float | None = ...,
    ) -> "Fan[R, R]": ...
    @overload
    def map(
        self,
        capability: str,
        payloads: Iterable[Any],
        *,
        returns: type[R] = ...,
        in_flight: int = ...,
        ordered: bool = ...,
        failures: Literal["collect", "quorum"],
        quorum: int = ...,
        deadline_s: float | None = ...,
    ) -> "Fan[R, Mapped[R]]": ...
    def map(
        self,
        capability: Reference[Any, Any] | str,
        payloads: Iterable[Any],
        *,
        returns: Any = Any,
        in_flight: int = IN_FLIGHT,
        ordered: bool = True,
        failures: Failures = "raise",
        quorum: int = 0,
        deadline_s: float | None = None,
    ) -> "Fan[Any, Any]":
        """Ask for one child a payload, at most `in_flight` at once.

        Awaited, it gives a list in the payloads' order: of values, where the first failure in that order is
        raised once all are settled (`raise`); of `Mapped`, failures as values (`collect`); of the `quorum` values
        that came first, as `Mapped` with their index (`quorum`: which ones, may differ on a replay; the others go
        on). Iterated with `async for`, it gives each as `Mapped`, in order or, not `ordered`, as they finish.

        Raises:
            ValueError: `in_flight` is below 1, or `quorum` is not within the number of payloads.
            TaskFailed, …: what `call` raises; with `quorum`, when so many failed that it cannot be reached.
        """
        if in_flight < 1:
            raise ValueError(f"in_flight is {in_flight}; it must be at least 1")
        asked = [self._asked_for(capability, payload, returns=returns, deadline_s=deadline_s) for payload in payloads]
        if failures == "quorum" and not 1 <= quorum <= len(asked):
            raise ValueError(f"quorum is {quorum}; it must be from 1 to the {len(asked)} payloads")
        return Fan(self, asked, in_flight=in_flight, ordered=ordered, failures=failures, quorum=quorum)

    async def approve(
        self,
        proposal: T,
        *,
        reason: str = "",
        confidence: float | None = None,
        within_s: float | None = None,
        at_deadline: AtDeadline | str = AtDeadline.REJECT,
        who: Iterable[str] = (),
        sample: float = 1.0,
    ) -> Decision[T]:
        """Have a person approve, edit or reject a proposal; `decision.value` is what to go on with.

        The proposal waits in the inbox (`mesh inbox ls`), parked. After `within_s` seconds `at_deadline` decides:
        `reject`, `approve`, or `fail`, which raises `NobodyAnswered`. `who` names those who may answer. With
        `sample` below 1 only that share of proposals, always the same ones, is shown; the others count as
        approved. An edit that is not of the proposal's type is put to people again. What they say stands among the
        decisions of this task.

        Raises:
            Overloaded: too many proposals wait (`MESH_INBOX_MAX`); uncaught, this task is tried again later.
            NobodyAnswered: nobody did in time, and `at_deadline` is `fail`; a `DeadlineExceeded`, too.
            ContractError: an argument is outside its limits.
        """
        if not 0 <= sample <= 1:
            raise ContractError(f"sample of {sample:g} is outside 0 to 1")
        confidence = checked_confidence(confidence)
        if within_s is not None and within_s <= 0:
            raise ContractError(f"within_s is {within_s:g}; it must be above 0")
        try:
            deadline = AtDeadline(at_deadline)
        except ValueError:
            told = f"at_deadline of {at_deadline!r} is none of {', '.join(AtDeadline)}"
            raise ContractError(told) from None
        is_plain = proposal is None or isinstance(proposal, (dict, list, tuple))
        question = Proposal(
            proposal=ANYTHING.decode(payloads.encode(proposal)),
            reason=reason,
            confidence=confidence,
            asked_by=str(self.identity),
            subject=self._subject(),
            within_s=within_s,
            at_deadline=deadline,
            who=tuple(who),
        )
        said = await self._decide(question, ANYTHING if is_plain else shape_of(type(proposal)), sample=sample)
        if len(self.decisions) < DECISIONS_MAX:
            self._keep_decision(said.on_record())
        return said

    async def _decide(self, question: Proposal, shape: Shape[T], *, sample: float = 1.0) -> Decision[T]:
        """What a person says to a proposal; put to people again for as long as the value is of another type."""
        reason = question.reason
        while True:
            asked = self._asked_for(HUMAN, question, returns=Answer, reason=reason, confidence=question.confidence)
            if int(digest(asked.identity.id.encode())[:8], 16) >= sample * 2**32:
                approved = shape.decode(payloads.encode(question.proposal))
                return Decision(Verdict.APPROVED, approved, note="not in the sample")
            await self._admit_to_inbox(asked)
            answered = await self._ask(asked)
            failure = answered.outcome.failure
            if failure is not None and failure.error == NobodyAnswered.__name__:
                raise NobodyAnswered(failure.message)
            answer = value_of(asked.identity, answered.outcome, answered.as_type, asked.returns)
            if answer.verdict is Verdict.REJECTED:
                return Decision(answer.verdict, None, answer.by, answer.note, answer.at)
            value = question.proposal if answer.verdict is Verdict.APPROVED else answer.value
            try:
                approved = shape.decode(payloads.encode(value))
            except ContractError as error:
                told = f"what {answer.by or 'somebody'} {answer.verdict} does not fit: {error}"
                question = msgspec.structs.replace(question, reason=f"{reason}\n{told}".strip())
                continue
            return Decision(answer.verdict, approved, answer.by, answer.note, answer.at)

    # Doing something once.

    @overload
    async def step(self, name: str, fn: Callable[..., Coroutine[Any, Any, T]], *args: Any, returns: Any = ...) -> T: ...
    @overload
    async def step(self, name: str, fn: Callable[..., T], *args: Any, returns: Any = ...) -> T: ...
    async def step(self, name: str, fn: Callable[..., Any], *args: Any, returns: Any = None) -> Any:
        """What `fn(*args)` returns, run once and recorded; a replay gives the record.

        A plain function runs in a thread. `fn` gets a keyword `idempotency_key` if it takes one: the same for every
        run of this step, and for no other. What it returns is given as it decodes from its record, as the type
        that `fn` is annotated with, or `returns`. Cancelled midway, it may have run and is not recorded.

        Raises:
            DuplicateStep: the name was used before in this run.
            NonDeterminism: the step is on record with other arguments.
            ContractError: the name is illegal, or the value cannot travel or is too large.
            Exception: what `fn` raises. If that is `Permanent`, it is recorded, and every replay raises it.
        """
        self._use(check_step_name(name))
        shape = shape_of(returns) if returns is not None else _returned(fn)
        step = await self._once(name, partial(self._stepped, name, fn, args, shape))
        self._check_arguments(name, step, args)
        return self._step_value(name, step, shape)

    async def version(self, name: str, newest: int = 1) -> int:
        """Which version of a changed piece of code this task is to follow: `newest`, or 0 if it began before.

        Ask for it where the change is, and keep the old code while tasks that began under it may live:

            if await ctx.version("check-fraud"):
                await ctx.call(check_fraud, order)

        The answer is recorded, so it stays the same for the task's whole life.
        """

        async def choose() -> Step:
            return Step(value=msgspec.Raw(str(newest if self._is_new_task() else 0).encode()))

        self._use(f"~version {name}")
        step = await self._once(f"~~version-{check_step_name(name)}", choose)
        return int(bytes(_raw(step)))

    async def compensate(self, fn: Callable[..., Any], *args: Any, name: str | None = None) -> None:
        """Have `fn(*args)` called if this task ends without a value: failed, cancelled or expired.

        Compensations run last one first, each recorded like a step. Register one before the step it undoes, since
        a step may have had its effect without a record; so it must cope with there being nothing to undo. One
        that raises is tried again, up to the capability's attempts.
        """
        self._check_outside_steps()
        called = name or getattr(fn, "__name__", "undo").strip("<>")
        base = f"{called}-{digest(payloads.encode(list(args)))[:12]}-"
        token = f"~~undo-{check_step_name(self._numbered(base))}"
        undo = partial(self._stepped, token, fn, args, ANYTHING)
        self.compensations.append(Compensation(token, undo))
        await self._declare_saga()

    # Waiting.

    async def sleep(self, seconds: float, *, name: str | None = None) -> None:
        """Wait, counted from the first time it is asked, through any restart of peers and brokers.

        Raises:
            ContractError: the wait would outlast the task's records (`MESH_WORKFLOW_TTL_S`), or is negative.
        """
        if not seconds >= 0:
            raise ContractError(f"sleep of {seconds:g} s: it must be 0 or more")
        token = self._named_wait("sleep", name, f"{round(seconds * 1000)}ms-")
        due = await self._due(token, seconds)
        await self._until(due)

    async def until(self, at: float) -> None:
        """Wait until a Unix time, which must come from the payload or a step: a clock read here differs on a replay.

        Raises:
            ContractError: the wait would outlast the task's records.
        """
        self._check_outside_steps()
        await self._until(at)

    async def signal(self, name: str, *, returns: type[R] | Any = Any, within_s: float | None = None) -> R:
        """Wait for an outside event, sent with `mesh.signal(capability, key, name, value)`; before or after this.

        Raises:
            NobodyAnswered: none came within `within_s` seconds of the first time it was asked for; that is
                recorded, and a later signal refused. It is a `DeadlineExceeded`, too.
            ContractError: the name is illegal, or what was signalled is not of the type asked for.
        """
        self._use(f"~signal {check_step_name(name)}")
        raw = await self._signalled(name, within_s)
        shape: Shape[R] = shape_of(returns)
        return shape.decode(raw)

    # What the verbs are made of. A context on the mesh has its own.

    async def _ask(self, asked: Asked[Any], *, is_missing: bool = False) -> Answered:
        """A child's result, asked for if it is not there. `is_missing` says that it was just looked for."""
        answers, capability = self._book.answers, asked.send.capability
        handler = getattr(asked.reference, "call", None)
        if capability not in answers and handler is None:
            raise MeshError(
                f"{capability} is asked for on a context made by hand: give it answers={{{capability!r}: …}}"
            )
        try:
            if capability in answers:
                answer = answers[capability]
                answer = answer(asked.payload) if callable(answer) else answer
            else:
                answer = handler(asked.payload, self._beneath(asked)) if handler is not None else None
            answer = await answer if inspect.isawaitable(answer) else answer
        except Permanent as error:
            failure = Failure(kind=FailureKind.PERMANENT, error=type(error).__name__, message=str(error))
            return Answered(Outcome(status=Status.FAILED, failure=failure), self.content_type)
        if isinstance(answer, (Handoff, Escalate)):
            return await self._handed(asked, answer)
        value = asked.returns.encode(answer, self.content_type)
        return Answered(Outcome(status=Status.DONE, value=msgspec.Raw(value)), self.content_type)

    async def _handed(self, asked: Asked[Any], ended: Handoff | Escalate) -> Answered:
        """What the one comes to who is handed a child, in memory."""
        if isinstance(ended, Handoff):
            to, payload = ended.to, ended.payload
        else:
            ladder = getattr(asked.reference, "ladder", None)
            if ladder is None:
                raise Permanent(f"{asked.identity} escalates, and has no ladder: {ended.reason}")
            to, payload = ladder.next_rung, asked.payload
        return await self._ask(self._asked_for(to, payload, returns=asked.returns.annotation, carry=ended.carry))

    def _beneath(self, asked: Asked[Any]) -> TaskContext:
        """The context of a child's handler, in memory."""
        return type(self)(asked.identity, asked.send.task, answers=self._book.answers)

    async def _ask_many(self, asked: list[Asked[Any]]) -> list[Answered | None]:
        """Results of children that are there already; a large value is not among them, see `_whole`."""
        return [None] * len(asked)

    async def _whole(self, asked: Asked[Any], answered: Answered) -> Answered:
        """A child's result with its value, wherever that is kept."""
        return answered

    async def _once(self, name: str, run: Callable[[], Coroutine[Any, Any, Step]]) -> Step:
        """A step's record, made by `run` if there is none."""
        if name not in self._book.steps:
            self._book.steps[name] = await run()
        return self._book.steps[name]

    async def _declare_saga(self) -> None:
        """Put on record that something is to be undone, before it can come to be."""

    async def _until(self, due: float) -> None:
        """Wait until a Unix time."""

    async def _signalled(self, name: str, within_s: float | None) -> bytes:
        """What was signalled, as JSON."""
        if name not in self._book.answers:
            raise NobodyAnswered(f"no signal {name!r} in answers= of a context made by hand")
        return payloads.encode(self._book.answers[name])

    async def _admit_to_inbox(self, asked: Asked[Any]) -> None:
        """Refuse a proposal for which there is no room."""

    def _passes_on(self, *, is_rung: bool) -> None:
        """Take note that who is asked next is the one that the task is passed to, by its ladder or by its handler."""

    def _is_new_task(self) -> bool:
        """Whether nothing of this task was ever run before."""
        return True

    def _subject(self) -> Any:
        """The task's own payload, for people who are to decide about it."""
        return None

    # How things are named and checked.

    def _asked_for(
        self,
        capability: Reference[Any, Any] | str,
        payload: Any,
        *,
        returns: Any = Any,
        name: str | None = None,
        deadline_s: float | None = None,
        reason: str = "",
        confidence: float | None = None,
        **more: Any,
    ) -> Asked[Any]:
        self._check_outside_steps()
        if isinstance(capability, Reference):
            target, shape, reference = capability.name, capability.output, capability
            encoded = capability.input.encode(payload, self.content_type)
        else:
            target, shape, reference = check_capability(capability), shape_of(returns), None
            encoded = payloads.encode(payload, self.content_type)
        if deadline_s is not None and deadline_s <= 0:
            raise ContractError(f"deadline_s is {deadline_s:g}; it counts from now and must be above 0")
        digested = digest(encoded)
        if name is not None:
            self._use(check_key(name) if not name.startswith("~") else name, what="child")
            token = name.lstrip("~")
        else:
            token = self._token(target, digested, "c")
        deadlines = [at for at in (self.deadline, deadline_s and time.time() + deadline_s) if at]
        send = self._child(
            target,
            child_id(self.id, token),
            encoded,
            digested,
            deadline=min(deadlines, default=None),
            reason=reason,
            confidence=confidence,
            is_awaited=True,
            budget=self._budget_below(),
            **more,
        )
        return Asked(send, shape, name is not None, reference, payload)

    def _budget_below(self) -> Budget | None:
        budget = self.budget
        if budget is None or budget.hops is None:
            return budget
        if budget.hops < 1:
            raise Permanent(f"the budget of hops is used up at {self.identity}: it may ask for no children")
        return msgspec.structs.replace(budget, hops=budget.hops - 1)

    def _use(self, name: str, *, what: str = "step") -> None:
        self._check_outside_steps()
        key = f"{what} {name}"
        if key in self._names:
            raise DuplicateStep(f"{what} {name.strip('~')!r} of {self.identity} is used twice in one run")
        self._names.add(key)

    def _check_outside_steps(self) -> None:
        step = _step.get()
        if step is not None:
            raise ContractError(f"a durable verb inside the step {step.key}: steps run and record as one")

    def _named_wait(self, what: str, name: str | None, base: str) -> str:
        if name is None:
            self._check_outside_steps()
            return f"~~{what}-{self._numbered(f'{what}-{base}').removeprefix(f'{what}-')}"
        self._use(f"~{what} {name}")
        return f"~~{what}-{check_step_name(name)}"

    async def _due(self, token: str, seconds: float) -> float:
        """The Unix time at which a wait of that many seconds ends, fixed when it is asked for first."""

        async def fix() -> Step:
            return Step(value=msgspec.Raw(payloads.encode(time.time() + seconds)))

        return float(bytes(_raw(await self._once(token, fix))))

    async def _stepped(self, name: str, fn: Callable[..., Any], args: tuple[Any, ...], shape: Shape[Any]) -> Step:
        """Run a step; its record, or what it raised if that is to be tried again."""
        running = _Running(f"{self.identity}/{name}")
        token = _step.set(running)
        began = time.time()
        value: Any = msgspec.UNSET
        failure = None
        try:
            more = {"idempotency_key": running.key} if _takes_key(fn) else {}
            if inspect.iscoroutinefunction(fn):
                value = await fn(*args, **more)
            else:
                value = await asyncio.to_thread(fn, *args, **more)
                if inspect.isawaitable(value):
                    value = await value
        except Permanent as error:
            failure = Failure(kind=FailureKind.PERMANENT, error=type(error).__name__, message=str(error)[:2_000])
        finally:
            _step.reset(token)
        ended = time.time()
        return Step(
            value=msgspec.UNSET if failure is not None else msgspec.Raw(shape.encode(value)),
            failure=failure,
            digest=_digest_of(args),
            spent=running.spent,
            attempt=self.attempt,
            at=ended,
            run_s=ended - began,
        )

    def _check_arguments(self, name: str, step: Step, args: tuple[Any, ...]) -> None:
        now = _digest_of(args)
        if step.digest and now and step.digest != now:
            raise NonDeterminism(
                f"step {name!r} of {self.identity} is on record with other arguments: then digest {step.digest},"
                f" now {now}: {repr(args)[:200]}"
            )

    def _step_value(self, name: str, step: Step, shape: Shape[Any]) -> Any:
        if step.spent is not None:
            TaskContext.spent(
                self, tokens_in=step.spent.tokens_in, tokens_out=step.spent.tokens_out, usd=step.spent.usd
            )
        if step.failure is not None:
            raise Permanent(step.failure.message)
        try:
            return shape.decode(bytes(_raw(step)))
        except ContractError as error:
            raise ContractError(f"step {name!r} of {self.identity} is recorded as something else: {error}") from error


class Fan(Generic[O, L]):
    """The children of a `map`: awaited, a list; iterated, each as it comes."""

    def __init__(
        self,
        verbs: Verbs,
        asked: list[Asked[O]],
        *,
        in_flight: int,
        ordered: bool,
        failures: Failures,
        quorum: int,
    ) -> None:
        self._verbs = verbs
        self._asked = asked
        self._in_flight = in_flight
        self._ordered = ordered
        self._failures = failures
        self._quorum = quorum

    def __await__(self) -> Generator[Any, None, list[L]]:
        return self._listed().__await__()

    async def _listed(self) -> list[Any]:
        done: list[Mapped[O]] = []
        failed = 0
        async for mapped in self._settled():
            done.append(mapped)
            failed += not mapped.is_done
            if self._failures == "quorum":
                if len(done) - failed >= self._quorum:
                    return sorted((one for one in done if one.is_done), key=lambda one: one.index)
                if failed > len(self._asked) - self._quorum:
                    break
        done.sort(key=lambda one: one.index)
        if self._failures == "collect":
            return done
        return [mapped.unwrap() for mapped in done]

    async def __aiter__(self) -> AsyncIterator[Mapped[O]]:
        waiting: dict[int, Mapped[O]] = {}
        position = 0
        async for mapped in self._settled():
            if not self._ordered:
                yield mapped
                continue
            waiting[mapped.index] = mapped
            while position in waiting:
                yield waiting.pop(position)
                position += 1

    async def _settled(self) -> AsyncIterator[Mapped[O]]:
        """Each child as it is settled: those on record first, page by page, then those that are awaited."""
        missing: list[tuple[int, Asked[O]]] = []
        for start in range(0, len(self._asked), MAP_PAGE):
            page = self._asked[start : start + MAP_PAGE]
            for index, (asked, answered) in enumerate(
                zip(page, await self._verbs._ask_many(page), strict=True), start=start
            ):
                if answered is None:
                    missing.append((index, asked))
                else:
                    yield await self._taken(index, asked, answered)
        if not missing:
            return
        fibers = self._verbs.fibers
        if fibers is None:
            for index, asked in missing:
                yield await self._one(index, asked)
            return
        settled: asyncio.Queue[Mapped[O] | Exception] = asyncio.Queue()
        rest = iter(missing)

        async def work() -> None:
            for index, asked in rest:
                try:
                    settled.put_nowait(await self._one(index, asked))
                except Exception as error:  # noqa: BLE001  # raised below, where the iteration is
                    settled.put_nowait(error)

        workers = [fibers.create_task(work()) for _ in range(min(self._in_flight, len(missing)))]
        try:
            for _ in missing:
                mapped = await settled.get()
                if isinstance(mapped, Exception):
                    raise mapped
                yield mapped
        finally:
            for worker in workers:
                worker.cancel()

    async def _taken(self, index: int, asked: Asked[O], answered: Answered) -> Mapped[O]:
        try:
            return _mapped(index, asked, await self._verbs._whole(asked, answered))
        except ObjectGone as error:
            return Mapped(index, asked.identity, error=error)

    async def _one(self, index: int, asked: Asked[O]) -> Mapped[O]:
        try:
            return _mapped(index, asked, await self._verbs._ask(asked, is_missing=True))
        except Permanent:
            raise
        except MeshError as error:
            return Mapped(index, asked.identity, error=error)


def _mapped(index: int, asked: Asked[O], answered: Answered) -> Mapped[O]:
    try:
        value = value_of(asked.identity, answered.outcome, answered.as_type, asked.returns)
    except MeshError as error:
        return Mapped(index, asked.identity, error=error)
    return Mapped(index, asked.identity, value=value)


def _raw(step: Step) -> msgspec.Raw:
    return msgspec.Raw(b"null") if step.value is msgspec.UNSET else step.value


def _returned(fn: Callable[..., Any]) -> Shape[Any]:
    """The type that a step's function is annotated to return."""
    target = fn
    while isinstance(target, partial):
        target = target.func
    try:
        annotation = typing.get_type_hints(target, include_extras=True).get("return", Any)
    except (NameError, TypeError):
        return ANYTHING
    return shape_of(annotation)


def _digest_of(args: tuple[Any, ...]) -> str:
    """The digest of a step's arguments; empty where there are none, or one of them could not travel."""
    try:
        return digest(payloads.encode(list(args))) if args else ""
    except ContractError:
        return ""


def _takes_key(fn: Callable[..., Any]) -> bool:
    try:
        return "idempotency_key" in inspect.signature(fn).parameters
    except (TypeError, ValueError):
        return False
