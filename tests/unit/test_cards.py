"""Cards: owners that can be labels, and digests of what a capability takes and gives."""

import msgspec
import pytest

from contracts.card import CapabilityCard
from mesh import Agent
from mesh.capability import agent_card
from mesh.endings import Ladder, Verifiers
from mesh.errors import SetupError


class Order(msgspec.Struct):
    """An order."""

    title: str
    amount: int


def _card(schema: object) -> CapabilityCard:
    return CapabilityCard(name="ship", input_schema={"properties": schema}, output_schema={"type": "string"})


@pytest.mark.parametrize("owner", ["", "care", "team_7", "Payments & Billing", "ops@example.com", "büro/süd", "a"])
def test_an_owner_may_be_a_team_an_address_or_nobody(owner: str) -> None:
    assert Agent("shop", owner=owner).info.owner == owner


@pytest.mark.parametrize(
    ("owner", "told"),
    [
        ('say "hi"', "agent 'shop': owner"),
        ("two\nlines", "must be letters, digits"),
        (" care", "must be letters, digits"),
        ("care ", "must be letters, digits"),
        ("a" * 64, "owner of 64 characters exceeds 63"),
        (7, "owner is 7; it must be a string"),
    ],
)
def test_an_owner_that_cannot_be_a_label_is_refused_by_name(owner: str, told: str) -> None:
    with pytest.raises(SetupError) as caught:
        Agent("shop", owner=owner)

    assert told in str(caught.value)


def test_a_contract_changes_with_types_and_names_and_not_with_words() -> None:
    plain = _card({"amount": {"type": "integer"}})
    told = _card({"amount": {"type": "integer", "description": "In cents.", "title": "Amount", "examples": [1]}})

    assert plain.contract == told.contract
    assert plain.contract != _card({"amount": {"type": "number"}}).contract
    assert plain.contract != _card({"amount": {"type": "integer"}, "title": {"type": "string"}}).contract
    assert len(plain.contract) == 8


def test_a_field_that_is_called_title_or_properties_is_part_of_the_contract() -> None:
    nested = {"properties": {"type": "object", "properties": {"description": {"type": "string"}}}}
    other = {"properties": {"type": "object", "properties": {"description": {"type": "integer"}}}}

    assert _card(nested).contract != _card(other).contract


def test_a_card_tells_the_ladder_and_the_verifiers() -> None:
    agent = Agent("shop")

    @agent.handles("ship", ladder=Ladder(0.8, "human"), verified_by=Verifiers("check", agree=2, of=3))
    async def ship(order: Order) -> str:
        return order.title

    (card,) = agent_card(*agent.hosted).capabilities

    assert (card.next_rung, card.threshold, card.verified_by) == ("human", 0.8, ("check",) * 3)
