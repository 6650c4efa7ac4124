"""LLM runs recorded by hand: what is asked once, what a replay finds, what is told to the task."""

import asyncio
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from pydantic import BaseModel
from pydantic_ai import Agent as LLMAgent
from pydantic_ai import FunctionToolset, ModelRetry, RunContext, UsageLimits
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.toolsets import DynamicToolset

from contracts.errors import ContractError
from contracts.outcome import Spent
from contracts.subjects import Identity, check_step_name
from mesh import Context, Permanent, Throttled, Transient
from mesh.errors import SetupError
from mesh.ext.pydantic_ai import Durable, model_from_settings
from mesh.ext.pydantic_ai.naming import conversation
from mesh.resilience.classify import classify
from mesh.settings import LLMSettings
from mesh.testing import eventually
from mesh.testing.llm import Call, LLMServer, Reply, State, llm_server

KEY = "a-key"


@pytest.fixture
def endpoint() -> Iterator[LLMServer]:
    with llm_server() as server:
        yield server


def settings(endpoint: LLMServer, model: str) -> LLMSettings:
    return LLMSettings(base_url=endpoint.url, model=model, api_key=KEY)


def researcher(endpoint: LLMServer, model: str = "calls-4", looked: list[str] | None = None) -> LLMAgent[None, str]:
    """An LLM with one tool; what it looks up goes to `looked`."""
    llm: LLMAgent[None, str] = LLMAgent(
        model_from_settings(settings(endpoint, model)), name="researcher", instructions="Look."
    )

    @llm.tool_plain
    async def look_up(topic: str) -> str:
        """Look something up."""
        if looked is not None:
            looked.append(topic)
        return f"{topic} is known"

    return llm


def context(key: str = "k") -> Context:
    return Context(Identity("research", key))


def replay(ctx: Context) -> Context:
    """The context of the next attempt, which finds what the last one recorded."""
    again = Context(ctx.identity, attempt=ctx.attempt + 1)
    again._book = ctx._book
    return again


def text(ctx: Context) -> str:
    return "".join(part.get("text", "") for _, part in ctx.parts)


async def test_a_run_asks_the_model_as_often_as_it_takes_and_reports_what_it_cost(endpoint: LLMServer) -> None:
    ctx = context()

    result = await Durable(researcher(endpoint)).run("What is a mesh?", ctx)

    bill = endpoint.bill()
    assert result.output == "After 4 of 4 steps this is the answer to: What is a mesh?"
    assert (bill.started, bill.finished) == (4, 4)
    assert {request.authorization for request in bill.requests} == {f"Bearer {KEY}"}
    assert ctx.spent_total == Spent(tokens_in=bill.tokens_in, tokens_out=bill.tokens_out)
    assert bill.tokens_in > 0
    assert ctx.decided_by is not None
    assert ctx.decided_by.model == "calls-4"
    assert len(ctx.decided_by.prompt_digest) == len(ctx.decided_by.model_digest) == 32


async def test_a_replay_asks_nothing_runs_no_tool_and_comes_to_the_same(endpoint: LLMServer) -> None:
    looked: list[str] = []
    llm = researcher(endpoint, looked=looked)
    first = context()
    result = await Durable(llm).run("What is a mesh?", first)

    again = replay(first)
    repeated = await Durable(llm).run("What is a mesh?", again)

    assert repeated.output == result.output
    assert endpoint.bill().started == 4
    assert looked == ["topic 1", "topic 2", "topic 3"]
    assert again.spent_total == first.spent_total
    assert again.decided_by == first.decided_by
    assert conversation(repeated.all_messages()) == conversation(result.all_messages())


async def test_a_replay_streams_the_whole_text_again(endpoint: LLMServer) -> None:
    llm = researcher(endpoint)
    first = context()
    await Durable(llm).run("What is a mesh?", first)

    again = replay(first)
    await Durable(llm).run("What is a mesh?", again)

    assert text(again) == text(first)
    assert text(first).startswith("Step 1 of 4: I look at look_up. Step 2")
    assert [part for _, part in first.parts if "tool" in part] == [
        {"tool": "look_up", "arguments": {"topic": f"topic {number}"}} for number in (1, 2, 3)
    ]
    assert len(first.parts) > len(again.parts)


