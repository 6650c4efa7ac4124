"""Durable verbs on a context made by hand: what they answer, and what they refuse."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from contracts.subjects import Identity
from contracts.task import Budget, Task
from contracts.workflow import Answer, Proposal, Verdict
from mesh import Agent, Context, DeadlineExceeded, Permanent, Transient
from mesh.errors import ContractError, DuplicateStep, MeshError, Rejected

agent = Agent("tester")


class Price(msgspec.Struct):
    cents: int


@agent.handles("double")
async def double(number: int) -> int:
    return 2 * number


@agent.handles("quadruple")
async def quadruple(number: int, ctx: Context) -> int:
    return await ctx.call(double, await ctx.call(double, number))


@agent.handles("refuse-odd")
async def refuse_odd(number: int) -> int:
    if number % 2:
        raise Transient(f"{number} is odd")
    return number


def made_by_hand(answers: dict[str, Any] | None = None, task: Task | None = None) -> Context:
    return Context(Identity("parent", "p-1"), task, answers=answers)


# Asking others.


async def test_a_capability_is_called_in_place_with_a_context_of_its_own() -> None:
    assert await made_by_hand().call(quadruple, 5) == 20


async def test_answers_stand_in_as_values_functions_and_coroutine_functions() -> None:
    async def negated(number: int) -> int:
        return -number

    ctx = made_by_hand({"constant": 7, "next": lambda number: number + 1, "negate": negated, "double": 0})

    assert await ctx.gather(
        ctx.call("constant", 1), ctx.call("next", 1), ctx.call("negate", 1), ctx.call(double, 1)
    ) == (7, 2, -1, 0)


async def test_answers_reach_what_a_handler_called_in_place_asks_for() -> None:
    assert await made_by_hand({"double": 3}).call(quadruple, 5) == 3


async def test_what_nobody_answers_says_how_to_answer_it() -> None:
    with pytest.raises(MeshError, match=r"elsewhere is asked for .* answers=\{'elsewhere'"):
        await made_by_hand().call("elsewhere", 1)


async def test_an_answer_comes_as_the_type_asked_for() -> None:
    ctx = made_by_hand({"price": {"cents": 5}, "wrong": "five"})

    assert await ctx.call("price", returns=Price) == Price(5)
    with pytest.raises(ContractError):
        await ctx.call("wrong", returns=Price)


async def test_a_payload_of_another_type_than_the_capabilitys_is_refused() -> None:
    with pytest.raises(ContractError, match="Expected `int`"):
        await made_by_hand().call(double, "two")  # type: ignore[arg-type]


def test_a_childs_id_comes_from_what_is_asked_and_how_often() -> None:
    first, second = made_by_hand(), made_by_hand()

    asked = [first._asked_for("double", number).identity.id for number in (1, 2, 1)]
    in_another_order = [second._asked_for("double", number).identity.id for number in (2, 1, 1)]

    assert len(set(asked)) == 3
    assert in_another_order == [asked[1], asked[0], asked[2]]


def test_a_name_fixes_a_childs_id_and_is_used_once() -> None:
    ctx = made_by_hand()

    assert ctx._asked_for("double", 1, name="first").identity.id == "p-1.~first"
    with pytest.raises(DuplicateStep, match="child 'first' of parent/p-1 is used twice"):
        ctx._asked_for("double", 2, name="first")


def test_a_sent_task_and_a_called_one_of_the_same_kind_do_not_share_an_id() -> None:
    ctx = made_by_hand()

    sent = ctx.send("double", 1)

    assert ctx._asked_for("double", 1).identity.id != sent


def test_a_child_inherits_the_earlier_deadline_and_one_hop_less() -> None:
    ctx = made_by_hand(task=Task(deadline=100.0, budget=Budget(hops=1, usd=2.0)))

    child = ctx._asked_for("double", 1, deadline_s=3_600).send.task

    assert child.deadline == 100.0
    assert child.budget == Budget(hops=0, usd=2.0)
    assert child.lineage == ("parent",)
    assert child.is_awaited


async def test_a_task_without_hops_left_asks_for_no_children() -> None:
    with pytest.raises(Permanent, match="budget of hops is used up at parent/p-1"):
        await made_by_hand(task=Task(budget=Budget(hops=0))).call(double, 1)


async def test_gather_waits_for_all_and_raises_the_first_failure_in_their_order() -> None:
    ended: list[str] = []

    async def fails(name: str, pauses: int) -> None:
        for _ in range(pauses):
            await asyncio.sleep(0)
        ended.append(name)
        raise Transient(name)

    with pytest.raises(Transient, match="slow"):
        await made_by_hand().gather(fails("slow", 3), fails("quick", 0))

    assert ended == ["quick", "slow"]


# Maps.


async def test_a_map_gives_values_in_the_payloads_order() -> None:
    assert await made_by_hand().map(double, range(5)) == [0, 2, 4, 6, 8]


async def test_a_map_of_nothing_is_an_empty_list() -> None:
    assert await made_by_hand().map(double, []) == []


async def test_a_map_raises_the_first_failure_in_the_payloads_order() -> None:
    with pytest.raises(Transient, match="3 is odd"):
        await made_by_hand().map(refuse_odd, [2, 3, 5])


async def test_a_map_collects_failures_as_values() -> None:
    items = await made_by_hand().map(refuse_odd, [2, 3], failures="collect")

    assert [(item.index, item.is_done) for item in items] == [(0, True), (1, False)]
    with pytest.raises(Transient):
        items[1].unwrap()


async def test_a_quorum_is_enough_values_and_no_fewer() -> None:
    enough = await made_by_hand().map(refuse_odd, [1, 2, 4, 6], failures="quorum", quorum=2)

    assert [(item.index, item.value) for item in enough] == [(1, 2), (2, 4)]
    with pytest.raises(Transient):
        await made_by_hand().map(refuse_odd, [1, 2, 3], failures="quorum", quorum=2)


async def test_a_quorum_that_cannot_be_reached_is_not_waited_for() -> None:
    asked: list[int] = []

    def refuse(number: int) -> int:
        asked.append(number)
        raise Transient(f"refused {number}")

    with pytest.raises(Transient, match="refused 1"):
        await made_by_hand({"refuse": refuse}).map("refuse", [1, 2, 3, 4], failures="quorum", quorum=3)

    assert asked == [1, 2]


async def test_an_iterated_map_gives_each_item_with_its_index() -> None:
    assert [(item.index, item.value) async for item in made_by_hand().map(double, [4, 5])] == [(0, 8), (1, 10)]


@pytest.mark.parametrize(
    "arguments", [{"in_flight": 0}, {"failures": "quorum"}, {"failures": "quorum", "quorum": 3}], ids=str
)
def test_a_map_refuses_bounds_that_cannot_hold(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        made_by_hand().map(double, [1, 2], **arguments)


# Steps.


async def test_a_step_runs_plain_and_async_functions_and_gives_their_values_typed() -> None:
    def plain(cents: int) -> Price:
        return Price(cents)

    async def fetched() -> list[Price]:
        return [Price(2)]

    ctx = made_by_hand()

    assert await ctx.step("plain", plain, 1) == Price(1)
    assert await ctx.step("async", fetched) == [Price(2)]
    assert await ctx.step("untyped", lambda: {"cents": 3}) == {"cents": 3}
    assert await ctx.step("as", lambda: {"cents": 4}, returns=Price) == Price(4)


async def test_a_step_gives_its_function_an_idempotency_key_of_its_own() -> None:
    async def charge(cents: int, *, idempotency_key: str) -> str:
        assert ctx.idempotency_key == idempotency_key
        return f"{cents} under {idempotency_key}"

    ctx = made_by_hand()

    assert await ctx.step("charge", charge, 5) == "5 under parent/p-1/charge"
    assert ctx.idempotency_key == "parent/p-1"


async def test_what_a_step_reports_as_spent_counts_for_the_task() -> None:
    ctx = made_by_hand()
    ctx.spent(tokens_in=1)

    await ctx.step("ask-a-model", lambda: ctx.spent(tokens_in=10, usd=0.5))

    assert ctx.spent_total is not None
    assert (ctx.spent_total.tokens_in, ctx.spent_total.usd) == (11, 0.5)


async def test_a_steps_name_is_used_once() -> None:
    ctx = made_by_hand()
    await ctx.step("charge", lambda: None)

    with pytest.raises(DuplicateStep, match="step 'charge' of parent/p-1 is used twice in one run"):
        await ctx.step("charge", lambda: None)


@pytest.mark.parametrize("name", ["", "~mine", "a.b", "a b", "*", "x" * 129])
async def test_an_illegal_step_name_is_refused(name: str) -> None:
    with pytest.raises(ContractError, match="step name"):
        await made_by_hand().step(name, lambda: None)


async def test_a_steps_value_must_be_able_to_travel() -> None:
    with pytest.raises(ContractError, match="object cannot travel"):
        await made_by_hand().step("object", object)


async def test_what_a_step_raises_reaches_the_handler() -> None:
    def fails(error: Exception) -> None:
        raise error

    ctx = made_by_hand()

    with pytest.raises(Permanent, match="for good"):
        await ctx.step("for-good", fails, Permanent("for good"))
    with pytest.raises(ValueError, match="for now"):
        await ctx.step("for-now", fails, ValueError("for now"))


@pytest.mark.parametrize(
    "verb",
    [
        lambda ctx: ctx.call(double, 1),
        lambda ctx: ctx.map(double, [1]),
        lambda ctx: ctx.step("inner", lambda: None),
        lambda ctx: ctx.sleep(1),
        lambda ctx: ctx.until(0),
        lambda ctx: ctx.signal("paid"),
        lambda ctx: ctx.approve("this"),
        lambda ctx: ctx.version("newer"),
        lambda ctx: ctx.compensate(lambda: None),
    ],
    ids=["call", "map", "step", "sleep", "until", "signal", "approve", "version", "compensate"],
)
async def test_no_verb_stands_inside_a_step(verb: Callable[[Context], Any]) -> None:
    ctx = made_by_hand({"paid": True, "human": Answer(verdict=Verdict.APPROVED)})

    async def inside() -> None:
        await verb(ctx)

    with pytest.raises(ContractError, match="a durable verb inside the step parent/p-1/outer"):
        await ctx.step("outer", inside)


async def test_a_new_task_follows_the_newest_version() -> None:
    ctx = made_by_hand()

    assert await ctx.version("check-fraud") == 1
    assert await ctx.version("ship-twice", newest=3) == 3
    with pytest.raises(DuplicateStep):
        await ctx.version("check-fraud")


async def test_compensations_are_kept_in_order_and_can_be_run_by_hand() -> None:
    undone: list[str] = []
    ctx = made_by_hand()
    await ctx.compensate(undone.append, "flight")
    await ctx.compensate(undone.append, "hotel")

    for compensation in reversed(ctx.compensations):
        await compensation.undo()

    assert undone == ["hotel", "flight"]
    assert len({compensation.name for compensation in ctx.compensations}) == 2


# Waiting.


async def test_sleeps_pass_at_once() -> None:
    ctx = made_by_hand()

    await ctx.sleep(86_400)
    await ctx.sleep(86_400)
    await ctx.sleep(1, name="once")
    await ctx.until(4e9)

    with pytest.raises(DuplicateStep):
        await ctx.sleep(2, name="once")


@pytest.mark.parametrize("seconds", [-1, float("nan")])
async def test_a_sleep_is_not_negative(seconds: float) -> None:
    with pytest.raises(ContractError, match="it must be 0 or more"):
        await made_by_hand().sleep(seconds)


async def test_a_signal_is_answered_with_its_type_or_never_comes() -> None:
    ctx = made_by_hand({"paid": {"cents": 5}})

    assert await ctx.signal("paid", returns=Price) == Price(5)
    with pytest.raises(DeadlineExceeded):
        await ctx.signal("shipped", within_s=5)


# People.


async def test_an_approved_proposal_is_the_value_to_go_on_with() -> None:
    ctx = made_by_hand({"human": Answer(verdict=Verdict.APPROVED, by="ada")})

    decision = await ctx.approve(Price(5))

    assert (decision.value, decision.by, decision.is_approved) == (Price(5), "ada", True)


async def test_an_edit_is_of_the_proposals_type() -> None:
    decision = await made_by_hand({"human": Answer(verdict=Verdict.EDITED, value={"cents": 3})}).approve(Price(5))

    assert decision.value == Price(3)
    assert decision.verdict is Verdict.EDITED


async def test_an_edit_of_another_type_is_put_to_people_again_with_the_reason() -> None:
    seen: list[Proposal] = []

    def person(proposal: Proposal) -> Answer:
        seen.append(proposal)
        value = {"cents": "three"} if len(seen) == 1 else {"cents": 3}
        return Answer(verdict=Verdict.EDITED, value=value, by="ada")

    decision = await made_by_hand({"human": person}).approve(Price(5), reason="too much?")

    assert decision.value == Price(3)
    assert seen[0].reason == "too much?"
    assert seen[1].reason.startswith("too much?\nwhat ada edited does not fit: Expected `int`")


async def test_a_rejected_proposal_has_no_value() -> None:
    decision = await made_by_hand({"human": Answer(verdict=Verdict.REJECTED, by="ada", note="no")}).approve("this")

    assert not decision.is_approved
    with pytest.raises(Rejected, match="rejected by ada: no"):
        _ = decision.value


async def test_a_sample_shows_its_share_and_always_the_same_proposals() -> None:
    async def shown(proposals: range) -> list[int]:
        asked: list[int] = []

        def person(proposal: Proposal) -> Answer:
            asked.append(proposal.proposal)
            return Answer(verdict=Verdict.APPROVED)

        ctx = made_by_hand({"human": person})
        for proposal in proposals:
            assert (await ctx.approve(proposal, sample=0.25)).value == proposal
        return asked

    first, again = await shown(range(400)), await shown(range(400))

    assert first == again
    assert 50 < len(first) < 150


@pytest.mark.parametrize(
    "arguments", [{"sample": 1.1}, {"confidence": -0.1}, {"within_s": 0}, {"at_deadline": "later"}], ids=str
)
async def test_an_approval_refuses_what_it_cannot_keep(arguments: dict[str, Any]) -> None:
    with pytest.raises((ContractError, ValueError)):
        await made_by_hand({"human": Answer(verdict=Verdict.APPROVED)}).approve("this", **arguments)
