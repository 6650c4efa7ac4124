"""Processes that share a limit are killed, and so is their broker: no limit is exceeded, and none stays used up."""

import asyncio
import random
import secrets

import pytest

from mesh.bus import topology
from mesh.bus.connection import Bus
from mesh.errors import BusError
from mesh.fibers import serving
from mesh.local.server import local_server
from mesh.testing.fixtures import fresh_settings
from mesh.testing.hosting import eventually
from tests.faults.limits import BURST, PER_S, began, fullest, mark, marked, marks, most_at_once, start_user

USERS = 4
FAULTS = 24
BROKER_EVERY = 6
LEASE_S = 1.0


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_kills_of_peers_and_broker_exceed_no_limit() -> None:
    seed = secrets.randbelow(2**32)
    print(f"seed {seed}")  # noqa: T201  # to run it again
    dice = random.Random(seed)
    with local_server() as server:
        settings = fresh_settings(server.url).model_copy(update={"limit_lease_s": LEASE_S})
        async with Bus.connect(settings, "judge") as bus:
            await topology.ensure(bus, topology.streams(settings))
            alive: dict[int, asyncio.subprocess.Process] = {}

            async def keep_one() -> None:
                while True:
                    process = await start_user("take", settings, clock_off_s=dice.uniform(-1e5, 1e5))
                    alive[process.pid] = process
                    try:
                        # Nothing it says may fill the pipe.
                        await process.communicate()
                    finally:
                        if process.returncode is None:
                            process.kill()
                            await process.wait()
                        del alive[process.pid]
                    await surely(bus, "dead", process.pid)

            async with marks(bus), serving(*(keep_one() for _ in range(USERS))):
                for fault in range(FAULTS):
                    await asyncio.sleep(dice.uniform(0.2, 1.0))
                    if fault % BROKER_EVERY == BROKER_EVERY - 1:
                        server.kill()
                        await asyncio.sleep(dice.uniform(0, 2 * LEASE_S))
                        server.restart()
                    elif alive:
                        dice.choice(list(alive.values())).kill()
                await bus.until_connected()
                before = len(await began(bus))

                async def goes_on() -> bool:
                    return len(await began(bus)) >= before + 20

                await eventually(goes_on, within_s=30)
                found = await marked(bus)

    times = [at for at, word, _ in found if word == "in"]
    assert len(times) > 50
    assert most_at_once(found) == 1
    assert fullest(times, PER_S) <= BURST + PER_S


async def surely(bus: Bus, word: str, pid: int) -> None:
    while True:
        try:
            return await mark(bus, word, pid)
        except BusError:
            await bus.until_connected()
            await asyncio.sleep(0.02)
