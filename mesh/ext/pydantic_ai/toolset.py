"""Capabilities of the mesh as tools: a call is a child task, which waits, retries and is recorded like any other.

A child that comes to no value is told to the model as a failed tool; arguments that break the contract are told as
something to correct. Both are read from the child's record, so every replay tells the same.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from pydantic_ai import AbstractToolset, ModelRetry, RunContext, ToolDefinition, ToolsetTool
from pydantic_ai.exceptions import ToolFailed
from pydantic_core import SchemaValidator, core_schema

from contracts.errors import ContractError
from contracts.outcome import FailureKind
from mesh.context import Context
from mesh.errors import TaskFailed, TaskUnfinished
from mesh.ext.pydantic_ai.offers import Callee
from mesh.ext.pydantic_ai.spans import Replaying
from mesh.payload import ANYTHING, encode
from mesh.telemetry.tracing import watching_replay

PAYLOAD: Final = "payload"
"""The one argument of a capability whose payload is no object."""
_OBJECT: Final = SchemaValidator(core_schema.dict_schema(core_schema.str_schema(), core_schema.any_schema()))


class CapabilityTools(AbstractToolset[Any]):
    """Tools that ask the mesh, on behalf of a task."""

    def __init__(self, callees: Sequence[Callee], ctx: Context, replaying: Replaying | None = None) -> None:
        self._callees = {callee.offer.capability: callee for callee in callees}
        self._ctx = ctx
        self._replaying = replaying or Replaying()

    @property
    def id(self) -> str:
        return "mesh"

    async def get_tools(self, ctx: RunContext[Any]) -> dict[str, ToolsetTool[Any]]:
        return {
            name: ToolsetTool(
                toolset=self, tool_def=_definition(callee), max_retries=ctx.max_retries, args_validator=_OBJECT
            )
            for name, callee in self._callees.items()
        }

    async def call_tool(
        self, name: str, tool_args: dict[str, Any], ctx: RunContext[Any], tool: ToolsetTool[Any]
    ) -> Any:
        callee = self._callees[name]
        payload = arguments(callee.offer.input_schema).payload_of(tool_args)
        self._replaying.goes_on()
        try:
            with watching_replay() as replay:
                try:
                    value = await self._call(name, callee, payload)
                finally:
                    self._replaying.ended(was_run=not replay.was_found)
        except TaskFailed as failed:
            if failed.failure.kind is FailureKind.CONTRACT:
                raise ModelRetry(failed.failure.message) from failed
            raise ToolFailed(str(failed)) from failed
        except TaskUnfinished as unfinished:
            raise ToolFailed(str(unfinished)) from unfinished
        return value if callee.reference is None else ANYTHING.decode(encode(value))

    async def _call(self, name: str, callee: Callee, payload: Any) -> Any:
        if callee.reference is None:
            return await self._ctx.call(name, payload)
        return await self._ctx.call(callee.reference, _typed(callee, payload))


class Arguments(NamedTuple):
    """How a payload stands in a tool's arguments, which are always an object."""

    schema: dict[str, Any]
    is_inside: bool
    """Whether the payload is the one argument, rather than all of them."""
    is_nothing: bool = False

    def payload_of(self, given: dict[str, Any]) -> Any:
        if self.is_nothing:
            return None
        return given.get(PAYLOAD) if self.is_inside else given


def arguments(schema: dict[str, Any]) -> Arguments:
    """A payload's schema as that of arguments."""
    definitions = schema.get("$defs", {})
    top = {key: value for key, value in schema.items() if key != "$defs"}
    if (target := str(top.get("$ref", ""))).startswith("#/$defs/"):
        top = definitions.get(target.removeprefix("#/$defs/"), top)
    kept = {"$defs": definitions} if definitions else {}
    if top.get("type") == "object":
        return Arguments({"properties": {}, **top, **kept}, is_inside=False)
    if top.get("type") == "null":
        return Arguments({"type": "object", "properties": {}}, is_inside=False, is_nothing=True)
    return Arguments({"type": "object", "properties": {PAYLOAD: top}, "required": [PAYLOAD], **kept}, is_inside=True)


def _definition(callee: Callee) -> ToolDefinition:
    offer = callee.offer
    return ToolDefinition(
        name=offer.capability,
        description=offer.told(),
        parameters_json_schema=arguments(offer.input_schema).schema,
        metadata={"agent": offer.agent, "owner": offer.owner},
    )


def _typed(callee: Callee, payload: Any) -> Any:
    assert callee.reference is not None, "only a reference knows types"
    try:
        return callee.reference.input.decode(encode(payload))
    except ContractError as error:
        raise ModelRetry(str(error)) from error
