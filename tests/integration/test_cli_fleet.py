"""`mesh agents`, `pause`, `resume`, `doctor`: what they find out about a live mesh."""

import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from mesh import Agent, Mesh
from mesh.bus import topology
from mesh.local.server import binary
from mesh.settings import Settings
from mesh.testing import eventually, hosting

agent = Agent("clerk", version="1.2.3", owner="desk")


@agent.handles("add", concurrency=3)
async def add(terms: list[int]) -> int:
    """Add the terms up."""
    return sum(terms)


@pytest.fixture
async def desk(settings: Settings) -> AsyncIterator[None]:
    async with hosting(agent, settings=settings):
        yield


def _levels(document: dict[str, Any]) -> dict[str, str]:
    return {finding["check"]: finding["level"] for finding in document["findings"]}


async def test_agents_lists_who_is_there_and_what_they_do(command_line: Any, desk: None) -> None:
    table = await command_line("agents")
    document = (await command_line("agents", "--json")).document

    (peer,) = document["peers"]
    (card,) = peer["cards"]
    assert (card["name"], card["version"], card["owner"]) == ("clerk", "1.2.3", "desk")
    assert peer["beat"]["load"]["add"]["slots"] == 3
    assert peer["metrics_url"].startswith("http://127.0.0.1:")
    for word in (peer["beat"]["peer"], "clerk 1.2.3", "desk", "add", "0/3", peer["metrics_url"]):
        assert word in table.out


async def test_without_peers_the_list_is_empty(command_line: Any, mesh: Mesh) -> None:
    ended = await command_line("agents", "--json", "--within-s", "0.2")

    assert (ended.code, ended.document) == (0, {"peers": []})


async def test_a_paused_capability_waits_until_it_is_resumed(command_line: Any, desk: None, mesh: Mesh) -> None:
    paused = await command_line("pause", "add", "--reason", "ink is out", "--json")

    async def nobody_takes_it() -> bool:
        return bool((await command_line("agents", "--json")).document["peers"][0]["beat"]["load"]["add"]["is_paused"])

    await eventually(nobody_takes_it)
    handle = await mesh.submit("add", [1, 2], key="p1")
    waiting = await command_line("status", "add/p1")
    examined = await command_line("doctor", "--json")
    resumed = await command_line("resume", "add")

    assert paused.document == {"capability": "add", "is_paused": True, "peers": 1}
    assert "add is paused: ink is out" in waiting.out
    assert _levels(examined.document)["queues"] == "warning"
    assert any("the oldest task, add/p1, is" in finding["text"] for finding in examined.document["findings"])
    assert resumed.code == 0
    assert await handle.result(within_s=10) == 3


async def test_doctor_finds_a_good_mesh_good(command_line: Any, desk: None) -> None:
    ended = await command_line("doctor", "--json")

    levels = _levels(ended.document)
    assert (ended.code, ended.document["problems"]) == (0, 0)
    assert "problem" not in levels.values()
    assert levels["server"] == levels["topology"] == levels["clocks"] == levels["peers"] == "ok"
    assert levels["power cut"] == "warning", "this server's fsync cannot be known over NATS"


async def test_doctor_finds_tasks_that_nobody_serves(command_line: Any, mesh: Mesh) -> None:
    await mesh.submit("ad", [1], key="slip")

    ended = await command_line("doctor")

    assert ended.code == 1
    assert "1 task waiting for ad, which no peer has ever served" in ended.out


async def test_doctor_shows_drift_and_says_what_mends_it(command_line: Any, desk: None, mesh: Mesh) -> None:
    spec = topology.consumer(mesh.bus.settings, "add")
    config = {**spec.config, "ack_wait": 9 * topology.NANOS, "max_deliver": 7}
    wanted = {"stream_name": spec.stream, "config": config, "action": "update"}
    await mesh.bus.api(f"CONSUMER.CREATE.{spec.stream}.{spec.name}", wanted)

    drifted = await command_line("doctor", "--json")
    applied = await command_line("topology", "apply", "--with-care")
    mended = await command_line("doctor", "--json")

    found = {finding["text"]: finding for finding in drifted.document["findings"]}
    assert drifted.code == 1
    assert any("max_deliver is 7" in text and one["level"] == "problem" for text, one in found.items())
    assert any("ack_wait" in text and one["level"] == "warning" for text, one in found.items())
    assert all("mesh topology" in one["mend"] for one in found.values() if one["check"] == "topology")
    assert (applied.code, mended.code) == (0, 0), applied.out + applied.err
    assert _levels(mended.document)["topology"] == "ok"


async def test_doctor_misses_the_timers_of_a_capability_without_them(command_line: Any, mesh: Mesh) -> None:
    # A live peer would make them itself.
    await topology.ensure(mesh.bus, topology.of_capability(mesh.bus.settings, "add"))
    stream = mesh.bus.subjects.timer_stream("add")
    await mesh.bus.api(f"STREAM.DELETE.{stream}")

    missing = await command_line("doctor", "--json")
    applied = await command_line("topology", "apply")

    texts = [finding["text"] for finding in missing.document["findings"] if finding["level"] == "problem"]
    assert texts == [f"stream {stream} is missing", f"consumer {stream} > timekeeper is missing"]
    assert applied.code == 0
    assert f"made stream {stream}\nmade consumer {stream} > timekeeper\n" in applied.out


async def test_doctor_says_when_there_is_no_mesh_on_the_server(command_line: Any, settings: Settings) -> None:
    ended = await command_line("doctor", "--json")

    assert _levels(ended.document)["topology"] == "warning"
    assert f"{settings.prefix!r} do not exist" in ended.out


async def test_doctor_predicts_without_asking_a_server(alone: Any) -> None:
    little = await alone("doctor", "--rate", "10", "--json")
    much = await alone("doctor", "--rate", "10000")

    assert little.code == 0
    assert little.document["prediction"]["kept_results"] == 864_000
    assert much.code == 1
    assert "the stream is full after" in much.out


@pytest.fixture
def monitored(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A server with monitoring on, that syncs always: its ports file, and its process ended afterwards."""
    config = tmp_path / "nats.conf"
    config.write_text(
        f'listen: "127.0.0.1:-1"\nhttp: "127.0.0.1:-1"\nports_file_dir: "{tmp_path}"\n'
        f'jetstream {{ store_dir: "{tmp_path}", sync_interval: always }}\n'
    )
    process = subprocess.Popen([binary(), "-c", str(config)], stderr=subprocess.DEVNULL)
    yield tmp_path, str(process.pid)
    process.terminate()
    process.wait()


async def test_a_servers_monitoring_tells_its_fsync(alone: Any, monitored: tuple[Path, str]) -> None:
    folder, pid = monitored

    def ports() -> Any:
        return [path.read_text() for path in folder.glob(f"*_{pid}.ports") if path.stat().st_size]

    (text,) = await eventually(ports)
    addresses = json.loads(text)
    alone.variables["MESH_NATS_URL"] = addresses["nats"][0]

    ended = await alone("doctor", "--monitor-url", addresses["monitoring"][0], "--json")

    (found,) = [finding for finding in ended.document["findings"] if finding["check"] == "power cut"]
    assert found["level"] == "ok"
    assert "every write goes through to disk" in found["text"]
