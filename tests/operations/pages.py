"""What docs/deploy.md has a reader copy, so that the tests run that very text."""

import re
from pathlib import Path

DEPLOY = Path(__file__).resolve().parents[2] / "docs/deploy.md"


def block(title: str) -> str:
    """The code block of the page whose fence carries the title, as in ```conf hub.conf."""
    found = re.findall(rf"^```\w+ {re.escape(title)}\n((?:.*\n)*?)```$", DEPLOY.read_text(), flags=re.MULTILINE)
    assert len(found) == 1, f"{DEPLOY} has {len(found)} blocks {title!r}"
    return str(found[0])


def commands(title: str) -> list[str]:
    """The commands of such a block, without what they answer and without comments."""
    lines = [line.removeprefix("$ ") for line in block(title).splitlines() if line.startswith("$ ")]
    return [line.partition("  #")[0].strip() for line in lines]


def with_changes(text: str, changes: dict[str, str]) -> str:
    """The text with a reader's names and addresses in place of the page's; each must stand in it."""
    for was, now in changes.items():
        assert was in text, f"{was!r} is not in {text!r}"
        text = text.replace(was, now)
    return text
