"""What a peer takes for the server's time is never ahead of it, whatever samples it had."""

from hypothesis import given
from hypothesis import strategies as st

from mesh.resilience.server_time import DRIFT, SLACK_S, ServerTime

STEPS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.001, 1.0, 500.0]),
        st.floats(0, 2),
        st.booleans(),
    ),
    max_size=30,
)


@given(STEPS, st.floats(-DRIFT, DRIFT), st.floats(-1e6, 1e6))
def test_it_is_never_ahead_of_the_server(
    steps: list[tuple[float, float, bool]], drift: float, monotonic_zero: float
) -> None:
    real, known = 1_000_000.0, ServerTime()

    def monotonic(at: float) -> float:
        return monotonic_zero + (at - 1_000_000.0) * (1 + drift / 2)

    for pause, travels, is_own in steps:
        stored_at = real + pause
        real = stored_at + travels
        if is_own:
            known = known.wrote(stored_at, monotonic(stored_at), monotonic(real))
        else:
            known = known.heard(stored_at, monotonic(real))
        assert known.at(monotonic(real)) <= real + SLACK_S
        assert known.at(monotonic(real)) >= stored_at - SLACK_S


def test_a_server_whose_clock_was_set_back_is_believed_when_one_writes() -> None:
    known = ServerTime().heard(1_000.0, now=10.0)

    known = known.wrote(400.0, sent_at=10.5, now=11.0)

    assert known.at(11.0) == 400.0


def test_a_late_sample_takes_nothing_from_a_better_one() -> None:
    known = ServerTime().heard(1_000.0, now=10.0)

    assert known.heard(1_000.5, now=12.0) == known
    assert known.heard(1_002.5, now=12.0).at(12.0) == 1_002.5


def test_nothing_is_known_before_the_first_sample() -> None:
    assert not ServerTime().is_known
    assert ServerTime().at(10.0) == 0.0
