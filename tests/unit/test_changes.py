"""What a plan says of each change to a stream or consumer before it is made."""

from typing import Any

import pytest

from mesh.bus.changes import Change, Way, allowed, changes, told
from mesh.bus.topology import NANOS, Spec, consumer, of_capability, of_mesh, streams
from mesh.settings import Settings

SETTINGS = Settings(nats_url="nats://localhost:4222", replicas=3, stream_bytes_max=2**30)
MESH = streams(SETTINGS)[0]
EVENTS = streams(SETTINGS)[-1]
QUEUE = consumer(SETTINGS, "work", queue_max=10)


def account(spec: Spec, messages: int = 0, held: int = 0, **changed: Any) -> dict[str, Any]:
    """What a server answers about a spec, but for what is `changed`."""
    return {"config": {**spec.config, **changed}, "state": {"messages": messages, "bytes": held}}


def the_change(spec: Spec, **changed: Any) -> Change:
    (found,) = changes(spec, account(spec, **changed))
    return found


@pytest.mark.parametrize("spec", [*of_mesh(SETTINGS), *of_capability(SETTINGS, "work", queue_max=5)], ids=str)
def test_what_is_as_wanted_is_left_alone_and_what_is_missing_is_made(spec: Spec) -> None:
    (missing,) = changes(spec, None)

    assert changes(spec, account(spec)) == ()
    assert (missing.way, str(missing)) == (Way.MAKE, f"make {spec.kind} {spec}")


@pytest.mark.parametrize(
    ("spec", "changed", "way", "says"),
    [
        (MESH, {"retention": "limits"}, Way.STUCK, "another MESH_PREFIX"),
        (MESH, {"storage": "memory"}, Way.STUCK, "mesh backup"),
        (MESH, {"num_replicas": 1}, Way.LIVE, "a cluster of at least 3"),
        (MESH, {"num_replicas": 5}, Way.CARE, "copies are given up"),
        (MESH, {"max_bytes": 2**20}, Way.LIVE, "it holds"),
        (MESH, {"max_bytes": -1}, Way.LIVE, "it holds"),
        (MESH, {"max_bytes": 2**31, "held": 2**30 + 1}, Way.CARE, "new tasks are refused"),
        (MESH, {"max_msgs": 5, "messages": 7}, Way.LIVE, "the disk is the limit"),
        (EVENTS, {"max_bytes": 2**31, "held": 2**30}, Way.CARE, "the oldest go"),
        (EVENTS, {"max_age": 1}, Way.LIVE, "kept for longer"),
        (EVENTS, {"max_age": 10**18}, Way.CARE, "goes at once"),
        (MESH, {"discard": "old"}, Way.LIVE, "refuses what comes"),
        (MESH, {"subjects": ["mesh.task.>"]}, Way.LIVE, "takes more subjects"),
        (MESH, {"subjects": [*MESH.config["subjects"], "mesh.old.>"]}, Way.CARE, "mesh.old.>"),
        (MESH, {"max_msgs_per_subject": 5}, Way.CARE, "older ones"),
        (MESH, {"republish": None}, Way.LIVE, "echoes"),
        (QUEUE, {"max_waiting": 5}, Way.STUCK, "delete the consumer"),
        (QUEUE, {"ack_wait": 4 * NANOS}, Way.LIVE, "peers learn of it"),
        (QUEUE, {"ack_wait": 12 * NANOS}, Way.LIVE, "peers learn of it"),
        (QUEUE, {"ack_wait": 13 * NANOS}, Way.CARE, "each would run twice"),
        (QUEUE, {"metadata": {}}, Way.LIVE, "new bound"),
        (QUEUE, {"max_deliver": 5}, Way.LIVE, "sweep"),
        (QUEUE, {"filter_subjects": [*QUEUE.config["filter_subjects"], "mesh.x.>"]}, Way.CARE, "nobody is handed"),
        (QUEUE, {"priority_policy": "prioritized"}, Way.LIVE, "refused once"),
    ],
)
def test_each_change_says_what_it_means(spec: Spec, changed: dict[str, Any], way: Way, says: str) -> None:
    found = the_change(spec, **changed)

    assert found.way is way, found
    assert says in found.means


def test_only_what_may_be_done_now_is_allowed() -> None:
    found = tuple(Change(MESH, way, "") for way in Way)

    assert {change.way for change in allowed(found, with_care=False)} == {Way.MAKE, Way.MOVE, Way.LIVE}
    assert {change.way for change in allowed(found, with_care=True)} == {Way.MAKE, Way.MOVE, Way.LIVE, Way.CARE}


def test_values_are_told_in_words() -> None:
    assert str(the_change(QUEUE, ack_wait=4 * NANOS)) == "MESH > work: ack_wait 4 s -> 6 s"
    assert (
        str(the_change(QUEUE, metadata={"mesh-queue-max": "7"})) == "MESH > work: metadata queue_max 7 -> queue_max 10"
    )
    assert str(the_change(MESH, max_bytes=-1)) == "MESH: max_bytes no limit -> 1,024 MiB"
    assert told("max_msgs", -1) == "no limit"
