"""What a limit costs: grants a second and their latency, from 1 and from 4 processes, beside a plain guarded publish.

    python -m ops.bench.limits [--json] [--seconds 3]

Every process runs callers that take a turn, do nothing and give it back. The reference is the same number of callers
that each replace a record of their own under the guard of its sequence: the least that a compare-and-set can cost.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any

import uvloop

from contracts import headers as names
from contracts.limit import Limit
from mesh.bus import topology
from mesh.bus.connection import Bus
from mesh.local.server import local_server
from mesh.settings import Settings
from mesh.telemetry.metrics import Metrics
from mesh.workflow.limits import Limiter

PLENTY = 1e9
ANSWER_WITHIN_S = 120
CASES: dict[str, tuple[Limit | None, int]] = {
    "guarded publish, 1 caller": (None, 1),
    "guarded publish, 16 callers": (None, 16),
    "rate, 1 caller": (Limit(requests_per_minute=PLENTY, tokens_per_minute=PLENTY), 1),
    "rate, 16 callers": (Limit(requests_per_minute=PLENTY, tokens_per_minute=PLENTY), 16),
    "seats for all, 1 caller": (Limit(concurrent=10_000), 1),
    "seats for all, 16 callers": (Limit(concurrent=10_000), 16),
    "4 seats, 16 callers": (Limit(concurrent=4), 16),
    "4 seats and a rate, 16 callers": (
        Limit(concurrent=4, requests_per_minute=PLENTY, tokens_per_minute=PLENTY),
        16,
    ),
}


@dataclass(frozen=True)
class Measured:
    """One case from a number of processes. Latencies are of a caller's turn, in milliseconds."""

    case: str
    processes: int
    per_s: float
    p50_ms: float
    p99_ms: float
    slowest_process_share: float


async def callers(call: Callable[[int], Awaitable[None]], count: int, seconds: float) -> list[float]:
    """How long each turn took to come, in seconds."""
    took: list[float] = []
    ends_at = time.perf_counter() + seconds

    async def keep(number: int) -> None:
        while (began := time.perf_counter()) < ends_at:
            await call(number)
            took.append(time.perf_counter() - began)

    async with asyncio.TaskGroup() as fibers:
        for number in range(count):
            fibers.create_task(keep(number))
    return took


async def work(case: str, seconds: float) -> None:
    limit, count = CASES[case]
    settings = Settings()
    async with Bus.connect(settings, "bench") as bus:
        declared = {"llm": limit} if limit is not None else {}
        limiter = Limiter(bus, f"p{os.getpid()}", Metrics().limits, operator=lambda _: None, declared=declared)
        sequences = dict.fromkeys(range(count), 0)

        async def publish(number: int) -> None:
            guard = {names.EXPECTED_SUBJECT_SEQUENCE: str(sequences[number])}
            subject = bus.subjects.limit("rate", f"own-{os.getpid()}-{number}")
            sequences[number] = await bus.store(subject, b"x" * 200, guard)

        async def take(_: int) -> None:
            async with limiter.hold("llm", tokens=10, within_s=60):
                pass

        async with limiter.open():
            call = publish if limit is None else take
            await call(0)
            print("ready", flush=True)
            await asyncio.to_thread(sys.stdin.readline)
            took = await callers(call, count, seconds)
        print(json.dumps(took))


def measure(case: str, processes: int, seconds: float, env: dict[str, str]) -> Measured:
    command = [sys.executable, "-m", "ops.bench.limits", "--work", case, "--seconds", str(seconds)]
    started = [
        subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    each: list[list[float]] = [json.loads(process.communicate(timeout=ANSWER_WITHIN_S)[0]) for process in started]
    took = sorted(latency for of_one in each for latency in of_one)
    return Measured(
        case,
        processes,
        round(len(took) / seconds, 1),
        round(statistics.median(took) * 1e3, 3),
        round(took[int(len(took) * 0.99)] * 1e3, 3),
        round(min(map(len, each)) * processes / len(took), 2),
    )


async def prepare(settings: Settings) -> None:
    async with Bus.connect(settings, "bench") as bus:
        await topology.ensure(bus, topology.of_mesh(settings))


def run(seconds: float) -> list[Measured]:
    measured: list[Measured] = []
    with local_server() as server:
        for number, (case, processes) in enumerate((case, count) for count in (1, 4) for case in CASES):
            settings = Settings(nats_url=server.url, prefix=f"bench{number}", stream_bytes_max=64 * 2**20)
            asyncio.run(prepare(settings))
            env = {**os.environ, "MESH_NATS_URL": server.url, "MESH_PREFIX": settings.prefix}
            measured.append(measure(case, processes, seconds, env))
    return measured


def document(measured: list[Measured]) -> dict[str, Any]:
    """What was measured, each with its rate as a share of the guarded publishes of as many callers and processes."""
    reference = {(one.processes, one.case): one.per_s for one in measured if one.case.startswith("guarded")}

    def share(one: Measured) -> float:
        callers = one.case.rpartition(", ")[2]
        return round(one.per_s / reference[one.processes, f"guarded publish, {callers}"], 3)

    return {"cases": [{**asdict(one), "share_of_reference": share(one)} for one in measured], "cpus": os.cpu_count()}


def show(found: dict[str, Any]) -> None:
    print(f"{'case':34}{'processes':>10}{'grants/s':>10}{'p50 ms':>9}{'p99 ms':>9}{'of ref.':>9}{'least':>7}")
    for one in found["cases"]:
        print(
            f"{one['case']:34}{one['processes']:>10}{one['per_s']:>10,.0f}{one['p50_ms']:>9.2f}{one['p99_ms']:>9.2f}"
            f"{one['share_of_reference']:>9.2f}{one['slowest_process_share']:>7.2f}"
        )
    print("of ref.: the rate beside guarded publishes; least: what the slowest process got of an even share")


def main() -> None:
    parser = argparse.ArgumentParser(description="What a limit costs, beside a guarded publish.")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each case")
    parser.add_argument("--work", choices=CASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work is not None:
        uvloop.run(work(arguments.work, arguments.seconds))
        return
    found = document(run(arguments.seconds))
    print(json.dumps(found, indent=2)) if arguments.json else show(found)


if __name__ == "__main__":
    main()
