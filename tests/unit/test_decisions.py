"""What a handler puts on record about its choices, and how decisions are told apart."""

import math
from enum import StrEnum
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.decision import Decision, dated, keyed
from contracts.errors import ContractError
from contracts.event import Event
from contracts.outcome import AttemptEnded, Ended
from contracts.subjects import Identity
from contracts.task import Sender
from contracts.workflow import Answer, Verdict
from mesh.cli.decisions import Change, Chosen, counts, drift
from mesh.context import BlockingContext, Context
from mesh.resilience.retry import Ledger
from mesh.task_context import (
    CHOICE_LENGTH_MAX,
    DECISIONS_BYTES_MAX,
    DECISIONS_MAX,
    INPUTS_BYTES_MAX,
    NAME_LENGTH_MAX,
    REASON_LENGTH_MAX,
)


class Way(StrEnum):
    LEFT = "left"


def context() -> Context:
    return Context(Identity("sell", "order-42"), me=Sender(agent="tester", version="3"))


decisions = st.builds(
    Decision,
    choice=st.sampled_from(("a", "b")),
    at=st.floats(1, 2),
    confidence=st.sampled_from((None, 0.0, 0.5)),
    inputs=st.sampled_from((None, {"a": 1}, [1, "two"])),
    prompt_digest=st.sampled_from(("", "p1")),
)


def test_a_decision_has_what_was_said_and_what_produced_it() -> None:
    ctx = context()

    ctx.explain(model="m", model_digest="d1", prompt_digest="p1")
    ctx.decide("refund", "it was late", 0.8, {"days": 12})
    ctx.decide(Way.LEFT, model_digest="d2")

    first, second = ctx.decisions
    assert msgspec.structs.replace(first, at=0.0) == Decision(
        choice="refund",
        reason="it was late",
        confidence=0.8,
        inputs={"days": 12},
        version="3",
        model="m",
        model_digest="d1",
        prompt_digest="p1",
    )
    assert (second.choice, second.model, second.model_digest, second.confidence) == ("left", "m", "d2", None)
    assert first.at > 0


def test_a_plain_handler_decides_alike() -> None:
    ctx = BlockingContext(Identity("sell", "order-42"))

    ctx.decide("refund")

    assert [decision.choice for decision in ctx.decisions] == ["refund"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"choice": ""}, "choice is empty"),
        ({"choice": 7}, "choice is int; it must be a string"),
        ({"choice": "x" * (CHOICE_LENGTH_MAX + 1)}, f"choice of 101 characters exceeds {CHOICE_LENGTH_MAX}"),
        ({"choice": "\ud800"}, "choice cannot travel"),
        ({"reason": "x" * (REASON_LENGTH_MAX + 1)}, f"reason of 4001 characters exceeds {REASON_LENGTH_MAX}"),
        ({"confidence": 1.01}, "confidence of 1.01 is outside 0 to 1"),
        ({"confidence": math.nan}, "confidence of nan is outside 0 to 1"),
        ({"confidence": "high"}, "confidence is str; it must be a number from 0 to 1"),
        ({"inputs": "x" * INPUTS_BYTES_MAX}, f"inputs of {INPUTS_BYTES_MAX + 2} bytes exceed {INPUTS_BYTES_MAX} bytes"),
        ({"inputs": object()}, "inputs: object cannot travel"),
        ({"model": "x" * (NAME_LENGTH_MAX + 1)}, f"model of 201 characters exceeds {NAME_LENGTH_MAX}"),
        ({"model_digest": b"x"}, "model_digest is bytes; it must be a string"),
        ({"prompt_digest": "x" * 201}, f"prompt_digest of 201 characters exceeds {NAME_LENGTH_MAX}"),
    ],
)
def test_what_cannot_stand_in_a_decision_is_named_with_its_limit(given: dict[str, Any], told: str) -> None:
    ctx = context()

    with pytest.raises(ContractError, match=told):
        ctx.decide(**{"choice": "refund", **given})

    assert ctx.decisions == []


