"""`mesh inbox`: what waits for people is listed, shown and answered, once whoever answers."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from contracts.subjects import Identity
from contracts.workflow import Answer, Verdict
from mesh import Agent, Context, Mesh, Permanent, TaskFailed
from mesh.bus.ledger import read_ledger
from mesh.errors import SignalRefused
from mesh.human import agent as people
from mesh.inbox import Question, give, read_inbox, sampled
from mesh.settings import Settings
from mesh.testing import eventually, hosting

agent = Agent("shop", version="1")


class Refund(msgspec.Struct):
    amount: float
    to: str


class Wish(msgspec.Struct):
    amount: float
    who: list[str] = []
    within_s: float | None = None
    at_deadline: str = "reject"


@agent.handles("refund")
async def refund(wish: Wish, ctx: Context) -> str:
    decision = await ctx.approve(
        Refund(wish.amount, ctx.id),
        reason=f"{wish.amount:g} is much",
        confidence=0.5,
        who=wish.who,
        within_s=wish.within_s,
        at_deadline=wish.at_deadline,
    )
    if not decision.is_approved:
        return f"no, says {decision.by}: {decision.note}"
    return f"{decision.value.amount:g}, says {decision.by}"


@pytest.fixture
async def shop(settings: Settings) -> AsyncIterator[None]:
    async with hosting(agent, people, settings=settings):
        yield


async def waiting(mesh: Mesh, count: int) -> list[Question]:
    """The inbox, once so many proposals wait parked."""

    async def parked() -> list[Question]:
        found = [question for question in await read_inbox(mesh.bus) if question.is_open and question.is_parked]
        return found if len(found) >= count else []

    return await eventually(parked)


async def test_what_waits_is_listed_oldest_first_with_all_that_one_decides_by(
    command_line: Any, shop: None, mesh: Mesh
) -> None:
    await mesh.submit(refund, Wish(20), key="r-1")
    await waiting(mesh, 1)
    await mesh.submit(refund, Wish(30, who=["ann", "bob"], within_s=600, at_deadline="approve"), key="r-2")
    await waiting(mesh, 2)

    as_json = await command_line("inbox", "ls", "--json")
    listed = await command_line("inbox", "ls")

    first, second = as_json.document["waiting"]
    assert (first["handle"], second["handle"]) == ("r-1", "r-2")
    assert first["asked_by"] == "refund/r-1"
    assert first["proposal"] == {"amount": 20.0, "to": "r-1"}
    assert (first["confidence"], first["deadline"], first["who"]) == (0.5, None, [])
    assert (second["at_deadline"], second["who"]) == ("approve", ["ann", "bob"])
    assert 500 < second["deadline"] - second["asked_at"] < 700
    assert as_json.document["total"] == 2
    heading, *rows = listed.out.splitlines()
    assert [row.split()[0] for row in rows] == ["r-1", "r-2"]
    assert "20 is much" in rows[0]
    assert rows[0].rstrip().endswith("never")
    assert "): approve" in rows[1]
    assert "ann, bob" in rows[1]
    assert heading.split()[0] == "proposal"


async def test_one_proposal_is_shown_with_what_it_is_about(command_line: Any, shop: None, mesh: Mesh) -> None:
    await mesh.submit(refund, Wish(20, within_s=600), key="r-1")
    await waiting(mesh, 1)

    shown = await command_line("inbox", "show", "r-1")
    as_json = await command_line("inbox", "show", "r-1", "--json")

    for part in ("refund/r-1", "20 is much", '"amount": 20.0', '"within_s": 600', ": reject"):
        assert part in shown.out
    assert as_json.document["subject"]["amount"] == 20.0


async def test_approving_rejecting_and_editing_decide_what_the_task_goes_on_with(
    command_line: Any, shop: None, mesh: Mesh
) -> None:
    handles = {key: await mesh.submit(refund, Wish(20), key=key) for key in ("r-1", "r-2", "r-3")}
    questions = await waiting(mesh, 3)
    ids = {question.proposal.asked_by: question.task.id for question in questions}

    approved = await command_line("inbox", "answer", "r-1", "--by", "ann", "--json")
    rejected = await command_line("inbox", "reject", ids["refund/r-2"], "--by", "bob", "--note", "too much")
    edited = await command_line(
        "inbox", "edit", ids["refund/r-3"].rpartition("-")[0], "-", "--by", "cid", stdin='{"amount": 5, "to": "x"}'
    )

    assert (approved.document["verdict"], approved.document["by"]) == ("approved", "ann")
    assert (rejected.code, rejected.out) == (0, f"{ids['refund/r-2']} is rejected; refund/r-2 goes on with it\n")
    assert edited.code == 0
    values = {key: await handle.result(within_s=20) for key, handle in handles.items()}
    assert values == {"r-1": "20, says ann", "r-2": "no, says bob: too much", "r-3": "5, says cid"}
    assert (await command_line("inbox", "ls", "--json")).document["waiting"] == []


async def test_an_edit_that_does_not_fit_is_asked_for_again(command_line: Any, shop: None, mesh: Mesh) -> None:
    handle = await mesh.submit(refund, Wish(20), key="r-1")
    await waiting(mesh, 1)

    await command_line("inbox", "edit", "r-1", '"nonsense"', "--by", "ann")

    async def asked_again() -> Question | None:
        return next((one for one in await read_inbox(mesh.bus) if "does not fit" in one.proposal.reason), None)

    again = await eventually(asked_again)
    assert again is not None
    await command_line("inbox", "answer", again.task.id, "--by", "bob")
    assert await handle.result(within_s=20) == "20, says bob"


async def test_of_many_who_answer_at_once_one_wins_and_the_others_are_told_who(
    shop: None, mesh: Mesh, settings: Settings
) -> None:
    handle = await mesh.submit(refund, Wish(20), key="r-1")
    (question,) = await waiting(mesh, 1)
    names = [f"p{number}" for number in range(8)]

    async def one(name: str) -> str:
        async with Mesh.connect(settings=settings) as other:
            try:
                await give(other, question, Verdict.APPROVED, by=name)
            except SignalRefused as refused:
                return str(refused)
            return ""

    told = await asyncio.gather(*(one(name) for name in names))

    winners = [name for name, refusal in zip(names, told, strict=True) if not refusal]
    assert len(winners) == 1
    assert all(f"approved by {winners[0]} before" in refusal for refusal in told if refusal)
    assert await handle.result(within_s=20) == f"20, says {winners[0]}"


async def test_whoever_comes_too_late_is_told_who_answered(command_line: Any, shop: None, mesh: Mesh) -> None:
    handle = await mesh.submit(refund, Wish(20), key="r-1")
    (question,) = await waiting(mesh, 1)
    await command_line("inbox", "reject", "r-1", "--by", "ann", "--note", "no")
    await handle.result(within_s=20)

    late = await command_line("inbox", "answer", "r-1", "--by", "bob")

    assert late.code == 5
    assert late.err == f"mesh: {question.task.id} was rejected by ann before (no)\n"


async def test_a_proposal_for_others_is_not_answered(command_line: Any, shop: None, mesh: Mesh) -> None:
    handle = await mesh.submit(refund, Wish(20, who=["ann"]), key="r-1")
    await waiting(mesh, 1)

    refused = await command_line("inbox", "answer", "r-1", "--by", "bob")
    answered = await command_line("inbox", "answer", "r-1", "--by", "ann")

    assert refused.code == 5
    assert "is for ann to answer, not for bob" in refused.err
    assert answered.code == 0
    assert await handle.result(within_s=20) == "20, says ann"


async def test_a_deadline_decides_as_it_was_announced(command_line: Any, shop: None, mesh: Mesh) -> None:
    handle = await mesh.submit(refund, Wish(20, within_s=0.5, at_deadline="approve"), key="r-1")

    assert await handle.result(within_s=20) == "20, says "
    late = await command_line("inbox", "reject", "r-1")

    assert late.code == 5
    assert "answered by nobody in time" in late.err


async def test_names_that_stand_for_none_or_several_are_told(command_line: Any, shop: None, mesh: Mesh) -> None:
    for key in ("r-1", "r-2"):
        await mesh.submit(refund, Wish(20), key=key)
    await waiting(mesh, 2)

    several = await command_line("inbox", "answer", "r-")
    none = await command_line("inbox", "answer", "q-1")

    assert several.code == 2
    assert "several proposals: r-1, r-2" in several.err
    assert none.code == 1
    assert "mesh inbox ls" in none.err


async def test_without_a_peer_that_hosts_people_proposals_queue_and_answers_are_kept(
    command_line: Any, settings: Settings, mesh: Mesh
) -> None:
    async with hosting(agent, settings=settings):
        handle = await mesh.submit(refund, Wish(20, within_s=600), key="r-1")

        async def queued() -> list[Question]:
            return await read_inbox(mesh.bus)

        (question,) = await eventually(queued)
        listed = await command_line("inbox", "ls")
        answered = await command_line("inbox", "answer", "r-1", "--by", "ann")
        again = await command_line("inbox", "ls")
        second = await command_line("inbox", "answer", "r-1", "--by", "bob")
        async with hosting(people, settings=settings):
            assert await handle.result(within_s=20) == "20, says ann"

    assert not question.is_parked
    assert "no peer hosts `human`" in listed.err
    assert "10 min after a peer takes it up: reject" in listed.out
    assert "no peer hosts `human`" in answered.err
    assert "1 more are answered" in again.err
    assert again.out == ""
    assert second.code == 5
    assert "approved by ann before" in second.err


async def test_a_task_for_people_with_a_deadline_expires_then(command_line: Any, shop: None, mesh: Mesh) -> None:
    await mesh.submit("human", {"proposal": 1, "within_s": 600}, key="h-1", deadline_s=60)
    await waiting(mesh, 1)

    (listed,) = (await command_line("inbox", "ls", "--json")).document["waiting"]

    assert listed["at_deadline"] == "expire"
    assert listed["deadline"] - listed["asked_at"] == pytest.approx(60, abs=5)


async def test_something_else_than_a_proposal_does_not_hide_the_others(
    command_line: Any, settings: Settings, mesh: Mesh
) -> None:
    await mesh.submit("human", {"who": 7}, key="h-1")
    await mesh.submit("human", {"proposal": "fine"}, key="h-2")

    listed = (await command_line("inbox", "ls", "--json")).document["waiting"]

    assert [one["id"] for one in listed] == ["h-1", "h-2"]
    assert "this is no proposal" in listed[0]["reason"]


async def test_a_sample_is_drawn_from_what_waits_and_a_seed_draws_it_again(command_line: Any, mesh: Mesh) -> None:
    for number in range(12):
        await mesh.submit("human", {"proposal": number}, key=f"h-{number:02}")

    async def ids(*options: str) -> list[str]:
        document = (await command_line("inbox", "ls", "--json", *options)).document
        return [one["id"] for one in document["waiting"]]

    first, again = await ids("--sample", "4", "--seed", "7"), await ids("--sample", "4", "--seed", "7")
    questions = await read_inbox(mesh.bus)
    draws = {tuple(one.task.id for one in sampled(questions, 4, seed=seed)) for seed in range(20)}

    assert first == again == sorted(first)
    assert len(set(first)) == 4
    assert len(draws) > 10
    assert await ids("--limit", "3") == ["h-00", "h-01", "h-02"]


async def test_agents_that_would_flood_their_reviewers_wait_until_there_is_room(mesh: Mesh, settings: Settings) -> None:
    bounded = settings.model_copy(update={"inbox_max": 2})
    async with hosting(agent, people, settings=bounded):
        for number in range(6):
            await mesh.submit(refund, Wish(number), key=f"r-{number}")
        await waiting(mesh, 2)

        async def handed_back() -> bool:
            tasks = [Identity("refund", f"r-{number}") for number in range(6)]
            ledgers = [await read_ledger(mesh.bus, task, is_redelivered=False) for task in tasks]
            return sum(bool(end.how == "handed-back") for ledger in ledgers for _, end in ledger.ended) == 4

        await eventually(handed_back)

        assert len(await read_inbox(mesh.bus)) == 2


async def test_what_a_cancelled_task_asked_waits_for_nobody(command_line: Any, settings: Settings, mesh: Mesh) -> None:
    async with hosting(agent, settings=settings):
        async with hosting(people, settings=settings):
            handle = await mesh.submit(refund, Wish(20), key="r-1")
            (question,) = await waiting(mesh, 1)
        # Nobody is left to answer it `cancelled`.
        await handle.cancel()

        listed = await command_line("inbox", "ls")
        answered = await command_line("inbox", "answer", question.task.id)

    assert listed.out == ""
    assert "1 more are asked by tasks that were cancelled or are over" in listed.err
    assert answered.code == 5
    assert "asks nobody any more: refund/r-1 is cancelled" in answered.err


async def test_what_a_failed_task_asked_waits_for_nobody(command_line: Any, settings: Settings, mesh: Mesh) -> None:
    hasty = Agent("hasty")

    @hasty.handles("hasty")
    async def ask_and_fail(ctx: Context) -> None:
        async with asyncio.TaskGroup() as branches:
            branches.create_task(ctx.approve("now"))
            await ctx.step("asked", asked)
            await ctx.signal("enough")
            raise Permanent("no patience")

    async def asked() -> int:
        return len(await eventually(lambda: read_inbox(mesh.bus)))

    async with hosting(hasty, people, settings=settings):
        handle = await mesh.submit("hasty", key="x-1")
        await waiting(mesh, 1)
        await mesh.signal("hasty", "x-1", "enough")
        with pytest.raises(TaskFailed, match="no patience"):
            await handle.result(within_s=20)

    listed = (await command_line("inbox", "ls", "--json")).document

    assert (listed["total"], listed["moot"]) == (0, 1)


async def test_what_a_person_answers_is_the_value_of_the_task(command_line: Any, shop: None, mesh: Mesh) -> None:
    handle = await mesh.submit("human", {"proposal": [1, 2]}, key="h-1", returns=Answer)
    await waiting(mesh, 1)

    await command_line("inbox", "edit", "h-1", "[3]", "--by", "ann", "--note", "better")

    answer = await handle.result(within_s=20)
    assert (answer.verdict, answer.value, answer.by, answer.note) == (Verdict.EDITED, [3], "ann", "better")
