"""Running a handler, and what its run came to. A handler's errors become values here, and only here."""

import asyncio
import contextlib
import contextvars
import logging
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import msgspec

from contracts import headers as names
from contracts import wire
from contracts.errors import ContractError, NewerFormat
from contracts.outcome import Failure, FailureKind, Outcome, Status
from contracts.wire import ContentType
from contracts.workflow import Closing
from mesh.bus.objects import payload_digest
from mesh.bus.outsized import Taken, whole_closing
from mesh.bus.steps import write_step
from mesh.capability import Capability
from mesh.context import BlockingContext, Context
from mesh.endings import Escalate, Handoff
from mesh.errors import BreakerOpen, BusUnavailable, Overloaded, Transient
from mesh.resilience.classify import Meaning, Rules, classify
from mesh.resilience.retry import Ledger, spent_throttles, throttled_wait_s, wait_s
from mesh.runtime.host import Attempt, Host
from mesh.runtime.verdict import Answer, HandBack, Park, Reason, Retry, Verdict
from mesh.telemetry.masked import masked
from mesh.telemetry.tracing import carried
from mesh.workflow.closing import CLOSING, closing_of, conclude, value_to_close
from mesh.workflow.durable import DurableContext, Unwinding
from mesh.workflow.flow import Flow

log = logging.getLogger("mesh.runtime")

HOLD_S = 7 * 86_400.0
"""How long a delivery is spoken for while its task waits, or its commit is held."""
TIMEOUT_SLACK_S = 5.0
BREAKER_AGAIN_S = 0.5
"""How long a task that met an open breaker is kept from its queue, which nobody serves meanwhile."""
UNDO_SHARE = 2
"""Undoing may use as many attempts again as the task itself."""


