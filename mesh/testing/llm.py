"""An endpoint that speaks OpenAI's chat completions, does what it is told, and counts.

    with llm_server() as llm:
        LLMSettings(base_url=llm.url, model="calls-10")

Its model `calls-N` takes N requests to come to an answer: it asks for one of the tools it is offered N-1 times, and
then says what it found. What it answers depends on the conversation alone, so a request that is made again is
answered alike. `python -m mesh.testing.llm` is one as a process of its own, which outlives the peers it serves.
"""

import argparse
import json
import re
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import msgspec

ANYWHERE: Final = "127.0.0.1"
ANSWER_WITHIN_S: Final = 10.0
HELD_AT_MOST_S: Final = 60.0
_CALLS = re.compile(r"calls-(\d+)")


class State(StrEnum):
    """How far the answer to a request got."""

    STARTED = "started"
    FINISHED = "finished"
    BROKEN = "broken"
    REFUSED = "refused"


class Request(msgspec.Struct):
    """One request as the endpoint would bill it."""

    conversation: str
    """The first thing the user said."""
    turn: int
    """How many answers the conversation had before, from 0."""
    key: str = ""
    """The idempotency key that it came with."""
    authorization: str = ""
    state: State = State.STARTED
    tokens_in: int = 0
    tokens_out: int = 0


class Call(msgspec.Struct, frozen=True):
    """A tool that the model asks for."""

    tool: str
    arguments: dict[str, Any]


class Reply(msgspec.Struct, frozen=True):
    """What the model says."""

    text: str = ""
    calls: tuple[Call, ...] = ()


