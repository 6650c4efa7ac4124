"""What counts as a difference between a spec and the server's account of it."""

from typing import Any

import pytest

from mesh.bus.topology import Spec, ack_wait_s, consumer, differences, streams, timers
from mesh.settings import Settings

SETTINGS = Settings(nats_url="nats://localhost:4222")
MESH, CONTROL, LINES, LIMITS, OBJECTS, EVENTS = streams(SETTINGS)
TIMERS = timers(SETTINGS, "review-file")
CONSUMER = consumer(SETTINGS, "review-file")


def account(spec: Spec, **changes: Any) -> dict[str, Any]:
    """What a server that did as it was told answers, with more than it was told, and with `changes`."""
    return {**spec.config, "name": spec.name, "created": "2026-01-01T00:00:00Z", "compression": "none", **changes}


@pytest.mark.parametrize("spec", [MESH, CONTROL, TIMERS, LINES, LIMITS, OBJECTS, EVENTS, CONSUMER], ids=str)
def test_a_server_that_did_as_it_was_told_differs_in_nothing(spec: Spec) -> None:
    assert differences(spec, account(spec)) == []


@pytest.mark.parametrize("spec", [MESH, CONTROL, TIMERS, LINES, LIMITS, OBJECTS, EVENTS, CONSUMER], ids=str)
def test_every_field_that_is_missing_or_changed_is_told(spec: Spec) -> None:
    for field, wanted in spec.config.items():
        (found,) = differences(spec, account(spec, **{field: "something else"}))

        assert (found.field, found.wanted, found.actual) == (field, wanted, "something else")
        assert str(found) == f"{spec}: {field} is 'something else', wanted {wanted!r}"

    assert {found.field for found in differences(spec, {})} == {name for name, value in spec.config.items() if value}


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (MESH, "max_bytes"),
        (MESH, "max_msgs"),
        (MESH, "num_replicas"),
        (EVENTS, "max_bytes"),
        (EVENTS, "max_msgs"),
        (EVENTS, "max_age"),
        (CONSUMER, "ack_wait"),
        (CONSUMER, "max_ack_pending"),
        (CONSUMER, "max_waiting"),
    ],
)
def test_what_an_operator_may_tune_is_not_essential(spec: Spec, field: str) -> None:
    (found,) = differences(spec, account(spec, **{field: 7}))

    assert not found.is_essential


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (MESH, "retention"),
        (MESH, "max_msgs_per_subject"),
        (MESH, "discard"),
        (MESH, "discard_new_per_subject"),
        (MESH, "allow_direct"),
        (MESH, "allow_msg_ttl"),
        (MESH, "republish"),
        (MESH, "subjects"),
        (CONTROL, "republish"),
        (LINES, "max_msgs_per_subject"),
        (LINES, "discard"),
        (LINES, "allow_msg_ttl"),
        (LIMITS, "max_msgs_per_subject"),
        (LIMITS, "republish"),
        (CONSUMER, "max_deliver"),
        (CONSUMER, "ack_policy"),
        (CONSUMER, "priority_policy"),
        (CONSUMER, "priority_groups"),
        (CONSUMER, "filter_subjects"),
    ],
)
def test_what_a_promise_rests_on_is_essential(spec: Spec, field: str) -> None:
    (found,) = differences(spec, account(spec, **{field: None}))

    assert found.is_essential


def test_essential_differences_come_first() -> None:
    found = differences(MESH, account(MESH, max_bytes=1, num_replicas=5, retention="limits", discard="old"))

    assert [difference.is_essential for difference in found] == [True, True, False, False]


def test_the_order_of_subjects_is_no_difference() -> None:
    subjects = MESH.config["subjects"]

    assert differences(MESH, account(MESH, subjects=subjects[::-1])) == []
    assert differences(MESH, account(MESH, subjects=subjects[1:])) != []
    assert differences(MESH, account(MESH, subjects=[*subjects, "more.>"])) != []


def test_what_a_server_leaves_out_because_it_is_zero_or_false_is_no_difference() -> None:
    spec = Spec("stream", "S", "S", {"deny_purge": False, "max_age": 0, "metadata": None, "sources": []})

    assert differences(spec, {}) == []
    assert [found.field for found in differences(spec, {"deny_purge": True, "max_age": 1})] == ["deny_purge", "max_age"]


def test_a_republish_rule_may_have_more_fields_and_no_other_values() -> None:
    rule = MESH.config["republish"]

    assert differences(MESH, account(MESH, republish={**rule, "headers_only": False})) == []
    assert differences(MESH, account(MESH, republish={**rule, "dest": "elsewhere.>"})) != []


def test_a_peer_goes_by_the_shorter_of_its_own_ack_wait_and_the_servers() -> None:
    def tolerated(seconds: float) -> float:
        return ack_wait_s(SETTINGS, differences(CONSUMER, account(CONSUMER, ack_wait=int(seconds * 1e9))))

    assert (tolerated(2.0), tolerated(6.0), tolerated(60.0)) == (2.0, 6.0, 6.0)
