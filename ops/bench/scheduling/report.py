"""What the runs say: figures by cell, ratios, and whether the targets are met."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ops.bench.scheduling.figures import Percentiles, Ratio, paired_ratio
from ops.bench.scheduling.fleets import FLEETS
from ops.bench.scheduling.policies import POLICIES

CENTRAL = "central queue"
EQUAL = ("equal", "lognormal")
RECOVERED_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one policy in one cell under one seed."""

    sojourn_ms: Percentiles
    unfinished: int = 0
    recovered_s: float | None = None
    """After how long a recovered peer had half of its fair share; None where it never had, or none recovers."""


@dataclass(slots=True)
class Report:
    """Figures by (fleet, load), then by policy, then by seed."""

    cells: dict[tuple[str, float], dict[str, dict[int, Figures]]] = field(default_factory=dict)

    def add(self, fleet: str, load: float, policy: str, seed: int, figures: Figures) -> None:
        self.cells.setdefault((fleet, load), {}).setdefault(policy, {})[seed] = figures

    def ratio(self, fleet: str, load: float, over: str, under: str, figure: str = "p99") -> Ratio | None:
        """Paired over the seeds that both have; None where there is none."""
        cell = self.cells.get((fleet, load), {})
        above, below = cell.get(over, {}), cell.get(under, {})
        if not (seeds := sorted(above.keys() & below.keys())):
            return None
        over_ms, under_ms = (
            [getattr(by_seed[seed].sojourn_ms, figure) for seed in seeds] for by_seed in (above, below)
        )
        return paired_ratio(over_ms, under_ms)

    def mean_ms(self, fleet: str, load: float, policy: str, figure: str = "p99") -> float:
        """Geometric mean over seeds."""
        by_seed = self.cells[fleet, load][policy]
        return statistics.geometric_mean(getattr(figures.sojourn_ms, figure) for figures in by_seed.values())

    def worst(self, over: str, under: str) -> tuple[str, float, Ratio] | None:
        """The cell where the p99 of one policy compares worst with another's."""
        found = [(fleet, load, ratio) for fleet, load in self.cells if (ratio := self.ratio(fleet, load, over, under))]
        return max(found, key=lambda cell: cell[2].mean, default=None)

    def unfinished(self, fleet: str, load: float, policy: str) -> int:
        return sum(figures.unfinished for figures in self.cells[fleet, load][policy].values())

    def recovered_s(self, load: float, policy: str) -> list[float | None]:
        """By seed, of the fleet one of whose peers turns slow."""
        return [figures.recovered_s for figures in self.cells["turning", load][policy].values()]


@dataclass(frozen=True, slots=True)
class Target:
    """A promise about a ratio: its mean at most `at_most`, its interval below `below`."""

    says: str
    ratio: Ratio
    at_most: float | None = None
    below: float | None = None

    @property
    def is_met(self) -> bool:
        is_small = self.at_most is None or self.ratio.mean <= self.at_most
        return is_small and (self.below is None or (self.ratio.high or self.ratio.mean) < self.below)

    def __str__(self) -> str:
        limits = [f"at most {self.at_most:g}"] if self.at_most is not None else []
        limits += [f"interval below {self.below:g}"] if self.below is not None else []
        return f"{'met   ' if self.is_met else 'MISSED'}  {self.says}: {self.ratio}, {', '.join(limits)}"


@dataclass(frozen=True, slots=True)
class Recovery:
    """The promise that a peer that was slow carries its share again soon, by seed."""

    says: str
    seconds: Sequence[float | None]

    @property
    def is_met(self) -> bool:
        return all(s is not None and s <= RECOVERED_WITHIN_S for s in self.seconds)

    def __str__(self) -> str:
        verdict = "met   " if self.is_met else "MISSED"
        return f"{verdict}  {self.says}: {_listed(self.seconds)} s, at most {RECOVERED_WITHIN_S:g}"


