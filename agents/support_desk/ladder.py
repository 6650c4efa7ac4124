"""A ladder from machine to person: a fast triage, and a specialist for what triage is unsure of.

    ladder = Ladder.train(read_tickets(path, labels_required=True))
    opinion = ladder.triage("My parcel is late")
    is_settled = opinion.confidence >= ladder.triage_threshold

What the specialist is unsure of too is for a person. Training takes the thresholds and the meaning of a
confidence from the training tickets alone, each judged by models that had not seen it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final, Self

import joblib  # type: ignore[import-untyped]  # joblib ships no types
import numpy as np

from agents.support_desk.calibration import Calibration
from agents.support_desk.cross_fitting import cross_fit
from agents.support_desk.dropout_net import DropoutNet
from agents.support_desk.learners import Indexes, LinearLearner
from agents.support_desk.rung import Rung, mean_scores
from agents.support_desk.thresholds import Forecast, Goal, Trial, forecast, specialist_threshold, triage_threshold
from agents.support_desk.tickets import Ticket
from agents.support_desk.verdicts import Verdicts, by_margin, by_odds
from agents.support_desk.views import LETTERS, WORD_ORDER, WORD_PAIRS, View

LABELS_MIN: Final = 2
LABEL_TICKETS_MIN: Final = 2
PASSED_ON_MIN: Final = 50
"""With fewer tickets passed on, the specialist's confidence is learned from all of them."""

_FILE_START: Final = b"starling support desk 1\n"
"""Changed with every change that makes older files unreadable."""


class TrainingError(ValueError):
    """There are too few tickets to learn from, or some without a label."""


class LadderFileError(ValueError):
    """The file was not written by `Ladder.save` of this version."""


@dataclass(frozen=True)
class Opinion:
    """What a rung takes a ticket for."""

    label: str
    confidence: float
    """The probability that the label is right; above 0 and below 1."""


@dataclass(frozen=True)
class Ladder:
    """A trained triage and specialist, and how sure each must be to settle a ticket.

    The specialist's confidence is meant for what triage passes on; those tickets are harder than the rest.
    Asking changes nothing, so threads may share a ladder.
    """

    labels: tuple[str, ...]
    triage_threshold: float
    specialist_threshold: float
    forecast: Forecast
    _triage: Rung
    _specialist: Rung

    @classmethod
    def train(cls, tickets: Sequence[Ticket], *, goal: Goal | None = None) -> Self:
        """A ladder that has learned from these tickets; the same tickets in the same order give the same ladder.

        Takes about a minute for 10,000 tickets on four cores, in processes of its own; seconds for a few hundred.

        Raises:
            TrainingError: a ticket has no label, a label only one ticket, or all have the same label.
        """
        goal = goal or Goal()
        labels, wanted = _encoded(tickets)
        texts = [ticket.text for ticket in tickets]
        # Views learn no labels, so sharing them between the folds tells nothing about the tickets left out.
        views = [View(parts).fit(texts) for parts in (WORD_PAIRS, WORD_ORDER, LETTERS)]
        rows = [view.rows(texts) for view in views]
        nets = [(DropoutNet(seed), of_view) for seed, of_view in enumerate(rows)]
        linear, *specialists = cross_fit([(LinearLearner(), rows[0]), *nets], wanted)

        by_triage = by_margin(linear.unseen_scores)
        triage_calibration = Calibration.fit(by_triage.sureness, by_triage.labels == wanted)
        triage_trial = _trial(by_triage, triage_calibration, wanted)
        triage_from = triage_threshold(triage_trial, goal)

        by_specialist = by_odds(mean_scores([fit.unseen_scores for fit in specialists]))
        is_passed_on = triage_trial.confidence < triage_from
        if is_passed_on.sum() < PASSED_ON_MIN:
            is_passed_on = np.ones_like(is_passed_on)
        specialist_calibration = Calibration.fit(
            by_specialist.sureness[is_passed_on], (by_specialist.labels == wanted)[is_passed_on]
        )
        specialist_trial = _trial(by_specialist, specialist_calibration, wanted)
        specialist_from = specialist_threshold(triage_trial, specialist_trial, triage_from, goal)

        members = tuple((view, fit.learner) for view, fit in zip(views, specialists, strict=True))
        return cls(
            labels=labels,
            triage_threshold=triage_from,
            specialist_threshold=specialist_from,
            forecast=forecast(triage_trial, specialist_trial, triage_from, specialist_from),
            _triage=Rung(((views[0], linear.learner),), by_margin, triage_calibration),
            _specialist=Rung(members, by_odds, specialist_calibration),
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """The ladder that `save` wrote there.

        The file is a pickle: reading one runs whatever its writer put into it. Load only what your own training
        wrote, from where nobody else can write.

        Raises:
            LadderFileError: the file starts with something else.
            OSError: the file cannot be read.
        """
        with path.open("rb") as file:
            if file.read(len(_FILE_START)) != _FILE_START:
                raise LadderFileError(f"{path} does not start with {_FILE_START!r}")
            ladder = joblib.load(file)
        assert isinstance(ladder, cls)
        return ladder

    def save(self, path: Path) -> None:
        """Write the ladder, for other processes to load instead of training their own.

        The file appears whole or not at all, and replaces an older one.
        """
        with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            written = Path(file.name)
            try:
                file.write(_FILE_START)
                joblib.dump(self, file, compress=1)
                file.close()
                written.replace(path)
            except BaseException:
                written.unlink(missing_ok=True)
                raise

    def triage(self, text: str) -> Opinion:
        """The fast opinion, within a few milliseconds."""
        return self.triage_all([text])[0]

    def specialist(self, text: str) -> Opinion:
        """The better opinion, within some tens of milliseconds."""
        return self.specialist_all([text])[0]

    def triage_all(self, texts: Sequence[str]) -> list[Opinion]:
        """The fast opinion on each text; much faster than one by one."""
        return self._opinions(self._triage, texts)

    def specialist_all(self, texts: Sequence[str]) -> list[Opinion]:
        """The better opinion on each text; much faster than one by one."""
        return self._opinions(self._specialist, texts)

    def _opinions(self, rung: Rung, texts: Sequence[str]) -> list[Opinion]:
        if not texts:
            return []
        labels, confidence = rung.answers(texts)
        return [Opinion(self.labels[label], float(sure)) for label, sure in zip(labels, confidence, strict=True)]


def _encoded(tickets: Sequence[Ticket]) -> tuple[tuple[str, ...], Indexes]:
    """The different labels in order, and for each ticket the place of its label among them."""
    counts = Counter(ticket.label for ticket in tickets)
    if counts[None]:
        raise TrainingError(f"{counts[None]} of {len(tickets)} tickets have no label")
    labels = sorted(label for label in counts if label is not None)
    if len(labels) < LABELS_MIN:
        raise TrainingError(f"{len(labels)} labels in {len(tickets)} tickets; learning to tell takes {LABELS_MIN}")
    rare = [label for label in labels if counts[label] < LABEL_TICKETS_MIN]
    if rare:
        raise TrainingError(f"too few tickets are labelled {', '.join(rare)}: each label takes {LABEL_TICKETS_MIN}")
    places = {label: place for place, label in enumerate(labels)}
    return tuple(labels), np.array([places[ticket.label] for ticket in tickets if ticket.label is not None])


def _trial(verdicts: Verdicts, calibration: Calibration, wanted: Indexes) -> Trial:
    return Trial(calibration.confidence(verdicts.sureness), verdicts.labels == wanted)
