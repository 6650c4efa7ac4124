"""From a delivery to a verdict: look for what is recorded, then run the handler. Errors become values here.

The order of questions is the order of certainty: is it answered, is somebody running it, have its attempts
run out, is it cancelled, is it too late, does it break the contract; only then does the handler run.
"""

import asyncio
import contextlib
import contextvars
import logging
import threading
import time
from typing import Any

import msgspec

from contracts import headers as names
from contracts import wire
from contracts.control import Runs, WhoRuns
from contracts.errors import ContractError, NewerFormat
from contracts.event import EventKind
from contracts.outcome import Failure, FailureKind, Outcome, Status
from contracts.subjects import ID_BYTES_MAX
from contracts.task import Task
from contracts.wire import ContentType
from mesh.bus.commit import read_result
from mesh.bus.ledger import read_ledger, record_began
from mesh.bus.pull import Delivery
from mesh.capability import Capability
from mesh.context import BlockingContext, Context
from mesh.digest import digest
from mesh.errors import BusUnavailable, Permanent, PublishRejected, Transient
from mesh.resilience.retry import Ledger, spent_attempts, wait_s
from mesh.runtime.host import Attempt, Host
from mesh.runtime.verdict import Answer, Answered, HandBack, Retry, Verdict

log = logging.getLogger("mesh.runtime")

WHO_RUNS_WITHIN_S = 0.3
NO_ATTEMPTS = Ledger()


async def judge(host: Host, attempt: Attempt) -> Verdict:
    """What is to be done about a delivery; runs the handler if it is to be run."""
    delivery, capability = attempt.delivery, attempt.capability
    ledger = NO_ATTEMPTS
    is_first_look = (
        delivery.delivered == 1
        and delivery.sequence > host.trusted_above
        and names.EXPECTED_SUBJECT_SEQUENCE in delivery.headers
    )
    if not is_first_look:
        stored = await read_result(host.bus, attempt.identity)
        if stored is not None:
            attempt.metrics.duplicates["start"].inc()
            return Answered(stored)
        ledger = await read_ledger(
            host.bus,
            attempt.identity,
            is_redelivered=delivery.delivered > 1 and capability.limits.attempts > 1,
        )
        if delivery.delivered > 1:
            attempt.metrics.redeliveries.inc()
        if ledger.is_last_open and (owner := await _owner(host, attempt)):
            return HandBack(f"running on {owner}", delay_s=host.settings.ack_wait_s)
        if (wait := ledger.retry_at - time.time()) > 0.05:
            return HandBack("its retry is not due", delay_s=wait)

    as_type: ContentType = "application/json"
    try:
        as_type = wire.content_type(delivery.headers.get(names.CONTENT_TYPE))
        attempt.task = envelope(delivery)
        if attempt.illegal_id:
            raise ContractError(
                f"id {attempt.illegal_id[:80]!a} of {len(attempt.illegal_id)} characters is illegal, recorded as"
                f" {attempt.identity.id}: an id is one token of at most {ID_BYTES_MAX} bytes"
            )
    except NewerFormat:
        raise
    except ContractError as error:
        return _answer(host, attempt, as_type, failure=_failed(FailureKind.CONTRACT, error))

    attempt.number = ledger.last + 1
    refusal = _refusal(host, attempt, ledger)
    if refusal is not None:
        status, failure = refusal
        return _answer(host, attempt, as_type, status=status, failure=failure)
    try:
        argument = capability.input.decode(delivery.payload or b"null", as_type)
    except ContractError as error:
        return _answer(host, attempt, as_type, failure=_failed(FailureKind.CONTRACT, error))

    if attempt.number > 1 or capability.limits.attempts == 1:
        ttl_s = attempt.result_ttl_s(host.settings)
        if not await record_began(host.bus, attempt.identity, attempt.number, peer=host.peer, ttl_s=ttl_s):
            return HandBack("another peer began the same attempt", delay_s=host.settings.ack_wait_s / 4)
        if ledger.crashes:
            await host.tell(EventKind.TAKEN_OVER, attempt.identity)
    return await _run(host, attempt, argument, as_type, ledger)


