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
    from mesh.errors import (
        DeadlineExceeded,
        IdempotencyConflict,
        MeshError,
        Overloaded,
        Permanent,
        TaskCancelled,
        TaskExpired,
        TaskFailed,
        Transient,
    )

__all__ = [
    "Agent",
    "BlockingContext",
    "Capability",
    "Context",
    "DeadlineExceeded",
    "Handle",
    "IdempotencyConflict",
    "Mesh",
    "MeshError",
    "Overloaded",
    "Permanent",
    "TaskCancelled",
    "TaskExpired",
    "TaskFailed",
    "Transient",
]

_HOMES = {
    "Agent": "mesh.agent",
    "BlockingContext": "mesh.context",
    "Capability": "mesh.capability",
    "Context": "mesh.context",
    "Handle": "mesh.client",
    "Mesh": "mesh.client",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'mesh' has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "mesh.errors")), name)


def __dir__() -> list[str]:
    return __all__
