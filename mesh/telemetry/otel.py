"""Spans that OpenTelemetry records. Needs the extra: `pip install 'starling-mesh[otel]'`.

Attributes follow OpenTelemetry's conventions for messaging and generative AI where there are any; ours begin with
`starling.`. An exporter works in a thread of its own with a bounded queue, so one that is slow or gone costs spans,
never tasks.
"""

import asyncio
import logging
import re
import threading
from types import TracebackType
from typing import Any, Final

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from contracts import headers as names
from contracts.subjects import Identity
from contracts.task import Task
from mesh.errors import SetupError
from mesh.telemetry.metrics import distribution_version
from mesh.telemetry.tracing import NO_SPAN, OFF, Attributes, Headers, Span, Tracing, Value, told_by

log = logging.getLogger("mesh.telemetry")

SCOPE: Final = "starling"
FLUSH_WITHIN_S: Final = 2.0
"""How long a peer or client that leaves waits for its last spans to be taken."""

_TRACE: Final = TraceContextTextMapPropagator()
_BAGGAGE: Final = W3CBaggagePropagator()
_NOTHING: Final = Context()
# Whatever tells one step of a kind from another stands in an attribute, not in the span's name.
_NUMBERED: Final = re.compile(r"-[0-9a-f]{8,}.*|[-_.]\d+$")

_exporting = threading.Lock()
_exported: Any = None
"""The provider that this process made for itself."""


class RecordedSpan(Span):
    """A span of OpenTelemetry's, with the context that it stands in."""

    __slots__ = ("_context", "_headers", "_is_open", "_span", "_token")

    def __init__(self, span: trace.Span, context: Context) -> None:
        self._span = span
        self._context = trace.set_span_in_context(span, context)
        self._headers: dict[str, str] | None = None
        self._token: Any = None
        self._is_open = True

    @property
    def headers(self) -> Headers:  # type: ignore[override]  # made when it is asked for
        if self._headers is None:
            self._headers = {}
            _TRACE.inject(self._headers, self._context)
            _BAGGAGE.inject(self._headers, self._context)
        return self._headers

    @property
    def is_recording(self) -> bool:  # type: ignore[override]
        return self._span.is_recording()

    def make_current(self) -> None:
        contexts.attach(self._context)

    def tell(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    def event(self, name: str, attributes: Attributes | None = None) -> None:
        self._span.add_event(name, attributes)

    def link(self, traceparent: str) -> None:
        found = _context_of(traceparent)
        if found is not None:
            self._span.add_link(found)

    def failed(self, error: BaseException | None = None, *, kind: str = "", message: str = "") -> None:
        if error is not None:
            self._span.record_exception(error)
        self._span.set_attribute("error.type", kind or (type(error).__qualname__ if error is not None else "_OTHER"))
        self._span.set_status(Status(StatusCode.ERROR, message or (str(error) if error is not None else "")))

    def end(self) -> None:
        if self._is_open:
            self._is_open = False
            try:
                self._span.end()
            except Exception as error:  # noqa: BLE001  # whatever a processor of theirs raises, the task goes on
                log.warning("a span is not handed over: %r", error)

    def __enter__(self) -> Span:
        self._token = contexts.attach(self._context)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        contexts.detach(self._token)
        if isinstance(error, Exception):
            self.failed(error)
        elif error is not None:
            # Cancelled: the run parks, or its task was; that is no failure of what was under way.
            self.event("cut short")
        self.end()


class OTel(Tracing):
    """The spans of one peer or client, recorded by a provider."""

    is_on = True

    def __init__(self, provider: trace.TracerProvider, tracer: trace.Tracer, *, instance: str) -> None:
        self.provider = provider
        self._tracer = tracer
        self._instance = instance

    def submit(self, task: Identity, envelope: Task, queue: str, *, size: int) -> Span:
        attributes: dict[str, Value] = {
            **_messaging("send", "submit", task, queue),
            "messaging.message.body.size": size,
            "starling.lane": envelope.priority.value,
        }
        if envelope.conversation:
            attributes["messaging.message.conversation_id"] = envelope.conversation
        return self._begin(f"submit {task.capability}", SpanKind.PRODUCER, attributes)

    def create(self, task: Identity) -> Span:
        attributes = _messaging("create", "send", task, task.capability)
        return self._begin(f"send {task.capability}", SpanKind.PRODUCER, attributes)

    def signal(self, task: Identity, name: str, of_task: Headers) -> Span:
        attributes = {**_messaging("send", "signal", task, task.capability), "starling.signal": name}
        theirs = _TRACE.extract(of_task, _NOTHING)
        told = trace.get_current_span(theirs).get_span_context()
        if not trace.get_current_span().get_span_context().is_valid:
            return self._begin(f"signal {task.capability}", SpanKind.PRODUCER, attributes, theirs)
        links = [Link(told)] if told.is_valid else []
        return self._begin(f"signal {task.capability}", SpanKind.PRODUCER, attributes, links=links)

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
        # What the connection was made in is not the task's: its message alone tells.
        context = _BAGGAGE.extract(headers, _TRACE.extract(headers, _NOTHING))
        before = _context_of(earlier) if earlier else None
        links = [Link(before, {"starling.link": "earlier run"})] if before is not None else []
        told = {**_messaging("process", "process", task, queue), "messaging.client.id": self._instance, **attributes}
        return self._begin(f"process {task.capability}", SpanKind.CONSUMER, told, context, links, began_at)

    def step(self, name: str) -> Span:
        return self._begin(f"step {_NUMBERED.sub('', name)}", SpanKind.INTERNAL, {"starling.step": name})

    async def flush(self) -> None:
        force_flush = getattr(self.provider, "force_flush", None)
        if force_flush is None:
            return
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def work() -> None:
            try:
                force_flush(int(FLUSH_WITHIN_S * 1000))
            except Exception as error:  # noqa: BLE001  # spans that nobody takes are no failure of ours
                log.debug("spans not handed over: %s", error)
            try:
                loop.call_soon_threadsafe(done.set)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return

        # A thread of its own: the loop's would keep the process until the exporter gives up.
        threading.Thread(target=work, name="mesh-traces", daemon=True).start()
        try:
            async with asyncio.timeout(FLUSH_WITHIN_S):
                await done.wait()
        except TimeoutError:
            log.warning("the last spans are not taken within %g s; they are given up", FLUSH_WITHIN_S)

    def _begin(
        self,
        name: str,
        kind: SpanKind,
        attributes: Attributes,
        context: Context | None = None,
        links: list[Link] | None = None,
        began_at: float | None = None,
    ) -> Span:
        parent = contexts.get_current() if context is None else context
        start = None if began_at is None else int(began_at * 1e9)
        try:
            span = self._tracer.start_span(
                name, parent, kind, attributes, links, start, record_exception=False, set_status_on_exception=False
            )
        except Exception as error:  # noqa: BLE001  # whatever a sampler or processor of theirs raises, the task goes on
            log.warning("a span is not recorded: %r", error)
            return NO_SPAN
        return RecordedSpan(span, parent)


def started(how: str, provider: trace.TracerProvider | None, *, service: str, instance: str) -> Tracing:
    """Tracing by a provider, the process's own, or one that exports to where the OTEL_* variables say.

    Raises:
        SetupError: the exporter cannot be set up.
    """
    version = distribution_version()
    provider = provider or trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider):
        if how != "otlp":
            return OFF
        provider = _exporter(service, instance, version)
    tracer = provider.get_tracer(SCOPE, version)
    if isinstance(tracer, trace.NoOpTracer):
        return OFF
    told_by(_current)
    return OTel(provider, tracer, instance=instance)


