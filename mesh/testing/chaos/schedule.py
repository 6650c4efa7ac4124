"""What strikes when: a decision over a seed, so that a seed repeats its schedule.

Every kind strikes once, in a random order, before any strikes again. Between the end of a fault and the next one the
mesh has `ack_wait` and a little more to recover, so that recoveries can be told apart; but some faults strike in the
middle of another one, because what breaks in the world does not wait either.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from mesh.testing.chaos.catalogue import Kind
from mesh.testing.faults import Fault

LEAD_IN_S = 5.0
"""Before the first fault: the rate to come back to is measured there."""
BETWEEN_S = (1.5, 3.0)
OVERLAPPING = 0.15
"""The share of faults that strike in the middle of another one."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A fault, and when it strikes, in seconds from the beginning. `number` counts from 1."""

    number: int
    at_s: float
    fault: Fault


def schedule(kinds: Sequence[Kind], *, seed: int, for_s: float, ack_wait_s: float) -> tuple[Planned, ...]:
    """Faults for a game day of `for_s` seconds, in order. The last one has time to be recovered from."""
    dice = random.Random(f"{seed} schedule")  # noqa: S311  # a seed that repeats a run, no secret
    planned: list[Planned] = []
    deck: list[Kind] = []
    at_s = LEAD_IN_S
    while True:
        if not deck:
            deck = dice.sample(list(kinds), len(kinds))
        fault = deck.pop().draw(dice, ack_wait_s)
        length_s = lasts_s(fault)
        pause_s = ack_wait_s + dice.uniform(*BETWEEN_S)
        if planned and length_s + at_s + pause_s > for_s:
            return tuple(planned)
        planned.append(Planned(len(planned) + 1, round(at_s, 2), fault))
        if length_s and dice.random() < OVERLAPPING:
            at_s += length_s * dice.uniform(0.2, 0.8)
        else:
            at_s += length_s + pause_s


def lasts_s(fault: Fault) -> float:
    """How long a fault lasts, as far as that is planned."""
    return float(getattr(fault, "for_s", 0.0))
