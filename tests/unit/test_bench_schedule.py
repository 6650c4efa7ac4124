"""The pure parts of the scheduling benchmark: traces, the central queue, paired ratios, inboxes, what is run."""

import math
import statistics
from collections import Counter
from random import Random

import pytest

from ops.bench.scheduling import grid, plot
from ops.bench.scheduling.central_queue import Server, servers_of, simulate
from ops.bench.scheduling.figures import Percentiles, half_share_after_s, paired_ratio, percentile
from ops.bench.scheduling.fleets import FLEETS, SHORT_WORK_S, WORK_S, Trace, draw_trace
from ops.bench.scheduling.policies import POLICIES, pick
from ops.bench.scheduling.report import CENTRAL, Figures, Report, as_json, targets


def poisson(*, rate_per_s: float, mean_work_s: float, tasks: int) -> Trace:
    dice = Random(1)
    at_s, arrivals = 0.0, []
    for _ in range(tasks):
        at_s += dice.expovariate(rate_per_s)
        arrivals.append(at_s)
    return Trace(tuple(arrivals), tuple(dice.expovariate(1 / mean_work_s) for _ in arrivals))


def erlang_c(servers: int, offered: float) -> float:
    """The share of tasks that wait in M/M/k."""
    rare = offered**servers / math.factorial(servers) * servers / (servers - offered)
    return rare / (sum(offered**n / math.factorial(n) for n in range(servers)) + rare)


def equal(count: int) -> list[Server]:
    return [Server(lambda _: 1.0) for _ in range(count)]


def test_one_server_has_the_mean_of_mm1() -> None:
    trace = poisson(rate_per_s=0.7, mean_work_s=1.0, tasks=400_000)

    sojourns_s = simulate(trace, equal(1))

    assert statistics.fmean(sojourns_s) == pytest.approx(1 / (1 - 0.7), rel=0.05)


def test_eight_servers_have_the_mean_of_erlang_c() -> None:
    trace = poisson(rate_per_s=6.0, mean_work_s=1.0, tasks=400_000)

    sojourns_s = simulate(trace, equal(8))

    assert statistics.fmean(sojourns_s) == pytest.approx(1 + erlang_c(8, 6.0) / (8 - 6.0), rel=0.02)


def test_tasks_are_served_in_the_order_in_which_they_came() -> None:
    trace = Trace((0.0, 0.1, 0.2), (1.0, 1.0, 1.0))

    assert simulate(trace, equal(1)) == pytest.approx([1.0, 1.9, 2.8])


def test_the_fastest_idle_server_comes_first() -> None:
    slow, fast = Server(lambda _: 10.0), Server(lambda _: 1.0)
    trace = Trace((0.0, 0.1, 2.0), (1.0, 1.0, 1.0))

    assert simulate(trace, [slow, fast]) == pytest.approx([1.0, 10.0, 1.0])


def test_a_server_serves_nothing_before_it_joins() -> None:
    late = Server(lambda _: 1.0, from_s=5.0)

    assert simulate(Trace((1.0,), (1.0,)), [late]) == pytest.approx([5.0])


def test_a_server_turns_slow_and_recovers() -> None:
    turning = Server(lambda at_s: 10.0 if 5 <= at_s < 15 else 1.0)
    trace = Trace((0.0, 5.0, 20.0), (0.5, 0.5, 0.5))

    assert simulate(trace, [turning]) == pytest.approx([0.5, 5.0, 0.5])


@pytest.mark.parametrize("name", FLEETS)
def test_a_fleet_is_loaded_as_it_says(name: str) -> None:
    fleet = FLEETS[name]

    trace = draw_trace(fleet, 0.5, seed=1, seconds=400.0)

    assert len(trace.arrivals_s) / 400 == pytest.approx(0.5 * fleet.capacity_per_s, rel=0.03)
    assert statistics.fmean(trace.works_s) == pytest.approx(fleet.mean_work_s, rel=0.06)


def test_every_policy_of_a_seed_gets_the_same_trace() -> None:
    fleet = FLEETS["lognormal"]

    assert draw_trace(fleet, 0.8, 1, seconds=5) == draw_trace(fleet, 0.8, 1, seconds=5)
    assert draw_trace(fleet, 0.8, 1, seconds=5) != draw_trace(fleet, 0.8, 2, seconds=5)


def test_capacity_counts_a_slow_peer_for_what_it_does() -> None:
    assert FLEETS["mixed"].capacity_per_s == pytest.approx(6 / SHORT_WORK_S + 2 / (10 * SHORT_WORK_S))
    assert FLEETS["turning"].capacity_per_s == pytest.approx(8 / SHORT_WORK_S)
    assert FLEETS["io"].capacity_per_s == pytest.approx(8 / WORK_S)
    assert len(servers_of(FLEETS["io"])) == 64


def test_a_percentile_is_one_of_the_values() -> None:
    values = [float(value) for value in range(100, 0, -1)]

    assert percentile(values, 0.5) == 50
    assert percentile(values, 0.99) == 99
    assert percentile([7.0], 0.99) == 7


def test_a_ratio_is_the_geometric_mean_of_pairs() -> None:
    ratio = paired_ratio([2.0, 8.0], [1.0, 1.0])

    assert ratio.mean == pytest.approx(4)
    assert ratio.low is not None
    assert ratio.high is not None
    assert ratio.low * ratio.high == pytest.approx(16)


def test_the_interval_is_students() -> None:
    logs = [0.1, 0.2, 0.3]

    ratio = paired_ratio([math.exp(log) for log in logs], [1.0] * 3)

    assert ratio.high is not None
    assert math.log(ratio.high) == pytest.approx(0.2 + 4.303 * 0.1 / math.sqrt(3))


