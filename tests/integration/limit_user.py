"""A process that uses a limit: `python -m tests.integration.limit_user <mode> <seconds its wall clock is off>`.

It prints a line for each turn it has. `hold` keeps its first turn for ever, `take` gives each back at once.
"""

import asyncio
import sys
import time

_real = time.time
_off_s = float(sys.argv[2])
time.time = lambda: _real() + _off_s

from contracts.limit import Limit  # noqa: E402  # after the clock was moved
from mesh.bus.connection import Bus  # noqa: E402
from mesh.settings import Settings  # noqa: E402
from mesh.telemetry.metrics import Metrics  # noqa: E402
from mesh.workflow.limits import Limiter  # noqa: E402

LIMIT = Limit(concurrent=1, requests_per_minute=600, burst_s=0.5)


async def main(mode: str) -> None:
    settings = Settings()
    async with Bus.connect(settings, "limit-user") as bus:
        limiter = Limiter(
            bus, f"user-{mode}{_off_s:g}", Metrics().limits, operator=lambda _: None, declared={"llm": LIMIT}
        )
        async with limiter.open():
            while True:
                async with limiter.hold("llm", tokens=0, within_s=60):
                    await bus.store(f"{settings.prefix}-marks.llm", mode.encode())
                    print("turn", flush=True)  # noqa: T201  # to the test
                    if mode == "hold":
                        await asyncio.Event().wait()


asyncio.run(main(sys.argv[1]))
