"""A peer of a fleet in the middle of an upgrade: `python -m tests.faults.mixed_peer '<orders as JSON>'`.

Where NEWER is set it plays a later version: it reads one format more, every record and task that it writes has a field
that today's code does not know, every task another header, and a share of what it writes is of the newer format.
"""

import asyncio
import os
import random
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from contracts import wire
from contracts.outcome import Outcome
from contracts.workflow import Step
from mesh import Context
from mesh.bus import submit
from mesh.peer import Hosted
from mesh.testing.history import Entry, History, What
from tests.faults import workload
from tests.faults.workload import Job, Leaf, Orders, serve

NEWER: int = wire.FORMAT + 1
FIELD = "since_then"
HEADER = "Mesh-Since-Then"


class NewerEncoder:
    """Encodes as a later version may: more fields, and now and then a higher format."""

    def __init__(self) -> None:
        self._encoder = msgspec.json.Encoder(order="deterministic")

    def encode(self, value: Any) -> bytes:
        encoded = self._encoder.encode(value)
        if not isinstance(value, wire.Record):
            return encoded
        more: dict[str, Any] = {FIELD: {"colour": "blue", "many": [1, 2]}}
        # The same bytes for the same record: a repeated write must be recognised.
        if isinstance(value, (Outcome, Step)) and zlib.crc32(encoded) % 3 == 0:
            more["v"] = NEWER
        return self._encoder.encode({**msgspec.json.decode(encoded, type=dict[str, msgspec.Raw]), **more})


def become_newer() -> None:
    """Play a later version in this process."""
    wire.FORMAT = NEWER  # type: ignore[misc]  # what a later version has there
    wire._json_encoder = NewerEncoder()  # type: ignore[assignment]
    plain = submit.task_headers

    def more(*given: Any, **named: Any) -> dict[str, str]:
        return {**plain(*given, **named), HEADER: "1"}

    submit.task_headers = more


def hosted(history: History, dice: random.Random, release: Path) -> Sequence[Hosted]:
    """The workload, and a workflow that steps, calls, and waits parked."""
    agent = workload.agent(history, dice, release)

    @agent.handles("journey", concurrency=16, attempts=1_000, timeout_s=300)
    async def journey(job: Job, ctx: Context) -> list[str]:
        history.add(Entry(What.RAN, task=str(ctx.identity), peer=str(os.getpid()), attempt=ctx.attempt))

        async def token() -> str:
            return os.urandom(8).hex()

        first = await ctx.step("first", token)
        called = await ctx.call("leaf", Leaf(first), returns=str)
        await ctx.sleep(0.3)
        return [first, called, await ctx.step("second", token)]

    return [agent.hosted]


if __name__ == "__main__":
    if os.environ.get("NEWER"):
        become_newer()
    asyncio.run(serve(msgspec.json.decode(sys.argv[1], type=Orders), hosted))