async def test_tokens_are_emitted_as_they_come(endpoint: LLMServer) -> None:
    ctx = context()
    endpoint.hold(1, pieces=3)

    async with asyncio.TaskGroup() as fibers:
        running = fibers.create_task(Durable(researcher(endpoint, "calls-1")).run("What is a mesh?", ctx))
        await eventually(lambda: text(ctx) == "After 1 of ")
        assert not running.done()
        endpoint.release()

    assert text(ctx) == running.result().output


async def test_without_streaming_the_answer_is_asked_for_whole(endpoint: LLMServer) -> None:
    ctx = context()

    result = await Durable(researcher(endpoint), is_streaming=False).run("What is a mesh?", ctx)

    assert result.output.startswith("After 4 of 4 steps")
    assert endpoint.bill().finished == 4
    assert not ctx.parts


async def test_a_request_that_was_interrupted_is_made_again_and_those_before_it_are_not(endpoint: LLMServer) -> None:
    llm = researcher(endpoint)
    first = context()
    endpoint.hold(3)
    async with asyncio.TaskGroup() as fibers:
        running = fibers.create_task(Durable(llm).run("What is a mesh?", first))
        await eventually(lambda: endpoint.bill().is_holding)
        running.cancel()
    endpoint.release()

    await Durable(llm).run("What is a mesh?", replay(first))

    bill = endpoint.bill()
    assert bill.started == 4 + 1
    assert [request.turn for request in bill.requests] == [0, 1, 2, 2, 3]
    assert bill.requests[2].key == bill.requests[3].key
    assert len({request.key for request in bill.requests}) == 4


async def test_the_idempotency_key_of_a_request_is_its_steps(endpoint: LLMServer) -> None:
    await Durable(researcher(endpoint, "calls-1")).run("hi", context("order-7"))

    (request,) = endpoint.bill().requests
    assert re.fullmatch(r"research/order-7/model-[0-9a-f]{16}-0", request.key)


async def test_instructions_that_tell_the_time_do_not_make_another_question(endpoint: LLMServer) -> None:
    llm = researcher(endpoint)

    @llm.instructions
    def clock() -> str:
        return f"It is {datetime.now(UTC)}."

    first = context()
    await Durable(llm).run("What is a mesh?", first)
    await Durable(llm).run("What is a mesh?", replay(first))

    assert endpoint.bill().started == 4


async def test_another_prompt_is_another_question(endpoint: LLMServer) -> None:
    llm = researcher(endpoint)
    first = context()
    await Durable(llm).run("What is a mesh?", first)

    await Durable(llm).run("What is a leader?", replay(first))

    assert endpoint.bill().started == 8


async def test_the_same_asked_twice_in_one_task_is_asked_twice_and_replayed_twice(endpoint: LLMServer) -> None:
    durable = Durable(researcher(endpoint, "calls-2"))
    first = context()
    await durable.run("hi", first)
    await durable.run("hi", first)

    again = replay(first)
    await durable.run("hi", again)
    await durable.run("hi", again)

    assert endpoint.bill().started == 4
    assert again.spent_total == first.spent_total


async def test_runs_that_go_on_beside_each_other_find_their_own_records_in_any_order(endpoint: LLMServer) -> None:
    looked: list[str] = []
    llm = researcher(endpoint, looked=looked)
    prompts = [f"What is thing {number}?" for number in range(6)]
    first = context()

    async def run_all(ctx: Context, asked: list[str]) -> dict[str, str]:
        async with asyncio.TaskGroup() as fibers:
            running = {prompt: fibers.create_task(Durable(llm).run(prompt, ctx)) for prompt in asked}
        return {prompt: run.result().output for prompt, run in running.items()}

    answers = await run_all(first, prompts)
    repeated = await run_all(replay(first), prompts[::-1])

    assert repeated == answers
    assert endpoint.bill().started == 6 * 4
    assert len(looked) == 6 * 3


