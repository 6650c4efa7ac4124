"""`mesh backup` and `mesh restore`: a mesh's streams as a folder of files, and back."""

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from mesh.cli import console
from mesh.cli.console import AsJson

if TYPE_CHECKING:
    from mesh.bus.backup import Manifest
    from mesh.bus.connection import Bus
    from mesh.bus.restore import Restored

ASK_WITHIN_S: Final = 0.5
SHOWN: Final = 10


def backup(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An empty or new folder.")],
    as_json: AsJson = False,
) -> None:
    """Back up all streams of the mesh, consumers included, while it works.

    Everything that was accepted before it began is in it. `mesh restore` takes nothing from a backup that was not
    finished. It needs an operator's rights.
    """
    from mesh.bus import backup as backups

    async def main() -> "Manifest":
        async with console.connected() as bus:
            return await backups.backup(bus, folder, mesh_version=_version(), told=console.note)

    manifest = console.run(main())
    if as_json:
        console.print_json({"folder": str(folder), **_facts(manifest)})
    else:
        facts = _facts(manifest)
        took = console.length(manifest.ended_at - manifest.began_at)
        print(
            f"{facts['messages']:,} messages of {len(manifest.streams)} streams,"
            f" {facts['bytes'] / 2**20:,.1f} MiB, in {took}: {folder}"
        )


def restore(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `mesh backup` wrote.")],
    replace: Annotated[
        bool, typer.Option("--replace", help="Delete the streams that the mesh has now, and what they hold.")
    ] = False,
    replicas: Annotated[
        int | None, typer.Option(min=1, max=5, help="Copies of each stream, where not as in the backup.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Have peers take work at once. Without it all is paused until you looked.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only look whether the backup is whole; ask no server.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Put a backup back, with every capability paused: `mesh resume CAPABILITY` has its peers go on.

    What finished after the backup runs again once it is resumed, under the same idempotency keys; what was submitted
    after it is gone, and its keys are free (docs/upgrades.md). Stop all peers and clients first.
    """
    from mesh.bus import backup as backups
    from mesh.bus import restore as restores

    if check:
        manifest = backups.read_manifest(folder)
        if as_json:
            console.print_json({"folder": str(folder), **_facts(manifest)})
        else:
            print(f"{folder} is whole: {_facts(manifest)['messages']:,} messages, as of {_age(manifest)}")
        return

    async def main() -> "Restored":
        async with console.connected() as bus:
            await _nobody_there(bus)
            restored = await restores.restore(
                bus, folder, replace=replace, replicas=replicas, by=console.whoami(), told=console.note
            )
            if resume:
                await restores.resume(bus, restored)
            return restored

    restored = console.run(main())
    if as_json:
        console.print_json(_document(restored, is_resumed=resume))
    else:
        _print(restored, is_resumed=resume)


async def _nobody_there(bus: "Bus") -> None:
    from mesh.cli.fleet import describe

    peers = await describe(bus, within_s=ASK_WITHIN_S)
    if peers:
        told = ", ".join(peer.beat.peer for peer in peers[:SHOWN])
        raise console.Failed(
            f"{len(peers)} live {'peer answers' if len(peers) == 1 else 'peers answer'} ({told}):"
            " stop all of them first. They know records that the backup does not have,"
            " and would take what comes after it for old"
        )


def _facts(manifest: "Manifest") -> dict[str, Any]:
    parts = [part for stream in manifest.streams for part in (stream.snapshot, stream.late) if part is not None]
    return {
        "prefix": manifest.prefix,
        "began_at": manifest.began_at,
        "ended_at": manifest.ended_at,
        "mesh_version": manifest.mesh_version,
        "server_version": manifest.server_version,
        "capabilities": list(manifest.capabilities),
        "messages": sum(int(stream.state["messages"]) for stream in manifest.streams),
        "bytes": sum(part.bytes for part in parts),
        "streams": {
            stream.name: {"messages": stream.state["messages"], "last_sequence": stream.state["last_seq"]}
            for stream in manifest.streams
        },
    }


def _document(restored: "Restored", *, is_resumed: bool) -> dict[str, Any]:
    return {
        **_facts(restored.manifest),
        "restored": restored.messages,
        "late": restored.late,
        "paused": [] if is_resumed else list(restored.paused),
        "unsettled": [
            {"capability": one.task.capability, "id": one.task.id, "lane": one.lane, "is_parked": one.is_parked}
            for one in restored.unsettled
        ],
        "woken": restored.woken,
        "dropped": restored.dropped,
    }


def _print(restored: "Restored", *, is_resumed: bool) -> None:
    print(f"{restored.messages:,} messages restored, as of {_age(restored.manifest)}")
    dropped = ", ".join(f"{count:,} {what}" for what, count in restored.dropped.items() if count)
    if dropped:
        print(f"dropped as stale: {dropped}")
    standing = Counter((one.task.capability, one.is_parked) for one in restored.unsettled)
    for (capability, is_parked), count in sorted(standing.items()):
        few = [str(one.task.id) for one in restored.unsettled if one.task.capability == capability][:SHOWN]
        more = " ..." if count > SHOWN else ""
        print(f"{capability}: {count:,} {'parked' if is_parked else 'queued or running'}: {', '.join(few)}{more}")
    if restored.unsettled:
        print("each of them runs again, those too that finished after the backup; --json lists them all")
    if is_resumed:
        print("peers take work as they start")
    elif restored.paused:
        print("\neverything is paused. Look at what stands, `mesh cancel` what must not run again, then:")
        for capability in restored.paused:
            print(f"  mesh resume {capability}")


def _age(manifest: "Manifest") -> str:
    return f"{console.clock(manifest.began_at)}, {console.length(time.time() - manifest.began_at)} ago"


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("starling-mesh")
    except PackageNotFoundError:
        return ""
