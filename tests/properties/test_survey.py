"""How often a peer asks for what the server has to count."""

from hypothesis import given
from hypothesis import strategies as st

from mesh.runtime.survey import SELDOM_S_MAX, SHARE, again_after_s

took = st.floats(0.0, 100.0)
peers = st.integers(1, 1_000)
every = st.floats(0.1, 3_600.0)


@given(took, peers, every)
def test_a_count_takes_its_share_of_the_server_at_most_or_is_as_seldom_as_it_gets(
    took_s: float, peers: int, every_s: float
) -> None:
    again_s = again_after_s(took_s, peers=peers, every_s=every_s)

    assert again_s >= every_s
    assert again_s >= SELDOM_S_MAX or took_s * peers / again_s <= SHARE * 1.000001


@given(took, took, peers, every)
def test_what_is_dearer_is_asked_for_no_more_often(one_s: float, other_s: float, peers: int, every_s: float) -> None:
    cheap_s, dear_s = sorted((one_s, other_s))

    cheap = again_after_s(cheap_s, peers=peers, every_s=every_s)
    assert cheap <= again_after_s(dear_s, peers=peers, every_s=every_s)
    assert cheap <= again_after_s(cheap_s, peers=peers + 1, every_s=every_s)
