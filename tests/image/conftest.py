"""The image, built once for all test processes that ask for it."""

import fcntl
import os
import pickle
import shutil
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from tests.image.dockerfile import REPOSITORY, Image, build, parsed, readable_python

WITHOUT_DOWNLOADS = """#!/bin/sh
if [ "$1 $2" = "-m venv" ]; then
    {python} -m venv --without-pip "$3"
    printf '#!/bin/sh\\nexec %s/bin/python -m pip "$@"\\n' "$3" >"$3/bin/pip"
    exec chmod +x "$3/bin/pip"
fi
exec {python} "$@"
"""
"""A Python whose virtual environments have the pip of these tests."""


@pytest.fixture(scope="session")
def image() -> Iterator[Image]:
    """What the Dockerfile makes, every instruction carried out; pip and what the mesh needs are these tests' own."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    # Not below pytest's own folder, which only its user may enter.
    folder = Path(tempfile.gettempdir()) / f"mesh-image-{run}"
    with folder.with_suffix(".lock").open("a") as users:
        fcntl.flock(users, fcntl.LOCK_EX)
        made = folder / "made"
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o755)
            made.write_bytes(pickle.dumps(_quickly_built(folder)))
        fcntl.flock(users, fcntl.LOCK_SH)
        try:
            yield pickle.loads(made.read_bytes())
        finally:
            _leave(users, folder)


def _quickly_built(folder: Path) -> Image:
    packages = sysconfig.get_path("purelib")
    # Behind the environment's own packages. What is found there is neither downloaded nor touched.
    finder = folder / "finder"
    finder.mkdir()
    (finder / "sitecustomize.py").write_text(f"import sys\nsys.path.append({packages!r})\n")
    python = finder / "python"
    python.write_text(WITHOUT_DOWNLOADS.format(python=readable_python()))
    python.chmod(0o755)
    also = {"PYTHONPATH": str(finder), "PIP_NO_DEPS": "1", "PIP_IGNORE_INSTALLED": "1"}
    image = build(Image(folder / "root"), parsed(), python=python, context=REPOSITORY, also=also)
    (site,) = image.path("/opt/venv/lib").glob("python*/site-packages")
    (site / "of_the_tests.pth").write_text(f"{packages}\n")
    image.path("/tmp").mkdir(exist_ok=True)
    return image


def _leave(users: IO[str], folder: Path) -> None:
    """Remove the folder, unless another process still uses it."""
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_suffix(".lock").unlink(missing_ok=True)


@pytest.fixture(scope="session")
def whole_image() -> Iterator[Image]:
    """What the Dockerfile makes, every instruction carried out as it stands."""
    folder = Path(tempfile.mkdtemp(prefix="mesh-image-"))
    folder.chmod(0o755)
    try:
        yield build(Image(folder), parsed(), python=readable_python(), context=REPOSITORY, also={})
    finally:
        shutil.rmtree(folder)
