"""Pods of the chart on this machine."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mesh.settings import Settings
from tests.chart.rendering import EXTERNAL, Values, merged, render
from tests.chart_run.kubelet import Node, address

AGENTS = Path(__file__).with_name("my_agents.py")
CAPABILITIES = ["triage", "hold", "nap", "ask"]
"""What they handle. KEDA's triggers are named by the place among them."""
GRACE_S = 30

Deployed = Callable[..., Node]


@pytest.fixture
def deployed(tmp_path: Path, settings: Settings) -> Deployed:
    """The chart rendered for the session's server with values on top, and a node where its pods can run."""

    def of(*layers: Values) -> Node:
        here: dict[str, Any] = {
            "nats": {"external": {"url": settings.nats_url}, "auth": {"type": "none"}},
            "graceS": GRACE_S,
            "agents": {"triage": {"targets": ["my_agents"], "capabilities": CAPABILITIES}},
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
        shutil.copy(AGENTS, node.working_folder)
        return node

    return of
