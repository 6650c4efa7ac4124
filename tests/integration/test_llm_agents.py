"""LLM agents on a real mesh: their tools are other agents, their steps are records, their words are streamed."""

import asyncio
from collections.abc import Iterator
from functools import partial
from typing import Any

import msgspec
import pytest
from pydantic_ai import Agent as LLMAgent

from contracts.outcome import FailureKind, Status
from contracts.subjects import Identity
from contracts.workflow import Step
from mesh import Agent, Context, Mesh, Permanent
from mesh.bus import topology
from mesh.bus.steps import read_step
from mesh.ext.pydantic_ai import Durable, live_offers, model_from_settings
from mesh.settings import LLMSettings, Settings
from mesh.streaming import Part, Restarted
from mesh.testing import eventually, hosting
from mesh.testing.llm import Call, LLMServer, Reply, llm_server

WITHIN_S = 30.0


@pytest.fixture
def endpoint() -> Iterator[LLMServer]:
    with llm_server() as server:
        yield server


def thinker(endpoint: LLMServer, model: str) -> LLMAgent[None, str]:
    return LLMAgent(model_from_settings(LLMSettings(base_url=endpoint.url, model=model)), name="thinker")


class Shelf(msgspec.Struct, frozen=True):
    """A place to look."""

    topic: str


def library(runs: list[str]) -> Agent:
    agent = Agent("library", owner="books")

    @agent.handles("look-up", timeout_s=20)
    async def look_up(shelf: Shelf) -> str:
        """Look something up."""
        runs.append(shelf.topic)
        return f"{shelf.topic} is known"

    @agent.handles("burn-down")
    async def burn_down() -> str:
        """Refuse."""
        raise Permanent("libraries are not burnt down")

    return agent


def asking(durable: Durable[None, str], **limits: Any) -> Agent:
    agent = Agent("thinker")

    @agent.handles("think", **limits)
    async def think(question: str, ctx: Context) -> str:
        return (await durable.run(question, ctx)).output

    return agent


async def test_an_agents_tools_are_other_agents_found_on_the_mesh(
    mesh: Mesh, settings: Settings, endpoint: LLMServer
) -> None:
    runs: list[str] = []
    durable = Durable(thinker(endpoint, "calls-4"), ["look-*"], lookup=partial(live_offers, settings))

    async with hosting(library(runs), asking(durable), settings=settings):
        handle = await mesh.submit("think", "What is a mesh?", key="q")
        answer = await handle.result(within_s=WITHIN_S)
        outcome = await handle.outcome()

    bill = endpoint.bill()
    assert answer == "After 4 of 4 steps this is the answer to: What is a mesh?"
    assert runs == ["topic 1", "topic 2", "topic 3"]
    assert outcome.spent is not None
    assert (outcome.spent.tokens_in, outcome.spent.tokens_out) == (bill.tokens_in, bill.tokens_out)
    assert outcome.decided_by is not None
    assert (outcome.decided_by.agent, outcome.decided_by.model) == ("thinker", "calls-4")
    assert len(await topology.queued(mesh.bus, mesh.bus.subjects.results_of("look-up"))) == 3


async def test_an_agent_that_parks_at_each_tool_pays_once_and_streams_everything(
    mesh: Mesh, settings: Settings, endpoint: LLMServer
) -> None:
    runs: list[str] = []
    impatient = settings.model_copy(update={"hot_wait_s": 0.0})
    durable = Durable(thinker(endpoint, "calls-3"), ["look-up"], lookup=partial(live_offers, settings))
    said: list[str] = []

    async with hosting(library(runs), asking(durable), settings=impatient):
        handle = await mesh.submit("think", "What is a mesh?", key="q")
        async with asyncio.timeout(WITHIN_S):
            async for part in handle.stream():
                match part:
                    case Restarted():
                        said.clear()
                    case Part(value=value):
                        said.append(value.get("text", ""))
        answer = await handle.result(within_s=WITHIN_S)

    assert endpoint.bill().started == 3
    assert len(runs) == 2
    assert "".join(said).endswith(answer)
    assert "".join(said).startswith("Step 1 of 3")


