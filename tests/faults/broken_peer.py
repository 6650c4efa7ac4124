"""A peer whose core is broken on purpose: it acks before it commits, so that a kill between the two loses a task."""

import asyncio
from typing import Any

from mesh.bus.commit import ack
from mesh.cli.chaos.peer import main
from mesh.runtime import settle
from mesh.runtime.host import Attempt, Host

BETWEEN_S = 0.3

answer = settle._answer


async def ack_first(host: Host, attempt: Attempt, *given: Any) -> None:
    await ack(host.bus, attempt.delivery)
    await asyncio.sleep(BETWEEN_S)  # the gap that the fault has to hit
    await answer(host, attempt, *given)


if __name__ == "__main__":
    setattr(settle, "_answer", ack_first)  # noqa: B010  # what is broken is private
    main()
