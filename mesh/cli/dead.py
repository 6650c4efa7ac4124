"""`mesh dead`: tasks that were given up, and what a person does about them."""

import asyncio
import time
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from contracts.errors import ContractError
from mesh.cli import console
from mesh.cli.console import AsJson

if TYPE_CHECKING:
    from contracts.subjects import Identity
    from mesh.bus.connection import Bus
    from mesh.bus.dead_letters import DeadLetter, Redriven

REDRIVE_WITHIN_S = 30.0
SHOWN_BYTES = 4_000

dead = typer.Typer(
    name="dead",
    help="Tasks that were given up: see why, try again, or drop them.",
    no_args_is_help=True,
)

Capability = Annotated[str, typer.Argument(metavar="CAPABILITY", help="The capability, or CAPABILITY/ID.")]
Id = Annotated[str | None, typer.Argument(metavar="ID", help="The task's id.")]
OfCapability = Annotated[str | None, typer.Option("--capability", "-c", help="Only dead letters of this capability.")]


@dead.command("ls")
def ls(capability: OfCapability = None, as_json: AsJson = False) -> None:
    """List dead letters, oldest first."""

    async def main() -> "list[DeadLetter]":
        from mesh.bus.dead_letters import census, dead_letters

        async with console.connected() as bus:
            wanted = _filter(capability)
            standing = await census(bus, wanted)
            return [letter async for letter in dead_letters(bus, wanted, up_to=standing.last_sequence)]

    letters = console.run(main())
    if as_json:
        console.print_json({"dead_letters": [_summary(letter) for letter in letters]})
    elif not letters:
        console.note("no dead letters")
    else:
        _print(letters)


@dead.command("show")
def show(capability: Capability, task_id: Id = None, as_json: AsJson = False) -> None:
    """Show one dead letter: why it is dead, its payload and its headers."""
    task = console.identity(capability, task_id)

    async def main() -> "DeadLetter":
        async with console.connected() as bus:
            return await _find(bus, task)

    letter = console.run(main())
    if as_json:
        headers = {name: value for name, value in letter.headers.items() if not name.startswith("Nats-")}
        console.print_json({**_summary(letter), "payload": _payload(letter), "headers": headers})
        return
    failure = letter.failure
    print(f"{letter.task}\n  dead since  {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(letter.buried_at))}")
    print(f"  reason      {failure.kind}, after {failure.attempts} attempts")
    print(f"  error       {failure.error}: {failure.message}" if failure.error else f"  error       {failure.message}")
    if failure.path:
        print(f"  at          {failure.path}")
    for name, value in letter.headers.items():
        if not name.startswith("Nats-") and name != "Mesh-Dead":
            print(f"  {name:<11} {value}")
    if letter.kept is not None:
        print(f"  payload     {letter.kept.bytes} bytes, kept as an object with digest {letter.kept.digest}")
        return
    payload = letter.payload
    shown = payload[:SHOWN_BYTES].decode("utf-8", "replace")
    rest = f" … {len(payload) - SHOWN_BYTES} bytes more" if len(payload) > SHOWN_BYTES else ""
    print(f"  payload     {shown}{rest}")


@dead.command("redrive")
def redrive(
    capability: Annotated[str | None, typer.Argument(metavar="[CAPABILITY]", help="Or CAPABILITY/ID.")] = None,
    task_id: Id = None,
    every: Annotated[bool, typer.Option("--all", help="Every dead letter of --capability.")] = False,
    of_capability: OfCapability = None,
    as_json: AsJson = False,
) -> None:
    """Submit a dead letter's task again below its id, then remove the letter.

    Whoever redrives the same letter, and however often: it starts once. The deadline is dropped.
    """
    if every == (capability is not None) or every != (of_capability is not None):
        raise ContractError("name one dead letter as CAPABILITY/ID, or all with --all --capability CAPABILITY")
    redriven = console.run(_redrive_all(of_capability) if of_capability else _redrive_one(str(capability), task_id))
    if as_json:
        console.print_json(
            {
                "redriven": [
                    {"capability": to.task.capability, "dead": task.id, "id": to.task.id, "is_new": to.is_new}
                    for task, to in redriven
                ]
            }
        )
    elif every:
        again = sum(not to.is_new for _, to in redriven)
        print(f"{len(redriven)} redriven" + (f", {again} of them submitted before by somebody else" if again else ""))
    else:
        _, to = redriven[0]
        print(f"{to.task}" if to.is_new else f"{to.task} was submitted before; this started nothing")