class Trouble(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the next requests meet instead of an answer: a status, or a body that is no completion."""

    status: int = 200
    times: int = 1
    retry_after_s: float | None = None


class Hold(msgspec.Struct, frozen=True):
    """Stop in the middle of an answer, once: of the request with that number, from 1, after so many pieces."""

    request: int
    pieces: int = 1


class Bill(msgspec.Struct, frozen=True):
    """What was asked of the endpoint so far."""

    requests: tuple[Request, ...] = ()
    is_holding: bool = False

    @property
    def started(self) -> int:
        return sum(request.state is not State.REFUSED for request in self.requests)

    @property
    def finished(self) -> int:
        return sum(request.state is State.FINISHED for request in self.requests)

    @property
    def tokens_in(self) -> int:
        return sum(request.tokens_in for request in self.requests)

    @property
    def tokens_out(self) -> int:
        return sum(request.tokens_out for request in self.requests)


Script = Callable[[Mapping[str, Any]], Reply]
"""What to say to a request, which is as OpenAI has it. The same request must be answered alike."""


def scripted(asked: Mapping[str, Any]) -> Reply:
    """The script of the model `calls-N`; any other name is `calls-1`."""
    found = _CALLS.search(asked["model"])
    calls = int(found[1]) if found else 1
    turn = _turn(asked["messages"])
    tools = asked.get("tools") or []
    if turn + 1 < calls and tools:
        function = tools[turn % len(tools)]["function"]
        call = Call(function["name"], _arguments(function.get("parameters") or {}, turn))
        return Reply(f"Step {turn + 1} of {calls}: I look at {function['name']}. ", (call,))
    return Reply(f"After {turn + 1} of {calls} steps this is the answer to: {_conversation(asked['messages'])}")


def replies(said: Sequence[Reply]) -> Script:
    """The script that answers each turn of a conversation with the next reply, and then with the last one."""
    return lambda asked: said[min(_turn(asked["messages"]), len(said) - 1)]


class LLMServer:
    """A running endpoint. `url` is what `MESH_LLM_BASE_URL` is to say."""

    def __init__(self, url: str) -> None:
        self.url = url

    def bill(self) -> Bill:
        return msgspec.json.decode(self._ask("GET", "/bill"), type=Bill)

    def hold(self, request: int, *, pieces: int = 1) -> None:
        """Stop in the middle of that request's answer, until `release`."""
        self._ask("POST", "/hold", Hold(request, pieces))

    def release(self) -> None:
        self._ask("POST", "/release")

    def trouble(self, status: int, *, times: int = 1, retry_after_s: float | None = None) -> None:
        """Refuse the next requests with a status, or with 200 answer something that is no completion."""
        self._ask("POST", "/trouble", Trouble(status, times, retry_after_s))

    def _ask(self, method: str, path: str, body: Any = None) -> bytes:
        address = self.url.removesuffix("/v1") + path
        data = msgspec.json.encode(body) if method == "POST" else None
        request = urllib.request.Request(address, data=data, method=method)  # noqa: S310  # http, and our own
        with urllib.request.urlopen(request, timeout=ANSWER_WITHIN_S) as answer:  # noqa: S310  # the same
            told: bytes = answer.read()
        return told


@contextmanager
def llm_server(script: Script = scripted, *, pace_s: float = 0.0, port: int = 0) -> Iterator[LLMServer]:
    """An endpoint in threads of this process, on a free port, until left. `pace_s` passes before each piece."""
    desk = _Desk(script, pace_s)
    server = _Server((ANYWHERE, port), desk)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield LLMServer(f"http://{ANYWHERE}:{server.server_address[1]}/v1")
    finally:
        desk.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Desk:
    """What the threads of one endpoint share."""

    def __init__(self, script: Script, pace_s: float) -> None:
        self.script = script
        self.pace_s = pace_s
        self.lock = threading.Lock()
        self.requests: list[Request] = []
        self.holds: dict[int, int] = {}
        self.released = threading.Event()
        self.holding = 0
        self.trouble = Trouble(times=0)

    def bill(self) -> Bill:
        with self.lock:
            return Bill(tuple(self.requests), self.holding > 0)

    def hold(self, hold: Hold) -> None:
        with self.lock:
            self.released.clear()
            self.holds[hold.request] = hold.pieces

    def take_in(self, request: Request) -> tuple[Trouble | None, int | None]:
        """Note a request; the trouble it meets, and the piece after which it is held."""
        with self.lock:
            self.requests.append(request)
            if self.trouble.times:
                self.trouble = msgspec.structs.replace(self.trouble, times=self.trouble.times - 1)
                return self.trouble, None
            number = sum(one.state is not State.REFUSED for one in self.requests)
            return None, self.holds.pop(number, None)

    def wait(self) -> None:
        with self.lock:
            self.holding += 1
        self.released.wait(HELD_AT_MOST_S)
        with self.lock:
            self.holding -= 1


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], desk: _Desk) -> None:
        super().__init__(address, _Handler)
        self.desk = desk

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing where a client is gone: that is what this server is for."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:  # the base class calls it so
        self._answer(200, msgspec.json.encode(self.server.desk.bill()))

    def do_POST(self) -> None:  # the base class calls it so
        desk = self.server.desk
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        match self.path:
            case "/v1/chat/completions":
                self._complete(json.loads(body))
                return
            case "/hold":
                desk.hold(msgspec.json.decode(body, type=Hold))
            case "/release":
                desk.released.set()
            case "/trouble":
                desk.trouble = msgspec.json.decode(body, type=Trouble)
            case _:
                self._answer(404, b'{"error": {"message": "no such path"}}')
                return
        self._answer(200, b"{}")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class calls it so
        """Say nothing."""

    def _complete(self, asked: dict[str, Any]) -> None:
        desk = self.server.desk
        request = Request(
            _conversation(asked["messages"]),
            _turn(asked["messages"]),
            self.headers.get("Idempotency-Key", ""),
            self.headers.get("Authorization", ""),
            tokens_in=len(json.dumps(asked["messages"])) // 4,
        )
        trouble, held_after = desk.take_in(request)
        if trouble is not None:
            request.state, request.tokens_in = State.REFUSED, 0
            self._refuse(trouble)
            return
        reply = desk.script(asked)
        pieces = [*re.findall(r"\S+\s*", reply.text), *reply.calls]
        try:
            if asked.get("stream"):
                self._stream(asked, request, pieces, held_after)
            else:
                for _ in self._pieces(request, pieces, held_after):
                    pass
                self._answer(200, json.dumps(_whole(asked, request, reply)).encode())
            request.state = State.FINISHED
        except OSError:
            request.state = State.BROKEN
            raise

    def _pieces(self, request: Request, pieces: Sequence[Any], held_after: int | None) -> Iterator[Any]:
        desk = self.server.desk
        for number, piece in enumerate(pieces):
            if number == held_after:
                desk.wait()
            time.sleep(desk.pace_s)
            request.tokens_out += 1
            yield piece

    def _stream(self, asked: dict[str, Any], request: Request, pieces: Sequence[Any], held_after: int | None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        calls = 0
        for piece in self._pieces(request, pieces, held_after):
            if isinstance(piece, Call):
                delta: dict[str, Any] = {"tool_calls": [{"index": calls, **_tool_call(request, calls, piece)}]}
                calls += 1
            else:
                delta = {"role": "assistant", "content": piece}
            self._event(_chunk(asked, [{"index": 0, "delta": delta, "finish_reason": None}]))
        ended = "tool_calls" if calls else "stop"
        self._event(_chunk(asked, [{"index": 0, "delta": {}, "finish_reason": ended}]))
        if (asked.get("stream_options") or {}).get("include_usage"):
            self._event({**_chunk(asked, []), "usage": _usage(request)})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, event: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.flush()

    def _refuse(self, trouble: Trouble) -> None:
        if trouble.status == 200:
            self._answer(200, b'{"this is": "no completion"}')
            return
        more = {} if trouble.retry_after_s is None else {"Retry-After": f"{trouble.retry_after_s:g}"}
        told = {"error": {"message": f"told to answer {trouble.status}", "type": "test", "code": None, "param": None}}
        self._answer(trouble.status, json.dumps(told).encode(), more)

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


# What OpenAI's answers look like.


def _whole(asked: dict[str, Any], request: Request, reply: Reply) -> dict[str, Any]:
    calls = [_tool_call(request, number, call) for number, call in enumerate(reply.calls)]
    message = {"role": "assistant", "content": reply.text or None, **({"tool_calls": calls} if calls else {})}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}
    return {
        **_chunk(asked, [choice]),
        "object": "chat.completion",
        "usage": _usage(request),
    }


