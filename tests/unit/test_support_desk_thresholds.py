"""Thresholds and confidence: what trials on unseen tickets say about how sure is sure enough."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.support_desk.calibration import CONFIDENCE_MAX, Calibration
from agents.support_desk.cross_fitting import FOLDS, folds
from agents.support_desk.thresholds import NEVER, Goal, Trial, forecast, specialist_threshold, triage_threshold

GOAL = Goal(accuracy=0.9, accuracy_floor=0.8, resolved_share_min=0.5, triage_accuracy=0.9)

rights = st.lists(st.booleans(), min_size=1, max_size=60)


def falling(is_right: list[bool], *, start: float = 0.99, end: float = 0.01) -> Trial:
    """Verdicts in the order of their confidence, each sure in its own degree."""
    return Trial(np.linspace(start, end, len(is_right)), np.array(is_right, dtype=bool))


def passed_on(count: int) -> Trial:
    """A triage that settles nothing."""
    return falling([True] * count)


def resolved_count(is_right: list[bool], goal: Goal = GOAL) -> int:
    specialist = falling(is_right)
    return int((specialist.confidence >= specialist_threshold(passed_on(len(is_right)), specialist, NEVER, goal)).sum())


def test_triage_goes_down_to_where_its_accuracy_still_holds() -> None:
    trial = falling([True] * 18 + [False, True, False, False])

    threshold = triage_threshold(trial, GOAL)

    assert int((trial.confidence >= threshold).sum()) == 21


def test_a_triage_that_is_never_accurate_enough_settles_nothing() -> None:
    assert triage_threshold(falling([False] * 5), GOAL) == NEVER > CONFIDENCE_MAX


def test_the_specialist_stops_halfway_between_enough_and_just_accurate() -> None:
    assert resolved_count([True] * 80 + [False] * 20) == (50 + 88) // 2


def test_the_share_comes_before_the_accuracy_down_to_the_floor() -> None:
    assert resolved_count([True] * 42 + [False] * 58) == 50


def test_below_the_floor_the_share_gives_way() -> None:
    assert resolved_count([True] * 20 + [False] * 80) == 25


def test_a_specialist_that_is_never_right_settles_nothing() -> None:
    assert resolved_count([False] * 10) == 0


def test_what_triage_settles_counts_towards_the_share() -> None:
    triage = falling([True] * 60 + [False] * 40)
    specialist = falling([False] * 100)

    threshold = specialist_threshold(triage, specialist, float(triage.confidence[59]), GOAL)

    assert int((specialist.confidence[60:] >= threshold).sum()) == (50 - 50 + 66 - 60) // 2


@given(rights, rights)
def test_a_forecast_keeps_to_the_floor_whatever_the_trials(of_triage: list[bool], of_specialist: list[bool]) -> None:
    count = min(len(of_triage), len(of_specialist))
    triage, specialist = falling(of_triage[:count]), falling(of_specialist[:count])

    triage_from = triage_threshold(triage, GOAL)
    specialist_from = specialist_threshold(triage, specialist, triage_from, GOAL)
    expected = forecast(triage, specialist, triage_from, specialist_from)

    assert expected.triage_share <= expected.resolved_share <= 1
    assert expected.resolved_share == 0 or expected.accuracy >= GOAL.accuracy_floor


def test_a_calibrated_confidence_is_the_share_that_is_right() -> None:
    random = np.random.default_rng(1)
    sureness = random.normal(1, 2, 20_000)
    is_right = random.random(20_000) < 1 / (1 + np.exp(-(0.7 * sureness + 0.4)))

    confidence = Calibration.fit(sureness, is_right).confidence(sureness)

    for low in np.arange(0.2, 0.9, 0.1):
        is_near = (confidence >= low) & (confidence < low + 0.1)
        assert is_right[is_near].mean() == pytest.approx(confidence[is_near].mean(), abs=0.03)


@given(st.lists(st.tuples(st.floats(-20, 20), st.booleans()), min_size=1, max_size=30), st.floats(-50, 50))
def test_confidence_lies_between_0_and_1_and_never_falls(trials: list[tuple[float, bool]], sureness: float) -> None:
    calibration = Calibration.fit(np.array([sure for sure, _ in trials]), np.array([right for _, right in trials]))

    lower, higher = calibration.confidence(np.array([sureness, sureness + 1]))

    assert 0 < lower <= higher <= CONFIDENCE_MAX < 1


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40))
def test_a_label_seen_twice_is_never_left_out_as_a_whole(labels: list[int]) -> None:
    twice = np.array(labels + labels)

    part_of = folds(twice)

    assert set(part_of) <= set(range(FOLDS))
    assert all(len(set(part_of[twice == label])) > 1 for label in labels)