async def test_a_tool_that_fails_for_good_is_told_to_the_model(mesh: Mesh, settings: Settings) -> None:
    told: list[str] = []

    def burn(asked: Any) -> Reply:
        if asked["messages"][-1]["role"] == "tool":
            told.append(asked["messages"][-1]["content"])
            return Reply("I shall not.")
        return Reply("", (Call("burn-down", {}),))

    with llm_server(burn) as endpoint:
        durable = Durable(thinker(endpoint, "any"), ["burn-down"], lookup=partial(live_offers, settings))
        async with hosting(library([]), asking(durable), settings=settings):
            handle = await mesh.submit("think", "Burn it.", key="q")

            assert await handle.result(within_s=WITHIN_S) == "I shall not."
    assert "libraries are not burnt down" in told[0]


async def test_an_endpoint_that_is_overloaded_is_asked_again_without_repeating_what_is_done(
    mesh: Mesh, settings: Settings, endpoint: LLMServer
) -> None:
    runs: list[str] = []
    durable = Durable(thinker(endpoint, "calls-3"), ["look-up"], lookup=partial(live_offers, settings))
    endpoint.hold(2)

    async with hosting(library(runs), asking(durable), settings=settings):
        handle = await mesh.submit("think", "What is a mesh?", key="q")
        await eventually(lambda: endpoint.bill().is_holding)
        endpoint.trouble(503, retry_after_s=0.1)
        endpoint.release()
        outcome = await handle.outcome(within_s=WITHIN_S)

    assert outcome.status is Status.DONE
    assert outcome.attempt == 2
    assert endpoint.bill().started == 3
    assert len(endpoint.bill().requests) == 3 + 1


async def test_a_key_that_is_refused_fails_the_task_at_once_and_names_the_endpoint(
    mesh: Mesh, settings: Settings, endpoint: LLMServer
) -> None:
    endpoint.trouble(401)

    async with hosting(asking(Durable(thinker(endpoint, "calls-1"))), settings=settings):
        handle = await mesh.submit("think", "What is a mesh?", key="q")
        outcome = await handle.outcome(within_s=WITHIN_S)

    assert outcome.failure is not None
    assert outcome.failure.kind is FailureKind.PERMANENT
    assert f"{endpoint.url}/ answered 401" in outcome.failure.message
    assert len(endpoint.bill().requests) == 1


async def test_an_answer_too_large_to_be_recorded_fails_the_task_and_says_so(mesh: Mesh, settings: Settings) -> None:
    small = settings.model_copy(update={"payload_bytes_max": 2_000})

    with llm_server(lambda _: Reply("word " * 1_000)) as endpoint:
        async with hosting(asking(Durable(thinker(endpoint, "any"))), settings=small):
            handle = await mesh.submit("think", "Tell me everything.", key="q")
            outcome = await handle.outcome(within_s=WITHIN_S)

    assert outcome.failure is not None
    assert outcome.failure.message.endswith("exceeds 2000 bytes")
    assert "step 'model-" in outcome.failure.message


async def test_every_step_is_on_record_under_its_task(mesh: Mesh, settings: Settings, endpoint: LLMServer) -> None:
    async with hosting(asking(Durable(thinker(endpoint, "calls-1"))), settings=settings):
        handle = await mesh.submit("think", "What is a mesh?", key="q")
        await handle.result(within_s=WITHIN_S)

    (name,) = [request.key.rpartition("/")[2] for request in endpoint.bill().requests]
    step = await read_step(mesh.bus, Identity("think", "q"), name, Step)
    assert step is not None
    assert step.spent is not None
    assert step.spent.tokens_in == endpoint.bill().tokens_in
