"""docs/deploy.md names only what there is."""

import re
import shlex

import pytest
import yaml

from mesh.auth.access import Access
from tests.operations.pages import DEPLOY, block
from tests.unit.test_alerts import ALERTS, exported_bases, unknown

PAGE = DEPLOY.read_text()


def test_commands_that_are_named_exist() -> None:
    fences = re.split(r"^```(.*)\n", PAGE, flags=re.MULTILINE)
    lines = [
        line
        for kind, text in zip(fences[1::4], fences[2::4], strict=False)
        if "py" not in kind
        for line in text.splitlines()
    ]
    inline = [found for text in fences[0::4] for found in re.findall(r"`(mesh [^`]+)`", text)]

    for line in [*lines, *inline]:
        words = shlex.split(line.removeprefix("$ ").partition(" && ")[0], comments=True) if "mesh " in line else []
        if words[:1] == ["mesh"] and words[1:2] != ["up"]:
            assert not unknown([*words[1:], "--help"]), line


def test_alerts_and_metrics_that_are_named_exist() -> None:
    assert set(re.findall(r"\bMesh[A-Z]\w+", PAGE)) <= ALERTS.keys()
    assert set(re.findall(r"`(mesh_\w+)`", PAGE)) <= exported_bases()


@pytest.mark.parametrize("title", ["access.yaml", "access.yaml of two tenants", "access.yaml with a leaf node"])
def test_access_files_are_read_by_mesh_auth(title: str) -> None:
    Access.model_validate(yaml.safe_load(block(title)))


def test_it_begins_with_three_commands_and_ends_with_what_was_not_tried() -> None:
    headings = re.findall(r"^## (.+)$", PAGE, flags=re.MULTILINE)

    assert headings[0] == "Three commands"
    assert headings[-1] == "Tried and not tried"


def test_links_lead_somewhere() -> None:
    paths = set(re.findall(r"\]\(([^)#]+)[^)]*\)", PAGE))

    assert [path for path in paths if not (DEPLOY.parent / path).exists()] == []
