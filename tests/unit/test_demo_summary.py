"""What the demo says about a run, from what was observed of it."""

from dataclasses import replace
from pathlib import Path

import pytest

from contracts.outcome import Failure, FailureKind, Outcome, Status
from mesh.cli.demo.corpus import key_of, read_corpus, spread
from mesh.cli.demo.summary import (
    History,
    Kill,
    Recorded,
    choose_victim,
    duplicates,
    percentile,
    summarise,
    taken_over,
)
from mesh.errors import SetupError


def outcome(*, peer: str = "p1", attempt: int = 1, queue_s: float = 0.1, run_s: float = 0.2) -> Outcome:
    return Outcome(status=Status.DONE, peer=peer, attempt=attempt, queue_s=queue_s, run_s=run_s)


def history(records: dict[str, Recorded], *, kills: tuple[Kill, ...] = ()) -> History:
    """Two submitters sent each key, each heard its record, and nothing went wrong."""
    return History(
        began_at=100.0,
        submitted_from=101.0,
        ended_at=110.0,
        accepted=[*records, *records],
        started=len(records),
        answers=[(key, recorded.outcome) for key, recorded in records.items()] * 2,
        echoes=[(key, recorded.sequence) for key, recorded in records.items()],
        records=records,
        kills=kills,
        redelivered=0,
        queued=0,
    )


@pytest.fixture
def calm() -> History:
    return history({f"k{n}": Recorded(outcome(), sequence=n, stored_at=101.0 + n) for n in range(1, 5)})


def test_a_run_in_which_everything_is_answered_once_is_sound(calm: History) -> None:
    summary = summarise(calm)

    assert summary.is_sound
    assert (summary.sent, summary.submissions, summary.started, summary.results) == (4, 8, 4, 4)
    assert (summary.lost, summary.duplicated, summary.unexpected) == (0, 0, 0)
    assert (summary.elapsed_s, summary.tasks_per_s) == (10.0, 1.0)


def test_a_key_without_a_record_is_lost_whatever_was_heard_of_it(calm: History) -> None:
    records = {key: recorded for key, recorded in calm.records.items() if key != "k2"}

    summary = summarise(replace(calm, records=records))

    assert (summary.lost, summary.results) == (1, 3)
    assert not summary.is_sound


def test_a_second_stored_result_of_a_key_is_a_duplicate(calm: History) -> None:
    observed = replace(calm, echoes=[*calm.echoes, ("k3", 99)])

    assert duplicates(observed) == {"k3"}
    assert not summarise(observed).is_sound


def test_a_record_that_is_not_the_one_echoed_is_a_duplicate(calm: History) -> None:
    observed = replace(calm, records={**calm.records, "k1": replace(calm.records["k1"], sequence=99)})

    assert duplicates(observed) == {"k1"}


def test_the_same_echo_heard_again_is_no_duplicate(calm: History) -> None:
    assert not duplicates(replace(calm, echoes=[*calm.echoes, *calm.echoes]))


def test_submitters_that_are_told_different_things_met_a_duplicate(calm: History) -> None:
    observed = replace(calm, answers=[*calm.answers[1:], ("k1", outcome(peer="p2"))])

    assert duplicates(observed) == {"k1"}


def test_different_answers_about_a_lost_record_are_a_duplicate_too(calm: History) -> None:
    observed = replace(calm, records={}, echoes=[], answers=[("k1", outcome()), ("k1", outcome(peer="p2"))])

    assert duplicates(observed) == {"k1"}


def test_a_result_that_nobody_asked_for_is_unexpected(calm: History) -> None:
    summary = summarise(replace(calm, echoes=[*calm.echoes, ("stray", 50)]))

    assert summary.unexpected == 1
    assert not summary.is_sound


def test_a_failure_is_a_result() -> None:
    failed = Outcome(status=Status.FAILED, failure=Failure(kind=FailureKind.PERMANENT, message="no"))

    summary = summarise(history({"k1": Recorded(failed, sequence=1, stored_at=102.0)}))

    assert (summary.results, summary.failed, summary.lost) == (1, 1, 0)
    assert summary.is_sound


