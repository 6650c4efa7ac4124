"""The checker finds what is wrong in a history, and nothing in one that is right."""

from pathlib import Path

import msgspec
import pytest

from mesh.testing.history import Entry, History, What, check

ASKED = (
    Entry(What.ATTEMPTED, task="work/a"),
    Entry(What.CONFIRMED, task="work/a", is_new=True),
    Entry(What.ECHOED, task="work/a", sequence=5),
)
STANDS = Entry(What.RECORDED, task="work/a", sequence=5, status="done", value="1")


def test_a_confirmed_task_with_one_result_violates_nothing() -> None:
    found = check([*ASKED, STANDS, Entry(What.ANSWERED, task="work/a", status="done", value="1")])

    assert not found.violations


def test_an_attempt_that_was_not_confirmed_may_have_a_result_or_none() -> None:
    attempted = Entry(What.ATTEMPTED, task="work/a")

    assert not check([attempted]).violations
    assert not check([attempted, STANDS]).violations


@pytest.mark.parametrize(
    ("violated", "entries"),
    [
        ("lost", [*ASKED]),
        ("lost", [*ASKED, Entry(What.RECORDED, task="work/a", sequence=5, sends=("leaf/a.~1",))]),
        ("unexpected", [*ASKED, STANDS, Entry(What.RAN, task="leaf/a.~1")]),
        ("unexpected", [*ASKED, STANDS, Entry(What.RECORDED, task="leaf/a.~1", sequence=9)]),
        ("repeated", [*ASKED, STANDS, Entry(What.ECHOED, task="work/a", sequence=8)]),
        ("repeated", [*ASKED, STANDS, Entry(What.CONFIRMED, task="work/a", is_new=True)]),
        ("repeated", [*ASKED, STANDS, Entry(What.ANSWERED, task="work/a", status="done", value="2")]),
        ("left", [*ASKED, STANDS, Entry(What.LEFT, detail="mesh.task.work.a")]),
        ("undue", [*ASKED, STANDS, Entry(What.BURIED, task="work/a")]),
        ("missing", [*ASKED, STANDS, Entry(What.ATTEMPTED, task="work/a", is_doomed=True)]),
        ("broken", [*ASKED, STANDS, Entry(What.ENDED, peer="7", detail="1")]),
    ],
)
def test_a_violation_is_named(violated: str, entries: list[Entry]) -> None:
    assert list(check(entries).violations) == [violated]


def test_a_history_is_read_as_it_was_written_and_a_line_under_way_is_left(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    first, second = (msgspec.structs.replace(entry, at=at) for entry, at in ((STANDS, 1.0), (ASKED[0], 2.0)))
    with History(path) as history, History(path) as other:
        history.add(first)
        other.add(second)
        with path.open("ab") as file:
            file.write(b'{"what":"ra')

        assert history.read() == [first, second]
        assert history.read(What.ATTEMPTED) == [second]


def test_an_entry_without_a_time_gets_one_that_does_not_go_back(tmp_path: Path) -> None:
    with History(tmp_path / "history.jsonl") as history:
        for entry in ASKED:
            history.add(entry)

        times = [entry.at for entry in history.read()]

    assert times[0] > 0
    assert times == sorted(times)
