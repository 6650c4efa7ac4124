"""What an LLM's run streams to the submitter: `{"text": "…"}` as it is written, `{"tool": "…", "arguments": {…}}` for
each tool that is called."""

from collections.abc import AsyncIterable, Awaitable, Callable
from typing import Any

from pydantic_ai import RunContext
from pydantic_ai.messages import (
    AgentStreamEvent,
    FunctionToolCallEvent,
    ModelResponse,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
)

from mesh.context import Context

EventHandler = Callable[[RunContext[Any], AsyncIterable[AgentStreamEvent]], Awaitable[None]]


def emitting(ctx: Context) -> EventHandler:
    """A handler of events that emits what a submitter cares for."""

    async def emit(_: RunContext[Any], events: AsyncIterable[AgentStreamEvent]) -> None:
        async for event in events:
            part = _part(event)
            if part is not None:
                await ctx.emit(part)

    return emit


async def emit_again(ctx: Context, response: ModelResponse) -> None:
    """Emit what a recorded response said; its tool calls are told as they are made."""
    for part in response.parts:
        if isinstance(part, TextPart) and part.content:
            await ctx.emit({"text": part.content})


def _part(event: AgentStreamEvent) -> dict[str, Any] | None:
    match event:
        case PartStartEvent(part=TextPart(content=text)) | PartDeltaEvent(delta=TextPartDelta(content_delta=text)):
            return {"text": text} if text else None
        case FunctionToolCallEvent(part=call):
            # What the model wrote may be no JSON object; then it is shown as it is.
            return {"tool": call.tool_name, "arguments": call.args_as_dict()}
    return None
