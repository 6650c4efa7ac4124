"""The reviewer as a plain function: no mesh, no server."""

import ast
import asyncio
import inspect

import msgspec
import pytest

from agents.code_review import (
    COMPLEXITY_MAX,
    FINDINGS_MAX,
    Complexity,
    Review,
    Size,
    SourceFile,
    agent,
    measure,
    review,
)


async def reviewed(source: str, path: str = "pkg/example.py") -> Review:
    return await review(SourceFile(path, source))


def rules(found: Review) -> list[str]:
    return [finding.rule for finding in found.findings]


async def test_a_finding_names_its_rule_line_and_message() -> None:
    found = await reviewed("import sys\n\nimport os\nprint(sys)\n")

    (finding,) = found.findings
    assert (finding.rule, finding.name, finding.line) == ("F401", "unused-import", 3)
    assert "`os`" in finding.message


async def test_the_worst_function_is_told_of_a_simple_file_too() -> None:
    found = await reviewed("def plain():\n    pass\n\n\ndef forked(x):\n    if x:\n        return 1\n    return 2\n")

    assert found.worst == Complexity("forked", 5, 2)
    assert rules(found) == []


async def test_a_function_with_too_many_paths_is_a_finding() -> None:
    branches = "".join(f"    if x == {n}:\n        return {n}\n" for n in range(COMPLEXITY_MAX))

    found = await reviewed(f"def maze(x):\n{branches}    return x\n")

    (finding,) = found.findings
    assert finding.rule == "C901"
    assert finding.message == f"`maze` is too complex ({COMPLEXITY_MAX + 1} > {COMPLEXITY_MAX})"


async def test_a_file_without_functions_has_no_worst_one() -> None:
    found = await reviewed("x = 1\n")

    assert found.worst is None


@pytest.mark.parametrize(
    "source",
    ["def f(:\n", "x = 1\0\n", "(" * 5_000, "\tif", "\ufeff\ufeffx = 1", "é = 'ü'\n)"],
    ids=["syntax", "null byte", "deeply nested", "indent", "two marks", "not ascii"],
)
async def test_a_file_that_does_not_parse_is_reviewed_with_that_finding(source: str) -> None:
    found = await reviewed(source)

    assert "invalid-syntax" in rules(found)
    assert found.size.functions == 0
    assert found.worst is None


async def test_an_empty_file_has_nothing_to_say() -> None:
    found = await reviewed("")

    assert found == Review(path="pkg/example.py", size=Size(0, 0, 0, 0))


async def test_findings_are_bounded_and_the_rest_is_counted() -> None:
    found = await reviewed("import os\n" * (FINDINGS_MAX + 50))

    assert len(found.findings) == FINDINGS_MAX
    assert found.findings_left_out > 0


@pytest.mark.parametrize("path", ["", "-", "--fix", "a\0b.py", "x" * 10_000, "notebook.ipynb", "ü ?.py", "../.."])
async def test_any_path_is_only_a_name_to_show(path: str) -> None:
    found = await reviewed("import os\n", path)

    assert found.path == path
    assert rules(found) == ["F401"]


async def test_what_only_a_package_may_import_is_judged_by_the_files_name() -> None:
    found = await reviewed("from .module import name\n", "pkg/__init__.py")

    (finding,) = found.findings
    assert "consider removing" in finding.message


def test_size_counts_neither_blanks_comments_nor_docstrings_as_code() -> None:
    source = (
        '"""A module\n\nof some lines."""\n'
        "# a comment\n"
        "\n"
        "class Box:\n"
        '    """A box."""\n'
        "    async def open(self):\n"
        "        def turn(): pass  # the key\n"
        "        return turn\n"
    )

    assert measure(source) == Size(lines=10, code_lines=4, functions=2, classes=1)


async def test_several_files_can_be_reviewed_at_once() -> None:
    source = inspect.getsource(ast)

    async with asyncio.TaskGroup() as reviews:
        found = [reviews.create_task(reviewed(source)) for _ in range(8)]

    assert len({task.result().size for task in found}) == 1


def test_lines_are_counted_as_python_counts_them() -> None:
    assert measure("a = 1\f\r\nb = 2\rc = 3\n").lines == 3


async def test_a_review_travels_as_json_and_comes_back_equal() -> None:
    found = await reviewed("import os\ndef f(): pass\n")

    assert msgspec.json.decode(msgspec.json.encode(found), type=Review) == found


def test_the_capability_is_declared_with_its_limits() -> None:
    card = agent.capabilities["review-file"].card()

    assert (card.name, card.concurrency, card.timeout_s) == ("review-file", 4, 60)
    assert card.description == "Review one Python file."
