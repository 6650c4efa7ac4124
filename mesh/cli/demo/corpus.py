"""Which files are reviewed, and under which keys."""

import os
import platform
import re
import sysconfig
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from agents.code_review import SourceFile
from mesh import payload as payloads
from mesh.digest import digest
from mesh.errors import SetupError

FILES_MAX: Final = 300
SLUG_LENGTH: Final = 60

NOT_SOURCE: Final = frozenset({"__pycache__", "node_modules", "site-packages", "dist-packages"})
TESTS: Final = frozenset({"test", "tests", "idle_test"})
"""Left out of the standard library: half of it, and partly broken on purpose."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Wanted:
    """One file to be reviewed, and the idempotency key under which it is submitted."""

    key: str
    file: SourceFile


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that was chosen and is not submitted."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Corpus:
    """What is reviewed. `found` counts the files there were to choose from."""

    name: str
    found: int
    wanted: tuple[Wanted, ...]
    skipped: tuple[Skipped, ...]


def read_corpus(path: Path | None, *, payload_bytes_max: int) -> Corpus:
    """Python files below `path`, of the running interpreter's standard library by default; the same each time.

    Raises:
        SetupError: there is no file to review.
    """
    if path is None:
        root, name, left_out = (
            Path(sysconfig.get_path("stdlib")),
            f"Python {platform.python_version()}'s library",
            TESTS,
        )
    else:
        root, name, left_out = path, str(path), frozenset()
    found = sorted(_python_files(root, NOT_SOURCE | left_out))
    wanted: list[Wanted] = []
    skipped: list[Skipped] = []
    for file in spread(found, FILES_MAX):
        shown = file.name if file == root else file.relative_to(root).as_posix()
        try:
            with tokenize.open(file) as text:
                source = text.read()
        except (OSError, SyntaxError, UnicodeDecodeError) as error:
            skipped.append(Skipped(shown, f"cannot be read: {error}"))
            continue
        source_file = SourceFile(shown, source)
        encoded = payloads.encode(source_file)
        if len(encoded) > payload_bytes_max:
            skipped.append(Skipped(shown, f"payload of {len(encoded):,} bytes exceeds {payload_bytes_max:,}"))
        else:
            wanted.append(Wanted(key_of(shown, encoded), source_file))
    if not wanted:
        why = f": {skipped[0].path} {skipped[0].reason}" if skipped else ""
        raise SetupError(f"no Python file to review in {root}{why}")
    return Corpus(name, len(found), tuple(wanted), tuple(skipped))


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of the items, evenly spaced over all of them, in their order."""
    if len(items) <= most:
        return list(items)
    return [items[position * len(items) // most] for position in range(most)]


def key_of(path: str, encoded: bytes) -> str:
    """The same for the same content at the same path, and for nothing else; it begins readably."""
    slug = re.sub(r"[^A-Za-z0-9_]+", "-", path)[-SLUG_LENGTH:].strip("-") or "file"
    return f"{slug}-{digest(encoded)[:16]}"


def _python_files(root: Path, left_out: frozenset[str]) -> Iterator[Path]:
    if root.is_file():
        yield root
        return
    for folder, below, names in os.walk(root):
        here = Path(folder)
        # A virtual environment is not the reader's source.
        below[:] = [
            name
            for name in below
            if name not in left_out and not name.startswith(".") and not (here / name / "pyvenv.cfg").exists()
        ]
        yield from (here / name for name in names if name.endswith(".py"))
