"""Somebody who answers a few of the tickets that wait for people, as the demo plays it."""

import asyncio
from collections.abc import Iterable
from typing import Final

from agents.support_desk.payloads import Label
from agents.support_desk.sending import Journey
from contracts.subjects import root_of
from contracts.workflow import Verdict
from mesh import DeadlineExceeded, Mesh
from mesh.inbox import Question, give, read_inbox

NAME: Final = "ann"
SETTLED_WITHIN_S: Final = 20.0

_NOTES: Final = {
    Verdict.APPROVED: "as proposed",
    Verdict.EDITED: "it is about something else",
    Verdict.REJECTED: "not for this desk",
}


async def answer_some(mesh: Mesh, journeys: Iterable[Journey]) -> dict[Verdict, Journey]:
    """Approve a proposal that is right, correct one that is wrong, reject one more, and wait for what follows.

    A verdict for which no ticket waits is left out.

    Raises:
        DeadlineExceeded: an answered ticket is not resolved.
    """
    questions = {root_of(question.task.id): question for question in await read_inbox(mesh.bus) if question.is_open}
    chosen: dict[Verdict, Journey] = {}
    for journey in journeys:
        if (question := questions.get(journey.key)) is not None:
            first = Verdict.APPROVED if _is_right(question, journey) else Verdict.EDITED
            chosen.setdefault(first if first not in chosen else Verdict.REJECTED, journey)
    for verdict, journey in chosen.items():
        value = Label(str(journey.example.label)) if verdict is Verdict.EDITED else None
        await give(mesh, questions[journey.key], verdict, by=NAME, value=value, note=_NOTES[verdict])
    try:
        async with asyncio.timeout(SETTLED_WITHIN_S):
            for journey in chosen.values():
                await journey.settle()
    except TimeoutError:
        raise DeadlineExceeded(f"what {NAME} answered is not resolved within {SETTLED_WITHIN_S:g} s") from None
    return chosen


def _is_right(question: Question, journey: Journey) -> bool:
    proposed: object = question.proposal.proposal
    return isinstance(proposed, dict) and proposed.get("label") == journey.example.label
