"""What a peer counts of its answers, and how many callers it tells apart."""

from contracts.outcome import Status
from contracts.task import Sender, Task
from mesh.runtime.answered import CALLERS_MAX, NAME_LENGTH_MAX, OTHERS, Answered

CLIENT = Task(sender=Sender(agent="web", role="client"), lineage=("-",))
PARENT = Task(sender=Sender(agent="desk", version="2"), lineage=("-", "triage"))


def test_answers_are_counted_by_who_asked_the_most_frequent_first() -> None:
    answered = Answered()
    answered.note("add", CLIENT, Status.DONE, at=1.0)
    answered.note("add", PARENT, Status.DONE, at=2.0)
    answered.note("add", PARENT, Status.FAILED, at=3.0)

    told = [(calls.caller, calls.agent, calls.version, calls.count, calls.last_at) for calls in answered.calls()]

    assert told == [("triage", "desk", "2", 2, 3.0), ("", "web", "", 1, 1.0)]
    assert (answered.of("add").answered, answered.of("add").failed) == (3, 1)


def test_a_task_of_nobody_known_is_counted() -> None:
    answered = Answered()
    answered.note("add", Task(), Status.DONE, at=1.0)

    (calls,) = answered.calls()
    assert (calls.caller, calls.agent, calls.count) == ("", "", 1)
    assert CLIENT.caller == ""
    assert PARENT.caller == "triage"


def test_ten_thousand_names_of_clients_take_a_hundred_places_and_lose_no_count() -> None:
    answered = Answered()
    for number in range(10_000):
        sender = Sender(agent=f"{number}-{'x' * 1_000}")
        answered.note(("add", "sub")[number % 2], Task(sender=sender), Status.DONE, at=1.0)

    calls = answered.calls()
    assert len(calls) <= CALLERS_MAX
    assert sum(one.count for one in calls) == 10_000
    assert {one.capability for one in calls if one.agent == OTHERS} == {"add", "sub"}
    assert max(len(one.agent) for one in calls) <= NAME_LENGTH_MAX
