"""The context of one attempt: what a handler gets beside its payload."""

import asyncio
from typing import Any

from mesh.task_context import EmitPart, TaskContext
from mesh.verbs import Asked, Verbs

__all__ = ["BlockingContext", "Context", "EmitPart"]


class Context(Verbs):
    """The context of one attempt of an async handler.

    In a unit test it can be made by hand: `Context(Identity("review-file", "k1"))`; what the handler emits
    and sends then stays in `parts` and `sends`, and its durable verbs work in memory (see `mesh.verbs`).
    """

    def _beneath(self, asked: Asked[Any]) -> TaskContext:
        if getattr(asked.reference, "is_async", True):
            return super()._beneath(asked)
        return BlockingContext(asked.identity, asked.send.task)

    async def emit(self, part: Any) -> None:
        """Stream a part to whoever listens. Not stored: the recorded result stays authoritative.

        The last 1,000 parts of the running attempt are kept for listeners who missed them. Another attempt
        starts over with part 0.

        Raises:
            ContractError: the part cannot travel.
        """
        number, encoded = self._next_part(part)
        if self._emit_part is not None:
            await self._emit_part(self.attempt, number, encoded)


class BlockingContext(TaskContext):
    """The context of a plain `def` handler, which runs in a thread: no durable verbs, and an `emit` that blocks.

    A thread cannot be cancelled: look at `is_abandoned` in long loops, and return.
    """

    loop: asyncio.AbstractEventLoop | None = None
    thread_ended: asyncio.Future[None] | None = None
    is_abandoned: bool = False
    """Whether the task was cancelled, timed out or handed back meanwhile: what is returned will be dropped."""

    def emit(self, part: Any) -> None:
        """Stream a part, as `Context.emit`; returns when the connection has taken it.

        Raises:
            ContractError: the part cannot travel.
        """
        number, encoded = self._next_part(part)
        if self._emit_part is not None and self.loop is not None:
            coroutine = self._emit_part(self.attempt, number, encoded)
            asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()
