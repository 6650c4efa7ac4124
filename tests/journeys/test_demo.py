"""`mesh demo` as a reader runs it: processes, a real server, and a peer that is really killed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.journeys.conftest import MARK, left_behind

FILES = 40
ENDS_WITHIN_S = 60.0

FIGURES = {
    *("sent", "results", "lost", "duplicated", "killed", "redelivered", "takeover_s"),
    *("queue_p50_s", "queue_p99_s", "run_p50_s", "run_p99_s", "elapsed_s"),
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Enough Python to keep four peers busy for a moment."""
    functions = "\n\n".join(f"def f{n}(x):\n    if x:\n        return {n}\n    return x" for n in range(300))
    root = tmp_path / "tree"
    root.mkdir()
    for number in range(FILES):
        (root / f"module_{number:02}.py").write_text(f"import os\n\n\n{functions}\n\n\nNUMBER = {number}\n")
    return root


def start(tree: Path, scratch: Path, mark: str, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mesh", "demo", str(tree), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Settings of another mesh must not reach the demo's.
        env={**os.environ, MARK: mark, "TMPDIR": str(scratch), "MESH_PREFIX": "other", "MESH_HTTP_PORT": "1"},
    )


def test_a_killed_peer_costs_no_task_and_answers_none_twice(tree: Path, scratch: Path, marked: str) -> None:
    demo = start(tree, scratch, marked, "--json")

    told, complaint = demo.communicate(timeout=ENDS_WITHIN_S)

    assert demo.returncode == 0, complaint
    summary = json.loads(told)
    assert summary.keys() >= FIGURES
    assert (summary["sent"], summary["results"], summary["killed"]) == (FILES, FILES, 1)
    assert (summary["lost"], summary["duplicated"], summary["unexpected"], summary["queued"]) == (0, 0, 0, 0)
    assert (summary["submissions"], summary["started"], summary["failed"]) == (2 * FILES, FILES, 0)
    assert complaint == ""
    assert left_behind(marked) == []
    assert list(scratch.iterdir()) == []


def test_a_demo_that_is_interrupted_leaves_nothing_behind(tree: Path, scratch: Path, marked: str) -> None:
    demo = start(tree, scratch, marked)
    assert demo.stderr is not None
    told_before = next(line for line in demo.stderr if "SIGKILL" in line)

    demo.send_signal(signal.SIGINT)
    demo.communicate(timeout=ENDS_WITHIN_S)

    assert "in the middle of module_" in told_before
    assert demo.returncode == 130
    assert left_behind(marked) == []
    assert list(scratch.iterdir()) == []