def _chunk(asked: dict[str, Any], choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": "chatcmpl-test",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": asked["model"],
        "choices": choices,
    }


def _tool_call(request: Request, number: int, call: Call) -> dict[str, Any]:
    return {
        "id": f"call_{request.turn}_{number}",
        "type": "function",
        "function": {"name": call.tool, "arguments": json.dumps(call.arguments)},
    }


def _usage(request: Request) -> dict[str, int]:
    return {
        "prompt_tokens": request.tokens_in,
        "completion_tokens": request.tokens_out,
        "total_tokens": request.tokens_in + request.tokens_out,
    }


# What a conversation says.


def _turn(messages: Sequence[Mapping[str, Any]]) -> int:
    return sum(message["role"] == "assistant" for message in messages)


def _conversation(messages: Sequence[Mapping[str, Any]]) -> str:
    content = next((message["content"] for message in messages if message["role"] == "user"), "")
    return content if isinstance(content, str) else json.dumps(content)


def _arguments(schema: Mapping[str, Any], turn: int) -> dict[str, Any]:
    """Something that fits a tool's schema, another for each turn."""
    values: dict[str, Any] = {"integer": turn, "number": float(turn), "boolean": True, "array": [], "object": {}}
    return {
        name: values.get(str(kind.get("type")), f"{name} {turn + 1}")
        for name, kind in schema.get("properties", {}).items()
    }


def main() -> None:
    """Serve until standard input ends, and say where on standard output."""
    parser = argparse.ArgumentParser(description="An endpoint that speaks OpenAI's chat completions, for tests.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--pace-s", type=float, default=0.0)
    parser.add_argument("--replies", type=Path, help="A file with replies as JSON, one a turn; else `calls-N`.")
    told = parser.parse_args()
    said = msgspec.json.decode(told.replies.read_bytes(), type=list[Reply]) if told.replies else None
    with llm_server(replies(said) if said else scripted, pace_s=told.pace_s, port=told.port) as server:
        sys.stdout.write(f"{server.url}\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
