"""The command `mesh`: every group of commands, and the one place where errors become exit codes."""

import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from contracts.errors import MeshError
from mesh.cli import console
from mesh.cli.auth import auth
from mesh.cli.backup import backup, restore
from mesh.cli.breaker import breaker
from mesh.cli.chaos import chaos
from mesh.cli.contracts import contracts
from mesh.cli.dead import dead
from mesh.cli.decisions import decisions
from mesh.cli.demo import demo
from mesh.cli.demo_agent import demo_agent
from mesh.cli.doctor import doctor
from mesh.cli.drain import drain
from mesh.cli.events import events
from mesh.cli.fleet import agents, pause, resume
from mesh.cli.inbox import inbox
from mesh.cli.limits import limits
from mesh.cli.map import map_
from mesh.cli.report import report
from mesh.cli.schedule import schedule
from mesh.cli.serve import run as run_peer
from mesh.cli.tasks import cancel, result, signal, status, submit
from mesh.cli.top import top
from mesh.cli.topology import topology
from mesh.cli.trace import trace
from mesh.cli.up import up

WORK, TASKS, FLEET = "Run agents", "Ask for work", "Look after the mesh"
_EXIT_CODES = "\n\n".join(f"{code}  {meaning}" for code, meaning in console.EXIT_CODES)


class Commands(TyperGroup):
    """Commands whose errors are one line on standard error and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MeshError as error:
            told = error
        except ExceptionGroup as group:
            matching, other = group.split(MeshError)
            if matching is None or other is not None:
                raise
            told = _leaf(matching)
        for line in str(told).splitlines() or [type(told).__name__]:
            console.note(f"mesh: {line}")
        raise typer.Exit(console.exit_code(told))


app = typer.Typer(
    name="mesh",
    cls=Commands,
    help="A leaderless mesh of agents on NATS JetStream.",
    epilog=f"Exit codes:\n\n{_EXIT_CODES}",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        try:
            print(f"mesh {version('starling-mesh')}")
        except PackageNotFoundError:
            print("mesh (not installed)")
        raise typer.Exit


@app.callback()
def main(
    ctx: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A leaderless mesh of agents on NATS JetStream.

    Commands find the server in MESH_NATS_URL; without it, the one that `mesh up` runs in this folder or above.
    """
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


app.command(rich_help_panel=WORK)(demo)
app.command("demo-agent", rich_help_panel=WORK)(demo_agent)
app.command(rich_help_panel=WORK)(up)
app.command("run", rich_help_panel=WORK)(run_peer)
app.command(rich_help_panel=WORK)(drain)
app.command(rich_help_panel=TASKS)(submit)
app.command(rich_help_panel=TASKS)(result)
app.command(rich_help_panel=TASKS)(status)
app.command(rich_help_panel=TASKS)(trace)
app.command(rich_help_panel=TASKS)(signal)
app.command(rich_help_panel=TASKS)(cancel)
app.add_typer(schedule, rich_help_panel=TASKS)
app.add_typer(inbox, rich_help_panel=FLEET)
app.command(rich_help_panel=FLEET)(top)
app.command(rich_help_panel=FLEET)(agents)
app.command("map", rich_help_panel=FLEET)(map_)
app.command(rich_help_panel=FLEET)(report)
app.command(rich_help_panel=FLEET)(pause)
app.command(rich_help_panel=FLEET)(resume)
app.add_typer(breaker, rich_help_panel=FLEET)
app.add_typer(limits, rich_help_panel=FLEET)
app.add_typer(dead, rich_help_panel=FLEET)
app.command(rich_help_panel=FLEET)(events)
app.command(rich_help_panel=FLEET)(decisions)
app.command(rich_help_panel=FLEET)(doctor)
app.add_typer(topology, rich_help_panel=FLEET)
app.command(rich_help_panel=FLEET)(backup)
app.command(rich_help_panel=FLEET)(restore)
app.add_typer(auth, rich_help_panel=FLEET)
app.add_typer(contracts, rich_help_panel=FLEET)
app.add_typer(chaos, rich_help_panel=FLEET)


def run() -> None:
    """The entry point of the command line."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(console.INTERRUPTED)


def _leaf(group: ExceptionGroup[MeshError]) -> MeshError:
    first = group.exceptions[0]
    return _leaf(first) if isinstance(first, ExceptionGroup) else first
