"""People as a capability: `human` waits for somebody to answer a proposal, however long that takes.

Any peer can host it: `mesh up my_agents.py mesh.human`. What waits is parked; `mesh inbox ls` lists it.
`MESH_INBOX_OWNER` names the team that looks after it.
"""

import time

from contracts.workflow import Answer, AtDeadline, Proposal, Verdict
from mesh.agent import Agent
from mesh.context import Context
from mesh.endings import HUMAN
from mesh.errors import NobodyAnswered
from mesh.settings import InboxSettings
from mesh.verbs import ANSWER

agent = Agent(
    "inbox",
    version="1",
    role="people",
    owner=InboxSettings().owner,
    description="Waits for people's answers.",
)


@agent.handles(HUMAN, concurrency=64, timeout_s=30.0)
async def human(proposal: Proposal, ctx: Context) -> Answer:
    """Have a person approve, edit or reject a proposal."""
    try:
        answer: Answer = await ctx.signal(ANSWER, returns=Answer, within_s=proposal.within_s)
    except NobodyAnswered:
        if proposal.at_deadline is AtDeadline.FAIL:
            raise NobodyAnswered(f"nobody answered within {proposal.within_s:g} s") from None
        verdict = Verdict.APPROVED if proposal.at_deadline is AtDeadline.APPROVE else Verdict.REJECTED
        return Answer(verdict=verdict, note=f"nobody answered within {proposal.within_s:g} s", at=time.time())
    return answer
