"""A shared rate is never exceeded, whoever books when, however late clocks are and whatever is given back."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from contracts.limit import Bucket, Rate
from mesh.resilience.rate import Ask, Booking, Correction, Filling, Level, Price, TooLate, book, correct, turn_of
from mesh.workflow.limits import level_at

SLACK = 1e-6
PRICES = st.builds(
    Price.of,
    st.one_of(st.none(), st.sampled_from([1.0, 7.0, 60.0, 500.0, 90_000.0])),
    st.one_of(st.none(), st.sampled_from([10.0, 60.0, 6_000.0, 90_000.0])),
    st.sampled_from([0.5, 1.0, 10.0, 60.0]),
)


@dataclass
class Call:
    """A call as it really was: when it could begin, and what it used."""

    turn: float
    requests: float
    tokens: float
    booking: Booking
    is_corrected: bool = False


@dataclass
class Told:
    """A record as a peer has read it: maybe an old one."""

    sequence: int
    record: Rate = field(default_factory=Rate)
    stored_at: float = 0.0


class Sharing(RuleBasedStateMachine):
    """Peers that read a record, at some time plan upon it, and write it back if nobody was first.

    A peer's clock stands anywhere between when the record was stored and the server's time, which goes on between the
    plan and the storing. Turns that are due by then begin only then, and may come closer to the next ones by so much.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000.0
        self.price = Price()
        self.stands = Told(0)
        self.calls: list[Call] = []
        self.corrections: list[tuple[Call, Correction]] = []
        self.late_s = 0.0

    @initialize(price=PRICES, late_s=st.sampled_from([0.0, 0.0, 0.001, 5.0]))
    def begin(self, price: Price, late_s: float) -> None:
        self.price, self.late_s = price, late_s

    @rule(by=st.sampled_from([0.001, 0.1, 1.0, 3.0, 15.0, 200.0]))
    def pass_time(self, by: float) -> None:
        self.now += by

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), share=st.sampled_from([0.0, 0.3, 0.9]))
    def use_less(self, data: st.DataObject, share: float) -> None:
        call = data.draw(st.sampled_from(self.calls))
        if not call.is_corrected:
            call.is_corrected = True
            unused = call.tokens * (1 - share)
            self.corrections.append((call, Correction(call.booking, 0, unused * self.price.token_s)))

    @rule(
        wanted=st.lists(st.tuples(st.floats(0, 1), st.sampled_from([0.0, 1.0, 30.0, 1e9])), max_size=6),
        late=st.sampled_from([0.0, 0.1, 1.0]),
        takes=st.sampled_from([0.0, 0.1, 1.0]),
    )
    def write(self, wanted: list[tuple[float, float]], late: float, takes: float) -> None:
        read = self.stands
        now = max(self.now - late * self.late_s, read.stored_at)
        level = level_at(read.record, read.stored_at)
        for _, correction in self.corrections:
            level = correct(level, correction)
        most = self.price.tokens_burst_s / self.price.token_s if self.price.token_s else 1_000.0
        asks = [Ask(share * most, now + patience) for share, patience in wanted]
        level, answers = book(level, self.price, asks, now=now)
        self.now += takes * self.late_s
        booked = [(ask, answer) for ask, answer in zip(asks, answers, strict=True) if isinstance(answer, Booking)]
        requests_s = len(booked) * self.price.request_s
        tokens_s = sum(ask.tokens for ask, _ in booked) * self.price.token_s
        record = Rate(
            requests=Bucket(until=level.requests.until, fresh=requests_s, booked=level.requests.booked),
            tokens=Bucket(until=level.tokens.until, fresh=tokens_s, booked=level.tokens.booked),
            turn=level.turn,
        )
        self.stands = Told(read.sequence + 1, record, self.now)
        for call, correction in self.corrections:
            call.tokens -= correction.tokens_s / self.price.token_s if self.price.token_s else 0.0
        self.corrections.clear()
        for ask, booking in booked:
            self.calls.append(Call(max(booking.turn, self.now), 1, ask.tokens, booking))
        for ask, answer in zip(asks, answers, strict=True):
            if isinstance(answer, TooLate):
                assert answer.turn > ask.latest

    @invariant()
    def no_window_holds_more_than_the_burst_and_what_it_earns(self) -> None:
        for cost, burst in (
            (lambda call: call.requests * self.price.request_s, self.price.requests_burst_s),
            (lambda call: call.tokens * self.price.token_s, self.price.tokens_burst_s),
        ):
            # The fullest window that ends with a call, by the calls before it: a bucket that must not overflow.
            level, at = 0.0, 0.0
            for call in sorted(self.calls, key=lambda call: call.turn):
                level = max(0.0, level - (call.turn - at)) + cost(call)
                at = call.turn
                assert level <= burst + 2 * self.late_s + SLACK

    @invariant()
    def turns_come_in_the_order_of_booking(self) -> None:
        turns = [call.booking.turn for call in self.calls]
        assert turns == sorted(turns)


