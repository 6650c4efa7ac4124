"""A plain JSON body on a task subject is a whole submission, from any NATS client."""

import asyncio
import shutil

import msgspec
import pytest

from contracts.subjects import Identity
from mesh import Agent, Mesh
from mesh.bus.commit import read_outcome, read_result
from mesh.bus.topology import queued
from mesh.settings import Settings
from mesh.testing import eventually, hosting


class Ticket(msgspec.Struct):
    text: str


def desk(runs: list[str]) -> Agent:
    agent = Agent("desk")

    @agent.handles("triage")
    async def triage(ticket: Ticket) -> dict[str, int]:
        runs.append(ticket.text)
        return {"length": len(ticket.text)}

    return agent


async def test_a_task_published_by_hand_in_bash_is_answered_on_both_subjects(mesh: Mesh, settings: Settings) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    head = settings.prefix
    port = str(settings.nats_url).rsplit(":", 1)[1]
    body = '{"text":"no card"}'
    script = f"""
        exec 3<>/dev/tcp/127.0.0.1/{port}
        printf 'CONNECT {{"verbose":false}}\\r\\nSUB {head}.done.triage.order-42 1\\r\\n' >&3
        printf 'PUB {head}.task.triage.order-42 {len(body)}\\r\\n{body}\\r\\nPING\\r\\n' >&3
        while IFS= read -r line <&3; do
          case "$line" in
            PING*) printf 'PONG\\r\\n' >&3 ;;
            '{{'*) printf '%s\\n' "$line"; exit 0 ;;
          esac
        done
    """

    async with hosting(desk([]), settings=settings):
        process = await asyncio.create_subprocess_exec(bash, "-c", script, stdout=asyncio.subprocess.PIPE)
        async with asyncio.timeout(20):
            echoed, _ = await process.communicate()
        recorded = await read_result(mesh.bus, Identity("triage", "order-42"))

    assert msgspec.json.decode(echoed)["value"] == {"length": 7}
    assert recorded is not None
    assert recorded.data == echoed.strip()


async def test_a_raw_publish_of_a_task_that_is_done_runs_nothing(mesh: Mesh, settings: Settings) -> None:
    runs: list[str] = []
    task = Identity("triage", "order-42")
    async with hosting(desk(runs), settings=settings) as peer:
        handle = await mesh.submit("triage", {"text": "first"}, key=task.id)
        await handle.result(within_s=10)

        await eventually(lambda: is_queue_empty(mesh))
        await mesh.bus.store(mesh.bus.subjects.task(task), b'{"text":"second"}')
        await eventually(
            lambda: peer.metrics.registry.get_sample_value(
                "mesh_duplicates_total", {"capability": "triage", "at": "start"}
            )
        )

        stored = await read_result(mesh.bus, task)

    assert stored is not None
    assert read_outcome(stored).digest != ""
    assert runs == ["first"]


async def is_queue_empty(mesh: Mesh) -> bool:
    return not await queued(mesh.bus, mesh.bus.subjects.tasks_of())