def test_decisions_of_a_task_are_bounded_in_number_and_in_bytes() -> None:
    many, large = context(), context()

    for _ in range(DECISIONS_MAX):
        many.decide("again")
    with pytest.raises(ContractError, match=f"at most {DECISIONS_MAX} decisions"):
        many.decide("again")

    for _ in range(DECISIONS_BYTES_MAX // INPUTS_BYTES_MAX - 1):
        large.decide("again", inputs="x" * (INPUTS_BYTES_MAX - 2))
    with pytest.raises(ContractError, match=f"bytes in all exceed {DECISIONS_BYTES_MAX} bytes"):
        large.decide("again", inputs="x" * (INPUTS_BYTES_MAX - 2))


async def test_what_a_person_says_stands_among_the_decisions() -> None:
    answer = Answer(verdict=Verdict.EDITED, value={"euros": 4}, by="ada", note="too much", at=12.0)
    ctx = Context(Identity("sell", "order-42"), answers={"human": answer})

    await ctx.approve({"euros": 5})

    assert ctx.decisions == [Decision(choice="edited", reason="too much", at=12.0, by="ada")]


@given(st.lists(decisions, max_size=12))
def test_keys_are_the_same_in_every_run_and_for_no_two_decisions_of_a_task(made: list[Decision]) -> None:
    later = [msgspec.structs.replace(decision, at=9.0) for decision in made]

    keys = [key for key, _ in keyed(made)]

    assert len(set(keys)) == len(keys)
    assert [key for key, _ in keyed(later)] == keys


@given(st.lists(decisions, max_size=6), st.lists(decisions, max_size=6))
def test_what_an_earlier_run_decided_too_keeps_its_time(before: list[Decision], more: list[Decision]) -> None:
    now = [msgspec.structs.replace(decision, at=9.0) for decision in (*before, *more)]

    told = dated(now, before)

    assert [one.at for one in told] == [one.at for one in before] + [9.0] * len(more)
    assert [key for key, _ in keyed(told)] == [key for key, _ in keyed(now)]


def test_a_ledger_has_what_the_last_attempt_that_decided_had_decided() -> None:
    def end(*choices: str) -> AttemptEnded:
        made = tuple(Decision(choice=choice) for choice in choices)
        return AttemptEnded(how=Ended.PARKED, peer="p", at=0.0, decisions=made)

    ledger = Ledger(ended=((3, end()), (2, end("a", "b")), (1, end("a"))))

    assert [decision.choice for decision in ledger.decisions] == ["a", "b"]
    assert Ledger().decisions == ()


def event(at: float, choice: str = "a", version: str = "1", **more: Any) -> Event:
    decision = Decision(choice=choice, version=version, **more)
    return Event(kind="decided", at=at, peer="p", capability="sell", id="k", decision=decision)


def test_choices_are_counted_by_version_with_the_mean_confidence() -> None:
    made = [
        event(1, confidence=0.5),
        event(2, confidence=1.0),
        event(3, "b"),
        event(4, version="2"),
        event(5, version="", by="ada"),
    ]

    assert counts(made) == [
        Chosen("sell", "", "a", 1, None, is_by_people=True),
        Chosen("sell", "1", "a", 2, 0.75),
        Chosen("sell", "1", "b", 1, None),
        Chosen("sell", "2", "a", 1, None),
    ]


def test_a_model_or_prompt_that_changes_under_a_version_is_told_once() -> None:
    made = [
        event(1, model="m", prompt_digest="p1"),
        event(2, model="m", prompt_digest="p2"),
        event(3, model="m", prompt_digest="p1"),
        event(4, model="m", prompt_digest="p2"),
        event(5, by="ada"),
        event(6),
        event(7, version="2", model="n"),
    ]

    assert drift(made) == [Change(2, "sell", "1", ("m", "", "p1"), ("m", "", "p2"))]
