"""What the desk's figures say of tickets whose fate is known."""

import pytest

from agents.support_desk.figures import OfRung, Settled, calibration_error, figures
from agents.support_desk.splitting import split
from agents.support_desk.tickets import Ticket

RIGHT = Settled("a", "triage", "a", 0.9)
WRONG = Settled("a", "specialist", "b", 0.8)
WITH_PERSON = Settled("a", "human")
FAILED = Settled("a", "")


def test_shares_are_of_all_tickets_and_accuracy_of_those_a_machine_resolved() -> None:
    found = figures([RIGHT, RIGHT, RIGHT, WRONG, WITH_PERSON, FAILED, FAILED, FAILED])

    assert (found.tickets, found.resolved_share, found.accuracy) == (8, 0.5, 0.75)
    assert found.by_rung == {
        "triage": OfRung(3, 0.375, 1.0),
        "specialist": OfRung(1, 0.125, 0.0),
        "human": OfRung(1, 0.125, None),
    }


def test_where_no_label_is_known_there_is_no_accuracy() -> None:
    found = figures([Settled(None, "triage", "a", 0.9)])

    assert (found.resolved_share, found.accuracy, found.calibration_error) == (1.0, None, None)


def test_of_no_tickets_there_is_nothing_to_tell() -> None:
    found = figures([])

    assert (found.tickets, found.resolved_share, found.accuracy, found.calibration_error) == (0, 0.0, None, None)


def test_confidence_that_comes_true_is_not_off() -> None:
    resolved = [Settled("a", "triage", "a" if number % 10 else "b", 0.9) for number in range(100)]

    assert calibration_error(resolved) == pytest.approx(0.0)


def test_the_calibration_error_is_the_mean_over_bins_of_equal_mass() -> None:
    sure = [Settled("a", "triage", "a", 0.99)] * 50
    unsure = [Settled("a", "specialist", "b", 0.8)] * 50

    assert calibration_error([*sure, *unsure]) == pytest.approx((0.01 + 0.8) / 2)


def test_fewer_tickets_than_bins_are_each_a_bin() -> None:
    assert calibration_error([RIGHT, WRONG]) == pytest.approx((0.1 + 0.8) / 2)


def test_a_split_divides_every_label_and_loses_no_ticket() -> None:
    tickets = [Ticket(f"{label} {number}", label) for label in "abc" for number in range(10)]
    rare = [Ticket("rare 1", "rare"), Ticket("rare 2", "rare")]

    to_train, others = split([*tickets, *rare], training_share=0.7, seed=1)

    assert sorted(str(ticket.label) for ticket in others) == sorted("abc" * 3)
    assert {ticket.text for ticket in to_train} >= {ticket.text for ticket in rare}
    assert {*to_train, *others} == {*tickets, *rare}
    assert split([*tickets, *rare], training_share=0.7, seed=1) == (to_train, others)
