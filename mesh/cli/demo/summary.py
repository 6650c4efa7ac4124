"""What a run of the demo came to: facts in, one summary out. Nothing here asks, waits or reads a clock.

The facts come from three witnesses that know nothing of each other: the submitters' own answers, the server's
echo of every result it stored, and the records read back at the end.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta, Struct

from contracts.outcome import Outcome, Status


@dataclass(frozen=True, slots=True)
class Recorded:
    """A result record as it was read back. `stored_at` is the server's Unix time."""

    outcome: Outcome
    sequence: int
    stored_at: float
    ended_before: int = 0
    """Earlier attempts whose end is recorded: failures that were tried again, and clean hand-backs."""

    @property
    def was_abandoned(self) -> bool:
        """Whether a peer began it and was never heard of again."""
        return self.outcome.attempt - 1 > self.ended_before


@dataclass(frozen=True, slots=True)
class Kill:
    """One peer killed: when, and the keys of tasks it had begun and not recorded."""

    peer: str
    at: float
    running: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class History:
    """What was observed. Times are Unix times; keys stand for tasks."""

    began_at: float
    submitted_from: float
    ended_at: float
    accepted: Sequence[str]
    """The key of every accepted submission, so each key as often as it was submitted."""
    started: int
    """Submissions that were told that they are the first under their key."""
    answers: Sequence[tuple[str, Outcome]]
    """What each submitter was told of a key."""
    echoes: Sequence[tuple[str, int]]
    """Key and stream sequence of every result the server stored."""
    records: dict[str, Recorded]
    kills: Sequence[Kill]
    redelivered: int
    queued: int
    """Tasks still in the queue at the end."""


class Summary(Struct, frozen=True, kw_only=True):
    """The figures of a run. Lengths in seconds; None where nothing was measured."""

    sent: Annotated[int, Meta(description="Tasks that were accepted: distinct keys.")]
    submissions: Annotated[int, Meta(description="Accepted submissions, repeated ones included.")]
    started: Annotated[int, Meta(description="Submissions that started a task; the others met one that existed.")]
    results: Annotated[int, Meta(description="Sent tasks with a result record.")]
    failed: Annotated[int, Meta(description="Results that carry a failure instead of a review.")]
    lost: Annotated[int, Meta(description="Sent tasks without a result record.")]
    duplicated: Annotated[int, Meta(description="Tasks with two stored results, or two different answers.")]
    unexpected: Annotated[int, Meta(description="Stored results of tasks that nobody sent.")]
    queued: Annotated[int, Meta(description="Tasks still in the queue at the end.")]
    killed: int
    taken_over: Annotated[int, Meta(description="Tasks of the killed peer that another one answered.")]
    redelivered: Annotated[int, Meta(description="Repeated deliveries, as the living peers' metrics count them.")]
    takeover_s: Annotated[float | None, Meta(description="From the kill to the last result that was taken over.")]
    queue_p50_s: float | None
    queue_p99_s: Annotated[
        float | None, Meta(description="Taken-over tasks included: from first stored to last start.")
    ]
    run_p50_s: float | None
    run_p99_s: float | None
    tasks_per_s: Annotated[float | None, Meta(description="Up to the last result that was not taken over.")]
    elapsed_s: Annotated[float, Meta(description="From the start of the command to this summary.")]

    @property
    def is_sound(self) -> bool:
        """Whether every task was answered once, and nothing else was."""
        return not (self.lost or self.duplicated or self.unexpected)


@dataclass(frozen=True, slots=True)
class TakenOver:
    """A task of a killed peer that another one answered, `after_s` seconds after the kill."""

    key: str
    by: str
    after_s: float


def summarise(history: History) -> Summary:
    """The figures of a history."""
    sent = set(history.accepted)
    answered = {key: recorded for key, recorded in history.records.items() if key in sent}
    overs = taken_over(history)
    late = {over.key for over in overs}
    stored_at = [recorded.stored_at for key, recorded in answered.items() if key not in late]
    busy_s = max(stored_at) - history.submitted_from if stored_at else 0.0
    queue_s = [recorded.outcome.queue_s for recorded in answered.values()]
    run_s = [recorded.outcome.run_s for recorded in answered.values()]
    return Summary(
        sent=len(sent),
        submissions=len(history.accepted),
        started=history.started,
        results=len(answered),
        failed=sum(recorded.outcome.status is not Status.DONE for recorded in answered.values()),
        lost=len(sent - answered.keys()),
        duplicated=len(duplicates(history)),
        unexpected=len({*history.records, *(key for key, _ in history.echoes)} - sent),
        queued=history.queued,
        killed=len(history.kills),
        taken_over=len(overs),
        redelivered=history.redelivered,
        takeover_s=_rounded(max((over.after_s for over in overs), default=None)),
        queue_p50_s=_rounded(percentile(queue_s, 50)),
        queue_p99_s=_rounded(percentile(queue_s, 99)),
        run_p50_s=_rounded(percentile(run_s, 50)),
        run_p99_s=_rounded(percentile(run_s, 99)),
        tasks_per_s=_rounded(len(stored_at) / busy_s if busy_s > 0 else None),
        elapsed_s=round(history.ended_at - history.began_at, 3),
    )


def duplicates(history: History) -> set[str]:
    """Keys with more than one stored result, or with answers that differ from the record or from each other."""
    sequences: defaultdict[str, set[int]] = defaultdict(set)
    for key, sequence in history.echoes:
        sequences[key].add(sequence)
    for key, recorded in history.records.items():
        sequences[key].add(recorded.sequence)
    twice = {key for key, found in sequences.items() if len(found) > 1}
    told = dict(history.answers) | {key: recorded.outcome for key, recorded in history.records.items()}
    return twice | {key for key, outcome in history.answers if outcome != told[key]}


def taken_over(history: History) -> list[TakenOver]:
    """What killed peers left behind and others answered, in order of storage.

    It is told by the records, not by what the peer said it was running: it may have begun another task since.
    """
    dead = {kill.peer: kill.at for kill in history.kills}
    if not dead:
        return []
    first_kill = min(dead.values())
    overs = [
        TakenOver(key, recorded.outcome.peer, recorded.stored_at - first_kill)
        for key, recorded in history.records.items()
        if recorded.was_abandoned and recorded.outcome.peer not in dead
    ]
    return sorted(overs, key=lambda over: over.after_s)


def results_by_peer(history: History) -> Counter[str]:
    """How many results each peer recorded."""
    return Counter(recorded.outcome.peer for recorded in history.records.values())


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The smallest value that `percent` per cent of all do not exceed (nearest rank); None of no values."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)]


def choose_victim(order: Sequence[str], running: dict[str, tuple[str, ...]]) -> tuple[str, tuple[str, ...]] | None:
    """The first peer of `order` that is running something, and what it is."""
    return next(((peer, running[peer]) for peer in order if running.get(peer)), None)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
