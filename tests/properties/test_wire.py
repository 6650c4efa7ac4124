"""Records over the wire: what goes in comes out, and versions of a record meet without loss."""

from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from contracts import wire
from contracts.card import AgentCard, Beat, CapabilityCard, Load, PeerState
from contracts.control import Cancel, PartsKept, PartsWanted, Pause, Running, Runs, WhoRuns
from contracts.decision import Decision
from contracts.errors import ContractError, NewerFormat
from contracts.event import Event, EventKind
from contracts.outcome import (
    AttemptBegan,
    AttemptEnded,
    DecidedBy,
    Ended,
    Failure,
    FailureKind,
    Outcome,
    Send,
    Spent,
    Status,
)
from contracts.task import Budget, Sender, Task
from contracts.wire import ContentType, Record

text = st.text(max_size=20)
whole = st.integers(0, 2**53)
# Halves survive any decimal notation.
number = st.integers(-(2**40), 2**40).map(lambda half: half / 2)
content_types: st.SearchStrategy[ContentType] = st.sampled_from(["application/json", "application/msgpack"])
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | number | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)

senders = st.builds(Sender, agent=text, role=text, version=text, peer=text)
budgets = st.builds(Budget, usd=st.none() | number, tokens=st.none() | whole, hops=st.none() | whole)
confidences = st.none() | st.sampled_from([0.0, 0.25, 0.5, 1.0])
tasks = st.builds(
    Task,
    digest=text,
    deadline=st.none() | number,
    sender=st.none() | senders,
    lineage=st.lists(text, max_size=3).map(tuple),
    conversation=text,
    budget=st.none() | budgets,
    confidence=confidences,
    reason=text,
    redrive_of=text,
)
failures = st.builds(
    Failure, kind=st.sampled_from(FailureKind), message=text, error=text, path=text, attempts=st.integers(0, 99)
)
decisions = st.builds(
    Decision, choice=text, at=number, reason=text, confidence=confidences, inputs=plain, model=text, by=text
)
records = st.one_of(
    tasks,
    st.builds(Cancel, at=number, by=text, reason=text),
    st.builds(Pause, at=number, by=text, reason=text),
    st.builds(WhoRuns, id=text),
    st.builds(
        Runs,
        peer=text,
        running=st.lists(
            st.builds(Running, capability=text, id=text, since=number, attempt=whole, parts=whole), max_size=3
        ).map(tuple),
    ),
    st.builds(PartsWanted, id=text, attempt=whole, first=whole, end=whole),
    st.builds(PartsKept, parts=st.lists(st.tuples(whole, plain), max_size=3).map(tuple)),
    st.builds(
        Event,
        kind=st.sampled_from(EventKind),
        at=number,
        peer=text,
        capability=text,
        id=text,
        detail=text,
        decision=st.none() | decisions,
    ),
    st.builds(AttemptBegan, peer=text, at=number),
    st.builds(
        AttemptEnded,
        how=st.sampled_from(Ended),
        peer=text,
        at=number,
        retry_at=st.none() | number,
        failure=st.none() | failures,
    ),
    st.builds(
        Beat,
        peer=text,
        at=number,
        state=st.sampled_from(PeerState),
        host=text,
        pid=whole,
        agents=st.lists(text, max_size=3).map(tuple),
        load=st.dictionaries(text, st.builds(Load, slots=whole, bid=st.integers(0, 9)), max_size=3),
    ),
    st.builds(
        AgentCard,
        name=text,
        capabilities=st.lists(
            st.builds(CapabilityCard, name=text, input_schema=st.dictionaries(text, plain, max_size=2)), max_size=2
        ).map(tuple),
    ),
)


def as_stored(data: bytes, as_type: ContentType) -> Any:
    """What a reader without any types sees."""
    return wire.decode(dict[str, Any], data, as_type)


@given(records, content_types)
def test_a_record_survives_the_wire(record: Record, as_type: ContentType) -> None:
    data = wire.encode(record, as_type)

    assert wire.decode(type(record), data, as_type) == record


@given(records, content_types)
def test_every_record_says_its_version(record: Record, as_type: ContentType) -> None:
    assert as_stored(wire.encode(record, as_type), as_type)["v"] == wire.PLAIN


@given(plain, tasks, failures, content_types)
def test_an_outcome_carries_value_and_sends_as_the_bytes_they_are(
    value: Any, task: Task, failure: Failure, as_type: ContentType
) -> None:
    raw = msgspec.Raw(wire.encode(value, as_type))
    outcome = Outcome(
        status=Status.DONE,
        value=raw,
        failure=failure,
        sends=(Send(capability="a", id="b", payload=raw, task=task),),
        decided_by=DecidedBy(agent="x"),
        spent=Spent(usd=0.5),
    )

    decoded = wire.decode(Outcome, wire.encode(outcome, as_type), as_type)

    assert bytes(decoded.value) == bytes(raw)
    assert bytes(decoded.sends[0].payload) == bytes(raw)
    assert decoded.sends[0].task == task
    assert decoded.failure == failure


@given(st.dictionaries(text, plain, min_size=2, max_size=6), content_types)
def test_equal_values_give_equal_bytes(value: dict[str, Any], as_type: ContentType) -> None:
    backwards = dict(reversed(value.items()))

    assert wire.encode(backwards, as_type) == wire.encode(value, as_type)


class OlderOutcome(Record, frozen=True, kw_only=True, omit_defaults=True):
    """What a peer of last year knew."""

    status: Status
    reason: str = ""


class NewerOutcome(Record, frozen=True, kw_only=True, omit_defaults=True):
    """What a peer of next year knows."""

    status: Status
    reason: str = ""
    carbon_g: float = 0.0
    reviewers: tuple[str, ...] = ()


