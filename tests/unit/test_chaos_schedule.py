"""What strikes when, and what is asked for, follow from the seed alone."""

from pathlib import Path

import pytest

from contracts.errors import ContractError
from mesh.testing.chaos.catalogue import KINDS, chosen
from mesh.testing.chaos.schedule import LEAD_IN_S, lasts_s, schedule
from mesh.testing.chaos.stage import means
from mesh.testing.chaos.workloads import BuiltIn, OwnAgents
from mesh.testing.faults import Need

ON_ONE = chosen(None, has=means(1))


@pytest.mark.parametrize("seed", [0, 7, 2**31])
def test_a_seed_repeats_its_schedule_and_another_has_another(seed: int) -> None:
    once = schedule(ON_ONE, seed=seed, for_s=600, ack_wait_s=6)

    assert schedule(ON_ONE, seed=seed, for_s=600, ack_wait_s=6) == once
    assert schedule(ON_ONE, seed=seed + 1, for_s=600, ack_wait_s=6) != once


def test_every_kind_strikes_before_any_strikes_again() -> None:
    planned = schedule(ON_ONE, seed=3, for_s=1_200, ack_wait_s=2)

    first = [each.fault.name for each in planned[: len(ON_ONE)]]
    assert sorted(first) == sorted(kind.name for kind in ON_ONE)
    assert len(planned) > 2 * len(ON_ONE)


@pytest.mark.parametrize("seed", range(20))
def test_faults_begin_after_the_lead_in_in_order_and_end_with_time_to_recover(seed: int) -> None:
    planned = schedule(ON_ONE, seed=seed, for_s=120, ack_wait_s=6)

    times = [each.at_s for each in planned]
    assert times[0] == LEAD_IN_S
    assert times == sorted(times)
    assert all(each.at_s + lasts_s(each.fault) + 6 <= 120 for each in planned)


def test_a_short_day_has_one_fault_at_least() -> None:
    assert len(schedule(ON_ONE, seed=1, for_s=12, ack_wait_s=6)) == 1


def test_one_server_has_no_faults_of_clusters_and_three_nodes_have_all() -> None:
    assert {kind.name for kind in KINDS} - {kind.name for kind in ON_ONE} == {
        *("kill-leader", "freeze-leader", "partition-leader", "step-down", "kill-all")
    }
    assert chosen(None, has=means(3)) == KINDS


def test_where_only_safe_faults_may_strike_nothing_else_is_drawn() -> None:
    safe = chosen(None, has=frozenset({Need.OWN_LINE}), is_safe_only=True)

    assert {kind.name for kind in safe} == {"submit-again", "cancel", "cut-submitter"}
    assert all(kind.needs <= {Need.OWN_LINE} for kind in KINDS if kind.is_safe)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["kill-pear"], "no fault is called 'kill-pear'"),
        (["kill-leader"], "needs own cluster"),
        (["kill-peer"], "not safe"),
        ([], "no fault is named"),
    ],
)
def test_a_fault_that_cannot_strike_is_told(names: list[str], told: str) -> None:
    with pytest.raises(ContractError, match=told):
        chosen(names, has=means(1), is_safe_only=told == "not safe")


def test_each_kind_says_what_it_does_and_has_a_name_of_its_own() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS)
    assert all(kind.told.endswith(".") for kind in KINDS)


def test_the_page_on_game_days_has_every_fault() -> None:
    page = (Path(__file__).parents[2] / "docs" / "chaos.md").read_text()

    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert [kind.name for kind in KINDS if not any(row.startswith(f"| `{kind.name}` |") for row in rows)] == []


def test_the_built_in_tasks_follow_from_the_seed() -> None:
    wanted = [BuiltIn(5).wanted(number) for number in range(300)]

    assert [BuiltIn(5).wanted(number) for number in range(300)] == wanted
    assert [BuiltIn(6).wanted(number) for number in range(300)] != wanted
    assert {each.capability for each in wanted} == {"chaos-work", "chaos-flow", "chaos-refuse"}


def test_own_payloads_are_taken_in_turn() -> None:
    own = OwnAgents((), "triage", [1, 2])

    assert [own.wanted(number).payload for number in range(3)] == [1, 2, 1]
