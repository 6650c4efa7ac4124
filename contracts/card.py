"""What an agent can be asked for, and how it is doing: cards and beats."""

from enum import StrEnum
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from contracts.wire import Record


class CapabilityCard(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One capability as its agent declares it."""

    name: Annotated[str, Meta(description="What it is asked for by.")]
    description: Annotated[str, Meta(description="First paragraph of the handler's docstring.")] = ""
    input_schema: Annotated[dict[str, Any], Meta(description="JSON Schema of the payload.")] = msgspec.field(
        default_factory=dict
    )
    output_schema: Annotated[dict[str, Any], Meta(description="JSON Schema of the value.")] = msgspec.field(
        default_factory=dict
    )
    concurrency: Annotated[int, Meta(description="Tasks that run at once on each peer.")] = 1
    timeout_s: Annotated[float, Meta(description="An attempt that takes longer has failed.")] = 0.0
    attempts: Annotated[int, Meta(description="Attempts a task has, crashes counted, clean hand-backs not.")] = 1
    result_ttl_s: Annotated[float, Meta(description="How long a result is kept; 0 for the mesh's default.")] = 0.0
    queue_max: Annotated[int, Meta(description="Tasks that may wait in each lane; 0 for the mesh's default.")] = 0


class AgentCard(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Who an agent is, who owns it, and what it handles."""

    name: Annotated[str, Meta(description="The agent's name.")]
    version: Annotated[str, Meta(description="Version of the agent's code.")] = ""
    owner: Annotated[str, Meta(description="The team to call.")] = ""
    role: Annotated[str, Meta(description="What it does among other agents.")] = ""
    description: Annotated[str, Meta(description="What it is for.")] = ""
    capabilities: Annotated[tuple[CapabilityCard, ...], Meta(description="What it handles.")] = ()


class PeerState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


class Load(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One capability's load on one peer."""

    slots: Annotated[int, Meta(description="Tasks it may run at once.")] = 0
    in_flight: Annotated[int, Meta(description="Tasks in its hands.")] = 0
    bid: Annotated[int, Meta(ge=0, description="Tasks that must wait before it takes one more; 1 is best.")] = 1
    service_s: Annotated[float, Meta(description="Moving average of run seconds.")] = 0.0
    delay_s: Annotated[float, Meta(description="Seconds in which a slot serves one more; 0: not known yet.")] = 0.0
    classes: Annotated[dict[str, float], Meta(description="Moving averages of run seconds by class of payload.")] = (
        msgspec.field(default_factory=dict)
    )
    is_paused: Annotated[bool, Meta(description="Whether an operator paused it.")] = False
    held_by: Annotated[tuple[str, ...], Meta(description="Open breakers for which it takes no work.")] = ()


class Beat(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A peer's sign of life, every two seconds."""

    peer: Annotated[str, Meta(description="The peer's id.")]
    at: Annotated[float, Meta(description="Unix time at the peer.")]
    state: Annotated[PeerState, Meta(description="Whether it takes work.")]
    host: Annotated[str, Meta(description="Name of its machine.")] = ""
    pid: Annotated[int, Meta(description="Its process there.")] = 0
    since: Annotated[float, Meta(description="Unix time of its start.")] = 0.0
    agents: Annotated[tuple[str, ...], Meta(description="Names of the agents it hosts.")] = ()
    load: Annotated[dict[str, Load], Meta(description="By capability.")] = msgspec.field(default_factory=dict)


class Described(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A peer's answer to `describe`."""

    beat: Annotated[Beat, Meta(description="Its state now.")]
    cards: Annotated[tuple[AgentCard, ...], Meta(description="The agents it hosts.")] = ()
    metrics_url: Annotated[str, Meta(description="Where it serves /metrics, empty if nowhere.")] = ""
