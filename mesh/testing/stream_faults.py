"""Faults of the streams themselves."""

import asyncio
from dataclasses import dataclass
from typing import Any, ClassVar

from mesh.bus.connection import Bus
from mesh.testing.faults import Need, Scene, repeated_until_done


@dataclass(frozen=True, slots=True)
class FillStream:
    """The stream takes only so many more messages for a while: submitters are refused, commits are held."""

    name: ClassVar[str] = "fill-stream"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.SERVER})
    is_safe: ClassVar[bool] = False

    for_s: float
    room: int = 50
    """How many messages more than now it takes."""

    async def strike(self, scene: Scene) -> None:
        # Not beside a broker that is away: its answer would be the one from before.
        async with scene.broker_lock:
            bus = scene.client.bus
            info = await _surely(bus, f"STREAM.INFO.{bus.subjects.stream}")
            was = info["config"]
            with scene.struck(self.name):
                try:
                    limit = {"max_msgs": info["state"]["messages"] + self.room}
                    await _surely(bus, f"STREAM.UPDATE.{was['name']}", {**was, **limit})
                    await asyncio.sleep(self.for_s)  # the passing of time is the fault
                finally:
                    await _surely(bus, f"STREAM.UPDATE.{was['name']}", was)


async def _surely(bus: Bus, endpoint: str, body: Any = None) -> dict[str, Any]:
    answer: dict[str, Any] = await repeated_until_done(lambda: bus.api(endpoint, body))
    return answer
