"""`mesh contracts`: what agents take, return and say, as files that other tools read."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mesh.cli import console
from mesh.errors import SetupError

if TYPE_CHECKING:
    from mesh.catalogue import Schema

contracts = typer.Typer(name="contracts", help="What agents take, return and say, as files.", no_args_is_help=True)


@contracts.command()
def export(
    targets: Annotated[
        list[str], typer.Argument(metavar="MODULE_OR_FILE...", help="my_agent.py, a module, or module:agent.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write to; made if missing.")] = Path("contracts-export"),
    as_json: console.AsJson = False,
) -> None:
    """Write JSON Schemas of every capability and record, and one AsyncAPI 3 document of all subjects."""
    from mesh.catalogue import asyncapi, capability_schemas
    from mesh.cli.loading import load_agents

    agents = load_agents(targets)
    files: dict[Path, Schema] = {
        Path("asyncapi.json"): asyncapi([agent.hosted for agent in agents], console.settings())
    }
    names: list[str] = []
    for agent in agents:
        for name, capability in agent.capabilities.items():
            names.append(name)
            taken, returned = capability_schemas(capability)
            files[Path("capabilities", f"{name}.input.json")] = taken
            files[Path("capabilities", f"{name}.output.json")] = returned
    files |= {Path("records") / path: schema for path, schema in _record_files().items()}
    _write(out, files)
    _tell(out, files, as_json, capabilities=sorted(names))


@contracts.command()
def records(
    out: Annotated[Path, typer.Option(help="Folder to write to; made if missing.")] = Path("contracts/schemas"),
    as_json: console.AsJson = False,
) -> None:
    """Write the JSON Schema of every record alone."""
    files = _record_files()
    _write(out, files)
    _tell(out, files, as_json)


def _record_files() -> "dict[Path, Schema]":
    from mesh.catalogue import record_schemas

    return {Path(f"{name}.json"): schema for name, schema in record_schemas().items()}


def _write(out: Path, files: "dict[Path, Schema]") -> None:
    try:
        for path, schema in files.items():
            target = out / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(json.dumps(schema, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise SetupError(f"cannot write to {out}: {error}") from error


def _tell(out: Path, files: "dict[Path, Schema]", as_json: bool, **more: Any) -> None:
    if as_json:
        console.print_json({"out": str(out), **more, "files": sorted(str(path) for path in files)})
    else:
        told = f", for {', '.join(more['capabilities'])}" if "capabilities" in more else ""
        print(f"wrote {len(files)} files to {out}{told}")
