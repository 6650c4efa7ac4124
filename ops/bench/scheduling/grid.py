"""What is run: which fleets, loads, policies and seeds, and which of them side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

from ops.bench.scheduling.fleets import FLEETS, Fleet
from ops.bench.scheduling.policies import POLICIES

LOADS = (0.3, 0.5, 0.75, 0.85, 0.95)
AT_ONCE = 5
QUICK_SEEDS = 3
TOGETHER = (("equal", "lognormal"), ("mixed",), ("io",), ("turning",), ("joining",))
"""Fleets that run side by side; more of them would need more than four cores."""
MOST_RUN = ("bids", "shared", "round-robin")
LESS_RUN = ("prefetch-4", "random", "jsq", "p2c")


@dataclass(frozen=True, slots=True)
class Sample:
    """What is run of a fleet's loads, and with how many seeds."""

    loads: tuple[float, ...]
    seeds: int


STEADY = Sample(LOADS, 5), Sample((0.5, 0.75, 0.95), 2)
TURNING = Sample((0.5, 0.75, 0.95), 3), Sample((0.75,), 1)
# Four peers are overloaded from half of the whole fleet's capacity on, so that higher loads only tell the backlog.
JOINING = Sample((0.3, 0.5, 0.75), 3), Sample((0.75,), 1)


@dataclass(frozen=True, slots=True)
class Cell:
    """One fleet at one load, under some policies."""

    fleet: Fleet
    load: float
    policies: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.fleet.name} at {self.load:g}: {', '.join(self.policies)}"


@dataclass(frozen=True, slots=True)
class Batch:
    """Cells that run at the same time, so that they meet the same machine."""

    seed: int
    cells: tuple[Cell, ...]

    def lasts_s(self, seconds: float) -> float:
        return max(run_seconds(cell.fleet, seconds) for cell in self.cells)

    def __str__(self) -> str:
        return f"seed {self.seed}, {' | '.join(map(str, self.cells))}"


def run_seconds(fleet: Fleet, seconds: float) -> float:
    return max(seconds, fleet.lasts_s)


def quick(seeds: int | None) -> list[Batch]:
    """What fits into 90 seconds."""
    together = (
        (_cell("lognormal", 0.8, "bids", "shared", "round-robin"), _cell("io", 0.75, "bids", "shared")),
        (_cell("mixed", 0.75, "bids", "shared"), _cell("equal", 0.95, "bids", "shared")),
    )
    return [Batch(seed, cells) for seed in range(1, 1 + (seeds or QUICK_SEEDS)) for cells in together]


def full(
    *, fleets: Sequence[str], loads: Sequence[float] | None, policies: Sequence[str], seeds: int | None
) -> list[Batch]:
    """Seed after seed, so that a call that is cut short has seen all cells. Loads or seeds named are all run."""
    batches = []
    for seed in range(1, 1 + (seeds or max(sample.seeds for sample in STEADY))):
        for names in TOGETHER:
            side_by_side = [FLEETS[name] for name in names if name in fleets]
            if not side_by_side:
                continue
            for group, sample in zip((MOST_RUN, LESS_RUN), _samples(side_by_side[0]), strict=True):
                chosen = tuple(policy for policy in policies if policy in group)
                if chosen and seed <= (seeds or sample.seeds):
                    batches += [
                        Batch(seed, tuple(Cell(fleet, load, chosen) for fleet in side_by_side))
                        for load in loads or sample.loads
                    ]
    return batches


def left_out(batches: Sequence[Batch], *, fleets: Sequence[str], policies: Sequence[str]) -> list[str]:
    """Cells of the whole grid that no batch has, a line a fleet."""
    run = {
        (cell.fleet.name, cell.load, policy) for batch in batches for cell in batch.cells for policy in cell.policies
    }
    lines = []
    for fleet in fleets:
        missing: dict[tuple[float, ...], list[str]] = {}
        for policy in policies:
            loads = tuple(load for load in LOADS if (fleet, load, policy) not in run)
            missing.setdefault(loads, []).append(policy)
        told = [f"{', '.join(names)} at {' '.join(map(str, loads))}" for loads, names in missing.items() if loads]
        if told:
            lines.append(f"{fleet}: {'; '.join(told)}")
    return lines


def _samples(fleet: Fleet) -> tuple[Sample, Sample]:
    """Of the policies that are run most, and of the others."""
    if fleet.recovers:
        return TURNING
    return JOINING if fleet.joins_at_s else STEADY


def _cell(fleet: str, load: float, *policies: str) -> Cell:
    assert all(policy in POLICIES for policy in policies)
    return Cell(FLEETS[fleet], load, policies)
