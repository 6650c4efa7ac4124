"""`mesh inbox`: what waits for people, and their answers."""

import asyncio
import time
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from mesh.cli import console
from mesh.cli.console import AsJson, ahead, clock, length, one_line, short_json

if TYPE_CHECKING:
    from contracts.workflow import Verdict
    from mesh.inbox import Question

SHOWN = 50
ANSWER_WITHIN_S = 30.0
UNHOSTED = "no peer hosts `human`: answers are kept until one does (`mesh up my_agents.py mesh.human`)"

inbox = typer.Typer(
    name="inbox",
    help="What waits for people: list it, and approve, edit or reject it.",
    no_args_is_help=True,
)

Which = Annotated[
    str, typer.Argument(metavar="PROPOSAL", help="Its id, the start of it, or the short name that `ls` shows.")
]
Note = Annotated[str, typer.Option(help="What you say to it; it stands in the record.")]
By = Annotated[str | None, typer.Option(help="Who answers; you, if not given.")]


@inbox.command("ls")
def ls(
    sample: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only N of them, chosen at random.")] = None,
    seed: Annotated[int | None, typer.Option(help="With --sample: choose the same ones again.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many to list at most, the oldest.")] = SHOWN,
    as_json: AsJson = False,
) -> None:
    """List what waits for people, oldest first."""

    async def main() -> "tuple[list[Question], bool]":
        from mesh.endings import HUMAN
        from mesh.inbox import read_inbox
        from mesh.whereabouts import is_served

        async with console.connected() as bus:
            await console.check_made(bus)
            questions = await read_inbox(bus)
            return questions, not questions or await is_served(bus, HUMAN)

    questions, is_hosted = console.run(main())
    from mesh.inbox import handles, sampled

    waiting = [question for question in questions if question.is_open]
    answered = sum(question.answered_by is not None and not question.moot for question in questions)
    moot = sum(bool(question.moot) for question in questions)
    short = handles([question.task.id for question in questions])
    shown = (waiting if sample is None else sampled(waiting, sample, seed=seed))[:limit]
    if as_json:
        found = [_document(question, short[question.task.id]) for question in shown]
        more = {"total": len(waiting), "answered": answered, "moot": moot, "is_hosted": is_hosted}
        console.print_json({"waiting": found, **more})
        return
    if shown:
        _print(shown, short)
    else:
        console.note("nothing waits for people")
    if len(shown) < len(waiting):
        console.note(f"{len(waiting) - len(shown):,} of {len(waiting):,} are not shown")
    if answered:
        console.note(f"{answered:,} more are answered, and wait for a peer to go on with the answer")
    if moot:
        console.note(f"{moot:,} more are asked by tasks that were cancelled or are over: they go by themselves")
    if not is_hosted:
        console.note(UNHOSTED)


@inbox.command("show")
def show(which: Which, as_json: AsJson = False) -> None:
    """Show one proposal: all of it, and what it is about."""

    async def main() -> "Question":
        async with console.connected() as bus:
            await console.check_made(bus)
            return await _find(bus, which)

    question = console.run(main())
    if as_json:
        console.print_json(_document(question, question.task.id))
    else:
        _print_one(question)


@inbox.command("answer")
def answer(which: Which, note: Note = "", by: By = None, as_json: AsJson = False) -> None:
    """Approve a proposal as it is."""
    _give("approved", which, by=by, note=note, as_json=as_json)


@inbox.command("reject")
def reject(which: Which, note: Note = "", by: By = None, as_json: AsJson = False) -> None:
    """Reject a proposal."""
    _give("rejected", which, by=by, note=note, as_json=as_json)


