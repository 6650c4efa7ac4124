"""How a handler's signature becomes a capability, and which signatures cannot."""

import threading
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import msgspec
import pytest
from faststream import Depends
from tenacity.wait import wait_exponential, wait_fixed, wait_none

from contracts.subjects import Identity
from mesh.agent import Agent
from mesh.capability import AgentInfo, Capability, Limits, agent_card
from mesh.context import BlockingContext, Context
from mesh.endings import Ladder, Verifiers
from mesh.errors import SetupError

TASK = Identity("probe", "k1")


class Order(msgspec.Struct):
    item: str
    count: int = 1


class Receipt(msgspec.Struct):
    total: float


def capability(handler: Any, name: str = "probe", **limits: Any) -> Capability[Any, Any, Any]:
    agent = Agent("tester", version="1.2.3", owner="quality")
    return agent.handles(name, **limits)(handler)  # type: ignore[no-any-return]  # `Any` has no overload to match


async def answer(declared: Capability[Any, Any, Any], payload: Any = None) -> Any:
    """What the runtime would get from the handler."""
    if declared.is_async:
        return await declared.call(payload, Context(TASK))
    return declared.call(payload, BlockingContext(TASK))


async def test_a_payload_and_a_context_are_handed_over_by_their_types() -> None:
    async def handler(ctx: Context, order: Order) -> str:
        return f"{ctx.id} {order.item}"

    declared = capability(handler)

    assert await answer(declared, Order("tea")) == "k1 tea"
    assert declared.input.annotation is Order
    assert declared.output.annotation is str


async def test_a_plain_function_gets_the_context_that_blocks() -> None:
    def handler(order: Order, ctx: BlockingContext) -> str:
        return f"{type(ctx).__name__} {order.item}"

    declared = capability(handler)

    assert await answer(declared, Order("tea")) == "BlockingContext tea"
    assert not declared.is_async


async def test_a_handler_may_take_nothing() -> None:
    async def handler() -> int:
        return 7

    declared = capability(handler)

    assert await answer(declared) == 7
    assert declared.input.annotation is type(None)


async def test_a_handler_may_take_the_context_alone() -> None:
    async def handler(ctx: Context) -> str:
        return ctx.id

    assert await answer(capability(handler)) == "k1"


async def test_a_second_parameter_with_a_default_keeps_it() -> None:
    async def handler(order: Order, greeting: str = "hello") -> str:
        return f"{greeting} {order.item}"

    declared = capability(handler)

    assert await answer(declared, Order("tea")) == "hello tea"
    assert await declared(Order("tea"), greeting="bye") == "bye tea"


async def test_a_payload_may_be_positional_only_by_name_or_keyword_only() -> None:
    async def handler(*, order: Order, ctx: Context) -> str:
        return order.item + ctx.id

    assert await answer(capability(handler), Order("tea")) == "teak1"


async def test_a_capability_is_called_as_the_plain_function() -> None:
    async def double(count: int) -> int:
        """Twice the count."""
        return 2 * count

    def halve(count: int) -> int:
        return count // 2

    assert await capability(double)(21) == 42
    assert capability(halve)(count=42) == 21
    assert capability(double).__doc__ == "Twice the count."
    assert capability(double).__wrapped__ is double


def _generator(order: Order) -> Iterator[int]:
    yield 1


async def _async_generator(order: Order) -> AsyncIterator[int]:
    yield 1


async def _unresolved(order: "Nowhere") -> int:  # type: ignore[name-defined]  # noqa: F821  # wrong on purpose
    return 1


async def _star(*orders: Order) -> int:
    return 1


async def _double_star(**orders: Order) -> int:
    return 1


async def _blocking_in_async(order: Order, ctx: BlockingContext) -> int:
    return 1


def _async_in_plain(order: Order, ctx: Context) -> int:
    return 1


async def _bare(order) -> int:  # type: ignore[no-untyped-def]  # wrong on purpose
    return 1


async def _two(order: Order, receipt: Receipt) -> int:
    return 1


async def _no_return(order: Order):  # type: ignore[no-untyped-def]  # wrong on purpose
    return 1


async def _socket(order: threading.Thread) -> int:
    return 1


async def _returns_socket(order: Order) -> threading.Thread:
    raise NotImplementedError


