"""`mesh top` over fifty real peers for a while: what it costs, whether it is right, and that nothing grows.

    python -m ops.soak.top                 # 50 peers, ten minutes
    python -m ops.soak.top --peers 8 --minutes 1 --json

It needs tmux, and about 60 MB of memory for each peer. It ends with 1 when the screen was wrong or something grew.
"""

import argparse
import asyncio
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from contracts.errors import MeshError
from mesh import Mesh
from mesh.cli.top.facts import RATE_OVER_S
from mesh.fibers import serving
from mesh.local.server import local_server
from mesh.settings import Settings
from mesh.testing import eventually
from mesh.testing.fleet import Fleet, send_signal
from mesh.testing.history import History
from mesh.testing.terminal import Terminal, is_installed, terminal
from ops.soak.crew import CAPABILITIES

ROOT = Path(__file__).resolve().parents[2]
SAMPLE_S = 2.0
SETTLES_S = 15.0
WARM_UP_SHARE = 0.3
GROWTH_MAX = 1.1
GROWTH_BYTES_MIN = 8 * 2**20
RATE_TOLERANCE = 0.3
KEYS = (
    ("1",),
    ("2",),
    ("7",),
    ("6",),
    ("1", "Down", "Enter"),
    ("Escape",),
    ("2", "Down", "Enter"),
    ("Escape",),
    ("s",),
)


