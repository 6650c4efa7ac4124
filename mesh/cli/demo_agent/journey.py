"""The demo itself: one question, its peer killed in the middle of a model call, and the bill."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from contracts.card import Described
from contracts.outcome import Outcome
from contracts.subjects import Identity
from contracts.workflow import Step
from mesh.bus import topology
from mesh.bus.connection import Bus
from mesh.bus.steps import read_step
from mesh.cli.demo.peers import PeerProcess
from mesh.cli.demo_agent.endpoint import Endpoint
from mesh.client import Handle, Mesh
from mesh.errors import DeadlineExceeded
from mesh.settings import Settings
from mesh.streaming import Part, Restarted

CAPABILITY: Final = "research"
TOOL: Final = "look-up"
QUESTION: Final = "Why does an agent survive the death of its worker, and what does that cost?"
KEY: Final = "why-agents-survive"
ANSWERED_WITHIN_S: Final = 60.0
KILL_AFTER_TOOLS: Final = 4
KILL_AFTER_PIECES: Final = 5
MODEL_STEPS: Final = "model-"


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What it took, as records and the endpoint tell it."""

    answer: str
    endpoint: str
    model: str
    killed: str | None
    went_on: str
    attempts: int
    calls: int
    """Model calls on record: what the answer took."""
    from_records: int
    """Those that the last attempt read instead of making."""
    asked: int | None
    """Requests that the endpoint counted; None where it is not ours to ask."""
    repeated: int | None
    """How many of them had been made before."""
    tools: int
    tokens_in: int
    tokens_out: int
    usd: float
    tokens_paid: int | None
    took_over_s: float | None
    elapsed_s: float

    @property
    def is_sound(self) -> bool:
        """Whether it was answered, and nothing that had finished was paid again."""
        return bool(self.answer) and (self.repeated is None or self.repeated <= (self.killed is not None))


@dataclass(slots=True)
class Listener:
    """Follows the stream, and knows the moment to strike: words of a call, after enough others."""

    on_text: Callable[[str], None]
    on_tool: Callable[[str, Mapping[str, object]], None]
    on_restart: Callable[[], None]
    moment: asyncio.Event = field(default_factory=asyncio.Event)
    restarted_at: float | None = None
    _tools: int = 0
    _pieces: int = 0

    async def follow(self, handle: Handle[str]) -> None:
        async for event in handle.stream():
            match event:
                case Part(value={"text": str(text)}):
                    self._pieces += 1
                    self.on_text(text)
                case Part(value={"tool": str(tool), "arguments": dict(arguments)}):
                    self._tools, self._pieces = self._tools + 1, 0
                    self.on_tool(tool, arguments)
                case Restarted():
                    self.restarted_at = time.time()
                    self.on_restart()
            if self._tools >= KILL_AFTER_TOOLS and self._pieces >= KILL_AFTER_PIECES:
                self.moment.set()


@dataclass(frozen=True, slots=True)
class Stage:
    """Who is there."""

    bus: Bus
    settings: Settings
    endpoint: Endpoint
    peers: Sequence[PeerProcess]
    described: Mapping[str, Described]
    tell: Callable[[str], None]

    def process_of(self, peer: str) -> PeerProcess:
        pid = self.described[peer].beat.pid
        return next(process for process in self.peers if process.pid == pid)


async def travel(stage: Stage, listener: Listener) -> Summary:
    """Ask, listen, kill the peer that answers, and read back what it took.

    Raises:
        DeadlineExceeded: nobody answered in time.
    """
    began_at = time.time()
    async with Mesh.connect(settings=stage.settings, name="asker") as mesh:
        handle: Handle[str] = await mesh.submit(CAPABILITY, {"text": QUESTION}, key=KEY, returns=str)
        try:
            async with asyncio.timeout(ANSWERED_WITHIN_S), asyncio.TaskGroup() as fibers:
                killing = fibers.create_task(_kill(stage, handle, listener.moment))
                await listener.follow(handle)
                killing.cancel()
        except TimeoutError as error:
            raise DeadlineExceeded(f"the question was not answered within {ANSWERED_WITHIN_S:g} s") from error
        ended_at = time.time()
        killed = None if killing.cancelled() else killing.result()
        return await _read_back(stage, await handle.outcome(), listener, killed, elapsed_s=ended_at - began_at)


@dataclass(frozen=True, slots=True)
class _Killed:
    peer: str
    at: float


async def _kill(stage: Stage, handle: Handle[str], moment: asyncio.Event) -> _Killed | None:
    """Kill the peer that runs the task, once the moment has come."""
    await moment.wait()
    running = (await handle.status()).peer
    if not running:
        return None
    process = stage.process_of(running)
    os.kill(process.pid, signal.SIGKILL)
    killed = _Killed(str(process), time.time())
    stage.tell(f"\n[bold red]SIGKILL[/] to {process} (process {process.pid}), in the middle of a model call.")
    await stage.endpoint.release()
    return killed


async def _read_back(
    stage: Stage, outcome: Outcome, listener: Listener, killed: _Killed | None, *, elapsed_s: float
) -> Summary:
    task, subjects = Identity(CAPABILITY, KEY), stage.bus.subjects
    names = [subject.rpartition(".")[2] for subject in await topology.queued(stage.bus, subjects.step(task, "*"))]
    steps = [await read_step(stage.bus, task, name, Step) for name in names if name.startswith(MODEL_STEPS)]
    calls = [step for step in steps if step is not None]
    paid = await stage.endpoint.paid()
    spent = outcome.spent
    took_over_at = listener.restarted_at
    return Summary(
        answer=msgspec.json.decode(outcome.value, type=str) if isinstance(outcome.value, msgspec.Raw) else "",
        endpoint=stage.endpoint.url,
        model=outcome.decided_by.model if outcome.decided_by else stage.endpoint.model,
        killed=killed.peer if killed else None,
        went_on=str(stage.process_of(outcome.peer)),
        attempts=outcome.attempt,
        calls=len(calls),
        from_records=sum(call.attempt < outcome.attempt for call in calls),
        asked=paid.requests if paid else None,
        repeated=paid.requests - len(calls) if paid else None,
        tools=len(await topology.queued(stage.bus, subjects.results_of(TOOL))),
        tokens_in=spent.tokens_in if spent else 0,
        tokens_out=spent.tokens_out if spent else 0,
        usd=spent.usd if spent else 0.0,
        tokens_paid=paid.tokens_in + paid.tokens_out if paid else None,
        took_over_s=took_over_at - killed.at if killed and took_over_at else None,
        elapsed_s=elapsed_s,
    )
