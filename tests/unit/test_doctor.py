"""What the doctor makes of facts: every finding, its level, and how it is mended."""

from dataclasses import replace

import pytest

from mesh.bus.survey import Queue, Stream
from mesh.cli.findings import Clock, Drift, Facts, Finding, Inbox, Level, OpenBreaker, PeerFact, Sync, clocks, judge

GOOD = Facts(
    server_version="2.15.1",
    api_level=5,
    round_trip_s=0.0004,
    full_at=0.9,
    prefix="mesh",
    sync=Sync(0.0, "varz"),
    stream=Stream(
        replicas=3,
        messages=10,
        bytes=1_000,
        messages_max=-1,
        bytes_max=1_000_000,
        behind=(),
        server_ahead_s=0.0,
        server_ahead_error_s=0.001,
    ),
    clocks=(Clock("the server's clock", 0.002, 0.001),),
    peers=(PeerFact("p1", "ready", frozenset({"add"})),),
    queues=(Queue("add", "add", waiting=3, in_flight=1, is_paused=False),),
)


def _found(facts: Facts, check: str) -> list[Finding]:
    return [finding for finding in judge(facts) if finding.check == check]


def _level(facts: Facts, check: str) -> Level:
    (finding,) = _found(facts, check)
    return finding.level


def test_a_good_mesh_has_one_ok_finding_for_each_check() -> None:
    found = judge(GOOD)

    assert {finding.level for finding in found} == {Level.OK}
    assert len({finding.check for finding in found}) == len(found)
    assert not any(finding.mend for finding in found)


@pytest.mark.parametrize("version", ["2.9.25", "2.13.4", "1.99.0", "unknown", ""])
def test_an_old_or_unreadable_server_version_is_a_problem(version: str) -> None:
    (finding,) = _found(replace(GOOD, server_version=version), "server")

    assert finding.level is Level.PROBLEM
    assert "2.14" in finding.mend


@pytest.mark.parametrize("version", ["2.14.0", "v2.15.1", "2.100.0-dev", "3.0.0"])
def test_a_newer_server_version_is_ok(version: str) -> None:
    assert _level(replace(GOOD, server_version=version), "server") is Level.OK


def test_an_older_api_level_is_a_problem_of_the_cluster() -> None:
    (finding,) = _found(replace(GOOD, api_level=3), "server")

    assert finding.level is Level.PROBLEM
    assert "cluster" in finding.mend


def test_a_server_without_jetstream_is_one_problem_and_no_guess_about_streams() -> None:
    found = judge(Facts("2.15.1", None, 0.001, full_at=0.9, prefix="mesh"))

    problems = [finding.check for finding in found if finding.level is Level.PROBLEM]
    assert problems == ["server"]
    assert not {"topology", "power cut", "room"} & {finding.check for finding in found}


@pytest.mark.parametrize(("took_s", "level"), [(0.049, Level.OK), (0.05, Level.WARNING), (1.0, Level.PROBLEM)])
def test_a_slow_connection_is_told(took_s: float, level: Level) -> None:
    assert _level(replace(GOOD, round_trip_s=took_s), "connection") is level


def test_drift_in_what_promises_rest_on_is_a_problem_and_in_a_tunable_a_warning() -> None:
    drift = (Drift("MESH: retention is 'limits'", is_essential=True), Drift("MESH: max_bytes is 5", is_essential=False))

    found = _found(replace(GOOD, drift=drift), "topology")

    assert [finding.level for finding in found] == [Level.PROBLEM, Level.WARNING]
    assert all("mesh topology apply" in finding.mend for finding in found)


def test_a_mesh_that_was_never_made_is_told_with_its_prefix() -> None:
    facts = replace(GOOD, is_made=False, stream=None, queues=(), clocks=())

    (finding,) = _found(facts, "topology")
    assert finding.level is Level.WARNING
    assert "'mesh'" in finding.text


@pytest.mark.parametrize(
    ("sync", "copies", "level", "word"),
    [
        (None, 3, Level.WARNING, "cannot be asked"),
        (Sync(0.0, "varz"), 3, Level.OK, "loses nothing"),
        (Sync(0.0, "varz"), 1, Level.OK, "a broken disk everything"),
        (Sync(1.0, "varz"), 1, Level.OK, "last 1 s"),
        (Sync(120.0, "varz"), 1, Level.WARNING, "last 120 s"),
        (Sync(120.0, "varz"), 3, Level.WARNING, "all 3 servers at once"),
    ],
)
def test_what_a_power_cut_loses_is_said_as_far_as_it_is_known(
    sync: Sync | None, copies: int, level: Level, word: str
) -> None:
    assert GOOD.stream is not None
    facts = replace(GOOD, sync=sync, stream=replace(GOOD.stream, replicas=copies))

    (finding,) = _found(facts, "power cut")

    assert finding.level is level
    assert word in finding.text


