"""The context of one attempt: what a handler gets beside its payload."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager, suppress
from typing import Any

from mesh.limits import WITHIN_S, Grant
from mesh.reference import Reference
from mesh.task_context import EmitPart, TaskContext
from mesh.verbs import Asked, Verbs

__all__ = ["BlockingContext", "Context", "EmitPart"]


class Context(Verbs):
    """The context of one attempt of an async handler.

    In a unit test it can be made by hand: `Context(Identity("review-file", "k1"))`; what the handler emits
    and sends then stays in `parts` and `sends`, and its durable verbs work in memory (see `mesh.verbs`). So do the
    `limits` it is given; without any, nothing is limited.
    """

    def _beneath(self, asked: Asked[Any]) -> TaskContext:
        if getattr(asked.reference, "is_async", True):
            return super()._beneath(asked)
        return BlockingContext(asked.identity, asked.send.task)

    def breaker(self, name: str | Reference[Any, Any]) -> AbstractAsyncContextManager[None]:
        """A circuit breaker around a block that calls something outside: `async with ctx.breaker("openai"):`.

        The whole mesh shares it. A block that raises what another attempt may mend counts as failed, and so does one
        that the task's timeout ends; what cannot succeed was answered, and `Throttled` says nothing. A capability
        stands for itself. For a child prefer `ctx.call(..., is_guarded=True)`, and put the breaker of a step inside
        the step: what is on record is then found while the breaker is open, too.

        Raises:
            BreakerOpen: it is open, and the block was not entered. Let through, the task is handed back and stays in
                its queue, with no attempt counted, and this peer takes no more tasks of the capability until
                somebody's probe went well. Catch it to do something else instead.
            ContractError: the name is not one of letters, digits, '-' and '_'.
        """
        return self._guard(name if isinstance(name, str) else name.name)

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

    @asynccontextmanager
    async def limit(self, resource: str, *, tokens: int = 0, within_s: float = WITHIN_S) -> AsyncIterator[Grant]:
        """Run the block when all peers together have room for one more call of a resource, and `tokens` of it.

        It waits at most `within_s` seconds for its turn; time spent waiting counts for no timeout. A resource
        without a limit passes at once. `Grant.correct` books afterwards what was really used. A limit is not a step:
        put it inside the step that makes the call, or a replay takes another turn for nothing.

        Raises:
            Overloaded: the turn would come later; raised as soon as that is known, and nothing is booked. Raised
                out of the handler it hands the task back, which is no attempt.
            Permanent: so many tokens exceed what the resource's bucket holds when it is full.
            ContractError: the resource's name, or a number, is illegal.
        """
        async with AsyncExitStack() as stack:
            holding = self._limits.hold(resource, tokens=tokens, within_s=within_s)
            with self._stop_clock():
                grant = await stack.enter_async_context(holding)
            yield grant


class BlockingContext(TaskContext):
    """The context of a plain `def` handler, which runs in a thread: no durable verbs, and an `emit` that blocks.

    A thread cannot be cancelled: look at `is_abandoned` in long loops, and return.
    """

    loop: asyncio.AbstractEventLoop | None = None
    thread_ended: asyncio.Future[None] | None = None
    is_abandoned: bool = False
    """Whether the task was cancelled, timed out or handed back meanwhile: what is returned will be dropped."""

    @contextmanager
    def breaker(self, name: str) -> Iterator[None]:
        """A circuit breaker around a block, as `Context.breaker`: `with ctx.breaker("openai"):`.

        Raises:
            BreakerOpen: it is open, and the block was not entered.
            ContractError: the name is not one of letters, digits, '-' and '_'.
        """
        guard, loop = self._guard(name), self.loop
        if loop is None:
            yield
            return
        asyncio.run_coroutine_threadsafe(guard.__aenter__(), loop).result()
        try:
            yield
        except BaseException as error:
            raised = (type(error), error, error.__traceback__)
            asyncio.run_coroutine_threadsafe(guard.__aexit__(*raised), loop).result()
            raise
        asyncio.run_coroutine_threadsafe(guard.__aexit__(None, None, None), loop).result()

    def emit(self, part: Any) -> None:
        """Stream a part, as `Context.emit`; returns when the connection has taken it.

        Raises:
            ContractError: the part cannot travel.
        """
        number, encoded = self._next_part(part)
        if self._emit_part is not None and self.loop is not None:
            coroutine = self._emit_part(self.attempt, number, encoded)
            asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    @contextmanager
    def limit(self, resource: str, *, tokens: int = 0, within_s: float = WITHIN_S) -> Iterator[Grant]:
        """Run the block when there is room, as `Context.limit`; the thread waits."""
        if self.loop is None:
            # Made by hand: there is no loop, and nobody else to wait for.
            with asyncio.Runner() as runner:
                holding = self._limits.hold(resource, tokens=tokens, within_s=within_s)
                grant = runner.run(holding.__aenter__())
                try:
                    yield grant
                finally:
                    runner.run(holding.__aexit__(None, None, None))
            return
        loop = self.loop
        holding = self._limits.hold(resource, tokens=tokens, within_s=within_s)
        inner = asyncio.run_coroutine_threadsafe(self._entered(holding), loop).result()
        try:
            if self.is_abandoned:
                raise TimeoutError("the task was given up while it waited for its turn")
            yield Grant(
                resource,
                tokens,
                inner.waited_s,
                correct=lambda unused: _call_soon(loop, lambda: inner.correct(tokens=inner.tokens - unused)),
            )
        finally:
            asyncio.run_coroutine_threadsafe(holding.__aexit__(None, None, None), loop).result()

    async def _entered(self, holding: AbstractAsyncContextManager[Grant]) -> Grant:
        with self._stop_clock():
            return await holding.__aenter__()


def _call_soon(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the loop is closed: the process ends
        loop.call_soon_threadsafe(call)
