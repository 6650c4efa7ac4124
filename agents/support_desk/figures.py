"""What a desk achieved: how many tickets it resolved, how well, and whether its confidence can be trusted."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from agents.support_desk.payloads import HUMAN, RUNGS, SPECIALIST, TRIAGE

BINS: Final = 10


@dataclass(frozen=True, slots=True)
class Settled:
    """One ticket: what it is about as somebody knows, and what the desk says, if a machine said it."""

    wanted: str | None
    rung: str
    label: str | None = None
    confidence: float = 1.0

    @property
    def is_right(self) -> bool:
        return self.label == self.wanted


@dataclass(frozen=True, slots=True)
class OfRung:
    """What one rung settled. `accuracy` is None for people, and where nothing is known of it."""

    tickets: int
    share: float
    accuracy: float | None


@dataclass(frozen=True, slots=True)
class Figures:
    """Shares are of all tickets; accuracies of those that a machine resolved and whose label is known."""

    tickets: int
    resolved_share: float
    accuracy: float | None
    by_rung: dict[str, OfRung]
    calibration_error: float | None
    """Expected calibration error over `BINS` bins of equally many resolved tickets."""


def figures(settled: Sequence[Settled]) -> Figures:
    """The figures of these tickets."""
    by_rung = {rung: [ticket for ticket in settled if ticket.rung == rung] for rung in RUNGS}
    resolved = [*by_rung[TRIAGE], *by_rung[SPECIALIST]]
    return Figures(
        tickets=len(settled),
        resolved_share=_share(len(resolved), len(settled)),
        accuracy=accuracy(resolved),
        by_rung={
            rung: OfRung(len(of_rung), _share(len(of_rung), len(settled)), None if rung == HUMAN else accuracy(of_rung))
            for rung, of_rung in by_rung.items()
        },
        calibration_error=calibration_error(resolved),
    )


def accuracy(resolved: Sequence[Settled]) -> float | None:
    """The share that is right of those whose label is known; None where there are none."""
    known = [ticket for ticket in resolved if ticket.wanted is not None]
    return sum(ticket.is_right for ticket in known) / len(known) if known else None


def calibration_error(resolved: Sequence[Settled]) -> float | None:
    """By how much confidence and accuracy differ on average: ECE, over bins of equal mass.

    Sorted by confidence, the tickets are cut into `BINS` bins of as many tickets each. Nearly all that is resolved
    is above 0.9, so bins of equal width would put everything into one of them.
    """
    known = sorted((ticket for ticket in resolved if ticket.wanted is not None), key=lambda ticket: ticket.confidence)
    if not known:
        return None
    edges = [len(known) * place // BINS for place in range(BINS + 1)]
    bins = [known[start:end] for start, end in pairwise(edges)]
    off = [abs(sum(ticket.confidence - ticket.is_right for ticket in one)) for one in bins]
    return sum(off) / len(known)


def _share(count: int, of: int) -> float:
    return count / of if of else 0.0
