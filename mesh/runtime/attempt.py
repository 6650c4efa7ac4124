"""From a delivery to a verdict: look for what is recorded, then run the handler.

The order of questions is the order of certainty: is it answered, is it parked, is somebody running it, have its
attempts run out, is it cancelled, is it too late, is it its turn, does it break the contract; only then does the
handler run. A task that has something to undo undoes it before it ends without a value, whatever ended it.
"""

import asyncio
import time
from dataclasses import dataclass, replace

from contracts import headers as names
from contracts import wire
from contracts.control import Runs, WhoRuns
from contracts.errors import ContractError, NewerFormat
from contracts.event import EventKind
from contracts.objects import Kept
from contracts.outcome import Failure, FailureKind, Outcome, Status
from contracts.subjects import ID_BYTES_MAX, ancestry, in_line
from contracts.task import Task
from contracts.wire import ContentType
from contracts.workflow import Closing
from mesh.bus import control, objects
from mesh.bus.leader import read_at_leader, standing
from mesh.bus.ledger import read_ledger, record_began
from mesh.bus.objects import kept_payload
from mesh.bus.parks import parked_since
from mesh.bus.pull import Delivery
from mesh.bus.records import read_many
from mesh.bus.steps import write_step
from mesh.errors import BusUnavailable, ObjectGone
from mesh.resilience.retry import Ledger, spent_attempts
from mesh.runtime import traced
from mesh.runtime.handling import TIMEOUT_SLACK_S, UNDO_SHARE, Handling, answer, failed
from mesh.runtime.host import Attempt, Host
from mesh.runtime.turn import check_order, look_at_line, parks_for_turn
from mesh.runtime.verdict import Answer, Answered, HandBack, Parked, Reason, Superseded, Verdict
from mesh.telemetry import logs
from mesh.workflow.closing import CLOSING
from mesh.workflow.durable import SAGA

WHO_RUNS_WITHIN_S = 0.3
NO_ATTEMPTS = Ledger()
NO_PARK_AGAIN_S = 1.0
NO_PARK_TRIES = 10
FETCH_S = 60.0
FETCH_BYTES_PER_S = 64 * 1024
"""A payload kept as an object that is slower to come, after a first minute, has the task handed back."""
FAILED = "~~failed"
"""The step that says with what a task ends, once all that it did is undone."""


@dataclass(slots=True)
class History:
    """What is on record about the task's earlier runs, beside its attempts."""

    closing: Closing | None = None
    failed: Closing | None = None
    has_saga: bool = False


