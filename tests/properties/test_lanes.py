"""Lanes: urgent first, nobody starves, and every slot is on offer somewhere."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mesh.scheduling.lanes import BULK, NORMAL, ORDER, URGENT, Known, Lanes, Step

NOTHING_OFFERED = dict.fromkeys(ORDER, 0)


def played(queues: dict[str, int], *, starts: int) -> Counter[str]:
    """Which lanes one slot serves, one task after another, from queues of so many."""
    lanes = Lanes()
    served: Counter[str] = Counter()
    in_hand: list[str] = []
    for _ in range(starts):
        for _ in range(len(ORDER)):
            if in_hand:
                break
            for step in lanes.plan(1, NOTHING_OFFERED):
                if queues[step.lane]:
                    queues[step.lane] -= 1
                    lanes.arrived(step.lane, pending=queues[step.lane])
                    in_hand.append(step.lane)
                else:
                    lanes.is_empty(step.lane)
        if not in_hand:
            break
        served[in_hand.pop(0)] += 1
        lanes.are_full()
    return served


def test_at_first_urgent_is_looked_at_and_the_slots_go_to_normal() -> None:
    assert Lanes().plan(4, NOTHING_OFFERED) == [Step(URGENT, 1, is_look=True), Step(NORMAL, 4)]


def test_slots_of_lanes_that_are_known_to_be_empty_are_on_offer_in_all() -> None:
    lanes = Lanes()
    lanes.is_empty(URGENT)
    lanes.is_empty(NORMAL)

    assert lanes.plan(4, NOTHING_OFFERED) == [Step(URGENT, 4), Step(NORMAL, 4), Step(BULK, 4)]
    assert lanes.plan(4, {URGENT: 4, NORMAL: 1, BULK: 4}) == [Step(NORMAL, 3)]


def test_a_backlog_of_urgent_tasks_has_all_slots() -> None:
    lanes = Lanes()
    lanes.arrived(URGENT, pending=3)

    assert lanes.plan(4, NOTHING_OFFERED) == [Step(URGENT, 4)]


def test_what_is_known_of_an_empty_lane_is_old_once_all_slots_were_taken() -> None:
    lanes = Lanes()
    lanes.is_empty(URGENT)
    lanes.arrived(BULK, pending=2)

    lanes.are_full()

    assert lanes.known(URGENT) is Known.NOTHING
    assert lanes.known(BULK) is Known.BACKLOG


def test_urgent_goes_first_and_the_others_have_their_least_share() -> None:
    served = played({URGENT: 10_000, NORMAL: 10_000, BULK: 10_000}, starts=1_700)

    assert served[URGENT] > 0.7 * 1_700
    assert served[NORMAL] >= 1_700 // 10
    assert served[BULK] >= 1_700 // 20


def test_bulk_waits_for_normal_and_is_not_starved_by_it() -> None:
    served = played({URGENT: 0, NORMAL: 10_000, BULK: 10_000}, starts=1_700)

    assert 1_700 // 20 <= served[BULK] <= 1_700 // 8
    assert served[NORMAL] + served[BULK] == 1_700


@given(st.dictionaries(st.sampled_from(ORDER), st.integers(0, 60), min_size=3, max_size=3))
def test_every_queued_task_is_served(queues: dict[str, int]) -> None:
    expected = Counter({lane: count for lane, count in queues.items() if count})

    assert played(dict(queues), starts=1_000) == expected


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("arrived"), st.sampled_from(ORDER), st.integers(0, 5)),
            st.tuples(st.just("empty"), st.sampled_from(ORDER), st.just(0)),
            st.tuples(st.just("full"), st.just(""), st.just(0)),
        ),
        max_size=60,
    ),
    st.integers(1, 100),
    st.fixed_dictionaries({lane: st.integers(0, 100) for lane in ORDER}),
)
def test_every_free_slot_is_on_offer_and_no_lane_twice(
    story: list[tuple[str, str, int]], free: int, offered: dict[str, int]
) -> None:
    lanes = Lanes()
    for what, lane, pending in story:
        if what == "arrived":
            lanes.arrived(lane, pending=pending)
        elif what == "empty":
            lanes.is_empty(lane)
        else:
            lanes.are_full()

    steps = lanes.plan(free, offered)

    assert len({step.lane for step in steps}) == len(steps)
    assert all(step.slots == 1 for step in steps if step.is_look)
    total = {lane: offered[lane] + sum(s.slots for s in steps if s.lane == lane and not s.is_look) for lane in ORDER}
    assert max(total.values()) >= free or any(step.is_look and step.lane == BULK for step in steps)
