"""Traces: one for each workflow, across submitter, peers, children and attempts, by headers of the messages.

What is here records nothing: it stands wherever nothing is traced, and costs a task next to nothing. Spans that are
recorded come from `mesh.telemetry.otel`, which is imported only where OpenTelemetry is wanted. Rules:

- A publish that asks for a task is a span of kind PRODUCER, and its context travels with the message. Each run of the
  task is one of kind CONSUMER below it, so attempts are siblings; each links to the one before it.
- A task that came without a context begins its own trace: that of its first run, which goes with its records.
- What is replayed from a record has no span.
- While a run is under way its span is OpenTelemetry's current one, in the handler's thread too.
- A trace is told beside the work: nothing waits for it but the end of the process, for a bounded time.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final

from contracts import headers as names
from contracts.subjects import Identity
from contracts.task import Task
from mesh.errors import SetupError
from mesh.settings import Settings

Value = str | bool | int | float
Attributes = Mapping[str, Value]
Headers = Mapping[str, str]

NO_HEADERS: Final[Headers] = {}
DUPLICATE: Final[Attributes] = {"starling.is_new": False}
"""Of a submission that met its task, and started nothing."""


class Span:
    """A span that is not recorded. As a context manager it is the current one within its block."""

    __slots__ = ()

    headers: Headers = NO_HEADERS
    """What makes a message continue the trace from here: traceparent, tracestate, baggage."""
    is_recording = False

    @property
    def traceparent(self) -> str:
        return self.headers.get(names.TRACEPARENT, "")

    def make_current(self) -> None:
        """Be the current span of this fiber, and of what it starts, to its end."""

    def tell(self, attributes: Attributes) -> None:
        """Add attributes."""

    def event(self, name: str, attributes: Attributes | None = None) -> None:
        """Add something that happened now."""

    def link(self, traceparent: str) -> None:
        """Refer to a span elsewhere; nothing if there is none."""

    def failed(self, error: BaseException | None = None, *, kind: str = "", message: str = "") -> None:
        """Say that it went wrong, and how."""

    def end(self) -> None:
        """End it now. Safe to repeat."""

    def __enter__(self) -> "Span":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


NO_SPAN: Final = Span()


class Tracing:
    """The spans of one peer or client; here, none."""

    is_on = False
    provider: Any = None
    """The OpenTelemetry tracer provider that records them, or None."""

    def submit(self, task: Identity, envelope: Task, queue: str, *, size: int) -> Span:
        """A publish that asks for a task."""
        return NO_SPAN

    def create(self, task: Identity) -> Span:
        """A task that is sent with its sender's outcome."""
        return NO_SPAN

    def signal(self, task: Identity, name: str, of_task: Headers) -> Span:
        """A signal that is sent to a task, whose headers tell its trace."""
        return NO_SPAN

    def run(
        self,
        task: Identity,
        queue: str,
        headers: Headers,
        attributes: Attributes,
        *,
        began_at: float | None = None,
        earlier: str = "",
    ) -> Span:
        """A run of a task; `headers` are its message's, `earlier` is the context of the run before it."""
        return NO_SPAN

    def step(self, name: str) -> Span:
        """A durable step that is run."""
        return NO_SPAN

    async def flush(self) -> None:
        """Hand over what is recorded, for a bounded time. It raises nothing."""


OFF: Final = Tracing()

_ids: Callable[[], tuple[str, str, bool] | None] | None = None
"""Trace id, span id, and whether it is sampled, of the current span; set once something is traced in this process."""


def started(settings: Settings, *, service: str, instance: str = "", provider: Any = None) -> Tracing:
    """The tracing that `MESH_TRACES` asks for, of what calls itself `service` where the environment says no name.

    A `provider` records it in place of the process's own, or of one that exports.

    Raises:
        SetupError: spans are to be exported, and the extra `otel` is not installed.
    """
    # Who has set a provider has imported this; without one there is nothing to spend the import on.
    has_none = provider is None and "opentelemetry.trace" not in sys.modules
    if settings.traces == "off" or (settings.traces == "auto" and has_none):
        return OFF
    try:
        from mesh.telemetry import otel
    except ImportError as error:
        if settings.traces == "auto":
            return OFF
        raise SetupError(f"MESH_TRACES is otlp: pip install 'starling-mesh[otel]' ({error})") from error
    return otel.started(settings.traces, provider, service=service, instance=instance)


def told_by(read: Callable[[], tuple[str, str, bool] | None]) -> None:
    """Have `read` tell the ids of the current span from now on."""
    global _ids
    _ids = read


def current_ids() -> tuple[str, str] | None:
    """Trace id and span id of the current span, or None."""
    found = None if _ids is None else _ids()
    return None if found is None else found[:2]


def exemplar() -> dict[str, str] | None:
    """Trace id and span id of the current span as labels of a metric's exemplar; None where it is not sampled."""
    found = None if _ids is None else _ids()
    return {"trace_id": found[0], "span_id": found[1]} if found is not None and found[2] else None


class Replay:
    """Whether what a block asked for was on record."""

    __slots__ = ("was_found",)

    def __init__(self) -> None:
        self.was_found = False


_replay: ContextVar[Replay | None] = ContextVar("mesh_replay", default=None)


@contextmanager
def watching_replay() -> Iterator[Replay]:
    """Learn whether the child that the block asks for was asked for by an earlier run, and answered."""
    replay = Replay()
    token = _replay.set(replay)
    try:
        yield replay
    finally:
        _replay.reset(token)


def found_on_record() -> None:
    """Say that a child's answer was on record."""
    if (replay := _replay.get()) is not None:
        replay.was_found = True


def carried(headers: Headers) -> dict[str, str]:
    """What of a message's headers carries a trace."""
    if names.TRACEPARENT not in headers:
        return {}
    return {name: headers[name] for name in names.TRACE if name in headers}