@given(text, number, st.lists(text, max_size=3).map(tuple), content_types)
def test_an_older_peer_reads_what_it_knows_of_a_newer_record(
    reason: str, carbon_g: float, reviewers: tuple[str, ...], as_type: ContentType
) -> None:
    newer = NewerOutcome(status=Status.DONE, reason=reason, carbon_g=carbon_g, reviewers=reviewers)

    read = wire.decode(OlderOutcome, wire.encode(newer, as_type), as_type)

    assert read == OlderOutcome(status=Status.DONE, reason=reason)


@given(text, content_types)
def test_a_newer_peer_fills_in_what_an_older_record_lacks(reason: str, as_type: ContentType) -> None:
    older = OlderOutcome(status=Status.FAILED, reason=reason)

    read = wire.decode(NewerOutcome, wire.encode(older, as_type), as_type)

    assert read == NewerOutcome(status=Status.FAILED, reason=reason)


@given(text, text, number, st.lists(text, max_size=3).map(tuple), content_types)
def test_a_record_that_an_older_peer_amends_keeps_what_it_does_not_know(
    reason: str, better: str, carbon_g: float, reviewers: tuple[str, ...], as_type: ContentType
) -> None:
    newer = NewerOutcome(status=Status.DONE, reason=reason, carbon_g=carbon_g, reviewers=reviewers)

    amended = wire.amend(wire.encode(newer, as_type), {"reason": better}, as_type)

    assert wire.decode(NewerOutcome, amended, as_type) == msgspec.structs.replace(newer, reason=better)


@given(st.dictionaries(text, plain, max_size=5), st.dictionaries(text, plain, max_size=3), content_types)
def test_amending_replaces_the_named_fields_and_no_other(
    stored: dict[str, Any], changes: dict[str, Any], as_type: ContentType
) -> None:
    amended = wire.amend(wire.encode(stored, as_type), changes, as_type)

    assert as_stored(amended, as_type) == {**stored, **changes}


@given(records, st.integers(wire.FORMAT + 1, 2**31), content_types)
def test_a_record_of_a_higher_format_is_refused_instead_of_guessed(
    record: Record, version: int, as_type: ContentType
) -> None:
    data = wire.amend(wire.encode(record, as_type), {"v": version}, as_type)

    with pytest.raises(NewerFormat, match=f"format {version} is newer than {wire.FORMAT}"):
        wire.decode(type(record), data, as_type)


@given(st.binary(max_size=60), content_types)
def test_any_bytes_are_a_record_or_a_contract_error(data: bytes, as_type: ContentType) -> None:
    for shape in (Task, Outcome, Beat):
        try:
            decoded = wire.decode(shape, data, as_type)
        except ContractError:
            continue

        assert isinstance(decoded, shape)


@pytest.mark.parametrize(
    "data", [b"", b"{", b'{"digest":"x"', b"\xff\xfe", b'{"digest":"\xff"}', b"[]", b"null", b"1", b'{"v":"1"}']
)
def test_malformed_json_is_a_contract_error(data: bytes) -> None:
    with pytest.raises(ContractError):
        wire.decode(Task, data)


@pytest.mark.parametrize(("opening", "as_type"), [(b"[", "application/json"), (b"\x91", "application/msgpack")])
def test_bytes_that_nest_without_end_are_a_contract_error(opening: bytes, as_type: ContentType) -> None:
    with pytest.raises(ContractError):
        wire.decode(object, opening * 200_000, as_type)


@pytest.mark.parametrize(
    ("shape", "data", "path"),
    [
        (Task, b'{"digest":3}', "$.digest"),
        (Task, b'{"sender":{"agent":1}}', "$.sender.agent"),
        (Task, b'{"lineage":["a",2]}', "$.lineage[1]"),
        (Task, b'{"confidence":1.5}', "$.confidence"),
        (Outcome, b'{"status":"done","sends":[{"capability":"a","id":"b","payload":1}]}', "$.sends[0]"),
        (Outcome, b'{"status":"done at `$.elsewhere"}', "$.status"),
        (Outcome, b'{"status":"x - at `$.elsewhere` "}', "$.status"),
        (dict[str, dict[int, int]], b'{"a":{"b":1}}', "$[...]"),
    ],
)
def test_an_error_names_the_field_at_fault(shape: Any, data: bytes, path: str) -> None:
    with pytest.raises(ContractError) as caught:
        wire.decode(shape, data)

    assert caught.value.path == path


@pytest.mark.parametrize("header", [None, "", "application/json", "Application/JSON; charset=utf-8"])
def test_json_is_the_content_type_where_none_is_named(header: str | None) -> None:
    assert wire.content_type(header) == wire.JSON


@pytest.mark.parametrize("header", ["application/msgpack", "application/x-msgpack", "application/vnd.msgpack; v=1"])
def test_messagepack_goes_by_its_three_names(header: str) -> None:
    assert wire.content_type(header) == wire.MSGPACK


@given(
    text.filter(lambda header: header.partition(";")[0].strip() and "application/" not in header.lower())
    | st.sampled_from(["text/plain", "application/jsonp", "application/json, text/plain", "application/msgpack2"])
)
def test_any_other_content_type_is_a_contract_error(header: str) -> None:
    with pytest.raises(ContractError, match="neither"):
        wire.content_type(header)


class Bounded(Record, frozen=True, kw_only=True):
    share: Annotated[float, Meta(ge=0, le=1)]


@given(number.filter(lambda share: not 0 <= share <= 1))
def test_bounds_of_a_field_hold_on_the_wire(share: float) -> None:
    with pytest.raises(ContractError) as caught:
        wire.decode(Bounded, wire.encode({"share": share}))

    assert caught.value.path == "$.share"