@pytest.mark.parametrize(
    ("handler", "told"),
    [
        (_generator, "is a generator: return one value, and stream parts with `ctx.emit`"),
        (_async_generator, "is a generator: return one value, and stream parts with `ctx.emit`"),
        (_unresolved, "annotations do not resolve at module level: name 'Nowhere' is not defined"),
        (_star, "takes *args or **kwargs: a task has one payload"),
        (_double_star, "takes *args or **kwargs: a task has one payload"),
        (_blocking_in_async, "is an async function: annotate 'ctx' as Context"),
        (_async_in_plain, "is a plain function: annotate 'ctx' as BlockingContext"),
        (_bare, "annotate parameter 'order', types come from annotations"),
        (_two, "takes both 'order' and 'receipt': a task has one payload; put several fields into a msgspec.Struct"),
        (_no_return, "annotate what it returns, types come from annotations"),
        (_socket, "its payload: Thread cannot travel as a payload"),
        (_returns_socket, "its return type: Thread cannot travel as a payload"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_signature_that_cannot_work_is_refused_with_the_reason(handler: Any, told: str) -> None:
    with pytest.raises(SetupError) as caught:
        capability(handler)

    assert told in str(caught.value)
    assert f"handler {handler.__qualname__} of 'probe'" in str(caught.value)


@pytest.mark.parametrize("name", ["", "two words", "a.b", "-x", "a" * 64, "~x", "a>"])
def test_a_name_that_is_no_capability_is_refused(name: str) -> None:
    async def handler() -> int:
        return 1

    with pytest.raises(SetupError, match="capability"):
        capability(handler, name)


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"concurrency": 0}, "concurrency is 0, outside 1 to 10000"),
        ({"concurrency": 10_001}, "concurrency is 10001, outside"),
        ({"timeout_s": 0}, "timeout_s is 0, outside"),
        ({"timeout_s": float("nan")}, "timeout_s is nan, outside"),
        ({"timeout_s": 31 * 86_400.0}, "timeout_s is 2.6784e.06, outside"),
        ({"attempts": 0}, "attempts is 0, outside 1 to 1000"),
        ({"attempts": 2.5}, "attempts is 2.5; it must be a whole number"),
        ({"attempts": "3"}, "attempts is '3'; it must be a number"),
        ({"attempts": True}, "attempts is True; it must be a number"),
        ({"wait": 3}, "wait is 3; it must be one of tenacity's wait strategies"),
        ({"wait": wait_fixed(-1)}, "wait says -1 s after failure 1, outside 0 to"),
        ({"wait": wait_fixed(float("nan"))}, "wait says nan s after failure 1, outside 0 to"),
        ({"wait": lambda: 3}, "wait cannot tell how long to wait after failure 1: "),
        (
            {"wait": wait_exponential(multiplier=1e6, max=1e9), "attempts": 8},
            "wait says 1.28e.08 s after failure 8, outside 0 to 2.592e.06 s .30 days.",
        ),
        ({"throttled_for_s": -1}, "throttled_for_s is -1, outside 0 to"),
        ({"queue_max": 0}, "queue_max is 0, outside 1 to"),
        ({"queue_max": 1.5}, "queue_max is 1.5; it must be a whole number"),
        ({"permanent": ValueError}, "permanent is .* must be a tuple of exception types"),
        ({"transient": ("ValueError",)}, "transient is .* must be a tuple of exception types"),
        ({"permanent": (OSError,), "transient": (OSError,)}, "permanent and transient both name OSError"),
        ({"result_ttl_s": 0.5}, "result_ttl_s is 0.5, outside"),
    ],
)
def test_a_limit_that_cannot_work_is_refused(limits: dict[str, Any], told: str) -> None:
    async def handler() -> int:
        return 1

    with pytest.raises(SetupError, match=told):
        capability(handler, **limits)


def test_an_agent_needs_a_name_and_handles_a_capability_once() -> None:
    async def handler() -> int:
        return 1

    agent = Agent("tester")
    agent.handles("probe")(handler)

    with pytest.raises(SetupError, match="'probe' is handled twice by agent 'tester'"):
        agent.handles("probe")(handler)
    with pytest.raises(SetupError, match="an agent needs a name"):
        Agent("")


def test_a_card_tells_what_can_be_asked_and_within_which_limits() -> None:
    async def handler(order: Order) -> Receipt:
        """Sell
        something.

        Nobody reads this.
        """
        raise NotImplementedError

    declared = capability(handler, concurrency=2, timeout_s=3, attempts=4, result_ttl_s=5)

    card = agent_card(declared.agent, [declared])

    (told,) = card.capabilities
    assert (card.name, card.version, card.owner) == ("tester", "1.2.3", "quality")
    assert (told.name, told.description) == ("probe", "Sell something.")
    assert (told.concurrency, told.timeout_s, told.attempts, told.result_ttl_s) == (2, 3, 4, 5)
    assert set(told.input_schema["$defs"]["Order"]["properties"]) == {"item", "count"}
    assert set(told.output_schema["$defs"]["Receipt"]["properties"]) == {"total"}
    assert msgspec.json.decode(msgspec.json.encode(card), type=type(card)) == card


