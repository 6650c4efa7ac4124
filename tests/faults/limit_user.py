"""A process that uses a limit: `python -m tests.faults.limit_user <mode> <seconds its wall clock is off>`.

`hold` keeps its first turn for ever, `take` gives each back at once. Each turn is marked in a stream, as `in` when it
came and `out` before it is given back, so that the server's clock tells when. It prints a line for each.
"""

import asyncio
import os
import sys
import time

_real = time.time
_off_s = float(sys.argv[2])
time.time = lambda: _real() + _off_s

from mesh.bus.connection import Bus  # noqa: E402  # after the clock was moved
from mesh.errors import BusError, Overloaded  # noqa: E402
from mesh.settings import Settings  # noqa: E402
from mesh.telemetry.metrics import Metrics  # noqa: E402
from mesh.workflow.limits import Limiter  # noqa: E402
from tests.faults.limits import LIMIT, mark  # noqa: E402


async def main(mode: str) -> None:
    settings = Settings()
    async with Bus.connect(settings, "limit-user") as bus:
        limiter = Limiter(
            bus, f"user-{os.getpid()}", Metrics().limits, operator=lambda _: None, declared={"llm": LIMIT}
        )
        async with limiter.open():
            while True:
                try:
                    async with limiter.hold("llm", tokens=0, within_s=60):
                        await surely_mark(bus, "in")
                        print("turn", flush=True)  # noqa: T201  # to the test
                        if mode == "hold":
                            await asyncio.Event().wait()
                        await surely_mark(bus, "out")
                except Overloaded as full:
                    await asyncio.sleep(full.retry_after_s)


async def surely_mark(bus: Bus, word: str) -> None:
    while True:
        try:
            return await mark(bus, word, os.getpid())
        except BusError:
            await bus.until_connected()
            await asyncio.sleep(0.02)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
