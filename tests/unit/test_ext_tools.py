"""Capabilities as tools: what a model is told of them, and what it is told when they fail."""

import json
from typing import Any

import msgspec
import pytest
from pydantic_ai import Agent as LLMAgent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.usage import RequestUsage

from contracts.card import AgentCard
from contracts.outcome import Failure, FailureKind, Outcome, Status
from contracts.subjects import Identity
from mesh import Agent, Context, TaskFailed, Transient
from mesh.capability import agent_card
from mesh.errors import TaskCancelled
from mesh.ext.pydantic_ai import Durable, Offer
from mesh.ext.pydantic_ai.offers import Callee, offered, offers_of
from mesh.ext.pydantic_ai.price import usd_of
from mesh.ext.pydantic_ai.toolset import arguments
from mesh.payload import Shape
from mesh.reference import Reference


class Order(msgspec.Struct, frozen=True):
    """An order."""

    number: int
    lines: tuple["Line", ...] = ()


class Line(msgspec.Struct, frozen=True):
    article: str


shop = Agent("shop", version="3", owner="sales")


@shop.handles("price-order", timeout_s=5, attempts=2)
async def price_order(order: Order) -> Order:
    """Say what an order costs."""
    return order


@shop.handles("square")
async def square(number: int) -> int:
    return number * number


@shop.handles("opening-hours")
async def opening_hours() -> str:
    """Tell when the shop is open."""
    return "always"


CARD: AgentCard = agent_card(shop.info, shop.capabilities.values())


async def of_the_shop() -> list[Offer]:
    return offers_of(CARD)


def context(**answers: Any) -> Context:
    return Context(Identity("answer", "k"), answers={name.replace("_", "-"): value for name, value in answers.items()})


