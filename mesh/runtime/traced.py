"""The span of a run: begun before the handler, current while it runs and is settled, ended with the delivery."""

from dataclasses import replace
from typing import assert_never

from contracts.outcome import Outcome, Status
from contracts.subjects import consumer_name
from mesh.resilience.retry import Ledger
from mesh.runtime.host import Attempt, Host
from mesh.runtime.verdict import Answer, Answered, HandBack, Park, Parked, Retry, Superseded, Verdict
from mesh.telemetry import logs
from mesh.telemetry.tracing import NO_SPAN, Value, carried


def begin(host: Host, attempt: Attempt, ledger: Ledger) -> None:
    """Begin the span of a run, if tasks are traced here; log lines name the task from now on."""
    logs.of_task(attempt.identity.capability, attempt.identity.id, attempt.number)
    if not host.tracing.is_on:
        return
    delivery, task, capability = attempt.delivery, attempt.task, attempt.capability
    attributes: dict[str, Value] = {
        "messaging.consumer.group.name": consumer_name(capability.name, task.priority.lane),
        "messaging.message.body.size": len(delivery.payload),
        "starling.attempt": attempt.number,
        "starling.delivered": delivery.delivered,
        "starling.is_woken": attempt.is_wake,
        "starling.lane": task.priority.value,
        "starling.peer": host.peer,
        "starling.agent": capability.agent.name,
        "starling.version": capability.agent.version,
        "starling.owner": capability.agent.owner,
    }
    if task.conversation:
        attributes["messaging.message.conversation_id"] = task.conversation
    if task.handed:
        attributes["starling.handoffs"] = len(task.handed)
    if task.redrive_of:
        attributes["starling.redrive_of"] = task.redrive_of
    if ledger.crashes:
        attributes["starling.crashes"] = ledger.crashes
    headers = carried(delivery.headers)
    if not headers and ledger.traced:
        # It came without a trace: its first run began one.
        headers = {"traceparent": ledger.traced[0][1]}
    queue = host.bus.subjects.queue(capability.name, task.priority.lane)
    earlier = ledger.traced[-1][1] if ledger.traced else ""
    attempt.span = span = host.tracing.run(attempt.identity, queue, headers, attributes, earlier=earlier)
    span.make_current()
    if ledger.crashes:
        span.event("taken over", {"starling.crashes": ledger.crashes})
    if not headers:
        # A park, a dead letter and what is redriven keep what the message says.
        attempt.delivery = replace(delivery, headers={**delivery.headers, **span.headers})


def judged(host: Host, attempt: Attempt, verdict: Verdict) -> None:
    """Tell the run's span what it came to; a task that is answered without a run has a span of its own for that."""
    if not host.tracing.is_on:
        return
    if isinstance(verdict, Answer) and attempt.span is NO_SPAN:
        begin(host, attempt, Ledger())
    span = attempt.span
    match verdict:
        case Answer(outcome):
            span.tell(_told(attempt, outcome))
            failure = outcome.failure
            if outcome.status is Status.FAILED and failure is not None:
                span.failed(kind=failure.error or failure.kind, message=failure.message)
            elif outcome.status is Status.EXPIRED:
                span.failed(kind="expired", message="its deadline passed")
        case Retry(failure):
            span.tell({"starling.status": "throttled" if verdict.is_throttled else "retried"})
            span.failed(kind=failure.error or failure.kind, message=failure.message)
        case HandBack(reason):
            span.tell({"starling.status": "handed-back", "starling.reason": reason})
        case Park(waits):
            span.tell({"starling.status": "parked", "starling.waits": len(waits)})
        case Parked():
            span.tell({"starling.status": "parked"})
        case Answered() | Superseded():
            span.tell({"starling.status": "answered elsewhere"})
        case _:
            assert_never(verdict)


def _told(attempt: Attempt, outcome: Outcome) -> dict[str, Value]:
    told: dict[str, Value] = {
        "starling.status": outcome.status.value,
        "starling.queue_s": outcome.queue_s,
        "starling.run_s": outcome.run_s,
    }
    if outcome.confidence is not None:
        told["starling.confidence"] = outcome.confidence
    if (decided := outcome.decided_by) is not None and decided.model:
        told["gen_ai.request.model"] = decided.model
        told["starling.model_digest"], told["starling.prompt_digest"] = decided.model_digest, decided.prompt_digest
    if (spent := outcome.spent) is not None:
        # What spans below tell of each request, this one tells as their sum, under a name that is not added up again.
        word = "aggregated_usage" if attempt.has_model_spans else "usage"
        told[f"gen_ai.{word}.input_tokens"] = spent.tokens_in
        told[f"gen_ai.{word}.output_tokens"] = spent.tokens_out
        if spent.usd:
            told["starling.usd"] = spent.usd
    return told
