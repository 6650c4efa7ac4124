"""What docs/workflows.md says, done as it says it: every block runs, on a real server."""

import ast
import re
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

from contracts.workflow import Answer, Recurring, Verdict
from mesh import Agent, Context, Mesh
from mesh import human as people
from mesh.bus import topology
from mesh.bus.timers import drop_schedule, set_schedule
from mesh.settings import Settings
from mesh.testing import hosting
from mesh.testing.hosting import eventually
from mesh.workflow.inbox import unanswered

PAGE = Path(__file__).resolve().parents[2] / "docs/workflows.md"
BLOCKS = dict(re.findall(r"^```python (.+)\n((?:.*\n)*?)```$", PAGE.read_text(), flags=re.MULTILINE))
PATTERNS = [name.removesuffix(" asks") for name in BLOCKS if name.endswith(" asks")]


def declared(*names: str) -> dict[str, Any]:
    """The names that blocks of the page make, after its prelude."""
    found: dict[str, Any] = {"__name__": "guide"}
    for name in ("prelude", *names):
        exec(compiled(name), found)
    return found


def compiled(name: str, *, flags: int = 0) -> CodeType:
    # Lines of errors are those of the page.
    above = PAGE.read_text().partition(f"```python {name}\n")[0].count("\n") + 1
    return compile("\n" * above + BLOCKS[name], str(PAGE), "exec", flags=flags)


def answering(mesh: Mesh) -> Callable[..., Awaitable[None]]:
    """What the page calls `somebody_answers`."""

    async def somebody_answers(verdict: str, value: Any = None, note: str = "") -> None:
        (waiting,) = await eventually(lambda: unanswered(mesh.bus))
        answer = Answer(verdict=Verdict(verdict), value=value, by="ada", note=note)
        await mesh.signal("human", waiting.id, "answer", answer, by="ada")

    return somebody_answers


def test_every_block_of_the_page_is_run_here() -> None:
    unnamed = re.findall(r"^```python\n", PAGE.read_text(), flags=re.MULTILINE)
    others = {"prelude", "version-before", "version-after", "by-hand"}

    assert not unnamed
    assert set(BLOCKS) == others | set(PATTERNS) | {f"{name} asks" for name in PATTERNS}


@pytest.mark.parametrize("hot_wait_s", [5.0, 0.0], ids=["in-memory", "parked"])
@pytest.mark.parametrize("pattern", PATTERNS)
async def test_a_pattern_does_what_the_page_asserts(
    pattern: str, hot_wait_s: float, mesh: Mesh, settings: Settings
) -> None:
    names = declared(pattern)
    names |= {"mesh": mesh, "somebody_answers": answering(mesh)}
    patience = settings.model_copy(update={"hot_wait_s": hot_wait_s})

    async with hosting(names["agent"], people.agent, settings=patience):
        asking = eval(compiled(f"{pattern} asks", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
        await asking


async def test_tasks_of_old_and_new_code_follow_their_own_version(mesh: Mesh, settings: Settings) -> None:
    before, after = declared("version-before"), declared("version-after")
    async with hosting(before["agent"], settings=settings):
        old = await mesh.submit("ship", "tea", key="old")
        await eventually(lambda: parked(mesh, "ship"))

    async with hosting(after["agent"], settings=settings):
        new = await mesh.submit("ship", "tea", key="new")
        for key in ("old", "new"):
            await mesh.signal("ship", key, "packed")

        assert await old.result(within_s=20) == "tea shipped"
        assert await new.result(within_s=20) == "tea shipped, 3 g"


async def test_the_handler_tested_by_hand_passes_its_test() -> None:
    await declared("by-hand")["test_a_short_payment_is_told"]()


async def test_a_failed_step_is_retried_without_doing_finished_ones_again(mesh: Mesh, settings: Settings) -> None:
    names = declared("idempotency")
    async with hosting(names["agent"], settings=settings):
        handles = [await mesh.submit("sell", 100 + number) for number in range(3)]
        for handle in handles:
            await handle.result(within_s=20)

    assert sorted(names["charges"].values()) == [100, 101, 102]
    assert len(names["runs"]) == 4


async def test_a_schedule_starts_a_task_at_each_tick(mesh: Mesh, settings: Settings) -> None:
    agent, ran = Agent("clock"), list[str]()

    @agent.handles("tick")
    async def tick(word: str, ctx: Context) -> None:
        ran.append(f"{word} {ctx.id}")

    async with hosting(agent, settings=settings):
        assert await set_schedule(mesh.bus, "often", Recurring(capability="tick", payload="tock", schedule="@every 1s"))
        await eventually(lambda: len(ran) >= 2)
        await drop_schedule(mesh.bus, "often")

    assert all(one.startswith("tock often-") for one in ran)
    assert len(set(ran)) == len(ran)


async def parked(mesh: Mesh, capability: str) -> Iterable[str]:
    return await topology.queued(mesh.bus, mesh.bus.subjects.parks_of(capability))