async def test_a_model_that_asks_for_several_tools_at_once_replays_alike() -> None:
    def both(asked: Any) -> Reply:
        if any(message["role"] == "tool" for message in asked["messages"]):
            return Reply("done")
        return Reply("", (Call("slow", {"n": 1}), Call("slow", {"n": 1}), Call("fast", {"n": 2})))

    ran: list[str] = []
    with llm_server(both) as endpoint:
        llm: LLMAgent[None, str] = LLMAgent(model_from_settings(settings(endpoint, "any")), name="both")

        @llm.tool_plain
        async def slow(n: int) -> str:
            await asyncio.sleep(0.02)
            ran.append("slow")
            return "slow"

        @llm.tool_plain
        def fast(n: int) -> str:
            ran.append("fast")
            return "fast"

        first = context()
        result = await Durable(llm).run("go", first)
        repeated = await Durable(llm).run("go", replay(first))

        assert sorted(ran) == ["fast", "slow", "slow"]
        assert conversation(repeated.all_messages()) == conversation(result.all_messages())
        assert endpoint.bill().started == 2


async def test_what_a_tool_asks_to_be_corrected_is_recorded_too() -> None:
    def corrected(asked: Any) -> Reply:
        turn = sum(message["role"] == "assistant" for message in asked["messages"])
        return Reply("done") if turn == 2 else Reply("", (Call("parity", {"n": turn + 1}),))

    ran: list[int] = []
    with llm_server(corrected) as endpoint:
        llm: LLMAgent[None, str] = LLMAgent(model_from_settings(settings(endpoint, "any")), name="even")

        @llm.tool_plain
        async def parity(n: int) -> str:
            ran.append(n)
            if n % 2:
                raise ModelRetry(f"{n} is odd: give an even number")
            return "fine"

        first = context()
        result = await Durable(llm).run("go", first)
        repeated = await Durable(llm).run("go", replay(first))

        assert ran == [1, 2]
        assert conversation(repeated.all_messages()) == conversation(result.all_messages())
        assert "1 is odd: give an even number" in str(result.all_messages())
        assert endpoint.bill().started == 3


class Verdict(BaseModel):
    """A typed answer."""

    is_good: bool
    why: str


async def test_an_answer_of_a_type_that_had_to_be_corrected_replays_alike() -> None:
    def unsure(asked: Any) -> Reply:
        turn = sum(message["role"] == "assistant" for message in asked["messages"])
        (tool,) = [tool["function"]["name"] for tool in asked["tools"]]
        return [
            Reply("I would rather talk."),
            Reply("", (Call(tool, {"is_good": "maybe"}),)),
            Reply("", (Call(tool, {"is_good": True, "why": "it holds"}),)),
        ][turn]

    with llm_server(unsure) as endpoint:
        llm = LLMAgent(model_from_settings(settings(endpoint, "any")), name="judge", output_type=Verdict, retries=3)
        first = context()

        result = await Durable(llm).run("Is it good?", first)
        repeated = await Durable(llm).run("Is it good?", replay(first))

        assert result.output == repeated.output == Verdict(is_good=True, why="it holds")
        assert endpoint.bill().started == 3


async def test_a_tool_that_opted_out_of_steps_may_use_durable_verbs(endpoint: LLMServer) -> None:
    llm: LLMAgent[Context, str] = LLMAgent(
        model_from_settings(settings(endpoint, "calls-2")), name="asker", deps_type=Context
    )

    @llm.tool(metadata={"step": False})
    async def ask(run: RunContext[Context]) -> str:
        return str(await run.deps.call("oracle", "what?"))

    ctx = Context(Identity("research", "k"), answers={"oracle": "42"})

    result = await Durable(llm).run("go", ctx, deps=ctx)

    assert "42" in str(result.all_messages())


async def test_a_confidence_that_the_author_told_stays(endpoint: LLMServer) -> None:
    ctx = context()
    ctx.explain(confidence=0.4, reason="a guess")

    await Durable(researcher(endpoint, "calls-1")).run("hi", ctx)

    assert (ctx.confidence, ctx.reason) == (0.4, "a guess")
    assert ctx.decided_by is not None
    assert ctx.decided_by.model == "calls-1"