def test_an_agent_calls_what_it_declares_and_the_rungs_and_verifiers_of_its_handlers() -> None:
    asked = Agent("asked")

    @asked.handles("look-up")
    async def look_up(word: str) -> str:
        raise NotImplementedError

    agent = Agent("asking", calls=[look_up, "print", "human"])

    @agent.handles("answer", ladder=Ladder(0.5, "expert"), verified_by=Verifiers("check", agree=1))
    async def answer(word: str) -> str:
        raise NotImplementedError

    assert agent.calls == ("check", "expert", "human", "look-up", "print")
    assert agent_card(*agent.hosted).calls == agent.calls
    assert agent_card(*asked.hosted).calls == ()


@pytest.mark.parametrize("calls", ["print", ["a.b"], [""]])
def test_calls_that_name_no_capability_are_refused(calls: Any) -> None:
    with pytest.raises(SetupError, match="agent 'asking'"):
        Agent("asking", calls=calls)


# FastStream's dependencies.

opened: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_opened() -> None:
    opened.clear()


def price() -> float:
    return 2.5


async def stock() -> int:
    return 9


def connection() -> Iterator[str]:
    opened.append("open")
    try:
        yield "link"
    finally:
        opened.append("closed")


async def session(link: Annotated[str, Depends(connection)]) -> AsyncIterator[str]:
    opened.append(f"session on {link}")
    try:
        yield "session"
    finally:
        opened.append("session ended")


async def test_dependencies_are_handed_to_an_async_handler() -> None:
    async def handler(
        order: Order, ctx: Context, each: Annotated[float, Depends(price)], left: int = Depends(stock)
    ) -> Receipt:
        assert left == 9
        assert ctx.id == "k1"
        return Receipt(order.count * each)

    declared = capability(handler)

    assert await answer(declared, Order("tea", 2)) == Receipt(5.0)
    assert declared.input.annotation is Order


async def test_dependencies_are_handed_to_a_plain_handler() -> None:
    def handler(order: Order, each: Annotated[float, Depends(price)], ctx: BlockingContext) -> str:
        return f"{order.count * each} {ctx.id}"

    assert await answer(capability(handler), Order("tea", 2)) == "5.0 k1"


async def test_a_dependency_that_yields_is_closed_after_an_async_handler() -> None:
    async def handler(order: Order, used: Annotated[str, Depends(session)]) -> str:
        opened.append(f"handled with {used}")
        return used

    await answer(capability(handler), Order("tea"))

    assert opened == ["open", "session on link", "handled with session", "session ended", "closed"]


async def test_a_dependency_that_yields_is_closed_after_a_plain_handler() -> None:
    def handler(order: Order, link: Annotated[str, Depends(connection)]) -> str:
        opened.append(f"handled with {link}")
        return link

    await answer(capability(handler), Order("tea"))

    assert opened == ["open", "handled with link", "closed"]


async def test_a_dependency_that_yields_is_closed_when_the_handler_fails() -> None:
    async def handler(order: Order, used: Annotated[str, Depends(session)]) -> str:
        raise LookupError(order.item)

    with pytest.raises(LookupError):
        await answer(capability(handler), Order("tea"))

    assert opened == ["open", "session on link", "session ended", "closed"]


async def test_a_payload_is_handed_over_as_it_was_decoded_beside_dependencies() -> None:
    seen: list[Any] = []

    async def handler(count: int, each: Annotated[float, Depends(price)]) -> int:
        seen.append(count)
        return count

    await answer(capability(handler), "not a number")

    assert seen == ["not a number"]


async def test_a_handler_may_have_dependencies_and_no_payload() -> None:
    async def handler(each: Annotated[float, Depends(price)]) -> float:
        return each

    declared = capability(handler)

    assert await answer(declared) == 2.5
    assert declared.input.annotation is type(None)


def test_a_capability_shows_what_it_takes_and_returns() -> None:
    async def handler(order: Order) -> list[Receipt]:
        return []

    declared = Capability[Any, Any, Any]("probe", handler, AgentInfo("a"), Limits(1, 1.0, 1, None, wait_none()))

    assert repr(declared) == "Capability('probe', Shape(Order) -> Shape(list))"
