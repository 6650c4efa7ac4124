"""Fibers that serve a block of code and end with it."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def serving(*coroutines: Coroutine[Any, Any, None]) -> AsyncIterator[asyncio.TaskGroup]:
    """Run coroutines beside a block, and cancel them, and all that it adds to the group, when it is left.

    What the block raises comes out as it is, where a bare `TaskGroup` would wrap it: callers catch it by its
    type. A fiber that fails cancels the block, and its error comes out instead.
    """
    raised: BaseException | None = None
    group = _Tracking()
    try:
        async with group:
            for coroutine in coroutines:
                group.create_task(coroutine)
            try:
                yield group
            except BaseException as error:  # noqa: BLE001  # raised again when the fibers have ended
                raised = error
            group.cancel_all()
    except BaseExceptionGroup as failed:
        if len(failed.exceptions) > 1:
            raise
        raise failed.exceptions[0] from None
    if raised is not None:
        raise raised


class _Tracking(asyncio.TaskGroup):
    """A task group that can cancel its fibers without failing."""

    def __init__(self) -> None:
        super().__init__()
        self._fibers: set[asyncio.Task[Any]] = set()

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        fiber = super().create_task(coro, **options)
        self._fibers.add(fiber)
        fiber.add_done_callback(self._fibers.discard)
        return fiber

    def cancel_all(self) -> None:
        for fiber in self._fibers:
            fiber.cancel()