async def test_digests_on_record_are_those_of_the_request_that_was_made(endpoint: LLMServer) -> None:
    first = context()
    llm = researcher(endpoint, "calls-1")
    await Durable(llm).run("hi", first)
    changed: LLMAgent[None, str] = LLMAgent(llm.model, name="researcher", instructions="Look twice.")

    again = replay(first)
    await Durable(changed).run("hi", again)
    anew = context("another")
    await Durable(changed).run("hi", anew)

    assert first.decided_by is not None
    assert anew.decided_by is not None
    assert again.decided_by == first.decided_by
    assert anew.decided_by.prompt_digest != first.decided_by.prompt_digest


@pytest.mark.parametrize("status", [408, 429, 500, 503])
async def test_what_may_heal_is_tried_again_when_the_endpoint_says(endpoint: LLMServer, status: int) -> None:
    endpoint.trouble(status, retry_after_s=7)

    with pytest.raises(Transient, match=f"calls-1 at {endpoint.url}/? answered {status}") as caught:
        await Durable(researcher(endpoint, "calls-1")).run("hi", context())

    assert caught.value.after_s == 7
    assert [request.state for request in endpoint.bill().requests] == [State.REFUSED]


@pytest.mark.parametrize(
    ("status", "retry_after_s", "is_throttled"),
    [(429, 7, True), (429, 0.25, True), (429, None, True), (503, 7, True), (503, None, False), (500, 7, False)],
)
async def test_an_endpoint_that_says_not_now_throttles(
    endpoint: LLMServer, status: int, retry_after_s: float | None, is_throttled: bool
) -> None:
    endpoint.trouble(status, retry_after_s=retry_after_s)

    with pytest.raises(Transient) as caught:
        await Durable(researcher(endpoint, "calls-1")).run("hi", context())

    assert isinstance(caught.value, Throttled) == is_throttled
    assert caught.value.after_s == retry_after_s


async def test_an_llm_that_runs_without_durable_is_throttled_too(endpoint: LLMServer) -> None:
    endpoint.trouble(429, retry_after_s=7)

    with pytest.raises(ModelHTTPError) as caught:
        await researcher(endpoint, "calls-1").run("hi")
    found = classify(caught.value, now=time.time())

    assert (found.is_throttled, found.after_s) == (True, 7)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
async def test_what_is_refused_is_not_tried_again(endpoint: LLMServer, status: int) -> None:
    endpoint.trouble(status)

    with pytest.raises(Permanent, match=f"calls-1 at {endpoint.url}/? answered {status}"):
        await Durable(researcher(endpoint, "calls-1")).run("hi", context())


async def test_a_failed_request_is_not_recorded_and_those_before_it_are(endpoint: LLMServer) -> None:
    llm = researcher(endpoint)
    first = context()

    @llm.tool_plain
    def unused() -> None:
        """Never asked for."""

    @llm.instructions
    def break_it(run: RunContext[None]) -> str:
        if run.run_step == 3 and not broken:
            broken.append(True)
            endpoint.trouble(503)
        return ""

    broken: list[bool] = []
    with pytest.raises(Transient):
        await Durable(llm).run("What is a mesh?", first)

    await Durable(llm).run("What is a mesh?", replay(first))

    assert endpoint.bill().started == 4


async def test_an_endpoint_that_is_not_there_is_tried_again() -> None:
    with llm_server() as endpoint:
        pass

    with pytest.raises(Transient, match=re.escape(endpoint.url)):
        await Durable(researcher(endpoint)).run("hi", context())


@pytest.mark.parametrize("is_streaming", [True, False])
async def test_an_answer_that_is_no_completion_fails_for_good(endpoint: LLMServer, is_streaming: bool) -> None:
    endpoint.trouble(200)

    with pytest.raises(Permanent, match=re.escape(endpoint.url)):
        await Durable(researcher(endpoint), is_streaming=is_streaming).run("hi", context())


async def test_a_limit_of_usage_fails_for_good(endpoint: LLMServer) -> None:
    with pytest.raises(Permanent, match="request_limit of 2"):
        await Durable(researcher(endpoint)).run("hi", context(), usage_limits=UsageLimits(request_limit=2))


