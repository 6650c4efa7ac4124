"""Dashboards and alerts against what a live mesh shows: no query is empty, and what goes wrong is told."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh import Mesh
from mesh.bus import control
from mesh.settings import Settings
from mesh.testing import eventually
from ops.grafana.boards import BOARDS
from tests.journeys.watched import fleet, for_all, keep_targets, prometheus, remaining, submit_all, texts, tool
from tests.otlp import Collector, collecting

WITHIN_S = 60.0
TROUBLE = {
    "MeshBreakerOpen": {""},
    "MeshCapabilityGone": {"team-alone"},
    "MeshCostHigh": {"team-desk"},
    "MeshDeadLettersKept": {"team-errands"},
    "MeshDeadlinesMissed": {"team-errands"},
    "MeshDigestChanged": {"team-desk"},
    "MeshInboxWaits": {""},
    "MeshLimitRefuses": {""},
    "MeshPauseForgotten": {"team-desk"},
    "MeshPeerNotScraped": {""},
    "MeshQueueNearlyFull": {"team-desk"},
    "MeshRetryStorm": {"team-errands"},
    "MeshTasksFail": {"team-errands"},
    "MeshTasksStuck": {"team-errands"},
    "MeshTasksUnserved": {""},
}
"""What has to fire, and whose it is."""
CALM = {"MeshStreamNearlyFull", "MeshSurveyStale"}
"""What must not."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


@pytest.mark.timeout(240)
async def test_no_dashboard_is_empty_and_the_alerts_that_should_fire_do(
    settings: Settings, mesh: Mesh, tmp_path: Path, collector: Collector
) -> None:
    tool("prometheus")
    short = settings.model_copy(
        update={"survey_s": 0.5, "hot_wait_s": 0.2, "ack_wait_s": 1.0, "stream_msgs_max": 200_000, "wake_again_s": 5.0}
    )
    queries = {for_all(query.full) for board in BOARDS for row in board.rows for p in row.panels for query in p.queries}
    log = tmp_path / "peers.log"
    stop = asyncio.Event()

    async with (
        prometheus(tmp_path) as watching,
        fleet(short, "desk", "errands", "mesh.human", size=3, log=log, collector=collector.url) as peers,
        asyncio.TaskGroup() as fibers,
    ):
        looking = fibers.create_task(keep_targets(mesh.bus, tmp_path / "targets/peers.json"))
        async with fleet(short, "alone", size=1, log=log, collector=collector.url):
            await eventually(lambda: watching.values("count(mesh_ready == 1) >= 4"), within_s=WITHIN_S, every_s=0.5)
            await control.pause(mesh.bus, "closed", by="test", reason="to see it")
            # A pull that is on its way yet would still take some.
            await eventually(lambda: watching.values('count(mesh_paused{capability="closed"} == 1) == 3'), every_s=0.5)
            submitting = fibers.create_task(submit_all(mesh, stop))
            for number in range(9):
                await mesh.submit("closed", number)
                await mesh.submit("outside", number)
                await mesh.submit("hangs", number, key=f"hangs-{number}")
            await mesh.submit("nobody-serves-this", 1)
            await eventually(lambda: watching.values("mesh:capability_owner:now{capability='retired'}"), every_s=0.5)
        # Its last peer is gone now. One of the others dies with what it holds.
        os.kill(peers.pids[0], signal.SIGKILL)

        async def is_all_there() -> bool:
            queries.difference_update(queries - set(await remaining(watching, queries)))
            fired = await watching.fired()
            return not queries and TROUBLE.keys() <= fired.keys()

        try:
            await eventually(is_all_there, within_s=WITHIN_S, every_s=2.0)
        except AssertionError:
            fired = await watching.fired()
            raise AssertionError(f"empty: {sorted(queries)}; silent: {sorted(TROUBLE.keys() - fired.keys())}") from None
        finally:
            stop.set()
            await submitting
            looking.cancel()
        fired, rules = await watching.fired(), await watching.rules()
        traced = await watching.trace_ids("mesh_task_run_seconds_bucket")

    assert {name: owners & fired[name] for name, owners in TROUBLE.items()} == TROUBLE
    assert not CALM & fired.keys()
    assert traced & {span.span.trace_id.hex() for span in collector.spans}
    assert {rule["name"]: rule["lastError"] for rule in rules if rule["health"] != "ok"} == {}
    assert [text for text in texts(rules) if "<no value>" in text or "error" in text.lower()] == []
