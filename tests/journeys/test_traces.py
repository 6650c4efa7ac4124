"""A workflow across processes, one of them killed, as a collector of spans and the logs tell it."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mesh import Mesh
from mesh.settings import Settings
from mesh.testing import eventually
from tests.otlp import Collector, collecting, tree

DESK = '''
"""Letters: a desk hands them to a writer, who looks words up."""

import asyncio
import logging
import os
from pathlib import Path

from mesh import Agent, Context, Handoff, Transient

agent = Agent("office", version="7", owner="back-office")


@agent.handles("look-up")
async def look_up(word: str, ctx: Context) -> str:
    """Look a word up."""
    if ctx.attempt == 1:
        raise Transient("the book is lent", after_s=0.1)
    logging.getLogger("somebody.else").info("found it")
    return word.upper()


@agent.handles("write", timeout_s=120)
async def write(text: str, ctx: Context) -> str:
    """Write a letter."""
    await ctx.step("stamp", lambda: "stamped")
    word = await ctx.call(look_up, text)
    ctx.log.info("writes")
    if not Path("killed").exists():
        Path("writing").write_text(str(os.getpid()))
        await asyncio.sleep(100)
    return word


@agent.handles("desk")
async def desk(text: str, ctx: Context) -> Handoff:
    """Take a letter."""
    ctx.log.info("takes")
    return Handoff(write, text)
'''


class Started:
    """`mesh run` processes in a folder, each with its log in a file."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment
        self._processes: list[subprocess.Popen[bytes]] = []

    def peer(self, name: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "mesh", "run", "office.py"],
                cwd=self.folder,
                env={**self.environment, "MESH_PEER_NAME": name},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        self._processes.append(process)
        return process

    def logged(self, name: str) -> list[dict[str, Any]]:
        lines = (self.folder / f"{name}.log").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def end(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()


@contextmanager
def office(folder: Path, settings: Settings, endpoint: str) -> Iterator[Started]:
    (folder / "office.py").write_text(DESK)
    environment = {
        **os.environ,
        "MESH_NATS_URL": str(settings.nats_url),
        "MESH_PREFIX": settings.prefix,
        "MESH_ACK_WAIT_S": "1.5",
        "MESH_GRACE_S": "5",
        "MESH_SWEEP_S": "2",
        "MESH_TRACES": "otlp",
        "MESH_LOG_FORMAT": "json",
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    started = Started(folder, environment)
    try:
        yield started
    finally:
        started.end()


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


async def submit(started: Started, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mesh", "submit", *arguments),
        cwd=started.folder,
        env=started.environment,
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()


async def test_a_workflow_with_a_killed_peer_is_one_trace_and_its_logs_name_it(
    mesh: Mesh, settings: Settings, collector: Collector, tmp_path: Path
) -> None:
    with office(tmp_path, settings, collector.url) as started:
        names = {started.peer(name).pid: name for name in ("ann", "bob")}
        async with asyncio.TaskGroup() as fibers:
            answer = fibers.create_task(submit(started, "desk", '"hello"', "--key", "l1"))
            pid = int(await eventually(lambda: _read(tmp_path / "writing"), within_s=40))
            # What the killed peer told until now is taken; the run that it is in is not over, and never told.
            await eventually(lambda: len(collector.named("process look-up")) == 2)
            await eventually(lambda: collector.named("submit look-up"))
            (tmp_path / "killed").touch()
            os.kill(pid, signal.SIGKILL)
        assert await answer == '"HELLO"\n'
        await eventually(lambda: collector.named("process desk") and collector.named("process write"))
        killed, other = names.pop(pid), next(iter(names.values()))
        lines = {name: started.logged(name) for name in (killed, other)}

    told = tree(collector.spans)
    spans = {one.span_id for one in collector.spans}
    assert len({one.trace_id for one in collector.spans}) == 1, told
    (submitted,) = collector.named("submit desk")
    assert (submitted.parent_id, submitted.kind) == ("", "PRODUCER")
    assert submitted.resource["service.name"].startswith("cli")

    # All that is missing are runs that the kill ended. Their log names their spans; the run after says it crashed.
    missing = {one.parent_id for one in collector.spans} - spans - {""}
    (written,) = [line for line in lines[killed] if line["message"] == "writes"]
    assert written["span_id"] in missing, told
    assert missing <= {line["span_id"] for line in lines[killed] if "span_id" in line}
    (again,) = collector.named("process write")
    assert (again.attributes["starling.attempt"], again.attributes["starling.crashes"]) == (2, 1)
    assert "taken over" in again.events
    assert again.attributes["starling.peer"].startswith(f"{other}-")

    first, second = collector.named("process look-up")
    assert (first.has_failed, second.has_failed, again.has_failed) == (True, False, False)
    assert first.parent_id == second.parent_id == collector.named("submit look-up")[0].span_id
    assert [link.span_id.hex() for link in second.span.links] == [first.span_id]
    (stamped,) = collector.named("step stamp")
    assert (stamped.kind, stamped.parent_id) == ("INTERNAL", written["span_id"])
    desk = collector.named("process desk")[-1]
    assert (desk.kind, desk.parent_id, desk.attributes["starling.status"]) == ("CONSUMER", submitted.span_id, "done")
    assert {one.attributes["messaging.system"] for one in collector.spans if one.kind != "INTERNAL"} == {"nats"}
    assert desk.resource["service.name"] == "office"

    for name in (killed, other):
        of_tasks = [line for line in lines[name] if "task_id" in line]
        assert of_tasks, f"{name} logged nothing of a task"
        assert {line["trace_id"] for line in of_tasks if "trace_id" in line} == {submitted.trace_id}
        assert {line["peer"].partition("-")[0] for line in of_tasks} == {name}
    (found,) = [line for log in lines.values() for line in log if line["message"] == "found it"]
    assert (found["logger"], found["capability"], found["attempt"]) == ("somebody.else", "look-up", 2)
    assert found["span_id"] == second.span_id


@pytest.mark.parametrize("how", ["down", "stuck"])
async def test_a_collector_that_is_gone_or_stuck_delays_no_task_and_no_end(
    mesh: Mesh, settings: Settings, tmp_path: Path, how: str
) -> None:
    with collecting(is_stuck=True) as collector:
        endpoint = collector.url if how == "stuck" else "http://127.0.0.1:9"
        with office(tmp_path, settings, endpoint) as started:
            (tmp_path / "killed").touch()
            peer = started.peer("ann")
            for number in range(5):
                handle = await mesh.submit("desk", "hello", returns=str, key=f"k{number}")
                assert await handle.result(within_s=20) == "HELLO"
            # The submitter has a span to hand over, too, and ends.
            assert await submit(started, "desk", '"hello"') == '"HELLO"\n'
            peer.send_signal(signal.SIGTERM)
            async with asyncio.timeout(20):
                assert await asyncio.to_thread(peer.wait) == 0
            assert any("are not taken within" in line["message"] for line in started.logged("ann"))


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""
