"""`/metrics`, `/healthz` and `/readyz` of a peer, served from a thread so that a busy loop still answers."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

Check = Callable[[], tuple[bool, str]]


@dataclass(frozen=True, slots=True)
class Pages:
    """What is served: metrics, and two checks that say yes or no and why."""

    registry: CollectorRegistry
    is_healthy: Check
    is_ready: Check


@contextmanager
def served(pages: Pages, *, host: str, port: int) -> Iterator[str]:
    """Serve the pages until left; gives the base address. Port 0 takes a free one.

    Raises:
        OSError: the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name http.server calls
            path = self.path.partition("?")[0]
            if path == "/metrics":
                encode, content_type = choose_encoder(self.headers.get("Accept", ""))
                self._answer(200, encode(pages.registry), content_type)
            elif path in ("/healthz", "/readyz"):
                is_fine, why = pages.is_healthy() if path == "/healthz" else pages.is_ready()
                self._answer(200 if is_fine else 503, f"{why}\n".encode(), "text/plain; charset=utf-8")
            else:
                self._answer(404, b"/metrics /healthz /readyz\n", "text/plain; charset=utf-8")

        def _answer(self, status: int, body: bytes, content_type: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, name="mesh-http", daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
