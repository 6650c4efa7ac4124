"""`mesh chaos`: game days on a mesh of their own, on a staging mesh, or with an author's own agents."""

import asyncio
import os
import secrets
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from mesh.cli import console
from mesh.cli.console import AsJson
from mesh.cli.demo import TERMINATED, end_on_sigterm

if TYPE_CHECKING:
    from mesh.settings import Settings
    from mesh.testing.chaos.catalogue import Kind
    from mesh.testing.chaos.game_day import Report
    from mesh.testing.chaos.workloads import Workload

RATE: Final = 40.0
RATE_OF_OWN: Final = 5.0
"""Tasks a second where nothing else is said; an author's own tasks may be slow, or cost something."""
MINUTES_MIN: Final = 0.1
NODES: Final = (1, 3)

chaos = typer.Typer(
    name="chaos",
    help="Break a mesh on purpose, and see whether it keeps its promises.",
    no_args_is_help=True,
)


@chaos.command("game-day")
def game_day(
    minutes: Annotated[float, typer.Option(min=MINUTES_MIN, max=24 * 60, help="How long faults strike.")] = 3.0,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Repeats a schedule and its tasks; drawn and told if not given.")
    ] = None,
    nodes: Annotated[int, typer.Option(help="Servers of the mesh that is made: 1, or a cluster of 3.")] = 1,
    peers: Annotated[int, typer.Option(min=1, max=64, help="Peers of the mesh that is made, each a process.")] = 4,
    faults: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="Only these; `mesh chaos faults` lists them.")
    ] = None,
    agents: Annotated[
        list[str] | None, typer.Option(metavar="MODULE:AGENT", help="Host these agents, not the built-in one.")
    ] = None,
    capability: Annotated[str | None, typer.Option(help="Ask for this, not for the built-in tasks.")] = None,
    payload: Annotated[
        str, typer.Option(metavar="JSON|@FILE", help="With --capability: a payload, or a file with one on each line.")
    ] = "null",
    rate: Annotated[
        float | None,
        typer.Option(min=0.1, max=10_000, help="Tasks submitted a second: 40, or 5 of a --capability.", metavar="N"),
    ] = None,
    nats: Annotated[
        str | None, typer.Option(metavar="URL", help="Play on the mesh at this server; needs --safe-only.")
    ] = None,
    safe_only: Annotated[
        bool, typer.Option("--safe-only", help="Only faults that harm nothing but the tasks of the game day.")
    ] = False,
    keep: Annotated[
        Path | None, typer.Option(file_okay=False, help="Leave the history and the logs in this new folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask for tasks at a steady rate, let faults strike, and check every promise.

    It makes a mesh of its own, with the settings of the environment but never its server, and leaves nothing behind.
    With --nats it starts no server and no peer, and ends nothing.

    Tasks asked for with --capability run more than once: their effects outside the mesh must be idempotent.

    The exit code is 1 if a promise was broken.
    """
    from mesh.testing.chaos.catalogue import chosen

    _check_options(nodes=nodes, nats=nats, safe_only=safe_only, agents=agents, capability=capability)
    seed = secrets.randbelow(2**31) if seed is None else seed
    settings = console.settings()
    if nats is not None:
        settings = settings.model_copy(update={"nats_url": nats})
    names = None if faults is None else [name.strip() for name in faults.split(",") if name.strip()]
    kinds = chosen(names, has=_means(settings, nodes, is_shared=nats is not None), is_safe_only=safe_only)
    workload = _workload(seed, tuple(agents or ()), capability, payload)
    with ExitStack() as stack:
        folder = keep if keep is not None else Path(stack.enter_context(tempfile.TemporaryDirectory("", "mesh-chaos-")))
        if keep is not None and keep.exists() and any(keep.iterdir()):
            raise typer.BadParameter(f"{keep} is not empty", param_hint="--keep")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            report = console.run(
                _play(
                    folder,
                    settings,
                    workload,
                    kinds,
                    for_s=60 * minutes,
                    seed=seed,
                    nodes=nodes,
                    peers=peers,
                    rate=rate if rate is not None else (RATE if workload.is_strict else RATE_OF_OWN),
                    is_shared=nats is not None,
                    is_quiet=as_json,
                )
            )
        except asyncio.CancelledError:
            raise typer.Exit(TERMINATED) from None
    if as_json:
        console.print_json({"minutes": minutes, "nodes": nodes, "peers": peers, **_document(report)})
    else:
        from mesh.cli.chaos.report import show

        show(report)
    raise typer.Exit(console.OK if report.is_sound else console.FAILED)


@chaos.command("faults")
def faults(as_json: AsJson = False) -> None:
    """List the faults: what each does, what it needs, and whether it is safe on a mesh that others use."""
    from mesh.testing.chaos.catalogue import KINDS

    if as_json:
        listed = [
            {"name": kind.name, "does": kind.told, "needs": sorted(kind.needs), "is_safe": kind.is_safe}
            for kind in KINDS
        ]
        console.print_json({"faults": listed})
    else:
        from mesh.cli.chaos.report import show_faults

        show_faults(KINDS)


def _check_options(
    *, nodes: int, nats: str | None, safe_only: bool, agents: list[str] | None, capability: str | None
) -> None:
    if nodes not in NODES:
        raise typer.BadParameter(f"{nodes} is neither 1 nor 3", param_hint="--nodes")
    if nats is not None and not safe_only:
        raise typer.BadParameter(
            "others may use that mesh: say --safe-only; without --nats a mesh is made, where all may strike",
            param_hint="--nats",
        )
    if nats is not None and agents:
        raise typer.BadParameter("with --nats no peer is started: the agents are there", param_hint="--agents")
    if nats is not None and capability is None:
        raise typer.BadParameter(
            "with --nats: what may be asked for again and again without harm?", param_hint="--capability"
        )
    if bool(agents) != (capability is not None) and nats is None:
        raise typer.BadParameter(
            "--agents and --capability go together: what to host, and what to ask for",
            param_hint="--capability" if agents else "--agents",
        )


def _means(settings: "Settings", nodes: int, *, is_shared: bool) -> "frozenset[Any]":
    from mesh.testing.chaos.stage import has_line, means
    from mesh.testing.faults import Need

    if not is_shared:
        return means(nodes)
    return frozenset({Need.OWN_LINE}) if has_line(settings) else frozenset()


def _workload(seed: int, agents: tuple[str, ...], capability: str | None, payload: str) -> "Workload":
    from mesh.testing.chaos.workloads import BuiltIn, OwnAgents

    if capability is None:
        return BuiltIn(seed)
    if agents:
        from mesh.cli.loading import load_agents
        from mesh.errors import SetupError

        # Here and not only in the peers: a mistake is told at once.
        offered = {found.name for agent in load_agents(agents) for found in agent.hosted[1]}
        if capability not in offered:
            raise SetupError(f"--capability {capability}: those agents handle {', '.join(sorted(offered))}")
    return OwnAgents(agents, capability, _payloads(payload))


def _payloads(given: str) -> list[Any]:
    """The payloads to take in turn."""
    from mesh.errors import SetupError

    if not given.startswith("@"):
        return [console.json_argument(given, "--payload")]
    path = Path(given[1:])
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"--payload {given}: {error}") from error
    found = [
        console.json_argument(line, f"line {number} of {path}") for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not found:
        raise SetupError(f"--payload {given}: no payload there; it takes one JSON value a line")
    return found


async def _play(
    folder: Path,
    settings: "Settings",
    workload: "Workload",
    kinds: "tuple[Kind, ...]",
    *,
    for_s: float,
    seed: int,
    nodes: int,
    peers: int,
    rate: float,
    is_shared: bool,
    is_quiet: bool,
) -> "Report":
    from mesh.testing.chaos.game_day import Plan, play
    from mesh.testing.chaos.schedule import schedule
    from mesh.testing.chaos.stage import local_stage, shared_stage

    end_on_sigterm()

    def tell(text: str) -> None:
        if not is_quiet:
            console.note(text)

    # Results outlive a game day where others use the mesh: keys are those of this one alone.
    key_prefix = f"chaos-{seed}-{secrets.token_hex(4)}-" if is_shared else "t"
    plan = Plan(
        for_s=for_s,
        seed=seed,
        faults=schedule(kinds, seed=seed, for_s=for_s, ack_wait_s=settings.ack_wait_s),
        key_prefix=key_prefix,
        rate=rate,
        is_shared=is_shared,
    )
    tell(f"seed {seed}: {len(plan.faults)} faults in {console.length(for_s)}, {rate:g} tasks a second")
    if is_shared:
        async with shared_stage(folder, seed=seed, settings=settings, key_prefix=key_prefix) as scene:
            return await play(plan, scene, workload, tell=tell)
    async with local_stage(
        folder,
        nodes=nodes,
        peers=peers,
        seed=seed,
        settings=settings,
        targets=workload.targets,
        command=lambda briefing: (sys.executable, "-m", "mesh.cli.chaos.peer", briefing),
        env=os.environ,
    ) as scene:
        tell(f"{peers} peers are ready on {'a server' if nodes == 1 else f'{nodes} nodes'} of their own")
        return await play(plan, scene, workload, tell=tell)


def _document(report: "Report") -> dict[str, Any]:
    import msgspec

    document: dict[str, Any] = msgspec.to_builtins(report)
    return document
