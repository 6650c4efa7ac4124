"""How late the event loop is: what a handler that computes too long costs all others of its peer."""

import asyncio
import time

EVERY_S = 0.1
WEIGHT = 0.2


class Lag:
    """A moving average of how late a timer rings, in seconds."""

    def __init__(self) -> None:
        self.late_s = 0.0

    async def keep(self) -> None:
        """Measure for ever."""
        while True:
            began = time.monotonic()
            await asyncio.sleep(EVERY_S)
            self.late_s += WEIGHT * (time.monotonic() - began - EVERY_S - self.late_s)
