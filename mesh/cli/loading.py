"""Agents by name: `my_agent.py`, `package.module`, or either with `:attribute`."""

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from mesh.agent import Agent
from mesh.errors import SetupError


def load_agents(targets: Iterable[str]) -> list[Agent]:
    """The agents that the targets define, each once, in order.

    A target is a file, a module, or one of them with the name of an agent in it: `my_agent.py`,
    `agents.reviewer`, `agents.reviewer:agent`. Modules are looked for in the working folder first.

    Raises:
        SetupError: a target does not exist, cannot be imported, or holds no agent.
    """
    found: list[Agent] = []
    for target in targets:
        found += [agent for agent in _agents_of(target) if agent not in found]
    return found


def _agents_of(target: str) -> list[Agent]:
    place, separator, attribute = target.partition(":")
    module = _module(place)
    if separator:
        named = getattr(module, attribute, None)
        if not isinstance(named, Agent):
            is_missing = not attribute or not hasattr(module, attribute)
            kind = "no such name there" if is_missing else f"a {type(named).__name__}, not an Agent"
            raise SetupError(f"{target}: {attribute or 'the name after the colon'!s} is {kind}{_offer(module)}")
        return [named]
    agents = _defined_in(module)
    if not agents:
        raise SetupError(f"{target}: no agent there; define one at module level: agent = Agent(...)")
    return agents


def _module(place: str) -> ModuleType:
    if not place:
        raise SetupError("name a module or a file that defines an agent, such as my_agent.py")
    is_file = place.endswith(".py") or "/" in place
    try:
        return _from_file(Path(place)) if is_file else _from_path(place)
    except SetupError:
        raise
    except SyntaxError as error:
        raise SetupError(f"{place}: line {error.lineno}: {error.msg}") from error
    except Exception as error:  # an author's module may raise anything; the author is told which
        raise SetupError(f"{place}: importing it raised {type(error).__name__}: {error}{_line_of(error)}") from error


def _line_of(error: Exception) -> str:
    """Where the author's own code raised, beneath whatever it called."""
    own = Path(__file__).parents[1]
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<")
        and own not in Path(frame.filename).parents
        and "importlib" not in Path(frame.filename).parts
    ]
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""


def _from_file(path: Path) -> ModuleType:
    path = path.resolve()
    if path.suffix != ".py" or not path.is_file():
        raise SetupError(f"{path}: no such Python file")
    loaded = sys.modules.get(path.stem)
    if loaded is not None and getattr(loaded, "__file__", None) == str(path):
        return loaded
    # What it imports from its own folder is found as if the file were run.
    _search_first(path.parent)
    name = path.stem if loaded is None and path.stem.isidentifier() else f"_agent_file_{abs(hash(path))}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Annotations are resolved through `sys.modules`.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _from_path(name: str) -> ModuleType:
    _search_first(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise SetupError(f"{name}: no such module; a file is named with its .py") from error
        raise


def _search_first(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _defined_in(module: ModuleType) -> list[Agent]:
    agents: list[Agent] = []
    for value in vars(module).values():
        if isinstance(value, Agent) and value not in agents:
            agents.append(value)
    return agents


def _offer(module: ModuleType) -> str:
    names = [name for name, value in vars(module).items() if isinstance(value, Agent)]
    return f"; agents there: {', '.join(names)}" if names else "; no agent is there"