@inbox.command("edit")
def edit(
    which: Which,
    value: Annotated[str, typer.Argument(metavar="VALUE", help="JSON, or `-` to read it from standard input.")],
    note: Note = "",
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Approve a proposal with another value in its place; one that does not fit is asked for again."""
    _give("edited", which, by=by, note=note, value=console.json_argument(value, "the value"), as_json=as_json)


def _give(verdict_name: str, which: str, *, by: str | None, note: str, as_json: bool, value: Any = None) -> None:
    from contracts.workflow import Verdict

    verdict = Verdict(verdict_name)
    who = by or console.whoami()
    question, is_hosted = console.run(_answer(which, verdict, by=who, note=note, value=value))
    if as_json:
        told = {"id": question.task.id, "verdict": str(verdict), "by": who, "note": note, "is_hosted": is_hosted}
        console.print_json(told)
        return
    print(f"{question.task.id} is {verdict}; {question.proposal.asked_by or 'whoever asked'} goes on with it")
    if not is_hosted:
        console.note(UNHOSTED)


async def _answer(which: str, verdict: "Verdict", *, by: str, note: str, value: Any) -> "tuple[Question, bool]":
    from mesh.endings import HUMAN
    from mesh.errors import PublishUnconfirmed
    from mesh.inbox import give
    from mesh.whereabouts import is_served

    async with console.client() as mesh:
        await console.check_made(mesh.bus)
        question = await _find(mesh.bus, which)
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                await give(mesh, question, verdict, by=by, note=note, value=value)
        except TimeoutError:
            told = f"no answer of the server within {ANSWER_WITHIN_S:g} s: {question.task.id} may be {verdict}"
            raise PublishUnconfirmed(f"{told}; `mesh inbox show` tells") from None
        return question, await is_served(mesh.bus, HUMAN)


async def _find(bus: Any, which: str) -> "Question":
    from mesh.inbox import find_question

    question = await find_question(bus, which)
    if question is None:
        raise console.Failed(f"no proposal {which!r} waits; `mesh inbox ls` lists them")
    return question


def _print(questions: "list[Question]", short: dict[str, str]) -> None:
    from rich.table import Table

    now = time.time()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("proposal", "waits", "asked by", "reason", "sure", "proposed", "decides itself", "who"):
        table.add_column(heading, overflow="fold")
    for question in questions:
        proposal = question.proposal
        table.add_row(
            short[question.task.id],
            length(now - question.asked_at),
            one_line(proposal.asked_by),
            one_line(proposal.reason),
            "" if proposal.confidence is None else f"{proposal.confidence:.2g}",
            short_json(proposal.proposal, 60),
            limit_words(question, now),
            ", ".join(proposal.who),
        )
    console.out().print(table)


def _print_one(question: "Question") -> None:
    now, proposal = time.time(), question.proposal
    print(question.task.id)
    told = {
        "asked by": one_line(proposal.asked_by),
        "waits": f"since {clock(question.asked_at)} ({length(now - question.asked_at)})",
        "state": "" if question.is_parked else "queued: no peer that hosts `human` has taken it up yet",
        "answered": "" if question.is_open else f"by {question.answered_by}, and not taken up yet",
        "moot": question.moot,
        "reason": proposal.reason.strip(),
        "confidence": "" if proposal.confidence is None else f"{proposal.confidence:g}",
        "decides": limit_words(question, now),
        "for": ", ".join(proposal.who),
    }
    for name, text in told.items():
        if text:
            print(f"  {name:<11} " + text.replace("\n", f"\n{' ' * 14}"))
    print("  proposal")
    console.print_value(proposal.proposal)
    if proposal.subject is not None:
        print("  about")
        console.print_value(proposal.subject)


def limit_words(question: "Question", now: float) -> str:
    """When a proposal is decided without a person, and how: `10:04:05 (in 3 min): reject`."""
    if question.due is not None:
        return f"{ahead(question.due, now)}: {question.then}"
    within_s = question.proposal.within_s
    return "never" if within_s is None else f"{length(within_s)} after a peer takes it up: {question.then}"


def _document(question: "Question", handle: str) -> dict[str, Any]:
    proposal: dict[str, Any] = msgspec.to_builtins(question.proposal)
    return {
        "id": question.task.id,
        "handle": handle,
        "asked_at": question.asked_at,
        "is_parked": question.is_parked,
        "answered_by": question.answered_by,
        "moot": question.moot,
        "deadline": question.due,
        "at_deadline": question.then,
        "asked_by": proposal.get("asked_by", ""),
        "reason": proposal.get("reason", ""),
        "confidence": proposal.get("confidence"),
        "who": list(question.proposal.who),
        "within_s": proposal.get("within_s"),
        "proposal": proposal.get("proposal"),
        "subject": proposal.get("subject"),
    }
