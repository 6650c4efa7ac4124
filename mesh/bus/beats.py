"""The table of running tasks that a peer shares with its heartbeat process.

One writer, one reader, no lock: each row has a version that is odd while it is written, and the reader skips
what changed under it; the next scan sees it. A header word says that a scan is under way, so that the
writer can make sure that no heartbeat follows a nak.
"""

import mmap
import struct
from collections.abc import Iterator

_HEADER = struct.Struct("<Q")
_ROW_HEAD = struct.Struct("<IIdd")  # version, length of the reply subject, began, until
_VERSION = struct.Struct("<I")
REPLY_BYTES_MAX = 384 - _ROW_HEAD.size
_ROW_SIZE = 384
_HEADER_SIZE = 64


class BeatTable:
    """Rows of running tasks over a block of shared memory. Times are `time.monotonic()`, one clock per machine."""

    def __init__(self, memory: mmap.mmap, *, slots: int) -> None:
        self._memory = memory
        self._slots = slots
        self._free = list(range(slots))

    @staticmethod
    def size(slots: int) -> int:
        return _HEADER_SIZE + slots * _ROW_SIZE

    # The writer's side.

    def put(self, reply: bytes, *, began: float, until: float) -> int:
        """A row for a task, which is spoken for until `until`. Give it back with `drop`.

        Raises:
            IndexError: every row is taken.
        """
        row = self._free.pop()
        self._write(row, reply, began, until)
        return row

    def replace(self, row: int, reply: bytes, *, began: float, until: float) -> None:
        """Speak for another delivery of the same task, or longer."""
        self._write(row, reply, began, until)

    def drop(self, row: int) -> None:
        """Speak for the task no longer."""
        self._write(row, b"", 0.0, 0.0)
        self._free.append(row)

    def is_scanning(self) -> bool:
        scanning: int = _HEADER.unpack_from(self._memory, 0)[0]
        return bool(scanning)

    def _write(self, row: int, reply: bytes, began: float, until: float) -> None:
        if len(reply) > REPLY_BYTES_MAX:
            raise ValueError(f"ack subject of {len(reply)} bytes exceeds {REPLY_BYTES_MAX}")
        at = _HEADER_SIZE + row * _ROW_SIZE
        version: int = _VERSION.unpack_from(self._memory, at)[0]
        _VERSION.pack_into(self._memory, at, (version + 1) & 0xFFFFFFFF)
        start = at + _ROW_HEAD.size
        self._memory[start : start + len(reply)] = reply
        _ROW_HEAD.pack_into(self._memory, at, (version + 1) & 0xFFFFFFFF, len(reply), began, until)
        _VERSION.pack_into(self._memory, at, (version + 2) & 0xFFFFFFFF)

    # The reader's side.

    def begin_scan(self) -> None:
        _HEADER.pack_into(self._memory, 0, 1)

    def end_scan(self) -> None:
        _HEADER.pack_into(self._memory, 0, 0)

    def due(self, now: float, *, older_than_s: float) -> Iterator[str]:
        """Ack subjects of tasks that have run a while and are still spoken for."""
        for row in range(self._slots):
            at = _HEADER_SIZE + row * _ROW_SIZE
            version, length, began, until = _ROW_HEAD.unpack_from(self._memory, at)
            if not length or version & 1 or now - began < older_than_s or now > until:
                continue
            start = at + _ROW_HEAD.size
            reply = bytes(self._memory[start : start + length])
            if _VERSION.unpack_from(self._memory, at)[0] == version:
                yield reply.decode("utf-8", "replace")
