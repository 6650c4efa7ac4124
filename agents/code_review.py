"""Reviews one Python file at a time: findings of ruff, size, and how hard its functions are to follow.

    mesh run agents.code_review

The source travels in the task, so a peer needs no access to the caller's files. Running a review twice does
no harm: it reads its input and writes nothing.
"""

import ast
import asyncio
import io
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import PurePath
from subprocess import PIPE
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct
from ruff import find_ruff_bin  # type: ignore[import-untyped]  # ruff ships no types

from mesh import Agent, Permanent, Transient

agent = Agent(
    "reviewer",
    version="1.0.0",
    owner="platform",
    description="Reviews Python source with ruff, and measures its size and complexity.",
)

RULES: Final = ("E7", "E9", "F", "B", "C901", "PLE", "S102", "S301", "S307", "S324", "S602", "S605")
"""Likely mistakes (pyflakes, bugbear, pylint's errors), hard-to-follow functions, and a few dangerous calls."""
COMPLEXITY_MAX: Final = 10
FINDINGS_MAX: Final = 1_000
MESSAGE_LENGTH_MAX: Final = 300
NEWEST_SYNTAX: Final = 14


class SourceFile(Struct, frozen=True):
    """A file to be reviewed."""

    path: Annotated[str, Meta(description="As it is to be shown; nothing is read from it.")]
    source: Annotated[str, Meta(description="The whole text of the file.")]


class Finding(Struct, frozen=True):
    """One thing to look at."""

    rule: Annotated[str, Meta(description="Ruff's code, as `F401`, or `invalid-syntax`.")]
    name: Annotated[str, Meta(description="The rule's name, as `unused-import`.")]
    line: Annotated[int, Meta(ge=1)]
    message: str


class Size(Struct, frozen=True):
    """How much there is. Functions and classes are 0 in a file that does not parse."""

    lines: int
    code_lines: Annotated[int, Meta(description="Lines that are not blank, not only a comment, not a docstring.")]
    functions: Annotated[int, Meta(description="Methods and nested functions included.")]
    classes: int


class Complexity(Struct, frozen=True):
    """The function that is hardest to follow."""

    function: str
    line: Annotated[int, Meta(ge=1)]
    mccabe: Annotated[int, Meta(description="Number of independent paths through it (McCabe).")]


class Review(Struct, frozen=True):
    """What there is to say about a file."""

    path: str
    size: Size
    findings: Annotated[tuple[Finding, ...], Meta(description="By line, the first 1,000.")] = ()
    findings_left_out: Annotated[int, Meta(description="How many findings there are beyond those listed.")] = 0
    worst: Annotated[Complexity | None, Meta(description="None where there is no function.")] = None


@agent.handles("review-file", concurrency=4, timeout_s=60)
async def review(file: SourceFile) -> Review:
    """Review one Python file.

    A file that does not parse is reviewed too: that it does not is a finding.
    """
    remarks = await _ruff(file)
    size = await asyncio.to_thread(measure, file.source)
    worst = max((found for remark in remarks if (found := _complexity(remark))), key=_by_mccabe, default=None)
    findings = sorted(_findings(remarks), key=lambda finding: (finding.line, finding.rule))
    return Review(
        path=file.path,
        size=size,
        findings=tuple(findings[:FINDINGS_MAX]),
        findings_left_out=max(0, len(findings) - FINDINGS_MAX),
        worst=worst,
    )


def measure(source: str) -> Size:
    """The size of a source text, whether it parses or not."""
    # Not `splitlines`: to Python a form feed ends no line.
    lines = list(io.StringIO(source, newline=None))
    try:
        with _parsing:
            nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        nodes = []
    docstrings = {line for node in nodes for line in _docstring_lines(node)}
    code_lines = sum(
        bool(stripped := line.strip()) and not stripped.startswith("#") and number not in docstrings
        for number, line in enumerate(lines, start=1)
    )
    return Size(
        lines=len(lines),
        code_lines=code_lines,
        functions=sum(isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) for node in nodes),
        classes=sum(isinstance(node, ast.ClassDef) for node in nodes),
    )


# CPython 3.11 counts the depth of a syntax tree for all threads at once, and takes two at a time for corrupt.
_parsing = threading.Lock()


class _Location(Struct):
    row: int


class _Remark(Struct):
    """What we read of one entry of ruff's JSON."""

    code: str
    name: str
    location: _Location
    message: str


_remarks = msgspec.json.Decoder(list[_Remark])
_TOO_COMPLEX = re.compile(r"`(?P<function>.+)` is too complex \((?P<mccabe>\d+) > \d+\)")
_FILE_NAME = re.compile(r"\w[\w.-]{0,199}\.pyi?")


async def _ruff(file: SourceFile) -> list[_Remark]:
    """Everything ruff says, and the complexity of every function as a remark of its own.

    Raises:
        Permanent: ruff refuses the input.
        Transient: ruff was killed.
    """
    name = PurePath(file.path).name
    process = await asyncio.create_subprocess_exec(
        find_ruff_bin(),
        "check",
        "--isolated",
        "--no-cache",
        "--quiet",
        "--exit-zero",
        "--output-format=json",
        f"--target-version=py3{min(sys.version_info.minor, NEWEST_SYNTAX)}",
        f"--select={','.join(RULES)}",
        # Past 0, so that the worst function is told of a simple file too.
        "--config=lint.mccabe.max-complexity = 0",
        # Some rules treat `__init__.py` and stubs apart; of any other name only the ending counts.
        f"--stdin-filename={name if _FILE_NAME.fullmatch(name) else 'source.py'}",
        "-",
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        env={},  # RUFF_* variables of the peer would change what is reviewed
    )
    try:
        told, complaint = await process.communicate(file.source.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        message = f"ruff ended with {process.returncode}: {complaint.decode(errors='replace').strip()[-500:]}"
        raise Transient(message) if process.returncode < 0 else Permanent(message)
    return _remarks.decode(told)


def _findings(remarks: list[_Remark]) -> Iterator[Finding]:
    for remark in remarks:
        message = remark.message
        if (complexity := _complexity(remark)) is not None:
            if complexity.mccabe <= COMPLEXITY_MAX:
                continue
            message = f"`{complexity.function}` is too complex ({complexity.mccabe} > {COMPLEXITY_MAX})"
        yield Finding(remark.code, remark.name, remark.location.row, message[:MESSAGE_LENGTH_MAX])


def _complexity(remark: _Remark) -> Complexity | None:
    told = _TOO_COMPLEX.fullmatch(remark.message) if remark.code == "C901" else None
    return Complexity(told["function"][:MESSAGE_LENGTH_MAX], remark.location.row, int(told["mccabe"])) if told else None


def _by_mccabe(complexity: Complexity) -> int:
    return complexity.mccabe


def _docstring_lines(node: ast.AST) -> range:
    if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) or not node.body:
        return range(0)
    first = node.body[0]
    if not (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    ):
        return range(0)
    return range(first.lineno, (first.end_lineno or first.lineno) + 1)
