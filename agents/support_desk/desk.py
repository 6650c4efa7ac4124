"""Customer tickets on a ladder of agents: a fast triage, a better specialist, and people for what is left.

    mesh up agents.support_desk.desk mesh.human
    mesh submit support '{"text": "Where is my parcel?"}'

One ticket is one workflow, `support`. It asks `triage`, whose answer counts if it is sure enough; if not, the task
climbs to `specialist`, and from there to a person, who may take days. While anybody is waited for, no peer holds
anything, and any peer goes on from what is recorded. No capability has an effect outside the mesh, so running one
again does no harm.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from agents.support_desk.ladder import Opinion
from agents.support_desk.models import models, models_digest
from agents.support_desk.payloads import HUMAN, SPECIALIST, SUPPORT, TRIAGE, Label, LabelledTicket, Resolution, Ticket
from agents.support_desk.routes import route
from contracts.outcome import FailureKind
from mesh import Agent, Context, Ladder, TaskFailed

RESOLUTION: Final = "resolution"
LINEAR_MODEL: Final = "linear support vectors"
NETWORKS: Final = "three networks with dropout"
PASSED_ON: Final = "pass-on"

desk = Agent(
    "support-desk",
    version="1.0.0",
    owner="customer-care",
    description="Labels customer tickets, asks people where it is unsure, and says what happens next.",
    calls=[TRIAGE, RESOLUTION],
)


@desk.handles(TRIAGE, concurrency=4, timeout_s=10, ladder=Ladder(models().triage_threshold, SPECIALIST))
async def triage(ticket: Ticket, ctx: Context) -> Label:
    """Say within milliseconds what a ticket is about, or pass it on."""
    opinion = await _predicted(models().triage, ticket)
    _decide(ctx, opinion, LINEAR_MODEL, threshold=models().triage_threshold)
    return Label(opinion.label, TRIAGE, opinion.confidence)


@desk.handles(SPECIALIST, concurrency=2, timeout_s=20, ladder=Ladder(models().specialist_threshold, HUMAN))
async def specialist(ticket: Ticket, ctx: Context) -> Label:
    """Say what an unclear ticket is about, or propose it to a person."""
    opinion = await _predicted(models().specialist, ticket)
    _decide(ctx, opinion, NETWORKS, threshold=models().specialist_threshold)
    if opinion.confidence < models().specialist_threshold:
        # What a person approves is that person's answer. How sure we were stands beside the proposal.
        return Label(opinion.label)
    return Label(opinion.label, SPECIALIST, opinion.confidence)


@desk.handles(RESOLUTION, concurrency=8, timeout_s=10)
def resolution(ticket: LabelledTicket) -> Resolution:
    """Say who goes on with a labelled ticket, and how."""
    label = ticket.label
    queue, next_action = route(label.label)
    return Resolution(label.label, label.rung, label.confidence, queue, next_action)


@desk.handles(SUPPORT, concurrency=16, timeout_s=30)
async def support(ticket: Ticket, ctx: Context) -> Resolution:
    """Take a ticket from its text to its resolution."""
    try:
        label = await ctx.call(triage, ticket)
    except TaskFailed as error:
        if error.failure.kind is not FailureKind.REJECTED:
            raise
        return Resolution(None, HUMAN, 1.0, queue="closed", next_action=f"Nothing. {error.failure.message}")
    return await ctx.call(resolution, LabelledTicket(ticket.text, label))


async def _predicted(predict: Callable[[str], Opinion], ticket: Ticket) -> Opinion:
    """An opinion, made in a thread: tens of milliseconds on the event loop would hold up all else that the peer does.

    It is no durable step: made again it comes out the same, and the task's result records it anyway.
    """
    return await asyncio.to_thread(predict, ticket.text)


def _decide(ctx: Context, opinion: Opinion, model: str, *, threshold: float) -> None:
    """Put on record what the ticket was taken for, and whether that is sure enough to settle it."""
    ctx.explain(
        confidence=opinion.confidence,
        reason=f"reads like {opinion.label}",
        model=model,
        model_digest=models_digest(),
    )
    is_settled = opinion.confidence >= threshold
    told = "sure enough" if is_settled else "passed on"
    ctx.decide(
        opinion.label if is_settled else PASSED_ON,
        reason=f"reads like {opinion.label}; {told}, {threshold:.2f} settles it",
        confidence=opinion.confidence,
        inputs={"label": opinion.label, "threshold": round(threshold, 4)},
    )
