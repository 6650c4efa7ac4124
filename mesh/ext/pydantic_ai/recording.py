"""An LLM's run as recorded steps: pydantic-ai's durability interface over `ctx.step`.

pydantic-ai tells what is worth recording (each model request, each tool call, what an MCP server offers) and how
it travels; a tool's `ModelRetry` and the like travel as values. Here each becomes a step. Rules:

- A failed request is not recorded: the next attempt makes it again.
- What a recorded response said is emitted again on a replay, in one piece, so that the stream of every attempt is
  whole. Events are not recorded.
- Usage is reported inside the step, so it counts once; model and digests are recorded with the response, so they
  are those of the request that was made.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Generic, Literal, TypeVar

import msgspec
from pydantic_ai.durable_exec import (
    JSON_CODEC,
    BaseDurabilityCapability,
    BoundDurableOperation,
    DurabilityEngineSpec,
    DurableOperation,
    DurableOperationBackend,
    EventStreamHandlerId,
    ModelRequestParams,
    conversation_id_from_run_id,
    durable_unit_scope,
)
from pydantic_ai.messages import ModelResponse, SystemPromptPart

from contracts.errors import ContractError
from mesh.context import Context
from mesh.digest import digest
from mesh.ext.pydantic_ai import parts
from mesh.ext.pydantic_ai.naming import base_name, numbered
from mesh.ext.pydantic_ai.price import usd_of
from mesh.ext.pydantic_ai.spans import Replaying
from mesh.payload import encode
from mesh.telemetry.masked import masked

P = TypeVar("P")
W = TypeVar("W")
R = TypeVar("R")

NO_STEP = "step"
"""The key of a tool's metadata: `{"step": False}` has it run outside a step, so that it may use durable verbs."""


class Answered(msgspec.Struct, frozen=True):
    """A recorded model request: the response, and what exactly was asked for it."""

    response: Any
    model: str
    model_digest: str
    prompt_digest: str


def _cannot_be_recorded(error: Exception) -> ContractError:
    return ContractError(f"the result of a tool cannot be recorded: {error}")


class OnMesh(BaseDurabilityCapability[Any]):
    """Records one run of an LLM under a task."""

    engine_spec = DurabilityEngineSpec(
        engine_name="Starling",
        durable_unit_noun="step",
        durable_container_noun="task",
        codec=JSON_CODEC,
        serialization_failure=_cannot_be_recorded,
        tool_config_key=NO_STEP,
        toolset_lifecycles={"function": "enter-always", "mcp": "enter-in-durable-unit", "dynamic": "enter-never"},
    )

    def __init__(self, ctx: Context, *, name: str, is_streaming: bool, replaying: Replaying) -> None:
        emitting = parts.emitting(ctx) if is_streaming else None
        super().__init__(name=name, event_stream_handler=emitting)
        self._ctx = ctx
        self._steps = Steps(ctx, is_streaming=is_streaming, replaying=replaying)

    @property
    def in_durable_context(self) -> bool:
        return True

    def get_durable_operation_backend(self) -> DurableOperationBackend[Any]:
        return self._steps

    def get_default_run_id(self) -> str:
        return numbered(self._ctx, f"{self._ctx.identity}/llm")

    def get_default_conversation_id(self, run_id: str) -> str:
        return conversation_id_from_run_id(run_id)


class Steps(DurableOperationBackend[None]):
    """Runs each operation in a step of its own."""

    def __init__(self, ctx: Context, *, is_streaming: bool, replaying: Replaying) -> None:
        self._ctx = ctx
        self._is_streaming = is_streaming
        self._replaying = replaying

    def bind(self, operation: DurableOperation[P, W, R]) -> BoundDurableOperation[P, W, R]:
        return _Recorded(operation, self._ctx, is_streaming=self._is_streaming, replaying=self._replaying)

    def config_for_tool(
        self, operation: DurableOperation[P, W, R], *, tool: Any, tool_name: str
    ) -> Literal[False] | None:
        metadata = tool.tool_def.metadata if tool is not None else None
        return False if metadata and metadata.get(NO_STEP) is False else None

    def registrations(self) -> Sequence[Any]:
        return ()


class _Recorded(BoundDurableOperation[P, W, R], Generic[P, W, R]):
    def __init__(
        self, operation: DurableOperation[P, W, R], ctx: Context, *, is_streaming: bool, replaying: Replaying
    ) -> None:
        self._operation = operation
        self._ctx = ctx
        self._is_streaming = is_streaming
        self._replaying = replaying

    @property
    def operation(self) -> DurableOperation[P, W, R]:
        return self._operation

    async def __call__(self, params: P, *, config: object | None = None) -> R:
        operation_id = self._operation.operation_id
        if isinstance(operation_id, EventStreamHandlerId):
            return await self._operation.handler(params)
        name = numbered(self._ctx, base_name(operation_id, params))
        if isinstance(params, ModelRequestParams):
            return await self._answered(name, params)
        was_run = False
        self._replaying.goes_on()

        async def run() -> Any:
            nonlocal was_run
            was_run = True
            with durable_unit_scope():
                return self._operation.result_codec.dump(await self._operation.handler(params))

        try:
            return self._operation.result_codec.load(await self._ctx.step(name, run, returns=Any))
        finally:
            self._replaying.ended(was_run=was_run)

    async def _answered(self, name: str, params: ModelRequestParams) -> R:
        was_asked = False

        async def ask() -> Answered:
            nonlocal was_asked
            was_asked = True
            return await self._ask(params)

        try:
            answered = await self._ctx.step(name, ask, returns=Answered)
        finally:
            self._replaying.ended(was_run=was_asked, is_request=True)
        result = self._operation.result_codec.load(answered.response)
        if isinstance(result, ModelResponse) and self._is_streaming and not was_asked:
            await parts.emit_again(self._ctx, result)
        self._ctx.explain(
            model=answered.model,
            model_digest=answered.model_digest,
            prompt_digest=answered.prompt_digest,
        )
        return result

    async def _ask(self, params: ModelRequestParams) -> Answered:
        key = self._ctx.idempotency_key
        settings: dict[str, Any] = {**(params.model_settings or {})}
        settings["extra_headers"] = {"Idempotency-Key": key, **settings.get("extra_headers", {})}
        keyed: Any = dataclasses.replace(params, model_settings=settings)  # type: ignore[arg-type]  # as it was, and a header
        with durable_unit_scope():
            response = await self._operation.handler(keyed)
        assert isinstance(response, ModelResponse), "streamed or not, a request ends in its response"
        usage = response.usage
        self._ctx.spent(tokens_in=usage.input_tokens, tokens_out=usage.output_tokens, usd=usd_of(response))
        return Answered(
            self._operation.result_codec.dump(response),
            response.model_name or params.run_context.model.model_name,
            _model_digest(params),
            _prompt_digest(params),
        )


def _model_digest(params: ModelRequestParams) -> str:
    model = params.run_context.model
    configured = [
        model.model_name,
        model.system,
        masked(model.base_url or ""),
        repr(sorted((params.model_settings or {}).items())),
    ]
    return digest(encode(configured))


def _prompt_digest(params: ModelRequestParams) -> str:
    """Of what the author wrote for the model: instructions, system prompts, tools and the form of the answer."""
    asked = params.model_request_parameters
    told = [getattr(message, "instructions", None) for message in params.messages[-1:]]
    told += [
        part.content for message in params.messages for part in message.parts if isinstance(part, SystemPromptPart)
    ]
    tools = [
        [tool.name, tool.description, tool.parameters_json_schema]
        for tool in (*asked.function_tools, *asked.output_tools)
    ]
    return digest(encode([told, tools]))
