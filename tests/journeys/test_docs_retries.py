"""What docs/retries.md says, done as it says it: every block runs, on a real server."""

import ast
import re
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

from mesh import Mesh
from mesh.settings import Settings
from mesh.testing import hosting

PAGE = Path(__file__).resolve().parents[2] / "docs/retries.md"
BLOCKS = dict(re.findall(r"^```python (.+)\n((?:.*\n)*?)```$", PAGE.read_text(), flags=re.MULTILINE))
EXAMPLES = [name.removesuffix(" asks") for name in BLOCKS if name.endswith(" asks")]


def compiled(name: str, *, flags: int = 0) -> CodeType:
    # Lines of errors are those of the page.
    above = PAGE.read_text().partition(f"```python {name}\n")[0].count("\n") + 1
    return compile("\n" * above + BLOCKS[name], str(PAGE), "exec", flags=flags)


def test_every_block_of_the_page_is_run_here() -> None:
    assert not re.findall(r"^```python\n", PAGE.read_text(), flags=re.MULTILINE)
    assert set(BLOCKS) == {"prelude"} | set(EXAMPLES) | {f"{name} asks" for name in EXAMPLES}


@pytest.mark.parametrize("example", EXAMPLES)
async def test_an_example_does_what_the_page_asserts(example: str, mesh: Mesh, settings: Settings) -> None:
    names: dict[str, Any] = {"__name__": "guide", "mesh": mesh}
    for block in ("prelude", example):
        exec(compiled(block), names)

    async with hosting(names["agent"], settings=settings):
        asking = eval(compiled(f"{example} asks", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
        await asking
