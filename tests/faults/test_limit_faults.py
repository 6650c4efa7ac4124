"""Processes that share a limit are killed, and so is their broker: no limit is exceeded, and none stays used up."""

import asyncio
import random
import secrets
import signal

import pytest

from contracts.limit import Holding
from mesh.bus import topology
from mesh.bus.connection import Bus
from mesh.bus.limits import in_use
from mesh.errors import BusError
from mesh.fibers import serving
from mesh.local.server import local_server
from mesh.testing.fixtures import fresh_settings
from mesh.testing.hosting import eventually
from tests.faults.limits import BURST, PER_S, began, fullest, mark, marked, marks, most_at_once, start_user, turn, user

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
            await topology.ensure(bus, topology.of_mesh(settings))
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
                    await asyncio.sleep(dice.uniform(0.2, 1.0))  # faults come at a pace
                    if fault % BROKER_EVERY == BROKER_EVERY - 1:
                        server.kill()
                        await asyncio.sleep(dice.uniform(0, 2 * LEASE_S))  # the passing of time is the fault
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


@pytest.mark.slow
async def test_who_reconnects_first_after_an_outage_takes_no_seat_of_those_who_come_later() -> None:
    with local_server() as server:
        settings = fresh_settings(server.url).model_copy(update={"limit_lease_s": 3.0})
        async with Bus.connect(settings, "judge") as bus:
            await topology.ensure(bus, topology.of_mesh(settings))

            async def holding(pid: int) -> Holding | None:
                now, seats, _ = await in_use(bus)
                found = seats["llm"].holdings.get(f"user-{pid}")
                return found if found is not None and found.until > now else None

            async with marks(bus), user("hold", settings) as holder:
                await turn(holder)
                async with user("take", settings) as taker:
                    await eventually(lambda: holding(taker.pid))
                    holder.send_signal(signal.SIGSTOP)
                    server.kill()
                    await asyncio.sleep(settings.limit_lease_s)
                    server.restart()
                    await bus.until_connected()
                    # By now the taker, too, is there, and finds that nobody renewed.
                    await eventually(lambda: holding(taker.pid))
                    holder.send_signal(signal.SIGCONT)
                    await eventually(lambda: holding(holder.pid))

                    assert len(await began(bus)) == 1
                    holder.kill()
                    await turn(taker)


@pytest.mark.slow
async def test_a_frozen_holder_loses_its_seat_and_counts_again_when_it_goes_on() -> None:
    with local_server() as server:
        settings = fresh_settings(server.url).model_copy(update={"limit_lease_s": 1.0})
        async with Bus.connect(settings, "judge") as bus:
            await topology.ensure(bus, topology.of_mesh(settings))

            async def held() -> dict[str, int]:
                now, seats, _ = await in_use(bus)
                return {peer: one.seats for peer, one in seats["llm"].holdings.items() if one.until > now and one.seats}

            async with marks(bus), user("hold", settings) as frozen:
                await turn(frozen)
                frozen.send_signal(signal.SIGSTOP)
                async with user("hold", settings) as other:
                    await turn(other)
                    assert await held() == {f"user-{other.pid}": 1}
                    frozen.send_signal(signal.SIGCONT)

                    async def both_count() -> bool:
                        return len(await held()) == 2

                    await eventually(both_count)
                    other.kill()
                    await other.wait()
                async with user("take", settings) as third:
                    await eventually(lambda: _waits(bus, third.pid))
                    # One of the two is gone, the limit is one: its place is not free before the other's is.
                    assert len(await began(bus)) == 2
                    frozen.kill()
                    await turn(third)


async def _waits(bus: Bus, pid: int) -> bool:
    _, seats, _ = await in_use(bus)
    found = seats["llm"].holdings.get(f"user-{pid}")
    return found is not None and found.wants > 0


async def surely(bus: Bus, word: str, pid: int) -> None:
    while True:
        try:
            return await mark(bus, word, pid)
        except BusError:
            await bus.until_connected()
            await asyncio.sleep(0.02)