def test_one_seed_has_no_interval() -> None:
    assert paired_ratio([3.0], [1.0]).high is None


def test_pairs_that_agree_have_a_narrow_interval_however_much_seeds_differ() -> None:
    ratio = paired_ratio([1.1, 11.0, 110.0], [1.0, 10.0, 100.0])

    assert ratio.high == pytest.approx(1.1)


def test_a_recovered_peer_carries_its_share_from_the_first_second_with_half_of_it() -> None:
    others = [(at / 10, 1) for at in range(100)]
    own = [(3.05 + at / 2, 0) for at in range(10)]

    after_s = half_share_after_s(sorted(others + own), 0, peers=4, since_s=1.0, until_s=9.0)

    assert after_s == pytest.approx(2.6)


def test_a_peer_that_gets_nothing_never_recovers() -> None:
    ends = [(at / 10, 1) for at in range(100)]

    assert half_share_after_s(ends, 0, peers=2, since_s=1.0, until_s=9.0) is None


def test_inboxes_are_picked_by_what_each_policy_knows() -> None:
    peers, dice = (0, 1, 2), Random(1)
    told, out = {0: 3, 1: 1, 2: 1}, Counter({0: 0, 1: 5, 2: 9})

    def picked(policy: str) -> list[int]:
        return [pick(policy, peers, turn=turn, told=told, out=out, dice=dice) for turn in range(60)]

    assert picked("round-robin") == [0, 1, 2] * 20
    assert set(picked("random")) == {0, 1, 2}
    assert set(picked("jsq")) == {1, 2}
    assert set(picked("p2c")) == {0, 1}


def test_only_inboxes_are_picked() -> None:
    with pytest.raises(ValueError, match="shared"):
        pick("shared", (0, 1), turn=0, told={}, out={}, dice=Random(1))


def test_the_quick_form_has_what_its_three_ratios_need() -> None:
    run = {(c.fleet.name, c.load, policy) for b in grid.quick(None) for c in b.cells for policy in c.policies}

    assert {("lognormal", 0.8, policy) for policy in ("bids", "shared", "round-robin")} <= run
    assert {("mixed", 0.75, policy) for policy in ("bids", "shared")} <= run
    assert len({fleet for fleet, _, _ in run}) > 2


def test_the_full_form_runs_every_fleet_and_policy_and_tells_what_it_leaves_out() -> None:
    batches = grid.full(fleets=list(FLEETS), loads=None, policies=list(POLICIES), seeds=None)

    run = {(c.fleet.name, c.load, policy) for b in batches for c in b.cells for policy in c.policies}

    assert {(fleet, policy) for fleet, _, policy in run} == {(fleet, policy) for fleet in FLEETS for policy in POLICIES}
    assert "equal: prefetch-4, random, jsq, p2c at 0.3 0.85" in grid.left_out(
        batches, fleets=list(FLEETS), policies=list(POLICIES)
    )


def test_seeds_that_are_named_are_all_run() -> None:
    batches = grid.full(fleets=["joining"], loads=[0.95], policies=list(POLICIES), seeds=7)

    assert set(range(1, 8)) == {batch.seed for batch in batches}
    assert grid.left_out(batches, fleets=["joining"], policies=["jsq"]) == ["joining: jsq at 0.3 0.5 0.75 0.85"]


def reported(**p99_ms: list[float]) -> Report:
    report = Report()
    for policy, by_seed in p99_ms.items():
        for seed, p99 in enumerate(by_seed):
            name = policy.replace("_", "-") if policy != "central" else CENTRAL
            report.add("lognormal", 0.8, name, seed, Figures(Percentiles(p99 / 9, p99 / 2, p99)))
            report.add("mixed", 0.75, name, seed, Figures(Percentiles(p99 / 9, p99 / 2, p99)))
    return report


def test_a_report_compares_bids_with_others_seed_by_seed() -> None:
    found = as_json(reported(bids=[100, 300], shared=[200, 600], round_robin=[400, 1_200], central=[90, 250]))

    assert found["equal_p99_vs_round_robin"] == 0.25
    assert found["mixed_p99_vs_shared"] == 0.5
    assert found["worst_p99_vs_shared"] == 0.5
    assert found["intervals"]["mixed_p99_vs_shared"] == [0.5, 0.5]


def test_a_target_is_missed_by_its_mean_or_by_its_interval() -> None:
    good = list(targets(reported(bids=[100, 101], shared=[200, 200], round_robin=[400, 400])))
    bad = list(targets(reported(bids=[100, 150], shared=[100, 150], round_robin=[200, 200])))
    wide = list(targets(reported(bids=[100, 200], shared=[200, 150])))

    assert [target.is_met for target in good] == [True, True, True]
    assert [target.is_met for target in bad] == [False, True, False]
    assert [target.is_met for target in wide] == [False, False]


def test_a_peer_that_does_not_recover_in_time_under_every_seed_misses_the_target() -> None:
    sojourn_ms = Percentiles(1, 2, 3)

    def met(*recovered_s: float | None) -> list[bool]:
        report = Report()
        for seed, after_s in enumerate(recovered_s):
            report.add("turning", 0.75, "bids", seed, Figures(sojourn_ms, recovered_s=after_s))
        return [target.is_met for target in targets(report)]

    assert met(1.0, 4.9) == [True]
    assert met(1.0, 5.1) == [False]
    assert met(1.0, None) == [False]


def test_the_plot_has_a_panel_a_fleet_and_a_line_a_policy() -> None:
    picture = plot.drawn(reported(bids=[100], shared=[200], round_robin=[90_000], central=[90]))

    assert picture.count("<polyline") == 2 * 4
    assert FLEETS["mixed"].title in picture
    assert FLEETS["io"].title not in picture
