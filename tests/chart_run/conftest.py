"""Pods of the chart on this machine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mesh.settings import Settings
from tests.chart.rendering import EXTERNAL, Values, merged, render
from tests.chart_run.kubelet import Node, address

AGENTS = """
import asyncio

from mesh import Agent, Context

agent = Agent("triage", version="1.0", owner="tests")


@agent.handles("triage", concurrency=2)
async def triage(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "triaged"


@agent.handles("nap")
async def nap(seconds: float, ctx: Context) -> str:
    await ctx.sleep(seconds)
    return "slept"
"""
GRACE_S = 4

Deployed = Callable[..., Node]


@pytest.fixture
def deployed(tmp_path: Path, settings: Settings) -> Deployed:
    """The chart rendered for the session's server with values on top, and a node where its pods can run."""

    def of(*layers: Values) -> Node:
        here: dict[str, Any] = {
            "nats": {"external": {"url": settings.nats_url}, "auth": {"type": "none"}},
            "graceS": GRACE_S,
            "agents": {"triage": {"targets": ["my_agents"], "capabilities": ["triage", "nap"]}},
            "test": {"capability": "triage", "payload": 0.1, "withinS": 10},
            "mesh": {
                "prefix": settings.prefix,
                "replicas": 1,
                "httpHost": address(),
                "logFormat": "text",
                "settings": {
                    "MESH_ACK_WAIT_S": settings.ack_wait_s,
                    "MESH_BEAT_S": settings.beat_s,
                    "MESH_SWEEP_S": settings.sweep_s,
                    "MESH_STREAM_BYTES_MAX": settings.stream_bytes_max,
                    "MESH_OBJECTS_BYTES_MAX": settings.objects_bytes_max,
                    "MESH_EVENTS_BYTES_MAX": settings.events_bytes_max,
                    "MESH_HOT_WAIT_S": 0,
                },
            },
        }
        node = Node(tmp_path / "node", render(merged(EXTERNAL, here, *layers)))
        (node.working_folder / "my_agents.py").write_text(AGENTS)
        return node

    return of
