"""Agents found by file, module and attribute, and what is said where there is none."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.cli.loading import load_agents
from mesh.errors import SetupError

ONE = """
from mesh import Agent

agent = Agent("one")
"""

TWO = """
from dataclasses import dataclass
from mesh import Agent
from neighbour import GREETING

@dataclass
class Order:
    item: "Item"

@dataclass
class Item:
    name: str

first, second = Agent("first"), Agent(GREETING)
again = first

@first.handles("sell")
async def sell(order: Order) -> None:
    return None
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with agents in it, forgotten afterwards."""
    (tmp_path / "one_agent.py").write_text(ONE)
    (tmp_path / "two_agents.py").write_text(TWO)
    (tmp_path / "neighbour.py").write_text("GREETING = 'second'\n")
    (tmp_path / "no_agent.py").write_text("answer = 42\n")
    (tmp_path / "broken.py").write_text("def (:\n")
    (tmp_path / "raises.py").write_text("import json\njson.loads('{')\n")
    (tmp_path / "needs.py").write_text("import nowhere_to_be_found\n")
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").write_text("")
    (tmp_path / "shop" / "seller.py").write_text(ONE.replace("one", "seller"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def names(*targets: str) -> list[str]:
    return [agent.info.name for agent in load_agents(targets)]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("one_agent.py", ["one"]),
        ("./one_agent.py", ["one"]),
        ("one_agent", ["one"]),
        ("one_agent:agent", ["one"]),
        ("two_agents.py", ["first", "second"]),
        ("two_agents.py:second", ["second"]),
        ("two_agents:again", ["first"]),
        ("shop.seller", ["seller"]),
        ("shop/seller.py", ["seller"]),
    ],
)
def test_a_target_names_its_agents(target: str, found: list[str]) -> None:
    assert names(target) == found


@pytest.mark.usefixtures("folder")
def test_several_targets_are_taken_in_their_order_and_each_agent_once() -> None:
    assert names("two_agents.py:second", "one_agent.py", "two_agents.py", "one_agent") == ["second", "one", "first"]


def test_a_file_is_found_by_its_whole_path_from_elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")

    assert names(str(folder / "two_agents.py")) == ["first", "second"]


def test_files_of_one_name_in_two_folders_are_two_modules(folder: Path) -> None:
    other = folder / "other"
    other.mkdir()
    (other / "one_agent.py").write_text(ONE.replace("one", "other"))

    assert names("one_agent.py", str(other / "one_agent.py")) == ["one", "other"]


def test_a_file_with_the_name_of_a_loaded_module_does_not_take_its_place(folder: Path) -> None:
    (folder / "json.py").write_text(ONE)

    assert names("json.py") == ["one"]
    assert sys.modules["json"] is json


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("missing.py", "missing.py: no such Python file"),
        ("shop/", "no such Python file"),
        ("missing", "missing: no such module; a file is named with its .py"),
        ("shop.missing", "shop.missing: no such module"),
        ("missing.shop", "missing.shop: no such module"),
        ("no_agent.py", "no_agent.py: no agent there; define one at module level: agent = Agent(...)"),
        ("no_agent.py:answer", "answer is a int, not an Agent; no agent is there"),
        ("one_agent.py:agnet", "agnet is no such name there; agents there: agent"),
        ("one_agent.py:", "the name after the colon is no such name there; agents there: agent"),
        ("broken.py", "broken.py: line 1: "),
        ("raises.py", "raises.py: importing it raised JSONDecodeError: Expecting property name"),
        ("needs.py", "importing it raised ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("needs", "importing it raised ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("", "name a module or a file that defines an agent, such as my_agent.py"),
    ],
)
def test_a_target_without_an_agent_is_refused_with_the_reason(target: str, told: str) -> None:
    with pytest.raises(SetupError) as caught:
        load_agents([target])

    assert told in str(caught.value)


@pytest.mark.usefixtures("folder")
def test_a_file_that_failed_once_is_tried_anew(folder: Path) -> None:
    with pytest.raises(SetupError):
        load_agents(["raises.py"])
    (folder / "raises.py").write_text(ONE)

    assert names("raises.py") == ["one"]


@pytest.mark.parametrize(
    ("owner", "told"), [("people-ops", "people-ops\n"), ("{x", "agent 'inbox': owner '{x' must be letters, digits")]
)
def test_the_environment_names_who_looks_after_the_inbox(owner: str, told: str) -> None:
    asked = [sys.executable, "-c", "import mesh.human; print(mesh.human.agent.info.owner)"]
    environment = {**os.environ, "MESH_INBOX_OWNER": owner}
    ended = subprocess.run(asked, env=environment, capture_output=True, text=True, check=False)

    assert told in ended.stdout + ended.stderr