def envelope(delivery: Delivery) -> Task:
    """The task's envelope; every default where it came without.

    Raises:
        ContractError: it is malformed or of a newer format.
    """
    header = delivery.headers.get(names.TASK)
    return wire.decode(Task, header.encode()) if header is not None else Task()


async def _owner(host: Host, attempt: Attempt) -> str:
    if attempt.delivery.delivered == 1:
        return await host.runs_elsewhere(attempt.identity)
    subject = host.bus.subjects.ctl(attempt.identity.capability, "who-runs")
    question = wire.encode(WhoRuns(id=attempt.identity.id))
    answers = await host.bus.gather(subject, question, within_s=WHO_RUNS_WITHIN_S, enough=1)
    for runs in wire.readable(Runs, answers):
        if runs.running and runs.peer != host.peer:
            return runs.peer
    return ""


def _refusal(host: Host, attempt: Attempt, ledger: Ledger) -> tuple[Status, Failure | None] | None:
    cancel = host.controls.cancel_of(attempt.identity, attempt.task.lineage)
    if cancel is not None:
        return Status.CANCELLED, None
    now = time.time()
    if attempt.task.deadline is not None and now >= attempt.task.deadline:
        return Status.EXPIRED, ledger.last_failure
    ttl_s = attempt.result_ttl_s(host.settings)
    if attempt.delivery.delivered > 1 and now - attempt.delivery.stored_at > ttl_s:
        # Its result may have been recorded and expired; running it could do it twice.
        age_s = now - attempt.delivery.stored_at
        message = f"delivered again {age_s:.0f} s after it was stored, results are kept for {ttl_s:g} s"
        return Status.FAILED, Failure(kind=FailureKind.TOO_OLD, message=message, attempts=ledger.used)
    if ledger is NO_ATTEMPTS:
        return None
    spent = spent_attempts(ledger, attempt.capability.limits.attempts)
    return (Status.FAILED, spent) if spent is not None else None


async def _run(host: Host, attempt: Attempt, argument: Any, as_type: ContentType, ledger: Ledger) -> Verdict:
    loop, capability = asyncio.get_running_loop(), attempt.capability
    now, deadline = time.time(), attempt.task.deadline
    limit_s = capability.limits.timeout_s
    is_bounded_by_deadline = deadline is not None and deadline - now < limit_s
    if deadline is not None and is_bounded_by_deadline:
        limit_s = deadline - now

    async def emit_part(number: int, sequence: int, encoded: bytes) -> None:
        # Parts are not stored: while the connection is gone they are lost, and the listener is told.
        with contextlib.suppress(BusUnavailable):
            await host.bus.publish(part_subject, encoded, headers={names.PART: f"{number}.{sequence}", **part_type})

    part_type = {names.CONTENT_TYPE: as_type} if as_type != wire.JSON else {}
    part_subject = host.bus.subjects.part(attempt.identity)
    context_class = Context if capability.is_async else BlockingContext
    context = attempt.context = context_class(
        attempt.identity,
        attempt.task,
        attempt=attempt.number,
        content_type=as_type,
        traceparent=attempt.delivery.headers.get(names.TRACEPARENT, ""),
        me=attempt.me,
        emit_part=emit_part,
    )
    attempt.started_at = now
    failure: Failure
    after_s: float | None = None
    try:
        async with asyncio.timeout_at(loop.time() + limit_s) as attempt.scope:
            if isinstance(context, BlockingContext):
                value = await _in_thread(capability, argument, context)
            else:
                value = await capability.call(argument, context)
        encoded = capability.output.encode(value, as_type)
        limit = host.settings.payload_bytes_max
        if len(encoded) > limit:
            message = f"value of {len(encoded)} bytes exceeds {limit} bytes"
            return _answer(host, attempt, as_type, failure=Failure(kind=FailureKind.TOO_LARGE, message=message))
        return _answer(host, attempt, as_type, value=encoded)
    except Exception as error:  # the one place where a handler's errors become values
        if attempt.scope is not None and attempt.scope.expired() and isinstance(error, TimeoutError):
            if attempt.is_cancelled:
                return _answer(host, attempt, as_type, status=Status.CANCELLED)
            if is_bounded_by_deadline:
                return _answer(host, attempt, as_type, status=Status.EXPIRED)
            failure = Failure(
                kind=FailureKind.TRANSIENT, error="TimeoutError", message=f"no result within {limit_s:g} s"
            )
        elif isinstance(error, (Permanent, ContractError, PublishRejected)):
            kind = FailureKind.PERMANENT if isinstance(error, Permanent) else FailureKind.CONTRACT
            return _answer(host, attempt, as_type, failure=_failed(kind, error))
        else:
            failure = _failed(FailureKind.TRANSIENT, error)
            after_s = error.after_s if isinstance(error, Transient) else None
        log.warning(
            "%s attempt %d failed: %s: %s", attempt.identity, attempt.number, failure.error, failure.message,
            exc_info=None if isinstance(error, (Transient, TimeoutError)) else error,
        )  # fmt: skip
    return _after_failure(host, attempt, as_type, ledger, failure, after_s)


