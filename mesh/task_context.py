"""What a handler knows of its task, and what every handler can do besides returning."""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from enum import Enum
from functools import cached_property
from typing import Any

import msgspec

from contracts import wire
from contracts.decision import Decision
from contracts.errors import ContractError
from contracts.headers import BAGGAGE, TRACEPARENT, TRACESTATE
from contracts.limit import Limit
from contracts.outcome import DecidedBy, Send, Spent
from contracts.subjects import SESSION, Identity, check_capability, check_key, child_id
from contracts.task import Budget, Sender, Task
from contracts.wire import ContentType
from mesh import payload as payloads
from mesh.digest import digest
from mesh.limits import Holds, MemoryLimits
from mesh.telemetry.logs import TaskLog
from mesh.telemetry.tracing import OFF, Tracing

PARTS_KEPT = 1_000
SENDS_MAX = 1_000
CARRY_BYTES_MAX = 64_000
DECISIONS_MAX = 100
DECISIONS_BYTES_MAX = 128 * 1024
"""Of all decisions of a task together, encoded: they stand in its result record."""
CHOICE_LENGTH_MAX = 100
REASON_LENGTH_MAX = 4_000
INPUTS_BYTES_MAX = 8 * 1024
NAME_LENGTH_MAX = 200

EmitPart = Callable[[int, int, bytes], Coroutine[Any, Any, None]]
"""Publishes a part: attempt, sequence, encoded value."""
Guard = Callable[[str], AbstractAsyncContextManager[None]]
"""Lets a block through a circuit breaker, by its name."""


