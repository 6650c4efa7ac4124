"""Who may import whom: the layers in pyproject.toml, and what they cannot say."""

import ast
import logging
import subprocess
import sys
from pathlib import Path

import grimp
import pytest
from importlinter import cli

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("mesh", "contracts", "agents")
FOR_AUTHORS = {"mesh.inbox", "mesh.workflow.inbox"}
"""What an agent may import of ours beside `mesh` itself and `contracts`."""


def sources(*, but: str = "") -> list[Path]:
    left_out = set(ROOT.glob(but)) if but else set()
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if path not in left_out)


def test_every_import_contract_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    loggers = [found for found in logging.root.manager.loggerDict.values() if isinstance(found, logging.Logger)]
    silent = [logger for logger in loggers if logger.disabled]

    result = cli.lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)

    # It configures logging for itself, and switches off every logger that there was.
    for logger in loggers:
        logger.disabled = logger in silent

    assert result == cli.EXIT_STATUS_SUCCESS, capsys.readouterr().out


def test_contracts_import_msgspec_and_the_standard_library_alone() -> None:
    graph = grimp.build_graph("contracts", include_external_packages=True, cache_dir=None)

    imported = {
        there.partition(".")[0]
        for module in graph.find_descendants("contracts") | {"contracts"}
        for there in graph.find_modules_directly_imported_by(module)
    }

    assert imported - sys.stdlib_module_names == {"contracts", "msgspec"}


def test_agents_import_mesh_and_contracts_of_ours() -> None:
    imported = {
        name for path in (ROOT / "agents").rglob("*.py") for name in _imported(ast.parse(path.read_text())) if name
    }

    assert imported & {"ops", "tests"} == set()
    assert {name for name in imported if name.startswith("mesh.")} <= FOR_AUTHORS


def _imported(tree: ast.AST) -> list[str]:
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
    return names


@pytest.mark.parametrize("path", sources(but="agents/*/settings.py"), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_reads_the_environment_beside_the_settings(path: Path) -> None:
    tree = ast.parse(path.read_text())
    # A command hands its whole environment on to the processes it starts.
    hands_on = path.is_relative_to(ROOT / "mesh" / "cli")

    reads = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if _names(node, "getenv", "environb")
        or (_names(node, "environ") and not hands_on)
        or (isinstance(node, ast.Subscript) and _names(node.value, "environ"))
        or (isinstance(node, ast.Attribute) and node.attr == "get" and _names(node.value, "environ"))
    ]

    assert reads == []


def _names(node: ast.AST, *names: str) -> bool:
    return (isinstance(node, ast.Attribute) and node.attr in names) or (isinstance(node, ast.Name) and node.id in names)


@pytest.mark.parametrize("module", ["mesh", "contracts.subjects", "contracts.outcome", "mesh.errors"])
def test_importing_it_loads_no_nats_client(module: str) -> None:
    program = f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"

    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()

    assert module.partition(".")[0] in loaded
    assert {"nats", "faststream", "pydantic"} & set(loaded) == set()