def _after_failure(
    host: Host,
    attempt: Attempt,
    as_type: ContentType,
    ledger: Ledger,
    failure: Failure,
    after_s: float | None,
) -> Verdict:
    used, limits = ledger.used + 1, attempt.capability.limits
    if used >= limits.attempts:
        last = Failure(
            kind=FailureKind.EXHAUSTED,
            error=failure.error,
            message=failure.message,
            path=failure.path,
            attempts=used,
        )
        return _answer(host, attempt, as_type, failure=last)
    pause_s = wait_s(limits.wait, used) if after_s is None else max(0.0, after_s)
    deadline = attempt.task.deadline
    if deadline is not None and time.time() + pause_s >= deadline:
        return _answer(host, attempt, as_type, status=Status.EXPIRED, failure=failure)
    return Retry(failure, pause_s)


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


def _answer(
    host: Host,
    attempt: Attempt,
    as_type: ContentType,
    *,
    value: bytes | None = None,
    status: Status | None = None,
    failure: Failure | None = None,
) -> Answer:
    now = time.time()
    context, decided = attempt.context, attempt.capability.decided_by
    started_at = attempt.started_at or now
    if context is not None and context.decided_by is not None:
        decided = msgspec.structs.replace(context.decided_by, agent=decided.agent, version=decided.version)
    if failure is not None and not failure.attempts:
        failure = msgspec.structs.replace(failure, attempts=attempt.number)
    return Answer(
        Outcome(
            status=status or (Status.FAILED if failure is not None else Status.DONE),
            value=msgspec.Raw(value) if value is not None else msgspec.UNSET,
            failure=failure
            if failure is None or failure.attempts
            else msgspec.structs.replace(failure, attempts=attempt.number),
            # What an attempt meant to send is part of its success: a failed one sends nothing.
            sends=tuple(context.sends) if context is not None and value is not None else (),
            decided_by=decided,
            confidence=context.confidence if context is not None else None,
            reason=context.reason if context is not None else "",
            spent=context.spent_total if context is not None else None,
            digest=attempt.task.digest or digest(attempt.delivery.payload),
            peer=host.peer,
            attempt=attempt.number,
            parts=context.parts_emitted if context is not None else 0,
            queue_s=max(0.0, started_at - attempt.delivery.stored_at),
            run_s=now - attempt.started_at if attempt.started_at else 0.0,
        )
    )


def _failed(kind: FailureKind, error: Exception) -> Failure:
    path = error.path if isinstance(error, ContractError) else ""
    return Failure(kind=kind, error=type(error).__name__, message=str(error)[:2_000] or type(error).__name__, path=path)
