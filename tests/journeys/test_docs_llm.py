"""What the guide to LLM agents says, done as it says it."""

from collections.abc import Iterator
from typing import Any

import pytest

from mesh import Agent
from mesh.settings import Settings
from mesh.testing import hosting
from mesh.testing.fixtures import nats_server, nats_url, settings
from mesh.testing.llm import LLMServer, llm_server
from tests.journeys.test_readme import blocks

__all__ = ["nats_server", "nats_url", "settings"]

PAGE = "docs/llm_agents.md"
MODEL = "calls-3"


@pytest.fixture
def endpoint() -> Iterator[LLMServer]:
    with llm_server() as server:
        yield server


@pytest.fixture
def guide(endpoint: LLMServer, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of all its blocks, run one after the other with the settings that it tells of."""
    for name, value in {
        "MESH_LLM_BASE_URL": endpoint.url,
        "MESH_LLM_MODEL": MODEL,
        "MESH_NATS_URL": settings.nats_url or "",
        "MESH_PREFIX": settings.prefix,
    }.items():
        monkeypatch.setenv(name, value)
    names: dict[str, Any] = {"__name__": "guide"}
    for block in blocks(PAGE, "python"):
        exec(compile(block, PAGE, "exec"), names)
    return names


async def test_the_guides_agent_answers_and_streams_on_a_mesh(
    guide: dict[str, Any], settings: Settings, endpoint: LLMServer, capsys: pytest.CaptureFixture[str]
) -> None:
    refunds = Agent("refunds")

    @refunds.handles("refund-order")
    async def refund_order(number: int) -> str:
        return f"{number} is paid back"

    async with hosting(guide["shop"], guide["support"], refunds, settings=settings):
        answer = await guide["ask"]("Where is order 7?")

    told = capsys.readouterr().out
    assert answer == "After 3 of 3 steps this is the answer to: Where is order 7?"
    assert "I look at opening_hours. " in told
    assert " [find-order] " in told
    assert told.endswith(answer)
    assert endpoint.bill().started == 3


async def test_the_guides_tests_run(guide: dict[str, Any], endpoint: LLMServer) -> None:
    assert (await guide["try_it"]()).startswith("After 3 of 3 steps")
    assert endpoint.bill().started == 3
    assert await guide["count_requests"]() == 3
