"""A collector of spans, as small as a test needs it: takes OTLP over HTTP and keeps what comes."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1 import trace_pb2


@dataclass(frozen=True)
class Collected:
    """One span as it was exported."""

    span: trace_pb2.Span
    resource: dict[str, Any]

    @property
    def name(self) -> str:
        return self.span.name

    @property
    def kind(self) -> str:
        return trace_pb2.Span.SpanKind.Name(self.span.kind).removeprefix("SPAN_KIND_")

    @property
    def trace_id(self) -> str:
        return self.span.trace_id.hex()

    @property
    def span_id(self) -> str:
        return self.span.span_id.hex()

    @property
    def parent_id(self) -> str:
        return self.span.parent_span_id.hex()

    @property
    def has_failed(self) -> bool:
        return self.span.status.code == trace_pb2.Status.STATUS_CODE_ERROR

    @property
    def attributes(self) -> dict[str, Any]:
        return {pair.key: _value(pair.value) for pair in self.span.attributes}

    @property
    def events(self) -> list[str]:
        return [event.name for event in self.span.events]


@dataclass
class Collector:
    """What was exported until now. With `is_stuck` set it takes connections and answers nothing."""

    url: str = ""
    spans: list[Collected] = field(default_factory=list)
    requests: int = 0
    is_stuck: bool = False
    going_on: threading.Event = field(default_factory=threading.Event)

    def named(self, name: str) -> list[Collected]:
        return sorted((one for one in self.spans if one.name == name), key=lambda one: one.span.start_time_unix_nano)

    def take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        for group in request.resource_spans:
            resource = {pair.key: _value(pair.value) for pair in group.resource.attributes}
            self.spans += [Collected(span, resource) for scope in group.scope_spans for span in scope.spans]


@contextmanager
def collecting(*, is_stuck: bool = False) -> Iterator[Collector]:
    """A collector on a free port, until left."""
    collector = Collector(is_stuck=is_stuck)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.requests += 1
            if collector.is_stuck:
                collector.going_on.wait()
                return
            collector.take(body)
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    collector.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield collector
    finally:
        collector.going_on.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _value(value: AnyValue) -> Any:
    return getattr(value, value.WhichOneof("value") or "string_value")


def tree(spans: list[Collected]) -> str:
    """The spans of a trace as text, children below their parents; those whose parent never came stand alone."""
    known = {one.span_id for one in spans}
    began = min(one.span.start_time_unix_nano for one in spans)
    lines: list[str] = []

    def told(one: Collected, depth: int) -> None:
        at, ends = one.span.start_time_unix_nano, one.span.end_time_unix_nano
        found = one.attributes
        words = [
            f"{name.removeprefix('starling.')}={found[name]}"
            for name in ("starling.attempt", "starling.status", "starling.crashes", "starling.peer", "error.type")
            if name in found
        ]
        name = f"{'  ' * depth}{one.name}"
        lines.append(
            f"{(at - began) / 1e6:8.1f} ms {name:<32} {one.kind:<8} {(ends - at) / 1e6:8.1f} ms  {' '.join(words)}"
        )
        below = [other for other in spans if other.parent_id == one.span_id]
        for other in sorted(below, key=lambda each: each.span.start_time_unix_nano):
            told(other, depth + 1)

    for top in sorted(spans, key=lambda each: each.span.start_time_unix_nano):
        if not top.parent_id:
            told(top, 0)
    for parent in sorted({one.parent_id for one in spans} - known - {""}):
        lines.append(f"            (span {parent} never came)")
        for one in sorted(spans, key=lambda each: each.span.start_time_unix_nano):
            if one.parent_id == parent:
                told(one, 1)
    return "\n".join(lines)
