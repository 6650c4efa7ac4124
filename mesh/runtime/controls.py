"""Control records in memory, so that asking costs a task nothing.

Echoes of changes and snapshots arrive in any order; the stream's sequence tells which is newer.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from contracts import headers as names
from contracts import wire
from contracts.control import BreakerChange, Cancel
from contracts.errors import ContractError
from contracts.limit import Limit, check_limit
from contracts.subjects import (
    Identity,
    Subjects,
    ancestry,
    key_breaker,
    key_cancel,
    parse_breaker,
    parse_cancel,
    parse_limit_key,
    parse_pause,
)
from mesh.bus.control import is_deleted
from mesh.bus.provenance import is_echo
from mesh.bus.records import Stored

log = logging.getLogger("mesh.runtime")


@dataclass(frozen=True, slots=True)
class BreakerHeard:
    """A breaker's last change: its sequence in the stream, and how long it stands from now on, in seconds."""

    change: BreakerChange
    sequence: int
    left_s: float


class Controls:
    """Cancels, pauses, limits and the states of breakers, as far as this process has heard.

    `on_change` is called after each change, `on_cancel` with each task whose cancel is heard as it is made,
    `on_breaker` with the name of each breaker whose state changed.
    """

    def __init__(self, subjects: Subjects, *, cancel_ttl_s: float) -> None:
        self._subjects = subjects
        self._cancel_ttl_s = cancel_ttl_s
        self._sequences: dict[str, int] = {}
        self._cancelled: dict[Identity, Cancel] = {}
        self._paused: set[str] = set()
        self._breakers: dict[str, tuple[BreakerChange, float]] = {}
        self._limits: dict[str, Limit] = {}
        self.on_change: list[Callable[[], None]] = []
        self.on_cancel: list[Callable[[Identity], None]] = []
        self.on_breaker: list[Callable[[str], None]] = []

    def heard(self, subject: str, data: bytes, headers: dict[str, str]) -> None:
        """Take in the echo of one change; what only looks like one is passed over."""
        key = self._subjects.control_key(subject)
        if not is_echo(headers, stream=self._subjects.control_stream, subject=self._subjects.control_record(key)):
            return
        is_gone = is_deleted(headers)
        if not self._take(key, data, int(headers.get(names.SEQUENCE, 0)), age_s=0.0, gone=is_gone):
            return
        self._changed()
        task = parse_cancel(key)
        if task is not None and not is_gone:
            for callback in self.on_cancel:
                callback(task)

    def read(self, records: Iterable[Stored], known_before: Mapping[str, int]) -> None:
        """Take in a snapshot. What was `known` before it was asked for, and it lacks, has expired or was taken away.

        What was heard while the snapshot was on its way is newer, and stays.
        """
        current: set[str] = set()
        for stored in records:
            key = self._subjects.control_key(stored.subject)
            current.add(key)
            age_s = max(0.0, time.time() - stored.stored_at)
            self._take(key, stored.data, stored.sequence, age_s=age_s, gone=False)
        for key, sequence in known_before.items():
            if key not in current and self._sequences.get(key) == sequence:
                self._take(key, b"", sequence, age_s=0.0, gone=True)
                del self._sequences[key]
        self._changed()

    def known(self) -> dict[str, int]:
        """Every key heard of, with the sequence of its last change."""
        return dict(self._sequences)

    def cancel_of(self, task: Identity, lineage: tuple[str, ...]) -> Cancel | None:
        """The cancel that covers a task: its own, or one of an ancestor's."""
        if not self._cancelled:
            return None
        for identity in ancestry(task, lineage):
            found = self._cancelled.get(identity)
            if found is not None and time.time() - found.at < self._cancel_ttl_s:
                return found
        return None

    def is_paused(self, capability: str) -> bool:
        return capability in self._paused

    def breaker(self, name: str) -> BreakerHeard | None:
        """The last change of a breaker that was heard of."""
        heard = self._breakers.get(name)
        if heard is None:
            return None
        change, until = heard
        return BreakerHeard(change, self._sequences[key_breaker(name)], max(0.0, until - time.monotonic()))

    def sequence(self, key: str) -> int:
        """The sequence of a key's last change, 0 where none was heard of."""
        return self._sequences.get(key, 0)

    def limit_of(self, resource: str) -> Limit | None:
        """What an operator set for a resource, or None."""
        return self._limits.get(resource)

    def _take(self, key: str, data: bytes, sequence: int, *, age_s: float, gone: bool) -> bool:
        if sequence < self._sequences.get(key, 0):
            return False
        self._sequences[key] = sequence
        if (identity := parse_cancel(key)) is not None:
            self._cancelled.pop(identity, None)
            if not gone:
                try:
                    self._cancelled[identity] = wire.decode(Cancel, data)
                except ContractError:
                    # A newer format still says that the task is cancelled.
                    self._cancelled[identity] = Cancel(at=time.time())
                self._forget_expired()
        elif (capability := parse_pause(key)) is not None:
            if gone:
                self._paused.discard(capability)
            else:
                self._paused.add(capability)
        elif (breaker := parse_breaker(key)) is not None:
            self._take_breaker(breaker, data, age_s, gone=gone)
        elif (resource := parse_limit_key(key)) is not None:
            if gone:
                self._limits.pop(resource, None)
            else:
                try:
                    self._limits[resource] = check_limit(wire.decode(Limit, data))
                except ContractError as error:
                    log.error("the limit set for %s is kept as it was: %s", resource, error)
        return True

    def _take_breaker(self, name: str, data: bytes, age_s: float, *, gone: bool) -> None:
        self._breakers.pop(name, None)
        if not gone:
            try:
                change = wire.decode(BreakerChange, data)
            except ContractError:
                # Of a newer format: this peer goes by its own calls.
                return
            self._breakers[name] = change, time.monotonic() + change.for_s - age_s
        for callback in self.on_breaker:
            callback(name)

    def _forget_expired(self) -> None:
        # The server's records expire without an echo; the oldest stand first here.
        before = time.time() - self._cancel_ttl_s
        while self._cancelled:
            oldest = next(iter(self._cancelled))
            if self._cancelled[oldest].at > before:
                return
            del self._cancelled[oldest]
            self._sequences.pop(key_cancel(oldest), None)

    def _changed(self) -> None:
        for callback in self.on_change:
            callback()
