"""One trace for each workflow, as spans tell it."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode
from tenacity.wait import wait_none

from contracts import headers as names
from contracts.subjects import Identity
from mesh import Agent, BlockingContext, Context, Handoff, Mesh, TaskFailed, Transient
from mesh.bus.dead_letters import read_dead_letter, redrive
from mesh.settings import Settings
from mesh.telemetry import tracing
from mesh.testing import eventually, hosting
from mesh.whereabouts import Where

KNOWN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Recorder:
    """What a provider of its own recorded."""

    def __init__(self, **options: Any) -> None:
        self._kept = InMemorySpanExporter()
        self.provider = TracerProvider(**options)
        self.provider.add_span_processor(SimpleSpanProcessor(self._kept))

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self._kept.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        found = [span for span in self.spans if span.name == name]
        return sorted(found, key=lambda span: span.start_time or 0)

    async def ended(self, name: str, count: int = 1) -> list[ReadableSpan]:
        """Spans of a name, once there are so many."""
        await eventually(lambda: len(self.named(name)) >= count)
        return self.named(name)

    @property
    def traces(self) -> set[int]:
        return {span.context.trace_id for span in self.spans if span.context is not None}


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@asynccontextmanager
async def client(settings: Settings, recorder: Recorder) -> AsyncIterator[Mesh]:
    async with Mesh.connect(settings=settings, tracer_provider=recorder.provider) as mesh:
        yield mesh


def office() -> Agent:
    agent = Agent("office", version="3", owner="back-office")

    @agent.handles("file")
    async def file(text: str) -> str:
        return text.upper()

    @agent.handles("count")
    def count(text: str, ctx: BlockingContext) -> int:
        with trace.get_tracer("theirs", tracer_provider=None).start_as_current_span("theirs"):
            return len(text)

    @agent.handles("letter", wait=wait_none())
    async def letter(text: str, ctx: Context) -> str:
        if text == "twice" and ctx.attempt == 1:
            await ctx.step("stamp", lambda: "stamped")
            raise Transient("the pen is dry", after_s=0.0)
        if text == "never":
            raise ValueError("no letter")
        await ctx.step("stamp", lambda: "stamped")
        ctx.send(file, "copy")
        ctx.spent(tokens_in=7, tokens_out=5)
        ctx.explain(confidence=0.75, model="quill")
        return await ctx.call(file, text)

    @agent.handles("desk")
    async def desk(text: str, ctx: Context) -> Handoff:
        return Handoff(letter, text)

    @agent.handles("patient")
    async def patient(text: str, ctx: Context) -> str:
        return str(await ctx.signal("go"))

    return agent


def parent_of(span: ReadableSpan, among: tuple[ReadableSpan, ...]) -> ReadableSpan | None:
    if span.parent is None:
        return None
    return next(other for other in among if other.context is not None and other.context.span_id == span.parent.span_id)


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


async def test_a_workflow_is_one_trace_from_submitter_to_the_last_child(settings: Settings, recorder: Recorder) -> None:
    async with (
        client(settings, recorder) as mesh,
        hosting(office(), settings=settings, tracer_provider=recorder.provider),
    ):
        handle = await mesh.submit("desk", "dear", returns=str, key="l1", conversation="c7")
        assert await handle.result(within_s=10) == "DEAR"
        # The copy that is sent is filed, too.
        await recorder.ended("process file", 2)
        await recorder.ended("process desk")

    assert len(recorder.traces) == 1
    (submitted,) = recorder.named("submit desk")
    (desk,) = recorder.named("process desk")
    (letter,) = recorder.named("process letter")
    assert submitted.parent is None
    assert (submitted.kind, desk.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert parent_of(desk, recorder.spans) is submitted
    handed = parent_of(letter, recorder.spans)
    assert handed is not None
    assert (handed.name, parent_of(handed, recorder.spans)) == ("submit letter", desk)
    assert [parent_of(span, recorder.spans) for span in recorder.named("step stamp")] == [letter]
    producers = [parent_of(span, recorder.spans) for span in recorder.named("process file")]
    assert sorted(span.name for span in producers if span is not None) == ["send file", "submit file"]
    assert {parent_of(span, recorder.spans) for span in producers if span is not None} == {letter}
    told = attributes(letter)
    assert told["messaging.system"] == "nats"
    assert told["messaging.operation.type"] == "process"
    assert told["messaging.destination.name"] == f"{settings.prefix}.task.letter"
    assert told["messaging.message.id"] == told["starling.task.id"]
    assert (told["starling.agent"], told["starling.version"], told["starling.owner"]) == ("office", "3", "back-office")
    assert (told["starling.attempt"], told["starling.status"], told["starling.handoffs"]) == (1, "done", 1)
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == (7, 5)
    assert (told["gen_ai.request.model"], told["starling.confidence"]) == ("quill", 0.75)
    assert attributes(submitted)["messaging.message.conversation_id"] == "c7"
    assert "committed" in [event.name for event in letter.events]


async def test_attempts_are_siblings_and_each_refers_to_the_one_before(settings: Settings, recorder: Recorder) -> None:
    async with (
        client(settings, recorder) as mesh,
        hosting(office(), settings=settings, tracer_provider=recorder.provider),
    ):
        handle = await mesh.submit("letter", "twice", returns=str)
        await handle.result(within_s=10)
        first, second = await recorder.ended("process letter", 2)

    (submitted,) = recorder.named("submit letter")
    assert parent_of(first, recorder.spans) is submitted
    assert parent_of(second, recorder.spans) is submitted
    assert first.status.status_code is StatusCode.ERROR
    assert attributes(first)["error.type"] == "Transient"
    assert [event.name for event in first.events if event.name == "exception"]
    assert second.status.status_code is not StatusCode.ERROR
    assert [attributes(span)["starling.attempt"] for span in (first, second)] == [1, 2]
    assert [link.context.span_id for link in second.links] == [first.context and first.context.span_id]
    # The second attempt found the step on record.
    assert len(recorder.named("step stamp")) == 1


async def test_a_failed_task_says_why_and_a_redrive_goes_on_in_its_trace(
    settings: Settings, recorder: Recorder
) -> None:
    async with (
        client(settings, recorder) as mesh,
        hosting(office(), settings=settings, tracer_provider=recorder.provider),
    ):
        handle = await mesh.submit("letter", "never", returns=str, key="n")
        with pytest.raises(TaskFailed):
            await handle.result(within_s=10)
        letter = await eventually(lambda: read_dead_letter(mesh.bus, Identity("letter", "n")))
        again = await redrive(mesh.bus, letter)
        runs = await recorder.ended("process letter", 4)
        assert await eventually(lambda: read_dead_letter(mesh.bus, again.task))

    assert len(recorder.traces) == 1
    assert {span.status.status_code for span in runs} == {StatusCode.ERROR}
    assert {attributes(span)["error.type"] for span in runs} == {"ValueError"}
    assert attributes(runs[-1])["starling.redrive_of"] == "n"


async def test_a_woken_run_is_a_span_of_its_own_that_refers_to_the_parked_one_and_the_signal(
    settings: Settings, recorder: Recorder
) -> None:
    async with (
        client(settings, recorder) as mesh,
        hosting(office(), settings=settings, tracer_provider=recorder.provider),
    ):
        handle = await mesh.submit("patient", "x", returns=str, key="p")
        await eventually(lambda: _is_parked(mesh, "p"))
        await mesh.signal("patient", "p", "go", "now")
        assert await handle.result(within_s=10) == "now"
        parked, woken = await recorder.ended("process patient", 2)

    (signalled,) = recorder.named("signal patient")
    assert len(recorder.traces) == 1
    assert attributes(parked)["starling.status"] == "parked"
    assert attributes(woken)["starling.is_woken"] is True
    assert parent_of(parked, recorder.spans) == parent_of(woken, recorder.spans)
    linked = {link.context.span_id for link in woken.links}
    assert linked == {span.context.span_id for span in (parked, signalled) if span.context is not None}
    assert "waits for a signal" in [event.name for event in parked.events]
    assert "signalled" in [event.name for event in woken.events]


async def test_a_raw_publisher_s_context_is_continued_with_its_state_and_baggage(
    mesh: Mesh, settings: Settings, recorder: Recorder
) -> None:
    seen: list[Any] = []
    agent = Agent("raw")

    @agent.handles("below")
    async def below(text: str, ctx: Context) -> str:
        seen.append((trace.get_current_span().get_span_context().trace_state.get("v"), baggage.get_baggage("tenant")))
        return text

    @agent.handles("above")
    async def above(text: str, ctx: Context) -> str:
        return await ctx.call(below, text)

    headers = {names.TRACEPARENT: KNOWN, names.TRACESTATE: "v=1", names.BAGGAGE: "tenant=acme"}
    async with hosting(agent, settings=settings, tracer_provider=recorder.provider):
        await mesh.bus.publish(mesh.bus.subjects.task(Identity("above", "r1")), b'"x"', headers=headers)
        await mesh.handle("above", "r1").result(within_s=10)

    assert {f"{found:032x}" for found in recorder.traces} == {KNOWN[3:35]}
    assert [span.parent and f"{span.parent.span_id:016x}" for span in recorder.named("process above")] == [KNOWN[36:52]]
    assert seen == [("1", "acme")]


async def test_without_tracing_here_a_raw_publisher_s_context_goes_on_to_children_as_it_is(
    mesh: Mesh, settings: Settings
) -> None:
    seen: list[dict[str, str]] = []
    agent = Agent("raw")

    @agent.handles("below")
    async def below(text: str, ctx: Context) -> str:
        seen.append(dict(ctx.trace))
        return text

    @agent.handles("above")
    async def above(text: str, ctx: Context) -> str:
        ctx.send(below, text)
        return await ctx.call(below, text)

    headers = {names.TRACEPARENT: KNOWN, names.TRACESTATE: "v=1", names.BAGGAGE: "tenant=acme"}
    async with hosting(agent, settings=settings):
        await mesh.bus.publish(mesh.bus.subjects.task(Identity("above", "r1")), b'"x"', headers=headers)
        await mesh.handle("above", "r1").result(within_s=10)
        await eventually(lambda: len(seen) == 2)

    assert seen == [headers, headers]


async def test_attempts_of_a_task_that_came_without_a_trace_are_one_trace(
    mesh: Mesh, settings: Settings, recorder: Recorder
) -> None:
    async with hosting(office(), settings=settings, tracer_provider=recorder.provider):
        await mesh.bus.publish(mesh.bus.subjects.task(Identity("letter", "bare")), b'"twice"')
        await mesh.handle("letter", "bare").result(within_s=10)
        first, second = await recorder.ended("process letter", 2)

    assert len(recorder.traces) == 1
    assert first.parent is None
    assert parent_of(second, recorder.spans) is first


async def test_what_a_handler_s_libraries_record_hangs_below_its_run_in_threads_too(
    mesh: Mesh, settings: Settings, recorder: Recorder
) -> None:
    theirs = recorder.provider.get_tracer("theirs")
    seen: list[dict[str, str] | None] = []
    agent = Agent("user")

    @agent.handles("plain")
    def plain(text: str) -> str:
        with theirs.start_as_current_span("theirs"):
            seen.append(tracing.exemplar())
            return threading.current_thread().name

    @agent.handles("waiting")
    async def waiting(text: str, ctx: Context) -> str:
        async def effect() -> str:
            with theirs.start_as_current_span("theirs"):
                await asyncio.sleep(0)
                return "done"

        return await ctx.step("effect", effect)

    async with hosting(agent, settings=settings, tracer_provider=recorder.provider):
        assert (await (await mesh.submit("plain", "x")).result(within_s=10)) == "mesh-plain"
        await (await mesh.submit("waiting", "x")).result(within_s=10)
        await recorder.ended("process plain")
        await recorder.ended("process waiting")

    above = [parent_of(span, recorder.spans) for span in recorder.named("theirs")]
    assert [span and span.name for span in above] == ["process plain", "step effect"]
    own = recorder.named("theirs")[0].context
    assert own is not None
    assert seen == [{"trace_id": f"{own.trace_id:032x}", "span_id": f"{own.span_id:016x}"}]


async def test_a_submission_hangs_below_the_caller_s_span_in_the_sync_client_s_thread_too(
    settings: Settings, recorder: Recorder
) -> None:
    def submit() -> None:
        from mesh import sync

        token = context.attach(trace.set_span_in_context(outer))
        try:
            with sync.connect(settings=settings, tracer_provider=recorder.provider) as mesh:
                mesh.submit("nobody", 1)
        finally:
            context.detach(token)

    outer = recorder.provider.get_tracer("theirs").start_span("request")
    async with client(settings, recorder) as mesh:
        async with hosting(office(), settings=settings):
            with trace.use_span(outer, end_on_exit=False):
                async for mapped in mesh.map("file", ["a", "b"], returns=str):
                    assert mapped.is_done
        await asyncio.to_thread(submit)
    outer.end()

    submitted = [*recorder.named("submit file"), *recorder.named("submit nobody")]
    assert len(submitted) == 3
    assert {span.parent and span.parent.span_id for span in submitted} == {outer.get_span_context().span_id}


async def test_a_task_that_is_refused_before_it_runs_has_a_span_that_says_so(
    settings: Settings, recorder: Recorder
) -> None:
    async with (
        client(settings, recorder) as mesh,
        hosting(office(), settings=settings, tracer_provider=recorder.provider),
    ):
        handle = await mesh.submit("file", 7)
        with pytest.raises(TaskFailed):
            await handle.result(within_s=10)
        (run,) = await recorder.ended("process file")

    assert run.status.status_code is StatusCode.ERROR
    assert attributes(run)["error.type"] == "ContractError"
    assert len(recorder.traces) == 1


async def test_what_is_not_sampled_is_not_recorded_and_gives_no_exemplar(settings: Settings) -> None:
    recorder, seen = Recorder(sampler=ALWAYS_OFF), []
    agent = Agent("quiet")

    @agent.handles("hush")
    async def hush(text: str, ctx: Context) -> str:
        seen.append((tracing.exemplar(), int(ctx.traceparent[-2:], 16) & 1))
        return text

    async with client(settings, recorder) as mesh, hosting(agent, settings=settings, tracer_provider=recorder.provider):
        await (await mesh.submit("hush", "x")).result(within_s=10)

    assert seen == [(None, 0)]
    assert recorder.spans == ()


async def test_off_goes_before_a_provider(settings: Settings, recorder: Recorder) -> None:
    off = settings.model_copy(update={"traces": "off"})
    async with client(off, recorder) as mesh, hosting(office(), settings=off, tracer_provider=recorder.provider):
        await (await mesh.submit("file", "x")).result(within_s=10)

    assert recorder.spans == ()


async def _is_parked(mesh: Mesh, key: str) -> bool:
    return (await mesh.status("patient", key)).where is Where.PARKED
