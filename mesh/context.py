"""What a handler knows of its task, and what it can do besides returning."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine
from functools import cached_property
from typing import Any

import msgspec

from contracts.errors import ContractError
from contracts.outcome import DecidedBy, Send, Spent
from contracts.subjects import SESSION, Identity, check_capability, check_key, child_id
from contracts.task import Budget, Sender, Task
from contracts.wire import ContentType
from mesh import payload as payloads
from mesh.digest import digest

PARTS_KEPT = 1_000
SENDS_MAX = 1_000

EmitPart = Callable[[int, int, bytes], Coroutine[Any, Any, None]]
"""Publishes a part: attempt, sequence, encoded value."""


class _TaskContext:
    """What both kinds of context share."""

    def __init__(
        self,
        identity: Identity,
        task: Task | None = None,
        *,
        attempt: int = 1,
        content_type: ContentType = "application/json",
        traceparent: str = "",
        timeout_at: float | None = None,
        me: Sender | None = None,
        emit_part: EmitPart | None = None,
    ) -> None:
        self.identity = identity
        self.task = task or Task()
        self.attempt = attempt
        self.traceparent = traceparent
        self.timeout_at = timeout_at
        self.parts_emitted = 0
        self.sends: list[Send] = []
        self.spent_total: Spent | None = None
        self.decided_by: DecidedBy | None = None
        self.confidence: float | None = None
        self.reason = ""
        self._content_type = content_type
        self._me = me
        self._emit_part = emit_part

    # What the task is.

    @cached_property
    def log(self) -> "logging.LoggerAdapter[logging.Logger]":
        """A logger that names the task and the attempt."""
        return logging.LoggerAdapter(
            logging.getLogger(f"mesh.handler.{self.capability}"), {"task": str(self.identity), "attempt": self.attempt}
        )

    @cached_property
    def parts(self) -> deque[tuple[int, Any]]:
        """The last parts this attempt streamed, each with its sequence."""
        return deque(maxlen=PARTS_KEPT)

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
        encoded = payloads.encode(payload, self._content_type)
        token = check_key(name) if name is not None else self._token(target, encoded)
        child = child_id(self.id, token)
        if any(send.capability == target and send.id == child for send in self.sends):
            raise ContractError(f"{target}/{child} is sent already: give each send its own name")
        task = Task(
            digest=digest(encoded),
            deadline=self.deadline if deadline_s is None else time.time() + deadline_s,
            sender=self._me,
            lineage=self._child_lineage(),
            conversation=self.conversation,
            budget=self.budget,
            reason=reason,
            confidence=confidence,
        )
        self.sends.append(
            Send(capability=target, id=child, payload=msgspec.Raw(encoded), task=task, traceparent=self.traceparent)
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
        """Say how sure the answer is, why, and what produced it; recorded with the outcome. The last call counts.

        Raises:
            ContractError: the confidence is outside 0 to 1.
        """
        if confidence is not None and not 0 <= confidence <= 1:
            raise ContractError(f"confidence of {confidence:g} is outside 0 to 1")
        self.confidence, self.reason = confidence, reason
        self.decided_by = DecidedBy(model=model, model_digest=model_digest, prompt_digest=prompt_digest)

    # How children are named.

    def _token(self, capability: str, encoded: bytes) -> str:
        base = f"{capability}-{digest(encoded)[:12]}"
        earlier = sum(send.id.rpartition("~")[2].rpartition("-")[0] == base for send in self.sends)
        return f"{base}-{earlier}"

    def _child_lineage(self) -> tuple[str, ...]:
        depth = self.id.count(".")
        ancestors = self.task.lineage if len(self.task.lineage) == depth else (SESSION,) * depth
        return (*ancestors, self.capability)

    def _next_part(self, part: Any) -> tuple[int, bytes]:
        encoded = payloads.encode(part, self._content_type)
        number, self.parts_emitted = self.parts_emitted, self.parts_emitted + 1
        self.parts.append((number, part))
        return number, encoded


class Context(_TaskContext):
    """The context of one attempt of an async handler.

    In a unit test it can be made by hand: `Context(Identity("review-file", "k1"))`; what the handler emits
    and sends then stays in `parts` and `sends`.
    """

    async def emit(self, part: Any) -> None:
        """Stream a part to whoever listens. Not stored: the recorded result stays authoritative.

        The last 1,000 parts of the running attempt are kept for listeners who missed them. Another attempt
        starts over with part 0.

        Raises:
            ContractError: the part cannot travel.
        """
        number, encoded = self._next_part(part)
        if self._emit_part is not None:
            await self._emit_part(self.attempt, number, encoded)


class BlockingContext(_TaskContext):
    """The context of a plain `def` handler, which runs in a thread: the same, with an `emit` that blocks.

    A thread cannot be cancelled: look at `is_abandoned` in long loops, and return.
    """

    loop: asyncio.AbstractEventLoop | None = None
    thread_ended: asyncio.Future[None] | None = None
    is_abandoned: bool = False
    """Whether the task was cancelled, timed out or handed back meanwhile: what is returned will be dropped."""

    def emit(self, part: Any) -> None:
        """Stream a part, as `Context.emit`; returns when the connection has taken it.

        Raises:
            ContractError: the part cannot travel.
        """
        number, encoded = self._next_part(part)
        if self._emit_part is not None and self.loop is not None:
            coroutine = self._emit_part(self.attempt, number, encoded)
            asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()
