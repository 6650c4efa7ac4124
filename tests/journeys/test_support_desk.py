"""The desk's programs as a reader runs them: processes, a real server, a peer that is really killed, nothing left."""

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from agents.support_desk import tickets
from agents.support_desk.models import SHIPPED_TICKETS
from agents.support_desk.splitting import split
from agents.support_desk.tickets import read_tickets
from tests.journeys.conftest import MARK, left_behind

ENDS_WITHIN_S = 90.0
LABELS = {"cancel_order", "payment_declined", "size_advice", "where_is_my_order"}
"""Of the shipped tickets: fewer are learned sooner."""

RUNGS = {"triage", "specialist", "human"}
FIGURES = {"tickets", "resolved_share", "accuracy", "by_rung", "calibration_error"}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Tickets to train on, and others."""
    few = [ticket for ticket in read_tickets(SHIPPED_TICKETS) if ticket.label in LABELS]
    to_train, others = split(few, training_share=0.7, seed=3)
    return written(tmp_path / "train.csv", to_train), written(tmp_path / "data.csv", others)


def written(path: Path, examples: Iterable[tickets.Ticket]) -> Path:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "category"])
        rows.writerows((ticket.text, ticket.label) for ticket in examples)
    return path


def start(program: str, *options: str | Path, scratch: Path, mark: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", f"agents.support_desk.{program}", *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Settings of another mesh must not reach this one.
        env={**os.environ, MARK: mark, "TMPDIR": str(scratch), "MESH_PREFIX": "other", "MESH_HTTP_PORT": "1"},
    )


def test_the_demo_loses_no_ticket_with_a_peer_and_has_people_answer_three(scratch: Path, marked: str) -> None:
    demo = start("demo", "--json", scratch=scratch, mark=marked)

    told, complaint = demo.communicate(timeout=ENDS_WITHIN_S)

    assert demo.returncode == 0, complaint
    summary = json.loads(told)
    assert summary.keys() >= FIGURES
    assert (summary["killed"], summary["failed"]) == (1, 0)
    assert summary["answered"].keys() == {"approved", "edited", "rejected"}
    by_rung = {rung: of["tickets"] for rung, of in summary["by_rung"].items()}
    assert by_rung.keys() == RUNGS
    assert sum(by_rung.values()) == summary["tickets"]
    assert by_rung["human"] == summary["waiting"] + 3
    assert left_behind(marked) == []
    assert list(scratch.iterdir()) == []


def test_an_evaluation_tells_what_the_desk_did_with_every_ticket(
    files: tuple[Path, Path], scratch: Path, marked: str
) -> None:
    train, data = files
    with data.open("a") as file:
        file.write("Please cancel my order,never_heard_of\n")

    evaluation = start("evaluate", "--train", train, "--data", data, "--json", scratch=scratch, mark=marked)
    told, complaint = evaluation.communicate(timeout=ENDS_WITHIN_S)

    assert evaluation.returncode == 0, complaint
    report = json.loads(told)
    assert report.keys() >= FIGURES
    assert report["tickets"] == len(read_tickets(data))
    assert report["by_rung"].keys() == RUNGS
    assert sum(of["tickets"] for of in report["by_rung"].values()) == report["tickets"]
    assert report["by_rung"]["human"]["accuracy"] is None
    assert "never_heard_of" in complaint
    assert left_behind(marked) == []
    assert list(scratch.iterdir()) == []


def test_an_evaluation_that_is_ended_midway_leaves_nothing_behind(
    files: tuple[Path, Path], scratch: Path, marked: str
) -> None:
    train, data = files
    evaluation = start("evaluate", "--train", train, "--data", data, scratch=scratch, mark=marked)
    assert evaluation.stderr is not None
    next(line for line in evaluation.stderr if "peers are ready" in line)

    evaluation.send_signal(signal.SIGTERM)
    evaluation.communicate(timeout=ENDS_WITHIN_S)

    assert evaluation.returncode == 143
    assert left_behind(marked) == []
    assert list(scratch.iterdir()) == []


def test_a_file_that_is_no_list_of_tickets_is_named_with_the_line(
    files: tuple[Path, Path], scratch: Path, marked: str
) -> None:
    train, data = files
    data.write_text("text,category\nWhere is it?,where_is_my_order\nno comma\n")

    evaluation = start("evaluate", "--train", train, "--data", data, scratch=scratch, mark=marked)
    told, complaint = evaluation.communicate(timeout=ENDS_WITHIN_S)

    assert (evaluation.returncode, told) == (2, "")
    assert f"{data}, line 3" in complaint
    assert "Traceback" not in complaint