class Handling:
    """One run of a handler: from its argument to a verdict."""

    def __init__(
        self,
        host: Host,
        attempt: Attempt,
        argument: Any,
        as_type: ContentType,
        ledger: Ledger,
        *,
        is_first: bool,
    ) -> None:
        self.host = host
        self.attempt = attempt
        self.as_type = as_type
        self._argument = argument
        self._ledger = ledger
        self._is_first = is_first
        self._stopped_s = 0.0
        self._capability = attempt.capability

    @property
    def has_compensations(self) -> bool:
        """Whether the run registered anything to be undone."""
        return isinstance(self.attempt.context, DurableContext) and bool(self.attempt.context.compensations)

    async def run(self, closing: Closing | None) -> Verdict:
        """Run the handler, or what follows its last word where that is on record."""
        attempt, capability = self.attempt, self._capability
        context = attempt.context = self._context(is_unwinding=False)
        attempt.payload_class = capability.class_of(self._argument)
        attempt.started_at = time.time()
        if attempt.number == 1:
            self.host.retries.attempted(time.monotonic())
        verdict: Verdict
        began = time.perf_counter()
        try:
            async with self._scope() as attempt.scope:
                if isinstance(context, BlockingContext):
                    verdict = self._answered(await _in_thread(capability, self._argument, context))
                elif isinstance(context, DurableContext):
                    verdict = await self._durably(context, closing)
                else:
                    verdict = self._answered(await capability.call(self._argument, context))
        except Exception as error:  # noqa: BLE001  # the one place where a handler's errors become values
            verdict = self._failed(error)
            is_failure = isinstance(verdict, Retry) or (
                isinstance(verdict, Answer) and verdict.outcome.status is not Status.CANCELLED
            )
            if is_failure and not (self._is_parked() or self._is_overtaken()):
                attempt.span.failed(error)
        finally:
            self._count(time.perf_counter() - began)
            await self._close()
        # A handler may have swallowed its cancellation and returned something: it is not its answer.
        if self._is_overtaken():
            return self._hand_over()
        if self._is_parked():
            assert attempt.flow is not None, "only a flow parks"
            return Park(attempt.flow.parked_waits)
        return verdict

    async def undo(self, outcome: Outcome) -> Verdict:
        """Go through what is on record once more, undo it, and end with `outcome`."""
        attempt = self.attempt
        await self._close()
        attempt.is_unwinding = True
        context = attempt.context = self._context(is_unwinding=True)
        assert isinstance(context, DurableContext), "only what is on record is undone"
        attempt.started_at = attempt.started_at or time.time()
        began = time.perf_counter()
        try:
            async with self._scope() as attempt.scope:
                with contextlib.suppress(Unwinding, Exception, BaseExceptionGroup):
                    await self._capability.call(self._argument, context)
                await context.undo()
        except Exception as error:  # a compensation's errors become values, too
            if self._is_overtaken():
                return self._hand_over()
            if _newer(error) is not None:
                return HandBack(Reason.NEWER_FORMAT, delay_s=self.host.settings.ack_wait_s, is_recorded=True)
            meaning = classify(error, self._capability.rules, now=time.time())
            failure = failed(FailureKind.TRANSIENT, error, meaning.told)
            log.warning("%s: undoing failed: %s", attempt.identity, failure.message, exc_info=error)
            retry = self._throttled(failure, meaning.after_s) if meaning.is_throttled else None
            used, limit = self._ledger.used + 1, UNDO_SHARE * self._capability.limits.attempts
            if isinstance(retry, Retry):
                return retry
            if used < limit:
                return Retry(failure, wait_s(self._capability.limits.wait, used))
            return self.give_up_undoing(outcome, failure)
        finally:
            self._count(time.perf_counter() - began)
            await self._close()
        return answer(self.host, attempt, outcome=outcome)

    def give_up_undoing(self, outcome: Outcome, failure: Failure) -> Answer:
        """End with an outcome that says why what was done stays half undone."""
        told = outcome.failure or failure
        message = f"{told.message}; and not all of it is undone: {failure.message}"
        told = msgspec.structs.replace(told, message=message)
        outcome = msgspec.structs.replace(outcome, status=Status.FAILED, failure=told)
        return answer(self.host, self.attempt, outcome=outcome)

    async def _durably(self, context: DurableContext, closing: Closing | None) -> Verdict:
        capability, payload, bus = self._capability, self.attempt.payload, self.host.bus
        if closing is None:
            ended = await capability.call(self._argument, context)
            value = value_to_close(capability, ended, context)
            verdict = self._encoded(value)
            if isinstance(ended, (Handoff, Escalate)) or verdict.outcome.failure is None:
                closing = closing_of(capability, ended, context, verdict.outcome, payload)
            if closing is None:
                return verdict
            said, ttl_s, taken = closing, context.ttl_s(), Taken(bus, context.identity, self.as_type)
            written = await taken.closing(said, ttl_s=ttl_s)
            closing = await write_step(bus, context.identity, CLOSING, written, ttl_s=ttl_s, as_type=self.as_type)
            if closing is written:
                # What it sends is stored once, for this record and for the result's.
                sends, v = written.outcome.sends, written.outcome.v
                outcome = msgspec.structs.replace(said.outcome, sends=sends, v=v)
                closing = msgspec.structs.replace(said, outcome=outcome)
        context.has_records = True
        context.decisions = list(closing.outcome.decisions)
        closing = await whole_closing(bus, context.identity, closing)
        outcome = await conclude(capability, closing, context, payload, hops_max=self.host.settings.hops_max)
        return answer(self.host, self.attempt, outcome=outcome)

    def _answered(self, value: Any) -> Answer:
        return self._encoded(self._capability.output.encode(value, self.as_type))

    def _encoded(self, value: bytes | None) -> Answer:
        limit = self.host.settings.payload_bytes_max
        if value is not None and len(value) > limit:
            message = f"value of {len(value)} bytes exceeds {limit} bytes"
            return answer(self.host, self.attempt, failure=Failure(kind=FailureKind.TOO_LARGE, message=message))
        return answer(self.host, self.attempt, value=value)

    def _failed(self, raised: Exception) -> Verdict:
        """What an exception means for the task."""
        attempt = self.attempt
        if (newer := _newer(raised)) is not None:
            log.warning("%s is left to a newer peer: %s", attempt.identity, newer)
            return HandBack(Reason.NEWER_FORMAT, delay_s=self.host.settings.ack_wait_s, is_recorded=True)
        error, meaning = _decisive(raised, self._capability.rules)
        if attempt.scope is not None and attempt.scope.expired() and isinstance(raised, TimeoutError):
            if attempt.is_cancelled:
                return answer(self.host, attempt, status=Status.CANCELLED)
            if self._is_past_deadline():
                return answer(self.host, attempt, status=Status.EXPIRED)
            message = f"no result within {self._capability.limits.timeout_s:g} s"
            failure = Failure(kind=meaning.kind, error="TimeoutError", message=message)
            if meaning.is_final:
                return answer(self.host, attempt, failure=failure)
        elif isinstance(error, Overloaded):
            # Backpressure is no failure of the task: it comes again when there may be room.
            return HandBack(Reason.OVERLOADED, delay_s=error.retry_after_s, is_recorded=True)
        elif isinstance(error, BreakerOpen):
            if error.breaker:
                self.host.breakers.hold(self._capability.name, error.breaker)
            return HandBack(Reason.BREAKER, delay_s=min(BREAKER_AGAIN_S, error.retry_after_s), is_recorded=True)
        elif meaning.is_final:
            return answer(self.host, attempt, failure=failed(meaning.kind, error, meaning.told))
        else:
            failure = failed(FailureKind.TRANSIENT, error, meaning.told)
        if not self._is_parked() and not self._is_overtaken():
            log.warning(
                "%s attempt %d failed: %s: %s", attempt.identity, attempt.number, failure.error, failure.message,
                exc_info=None if isinstance(error, (Transient, TimeoutError)) or meaning.told else raised,
            )  # fmt: skip
        if attempt.guarded.failed_probe:
            # It was let through to try whether the others may go.
            return HandBack(Reason.PROBE_FAILED, is_recorded=True)
        if meaning.is_throttled:
            return self._throttled(failure, meaning.after_s)
        return self._after_failure(failure, meaning.after_s)

    def _after_failure(self, failure: Failure, after_s: float | None) -> Verdict:
        attempt = self.attempt
        used, limits = self._ledger.used + 1, self._capability.limits
        if used >= limits.attempts:
            last = msgspec.structs.replace(failure, kind=FailureKind.EXHAUSTED, attempts=used)
            return answer(self.host, attempt, failure=last)
        pause_s = wait_s(limits.wait, used) if after_s is None else max(0.0, after_s)
        if self._ends_within(pause_s):
            return answer(self.host, attempt, status=Status.EXPIRED, failure=failure)
        return Retry(failure, pause_s)

    def _throttled(self, failure: Failure, after_s: float | None) -> Verdict:
        """Another attempt when the callee says, unless the task has waited too long for its callees."""
        ledger, limits = self._ledger, self._capability.limits
        told_s = wait_s(limits.wait, ledger.throttles + 1) if after_s is None else max(0.0, after_s)
        dice = random.random()  # noqa: S311  # spreads load, hides nothing
        pause_s = throttled_wait_s(told_s, ledger.throttles + 1, dice=dice)
        if (spent := spent_throttles(failure, ledger, pause_s, limits.throttled_for_s)) is not None:
            return answer(self.host, self.attempt, failure=spent)
        if self._ends_within(pause_s):
            return answer(self.host, self.attempt, status=Status.EXPIRED, failure=failure)
        return Retry(failure, pause_s, is_throttled=True)

    def _ends_within(self, pause_s: float) -> bool:
        deadline = self.attempt.task.deadline
        return deadline is not None and time.time() + pause_s >= deadline

    # The run's context and its time.

    def _context(self, *, is_unwinding: bool) -> Context | BlockingContext:
        host, attempt, capability = self.host, self.attempt, self._capability
        part_type = {names.CONTENT_TYPE: self.as_type} if self.as_type != wire.JSON else {}
        part_subject = host.bus.subjects.part(attempt.identity)

        async def emit_part(number: int, sequence: int, encoded: bytes) -> None:
            # Parts are not stored: while the connection is gone they are lost, and the listener is told.
            with contextlib.suppress(BusUnavailable):
                found = {names.PART: f"{number}.{sequence}", **part_type}
                await host.bus.publish(part_subject, encoded, headers=found)

        common: dict[str, Any] = {
            "attempt": attempt.number,
            "content_type": self.as_type,
            "trace": attempt.span.headers or carried(attempt.delivery.headers),
            "tracing": host.tracing,
            "me": attempt.me,
            "emit_part": emit_part,
            "guard": self._guard,
            "limits": host.services.limiter,
            "stop_clock": self._clock_stopped,
        }
        if not capability.is_async:
            return BlockingContext(attempt.identity, attempt.task, **common)
        if not capability.is_durable:
            return Context(attempt.identity, attempt.task, **common)
        attempt.flow = Flow(
            attempt.slot,
            timeout_s=capability.limits.timeout_s,
            deadline_at=None if is_unwinding else self._deadline_at(),
            hot_s=host.settings.hot_wait_s,
            on_waiting=self._on_waiting,
            on_stopped=self._speak,
        )
        return DurableContext(
            attempt.identity,
            attempt.task,
            services=host.services,
            flow=attempt.flow,
            is_first=self._is_first and not is_unwinding,
            keep_until=attempt.keep_until(host.settings),
            payload=attempt.payload,
            steps=attempt.metrics.steps,
            handoffs=attempt.metrics.handoffs,
            escalations=attempt.metrics.escalations,
            tell=host.tell,
            is_unwinding=is_unwinding,
            span=attempt.span,
            **common,
        )

    def _scope(self) -> asyncio.Timeout:
        if self.attempt.flow is not None:
            return self.attempt.flow.timeout()
        ends_at = asyncio.get_running_loop().time() + self._capability.limits.timeout_s
        deadline_at = self._deadline_at()
        return asyncio.timeout_at(ends_at if deadline_at is None else min(ends_at, deadline_at))

    def _deadline_at(self) -> float | None:
        deadline = self.attempt.task.deadline
        return None if deadline is None else asyncio.get_running_loop().time() + deadline - time.time()

    def _is_past_deadline(self) -> bool:
        deadline = self.attempt.task.deadline
        return deadline is not None and time.time() >= deadline - 0.001

    def _guard(self, name: str) -> contextlib.AbstractAsyncContextManager[None]:
        run, rules = self.attempt.guarded, self._capability.rules
        return self.host.breakers.guard(name, run, rules, has_timed_out=self._has_timed_out)

    def _has_timed_out(self) -> bool:
        scope = self.attempt.scope
        is_over = scope is not None and scope.expired()
        return is_over and not (self.attempt.is_cancelled or self._is_parked() or self._is_overtaken())

    def _is_parked(self) -> bool:
        attempt = self.attempt
        is_parking = attempt.flow is not None and attempt.flow.is_parking and not attempt.is_cancelled
        return is_parking and attempt.scope is not None and attempt.scope.expired()

    def _is_overtaken(self) -> bool:
        return self.attempt.flow is not None and self.attempt.flow.is_overtaken

    def _hand_over(self) -> HandBack:
        return HandBack(Reason.OVERTAKEN, delay_s=self.host.settings.ack_wait_s, is_recorded=True)

    def _on_waiting(self, is_waiting: bool) -> None:
        self._speak(is_waiting)
        self.host.waits(self.attempt, is_waiting)

    def _speak(self, is_waiting: bool) -> None:
        attempt = self.attempt
        for_s = HOLD_S if is_waiting else self._capability.limits.timeout_s + TIMEOUT_SLACK_S
        self.host.heartbeat.change(attempt.row, attempt.delivery, for_s=for_s)

    @contextlib.contextmanager
    def _clock_stopped(self) -> Iterator[None]:
        """Have nothing in the block count for the timeout."""
        attempt = self.attempt
        if attempt.flow is not None:
            with attempt.flow.stopped():
                yield
            return
        loop, scope, deadline_at = asyncio.get_running_loop(), attempt.scope, self._deadline_at()
        if scope is None or scope.expired() or (ends_at := scope.when()) is None:
            yield
            return
        stopped_at = loop.time()
        left_s = ends_at - stopped_at
        scope.reschedule(deadline_at)
        self._speak(True)
        try:
            yield
        finally:
            self._stopped_s += loop.time() - stopped_at
            self._speak(False)
            if not scope.expired() and not attempt.is_cancelled:
                ends_at = loop.time() + left_s
                scope.reschedule(ends_at if deadline_at is None else min(ends_at, deadline_at))

    def _count(self, ran_s: float) -> None:
        """Take note of how long the handler ran, and how long of that it was at work."""
        attempt = self.attempt
        attempt.ran_s += ran_s
        attempt.handler_s += attempt.flow.held_s if attempt.flow is not None else ran_s - self._stopped_s

    async def _close(self) -> None:
        if isinstance(self.attempt.context, DurableContext):
            await self.attempt.context.close()
            self.host.waits(self.attempt, False)


