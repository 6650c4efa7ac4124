"""Handlers that end with another one's answer: handoffs, ladders, verifiers, people."""

import msgspec
import pytest

from contracts.outcome import FailureKind
from contracts.workflow import Answer, Check, Claim, Proposal, Verdict
from mesh import Agent, Context, Escalate, Handoff, Ladder, Mesh, TaskCancelled, TaskFailed, Verifiers
from mesh.bus.records import read_range
from mesh.errors import NobodyAnswered, SignalRefused
from mesh.human import agent as people
from mesh.settings import Settings
from mesh.testing import eventually, hosting
from mesh.workflow.inbox import unanswered


class Ticket(msgspec.Struct):
    text: str


class Resolution(msgspec.Struct):
    label: str


async def waiting(mesh: Mesh) -> str:
    """The id of the one proposal that waits, once it is parked."""

    async def parked() -> str:
        found = [
            task async for task in read_range(mesh.bus, mesh.bus.subjects.stream, mesh.bus.subjects.parks_of("human"))
        ]
        open_ones = {task.id for task in await unanswered(mesh.bus)}
        ids = [mesh.bus.subjects.parse(stored.subject).id for stored in found]
        return next((one for one in ids if one in open_ones), "")

    return await eventually(parked)


async def test_a_handoff_is_answered_by_the_other_without_running_its_handler_again(
    mesh: Mesh, settings: Settings
) -> None:
    agent = Agent("desk")
    runs: list[str] = []

    @agent.handles("specialist")
    async def specialist(ticket: Ticket, ctx: Context) -> Resolution:
        runs.append("specialist")
        ctx.explain(confidence=0.9, reason="read twice", model="big")
        return Resolution(f"{ticket.text} for {ctx.carry['customer']}")

    @agent.handles("triage")
    async def triage(ticket: Ticket, ctx: Context) -> Resolution | Handoff:
        runs.append("triage")
        return Handoff(specialist, ticket, carry={"customer": "ann"}, reason="hard")

    async with hosting(agent, settings=settings.model_copy(update={"hot_wait_s": 0.0})):
        handle = await mesh.submit(triage, Ticket("lost card"))
        assert await handle.result(within_s=20) == Resolution("lost card for ann")

    outcome = await handle.outcome()
    assert runs == ["triage", "specialist"]
    assert (outcome.confidence, outcome.reason) == (0.9, "read twice")
    assert outcome.decided_by is not None
    assert outcome.decided_by.model == "big"


