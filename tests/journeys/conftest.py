"""Commands as processes of their own, that clean up what they leave: a marked environment finds it."""

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

MARK = "JOURNEY_TEST"


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """Where a command keeps its temporary files."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


@pytest.fixture
def marked() -> Iterator[str]:
    """A variable of a command's environment, inherited by all it starts, which finds what is left of it."""
    mark = f"journey-{os.getpid()}-{os.urandom(4).hex()}"
    yield mark
    for process in left_behind(mark):
        process.kill()


def left_behind(mark: str) -> list[psutil.Process]:
    """Processes that were started with the mark and still run."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found
