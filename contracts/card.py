"""What an agent can be asked for, and how it is doing: cards and beats."""

import hashlib
import json
import re
from enum import StrEnum
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from contracts.errors import ContractError
from contracts.wire import Record

OWNER_LENGTH_MAX: Final = 63
CONTRACT_DIGITS: Final = 8
_OWNER = re.compile(r"\w(?:[\w .,:@/+&#-]*\w)?")
_WORDS_FOR_PEOPLE = frozenset({"title", "description", "examples"})
_NAMES_ITS_KEYS = frozenset({"properties", "$defs", "definitions", "patternProperties"})


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
    next_rung: Annotated[str, Meta(description="What decides where its answer is not sure enough; empty if none.")] = ""
    threshold: Annotated[float, Meta(description="How sure an answer must be to stand, where there is a rung.")] = 0.0
    verified_by: Annotated[tuple[str, ...], Meta(description="What checks its answers, once for each vote.")] = ()

    @property
    def contract(self) -> str:
        """A short digest of what it takes and gives; words for people in the schemas do not count."""
        told = json.dumps([_bare(self.input_schema), _bare(self.output_schema)], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:CONTRACT_DIGITS]


class AgentCard(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Who an agent is, who owns it, and what it handles."""

    name: Annotated[str, Meta(description="The agent's name.")]
    version: Annotated[str, Meta(description="Version of the agent's code.")] = ""
    owner: Annotated[str, Meta(description="The team to call.")] = ""
    role: Annotated[str, Meta(description="What it does among other agents.")] = ""
    description: Annotated[str, Meta(description="What it is for.")] = ""
    calls: Annotated[tuple[str, ...], Meta(description="Capabilities that its handlers ask.")] = ()
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
    answered: Annotated[int, Meta(description="Tasks answered since the peer's start, however they ended.")] = 0
    failed: Annotated[int, Meta(description="Those of them that failed or expired.")] = 0


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


class Calls(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Tasks of one capability that a peer answered, all asked for by the same caller."""

    capability: Annotated[str, Meta(description="What was asked for.")]
    caller: Annotated[str, Meta(description="Capability whose task asked; empty where no task did.")] = ""
    agent: Annotated[str, Meta(description="Name of the asking agent or client.")] = ""
    version: Annotated[str, Meta(description="Version of the asking agent.")] = ""
    count: Annotated[int, Meta(description="How many, since the peer's start.")] = 0
    last_at: Annotated[float, Meta(description="Unix time at the peer of the last one's answer.")] = 0.0


class Described(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A peer's answer to `describe`."""

    beat: Annotated[Beat, Meta(description="Its state now.")]
    cards: Annotated[tuple[AgentCard, ...], Meta(description="The agents it hosts.")] = ()
    metrics_url: Annotated[str, Meta(description="Where it serves /metrics, empty if nowhere.")] = ""
    calls: Annotated[tuple[Calls, ...], Meta(description="What it answered, by who asked; at most 100.")] = ()


def check_owner(owner: str) -> str:
    """`owner` itself, if it may name a team: it becomes a label of metrics and of alerts.

    Raises:
        ContractError: it is too long, or has a character outside letters, digits, spaces inside and `_-.,:@/+&#`.
    """
    if not isinstance(owner, str):
        raise ContractError(f"owner is {owner!r}; it must be a string")
    if len(owner) > OWNER_LENGTH_MAX:
        raise ContractError(f"owner of {len(owner)} characters exceeds {OWNER_LENGTH_MAX}")
    if owner and not _OWNER.fullmatch(owner):
        raise ContractError(
            f"owner {owner!a} must be letters, digits, spaces and '_-.,:@/+&#', and begin and end with a letter,"
            " digit or '_'"
        )
    return owner


def _bare(schema: Any, *, are_names: bool = False) -> Any:
    """A schema without what is written for people. Under `properties` and the like, keys are names and stay."""
    if isinstance(schema, dict):
        return {
            key: _bare(value, are_names=not are_names and key in _NAMES_ITS_KEYS)
            for key, value in schema.items()
            if are_names or key not in _WORDS_FOR_PEOPLE
        }
    return [_bare(one) for one in schema] if isinstance(schema, (list, tuple)) else schema
