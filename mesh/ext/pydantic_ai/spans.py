"""Spans of an LLM's run, as pydantic-ai tells them, below the span of its task."""

from contextlib import AbstractContextManager
from functools import cache
from typing import Any

from pydantic_ai import Agent
from pydantic_ai.capabilities import AbstractCapability, Instrumentation
from pydantic_ai.durable_exec import record_durable_unit, replay_scope
from pydantic_ai.models.instrumented import InstrumentationSettings, InstrumentedModel

from mesh.context import Context
from mesh.settings import LLMSettings


def instrumentation(llm: Agent[Any, Any], ctx: Context) -> list[AbstractCapability[Any]]:
    """What records `invoke_agent`, `chat` and `execute_tool` spans of a run; nothing where its task is not traced.

    An LLM that its author has instrumented is left as it is. What was said is recorded only with
    `MESH_LLM_TRACE_CONTENT`.
    """
    provider = ctx.tracer_provider
    if _is_instrumented(llm):
        ctx.has_model_spans = provider is not None
        return []
    if provider is None:
        return []
    ctx.has_model_spans = True
    settings = InstrumentationSettings(
        tracer_provider=provider,
        include_content=records_content(),
        include_binary_content=False,
        include_model_request_parameters=False,
    )
    return [Instrumentation(settings=settings)]


def _is_instrumented(llm: Agent[Any, Any]) -> bool:
    chosen = llm.instrument
    # What `Agent.instrument_all()` set has no public name.
    is_told = getattr(Agent, "_instrument_default", False) if chosen is None else chosen
    return bool(is_told) or chosen is False or isinstance(llm.model, InstrumentedModel)


class Replaying:
    """Keeps spans of what is found on record out of the trace: the run that made the record told of it.

    pydantic-ai drops a span below which everything was on record. A streamed request's span does not hear of its
    own step, so it is dropped by what the request was found to be, until a tool is called or another one is made.
    """

    def __init__(self) -> None:
        self._is_request_found = False

    def scope(self) -> AbstractContextManager[None]:
        """The scope of one run of an LLM."""
        return replay_scope(is_replaying=lambda: self._is_request_found)

    def goes_on(self) -> None:
        """Something begins: whether it is on record is not known yet."""
        self._is_request_found = False

    def ended(self, *, was_run: bool, is_request: bool = False) -> None:
        """A request or a tool call ended: it was run, or found."""
        record_durable_unit(executed=was_run)
        if is_request:
            self._is_request_found = not was_run


@cache
def records_content() -> bool:
    """Whether prompts and answers are to stand in spans; read once."""
    return LLMSettings().trace_content
