"""How a step of an LLM's run is named: from what is asked, so that another run of the handler finds its record.

Of a conversation only what was said counts. Times and run ids differ from run to run, and so may instructions
(many tell the date): they shape the answer that was given, but do not make it another question. What is asked
anew, with another prompt or another tool result, has another name and is asked of the model.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary

from pydantic_ai.durable_exec import (
    DynamicToolsetCallToolParams,
    ModelRequestParams,
    ToolsetCallToolParams,
    ToolsetValidateToolArgumentsId,
)
from pydantic_ai.messages import ModelMessage, ModelMessagesTypeAdapter
from pydantic_core import to_json

from mesh.context import Context
from mesh.digest import digest

DIGEST_LENGTH: Final = 16
TOOL_LENGTH_MAX: Final = 64
_SAID: Final = ("content", "tool_name", "args", "tool_call_id", "outcome", "part_kind")
_SPOKEN_FOR_US: Final = "system-prompt"

_asked: "WeakKeyDictionary[Context, Counter[str]]" = WeakKeyDictionary()


def numbered(ctx: Context, base: str) -> str:
    """`base`, told apart from the same asked earlier in this run of the handler."""
    asked = _asked.setdefault(ctx, Counter())
    number = asked[base]
    asked[base] += 1
    return f"{base}-{number}"


def base_name(operation_id: object, params: Any) -> str:
    """What the step of an operation is called, before it is numbered."""
    match params:
        case ModelRequestParams():
            who = params.run_context.agent.name if params.run_context.agent is not None else None
            return f"model-{_digest([who, params.model_id, conversation(params.messages)])}"
        case ToolsetCallToolParams() | DynamicToolsetCallToolParams():
            what = "check" if isinstance(operation_id, ToolsetValidateToolArgumentsId) else "tool"
            asked = _digest([params.name, params.tool_args, params.ctx.tool_call_id])
            return f"{what}-{re.sub(r'[^A-Za-z0-9_-]', '_', params.name)[:TOOL_LENGTH_MAX]}-{asked}"
    # Listing the tools of an MCP server, and the like: one after the other in a run, so the number tells them apart.
    return f"{type(operation_id).__name__}-{_digest(repr(operation_id))}"


def conversation(messages: Sequence[ModelMessage]) -> list[Any]:
    """What was said so far, without what differs between two runs that say the same."""
    dumped = ModelMessagesTypeAdapter.dump_python(list(messages), mode="json")
    return [
        [message["kind"]]
        + [
            {key: part[key] for key in _SAID if key in part}
            for part in message["parts"]
            if part["part_kind"] != _SPOKEN_FOR_US
        ]
        for message in dumped
    ]


def _digest(asked: Any) -> str:
    return digest(to_json(asked, fallback=lambda value: type(value).__qualname__))[:DIGEST_LENGTH]
