"""A task's turn in its line: looking for it, and waiting for it parked. The rules are in `mesh.bus.lines`."""

from contracts import headers as names
from contracts import wire
from contracts.errors import ContractError
from contracts.subjects import Identity, in_line
from contracts.task import Task
from mesh.bus.connection import Headers
from mesh.bus.lines import Turn, turn
from mesh.runtime.host import Attempt, Host
from mesh.runtime.settle import keep_parked
from mesh.workflow.parking import Wait


async def look_at_line(host: Host, attempt: Attempt) -> Turn:
    """Whether it is the turn of a task that stands in a line; the attempt takes note."""
    found = in_line(attempt.identity)
    assert found is not None, "only a task in a line has a turn"
    its_turn = await turn(host.bus, *found)
    attempt.mark = its_turn.mark
    attempt.is_early = its_turn.is_passed or its_turn.behind is not None
    return its_turn


async def parks_for_turn(host: Host, attempt: Attempt, behind: Identity) -> bool:
    """Park a task until its turn comes. False: it came meanwhile, and the task may run here.

    Whoever is to wake it may have seen the park as well. Then its attempt is begun twice, and one of the two is
    recorded first.
    """
    wait = Wait(records=(host.bus.subjects.result(behind),), is_long=True)
    await keep_parked(host, attempt, (wait,))
    return (await look_at_line(host, attempt)).behind is not None


def check_order(attempt: Attempt) -> None:
    """Nothing, if the envelope of a task in a line says so.

    Raises:
        ContractError: it does not, so that nobody gave the task its position.
    """
    found, order = in_line(attempt.identity), attempt.task.order
    if found is not None and (order is None or (order.key, order.position) != (found[0].key, found[1])):
        raise ContractError(
            f"id {attempt.identity.id} is a position in a line, and the envelope does not say so: submit it with an"
            " order_key",
            path="$.order",
        )


def submitted_as(headers: Headers) -> str:
    """What tells the submission of a task in a line from others; empty for any other task."""
    order = envelope_of(headers).order
    return "" if order is None else order.submitted_as


def envelope_of(headers: Headers) -> Task:
    """The envelope of a task that is not run; every default where it cannot be read."""
    try:
        return wire.decode(Task, headers.get(names.TASK, "{}").encode())
    except ContractError:
        return Task()