def answer(
    host: Host,
    attempt: Attempt,
    *,
    value: bytes | None = None,
    status: Status | None = None,
    failure: Failure | None = None,
    outcome: Outcome | None = None,
) -> Answer:
    """The verdict that ends the task: with a value, a failure or a status, or with an outcome decided elsewhere."""
    now = time.time()
    context, decided = attempt.context, attempt.capability.decided_by
    started_at = attempt.started_at or now
    if context is not None and context.decided_by is not None:
        decided = msgspec.structs.replace(context.decided_by, agent=decided.agent, version=decided.version)
    if failure is not None and not failure.attempts:
        failure = msgspec.structs.replace(failure, attempts=attempt.number)
    if outcome is None:
        outcome = Outcome(
            status=status or (Status.FAILED if failure is not None else Status.DONE),
            value=msgspec.Raw(value) if value is not None else msgspec.UNSET,
            failure=failure,
            # What an attempt meant to send is part of its success: a failed one sends nothing.
            sends=tuple(context.sends) if context is not None and failure is None and status is None else (),
            decided_by=decided,
            confidence=context.confidence if context is not None else None,
            reason=context.reason if context is not None else "",
            spent=context.spent_total if context is not None else None,
            # One that ended without a value may have been decided about by an earlier run only.
            decisions=attempt.decided_here if failure is None and status is None else attempt.decisions,
        )
    else:
        if context is not None and context.spent_total is not None and outcome.spent is None:
            outcome = msgspec.structs.replace(outcome, spent=context.spent_total)
        outcome = msgspec.structs.replace(outcome, decisions=outcome.decisions or attempt.decisions)
    return Answer(
        msgspec.structs.replace(
            outcome,
            digest=attempt.task.digest
            or payload_digest(attempt.delivery.headers, attempt.delivery.payload, attempt.identity),
            peer=host.peer,
            attempt=attempt.number,
            parts=context.parts_emitted if context is not None else 0,
            queue_s=max(0.0, started_at - attempt.delivery.stored_at),
            run_s=now - attempt.started_at if attempt.started_at else 0.0,
            submitted_as=attempt.task.order.submitted_as if attempt.task.order is not None else "",
            is_early=attempt.is_early,
        )
    )


