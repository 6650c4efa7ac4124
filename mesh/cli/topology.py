"""`mesh topology`: what streams and consumers should be like, and making them so."""

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from mesh.cli import console
from mesh.cli.console import AsJson

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesh.bus.changes import Change
    from mesh.bus.connection import Bus
    from mesh.bus.plan import Done, Plan, Unserved
    from mesh.bus.topology import Spec

PLANNED: Final = 2
"""The exit code that says that something is to be changed."""
DESCRIBE_WITHIN_S = 0.5

topology = typer.Typer(
    name="topology",
    help="Streams and consumers: what would have to change, and changing it.",
    no_args_is_help=True,
)

Targets = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[MODULE_OR_FILE]...", help="Agents whose capabilities the mesh is to have, as of `mesh run`."
    ),
]
Capabilities = Annotated[
    list[str] | None,
    typer.Option("--capability", metavar="NAME", help="A capability by its name, without code. May be repeated."),
]
Prune = Annotated[
    list[str] | None,
    typer.Option(
        "--prune",
        metavar="NAME",
        help="A capability that nobody serves any more: delete its consumers. Refused while a task stands for it.",
    ),
]


@dataclass
class Wanted:
    """What the command line asks for: capabilities, each with its bound (0 for none of its own), and what may go."""

    named: dict[str, int] = field(default_factory=dict)
    prunes: tuple[str, ...] = ()


@topology.command("plan")
def plan(
    targets: Targets = None, capabilities: Capabilities = None, prune: Prune = None, as_json: AsJson = False
) -> None:
    """Show what would have to be made or changed, and what each change means. Changes nothing.

    Compared is what this version, the settings (MESH_*), the live peers and the agents named here want with what the
    server has. Exits with 0 where nothing is to be done, with 2 where changes are planned.
    """
    wanted = _wanted(targets, capabilities, prune)

    async def main() -> "Plan":
        async with console.connected() as bus:
            specs, served = await _specs(bus, wanted)
            _refuse_to_prune(wanted, served)
            return await _look(bus, specs, served)

    found = console.run(main())
    if as_json:
        console.print_json({**_document(found), "prune": list(wanted.prunes)})
    else:
        _print(found, wanted.prunes)
    raise typer.Exit(PLANNED if found.changes or wanted.prunes else console.OK)


@topology.command("apply")
def apply(
    targets: Targets = None,
    capabilities: Capabilities = None,
    prune: Prune = None,
    with_care: Annotated[
        bool, typer.Option("--with-care", help="Make the changes, too, of which the plan says that they need care.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make and change streams and consumers, and look whether it is so. Safe to repeat, and to run twice at once.

    Exits with 0 where all is as wanted then, with 2 where something is left that needs care or cannot be changed in
    place, with 1 where the server refused something, or what is to be pruned has tasks.
    """
    from mesh.bus import plan as planning
    from mesh.errors import SetupError

    wanted = _wanted(targets, capabilities, prune)

    async def main() -> "tuple[list[Done], Plan]":
        async with console.connected() as bus:
            specs, served = await _specs(bus, wanted)
            _refuse_to_prune(wanted, served)
            done = await planning.carry_out(bus, specs, with_care=with_care)
            for name in wanted.prunes:
                try:
                    done += await planning.prune(bus, name)
                except SetupError as error:
                    done.append(planning.Done(f"consumers of {name}", is_done=False, reason=str(error)))
            specs, served = await _specs(bus, wanted)
            return done, await _look(bus, specs, served)

    done, left = console.run(main())
    if as_json:
        steps = [{"what": step.what, "is_done": step.is_done, "reason": step.reason} for step in done]
        console.print_json({"done": steps, "left": _document(left)})
    else:
        for step in done:
            print(step.what if step.is_done else f"{step.what}: not done: {step.reason}")
        if left.changes:
            print("\nleft as it is:")
        _print(left, ())
    if any(not step.is_done for step in done):
        raise typer.Exit(console.FAILED)
    raise typer.Exit(PLANNED if left.changes else console.OK)


def _wanted(targets: list[str] | None, capabilities: list[str] | None, prunes: list[str] | None) -> Wanted:
    from contracts.subjects import check_capability

    wanted = Wanted(prunes=tuple(dict.fromkeys(check_capability(name) for name in prunes or ())))
    wanted.named = dict.fromkeys((check_capability(name) for name in capabilities or ()), 0)
    if targets:
        from mesh.cli.loading import load_agents

        for agent in load_agents(targets):
            for name, capability in agent.capabilities.items():
                wanted.named[name] = capability.limits.queue_max or console.settings().queue_max
    return wanted


async def _specs(bus: "Bus", wanted: Wanted) -> "tuple[list[Spec], set[str]]":
    """What the mesh should have, and the capabilities that somebody serves or named."""
    from mesh.bus import plan as planning
    from mesh.cli.doctor import queue_bounds
    from mesh.cli.fleet import describe

    described = await describe(bus, within_s=DESCRIBE_WITHIN_S)
    bounds = queue_bounds(described, default=bus.settings.queue_max)
    return await planning.wanted(bus, named=wanted.named, bounds=bounds), set(wanted.named) | set(bounds)


async def _look(bus: "Bus", specs: "Sequence[Spec]", served: set[str]) -> "Plan":
    from mesh.bus import plan as planning

    return await planning.look(bus, specs, served=served)


def _refuse_to_prune(wanted: Wanted, served: set[str]) -> None:
    if kept := sorted(served.intersection(wanted.prunes)):
        raise console.Failed(
            f"{', '.join(kept)} would not be deleted: live peers serve it, or it is named here; nothing was changed"
        )


def _document(plan: "Plan") -> dict[str, Any]:
    return {
        "changes": [
            {
                "kind": change.spec.kind,
                "name": str(change.spec),
                "field": change.field,
                "actual": change.actual,
                "wanted": change.wanted,
                "way": str(change.way),
                "means": change.means,
            }
            for change in plan.changes
        ],
        "unserved": [
            {
                "capability": one.capability,
                "waiting": one.waiting,
                "in_hand": one.in_hand,
                "parked": one.parked,
            }
            for one in plan.unserved
        ],
    }


def _print(plan: "Plan", prunes: "Sequence[str]") -> None:
    for change in plan.changes:
        print(_line(change))
    for name in prunes:
        print(f"delete   the consumers of {name}, if no task stands for it")
    for one in plan.unserved:
        if one.capability not in prunes:
            print(_told(one))
    if not plan.changes and not prunes:
        print("streams and consumers are as wanted")
    sys.stdout.flush()


def _line(change: "Change") -> str:
    return f"{_WORDS[change.way]:<8} {change}\n         {change.means}"


_WORDS = {"make": "make", "move": "MOVE", "live": "change", "care": "CARE", "stuck": "CANNOT"}


def _told(one: "Unserved") -> str:
    return (
        f"note     nobody serves {one.capability} now: {one.waiting:,} waiting, {one.in_hand:,} in hand,"
        f" {one.parked:,} parked\n         if nobody will any more, `--prune {one.capability}` deletes its consumers"
    )
