"""Short names of proposals: each stands for one, and for the same one as its id."""

from hypothesis import given
from hypothesis import strategies as st

from mesh.inbox import handles, matches

tokens = st.sampled_from(["a", "ab", "order-42", "order-4", "s-1"])
digests = st.text("0123456789ab", min_size=0, max_size=12)
children = st.builds("{}.~human-{}-c0".format, tokens, digests)
ids = st.lists(st.one_of(tokens, children, st.builds("{}.~handoff".format, tokens)), unique=True, max_size=12)


@given(ids)
def test_a_handle_stands_for_its_own_proposal_and_no_other(waiting: list[str]) -> None:
    short = handles(waiting)

    assert {task_id: matches(short[task_id], waiting) for task_id in waiting} == {one: [one] for one in waiting}


@given(ids)
def test_a_whole_id_always_stands_for_itself(waiting: list[str]) -> None:
    assert all(matches(task_id, waiting) == [task_id] for task_id in waiting)


def test_the_only_proposal_of_a_workflow_has_the_workflows_name() -> None:
    first, second, other = "order-42.~human-1a2b3c4d5e6f-c0", "order-42.~human-1a2b3cffffff-c0", "order-7.~human-1a-c0"

    short = handles([first, second, other])

    assert short == {first: "1a2b3c4", second: "1a2b3cf", other: "order-7"}


def test_a_name_that_begins_several_stands_for_all_of_them() -> None:
    assert matches("order", ["order-1.~human-a-c0", "order-2.~human-b-c0"]) == [
        "order-1.~human-a-c0",
        "order-2.~human-b-c0",
    ]
    assert matches("a", ["order-1.~human-a-c0", "order-2.~human-b-c0"]) == ["order-1.~human-a-c0"]
    assert matches("nothing", ["order-1.~human-a-c0"]) == []
