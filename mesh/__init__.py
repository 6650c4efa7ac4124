"""Starling: a leaderless mesh of agents on NATS JetStream.

What an agent's author needs is here; importing it connects to nothing and loads no NATS client.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mesh.agent import Agent
    from mesh.capability import Capability
    from mesh.client import Handle, Mesh
    from mesh.context import BlockingContext, Context
    from mesh.endings import Decision, Escalate, Handoff, Ladder, Verifiers
    from mesh.errors import (
        BreakerOpen,
        DeadlineExceeded,
        IdempotencyConflict,
        MeshError,
        Overloaded,
        Permanent,
        SignalRefused,
        TaskCancelled,
        TaskExpired,
        TaskFailed,
        Throttled,
        Transient,
    )
    from mesh.reference import Reference

__all__ = [
    "Agent",
    "BlockingContext",
    "BreakerOpen",
    "Capability",
    "Context",
    "DeadlineExceeded",
    "Decision",
    "Escalate",
    "Handle",
    "Handoff",
    "IdempotencyConflict",
    "Ladder",
    "Mesh",
    "MeshError",
    "Overloaded",
    "Permanent",
    "Reference",
    "SignalRefused",
    "TaskCancelled",
    "TaskExpired",
    "TaskFailed",
    "Throttled",
    "Transient",
    "Verifiers",
]

_HOMES = {
    "Agent": "mesh.agent",
    "BlockingContext": "mesh.context",
    "Capability": "mesh.capability",
    "Context": "mesh.context",
    "Decision": "mesh.endings",
    "Escalate": "mesh.endings",
    "Handle": "mesh.client",
    "Handoff": "mesh.endings",
    "Ladder": "mesh.endings",
    "Mesh": "mesh.client",
    "Reference": "mesh.reference",
    "Verifiers": "mesh.endings",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'mesh' has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "mesh.errors")), name)


def __dir__() -> list[str]:
    return __all__
