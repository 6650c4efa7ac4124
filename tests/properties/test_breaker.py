"""The circuit breaker: what it promises of calls, whatever comes when."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from mesh.errors import SetupError
from mesh.resilience.breaker import Breaker, How, LeaseDue, Pass, Refused, Rules, State

RULES = Rules(window_s=10, window_calls=20, calls_min=5, failure_ratio=0.5, slow_s=1.0, slow_ratio=0.6, open_s=2.0)


def called(breaker: Breaker, at: float, *, is_failure: bool, took_s: float = 0.0) -> State | None:
    call = breaker.admit(at)
    assert isinstance(call, Pass)
    return breaker.ended(call, at + took_s, is_failure=is_failure)


def opened(rules: Rules = RULES) -> Breaker:
    breaker = Breaker(rules)
    for _ in range(rules.calls_min):
        called(breaker, 0.0, is_failure=True)
    assert breaker.state is State.OPEN
    return breaker


@given(st.lists(st.booleans(), max_size=4))
def test_few_calls_prove_nothing(failures: list[bool]) -> None:
    breaker = Breaker(RULES)

    changes = [called(breaker, 0.0, is_failure=failed) for failed in failures]

    assert set(changes) <= {None}


@given(st.lists(st.booleans(), min_size=5, max_size=60))
def test_it_opens_exactly_when_the_share_of_failures_is_reached(failures: list[bool]) -> None:
    breaker = Breaker(RULES)
    for count, failed in enumerate(failures, start=1):
        change = called(breaker, 0.0, is_failure=failed)
        last = failures[max(0, count - RULES.window_calls) : count]
        is_due = count >= RULES.calls_min and (
            sum(last) >= RULES.failure_ratio * len(last) or all(last[-RULES.calls_min :])
        )

        assert (change is State.OPEN) is is_due
        if is_due:
            return


@given(st.floats(0.0, 100.0), st.integers(1, 30))
def test_what_is_older_than_the_window_does_not_count(at: float, old: int) -> None:
    breaker = Breaker(Rules(window_s=10, calls_min=31))
    for _ in range(old):
        called(breaker, at, is_failure=True)
    later = at + 10.5

    changes = [called(breaker, later, is_failure=False) for _ in range(40)]

    assert set(changes) == {None}


def test_calls_that_have_not_ended_are_slow_as_soon_as_they_take_too_long() -> None:
    breaker = Breaker(RULES)
    for _ in range(5):
        breaker.admit(0.0)

    assert breaker.look(0.9) is None
    assert breaker.look(1.0) is State.OPEN


def test_a_slow_probe_opens_it_again() -> None:
    breaker = opened()
    breaker.leased(12.0)

    assert called(breaker, 2.0, is_failure=False, took_s=1.0) is State.OPEN


def test_probes_that_go_well_close_it_and_nothing_is_remembered() -> None:
    breaker = opened(Rules(calls_min=5, open_s=2.0, probes=2))
    breaker.leased(12.0)
    first, second = breaker.admit(2.0), breaker.admit(2.0)
    assert isinstance(first, Pass)
    assert isinstance(second, Pass)
    assert isinstance(breaker.admit(2.0), Refused)

    assert breaker.ended(first, 2.1, is_failure=False) is None
    assert breaker.ended(second, 2.2, is_failure=False) is State.CLOSED
    assert [called(breaker, 3.0, is_failure=True) for _ in range(4)] == [None] * 4


def test_a_probe_that_is_given_up_makes_room_for_another() -> None:
    breaker = opened()
    breaker.leased(12.0)
    call = breaker.admit(2.0)
    assert isinstance(call, Pass)

    breaker.abandoned(call)

    assert isinstance(breaker.admit(2.0), Pass)


def test_a_lease_that_brought_no_answer_is_due_again() -> None:
    breaker = opened()
    breaker.leased(12.0)
    breaker.admit(2.0)

    assert isinstance(breaker.admit(12.0), LeaseDue)


def test_what_began_before_it_opened_neither_closes_nor_opens_it() -> None:
    breaker = Breaker(RULES)
    early = [breaker.admit(0.0) for _ in range(10)]
    for call in early[:5]:
        assert isinstance(call, Pass)
        breaker.ended(call, 0.0, is_failure=True)
    breaker.leased(12.0)

    for call in early[5:]:
        assert isinstance(call, Pass)
        assert breaker.ended(call, 2.0, is_failure=False) is None
    assert breaker.state is State.HALF_OPEN


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("window_s", 0.0),
        ("calls_min", 0),
        ("calls_min", 101),
        ("failure_ratio", 1.1),
        ("slow_s", 0.0),
        ("open_s", -1.0),
        ("probes", 0),
        ("lease_s", 0.0),
    ],
)
def test_rules_outside_their_limits_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(SetupError, match=field):
        Rules(**{field: value})  # type: ignore[arg-type]


class Peers(RuleBasedStateMachine):
    """Three peers with one breaker, told of each other's changes in order but late; one of them may be cut off."""

    calls = Bundle("calls")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.breakers = [Breaker(RULES) for _ in range(3)]
        self.record: tuple[int, State, float, int] = (0, State.CLOSED, 0.0, 0)
        """The record that all share: its number, the state, until when, and by whom."""
        self.seen = [0, 0, 0]
        self.lease_holders: dict[int, float] = {}

    def write(self, peer: int, state: State, until: float) -> bool:
        if self.seen[peer] != self.record[0]:
            return False
        self.record = (self.record[0] + 1, state, until, peer)
        self.seen[peer] = self.record[0]
        return True

    @rule(seconds=st.floats(0.01, 5.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(target=calls, peer=st.integers(0, 2))
    def call(self, peer: int) -> tuple[int, Pass | None]:
        breaker = self.breakers[peer]
        state, due_at = breaker.state, breaker.due_at
        admitted = breaker.admit(self.now)
        if isinstance(admitted, Pass):
            assert state is not State.OPEN, "an open breaker let a call through"
            assert admitted.is_probe is (state is State.HALF_OPEN)
            return peer, admitted
        if isinstance(admitted, LeaseDue):
            assert state is not State.CLOSED
            assert self.now >= due_at, "a lease was due too early"
            if self.write(peer, State.HALF_OPEN, self.now + RULES.lease_s):
                breaker.leased(self.now + RULES.lease_s)
        else:
            assert admitted.retry_after_s > 0
        return peer, None

    @rule(call=consumes(calls), is_failure=st.booleans())
    def end(self, call: tuple[int, Pass | None], is_failure: bool) -> None:
        peer, passed = call
        if passed is None:
            return
        changed = self.breakers[peer].ended(passed, self.now, is_failure=is_failure)
        if changed is not None:
            self.write(peer, changed, self.now + RULES.open_s if changed is State.OPEN else 0.0)

    @rule(call=consumes(calls))
    def give_up(self, call: tuple[int, Pass | None]) -> None:
        peer, passed = call
        if passed is not None:
            self.breakers[peer].abandoned(passed)

    @precondition(lambda self: any(seen != self.record[0] for seen in self.seen))
    @rule(peer=st.integers(0, 2))
    def hear(self, peer: int) -> None:
        number, state, until, by = self.record
        if self.seen[peer] != number and by != peer:
            self.seen[peer] = number
            self.breakers[peer].heard(state, until)
            assert self.breakers[peer].state is (State.CLOSED if state is State.CLOSED else State.OPEN)

    @invariant()
    def at_most_one_of_those_who_heard_probes(self) -> None:
        number = self.record[0]
        probing = [
            peer
            for peer, breaker in enumerate(self.breakers)
            if self.seen[peer] == number and breaker.state is State.HALF_OPEN and self.now < breaker.due_at
        ]
        assert len(probing) <= 1

    @invariant()
    def no_more_probes_are_left_than_the_rules_allow(self) -> None:
        for breaker in self.breakers:
            assert breaker.probes_left <= RULES.probes


TestPeers = Peers.TestCase
TestPeers.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_how_a_call_ended_is_told_failed_before_slow() -> None:
    breaker = Breaker(RULES)
    call = breaker.admit(0.0)
    assert isinstance(call, Pass)

    assert breaker.how(call, 5.0, is_failure=True) is How.FAILED
    assert breaker.how(call, 5.0, is_failure=False) is How.SLOW
    assert breaker.how(call, 0.5, is_failure=False) is How.OK