async def test_a_tool_that_raises_fails_the_attempt_as_it_is(endpoint: LLMServer) -> None:
    llm = researcher(endpoint, "calls-2")
    llm_of_trouble: LLMAgent[None, str] = LLMAgent(llm.model, name="trouble")

    @llm_of_trouble.tool_plain
    def fragile() -> str:
        raise ConnectionError("the far side is away")

    with pytest.raises(ConnectionError, match="far side"):
        await Durable(llm_of_trouble).run("hi", context())


async def test_a_conversation_goes_on_from_its_history(endpoint: LLMServer) -> None:
    durable = Durable(researcher(endpoint, "calls-1"))
    first = context()
    began = await durable.run("hi", first)

    await durable.run("and then?", first, history=began.all_messages())

    assert [request.turn for request in endpoint.bill().requests] == [0, 1]


async def test_a_result_that_cannot_travel_is_said_to(endpoint: LLMServer) -> None:
    llm: LLMAgent[None, str] = LLMAgent(model_from_settings(settings(endpoint, "calls-2")), name="opaque")

    @llm.tool_plain
    def opaque() -> Any:
        return object()

    with pytest.raises(ContractError, match="cannot be recorded"):
        await Durable(llm).run("hi", context())


@pytest.mark.parametrize(
    ("given", "complaint"),
    [(LLMSettings(), "MESH_LLM_MODEL"), (LLMSettings(model="gpt"), "MESH_LLM_API_KEY")],
)
def test_settings_that_name_no_model_or_key_say_what_to_set(given: LLMSettings, complaint: str) -> None:
    with pytest.raises(SetupError, match=complaint):
        model_from_settings(given)


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_LLM_BASE_URL", "http://somewhere:1/v1")
    monkeypatch.setenv("MESH_LLM_MODEL", "some/model")
    monkeypatch.setenv("MESH_LLM_API_KEY", "secret")

    model = model_from_settings()

    assert (model.model_name, model.base_url, model.client.max_retries) == ("some/model", "http://somewhere:1/v1/", 0)
    assert model.client.api_key == "secret"


async def test_every_name_is_a_legal_step_name(endpoint: LLMServer) -> None:
    ctx = context()
    await Durable(researcher(endpoint)).run("hi", ctx)

    for name in ctx._book.steps:
        assert check_step_name(name) == name
    assert msgspec.json.encode(sorted(ctx._book.steps)).count(b"model-") == 4


async def test_tools_that_are_found_at_run_time_are_recorded_too(endpoint: LLMServer) -> None:
    ran: list[str] = []

    def look_up(topic: str) -> str:
        """Look something up."""
        ran.append(topic)
        return "known"

    found = DynamicToolset[None](lambda _: FunctionToolset([look_up]), id="found")
    model = model_from_settings(settings(endpoint, "calls-3"))
    llm: LLMAgent[None, str] = LLMAgent(model, name="finder", toolsets=[found])
    first = context()

    result = await Durable(llm).run("hi", first)
    repeated = await Durable(llm).run("hi", replay(first))

    assert repeated.output == result.output
    assert ran == ["topic 1", "topic 2"]
    assert endpoint.bill().started == 3


@pytest.mark.parametrize(("statuses", "expected"), [((401, 503), Transient), ((401, 404), Permanent)])
async def test_of_several_models_that_failed_one_that_may_heal_is_enough(
    statuses: tuple[int, int], expected: type[Exception]
) -> None:
    with llm_server() as first, llm_server() as second:
        for endpoint, status in zip((first, second), statuses, strict=True):
            endpoint.trouble(status)
        models = [model_from_settings(settings(endpoint, "calls-1")) for endpoint in (first, second)]
        llm: LLMAgent[None, str] = LLMAgent(FallbackModel(*models), name="either")

        with pytest.raises(expected):
            await Durable(llm).run("hi", context())


async def test_an_llm_that_cannot_be_recorded_as_it_is_set_up_fails_for_good(endpoint: LLMServer) -> None:
    nameless = DynamicToolset[None](lambda _: None)
    model = model_from_settings(settings(endpoint, "calls-1"))
    llm: LLMAgent[None, str] = LLMAgent(model, name="nameless", toolsets=[nameless])

    with pytest.raises(Permanent, match="as it is set up"):
        await Durable(llm).run("hi", context())
