"""`mesh submit`, `result`, `status`, `cancel`: ask for work, and see what became of it."""

import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from contracts.task import Priority
from mesh.cli import console
from mesh.cli.console import AsJson
from mesh.cli.trace import SHOWN, Limit, print_tree

if TYPE_CHECKING:
    from contracts.outcome import Outcome
    from mesh.client import Handle, Mesh
    from mesh.whereabouts import Whereabouts

HINT_AFTER_S = 2.0
DEADLINE_SLACK_S = 5.0
"""How long past a deadline the answer `expired` is waited for."""

Capability = Annotated[str, typer.Argument(metavar="CAPABILITY", help="What is asked for, or CAPABILITY/ID.")]
Id = Annotated[str | None, typer.Argument(metavar="ID", help="The task's id: its key, where it was given one.")]


def submit(
    capability: Annotated[str, typer.Argument(metavar="CAPABILITY", help="What to ask for.")],
    payload: Annotated[
        str, typer.Argument(metavar="PAYLOAD", help="JSON, or `-` to read it from standard input.")
    ] = "null",
    key: Annotated[
        str | None, typer.Option(help="Idempotency key: while the task or its result is kept, it starts once.")
    ] = None,
    order_key: Annotated[
        str | None, typer.Option(help="Tasks with the same one run one at a time, in the order of their submission.")
    ] = None,
    priority: Annotated[Priority, typer.Option(help="Urgent tasks start before normal ones, those before bulk.")] = (
        Priority.NORMAL
    ),
    deadline_s: Annotated[
        float | None, typer.Option(min=0.001, help="Past it the task is answered `expired`, not run.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the value, or print the id alone.")] = True,
    within_s: Annotated[
        float | None, typer.Option(min=0, help="How long to wait; the task goes on after that.")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print parts as the handler emits them.")] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a task and print the value it comes to.

    Safe to repeat with --key: it starts once.
    """
    value = console.json_argument(payload, "the payload")
    if within_s is None and deadline_s is not None:
        within_s = deadline_s + DEADLINE_SLACK_S

    async def main() -> int:
        async with console.client() as mesh:
            handle: Handle[Any] = await mesh.submit(
                capability, value, key=key, order_key=order_key, priority=priority.value, deadline_s=deadline_s
            )
            name = {"capability": handle.task.capability, "id": handle.id, "is_new": handle.is_new}
            if not handle.is_new and not as_json:
                console.note(f"{handle.task} was submitted before; this started nothing")
            if not wait:
                if as_json:
                    console.print_json(name)
                else:
                    print(handle.id)
                return console.OK
            if key is None and sys.stderr.isatty() and not as_json:
                console.note(f"{handle.task}")
            more: dict[str, Any] = {"is_new": handle.is_new}
            if stream:
                more["streamed"] = await _stream(handle, as_json=as_json)
            return await _print_result(mesh, handle, within_s, as_json=as_json, **more)

    raise typer.Exit(console.run(main()))


def result(
    capability: Capability,
    task_id: Id = None,
    within_s: Annotated[float | None, typer.Option(min=0, help="How long to wait; without it, until done.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the value a task came to, waiting for it."""
    task = console.identity(capability, task_id)

    async def main() -> int:
        from mesh.whereabouts import Where

        async with console.client() as mesh:
            await console.check_made(mesh.bus)
            handle: Handle[Any] = mesh.handle(task.capability, task.id)
            if within_s is None and (await handle.status()).where is Where.UNKNOWN:
                raise console.Failed(f"no task {task} is kept: it was never submitted, or its result has expired")
            return await _print_result(mesh, handle, within_s, as_json=as_json)

    raise typer.Exit(console.run(main()))


def status(
    capability: Capability,
    task_id: Id = None,
    tree: Annotated[bool, typer.Option("--tree", help="With everything below it, as `mesh trace` does.")] = False,
    limit: Limit = SHOWN,
    as_json: AsJson = False,
) -> None:
    """Say where a task is: queued, running, waiting, parked, done, orphaned, or served by nobody."""
    task = console.identity(capability, task_id)
    if tree:
        console.run(print_tree(task, limit=limit, as_json=as_json))
        return

    async def main() -> "Whereabouts":
        from mesh.whereabouts import find

        async with console.connected() as bus:
            await console.check_made(bus)
            return await find(bus, task)

    found = console.run(main())
    if as_json:
        console.print_json(_standing(found))
    else:
        print(sentence(found, now=time.time()))
    from mesh.whereabouts import Where

    raise typer.Exit(console.FAILED if found.where is Where.UNKNOWN else console.OK)


def cancel(
    capability: Capability,
    task_id: Id = None,
    reason: Annotated[str, typer.Option(help="Why; it stands in the record.")] = "",
    as_json: AsJson = False,
) -> None:
    """Cancel a task and everything below it, queued or running."""
    task = console.identity(capability, task_id)

    async def main() -> "Whereabouts":
        from mesh.whereabouts import Where

        async with console.client() as mesh:
            await console.check_made(mesh.bus)
            found = await mesh.status(task.capability, task.id)
            if found.where is Where.UNKNOWN:
                raise console.Failed(f"no task {task} is kept: it was never submitted, or its result has expired")
            if found.where is not Where.DONE:
                await mesh.cancel(task.capability, task.id, reason=reason)
            return found

    found = console.run(main())
    is_cancelled = found.outcome is None
    if as_json:
        console.print_json({**_standing(found), "is_cancelled": is_cancelled})
    elif is_cancelled:
        print(f"{task} is cancelled; it was {found.where}")
    else:
        print(f"{sentence(found, now=time.time())}: it stays as it is")


def signal(
    task_name: Annotated[str, typer.Argument(metavar="CAPABILITY/ID", help="The task that waits, or will.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it waits for.")],
    value: Annotated[
        str, typer.Argument(metavar="VALUE", help="JSON, or `-` to read it from standard input.")
    ] = "null",
    by: Annotated[str | None, typer.Option(help="Who signals it; you, if not given.")] = None,
    as_json: AsJson = False,
) -> None:
    """Send a task the outside event that it waits for. The first one of a name counts."""
    task = console.identity(task_name, None)
    said = console.json_argument(value, "the value")
    who = by or console.whoami()

    async def main() -> None:
        async with console.client() as mesh:
            await console.check_made(mesh.bus)
            await mesh.signal(task.capability, task.id, name, said, by=who)

    console.run(main())
    if as_json:
        console.print_json({"capability": task.capability, "id": task.id, "signal": name, "by": who})
    else:
        print(f"{name} is signalled to {task}")


def sentence(found: "Whereabouts", *, now: float) -> str:
    """Where a task is, in one line."""
    from mesh.whereabouts import Where

    ago = f" since {console.clock(found.since)} ({console.length(now - found.since)})" if found.since else ""
    detail = f": {found.detail}" if found.detail else ""
    match found.where:
        case Where.RUNNING:
            return f"{found.task} is running on {found.peer}{ago}, attempt {found.attempt}"
        case Where.WAITING | Where.PARKED:
            where = f"is waiting on {found.peer}" if found.where is Where.WAITING else "is parked"
            limit = f", until {console.ahead(found.until, now)}" if found.until else ""
            return f"{found.task} {where}{ago}{detail}{limit}"
        case Where.RETRYING:
            until = found.until or now
            again = f"until {console.clock(until)} (in {console.length(until - now)})"
            return f"{found.task} waits for a retry {again} after attempt {found.attempt}{detail}"
        case Where.DONE:
            assert found.outcome is not None, "what is done has an outcome"
            by = f" by {found.peer}, attempt {found.attempt}" if found.peer else ""
            at = f", {console.length(now - found.since)} ago" if found.since else ""
            return f"{found.task} is {found.outcome.status}{by}{at}{detail}"
        case Where.UNSERVED:
            return f"{found.task} is queued{ago}, and nobody serves it{detail}"
        case Where.UNKNOWN:
            return f"{found.task} is unknown: it was never submitted, or its result has expired"
        case _:
            return f"{found.task} is {found.where}{ago}{detail}"


async def _print_result(
    mesh: "Mesh", handle: "Handle[Any]", within_s: float | None, *, as_json: bool, **more: Any
) -> int:
    from mesh.errors import TaskUnfinished

    document: dict[str, Any] = {"capability": handle.task.capability, "id": handle.id, **more}
    try:
        value = await _value(handle, within_s)
    except TaskUnfinished as unfinished:
        if not as_json:
            raise
        console.print_json({**document, **_told(unfinished.outcome)})
        return console.FAILED
    if as_json:
        console.print_json({**document, **_told(await handle.outcome()), "value": value})
    else:
        console.print_value(value)
    return console.OK


async def _value(handle: "Handle[Any]", within_s: float | None) -> Any:
    """The value; a task that does not move for a while is told about on standard error."""
    from mesh.errors import BusError, DeadlineExceeded
    from mesh.whereabouts import Where

    if within_s is not None and within_s <= HINT_AFTER_S:
        return await handle.result(within_s=within_s)
    try:
        return await handle.result(within_s=HINT_AFTER_S)
    except DeadlineExceeded:
        # A remark: who may not look, or is not answered now, waits on without it.
        with suppress(BusError):
            found = await handle.status()
            if found.where is not Where.RUNNING:
                console.note(sentence(found, now=time.time()))
    if within_s is None:
        return await handle.result()
    try:
        return await handle.result(within_s=within_s - HINT_AFTER_S)
    except DeadlineExceeded:
        raise DeadlineExceeded(f"{handle.task} is not done within {within_s:g} s; it goes on") from None


async def _stream(handle: "Handle[Any]", *, as_json: bool) -> list[dict[str, Any]]:
    from mesh.streaming import Missed, Part, Restarted

    parts: list[dict[str, Any]] = []
    is_line_open = False
    async for event in handle.stream():
        match event:
            case Part(value, attempt, sequence):
                if as_json:
                    parts.append({"attempt": attempt, "sequence": sequence, "value": value})
                else:
                    # Text comes in pieces of a line, anything else as a line of JSON each.
                    text = value if isinstance(value, str) else f"{msgspec.json.encode(value).decode()}\n"
                    print(text, end="", flush=True)
                    is_line_open = not text.endswith("\n")
            case Restarted(attempt):
                console.note(f"\nattempt {attempt} starts over: what came before is void")
                parts.clear()
            case Missed(_, first, end):
                console.note(f"\nparts {first} to {end - 1} went by unseen")
    if is_line_open:
        print()
    return parts


def _told(outcome: "Outcome") -> dict[str, Any]:
    """A result record without its value and payloads, which may be MessagePack."""
    told: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(outcome, value=msgspec.UNSET, sends=()))
    del told["v"]
    if outcome.sends:
        told["sends"] = [f"{send.capability}/{send.id}" for send in outcome.sends]
    return told


def _standing(found: "Whereabouts") -> dict[str, Any]:
    return {
        "capability": found.task.capability,
        "id": found.task.id,
        "where": str(found.where),
        "detail": found.detail,
        "peer": found.peer,
        "attempt": found.attempt,
        "since": found.since,
        "until": found.until,
        "outcome": None if found.outcome is None else _told(found.outcome),
    }