@pytest.mark.parametrize(("used", "level"), [(449_999, Level.OK), (450_000, Level.WARNING), (900_000, Level.PROBLEM)])
def test_a_full_stream_is_told_before_it_refuses_tasks(used: int, level: Level) -> None:
    assert GOOD.stream is not None

    assert _level(replace(GOOD, stream=replace(GOOD.stream, bytes=used)), "room") is level


def test_a_limit_of_messages_counts_as_room_too() -> None:
    assert GOOD.stream is not None

    assert _level(replace(GOOD, stream=replace(GOOD.stream, messages_max=10)), "room") is Level.PROBLEM


def test_a_copy_that_is_behind_is_named() -> None:
    assert GOOD.stream is not None

    (finding,) = _found(replace(GOOD, stream=replace(GOOD.stream, behind=("n2",))), "copies")

    assert finding.level is Level.WARNING
    assert "n2" in finding.text


@pytest.mark.parametrize(
    ("ahead_s", "error_s", "level"),
    [(0.4, 0.0, Level.OK), (0.6, 0.0, Level.WARNING), (-0.6, 0.0, Level.WARNING), (-6.0, 0.0, Level.PROBLEM)],
)
def test_a_clock_that_is_off_either_way_is_told(ahead_s: float, error_s: float, level: Level) -> None:
    (finding,) = clocks([Clock("its clock", ahead_s, error_s)])

    assert finding.level is level


def test_a_clock_whose_distance_may_be_the_round_trip_is_not_accused() -> None:
    (finding,) = clocks([Clock("its clock", 0.9, 0.8)])

    assert finding.level is Level.OK


def test_a_queue_without_a_live_peer_is_a_problem_only_while_something_waits() -> None:
    empty = Queue("cut", "cut", waiting=0, in_flight=0, is_paused=False)
    waiting = replace(empty, waiting=1)

    assert _level(replace(GOOD, queues=(empty,)), "queues") is Level.OK
    (finding,) = _found(replace(GOOD, queues=(waiting,)), "queues")
    assert finding.level is Level.PROBLEM
    assert "1 task waiting for cut" in finding.text


def test_a_pause_is_a_warning_with_the_command_that_ends_it() -> None:
    paused = Queue("add@urgent", "add", waiting=2, in_flight=0, is_paused=True)

    (finding,) = _found(replace(GOOD, queues=(paused,)), "queues")

    assert finding.level is Level.WARNING
    assert finding.mend == "`mesh resume add`"


def test_tasks_of_an_unknown_capability_are_a_problem() -> None:
    (finding,) = _found(replace(GOOD, unserved={"ad": 3}), "queues")

    assert finding.level is Level.PROBLEM
    assert "3 tasks waiting for ad" in finding.text


def test_dead_letters_and_draining_peers_are_warnings() -> None:
    draining = (*GOOD.peers, PeerFact("p2", "draining", frozenset({"add"})))
    facts = replace(GOOD, dead_letters=2, peers=draining)

    assert _level(facts, "dead letters") is Level.WARNING
    assert [finding.level for finding in _found(facts, "peers")] == [Level.OK, Level.WARNING]


def test_a_mesh_without_peers_says_how_to_start_one() -> None:
    (finding,) = _found(replace(GOOD, peers=(), queues=()), "peers")

    assert finding.level is Level.WARNING
    assert "mesh up" in finding.mend


@pytest.mark.parametrize(("age_s", "level"), [(629.0, Level.OK), (631.0, Level.WARNING)])
def test_a_task_that_should_be_over_by_its_timeout_is_named(age_s: float, level: Level) -> None:
    queue = Queue("add@urgent", "add", waiting=0, in_flight=1, is_paused=False, oldest="add/k1", oldest_s=age_s)
    (finding,) = _found(replace(GOOD, queues=(queue,), timeouts_s={"add": 30.0}), "stuck")

    assert finding.level is level
    assert "add/k1" in finding.text
    assert ("`mesh status add/k1`" in finding.mend) == (level is Level.WARNING)


def test_an_open_breaker_is_told_with_its_reason() -> None:
    found = _found(replace(GOOD, breakers=(OpenBreaker("openai", "half-open", 90.0, "5 of 10 failed"),)), "breakers")

    assert [finding.level for finding in found] == [Level.WARNING]
    assert "openai is half-open for 90 s: 5 of 10 failed" in found[0].text


@pytest.mark.parametrize(("oldest_s", "level"), [(3_599.0, Level.OK), (3_601.0, Level.WARNING)])
def test_a_proposal_that_waits_for_long_is_a_warning(oldest_s: float, level: Level) -> None:
    facts = replace(GOOD, parked={"order": 2, "human": 1}, inbox=Inbox(1, oldest_s))
    (finding,) = _found(facts, "waits")

    assert finding.level is level
    assert finding.text.startswith("3 tasks parked (order 2, human 1); 1 proposal waits for a person")
    assert bool(finding.mend) == (level is Level.WARNING)
