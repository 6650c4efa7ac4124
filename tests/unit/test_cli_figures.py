"""What a report makes of events: rows, percentiles, costs and the slowest tasks."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.event import Event, EventKind
from contracts.outcome import Spent
from mesh.cli.figures import SLOWEST, By, Report, Tally, quantile


def ended(id_: str = "k", *, capability: str = "add", at: float = 100.0, status: str = "done", **more: object) -> Event:
    return Event(kind=EventKind.ENDED, at=at, peer="p1", capability=capability, id=id_, status=status, **more)  # type: ignore[arg-type]


def report(events: list[Event], *, by: By, since: float = 0.0, until: float = 200.0) -> Report:
    tally = Tally(by)
    for event in events:
        tally.add(event)
    return tally.report(since=since, until=until)


def test_each_end_is_counted_by_how_it_was() -> None:
    events = [ended(status=status) for status in ("done", "done", "failed", "expired", "cancelled")]

    (row,) = report(events, by=By.CAPABILITY).rows

    assert (row.name, row.tasks, row.failed, row.expired, row.cancelled) == ("add", 5, 1, 1, 1)


def test_costs_add_up_and_are_told_for_a_day_at_the_same_rate() -> None:
    events = [ended(at=float(at), spent=Spent(tokens_in=10, tokens_out=5, usd=0.5)) for at in (0, 1_800)]

    found = report(events, by=By.CAPABILITY, until=3_600.0)

    assert found.usd == pytest.approx(1.0)
    assert found.usd_a_day == pytest.approx(24.0)
    assert report(events, by=By.CAPABILITY, since=3_599.0, until=3_600.0).usd_a_day == 0, "a second tells nothing"
    assert (found.rows[0].tokens_in, found.rows[0].tokens_out) == (20, 10)


@pytest.mark.parametrize(
    ("by", "names"),
    [
        (By.CAPABILITY, {"add"}),
        (By.OWNER, {"desk", "(nobody)"}),
        (By.AGENT, {"adder", "(nobody)"}),
        (By.VERSION, {"adder 2", "(nobody)"}),
        (By.CALLER, {"plan", "(nobody)"}),
        (By.PEER, {"p1"}),
    ],
)
def test_rows_are_made_by_what_was_asked_for(by: By, names: set[str]) -> None:
    events = [ended(), ended(owner="desk", agent="adder", version="2", caller="plan")]

    assert {row.name for row in report(events, by=by).rows} == names


def test_what_tasks_met_is_counted_with_the_owner_that_their_capability_has() -> None:
    met = [Event(kind=kind, at=1.0, peer="p2", capability="add", id="k") for kind in ("retried", "taken-over")]

    (row,) = report([*met, ended(owner="desk")], by=By.OWNER).rows

    assert (row.name, row.retried, row.taken_over, row.dead_lettered) == ("desk", 1, 1, 0)


def test_the_slowest_tasks_come_first_and_are_few() -> None:
    events = [ended(f"k{number}", queue_s=float(number % 7), run_s=float(number)) for number in range(50)]

    slowest = report(events, by=By.CAPABILITY).slowest

    assert len(slowest) == SLOWEST
    took = [slow.queue_s + slow.run_s for slow in slowest]
    assert took == sorted((number % 7 + number for number in range(50)), reverse=True)[:SLOWEST]


def test_a_kind_that_a_newer_peer_says_is_passed_over() -> None:
    assert report([Event(kind="praised", at=1.0, peer="p1", capability="add", id="k")], by=By.PEER).rows == ()


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1))
def test_at_least_the_share_lies_at_or_below_a_quantile(values: list[float], share: float) -> None:
    found = quantile(array("d", values), share)

    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert sum(value < found for value in values) < share * len(values) + 1e-9


def test_the_quantile_of_nothing_is_zero() -> None:
    assert quantile(array("d"), 0.5) == 0.0
