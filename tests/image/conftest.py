"""The image, built once for each test process that asks for it."""

import shutil
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.image.dockerfile import REPOSITORY, Image, build, parsed, readable_python


@pytest.fixture(scope="session")
def image() -> Iterator[Image]:
    """What the Dockerfile makes, every instruction carried out, but what the mesh needs is found among these tests'."""
    packages = sysconfig.get_path("purelib")
    with _folder() as folder:
        # Behind the environment's own packages. What is found there is neither downloaded nor touched.
        finder = folder / "finder"
        finder.mkdir()
        (finder / "sitecustomize.py").write_text(f"import sys\nsys.path.append({packages!r})\n")
        made = build(
            Image(folder),
            parsed(),
            python=readable_python(),
            context=REPOSITORY,
            also={"PYTHONPATH": str(finder), "PIP_NO_DEPS": "1", "PIP_IGNORE_INSTALLED": "1"},
        )
        (site,) = made.path("/opt/venv/lib").glob("python*/site-packages")
        (site / "of_the_tests.pth").write_text(f"{packages}\n")
        yield made


@pytest.fixture(scope="session")
def whole_image() -> Iterator[Image]:
    """What the Dockerfile makes, every instruction carried out as it stands."""
    with _folder() as folder:
        yield build(Image(folder), parsed(), python=readable_python(), context=REPOSITORY, also={})


@contextmanager
def _folder() -> Iterator[Path]:
    # Not below pytest's own, which only its user may enter.
    folder = Path(tempfile.mkdtemp(prefix="mesh-image-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