@dead.command("drop")
def drop(
    capability: Annotated[str | None, typer.Argument(metavar="[CAPABILITY]", help="Or CAPABILITY/ID.")] = None,
    task_id: Id = None,
    as_json: AsJson = False,
) -> None:
    """Remove one dead letter for good. Its task stays answered as failed."""
    if capability is None:
        raise ContractError("name one dead letter as CAPABILITY/ID")
    task = console.identity(capability, task_id)

    async def main() -> bool:
        from mesh.bus import dead_letters

        async with console.connected() as bus:
            return await dead_letters.drop(bus, await _find(bus, task))

    is_dropped = console.run(main())
    if as_json:
        console.print_json({"capability": task.capability, "id": task.id, "is_dropped": is_dropped})
    else:
        print(f"{task} is dropped" if is_dropped else f"{task} was gone already")


async def _redrive_one(capability: str, task_id: str | None) -> "list[tuple[Identity, Redriven]]":
    task = console.identity(capability, task_id)
    async with console.connected() as bus:
        letter = await _find(bus, task)
        return [(task, await _redrive(bus, letter))]


async def _redrive_all(capability: str) -> "list[tuple[Identity, Redriven]]":
    from mesh.bus.dead_letters import census, dead_letters

    redriven: list[tuple[Identity, Redriven]] = []
    refused: list[str] = []
    async with console.connected() as bus:
        wanted = _filter(capability)
        standing = await census(bus, wanted)
        with console.progress(f"redriving {capability}", standing.letters) as done:
            # What dies again meanwhile lies past the last sequence: it is not chased.
            async for letter in dead_letters(bus, wanted, up_to=standing.last_sequence):
                try:
                    redriven.append((letter.task, await _redrive(bus, letter)))
                except ContractError as error:
                    refused.append(f"{letter.task}: {error}")
                done.advance()
    if refused:
        raise console.Failed("\n".join((f"{len(redriven)} redriven, {len(refused)} not:", *refused)))
    return redriven


async def _redrive(bus: "Bus", letter: "DeadLetter") -> "Redriven":
    from mesh.bus import dead_letters
    from mesh.errors import DeadlineExceeded

    try:
        async with asyncio.timeout(REDRIVE_WITHIN_S):
            return await dead_letters.redrive(bus, letter)
    except TimeoutError:
        raise DeadlineExceeded(
            f"{letter.task} is not redriven within {REDRIVE_WITHIN_S:g} s: no server answers, or the stream is full;"
            f" repeat it, it starts once"
        ) from None


async def _find(bus: "Bus", task: "Identity") -> "DeadLetter":
    from mesh.bus.dead_letters import read_dead_letter

    await console.check_made(bus)
    letter = await read_dead_letter(bus, task)
    if letter is None:
        raise console.Failed(f"{task} is no dead letter; `mesh dead ls` lists them, `mesh status {task}` looks for it")
    return letter


def _filter(capability: str | None) -> str:
    from contracts.subjects import check_capability

    return "*" if capability is None else check_capability(capability)


def _summary(letter: "DeadLetter") -> dict[str, Any]:
    return {
        "capability": letter.task.capability,
        "id": letter.task.id,
        "sequence": letter.sequence,
        "buried_at": letter.buried_at,
        "failure": msgspec.to_builtins(letter.failure),
        "payload_bytes": letter.kept.bytes if letter.kept is not None else len(letter.payload),
    }


def _payload(letter: "DeadLetter") -> Any:
    """The payload as JSON where it is JSON or MessagePack, else its text; of a large one where it is kept."""
    from contracts import wire

    if letter.kept is not None:
        return {"kept": msgspec.to_builtins(letter.kept)}
    try:
        return wire.decode(Any, letter.payload, wire.content_type(letter.headers.get("Content-Type")))
    except ContractError:
        return letter.payload.decode("utf-8", "replace")


def _print(letters: "list[DeadLetter]") -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("task", "dead since", "reason", "attempts", "error"):
        table.add_column(heading, overflow="fold")
    for letter in letters:
        failure = letter.failure
        error = f"{failure.error}: {failure.message}" if failure.error else failure.message
        table.add_row(
            str(letter.task), console.clock(letter.buried_at), str(failure.kind), str(failure.attempts), error[:300]
        )
    console.out().print(table)