def targets(report: Report) -> Iterator[Target | Recovery]:
    """Those that the cells which were run can show."""
    for fleet, load in sorted(report.cells):
        if fleet in EQUAL and load >= 0.75 and (ratio := report.ratio(fleet, load, "bids", "round-robin")):
            yield Target(f"{fleet} at {load:g}, p99 of bids / round-robin", ratio, at_most=0.35)
        if fleet in EQUAL and load <= 0.75 and (ratio := report.ratio(fleet, load, "bids", CENTRAL)):
            yield Target(f"{fleet} at {load:g}, p99 of bids / {CENTRAL}", ratio, at_most=1.05, below=1.15)
        if ratio := report.ratio(fleet, load, "bids", "shared"):
            if fleet == "mixed" and load in (0.5, 0.75):
                yield Target(f"{fleet} at {load:g}, p99 of bids / shared", ratio, at_most=0.6)
            else:
                yield Target(f"{fleet} at {load:g}, p99 of bids / shared", ratio, below=1.15)
        if FLEETS[fleet].recovers and "bids" in report.cells[fleet, load]:
            yield Recovery(f"{fleet} at {load:g}, half of its share under bids", report.recovered_s(load, "bids"))


def told(report: Report) -> Iterator[str]:
    """The tables as lines of text."""
    for fleet, load in sorted(report.cells, key=lambda cell: (list(FLEETS).index(cell[0]), cell[1])):
        yield ""
        yield f"{FLEETS[fleet].title}, load {load:g}"
        yield f"  {'':14}{'p50 ms':>9}{'p90':>9}{'p99':>9}   p99 / bids"
        for policy in ordered(report.cells[fleet, load]):
            p50, p90, p99 = (report.mean_ms(fleet, load, policy, figure) for figure in ("p50", "p90", "p99"))
            ratio = report.ratio(fleet, load, policy, "bids")
            unfinished = report.unfinished(fleet, load, policy)
            note = f"   {unfinished} unfinished: lower bounds" if unfinished else ""
            yield f"  {policy:14}{p50:9.1f}{p90:9.1f}{p99:9.1f}   {ratio or ''}{note}"
        if FLEETS[fleet].recovers:
            yield from _recovered(report, load)


def ordered(policies: dict[str, Any]) -> list[str]:
    return [policy for policy in (*POLICIES, CENTRAL) if policy in policies]


def as_json(report: Report) -> dict[str, Any]:
    """The three headline ratios first; each is null where its cell was not run."""
    equal = report.ratio("lognormal", 0.8, "bids", "round-robin")
    mixed = report.ratio("mixed", 0.75, "bids", "shared")
    worst = report.worst("bids", "shared")
    return {
        "equal_p99_vs_round_robin": _mean(equal),
        "mixed_p99_vs_shared": _mean(mixed),
        "worst_p99_vs_shared": _mean(worst[2]) if worst else None,
        "worst_cell": {"fleet": worst[0], "load": worst[1]} if worst else None,
        "intervals": {
            "equal_p99_vs_round_robin": _interval(equal),
            "mixed_p99_vs_shared": _interval(mixed),
            "worst_p99_vs_shared": _interval(worst[2]) if worst else None,
        },
        "cells": [
            _cell(report, fleet, load, policy) for (fleet, load), by in report.cells.items() for policy in ordered(by)
        ],
    }


def _cell(report: Report, fleet: str, load: float, policy: str) -> dict[str, Any]:
    vs_bids = report.ratio(fleet, load, policy, "bids")
    found: dict[str, Any] = {
        "fleet": fleet,
        "load": load,
        "policy": policy,
        "seeds": sorted(report.cells[fleet, load][policy]),
        **{f"{name}_ms": round(report.mean_ms(fleet, load, policy, name), 2) for name in ("p50", "p90", "p99")},
        "p99_vs_bids": _mean(vs_bids),
        "interval": _interval(vs_bids),
        "unfinished": report.unfinished(fleet, load, policy),
    }
    if FLEETS[fleet].recovers and policy != CENTRAL:
        found["recovered_s"] = report.recovered_s(load, policy)
    return found


def _recovered(report: Report, load: float) -> Iterator[str]:
    yield "  seconds from recovery until the peer finished half of its fair share within one second, by seed:"
    for policy in ordered(report.cells["turning", load]):
        if policy != CENTRAL:
            yield f"  {policy:14}{_listed(report.recovered_s(load, policy))}"


def _listed(seconds: Sequence[float | None]) -> str:
    return ", ".join("never" if s is None else f"{s:.1f}" for s in seconds)


def _mean(ratio: Ratio | None) -> float | None:
    return round(ratio.mean, 3) if ratio else None


def _interval(ratio: Ratio | None) -> Sequence[float] | None:
    if ratio is None or ratio.low is None or ratio.high is None:
        return None
    return [round(ratio.low, 3), round(ratio.high, 3)]
