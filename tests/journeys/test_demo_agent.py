"""`mesh demo-agent` as a reader runs it: an LLM agent whose peer is killed, and a bill that is counted."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from mesh.cli.demo_agent.report import Screen
from tests.journeys.conftest import MARK, left_behind

ENDS_WITHIN_S = 90.0
CALLS = 10


def start(scratch: Path, mark: str, *options: str) -> subprocess.Popen[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    return subprocess.Popen(
        [sys.executable, "-m", "mesh", "demo-agent", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Settings of another mesh must not reach the demo's.
        env={**inherited, MARK: mark, "TMPDIR": str(scratch), "MESH_PREFIX": "other", "MESH_HTTP_PORT": "1"},
    )


def test_a_killed_agent_goes_on_and_pays_twice_for_one_call_at_most(scratch: Path, marked: str) -> None:
    demo = start(scratch, marked, "--json")

    told, complaint = demo.communicate(timeout=ENDS_WITHIN_S)

    assert demo.returncode == 0, complaint
    summary = json.loads(told)
    assert summary["answer"].startswith("An agent outlives its worker")
    assert (summary["calls"], summary["asked"], summary["repeated"]) == (CALLS, CALLS + 1, 1)
    assert (summary["from_records"], summary["tools"], summary["attempts"]) == (4, CALLS - 1, 2)
    assert summary["killed"] != summary["went_on"]
    assert summary["tokens_paid"] >= summary["tokens_in"] + summary["tokens_out"] > 0
    assert complaint == ""
    assert left_behind(marked) == []
    assert list(scratch.iterdir()) == []


def test_the_reader_sees_one_text_and_the_bill(scratch: Path, marked: str) -> None:
    demo = start(scratch, marked)

    told, shown = demo.communicate(timeout=ENDS_WITHIN_S)

    assert demo.returncode == 0, shown
    assert shown.count("how anybody notices that a worker is gone at all") == 1
    assert "SIGKILL to peer" in shown
    assert "Another peer goes on" in shown
    assert "requests the endpoint counted" in told


def test_a_demo_that_is_interrupted_leaves_nothing_behind(scratch: Path, marked: str) -> None:
    demo = start(scratch, marked)
    assert demo.stderr is not None
    next(line for line in demo.stderr if "SIGKILL" in line)

    demo.send_signal(signal.SIGINT)
    demo.communicate(timeout=ENDS_WITHIN_S)

    assert demo.returncode == 130
    assert left_behind(marked) == []
    assert list(scratch.iterdir()) == []


def test_what_a_model_says_in_other_words_the_second_time_is_shown_from_there_on() -> None:
    shown = io.StringIO()
    screen = Screen(Console(file=shown, width=200), is_quiet=False)

    screen.text("I look ")
    screen.text("left")
    screen.restart()
    screen.text("I look ")
    screen.text("right")

    assert shown.getvalue().splitlines() == [
        "I look left",
        "Another peer goes on, from what is recorded.",
        "",
        "",
        "… right",
    ]
