"""What it means to change a stream or a consumer that exists: told before anything is changed.

Plain functions of a spec and the server's account of it. Which updates JetStream takes was tried field by field
(NATS 2.15.1). What is missing is made, what another stream has taken over is moved, and there are three ways to change
a field:

- `live`: in place, while peers work; nothing that was accepted is touched.
- `care`: in place as well, but something is given up or must be done first. The text says what.
- `stuck`: JetStream does not change it in place. The text says what to do instead.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from mesh.bus.queues import BOUND
from mesh.bus.topology import NANOS, Difference, Spec, differences

BEATS_AHEAD: Final = 2
"""A peer beats four times within its own `ack_wait`. One that is halved still hears two beats of every running task."""
_NANOSECONDS: Final = frozenset({"ack_wait", "max_age"})
_BYTES: Final = frozenset({"max_bytes"})


class Way(StrEnum):
    """How a change can be made."""

    MAKE = "make"
    MOVE = "move"
    LIVE = "live"
    CARE = "care"
    STUCK = "stuck"


@dataclass(frozen=True, slots=True)
class Change:
    """One field that would be changed, or a whole stream or consumer that would be made (`field` is empty)."""

    spec: Spec
    way: Way
    means: str
    field: str = ""
    actual: Any = None
    wanted: Any = None

    def __str__(self) -> str:
        if self.way is Way.MAKE:
            return f"make {self.spec.kind} {self.spec}"
        if self.way is Way.MOVE:
            return f"move what {self.spec.kind} {self.spec} holds, and delete it"
        return f"{self.spec}: {self.field} {told(self.field, self.actual)} -> {told(self.field, self.wanted)}"


@dataclass(frozen=True, slots=True)
class Holds:
    """What a stream holds now."""

    messages: int = 0
    bytes: int = 0


def changes(spec: Spec, account: Mapping[str, Any] | None) -> tuple[Change, ...]:
    """What would have to be changed for the server to have `spec`; `account` is its answer about it, None without."""
    if account is None:
        means = "it is missing"
        if spec.is_optional:
            means += "; the mesh does without it where the server refuses it"
        return (Change(spec, Way.MAKE, means),)
    state = account.get("state") or {}
    holds = Holds(int(state.get("messages", 0)), int(state.get("bytes", 0)))
    return tuple(_change(found, holds) for found in differences(spec, account["config"]))


def allowed(found: Iterable[Change], *, with_care: bool) -> tuple[Change, ...]:
    """Those of several changes that are to be made now."""
    ways = set(Way) - {Way.STUCK} if with_care else set(Way) - {Way.STUCK, Way.CARE}
    return tuple(change for change in found if change.way in ways)


def told(field: str, value: Any) -> str:
    """A field's value for people."""
    if field in _NANOSECONDS and isinstance(value, int):
        return f"{value / NANOS:g} s"
    if field in _BYTES and isinstance(value, int):
        return "no limit" if value <= 0 else f"{value / 2**20:,.6g} MiB"
    if field == "max_msgs" and isinstance(value, int) and value <= 0:
        return "no limit"
    if field == "metadata" and isinstance(value, Mapping):
        return f"queue_max {value[BOUND]}" if BOUND in value else "no queue_max"
    if value is None:
        return "nothing" if field != "metadata" else "no queue_max"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _change(found: Difference, holds: Holds) -> Change:
    way, means = _meaning(found, holds)
    return Change(found.spec, way, means, found.field, found.actual, found.wanted)


def _meaning(found: Difference, holds: Holds) -> tuple[Way, str]:
    if found.spec.kind == "consumer":
        return _of_consumer(found)
    match found.field:
        case "retention" | "storage":
            return Way.STUCK, (
                "JetStream changes it in no stream. Have the mesh drained (no tasks, no parks), `mesh backup` it, stop"
                " the peers, delete the stream and apply again; or start a new mesh beside it with another MESH_PREFIX"
            )
        case "subjects":
            gone = sorted(set(found.actual or ()) - set(found.wanted))
            if gone:
                return Way.CARE, f"what is stored on {', '.join(gone)} stays, and nobody reads it any more"
            return Way.LIVE, "the stream takes more subjects"
        case "num_replicas":
            return _of_replicas(found)
        case "max_bytes":
            return _of_limit(found, holds.bytes, f"{holds.bytes / 2**20:,.1f} MiB")
        case "max_msgs":
            return _of_limit(found, holds.messages, f"{holds.messages:,} messages")
        case "max_age":
            if found.actual and found.wanted > found.actual:
                return Way.LIVE, "kept for longer"
            return Way.CARE, "what is older goes at once"
        case "max_msgs_per_subject":
            return Way.CARE, "subjects with more messages lose their older ones: no version of Starling leaves such"
        case "discard" if found.wanted == "old":
            return Way.LIVE, "what is old makes room for what comes"
        case "discard":
            return Way.LIVE, "a full stream refuses what comes, and loses nothing that it holds"
        case "republish":
            return Way.LIVE, "echoes come from now on by the new rule; those missed are read from the records"
    return Way.LIVE, "in place"


def _of_consumer(found: Difference) -> tuple[Way, str]:
    match found.field:
        case "max_waiting" | "ack_policy":
            return Way.STUCK, (
                "JetStream changes it in no consumer. Stop the peers of the capability, delete the consumer (no task"
                " goes with it: they stay in the stream) and apply again"
            )
        case "ack_wait":
            if found.actual and found.wanted * BEATS_AHEAD < found.actual:
                return Way.CARE, (
                    f"start all peers again first: one that beats for {told('ack_wait', found.actual)} would lose its"
                    " running tasks to others, and each would run twice"
                )
            return Way.LIVE, "peers learn of it when they start; until then they beat by what they know"
        case "metadata":
            return Way.LIVE, "clients go by the new bound within seconds; what waits already stays"
        case "filter_subjects":
            gone = sorted(set(found.actual or ()) - set(found.wanted))
            if gone:
                return Way.CARE, f"nobody is handed what is on {', '.join(gone)} any more"
            return Way.LIVE, "it hands out more subjects"
        case "max_deliver":
            return Way.LIVE, "what was handed out that often already is set going again by the sweep of a peer"
        case "priority_policy" | "priority_groups":
            return Way.LIVE, "pulls that wait are refused once, and made again"
    return Way.LIVE, "in place"


def _of_replicas(found: Difference) -> tuple[Way, str]:
    if found.wanted > (found.actual or 1):
        return Way.LIVE, (
            "the servers copy what there is while work goes on; they must be there: a cluster of at least"
            f" {found.wanted}, or JetStream refuses it"
        )
    left = "one broken disk then loses everything" if found.wanted == 1 else "fewer servers may fail at once"
    return Way.CARE, f"copies are given up: {left}"


def _of_limit(found: Difference, holds: int, shown: str) -> tuple[Way, str]:
    if found.wanted <= 0:
        return Way.LIVE, "the disk is the limit then"
    if holds <= found.wanted:
        return Way.LIVE, f"it holds {shown}"
    if found.spec.config.get("discard") == "old":
        return Way.CARE, f"it holds {shown}: the oldest go at once"
    return Way.CARE, (
        f"it holds {shown}, which is more: nothing goes, but until enough has expired new tasks are refused and"
        " finished ones wait to be recorded"
    )
