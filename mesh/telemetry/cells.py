"""Counters and histograms that cost a task next to nothing, and what a scrape makes of them.

A task counts in plain numbers: cells are written by the event loop's thread alone and read by a scrape's, which needs
no lock. Two cells that are read at once may be a task apart; within one histogram the buckets always add up to its
count.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any, Generic, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Shown
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

from mesh.telemetry.catalogue import OTHERS, Metric

Labels = tuple[str, ...]


class Count:
    """A number that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, by: float = 1.0) -> None:
        self.value += by


class Distribution:
    """How many observations fell into each bucket, and their sum."""

    __slots__ = ("_bounds", "counts", "exemplars", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        self.exemplars: dict[int, Exemplar] = {}

    def observe(self, value: float, trace: Mapping[str, str] | None = None) -> None:
        """Count a value, with the trace it belongs to as its bucket's example."""
        bucket = bisect_left(self._bounds, value)
        self.counts[bucket] += 1
        self.total += value
        if trace is not None:
            self.exemplars[bucket] = Exemplar(dict(trace), value, time.time())


class NoCount(Count):
    """Counts nothing."""

    __slots__ = ()

    def inc(self, by: float = 1.0) -> None:
        return


class NoDistribution(Distribution):
    """Counts nothing."""

    __slots__ = ()

    def observe(self, value: float, trace: Mapping[str, str] | None = None) -> None:
        return


Cell = TypeVar("Cell", bound=Count | Distribution)


class Family(Generic[Cell]):
    """The cells of one metric, one for each set of labels, shown from when it is first asked for."""

    def __init__(self, metric: Metric, make: Callable[[], Cell]) -> None:
        self.metric = metric
        self._make = make
        self._cells: dict[Labels, Cell] = {}

    def of(self, *labels: str) -> Cell:
        """The cell with these labels, in the catalogue's order; to be kept by whoever counts often."""
        cell = self._cells.get(labels)
        if cell is None:
            assert len(labels) == len(self.metric.labels), f"{self.metric.name} has labels {self.metric.labels}"
            cell = self._cells[labels] = self._make()
        return cell

    def _standing(self) -> list[tuple[Labels, Cell]]:
        # One step for the interpreter: the loop may add a cell meanwhile.
        return list(self._cells.copy().items())


class Counts(Family[Count]):
    """The cells of a counter."""

    def shown(self) -> Shown:
        """What a scrape sees."""
        family = CounterMetricFamily(self.metric.name, self.metric.meaning, labels=self.metric.labels)
        for labels, cell in self._standing():
            family.add_metric(labels, cell.value)
        return family


class Distributions(Family[Distribution]):
    """The cells of a histogram."""

    def shown(self) -> Shown:
        """What a scrape sees."""
        family = HistogramMetricFamily(self.metric.name, self.metric.meaning, labels=self.metric.labels)
        bounds = (*map(floatToGoString, self.metric.buckets), "+Inf")
        for labels, cell in self._standing():
            found = zip(bounds, accumulate(cell.counts.copy()), strict=True)
            buckets: list[Any] = [(bound, count, cell.exemplars.get(at)) for at, (bound, count) in enumerate(found)]
            family.add_metric(labels, buckets, cell.total)
        return family


class Names:
    """Keeps names that somebody else makes up within a bound: past it they become `(others)`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[Any] = set()

    def has(self, name: Any) -> bool:
        """Whether the name has a series of its own; one of the first has, from now on."""
        if name in self._known:
            return True
        if len(self._known) >= self._most:
            return False
        self._known.add(name)
        return True

    def of(self, name: str) -> str:
        """The name, or what stands for all others."""
        return name if self.has(name) else OTHERS


def gauge(metric: Metric, value: float | None = None) -> GaugeMetricFamily:
    """A gauge of the catalogue, to be filled at a scrape."""
    if value is not None:
        return GaugeMetricFamily(metric.name, metric.meaning, value=value)
    return GaugeMetricFamily(metric.name, metric.meaning, labels=metric.labels)


def counter(metric: Metric, value: float) -> CounterMetricFamily:
    """A counter of the catalogue that somebody else keeps."""
    return CounterMetricFamily(metric.name, metric.meaning, value=value)


def legible(text: str, most: int) -> str:
    """A label's value of at most so many characters, of a text that anybody made up."""
    # Half a surrogate pair cannot be encoded, and would take the whole scrape with it.
    return text[:most].encode(errors="replace").decode()
