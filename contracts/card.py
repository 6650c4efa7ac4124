"""What an agent can be asked for, and how it is doing: cards and beats."""

from enum import StrEnum
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from contracts.wire import Record


class CapabilityCard(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One capability as its agent declares it."""

    name: str
    description: str = ""
    input_schema: Annotated[dict[str, Any], Meta(description="JSON Schema of the payload.")] = msgspec.field(
        default_factory=dict
    )
    output_schema: Annotated[dict[str, Any], Meta(description="JSON Schema of the value.")] = msgspec.field(
        default_factory=dict
    )
    concurrency: int = 1
    timeout_s: float = 0.0
    attempts: int = 1
    result_ttl_s: float = 0.0


class AgentCard(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Who an agent is, who owns it, and what it handles."""

    name: str
    version: str = ""
    owner: Annotated[str, Meta(description="The team to call.")] = ""
    role: str = ""
    description: str = ""
    capabilities: tuple[CapabilityCard, ...] = ()


class PeerState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


class Load(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One capability's load on one peer."""

    slots: int = 0
    in_flight: int = 0
    bid: Annotated[int, Meta(ge=0, le=9, description="Priority of the next offered slot, 0 is best.")] = 0
    service_s: Annotated[float, Meta(description="Moving average of run seconds.")] = 0.0
    is_paused: bool = False


class Beat(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A peer's sign of life, every two seconds."""

    peer: str
    at: float
    state: PeerState
    host: str = ""
    pid: int = 0
    since: float = 0.0
    agents: tuple[str, ...] = ()
    load: dict[str, Load] = msgspec.field(default_factory=dict)


class Described(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A peer's answer to `describe`."""

    beat: Beat
    cards: tuple[AgentCard, ...] = ()
    metrics_url: str = ""
