"""The table of running tasks in shared memory: one writer, one reader, no lock."""

import mmap
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mesh.bus.beats import REPLY_BYTES_MAX, BeatTable

SLOTS = 4


@contextmanager
def shared(path: Path) -> Iterator[mmap.mmap]:
    """The memory of a table of `SLOTS` rows, mapped from a file."""
    if not path.exists():
        path.write_bytes(bytes(BeatTable.size(SLOTS)))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        yield memory


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[mmap.mmap]:
    with shared(tmp_path / "beats") as memory:
        yield memory


def due(memory: mmap.mmap, now: float = 10.0, older_than_s: float = 1.0) -> list[str]:
    return list(BeatTable(memory, slots=SLOTS).due(now, older_than_s=older_than_s))


def test_what_is_put_is_spoken_for_from_its_age_until_its_time(memory: mmap.mmap) -> None:
    table = BeatTable(memory, slots=SLOTS)

    table.put(b"$JS.ACK.a", began=10.0, until=20.0)

    assert due(memory, now=10.9) == []
    assert due(memory, now=11.0) == ["$JS.ACK.a"]
    assert due(memory, now=20.0) == ["$JS.ACK.a"]
    assert due(memory, now=20.1) == []


def test_what_is_dropped_is_spoken_for_no_longer_and_its_row_is_free(memory: mmap.mmap) -> None:
    table = BeatTable(memory, slots=SLOTS)
    rows = [table.put(b"r%d" % number, began=0.0, until=99.0) for number in range(SLOTS)]

    table.drop(rows[1])

    assert set(due(memory)) == {"r0", "r2", "r3"}
    assert table.put(b"again", began=0.0, until=99.0) == rows[1]
    assert set(due(memory)) == {"r0", "again", "r2", "r3"}


def test_another_delivery_of_a_task_replaces_the_one_before(memory: mmap.mmap) -> None:
    table = BeatTable(memory, slots=SLOTS)
    row = table.put(b"a-much-longer-subject", began=0.0, until=99.0)

    table.replace(row, b"short", began=0.0, until=99.0)

    assert due(memory) == ["short"]


def test_an_empty_reply_silences_a_row_that_is_still_held(memory: mmap.mmap) -> None:
    table = BeatTable(memory, slots=SLOTS)
    row = table.put(b"r", began=0.0, until=99.0)

    table.replace(row, b"", began=0.0, until=0.0)

    assert due(memory) == []
    assert row not in [table.put(b"x", began=0.0, until=99.0) for _ in range(SLOTS - 1)]


def test_a_full_table_says_so(memory: mmap.mmap) -> None:
    table = BeatTable(memory, slots=SLOTS)
    for _ in range(SLOTS):
        table.put(b"r", began=0.0, until=99.0)

    with pytest.raises(IndexError):
        table.put(b"r", began=0.0, until=99.0)


def test_an_ack_subject_may_fill_its_row_and_not_run_into_the_next(memory: mmap.mmap) -> None:
    table = BeatTable(memory, slots=SLOTS)
    longest = b"x" * REPLY_BYTES_MAX
    rows = [table.put(longest, began=0.0, until=99.0) for _ in range(2)]

    with pytest.raises(ValueError, match=f"ack subject of {REPLY_BYTES_MAX + 1} bytes exceeds {REPLY_BYTES_MAX}"):
        table.replace(rows[0], longest + b"x", began=0.0, until=99.0)

    assert due(memory) == [longest.decode()] * 2


def test_a_scan_under_way_shows_at_the_writers_side(memory: mmap.mmap) -> None:
    writer, reader = BeatTable(memory, slots=SLOTS), BeatTable(memory, slots=SLOTS)
    assert not writer.is_scanning()

    reader.begin_scan()
    assert writer.is_scanning()

    reader.end_scan()
    assert not writer.is_scanning()


@pytest.mark.parametrize("written", range(1, 4 + 20 + len(b"the second")))
def test_a_row_of_which_a_part_is_written_is_skipped(memory: mmap.mmap, written: int) -> None:
    table = BeatTable(memory, slots=SLOTS)
    row = table.put(b"a first one", began=0.0, until=99.0)
    table.put(b"other", began=0.0, until=99.0)
    at = BeatTable.size(row)
    before = memory[at : BeatTable.size(row + 1)]
    table.replace(row, b"the second", began=1.0, until=77.0)
    after = memory[at : BeatTable.size(row + 1)]

    memory[at : BeatTable.size(row + 1)] = after[:written] + before[written:]

    assert due(memory) == ["other"]
    memory[at : BeatTable.size(row + 1)] = after
    assert due(memory) == ["other", "the second"]


WRITER = """
import mmap, sys
from mesh.bus.beats import REPLY_BYTES_MAX, BeatTable

with open(sys.argv[1], "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
    table = BeatTable(memory, slots=int(sys.argv[2]))
    rows = [table.put(b"a", began=0.0, until=9e9) for _ in range(int(sys.argv[2]))]
    print("writing", flush=True)
    number = 0
    while table.is_scanning():
        number += 1
        length = 1 + number * 37 % REPLY_BYTES_MAX
        table.replace(rows[number % len(rows)], bytes([97 + length % 26]) * length, began=0.0, until=9e9)
    print(number, flush=True)
"""


def test_a_reader_in_another_process_never_sees_half_of_a_subject(tmp_path: Path) -> None:
    path = tmp_path / "beats"
    with shared(path) as memory:
        table = BeatTable(memory, slots=SLOTS)
        table.begin_scan()
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(SLOTS)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "writing\n"

            seen = [reply for _ in range(20_000) for reply in table.due(10.0, older_than_s=1.0)]

            table.end_scan()
            written = int(writer.stdout.readline())

    torn = [reply for reply in seen if reply != "a" and reply != chr(97 + len(reply) % 26) * len(reply)]
    assert torn == []
    assert written > SLOTS
    assert len(set(seen)) > 1
