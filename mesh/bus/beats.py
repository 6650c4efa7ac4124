"""The table of running tasks that a peer shares with its heartbeat process.

One writer, one reader, no lock: each row carries a checksum, and the reader skips a row that is half
written; the next scan sees it. (A version counter does not do: `struct.pack_into` clears a word before it
writes it, so that the reader may see the same 0 before and after a change.) A header word says that a scan
is under way, so that the writer can make sure that no heartbeat follows a nak.
"""

import mmap
import struct
import zlib
from collections.abc import Iterator

_HEADER = struct.Struct("<Q")
_CHECKSUM = struct.Struct("<I")  # of all that follows it
_ROW_HEAD = struct.Struct("<Idd")  # length of the reply subject, began, until
_ROW_SIZE = 384
REPLY_BYTES_MAX = _ROW_SIZE - _CHECKSUM.size - _ROW_HEAD.size
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
        content = _ROW_HEAD.pack(len(reply), began, until) + reply
        whole = _CHECKSUM.pack(zlib.crc32(content)) + content
        at = _HEADER_SIZE + row * _ROW_SIZE
        self._memory[at : at + len(whole)] = whole

    # The reader's side.

    def begin_scan(self) -> None:
        _HEADER.pack_into(self._memory, 0, 1)

    def end_scan(self) -> None:
        _HEADER.pack_into(self._memory, 0, 0)

    def due(self, now: float, *, older_than_s: float) -> Iterator[str]:
        """Ack subjects of tasks that have run a while and are still spoken for."""
        for row in range(self._slots):
            at = _HEADER_SIZE + row * _ROW_SIZE
            copy = self._memory[at : at + _ROW_SIZE]
            length, began, until = _ROW_HEAD.unpack_from(copy, _CHECKSUM.size)
            if not length or now - began < older_than_s or now > until:
                continue
            end = _CHECKSUM.size + _ROW_HEAD.size + length
            if _CHECKSUM.unpack_from(copy)[0] == zlib.crc32(copy[_CHECKSUM.size : end]):
                yield copy[_CHECKSUM.size + _ROW_HEAD.size : end].decode("utf-8", "replace")