def _exporter(service: str, instance: str, version: str) -> Any:
    """The provider of this process that exports over OTLP; the process's own from then on."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    global _exported
    with _exporting:
        if _exported is None:
            named = Resource.create({})
            ours = {"service.instance.id": instance, "service.version": version}
            if str(named.attributes.get("service.name", "")).startswith("unknown_service"):
                ours |= {"service.name": service, "service.namespace": SCOPE}
            resource = Resource({key: value for key, value in ours.items() if value})
            try:
                # At the end of the process nobody waits for an exporter: who leaves has flushed.
                provider = TracerProvider(resource=named.merge(resource), shutdown_on_exit=False)
                provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
            except ValueError as error:
                raise SetupError(f"MESH_TRACES is otlp, and its exporter cannot be set up: {error}") from error
            trace.set_tracer_provider(provider)
            _exported = provider
        return _exported


def _messaging(kind: str, operation: str, task: Identity, queue: str) -> dict[str, Value]:
    return {
        "messaging.system": "nats",
        "messaging.operation.type": kind,
        "messaging.operation.name": operation,
        "messaging.destination.name": queue,
        "messaging.message.id": task.id,
        "starling.capability": task.capability,
        "starling.task.id": task.id,
    }


def _context_of(traceparent: str) -> trace.SpanContext | None:
    found = trace.get_current_span(_TRACE.extract({names.TRACEPARENT: traceparent}, _NOTHING)).get_span_context()
    return found if found.is_valid else None


def _current() -> tuple[str, str, bool] | None:
    found = trace.get_current_span().get_span_context()
    if not found.is_valid:
        return None
    return f"{found.trace_id:032x}", f"{found.span_id:016x}", found.trace_flags.sampled
