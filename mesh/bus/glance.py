"""What a screen that is always open may ask of the streams: its cost does not grow with the number of tasks.

Queues take one question for each page of consumers. How many messages stand below a subject, and since when, takes
one that is answered with the oldest of them alone: the server says how many follow it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from contracts import headers as names
from contracts.errors import ContractError
from contracts.subjects import LANES, check_capability
from mesh.bus.connection import Bus
from mesh.bus.queues import bound_of
from mesh.bus.records import unix
from mesh.bus.replies import STREAM_NOT_FOUND, ApiError
from mesh.errors import BusUnavailable

NORMAL: Final = "normal"


@dataclass(frozen=True, slots=True)
class QueueLook:
    """One lane of a capability, as its consumer on the server has it."""

    capability: str
    lane: str
    """`normal` for the default one."""
    waiting: int
    in_hand: int
    """Handed out and not acked yet: running, waiting in memory, or with a peer that is gone."""
    bound: int
    """How many may wait; 0 for no bound."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Messages below a subject: how many, and when the oldest was stored, as Unix seconds; None without any."""

    count: int
    oldest_at: float | None = None
    oldest: str = ""
    """Its subject."""


async def queues(bus: Bus) -> tuple[QueueLook, ...]:
    """Every queue of the mesh, by capability and lane; none where the mesh was never made.

    Raises:
        ApiError: the server refuses, for want of an operator's rights.
        BusUnavailable, PublishUnconfirmed: it does not answer now.
    """
    found: list[QueueLook] = []
    offset = 0
    while True:
        try:
            page = await bus.api(f"CONSUMER.LIST.{bus.subjects.stream}", {"offset": offset})
        except ApiError as error:
            if error.code == STREAM_NOT_FOUND:
                return ()
            raise
        listed: Sequence[dict[str, Any]] = page.get("consumers") or ()
        found += [look for consumer in listed if (look := _look(consumer)) is not None]
        offset += len(listed)
        if not listed or offset >= page["total"]:
            return tuple(sorted(found, key=lambda look: (look.capability, look.lane)))


async def standing(bus: Bus, stream: str, filter_subject: str) -> Standing:
    """How many messages of a stream a subject filter matches, and since when the oldest stands.

    Raises:
        BusUnavailable, PublishUnconfirmed: the stream does not answer now.
        PermissionDenied: this user may not read it.
    """
    wanted = {"seq": 1, "next_by_subj": filter_subject, "batch": 1}
    answer = await bus.request(f"$JS.API.DIRECT.GET.{stream}", msgspec.json.encode(wanted))
    found = answer.headers or {}
    status = found.get(names.STATUS)
    if status == "404":
        return Standing(0)
    if status is not None:
        raise BusUnavailable(f"stream {stream} does not answer ({status})")
    return Standing(
        int(found.get(names.NUM_PENDING, 0)) + 1,
        unix(found.get(names.STORED_AT, "")) or None,
        found.get(names.SUBJECT, ""),
    )


def _look(consumer: dict[str, Any]) -> QueueLook | None:
    capability, _, lane = str(consumer["name"]).partition("@")
    try:
        check_capability(capability)
    except ContractError:
        return None
    if lane and lane not in LANES:
        return None
    return QueueLook(
        capability,
        lane or NORMAL,
        waiting=consumer["num_pending"],
        in_hand=consumer["num_ack_pending"],
        bound=bound_of(consumer["config"]),
    )