@dataclass
class Report:
    """What was seen. Processor shares are of one core."""

    peers: int = 0
    minutes: float = 0.0
    cpu: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    submitted: int = 0
    rates: list[tuple[float, float]] = field(default_factory=list)
    """Answers a second as they were, and as the screen showed them."""
    wrong: list[str] = field(default_factory=list)

    def settled(self, what: list[int]) -> tuple[float, float]:
        """The medians of what was measured after the warm-up: of its first third, and of its last."""
        kept = what[int(len(what) * WARM_UP_SHARE) :] or what
        third = max(1, len(kept) // 3)
        return statistics.median(kept[:third]), statistics.median(kept[-third:])

    def judge(self) -> None:
        """Note what grew, and rates that were not those of the mesh."""
        first, last = self.settled(self.memory)
        if last > GROWTH_MAX * first and last - first > GROWTH_BYTES_MIN:
            self.wrong.append(f"memory grew from {first / 2**20:.0f} to {last / 2**20:.0f} MB")
        for what, measured in (("threads", self.threads), ("open files", self.files)):
            first, last = self.settled(measured)
            if last > first + 2:
                self.wrong.append(f"{what} grew from {first:g} to {last:g}")
        off = [(was, shown) for was, shown in self.rates if abs(shown - was) > RATE_TOLERANCE * max(was, 10)]
        if len(off) > len(self.rates) / 10:
            self.wrong.append(f"rates on the screen were off {len(off)} times of {len(self.rates)}: {off[:3]}")

    def document(self) -> dict[str, object]:
        """The figures."""
        first, last = self.settled(self.memory)
        return {
            "peers": self.peers,
            "minutes": round(self.minutes, 2),
            "submitted": self.submitted,
            "cpu_mean": round(statistics.mean(self.cpu), 3),
            "cpu_peak": round(max(self.cpu), 3),
            "memory_peak_mb": round(max(self.memory) / 2**20, 1),
            "memory_first_mb": round(first / 2**20, 1),
            "memory_last_mb": round(last / 2**20, 1),
            "rate_shown_median": round(statistics.median(shown for _, shown in self.rates), 1),
            "rate_true_median": round(statistics.median(was for was, _ in self.rates), 1),
            "wrong": self.wrong,
        }


class Load:
    """Tasks at a steady rate; every fourth asks for another one."""

    def __init__(self, mesh: Mesh, per_s: float) -> None:
        self._mesh = mesh
        self._per_s = per_s
        self.submitted = 0

    async def keep(self) -> None:
        """Submit for ever."""
        began = time.monotonic()
        while True:
            due = int((time.monotonic() - began) * self._per_s)
            while self.submitted < due:
                with suppress(MeshError):
                    await self._mesh.submit(f"work-{self.submitted % CAPABILITIES}", self.submitted)
                self.submitted += 1
            await asyncio.sleep(0.02)


class Answers:
    """Results as the server echoes them: what the rate on the screen is compared with."""

    def __init__(self) -> None:
        self._at: deque[float] = deque()

    def heard(self, *_: object) -> None:
        """Count one."""
        self._at.append(time.monotonic())

    @property
    def per_s(self) -> float:
        """Results a second, over as long as the screen's rates are."""
        now = time.monotonic()
        while self._at and now - self._at[0] > RATE_OVER_S:
            self._at.popleft()
        return len(self._at) / RATE_OVER_S


async def soak(peers: int, minutes: float, per_s: float) -> Report:
    """Watch a fleet for a while."""
    report = Report(peers, minutes)
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch, local_server() as server:
        env = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
        env |= {"MESH_NATS_URL": server.url, "PYTHONPATH": str(ROOT), "MESH_LOG_LEVEL": "WARNING"}
        # Results of a few seconds: what is watched should not grow either.
        env |= {"MESH_RESULT_TTL_S": "60", "MESH_WORKFLOW_TTL_S": "60"}
        command = (sys.executable, "-m", "mesh", "run", "ops/soak/crew.py")
        fleet = Fleet(
            command,
            size=peers,
            env=env,
            envs=[{"SOAK_PLACE": str(place)} for place in range(peers)],
            cwd=ROOT,
            history=History(Path(scratch) / "history.jsonl"),
            log=Path(scratch) / "peers.log",
        )
        settings = Settings(nats_url=server.url)
        async with fleet.running(), Mesh.connect(settings=settings, name="soak") as mesh:
            watched = terminal([sys.executable, "-m", "mesh", "top"], env=env, cwd=ROOT, columns=120, rows=40)
            await eventually(lambda: _is_made(mesh), within_s=60, every_s=0.5)
            async with watched as opened:
                await _until(opened, lambda screen: f"{peers} live peers" in screen, within_s=240)
                load, answers = Load(mesh, per_s), Answers()
                _, echoes = settings.subjects.result_echo
                async with mesh.bus.listening(echoes, answers.heard), serving(load.keep()):
                    await _watch(opened, fleet, answers, report)
                report.submitted = load.submitted
                await _leave_details(opened)
                await opened.press("q")
                await eventually(opened.has_ended)
    report.judge()
    return report


async def _watch(opened: Terminal, fleet: Fleet, answers: Answers, report: Report) -> None:
    process = psutil.Process(await opened.pid())
    ends_at = time.monotonic() + 60 * report.minutes
    kills_at = time.monotonic() + 30 * report.minutes
    has_killed, round_ = False, 0
    process.cpu_percent()
    # What started was slower than what goes on.
    await asyncio.sleep(SETTLES_S)
    while time.monotonic() < ends_at:
        await opened.press(*KEYS[round_ % len(KEYS)])
        round_ += 1
        await asyncio.sleep(SAMPLE_S)
        if await opened.has_ended():
            raise AssertionError(f"mesh top ended by itself:\n{await opened.screen()}")
        report.cpu.append(process.cpu_percent() / 100)
        report.memory.append(process.memory_info().rss)
        report.threads.append(process.num_threads())
        report.files.append(process.num_fds())
        screen = await opened.screen()
        if (shown := re.search(r"([\d,.]+) answers/s", screen)) is not None:
            report.rates.append((answers.per_s, float(shown[1].replace(",", ""))))
        if "NOT CONNECTED" in screen or "not known now" in screen:
            report.wrong.append(next(line for line in screen.splitlines() if "NOT" in line or "not known" in line))
        if not has_killed and time.monotonic() > kills_at:
            has_killed = True
            await _kill_one(opened, fleet, report)


async def _kill_one(opened: Terminal, fleet: Fleet, report: Report) -> None:
    """A peer that is killed must be seen to go, and the one in its place to come."""
    victim = fleet.pids[0]
    await _leave_details(opened)
    await opened.press("2", "/")
    await _until(opened, lambda screen: "[2 peers]" in screen and "only rows with" in screen, within_s=30)
    await opened.press(f"-{victim}-", "Enter")
    await _until(opened, lambda screen: re.search(rf"-{victim}-\w+ +ready", screen), within_s=30)
    send_signal(victim, 9)
    try:
        await _until(opened, lambda screen: re.search(rf"-{victim}-\w+ +(silent|gone)", screen), within_s=60)
        await _until(opened, lambda screen: f"{report.peers} live peers" in screen, within_s=60)
    except AssertionError as error:
        report.wrong.append(str(error))
    await opened.press("/")
    await opened.press("Escape")


async def _leave_details(opened: Terminal) -> None:
    if "escape back" in await opened.screen():
        # Escape and a key right behind it would be another key.
        await opened.press("Escape")
    await _until(opened, lambda screen: "? help" in screen, within_s=30)


async def _until(opened: Terminal, condition: Callable[[str], object], *, within_s: float) -> None:
    async def holds() -> bool:
        return bool(condition(await opened.screen()))

    try:
        await eventually(holds, within_s=within_s, every_s=0.5)
    except AssertionError:
        raise AssertionError(f"the screen is still\n{await opened.screen()}") from None


def _is_made(mesh: Mesh) -> Awaitable[object]:
    from mesh.bus import topology

    stream, *_ = topology.streams(mesh.bus.settings)
    return topology.inspect(mesh.bus, stream)


def main() -> None:
    """Run it, and print what was seen."""
    parser = argparse.ArgumentParser(description="Watch a fleet with `mesh top` for a while.")
    parser.add_argument("--peers", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--per-s", type=float, default=100.0, help="Tasks a second, beside their children.")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if not is_installed():
        sys.exit("tmux is not installed (package tmux)")
    report = asyncio.run(soak(given.peers, given.minutes, given.per_s))
    figures = report.document()
    if given.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:<18} {value}")
    sys.exit(bool(report.wrong))


if __name__ == "__main__":
    main()
