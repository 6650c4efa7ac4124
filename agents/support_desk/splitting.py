"""Labelled tickets divided into those to learn from and those to be answered."""

import random
from collections import defaultdict
from collections.abc import Sequence

from agents.support_desk.ladder import LABEL_TICKETS_MIN
from agents.support_desk.tickets import Ticket


def split(tickets: Sequence[Ticket], *, training_share: float, seed: int) -> tuple[list[Ticket], list[Ticket]]:
    """Tickets to train on, and the others in random order. The same seed divides the same tickets alike.

    Each label is divided by itself, so that rare ones are on both sides; one that is too rare for that is trained on.
    """
    shuffle = random.Random(seed).shuffle  # noqa: S311  # a choice of examples, not a secret
    by_label: dict[str | None, list[Ticket]] = defaultdict(list)
    for ticket in tickets:
        by_label[ticket.label].append(ticket)
    to_train: list[Ticket] = []
    to_answer: list[Ticket] = []
    for alike in by_label.values():
        shuffle(alike)
        count = max(LABEL_TICKETS_MIN, round(training_share * len(alike)))
        to_train += alike[:count]
        to_answer += alike[count:]
    shuffle(to_answer)
    return to_train, to_answer
