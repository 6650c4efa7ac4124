"""Records and what of them is too large to stand in them: taken out before they are written, put back when read.

In memory a record has its value and payloads; on the wire what exceeds `MESH_INLINE_BYTES_MAX`, and the largest parts
of a record that would not fit a message otherwise, are objects that the record refers to.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec

from contracts import wire
from contracts.errors import ContractError
from contracts.objects import Kept
from contracts.outcome import Outcome, Send
from contracts.subjects import Identity
from contracts.wire import ContentType
from contracts.workflow import Closing, HandoffTo, Step
from mesh.bus import objects
from mesh.bus.connection import Bus

REFERENCE_BYTES: Final = 256
"""About what a reference takes."""
_SEND_BYTES: Final = 400
"""Of what a record says of a task it sends, beside the payload."""


def outsized(sizes: Sequence[int], *, each_max: int, total_max: int) -> list[int]:
    """Which parts of a record are taken out of it: those over `each_max`, then the largest until the rest fits.

    A part that is no larger than a reference to it stays.
    """
    taken = [index for index, size in enumerate(sizes) if size > each_max]
    left = sorted((size, index) for index, size in enumerate(sizes) if size <= each_max)
    total = sum(size for size, _ in left)
    while left and total > total_max and left[-1][0] > REFERENCE_BYTES:
        size, index = left.pop()
        total -= size
        taken.append(index)
    return sorted(taken)


class Taken:
    """What was taken out of one record, to be removed again if the record is not written."""

    def __init__(
        self, bus: Bus, task: Identity, as_type: ContentType, *, held: Callable[[], None] | None = None
    ) -> None:
        self.task = task
        self.kept: list[tuple[Identity, Kept]] = []
        self._bus = bus
        self._as_type = as_type
        self._held = held

    async def outcome(self, outcome: Outcome, *, ttl_s: float, what: str = "value", beside: int = 0) -> Outcome:
        """The outcome as it is written, in a record that has so many bytes `beside` it.

        Raises:
            ContractError: a payload that it sends is too large.
            PublishRejected: the server refuses an object for good.
        """
        value = b"" if outcome.value is msgspec.UNSET else outcome.value
        if not outcome.sends and memoryview(value).nbytes <= min(
            objects.inline_max(self._bus), self._bus.nc.max_payload - objects.ENVELOPE_BYTES - beside
        ):
            # The usual case, of which every task pays the price.
            return outcome
        sizes = [len(bytes(value)), *(len(bytes(send.payload)) for send in outcome.sends)]
        taken = self._chosen(sizes, beside=beside + _SEND_BYTES * len(outcome.sends))
        if not taken:
            return outcome
        changed, sends = outcome, list(outcome.sends)
        for index in taken:
            if not index:
                kept = await self._put(self.task, what, bytes(value), ttl_s)
                changed = msgspec.structs.replace(changed, value=msgspec.UNSET, value_at=kept)
            else:
                sends[index - 1] = await self._sent(sends[index - 1])
        return objects.referring(msgspec.structs.replace(changed, sends=tuple(sends)))

    async def closing(self, closing: Closing, *, ttl_s: float) -> Closing:
        """A last word as it is written; raises as `outcome`."""
        to = closing.to
        if to is not None and len(bytes(to.payload)) > objects.inline_max(self._bus):
            kept = await self._put(self.task, "closing", bytes(to.payload), ttl_s)
            to = msgspec.structs.replace(to, payload=self._nothing, payload_at=kept)
            closing = objects.referring(msgspec.structs.replace(closing, to=to))
        beside = 0 if to is None else len(bytes(to.payload))
        outcome = await self.outcome(closing.outcome, ttl_s=ttl_s, what="closing", beside=beside)
        return msgspec.structs.replace(closing, outcome=outcome)

    async def step(self, step: Step, *, ttl_s: float) -> Step:
        """A step as it is written; raises as `outcome`."""
        if step.value is msgspec.UNSET or not self._chosen([len(bytes(step.value))]):
            return step
        kept = await self._put(self.task, "step", bytes(step.value), ttl_s)
        return objects.referring(msgspec.structs.replace(step, value=msgspec.UNSET, value_at=kept))

    async def remove(self, *, but: Iterable[Kept] = ()) -> None:
        """Have go what was taken out, but for what a record that stands refers to."""
        standing = {kept.name for kept in but}
        for owner, kept in self.kept:
            if kept.name not in standing:
                await objects.remove(self._bus, owner, kept)

    @property
    def _nothing(self) -> msgspec.Raw:
        # Stands where a payload must stand.
        return msgspec.Raw(wire.encode(None, self._as_type))

    def _chosen(self, sizes: Sequence[int], *, beside: int = 0) -> list[int]:
        room = self._bus.nc.max_payload - objects.ENVELOPE_BYTES - beside
        return outsized(sizes, each_max=objects.inline_max(self._bus), total_max=room)

    async def _sent(self, send: Send) -> Send:
        size, limit = len(bytes(send.payload)), self._bus.settings.payload_bytes_max
        if size > limit:
            raise ContractError(f"payload of {size} bytes for {send.capability} exceeds {limit} bytes")
        ttl_s = self._bus.settings.payload_ttl_s
        kept = await self._put(Identity(send.capability, send.id), "payload", bytes(send.payload), ttl_s)
        task = objects.referring(send.task)
        return msgspec.structs.replace(send, payload=self._nothing, payload_at=kept, task=task)

    async def _put(self, owner: Identity, what: str, content: bytes, ttl_s: float) -> Kept:
        if self._held is not None:
            # It may take its time.
            self._held()
        kept = await objects.put(self._bus, owner, what, content, ttl_s=ttl_s, as_type=self._as_type, held=self._held)
        self.kept.append((owner, kept))
        return kept


def referred(outcome: Outcome) -> list[Kept]:
    """The objects that an outcome's record refers to."""
    found = [outcome.value_at, *(send.payload_at for send in outcome.sends)]
    return [kept for kept in found if kept is not None]


async def whole_outcome(bus: Bus, task: Identity, outcome: Outcome) -> Outcome:
    """An outcome with its value; what it sends stays where it is.

    Raises:
        ObjectGone: the value is not kept any more.
    """
    if outcome.value_at is None:
        return outcome
    value = await objects.get(bus, task, outcome.value_at)
    # Stored again, it is of another format only if it refers to another object.
    v = wire.FORMAT if any(send.payload_at is not None for send in outcome.sends) else wire.PLAIN
    return msgspec.structs.replace(outcome, value=msgspec.Raw(value), value_at=None, v=v)


async def whole_step(bus: Bus, task: Identity, step: Step) -> Step:
    """A step with its value; raises as `whole_outcome`."""
    if step.value_at is None:
        return step
    value = await objects.get(bus, task, step.value_at)
    return msgspec.structs.replace(step, value=msgspec.Raw(value), value_at=None)


async def whole_closing(bus: Bus, task: Identity, closing: Closing) -> Closing:
    """A last word with its value and the payload it hands over; raises as `whole_outcome`."""
    changes: dict[str, Any] = {}
    if closing.outcome.value_at is not None:
        changes["outcome"] = await whole_outcome(bus, task, closing.outcome)
    to: HandoffTo | None = closing.to
    if to is not None and to.payload_at is not None:
        payload = msgspec.Raw(await objects.get(bus, task, to.payload_at))
        changes["to"] = msgspec.structs.replace(to, payload=payload, payload_at=None)
    return msgspec.structs.replace(closing, **changes) if changes else closing