async def judge(host: Host, attempt: Attempt) -> Verdict:
    """What is to be done about a delivery; runs the handler if it is to be run."""
    delivery, capability = attempt.delivery, attempt.capability
    ledger, history = NO_ATTEMPTS, History()
    is_first_look = (
        not attempt.is_wake
        and delivery.delivered == 1
        and delivery.sequence > host.trusted_above
        and names.EXPECTED_SUBJECT_SEQUENCE in delivery.headers
    )
    if not is_first_look:
        attempt.metrics.wakes.inc(attempt.is_wake)
        early = await _known(host, attempt)
        if early is not None:
            return early
        is_redelivered = delivery.delivered > 1 and not attempt.is_wake and capability.limits.attempts > 1
        ledger = await read_ledger(host.bus, attempt.identity, is_redelivered=is_redelivered)
        if delivery.delivered > 1:
            attempt.metrics.redeliveries.inc()
        # A wake's run is on record, so that without a record nobody runs it.
        may_run = ledger.is_last_open and (ledger.last > 0 or not attempt.is_wake)
        if may_run and await _owner(host, attempt):
            return HandBack(Reason.RUNNING, delay_s=host.settings.ack_wait_s)
        if (wait := ledger.due_in_s(time.time())) > 0.05:
            return HandBack(Reason.NOT_DUE, delay_s=wait)

    attempt.number = ledger.last + 1
    attempt.decided_before = ledger.decisions
    logs.of_task(attempt.identity.capability, attempt.identity.id, attempt.number)
    attempt.is_early = in_line(attempt.identity) is not None
    as_type: ContentType = "application/json"
    try:
        as_type = wire.content_type(attempt.delivery.headers.get(names.CONTENT_TYPE))
        attempt.task = envelope(attempt.delivery)
        if attempt.illegal_id:
            raise ContractError(
                f"id {attempt.illegal_id[:80]!a} of {len(attempt.illegal_id)} characters is illegal, recorded as"
                f" {attempt.identity.id}: an id is one token of at most {ID_BYTES_MAX} bytes"
            )
        check_order(attempt)
        kept = kept_payload(attempt.delivery.headers, attempt.delivery.payload, attempt.identity)
    except NewerFormat:
        raise
    except ContractError as error:
        return answer(host, attempt, failure=failed(FailureKind.CONTRACT, error))
    if not is_first_look and capability.is_durable:
        history = await _history(host, attempt, as_type)
    is_cancelled = host.controls.cancel_of(attempt.identity, attempt.task.lineage) is not None
    if attempt.is_wake and not is_cancelled:
        # It may have been woken for a cancel that this peer has not heard of yet.
        line = ancestry(attempt.identity, attempt.task.lineage)
        is_cancelled = await control.cancelled(host.bus, line) is not None
    refusal, was_parked = _refusal(host, attempt, ledger, history, is_cancelled=is_cancelled), False
    if attempt.is_early:
        its_turn = await look_at_line(host, attempt)
        if its_turn.is_passed:
            passed = Failure(kind=FailureKind.TOO_OLD, message="its line went past its position, whose result expired")
            return answer(host, attempt, failure=passed)
        if its_turn.behind is not None and refusal is None:
            if not await parks_for_turn(host, attempt, its_turn.behind):
                was_parked = True
            elif attempt.is_cancelled:
                # Whoever cancelled it looked for its park before that was written.
                refusal = Status.CANCELLED, None
            else:
                return Parked()
    if refusal is not None and not history.has_saga:
        status, failure = refusal
        return answer(host, attempt, status=status, failure=failure)
    try:
        attempt.payload = attempt.delivery.payload if kept is None else await _fetched(host, attempt, kept)
        argument = capability.input.decode(attempt.payload or b"null", as_type)
    except ObjectGone as error:
        return answer(host, attempt, failure=failed(FailureKind.TOO_OLD, error))
    except ContractError as error:
        return answer(host, attempt, failure=failed(FailureKind.CONTRACT, error))
    if attempt.is_cancelled and refusal is None:
        # While its payload was fetched there was no run to end.
        refusal = Status.CANCELLED, None
        if not history.has_saga:
            return answer(host, attempt, status=Status.CANCELLED)

    handling = Handling(host, attempt, argument, as_type, ledger, is_first=is_first_look)
    traced.begin(host, attempt, ledger)
    is_on_record = attempt.number > 1 or attempt.is_wake or was_parked or capability.limits.attempts == 1
    if is_on_record and not await _begin(host, attempt, ledger):
        return HandBack(Reason.BEGUN, delay_s=host.settings.ack_wait_s / 4)
    if history.failed is not None:
        # Undoing that kills its peer is met here again; undoing that only fails ends in `undo`.
        spent = spent_attempts(ledger, UNDO_SHARE * capability.limits.attempts)
        if spent is not None:
            return handling.give_up_undoing(history.failed.outcome, spent)
        return await _undo(handling, history.failed.outcome)
    if refusal is not None:
        status, failure = refusal
        return await _undo(handling, answer(host, attempt, status=status, failure=failure).outcome)
    verdict = await handling.run(history.closing)
    has_failed = isinstance(verdict, Answer) and verdict.outcome.status is not Status.DONE
    if isinstance(verdict, Answer) and has_failed and (history.has_saga or handling.has_compensations):
        return await _undo(handling, verdict.outcome)
    return verdict


def envelope(delivery: Delivery) -> Task:
    """The task's envelope; every default where it came without.

    Raises:
        ContractError: it is malformed or of a newer format.
    """
    header = delivery.headers.get(names.TASK)
    return wire.decode(Task, header.encode()) if header is not None else Task()


async def _fetched(host: Host, attempt: Attempt, kept: Kept) -> bytes:
    """The task's payload, from where it is kept; read while the task is spoken for."""
    fetch_s = FETCH_S + kept.bytes / FETCH_BYTES_PER_S
    host.heartbeat.change(attempt.row, attempt.delivery, for_s=fetch_s)
    try:
        async with asyncio.timeout(fetch_s):
            payload = await objects.get(host.bus, objects.payload_place(attempt.identity, kept), kept)
    except TimeoutError:
        raise BusUnavailable(f"the payload of {attempt.identity} does not come within {fetch_s:.0f} s") from None
    for_s = attempt.capability.limits.timeout_s + TIMEOUT_SLACK_S
    host.heartbeat.change(attempt.row, attempt.delivery, for_s=for_s)
    return payload


