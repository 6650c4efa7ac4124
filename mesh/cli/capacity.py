"""What a rate of tasks will need: memory, disk and restart time, from measured constants.

Measured on 4 cores with nats-server 2.15.1, file storage, one replica, the mesh's own stream with 300,000 and
1,000,000 kept results of 0, 128 and 2,000 bytes:

- The stream's own count of bytes, which its limit is compared with, was 154 bytes a result above the record:
  headers, subject and framing. On disk, after a clean stop, another 66 bytes a result went into its indexes.
- The record around the value was 198 bytes.
- Where results come from tasks, what the tasks leave behind lies between them until the server rewrites the file or the
  results expire: with payloads as large as values 0.5 to 0.8 of the results' own bytes, at 20,000 to 150,000 results
  (`python -m ops.sizing.measure`).
- The server's resident memory was 370 to 510 bytes a result just after writing, 240 to 330 after a restart, where
  nothing but results was written. Where they came from tasks it was 980 to 1,400 soon after, and 720 to 890 after a
  restart, at 40,000 to 150,000 results: 660 for each more.
- A restart took 1.3 to 2.1 s for each million, after a clean stop and after SIGKILL alike, with the files still
  in the page cache; from a cold disk it takes as long as reading them on top.
"""

from dataclasses import dataclass
from typing import Final

MEMORY_BYTES_PER_RESULT: Final = 700
RECORD_BYTES: Final = 198
FRAME_BYTES_PER_RESULT: Final = 154
INDEX_BYTES_PER_RESULT: Final = 66
LEFT_BEHIND_SHARE: Final = 0.8
RESTART_S_PER_MILLION: Final = 1.7
COLD_READ_BYTES_PER_S: Final = 200e6
"""A modest disk, for the part of a restart that reads the store. Assumed, not measured."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of a mesh. `stream_bytes_max` of -1 is no limit."""

    tasks_per_s: float
    value_bytes: float
    result_ttl_s: float
    stream_bytes_max: int
    full_at: float
    replicas: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """What it comes to, on each server that holds a copy. `full_after_s` is None where the stream never fills."""

    kept_results: float
    memory_bytes: float
    stream_bytes: float
    disk_bytes: float
    restart_s: float
    cold_restart_s: float
    full_after_s: float | None


def predict(load: Load) -> Prediction:
    """What a steady load comes to once as many results expire as are written."""
    kept = load.tasks_per_s * load.result_ttl_s
    bytes_each = RECORD_BYTES + load.value_bytes + FRAME_BYTES_PER_RESULT
    stream_bytes = kept * bytes_each
    disk_bytes = stream_bytes * (1 + LEFT_BEHIND_SHARE) + kept * INDEX_BYTES_PER_RESULT
    restart_s = kept / 1e6 * RESTART_S_PER_MILLION
    room = load.stream_bytes_max * load.full_at
    fills = load.stream_bytes_max > 0 and stream_bytes > room
    return Prediction(
        kept_results=kept,
        memory_bytes=kept * MEMORY_BYTES_PER_RESULT,
        stream_bytes=stream_bytes,
        disk_bytes=disk_bytes,
        restart_s=restart_s,
        cold_restart_s=restart_s + disk_bytes / COLD_READ_BYTES_PER_S,
        full_after_s=room / (load.tasks_per_s * bytes_each) if fills else None,
    )