def failed(kind: FailureKind, error: Exception, told: str = "") -> Failure:
    """An exception as data, in the words of `told` if there are any; addresses lose their user information."""
    path = error.path if isinstance(error, ContractError) else ""
    message = masked(told or str(error))[:2_000] or type(error).__name__
    return Failure(kind=kind, error=type(error).__name__, message=message, path=path)


def _newer(error: BaseException) -> NewerFormat | None:
    """A record of a newer format that a run met, among what it raised."""
    if isinstance(error, NewerFormat):
        return error
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return next((found for each in inner if (found := _newer(each)) is not None), None)


def _decisive(error: Exception, rules: Rules) -> tuple[Exception, Meaning]:
    """The error that decides, of those a group holds, and what it means.

    One that no attempt can mend goes before any other, then one that says when to come back.
    """
    if not isinstance(error, ExceptionGroup):
        return error, classify(error, rules, now=time.time())
    leaves = [_decisive(inner, rules) for inner in error.exceptions]
    finals = (leaf for leaf in leaves if leaf[1].is_final and not isinstance(leaf[0], Overloaded))
    timed = (leaf for leaf in leaves if leaf[1].is_throttled or isinstance(leaf[0], Overloaded))
    return next(finals, None) or next(timed, leaves[0])


async def _in_thread(capability: Capability[Any, Any, Any], argument: Any, context: BlockingContext) -> Any:
    """Run a plain handler in a thread of its own, which ends with the process if it never returns."""
    loop = context.loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()
    ended = context.thread_ended = loop.create_future()

    def settle(value: Any, error: Exception | None) -> None:
        ended.set_result(None)
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(value)

    def work() -> None:
        value, failed = None, None
        try:
            value = variables.run(capability.call, argument, context)
        except Exception as error:  # noqa: BLE001  # handed over to the loop, where it is judged
            failed = error
        except BaseException as error:  # noqa: BLE001  # SystemExit in a thread ends the attempt, not the peer
            failed = RuntimeError(f"the handler raised {type(error).__name__}")
        with contextlib.suppress(RuntimeError):  # the loop is closed: the value is dropped
            loop.call_soon_threadsafe(settle, value, failed)

    variables = contextvars.copy_context()
    threading.Thread(target=work, name=f"mesh-{capability.name}", daemon=True).start()
    try:
        return await done
    finally:
        context.is_abandoned = not ended.done()
