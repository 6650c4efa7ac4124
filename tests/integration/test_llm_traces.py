"""Spans of an LLM's run hang below its task's, say what was used up, and keep what was said to themselves."""

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic_ai import Agent as LLMAgent

from mesh import Agent, Context, Mesh, Transient
from mesh.ext.pydantic_ai import Durable, model_from_settings, spans
from mesh.settings import LLMSettings, Settings
from mesh.testing import eventually, hosting
from mesh.testing.llm import LLMServer, llm_server

WITHIN_S = 30.0
QUESTION = "What is a mesh of 4711 agents?"


@pytest.fixture
def endpoint() -> Iterator[LLMServer]:
    with llm_server() as server:
        yield server


def desk(endpoint: LLMServer, *, fails_once: bool = False) -> Agent:
    agent = Agent("thinker")
    llm = LLMAgent(
        model_from_settings(LLMSettings(base_url=endpoint.url, model="calls-3")),
        name="thinker",
        instructions="Be brief.",
    )

    @llm.tool_plain
    def look(topic: str) -> str:
        """Look something up."""
        return f"{topic} is known"

    @agent.handles("ask-clerk")
    async def ask_clerk(question: str) -> str:
        """Ask a clerk."""
        return "so it is"

    @agent.handles("think")
    async def think(question: str, ctx: Context) -> str:
        answer = (await Durable(llm).run(question, ctx)).output
        if fails_once and ctx.attempt == 1:
            raise Transient("the answer got lost", after_s=0.0)
        return answer

    @agent.handles("delegate")
    async def delegate(question: str, ctx: Context) -> str:
        bare = LLMAgent(llm.model, name="chief")
        return (await Durable(bare, [ask_clerk]).run(question, ctx)).output

    return agent


def told(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def tree(kept: tuple[ReadableSpan, ...]) -> set[tuple[str, str]]:
    """Each span's name with its parent's."""
    names = {span.context.span_id: span.name for span in kept if span.context is not None}
    return {(names[span.parent.span_id] if span.parent else "", span.name) for span in kept}


async def test_requests_and_tools_of_a_model_hang_below_the_run_of_their_task(
    settings: Settings, endpoint: LLMServer
) -> None:
    kept, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    async with (
        Mesh.connect(settings=settings, tracer_provider=provider) as mesh,
        hosting(desk(endpoint, fails_once=True), settings=settings, tracer_provider=provider),
    ):
        await (await mesh.submit("think", QUESTION, returns=str)).result(within_s=WITHIN_S)
        await eventually(lambda: [span for span in kept.get_finished_spans() if span.name == "process think"][1:])

    found = kept.get_finished_spans()
    bill = endpoint.bill()
    chats = [span for span in found if span.name.startswith("chat ")]
    tools = [span for span in found if span.name.startswith("execute_tool")]
    runs = [span for span in found if span.name == "process think"]
    assert len({span.context.trace_id for span in found if span.context is not None}) == 1
    # The second attempt asked nobody: what it found on record has no spans of its own.
    assert (len(chats), len(tools), len(runs)) == (3, 2, 2)
    assert sum(told(span)["gen_ai.usage.input_tokens"] for span in chats) == bill.tokens_in
    assert {told(span)["gen_ai.request.model"] for span in chats} == {"calls-3"}
    assert told(runs[-1])["gen_ai.aggregated_usage.input_tokens"] == bill.tokens_in
    assert told(runs[-1])["gen_ai.request.model"] == "calls-3"
    assert {("submit think", "process think"), ("process think", "invoke_agent thinker")} <= tree(found)
    assert not any("4711" in str(value) or "is known" in str(value) for span in found for value in told(span).values())


async def test_a_capability_that_a_model_calls_is_a_child_below_the_tool(
    settings: Settings, endpoint: LLMServer
) -> None:
    kept, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    impatient = settings.model_copy(update={"hot_wait_s": 0.0})
    async with (
        Mesh.connect(settings=settings, tracer_provider=provider) as mesh,
        hosting(desk(endpoint), settings=impatient, tracer_provider=provider),
    ):
        await (await mesh.submit("delegate", QUESTION, returns=str)).result(within_s=WITHIN_S)
        await eventually(lambda: "submit delegate" in {parent for parent, _ in tree(kept.get_finished_spans())})

    found = kept.get_finished_spans()
    chats = [span for span in found if span.name.startswith("chat ")]
    clerks = [span for span in found if span.name == "process ask-clerk"]
    assert (len(chats), len(clerks)) == (3, 2)
    assert ("submit ask-clerk", "process ask-clerk") in tree(found)
    assert ("execute_tool ask-clerk", "submit ask-clerk") in tree(found)


@pytest.mark.parametrize("is_wanted", [False, True])
async def test_what_is_said_is_recorded_only_where_it_is_asked_for(
    settings: Settings, endpoint: LLMServer, monkeypatch: pytest.MonkeyPatch, is_wanted: bool
) -> None:
    monkeypatch.setenv("MESH_LLM_TRACE_CONTENT", str(is_wanted).lower())
    spans.records_content.cache_clear()
    kept, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    async with (
        Mesh.connect(settings=settings) as mesh,
        hosting(desk(endpoint), settings=settings, tracer_provider=provider),
    ):
        await (await mesh.submit("think", QUESTION, returns=str)).result(within_s=WITHIN_S)
    spans.records_content.cache_clear()

    values = [str(value) for span in kept.get_finished_spans() for value in told(span).values()]
    assert any("4711" in value for value in values) is is_wanted
