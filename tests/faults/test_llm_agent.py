"""What a killed LLM agent costs: a call that had finished is never paid again, one under way is repeated at most."""

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from contracts.outcome import Outcome, Spent, Status
from mesh.bus import topology
from mesh.client import Mesh
from mesh.local.server import local_server
from mesh.streaming import Missed, Part, Restarted
from mesh.testing import eventually
from mesh.testing.fleet import Fleet
from mesh.testing.history import History, What
from mesh.testing.llm import LLMServer, llm_server, scripted
from tests.faults.llm_workload import Orders
from tests.faults.scene import ROOT, settings

CALLS = 10
MODEL = f"calls-{CALLS}"
QUESTION = "What is a mesh?"
PEERS = 2
WITHIN_S = 90.0
WORDS = [f"Step {turn} of {CALLS}: I look at look_up. " for turn in range(1, CALLS)]
ANSWER = f"After {CALLS} of {CALLS} steps this is the answer to: {QUESTION}"


@dataclass(frozen=True)
class Stage:
    """Two peers that are processes, their broker, and the endpoint they pay."""

    client: Mesh
    endpoint: LLMServer
    history: History

    def runs(self, task: str) -> list[int]:
        """The processes that ran a task or a tool, in order."""
        return [int(entry.peer) for entry in self.history.read(What.RAN) if entry.task == task]

    def tools(self) -> Counter[str]:
        """How often the tool ran for each topic."""
        return Counter(entry.task for entry in self.history.read(What.RAN) if entry.task.startswith("topic"))


@dataclass
class Heard:
    """What a submitter was streamed by the last attempt."""

    said: str = ""
    restarts: int = 0
    missed: int = 0


@asynccontextmanager
async def stage(folder: Path, *, deaths: int) -> AsyncIterator[Stage]:
    """The endpoint stays, the broker stays, peers come and go."""
    with (
        llm_server(scripted) as endpoint,
        local_server(folder / "store") as server,
        History(folder / "history.jsonl") as history,
    ):
        ours = settings(server.url)
        told = ours.model_dump(mode="json", exclude_none=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
        orders = Orders(str(folder / "history.jsonl"), endpoint.url, MODEL, deaths)
        fleet = Fleet(
            [sys.executable, "-m", "tests.faults.llm_workload", msgspec.json.encode(orders).decode()],
            size=PEERS,
            env={**kept, **{f"MESH_{name.upper()}": str(value) for name, value in told.items()}},
            cwd=ROOT,
            history=history,
            log=folder / "peers.log",
        )
        async with Mesh.connect(settings=ours) as client:
            await topology.ensure(client.bus, topology.of_mesh(ours))
            async with fleet.running():
                await eventually(lambda: len(history.read(What.READY)) >= PEERS, within_s=WITHIN_S)
                yield Stage(client, endpoint, history)


async def think(here: Stage, heard: Heard) -> Outcome:
    """Ask, listen to the end, and have the outcome."""
    handle = await here.client.submit("think", QUESTION, key="q")
    async with asyncio.timeout(WITHIN_S):
        async for part in handle.stream():
            match part:
                case Part(value=value):
                    heard.said += value.get("text", "")
                case Restarted():
                    heard.said = ""
                    heard.restarts += 1
                case Missed():
                    heard.missed += 1
        return await handle.outcome()


async def test_an_agent_killed_after_each_of_ten_recorded_calls_costs_ten(tmp_path: Path) -> None:
    heard = Heard()
    async with stage(tmp_path, deaths=CALLS) as here:
        outcome = await think(here, heard)

        bill = here.endpoint.bill()
        killed = here.history.read(What.FAULT)
        assert outcome.status is Status.DONE, outcome.failure
        assert msgspec.json.decode(outcome.value) == ANSWER
        assert (len(killed), len({entry.peer for entry in killed})) == (CALLS, CALLS)
        assert len(here.runs("think/q")) == CALLS + 1
        assert (bill.started, bill.finished) == (CALLS, CALLS)
        assert [request.turn for request in bill.requests] == list(range(CALLS))
        assert outcome.spent == Spent(tokens_in=bill.tokens_in, tokens_out=bill.tokens_out)
        assert here.tools() == {f"topic {number}": 1 for number in range(1, CALLS)}
        assert heard.said == "".join(WORDS) + ANSWER


async def test_a_kill_in_the_middle_of_a_call_repeats_that_call_and_no_other(tmp_path: Path) -> None:
    heard = Heard()
    held = 6
    async with stage(tmp_path, deaths=0) as here, asyncio.TaskGroup() as fibers:
        here.endpoint.hold(held, pieces=3)
        asked = fibers.create_task(think(here, heard))
        await eventually(lambda: here.endpoint.bill().is_holding, within_s=WITHIN_S)
        await eventually(lambda: heard.said.endswith(f"Step {held} of "), within_s=WITHIN_S)
        (owner,) = here.runs("think/q")
        os.kill(owner, signal.SIGKILL)
        here.endpoint.release()
        outcome = await asked

        bill = here.endpoint.bill()
        assert outcome.status is Status.DONE, outcome.failure
        assert [request.turn for request in bill.requests] == [*range(held), *range(held - 1, CALLS)]
        assert bill.started == CALLS + 1
        assert bill.requests[held - 1].key == bill.requests[held].key
        assert here.runs("think/q")[0] != here.runs("think/q")[1]
        assert here.tools() == {f"topic {number}": 1 for number in range(1, CALLS)}
        assert heard.restarts >= 1
        assert heard.said == "".join(WORDS) + ANSWER