class Script:
    """A model that asks for one tool, and then says what it was told."""

    def __init__(self, tool: str, arguments: dict[str, Any]) -> None:
        self._call = ToolCallPart(tool, arguments)
        self.seen: AgentInfo | None = None
        self.llm: LLMAgent[None, str] = LLMAgent(FunctionModel(self._speak), name="script", retries=1)

    def _speak(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        self.seen = info
        told = [part for part in messages[-1].parts if isinstance(part, ToolReturnPart)]
        if not told:
            return ModelResponse([self._call])
        return ModelResponse([TextPart(f"{told[0].outcome}: {told[0].model_response_str()}")])


async def run(script: Script, ctx: Context, *tools: Any) -> str:
    durable = Durable(script.llm, tools, lookup=of_the_shop, is_streaming=False)
    return (await durable.run("go", ctx)).output


async def test_a_capability_is_told_with_its_owner_its_limits_and_its_schema() -> None:
    script = Script("price-order", {"number": 1})

    await run(script, context(), price_order)

    assert script.seen is not None
    (tool,) = script.seen.function_tools
    assert tool.name == "price-order"
    assert tool.description == (
        "Say what an order costs.\nHandled by the agent shop (owner: sales).\nLimits: 5 s an attempt, 2 attempts."
    )
    assert tool.parameters_json_schema["type"] == "object"
    assert tool.parameters_json_schema["required"] == ["number"]


async def test_a_capability_is_asked_with_its_type_and_its_value_is_told() -> None:
    script = Script("price-order", {"number": 1, "lines": [{"article": "a"}]})

    told = await run(script, context(), price_order)

    assert told.partition(": ")[0] == "success"
    assert json.loads(told.partition(": ")[2]) == {"number": 1, "lines": [{"article": "a"}]}


@pytest.mark.parametrize(
    ("tool", "given", "told"),
    [("square", {"payload": 7}, "49"), ("opening-hours", {}, "always")],
)
async def test_payloads_that_are_no_objects_are_one_argument_or_none(
    tool: str, given: dict[str, Any], told: str
) -> None:
    assert await run(Script(tool, given), context(), square, opening_hours) == f"success: {told}"


async def test_a_name_is_looked_up_in_a_step_and_stands_for_what_was_found() -> None:
    asked: list[None] = []

    async def lookup() -> list[Offer]:
        asked.append(None)
        return await of_the_shop()

    first = context(square=49)
    script = Script("square", {"payload": 7})
    durable = Durable(script.llm, ["square"], lookup=lookup, is_streaming=False)
    await durable.run("go", first)
    again = context()
    again._book = first._book
    await Durable(script.llm, ["square"], lookup=lookup, is_streaming=False).run("go", again)

    assert len(asked) == 1
    assert script.seen is not None
    assert [tool.name for tool in script.seen.function_tools] == ["square"]


async def test_a_pattern_stands_for_all_that_is_offered_but_the_asker_and_people() -> None:
    async def lookup() -> list[Offer]:
        return [Offer(capability=name) for name in ("answer", "human", "refund", "square")]

    found = await offered(["*", "square"], context(), lookup)

    assert [callee.offer.capability for callee in found] == ["refund", "square"]


async def test_a_name_that_nobody_offers_is_tried_again_later() -> None:
    with pytest.raises(Transient, match="no live peer offers refund"):
        await offered(["refund", "square"], context(), of_the_shop)


async def test_a_reference_counts_before_what_is_found_under_its_name() -> None:
    reference = Reference("square", takes=int, returns=int)

    found = await offered([reference, "*"], context(), of_the_shop)

    assert found[0] == Callee(Offer(capability="square", input_schema={"type": "integer"}), reference)
    assert [callee.offer.capability for callee in found] == ["square", "opening-hours", "price-order"]


async def test_a_child_that_failed_is_told_to_the_model() -> None:
    failure = Failure(kind=FailureKind.PERMANENT, message="no such order")

    def fail(_: Any) -> Any:
        raise TaskFailed("price-order/x failed (permanent): no such order", Outcome(status=Status.FAILED), failure)

    told = await run(Script("price-order", {"number": 1}), context(price_order=fail), "price-order")

    assert told == 'failed: {"error":"price-order/x failed (permanent): no such order"}'


async def test_a_child_that_was_cancelled_is_told_to_the_model() -> None:
    def cancelled(_: Any) -> Any:
        raise TaskCancelled("price-order/x was cancelled", Outcome(status=Status.CANCELLED))

    told = await run(Script("price-order", {"number": 1}), context(price_order=cancelled), "price-order")

    assert told == 'failed: {"error":"price-order/x was cancelled"}'


async def test_arguments_that_break_the_contract_are_to_be_corrected() -> None:
    told = await run(Script("price-order", {"number": "one"}), context(), price_order)

    assert told.startswith("retried: ")
    assert "$.number" in told


async def test_arguments_that_the_callee_refused_are_to_be_corrected() -> None:
    failure = Failure(kind=FailureKind.CONTRACT, message="Expected `int`, got `str` - at `$.number`")

    def refuse(_: Any) -> Any:
        raise TaskFailed("refused", Outcome(status=Status.FAILED), failure)

    told = await run(Script("price-order", {"number": "one"}), context(price_order=refuse), "price-order")

    assert told.startswith('retried: {"error":"Expected `int`')


@pytest.mark.parametrize("annotation", [Order, Order | None, int, list[Order], dict[str, int], str, None, Any])
def test_every_schema_becomes_that_of_an_object_and_keeps_its_definitions(annotation: Any) -> None:
    schema = arguments(Shape(annotation).schema()).schema

    assert schema["type"] == "object"
    references = [part.split('"')[0] for part in json.dumps(schema).split('"#/$defs/')[1:]]
    assert set(references) <= schema.get("$defs", {}).keys()


def test_a_price_is_that_of_the_public_list() -> None:
    usage = RequestUsage(input_tokens=1_000_000, output_tokens=0)

    assert usd_of(ModelResponse([], usage=usage, model_name="gpt-4o", provider_name="openai")) == 2.5
    assert usd_of(ModelResponse([], usage=usage, model_name="home-made", provider_name="home")) == 0
    assert usd_of(ModelResponse([], usage=usage)) == 0
