"""What a type checker knows of an author's handlers and of a caller's handles."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import msgspec
from mesh import Agent, BlockingContext, Context, Handoff, Mesh, Reference

class SourceFile(msgspec.Struct):
    path: str

class Review(msgspec.Struct):
    score: float

agent = Agent("reviewer")

@agent.handles("review-file", concurrency=4, timeout_s=60)
async def review(file: SourceFile, ctx: Context) -> Review:
    return Review(1.0)

@agent.handles("count")
def count(words: list[str], ctx: BlockingContext) -> int:
    return len(words)

@agent.handles("rest")
async def rest() -> None:
    return None

@agent.handles("route")
async def route(file: SourceFile) -> Review | Handoff:
    return Handoff(review, file)

elsewhere = Reference("grade", takes=Review, returns=int)

def measure(text: str) -> float:
    return 0.5

async def work(ctx: Context, file: SourceFile) -> None:
    reveal_type(await ctx.call(review, file))
    reveal_type(await ctx.call(route, file))
    reveal_type(await ctx.call(elsewhere, Review(1.0)))
    reveal_type(await ctx.call("review-file", file, returns=Review))
    reveal_type(await ctx.map(review, [file]))
    reveal_type(await ctx.map(review, [file], failures="collect"))
    reveal_type(await ctx.gather(ctx.call(review, file), ctx.call(elsewhere, Review(1.0))))
    reveal_type(await ctx.step("measure", measure, "a"))
    reveal_type((await ctx.approve(Review(1.0))).value)
    await ctx.call(review, 3)  # wrong
    await ctx.map(review, [3])  # wrong

async def ask(mesh: Mesh, file: SourceFile) -> None:
    reveal_type(review)
    reveal_type(count)
    reveal_type(await mesh.submit(review, file))
    reveal_type(await (await mesh.submit(review, file)).result())
    reveal_type(await mesh.submit(rest))
    reveal_type(await mesh.submit("review-file", file, returns=Review))
    reveal_type(await mesh.submit("review-file", file))
    reveal_type(mesh.handle(review, "k"))
    reveal_type(mesh.handle("review-file", "k", returns=Review))
    async for mapped in mesh.map(review, [file]):
        reveal_type(mapped)
    reveal_type(count(["a"]))
    reveal_type(await review(file))
    await mesh.submit(review, 3)  # wrong
    await mesh.submit(review, file, key=3)  # wrong
    mesh.handle(review, 3)  # wrong
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What mypy says about each line of the program, by the line's text."""
    folder = tmp_path_factory.mktemp("typed")
    program = folder / "program.py"
    program.write_text(PROGRAM)
    # Apart from the cache of `make check`, which has other options.
    cache = str(ROOT / ".mypy_cache" / "typed-surface")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", cache, program],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    lines = PROGRAM.splitlines()
    found: dict[str, list[str]] = {}
    for number, message in re.findall(r"program\.py:(\d+): (?:note|error): (.*)", done.stdout):
        found.setdefault(lines[int(number) - 1].strip(), []).append(message.replace("program.", ""))
    assert found, done.stdout + done.stderr
    return found


@pytest.mark.parametrize(
    ("expression", "revealed"),
    [
        ("await mesh.submit(review, file)", "mesh.client.Handle[Review]"),
        ("await (await mesh.submit(review, file)).result()", "Review"),
        ("await mesh.submit(rest)", "mesh.client.Handle[None]"),
        ('await mesh.submit("review-file", file, returns=Review)', "mesh.client.Handle[Review]"),
        ('await mesh.submit("review-file", file)', "mesh.client.Handle[Any]"),
        ('mesh.handle(review, "k")', "mesh.client.Handle[Review]"),
        ('mesh.handle("review-file", "k", returns=Review)', "mesh.client.Handle[Review]"),
        ("mapped", "mesh.results.Mapped[Review]"),
        ('count(["a"])', "int"),
        ("await ctx.call(review, file)", "Review"),
        ("await ctx.call(route, file)", "Review"),
        ("await ctx.call(elsewhere, Review(1.0))", "int"),
        ('await ctx.call("review-file", file, returns=Review)', "Review"),
        ("await ctx.map(review, [file])", "list[Review]"),
        ('await ctx.map(review, [file], failures="collect")', "list[mesh.results.Mapped[Review]]"),
        ("await ctx.gather(ctx.call(review, file), ctx.call(elsewhere, Review(1.0)))", "tuple[Review, int]"),
        ('await ctx.step("measure", measure, "a")', "float"),
        ("(await ctx.approve(Review(1.0))).value", "Review"),
        ("await review(file)", "Review"),
        ("review", "mesh.capability.Capability[SourceFile, Review, typing.Coroutine[Any, Any, Review]]"),
        ("count", "mesh.capability.Capability[list[str], int, int]"),
    ],
)
def test_types_reach_the_caller(told: dict[str, list[str]], expression: str, revealed: str) -> None:
    assert [message.replace('"', "") for message in told[f"reveal_type({expression})"]] == [
        f"Revealed type is {revealed}"
    ]


@pytest.mark.parametrize("line", [line.strip() for line in PROGRAM.splitlines() if "# wrong" in line])
def test_a_call_that_cannot_work_is_an_error_of_the_type_checker(told: dict[str, list[str]], line: str) -> None:
    assert told[line]


def test_nothing_else_in_the_program_is_an_error(told: dict[str, list[str]]) -> None:
    assert {line for line in told if "reveal_type" not in line and "# wrong" not in line} == set()