async def test_agents_that_hand_a_task_in_a_circle_are_stopped(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("desk")

    @agent.handles("left")
    async def left(ticket: Ticket) -> Resolution | Handoff:
        return Handoff("right", ticket)

    @agent.handles("right")
    async def right(ticket: Ticket) -> Resolution | Handoff:
        return Handoff("left", ticket)

    async with hosting(agent, settings=settings):
        handle = await mesh.submit(left, Ticket("whose is it"))
        with pytest.raises(TaskFailed, match="handed in a circle: left -> right -> left") as told:
            await handle.result(within_s=20)

    assert told.value.failure.kind is FailureKind.LOOP


async def test_a_chain_of_handoffs_that_never_ends_is_cut(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("desk")

    @agent.handles("next")
    async def following(number: int) -> int | Handoff:
        return Handoff("next", number + 1)

    async with hosting(agent, settings=settings):
        handle = await mesh.submit(following, 0)
        with pytest.raises(TaskFailed, match="handed over 9 times, 8 are allowed"):
            await handle.result(within_s=20)


async def test_an_answer_below_its_threshold_climbs_to_the_last_rung_and_a_person_edits_it(
    mesh: Mesh, settings: Settings
) -> None:
    agent = Agent("desk")
    seen: list[Ticket] = []

    @agent.handles("specialist", ladder=Ladder(0.8))
    async def specialist(ticket: Ticket, ctx: Context) -> Resolution:
        seen.append(ticket)
        ctx.explain(confidence=0.7, reason="could be two things")
        return Resolution("card-lost")

    @agent.handles("triage", ladder=Ladder(0.9, "specialist"))
    async def triage(ticket: Ticket, ctx: Context) -> Resolution:
        ctx.explain(confidence=0.4, reason="short text")
        return Resolution("other")

    async with hosting(agent, people, settings=settings):
        handle = await mesh.submit(triage, Ticket("my card"), key="t-1")
        asked = await waiting(mesh)
        answer = Answer(verdict=Verdict.EDITED, value={"label": "card-stolen"}, by="ann", note="called them")
        await mesh.signal("human", asked, "answer", answer, by="ann")

        assert await handle.result(within_s=20) == Resolution("card-stolen")
    outcome = await handle.outcome()
    assert seen == [Ticket("my card")]
    assert outcome.decided_by is not None
    assert (outcome.decided_by.agent, outcome.reason) == ("human:ann", "called them")


async def test_an_answer_above_its_threshold_is_given(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("desk")

    @agent.handles("triage", ladder=Ladder(0.9))
    async def triage(ticket: Ticket, ctx: Context) -> Resolution:
        ctx.explain(confidence=0.95)
        return Resolution("card-lost")

    async with hosting(agent, settings=settings):
        handle = await mesh.submit(triage, Ticket("my card"))
        assert await handle.result(within_s=20) == Resolution("card-lost")


async def test_a_handler_escalates_by_itself_and_a_rejection_fails_the_task(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("desk")

    @agent.handles("triage", ladder=Ladder(0.9))
    async def triage(ticket: Ticket) -> Resolution | Escalate:
        return Escalate("never seen this", 0.1)

    async with hosting(agent, people, settings=settings):
        handle = await mesh.submit(triage, Ticket("?"))
        asked = await waiting(mesh)
        (task,) = await unanswered(mesh.bus)
        stored = [one async for one in read_range(mesh.bus, mesh.bus.subjects.stream, mesh.bus.subjects.park(task))]
        proposal = msgspec.json.decode(stored[0].data, type=Proposal)
        await mesh.signal("human", asked, "answer", Answer(verdict=Verdict.REJECTED, note="spam"), by="ann")
        with pytest.raises(TaskFailed, match="spam") as told:
            await handle.result(within_s=20)

    assert told.value.failure.kind is FailureKind.REJECTED
    assert (proposal.proposal, proposal.reason, proposal.confidence, proposal.subject) == (
        None,
        "never seen this",
        0.1,
        {"text": "?"},
    )


async def test_escalating_without_a_ladder_fails_in_plain_words(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("desk")

    @agent.handles("triage")
    async def triage(ticket: Ticket) -> Resolution | Escalate:
        return Escalate("no idea")

    async with hosting(agent, settings=settings):
        handle = await mesh.submit(triage, Ticket("?"))
        with pytest.raises(TaskFailed, match="escalates, and triage has no ladder: no idea"):
            await handle.result(within_s=20)


@pytest.mark.parametrize(("yes", "stands"), [(2, True), (1, False)])
async def test_an_answer_stands_only_if_enough_verifiers_agree(
    mesh: Mesh, settings: Settings, yes: int, stands: bool
) -> None:
    agent = Agent("desk")
    claims: list[Claim] = []

    @agent.handles("check")
    async def check(claim: Claim) -> Check:
        claims.append(claim)
        return Check(agrees=len(claims) <= yes, reason="does not add up")

    @agent.handles("add", verified_by=Verifiers("check", agree=2, of=3))
    async def add(numbers: list[int]) -> int:
        return sum(numbers)

    async with hosting(agent, settings=settings):
        handle = await mesh.submit(add, [1, 2])
        if stands:
            assert await handle.result(within_s=20) == 3
        else:
            with pytest.raises(TaskFailed, match="1 of 3 verifiers agree, 2 must: does not add up"):
                await handle.result(within_s=20)

    assert [(claim.capability, claim.payload, claim.value) for claim in claims] == [("add", [1, 2], 3)] * 3


async def test_of_two_people_who_answer_one_wins_and_the_other_is_told(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("desk")

    @agent.handles("refund")
    async def refund(euros: int, ctx: Context) -> str:
        decision = await ctx.approve({"euros": euros}, reason="large", confidence=0.6)
        return f"{decision.verdict} by {decision.by}: {decision.value['euros']}"

    async with hosting(agent, people, settings=settings):
        handle = await mesh.submit(refund, 900)
        asked = await waiting(mesh)
        await mesh.signal("human", asked, "answer", Answer(verdict=Verdict.APPROVED, by="ann"), by="ann")
        with pytest.raises(SignalRefused, match=r"ann|is over"):
            await mesh.signal("human", asked, "answer", Answer(verdict=Verdict.REJECTED, by="bob"), by="bob")

        assert await handle.result(within_s=20) == "approved by ann: 900"


async def test_an_edit_of_another_type_is_put_to_people_again(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("desk")

    @agent.handles("refund")
    async def refund(ctx: Context) -> Resolution:
        return (await ctx.approve(Resolution("refund"))).value

    async with hosting(agent, people, settings=settings):
        handle = await mesh.submit(refund)
        first = await waiting(mesh)
        await mesh.signal("human", first, "answer", Answer(verdict=Verdict.EDITED, value={"label": 7}, by="ann"))
        await eventually(lambda: _another(mesh, first))
        second = await waiting(mesh)
        await mesh.signal("human", second, "answer", Answer(verdict=Verdict.EDITED, value={"label": "seven"}))

        assert await handle.result(within_s=20) == Resolution("seven")
    assert second != first


async def _another(mesh: Mesh, first: str) -> bool:
    return any(task.id != first for task in await unanswered(mesh.bus))


@pytest.mark.parametrize(
    ("at_deadline", "expected"), [("approve", "approved"), ("reject", "rejected"), ("fail", "late")]
)
async def test_the_deadline_of_a_proposal_decides_as_it_was_told_to(
    mesh: Mesh, settings: Settings, at_deadline: str, expected: str
) -> None:
    agent = Agent("desk")

    @agent.handles("refund")
    async def refund(ctx: Context) -> str:
        try:
            return (await ctx.approve("pay", within_s=0.5, at_deadline=at_deadline)).verdict
        except NobodyAnswered:
            return "late"

    async with hosting(agent, people, settings=settings):
        handle = await mesh.submit(refund)
        assert await handle.result(within_s=20) == expected


async def test_a_full_inbox_puts_agents_off_and_loses_nothing(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("desk")
    tried: list[int] = []

    @agent.handles("refund")
    async def refund(euros: int, ctx: Context) -> int:
        tried.append(euros)
        return (await ctx.approve(euros)).value

    async with hosting(agent, people, settings=settings.model_copy(update={"inbox_max": 1})) as peer:
        first = await mesh.submit(refund, 1)
        asked = await waiting(mesh)
        second = await mesh.submit(refund, 2)
        await eventually(lambda: 2 in tried)
        label = {"capability": "refund", "reason": "overloaded"}
        await eventually(lambda: peer.metrics.registry.get_sample_value("mesh_handed_back_total", label))
        await mesh.signal("human", asked, "answer", Answer(verdict=Verdict.APPROVED), by="ann")
        assert await first.result(within_s=20) == 1
        assert len(await unanswered(mesh.bus)) == 0
        assert not (await second.status()).outcome


async def test_a_signal_for_no_task_is_refused(mesh: Mesh, settings: Settings) -> None:
    with pytest.raises(SignalRefused, match="no task order/nope is kept"):
        await mesh.signal("order", "nope", "paid")


async def test_the_inbox_holds_its_bound_against_proposals_made_at_once(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("desk")

    @agent.handles("refund")
    async def refund(euros: int, ctx: Context) -> int:
        return (await ctx.approve(euros)).value

    async with hosting(agent, people, settings=settings.model_copy(update={"inbox_max": 2})) as peer:
        for euros in range(6):
            await mesh.submit(refund, euros)
        label = {"capability": "refund", "reason": "overloaded"}
        await eventually(lambda: peer.metrics.registry.get_sample_value("mesh_handed_back_total", label) == 4)
        assert len(await unanswered(mesh.bus)) == 2


async def test_what_waits_for_people_below_a_cancelled_task_is_cancelled_too(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("desk")

    @agent.handles("refund")
    async def refund(euros: int, ctx: Context) -> int:
        return (await ctx.approve(euros)).value

    async with hosting(agent, people, settings=settings):
        handle = await mesh.submit(refund, 900, key="r-1")
        await waiting(mesh)
        await handle.cancel()
        with pytest.raises(TaskCancelled):
            await handle.result(within_s=20)
        await eventually(lambda: _nothing_waits(mesh))


async def _nothing_waits(mesh: Mesh) -> bool:
    return not await unanswered(mesh.bus)
