"""The LLM's endpoint: the reader's own, by `MESH_LLM_*`, or one in a process beside the peers, which counts."""

import asyncio
import json
import sys
import urllib.request
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mesh.errors import SetupError
from mesh.settings import LLMSettings

ASK_WITHIN_S: Final = 10.0
START_WITHIN_S: Final = 10.0
STOP_WITHIN_S: Final = 5.0
PACE_S: Final = 0.025
MODEL: Final = "rehearsed"
HELD_CALL: Final = 5
"""The call of the rehearsed endpoint in whose middle the peer is killed."""
HELD_AFTER: Final = 6

_LOOKED_UP: Final = (
    ("heartbeat", "Let me begin with how anybody notices that a worker is gone at all."),
    ("ack", "Silence is noticed, then; next is what tells a queue that work is done."),
    ("duplicate", "So work is handed out again, which raises the question of what happens when both finish."),
    ("idempotency key", "A second result is refused inside; outside it takes a name for the effect."),
    ("recorded step", "Still, handing work out again should not mean doing all of it again, so I look at steps."),
    ("model call", "Among all steps one kind is dear, and that is what this question is about."),
    ("leader", "Now who decides all this, and what happens when that one is gone?"),
    ("backpressure", "There is also the case that more is asked for than anybody can do."),
    ("dead letter", "Last, what becomes of work that cannot be done by anyone?"),
)
_ANSWER: Final = (
    "An agent outlives its worker when nothing that matters is kept in the worker. A heartbeat shows that it is gone,"
    " and what it did not ack is handed to another peer. That peer reads the recorded steps and goes on after the last"
    " one, so a model call that had finished is not paid again; one that was under way is made once more, under the"
    " same idempotency key. A duplicate result is refused by the stream itself, so no leader has to decide. What"
    " cannot be done becomes a dead letter, and what there is no room for is refused at the door by backpressure."
)


@dataclass(frozen=True, slots=True)
class Paid:
    """What the endpoint counted."""

    requests: int
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where models answer. `is_rehearsed` is ours, and can be asked for its count."""

    url: str
    model: str
    variables: dict[str, str]
    is_rehearsed: bool

    async def release(self) -> None:
        """Have the answer that is held in its middle go on; to nobody, if its peer is gone."""
        if self.is_rehearsed:
            await asyncio.to_thread(_ask, self.url, "release", {})

    async def paid(self) -> Paid | None:
        """What it counted, or None where it is not ours to ask."""
        if not self.is_rehearsed:
            return None
        requests = (await asyncio.to_thread(_ask, self.url, "bill"))["requests"]
        return Paid(len(requests), *(sum(one[f"tokens_{way}"] for one in requests) for way in ("in", "out")))


@asynccontextmanager
async def endpoint(folder: Path) -> AsyncIterator[Endpoint]:
    """The endpoint that the environment names, or a rehearsed one until left.

    Raises:
        SetupError: an endpoint is named without a model, or the rehearsed one does not start.
    """
    named = LLMSettings()
    if named.base_url is not None:
        if named.model is None:
            raise SetupError("MESH_LLM_BASE_URL is set and MESH_LLM_MODEL is not")
        key = {"MESH_LLM_API_KEY": named.api_key.get_secret_value()} if named.api_key else {}
        yield Endpoint(named.base_url, named.model, {**_variables(named.base_url, named.model), **key}, False)
        return
    script = folder / "replies.json"
    script.write_text(json.dumps(_rehearsed()))
    command = (sys.executable, "-P", "-m", "mesh.testing.llm", "--pace-s", str(PACE_S), "--replies", str(script))
    # It ends with us: it serves until its standard input is closed.
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, start_new_session=True)
    try:
        assert process.stdout is not None
        assert process.stdin is not None
        async with asyncio.timeout(START_WITHIN_S):
            url = (await process.stdout.readline()).decode().strip()
        if not url:
            raise SetupError(f"the rehearsed endpoint ended with {await process.wait()} at its start")
        await asyncio.to_thread(_ask, url, "hold", {"request": HELD_CALL, "pieces": HELD_AFTER})
        yield Endpoint(url, MODEL, _variables(url, MODEL), is_rehearsed=True)
        process.stdin.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_WITHIN_S):
                await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _variables(url: str, model: str) -> dict[str, str]:
    return {"MESH_LLM_BASE_URL": url, "MESH_LLM_MODEL": model}


def _rehearsed() -> list[dict[str, Any]]:
    asking = [
        {"text": f"{why} ", "calls": [{"tool": "look-up", "arguments": {"name": name}}]} for name, why in _LOOKED_UP
    ]
    return [*asking, {"text": _ANSWER}]


def _ask(url: str, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    address = f"{url.removesuffix('/v1')}/{path}"
    with urllib.request.urlopen(address, data=data, timeout=ASK_WITHIN_S) as answer:  # noqa: S310  # our own process
        return json.load(answer)