class TaskContext:
    """What both kinds of context share."""

    def __init__(
        self,
        identity: Identity,
        task: Task | None = None,
        *,
        attempt: int = 1,
        content_type: ContentType = "application/json",
        trace: Mapping[str, str] | None = None,
        tracing: Tracing = OFF,
        timeout_at: float | None = None,
        me: Sender | None = None,
        emit_part: EmitPart | None = None,
        guard: Guard | None = None,
        limits: Holds | Mapping[str, Limit] | None = None,
        stop_clock: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.identity = identity
        self.task = task or Task()
        self.attempt = attempt
        self.trace = trace or {}
        """Headers by which what this task asks for, or a call outside, continues its trace."""
        self._tracing = tracing
        self.has_model_spans = False
        """Whether requests to models have spans of their own below the run's."""
        self.timeout_at = timeout_at
        self.parts_emitted = 0
        self.sends: list[Send] = []
        self._asked: Counter[str] = Counter()
        self.spent_total: Spent | None = None
        self.decided_by: DecidedBy | None = None
        self.decisions: list[Decision] = []
        self._decided_bytes = 0
        self.confidence: float | None = None
        self.reason = ""
        self.content_type = content_type
        self._me = me
        self._emit_part = emit_part
        self._guard: Guard = guard or (lambda _: nullcontext())
        self._limits: Holds = MemoryLimits(limits) if limits is None or isinstance(limits, Mapping) else limits
        self._stop_clock = stop_clock

    # What the task is.

    @cached_property
    def log(self) -> "logging.LoggerAdapter[logging.Logger]":
        """A logger that names the task and the attempt."""
        told = {"capability": self.capability, "task_id": self.id, "attempt": self.attempt}
        return TaskLog(logging.getLogger(f"mesh.handler.{self.capability}"), told)

    @cached_property
    def parts(self) -> deque[tuple[int, Any]]:
        """The last parts this attempt streamed, each with its sequence."""
        return deque(maxlen=PARTS_KEPT)

    @property
    def traceparent(self) -> str:
        """The W3C Trace Context that this task stands in; empty where it is not traced."""
        return self.trace.get(TRACEPARENT, "")

    @property
    def tracer_provider(self) -> Any:
        """OpenTelemetry's provider that records this task's spans; None where it is not traced."""
        return self._tracing.provider

    @property
    def id(self) -> str:
        return self.identity.id

    @property
    def capability(self) -> str:
        return self.identity.capability

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt of this task, and for no other task: hand it to what you call outside."""
        return str(self.identity)

    @property
    def deadline(self) -> float | None:
        """Unix time at which the task expires, or None."""
        return self.task.deadline

    @property
    def sender(self) -> Sender | None:
        return self.task.sender

    @property
    def conversation(self) -> str:
        return self.task.conversation

    @property
    def budget(self) -> Budget | None:
        return self.task.budget

    @property
    def carry(self) -> Any:
        """What a handoff handed along, as JSON-like builtins; None where nothing was."""
        return self.task.carry

    # What the handler can do.

    def send(
        self,
        capability: Any,
        payload: Any = None,
        *,
        name: str | None = None,
        deadline_s: float | None = None,
        reason: str = "",
        confidence: float | None = None,
    ) -> str:
        """Ask for another task, to be published with this task's outcome or not at all. Returns its id.

        Nothing is sent now: the child is part of the result record, so it starts if and only if this task is
        done, once. `capability` is a capability or its name. The id is made from what is asked, so that
        another attempt sends the same children; `name` fixes it instead. `deadline_s` is counted from now;
        without it the child inherits this task's deadline.

        Raises:
            ContractError: the payload cannot travel, or the name is illegal.
        """
        target = check_capability(getattr(capability, "name", capability))
        if len(self.sends) >= SENDS_MAX:
            raise ContractError(f"a task sends at most {SENDS_MAX} others")
        encoded = payloads.encode(payload, self.content_type)
        asked = digest(encoded)
        token = check_key(name) if name is not None else self._token(target, asked, "")
        child = child_id(self.id, token)
        if any(send.capability == target and send.id == child for send in self.sends):
            raise ContractError(f"{target}/{child} is sent already: give each send its own name")
        deadline = self.deadline if deadline_s is None else time.time() + deadline_s
        with self._tracing.create(Identity(target, child)) as span:
            trace = span.headers or self.trace
            self.sends.append(
                self._child(
                    target, child, encoded, asked, deadline=deadline, reason=reason, confidence=confidence, trace=trace
                )
            )
        return child

    def spent(self, *, tokens_in: int = 0, tokens_out: int = 0, usd: float = 0.0) -> None:
        """Report what this attempt used up; reports add up, and stand in the result record."""
        more = Spent(tokens_in=tokens_in, tokens_out=tokens_out, usd=usd)
        self.spent_total = more if self.spent_total is None else self.spent_total + more

    def explain(
        self,
        *,
        confidence: float | None = None,
        reason: str = "",
        model: str = "",
        model_digest: str = "",
        prompt_digest: str = "",
    ) -> None:
        """Say how sure the answer is, why, and what produced it; recorded with the outcome.

        What is left out stays as an earlier call said it.

        Raises:
            ContractError: the confidence is outside 0 to 1.
        """
        told = checked_confidence(confidence)
        self.confidence = self.confidence if told is None else told
        self.reason = reason or self.reason
        known = self.decided_by or DecidedBy()
        self.decided_by = DecidedBy(
            model=model or known.model,
            model_digest=model_digest or known.model_digest,
            prompt_digest=prompt_digest or known.prompt_digest,
        )

    def decide(
        self,
        choice: str,
        reason: str = "",
        confidence: float | None = None,
        inputs: Any = None,
        *,
        model: str = "",
        model_digest: str = "",
        prompt_digest: str = "",
    ) -> None:
        """Put on record what this task chose here, and why, how sure (0 to 1), and from what.

        It stands in the result record, whatever the task comes to, and is told as an event once the task is answered
        or parks. `choice` is a short word, so that choices can be counted; `inputs` is any JSON-like value. Model and
        digests are those of the last `explain` where they are left out. Another run of the task that decides the same
        repeats nothing; decide on what is on record (steps, calls), or a rerun may decide otherwise.

        Raises:
            ContractError: something is too long, too much, or cannot travel; the message names it and its limit.
        """
        if isinstance(choice, Enum):
            choice = choice.value
        known = self.decided_by or DecidedBy()
        decision = Decision(
            choice=_checked("choice", choice, CHOICE_LENGTH_MAX),
            at=time.time(),
            reason=_checked("reason", reason, REASON_LENGTH_MAX),
            confidence=checked_confidence(confidence),
            inputs=_checked_inputs(inputs),
            version=self._me.version if self._me is not None else "",
            model=_checked("model", model or known.model, NAME_LENGTH_MAX),
            model_digest=_checked("model_digest", model_digest or known.model_digest, NAME_LENGTH_MAX),
            prompt_digest=_checked("prompt_digest", prompt_digest or known.prompt_digest, NAME_LENGTH_MAX),
        )
        if not choice:
            raise ContractError("choice is empty: it must say what was chosen")
        self._keep_decision(decision)

    def _keep_decision(self, decision: Decision) -> None:
        if len(self.decisions) >= DECISIONS_MAX:
            raise ContractError(f"a task records at most {DECISIONS_MAX} decisions")
        total = self._decided_bytes + len(wire.encode(decision))
        if total > DECISIONS_BYTES_MAX:
            raise ContractError(f"decisions of {total} bytes in all exceed {DECISIONS_BYTES_MAX} bytes")
        self.decisions.append(decision)
        self._decided_bytes = total

    # How children are named.

    def _token(self, capability: str, asked: str, kind: str) -> str:
        # Sends and calls are counted apart: which of the two comes first may change from run to run.
        return self._numbered(f"{capability}-{asked[:12]}-{kind}")

    def _numbered(self, base: str) -> str:
        number = self._asked[base]
        self._asked[base] += 1
        return f"{base}{number}"

    def _child(
        self,
        capability: str,
        child: str,
        encoded: bytes,
        asked: str,
        *,
        deadline: float | None,
        reason: str,
        confidence: float | None,
        trace: Mapping[str, str] | None = None,
        **more: Any,
    ) -> Send:
        task = Task(
            digest=asked,
            deadline=deadline,
            sender=self._me,
            lineage=self._child_lineage(),
            conversation=self.conversation,
            reason=reason,
            confidence=confidence,
            **{
                "budget": self.budget,
                "keep_until": self.task.keep_until,
                "priority": self.task.priority,
                **more,
            },
        )
        trace = self.trace if trace is None else trace
        return Send(
            capability=capability,
            id=child,
            payload=msgspec.Raw(encoded),
            task=task,
            traceparent=trace.get(TRACEPARENT, ""),
            tracestate=trace.get(TRACESTATE, ""),
            baggage=trace.get(BAGGAGE, ""),
        )

    def _child_lineage(self) -> tuple[str, ...]:
        depth = self.id.count(".")
        ancestors = self.task.lineage if len(self.task.lineage) == depth else (SESSION,) * depth
        return (*ancestors, self.capability)

    def _next_part(self, part: Any) -> tuple[int, bytes]:
        encoded = payloads.encode(part, self.content_type)
        number, self.parts_emitted = self.parts_emitted, self.parts_emitted + 1
        self.parts.append((number, part))
        return number, encoded


def _checked(what: str, text: str, most: int) -> str:
    if not isinstance(text, str):
        raise ContractError(f"{what} is {type(text).__name__}; it must be a string")
    if len(text) > most:
        raise ContractError(f"{what} of {len(text)} characters exceeds {most}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ContractError(f"{what} cannot travel: {error}") from error
    return text


def checked_confidence(confidence: float | None) -> float | None:
    """A confidence, if it is one.

    Raises:
        ContractError: it is no number from 0 to 1.
    """
    if confidence is None:
        return None
    if isinstance(confidence, bool) or not isinstance(confidence, (int, float)):
        raise ContractError(f"confidence is {type(confidence).__name__}; it must be a number from 0 to 1")
    if not 0 <= confidence <= 1:
        raise ContractError(f"confidence of {confidence:g} is outside 0 to 1")
    return float(confidence)


def _checked_inputs(inputs: Any) -> Any:
    """What a decision was made from, as JSON-like builtins."""
    try:
        encoded = payloads.encode(inputs)
    except ContractError as error:
        raise ContractError(f"inputs: {error}") from error
    if len(encoded) > INPUTS_BYTES_MAX:
        raise ContractError(f"inputs of {len(encoded)} bytes exceed {INPUTS_BYTES_MAX} bytes")
    return payloads.ANYTHING.decode(encoded)