Sharing.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestSharing = Sharing.TestCase


@given(PRICES, st.lists(st.floats(0, 1), min_size=1, max_size=50), st.floats(0, 100))
def test_nobody_who_waits_long_enough_is_refused_and_all_come_one_after_the_other(
    price: Price, shares: list[float], now: float
) -> None:
    most = price.tokens_burst_s / price.token_s if price.token_s else 1.0
    level, answers = book(Level(), price, [Ask(share * most, float("inf")) for share in shares], now=now)

    bookings = [answer for answer in answers if isinstance(answer, Booking)]
    assert len(bookings) == len(shares)
    assert [booking.turn for booking in bookings] == sorted(booking.turn for booking in bookings)
    assert bookings[0].turn == now
    assert level.turn == bookings[-1].turn


@given(PRICES, st.floats(0, 1), st.floats(0, 1))
def test_who_would_be_late_books_nothing(price: Price, first: float, second: float) -> None:
    most = price.tokens_burst_s / price.token_s if price.token_s else 1.0
    level, _ = book(Level(), price, [Ask(first * most, 0.0)], now=0.0)
    turn = turn_of(level, price, second * most, now=0.0)

    after, (answer,) = book(level, price, [Ask(second * most, turn - 0.001)], now=0.0)

    assert after == level
    assert isinstance(answer, TooLate)
    assert answer.turn == turn


def test_what_was_not_used_is_given_back() -> None:
    price = Price.of(None, 600.0, 10.0)
    level, (booking,) = book(Level(), price, [Ask(100, 0.0)], now=0.0)
    assert isinstance(booking, Booking)
    assert turn_of(level, price, 50, now=0.0) == 5.0

    level = correct(level, Correction(booking, 0, 6.0))

    assert turn_of(level, price, 50, now=0.0) == 0.0
    assert turn_of(level, price, 70, now=0.0) == pytest.approx(1.0)


def test_a_call_that_is_cancelled_gives_back_its_request_too() -> None:
    price = Price.of(1.0, 600.0, 10.0)
    level, (booking,) = book(Level(), price, [Ask(100, 0.0)], now=0.0)
    assert isinstance(booking, Booking)

    level = correct(level, Correction(booking, 60.0, 10.0))

    assert turn_of(level, price, 100, now=0.0) == 0.0


def test_what_the_bucket_has_earned_again_meanwhile_is_not_given_back_twice() -> None:
    price = Price.of(None, 600.0, 10.0)
    level, (booking,) = book(Level(), price, [Ask(100, 0.0)], now=0.0)
    assert isinstance(booking, Booking)
    level, _ = book(level, price, [Ask(100, 10.0)], now=10.0)

    level = correct(level, Correction(booking, 0, 10.0))

    assert turn_of(level, price, 100, now=10.0) == pytest.approx(20.0)


def test_what_was_used_beyond_is_waited_for_by_those_after_it() -> None:
    price = Price.of(None, 600.0, 10.0)
    level, (booking,) = book(Level(), price, [Ask(10, 0.0)], now=0.0)
    assert isinstance(booking, Booking)

    level = correct(level, Correction(booking, 0, -20.0))

    assert turn_of(level, price, 100, now=0.0) == pytest.approx(21.0)


def test_nothing_is_given_back_to_a_record_that_began_anew() -> None:
    booking = Booking(turn=5.0, requests_booked=70.0, tokens_booked=70.0)
    level = Level(tokens=Filling(until=20.0, booked=3.0), turn=6.0)

    assert correct(level, Correction(booking, 0, 20)) == level


def test_a_bucket_holds_at_least_one_request() -> None:
    price = Price.of(0.5, None, 1.0)

    _, (first, second) = book(Level(), price, [Ask(0, 0.0), Ask(0, 200.0)], now=0.0)

    assert isinstance(first, Booking)
    assert isinstance(second, Booking)
    assert (first.turn, second.turn) == (0.0, pytest.approx(120.0))


def test_the_price_says_what_can_never_fit() -> None:
    price = Price.of(10.0, 90_000.0, 60.0)

    assert price.fits(90_000)
    assert not price.fits(90_001)
    assert Price.of(10.0, None, 60.0).fits(10**9)