async def _known(host: Host, attempt: Attempt) -> Verdict | None:
    """The verdict where a result, or a park, says it all. A woken task's delivery becomes its park."""
    subjects, identity, delivery = host.bus.subjects, attempt.identity, attempt.delivery
    # After a broker's crash a message that was acked may come again and look new, its task parked meanwhile.
    records = [subjects.result(identity), subjects.park(identity)]
    stored, park = await read_many(host.bus, records)
    is_unknown = stored is None and (park is None or attempt.is_wake)
    # A replica that lags must not have a finished task run again: what is younger than this message is its record.
    if is_unknown and await standing(host.bus, identity, subjects.any_state(identity)) > delivery.sequence:
        stored, park = [await read_at_leader(host.bus, identity, record) for record in records]
    if park is not None:
        attempt.has_records = True
        attempt.delivery = replace(delivery, payload=park.data, headers=park.headers, stored_at=parked_since(park))
    if stored is not None:
        attempt.metrics.duplicates["start"].inc()
        return Answered(stored)
    if attempt.is_wake and park is None:
        if delivery.delivered >= NO_PARK_TRIES:
            # Its records have expired: there is nothing left to wake.
            return Superseded()
        return HandBack(Reason.NO_PARK, delay_s=NO_PARK_AGAIN_S)
    return Superseded() if park is not None and not attempt.is_wake else None


async def _history(host: Host, attempt: Attempt, as_type: ContentType) -> History:
    subjects, identity = host.bus.subjects, attempt.identity
    attempt.has_records = True
    # At the leader: a replica that lags must not have a task end, or go on, with what it did not undone.
    records = [subjects.step(identity, name) for name in (CLOSING, FAILED, SAGA)]
    async with asyncio.TaskGroup() as fibers:
        reading = [fibers.create_task(read_at_leader(host.bus, identity, record)) for record in records]
    closing, ended, saga = [asked.result() for asked in reading]
    return History(
        closing=None if closing is None else wire.decode(Closing, closing.data, as_type),
        failed=None if ended is None else wire.decode(Closing, ended.data, as_type),
        has_saga=saga is not None,
    )


async def _begin(host: Host, attempt: Attempt, ledger: Ledger) -> bool:
    """Put the attempt on record. False: another peer did."""
    ttl_s = attempt.ledger_ttl_s(host.settings)
    told = {"peer": host.peer, "traceparent": attempt.span.traceparent}
    if not await record_began(host.bus, attempt.identity, attempt.number, ttl_s=ttl_s, **told):
        return False
    if ledger.crashes:
        await host.tell(EventKind.TAKEN_OVER, attempt.identity)
    elif attempt.is_wake:
        await host.tell(EventKind.WOKEN, attempt.identity)
    return True


async def _undo(handling: Handling, outcome: Outcome) -> Verdict:
    """End with an outcome, once everything is undone that is on record as done."""
    host, attempt = handling.host, handling.attempt
    attempt.span.event("undoes what it did")
    ttl_s = max(1.0, attempt.keep_until(host.settings) - time.time())
    closing = Closing(outcome=outcome)
    closing = await write_step(host.bus, attempt.identity, FAILED, closing, ttl_s=ttl_s, as_type=handling.as_type)
    return await handling.undo(closing.outcome)


async def _owner(host: Host, attempt: Attempt) -> str:
    if attempt.delivery.delivered == 1 and not attempt.is_wake:
        return await host.runs_elsewhere(attempt.identity)
    subject = host.bus.subjects.ctl(attempt.identity.capability, "who-runs")
    question = wire.encode(WhoRuns(id=attempt.identity.id))
    answers = await host.bus.gather(subject, question, within_s=WHO_RUNS_WITHIN_S, enough=1)
    for runs in wire.readable(Runs, answers):
        if runs.running and runs.peer != host.peer:
            return runs.peer
    return ""


def _refusal(
    host: Host, attempt: Attempt, ledger: Ledger, history: History, *, is_cancelled: bool
) -> tuple[Status, Failure | None] | None:
    if history.failed is not None:
        # It ends with what is on record, once all is undone. Undoing has as many attempts again.
        return None
    if is_cancelled:
        return Status.CANCELLED, None
    now = time.time()
    if attempt.task.deadline is not None and now >= attempt.task.deadline:
        return Status.EXPIRED, ledger.last_failure
    if attempt.delivery.delivered > 1 or attempt.is_wake or attempt.task.keep_until is not None:
        # Its result, or what it rests on, may have been recorded and expired; running it could do it twice.
        stored_at, keep_until = attempt.delivery.stored_at, attempt.runs_until(host.settings)
        if now > keep_until:
            message = f"handed out {now - stored_at:.0f} s after it was stored, its records are kept for"
            message += f" {keep_until - stored_at:.0f} s"
            return Status.FAILED, Failure(kind=FailureKind.TOO_OLD, message=message, attempts=ledger.used)
    if ledger is NO_ATTEMPTS:
        return None
    spent = spent_attempts(ledger, attempt.capability.limits.attempts)
    return (Status.FAILED, spent) if spent is not None else None
