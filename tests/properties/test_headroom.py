"""A client stops in time before the stream is full, and goes on when there is room again."""

import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from mesh.resilience.headroom import REFRESH_S, REFRESH_WHEN_FULL_S, Credit, Fill


def filled(messages: int, mean_bytes: int, last_sequence: int, messages_max: int, bytes_max: int, at: float) -> Fill:
    return Fill(messages, messages * mean_bytes, last_sequence, messages_max, bytes_max, at)


fills = st.builds(
    filled,
    st.integers(0, 10**6),
    # No message is smaller than its own header in the store.
    st.integers(30, 10_000),
    st.integers(0, 10**9),
    st.integers(-1, 10**6),
    st.integers(-1, 10**9),
    st.floats(0, 1e6),
)
shares = st.floats(0.05, 1)


def grown(fill: Fill, added: int) -> Fill:
    """The stream after `added` more messages of its mean size, nothing taken out."""
    mean_bytes = fill.bytes / fill.messages if fill.messages else 0.0
    return replace(fill, messages=fill.messages + added, bytes=math.floor(fill.bytes + added * mean_bytes))


@given(fills, shares, st.integers(0, 10**6))
def test_credit_ends_before_the_stream_can_be_too_full(fill: Fill, full_at: float, added: int) -> None:
    credit = Credit.after(fill, full_at=full_at)

    if credit.admits(fill.last_sequence + added) and fill.messages:
        assert grown(fill, added).share <= full_at * (1 + 1e-6)


@given(fills, shares)
def test_credit_is_refused_exactly_when_the_stream_is_that_full(fill: Fill, full_at: float) -> None:
    credit = Credit.after(fill, full_at=full_at)

    if abs(fill.share - full_at) > 1e-6:
        assert credit.admits(fill.last_sequence) == (fill.share < full_at)


@given(fills, shares, st.integers(0, 10**9))
def test_credit_ends_with_time_and_sooner_where_it_refuses(fill: Fill, full_at: float, claimed: int) -> None:
    credit = Credit.after(fill, full_at=full_at)
    lasts_s = REFRESH_S if credit.admits(fill.last_sequence, claimed) else REFRESH_WHEN_FULL_S

    assert credit.is_stale(fill.last_sequence, claimed, now=fill.asked_at + 1.01 * lasts_s)
    assert not credit.is_stale(fill.last_sequence, claimed, now=fill.asked_at + 0.5 * lasts_s)


@given(fills, shares)
def test_a_stream_that_has_filled_since_is_looked_at_at_once_and_then_not_by_everyone(
    fill: Fill, full_at: float
) -> None:
    roomy = replace(fill, messages_max=1_000, messages=0, bytes=0, bytes_max=-1, last_sequence=0)
    full = replace(roomy, messages=1_000, bytes=100_000, last_sequence=1_000)

    assert Credit.after(roomy, full_at=full_at).is_stale(1_000, now=fill.asked_at)
    assert not Credit.after(full, full_at=full_at).is_stale(1_000, now=fill.asked_at)


@given(fills, shares, st.integers(0, 10**9))
def test_a_stream_without_limits_is_never_full(fill: Fill, full_at: float, added: int) -> None:
    boundless = replace(fill, messages_max=-1, bytes_max=0)
    credit = Credit.after(boundless, full_at=full_at)

    assert credit.admits(boundless.last_sequence + added)
    assert boundless.share == 0.0


def test_the_tighter_of_two_limits_decides() -> None:
    by_messages = Fill(messages=90, bytes=90, last_sequence=90, messages_max=100, bytes_max=1_000, asked_at=0.0)
    by_bytes = Fill(messages=90, bytes=900, last_sequence=90, messages_max=1_000, bytes_max=1_000, asked_at=0.0)

    assert not Credit.after(by_messages, full_at=0.9).admits(90)
    assert not Credit.after(by_bytes, full_at=0.9).admits(90)
    assert Credit.after(by_messages, full_at=0.95).admits(90)
    assert by_bytes.full_from(1.0) == 100


@given(fills, shares, st.integers(0, 10**9))
def test_what_there_is_room_for_leaves_the_reserve_untouched(fill: Fill, full_at: float, size: int) -> None:
    share = replace(fill, messages=0, bytes=fill.bytes + size).share

    if fill.has_room(size, full_at=full_at):
        assert share <= full_at * (1 + 1e-9)
    else:
        assert share >= full_at * (1 - 1e-9)
