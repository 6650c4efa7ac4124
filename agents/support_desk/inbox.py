"""Which tickets wait for a person."""

from contracts.subjects import root_of
from mesh import Mesh
from mesh.workflow.inbox import unanswered


async def waiting(mesh: Mesh) -> dict[str, str]:
    """The id of the `human` task that each of these tickets waits for, by the ticket's key.

    Asked again and again while tickets are sent, so it reads no proposals.
    """
    return {root_of(task.id): task.id for task in await unanswered(mesh.bus)}