def test_takeover_lasts_from_the_kill_to_the_last_abandoned_tasks_record() -> None:
    observed = history(
        {
            "before": Recorded(outcome(peer="dead"), 1, 102.0),
            "first": Recorded(outcome(peer="p2", attempt=2), 2, 109.5),
            "last": Recorded(outcome(peer="p1", attempt=2), 3, 109.75),
            "meanwhile": Recorded(outcome(peer="p1"), 4, 104.0),
        },
        kills=(Kill("dead", 103.0, ("first",)),),
    )

    summary = summarise(observed)

    assert [(over.key, over.by, over.after_s) for over in taken_over(observed)] == [
        ("first", "p2", 6.5),
        ("last", "p1", 6.75),
    ]
    assert (summary.killed, summary.taken_over, summary.takeover_s) == (1, 2, 6.75)


def test_the_wait_for_a_takeover_does_not_slow_the_rate() -> None:
    observed = history(
        {
            "meanwhile": Recorded(outcome(), 1, 102.0),
            "late": Recorded(outcome(attempt=2), 2, 109.0),
        },
        kills=(Kill("dead", 101.5, ("late",)),),
    )

    assert summarise(observed).tasks_per_s == 1.0


def test_a_retry_after_a_recorded_failure_is_no_takeover() -> None:
    retried = Recorded(outcome(attempt=3), 1, 105.0, ended_before=2)

    observed = history({"k1": retried}, kills=(Kill("dead", 103.0, ("k1",)),))

    assert taken_over(observed) == []
    assert summarise(observed).takeover_s is None


def test_nothing_is_taken_over_where_nobody_was_killed() -> None:
    observed = history({"k1": Recorded(outcome(attempt=2), 1, 105.0)})

    assert taken_over(observed) == []


@pytest.mark.parametrize(("percent", "expected"), [(50, 2.0), (99, 4.0), (0, 1.0), (100, 4.0)])
def test_a_percentile_is_one_of_the_values(percent: float, expected: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], percent) == expected


def test_no_values_have_no_percentile() -> None:
    assert percentile([], 99) is None


def test_the_victim_is_the_first_in_order_that_runs_something() -> None:
    assert choose_victim(["a", "b", "c"], {"a": (), "b": ("k1",), "c": ("k2",)}) == ("b", ("k1",))
    assert choose_victim(["a"], {"a": ()}) is None
    assert choose_victim(["a"], {}) is None


def test_files_are_spread_over_all_there_are() -> None:
    assert spread(range(10), 5) == [0, 2, 4, 6, 8]
    assert spread(range(3), 5) == [0, 1, 2]


def test_a_key_is_the_same_for_the_same_file_and_differs_with_path_or_content() -> None:
    assert key_of("a/b.py", b"1") == key_of("a/b.py", b"1")
    assert len({key_of("a/b.py", b"1"), key_of("a/b.py", b"2"), key_of("b/b.py", b"1")}) == 3
    assert key_of("a/b.py", b"1").startswith("a-b-py-")


def test_what_cannot_be_sent_is_skipped_and_said_so(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text("x = 1\n")
    (tmp_path / "large.py").write_text("#" * 2_000)
    (tmp_path / "binary.py").write_bytes(b"\xff\xfe\xfa")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "hidden.py").write_text("x = 1\n")

    corpus = read_corpus(tmp_path, payload_bytes_max=1_000)

    assert [wanted.file.path for wanted in corpus.wanted] == ["good.py"]
    assert {skipped.path for skipped in corpus.skipped} == {"large.py", "binary.py"}
    assert corpus.found == 3


def test_a_folder_without_python_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="no Python file to review"):
        read_corpus(tmp_path, payload_bytes_max=1_000)


def test_the_standard_library_gives_the_same_files_each_time() -> None:
    first = read_corpus(None, payload_bytes_max=1_000_000)
    again = read_corpus(None, payload_bytes_max=1_000_000)

    assert [wanted.key for wanted in first.wanted] == [wanted.key for wanted in again.wanted]
    assert len({wanted.key for wanted in first.wanted}) == len(first.wanted) > 100
