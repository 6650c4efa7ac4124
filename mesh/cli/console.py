"""What every command shares: how it connects, how it prints, and what its exit codes say."""

import asyncio
import getpass
import json
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import msgspec
import typer

from contracts.errors import MeshError
from contracts.subjects import Identity, check_capability, is_legal_id

if TYPE_CHECKING:
    from rich.console import Console

    from mesh.bus.connection import Bus
    from mesh.client import Mesh
    from mesh.settings import Settings

R = TypeVar("R")

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
NOT_IN_TIME: Final = 4
REFUSED: Final = 5
UNCONFIRMED: Final = 6
INTERRUPTED: Final = 130

EXIT_CODES: Final = (
    (OK, "done"),
    (FAILED, "the task came to no value, something asked for does not exist, or a problem was found"),
    (USAGE, "the command, a setting or an agent's file is wrong"),
    (UNREACHABLE, "no mesh here, or no server answers"),
    (NOT_IN_TIME, "not done in the time given; it goes on"),
    (REFUSED, "refused, nothing was stored: the key is taken, somebody else came first, or the mesh is full"),
    (UNCONFIRMED, "no answer came: it may have happened; repeat it as it is"),
    (INTERRUPTED, "ended with Ctrl-C"),
)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, and nothing else.")]


class Failed(MeshError):
    """A command that did not come to what it was asked for."""


class NoMesh(MeshError):
    """There is nothing to connect to."""


def exit_code(error: MeshError) -> int:
    """The exit code that tells an error's kind to a script."""
    from mesh import errors

    match error:
        case Failed() | errors.TaskUnfinished():
            return FAILED
        case NoMesh() | errors.BusUnavailable():
            return UNREACHABLE
        case errors.DeadlineExceeded():
            return NOT_IN_TIME
        case errors.PublishUnconfirmed():
            return UNCONFIRMED
        case errors.PublishRejected() | errors.SignalRefused():
            return REFUSED
        case errors.SetupError() | errors.ContractError():
            return USAGE
        case _:
            return FAILED


def run(main: Coroutine[Any, Any, R]) -> R:
    """Run a command's coroutine; of several errors raised at once, the first comes out alone."""
    try:
        return asyncio.run(main)
    except BaseExceptionGroup as group:
        raise _first(group) from group


def settings() -> "Settings":
    """The settings of the environment.

    Raises:
        SetupError: a variable's value is illegal; the message names the variable.
    """
    import pydantic

    from mesh.errors import SetupError
    from mesh.settings import Settings

    try:
        found = Settings()
        _ = found.subjects
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        variable = "_".join(str(part) for part in first["loc"]).upper()
        raise SetupError(f"MESH_{variable} is {first['input']!r}: {first['msg']}") from error
    except MeshError as error:
        raise SetupError(f"MESH_PREFIX: {error}") from error
    return found


def reachable() -> "Settings":
    """The settings with a server to connect to.

    Raises:
        NoMesh: none is named and none runs here.
    """
    from mesh.errors import SetupError
    from mesh.local.discovery import with_local_server

    plain = settings()
    try:
        return with_local_server(plain)
    except SetupError as error:
        raise NoMesh(str(error)) from error


def whoami() -> str:
    """Who gives an order, for its record."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "cli"


@asynccontextmanager
async def connected() -> AsyncIterator["Bus"]:
    """A connection to the mesh, until left."""
    from mesh.bus.connection import Bus

    async with Bus.connect(reachable(), "mesh-cli") as bus:
        yield bus


async def check_made(bus: "Bus") -> None:
    """Nothing, where the mesh has its streams; reading from them would wait for ever otherwise.

    Raises:
        NoMesh: no peer has made them yet.
    """
    from mesh.bus import topology

    stream, *_ = topology.streams(bus.settings)
    if await topology.inspect(bus, stream) is None:
        raise NoMesh(
            f"the streams of the mesh {bus.settings.prefix!r} do not exist: start a peer or run `mesh topology apply`,"
            " which make them; if there should be some, MESH_PREFIX names another mesh"
        )


@asynccontextmanager
async def client() -> AsyncIterator["Mesh"]:
    """A client of the mesh, until left."""
    from mesh.client import Mesh

    async with Mesh.connect(settings=reachable(), name=f"cli-{whoami()}") as mesh:
        yield mesh


def identity(capability: str, task_id: str | None) -> Identity:
    """The task that `CAPABILITY ID` or `CAPABILITY/ID` names.

    Raises:
        ContractError: there is no id, or a part is illegal.
    """
    from contracts.errors import ContractError

    if task_id is None:
        capability, separator, task_id = capability.partition("/")
        if not separator:
            raise ContractError(f"which task of {capability!r}? Name it as CAPABILITY ID or CAPABILITY/ID")
    if not is_legal_id(task_id):
        raise ContractError(f"no task can have the id {task_id!r}")
    return Identity(check_capability(capability), task_id)


def json_argument(text: str, what: str) -> Any:
    """The value of an argument that is JSON, or of standard input where it is `-`.

    Raises:
        ContractError: it is no JSON.
    """
    from contracts.errors import ContractError

    source = "standard input" if text == "-" else what
    if text == "-":
        text = sys.stdin.read()
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        hint = f"; as a string it is written {json.dumps(text)!r}" if source == what and len(text) < 60 else ""
        raise ContractError(f"{source} is not JSON: {error}{hint}") from error


def print_json(document: Any) -> None:
    """One JSON document on standard output."""
    print(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())


def print_value(value: Any) -> None:
    """A task's value on standard output: JSON, in colour on a terminal."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    if sys.stdout.isatty():
        from rich.json import JSON

        out().print(JSON(text))
    else:
        print(text)


def out() -> "Console":
    """Standard output."""
    from rich.console import Console

    is_terminal = sys.stdout.isatty()
    # What is printed comes from elsewhere: brackets in it are no markup.
    return Console(highlight=False, markup=False, emoji=False, width=None if is_terminal else 200)


def one_line(text: str, most: int = 160) -> str:
    """Text from elsewhere as part of a line: no line ends, no control characters, not too long."""
    plain = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return plain if len(plain) <= most else f"{plain[: most - 1]}…"


def short_json(value: Any, most: int = 80) -> str:
    """A value as JSON on a part of a line."""
    return one_line(msgspec.json.encode(value).decode("utf-8", "replace"), most)


def note(text: str) -> None:
    """A remark beside the output, on standard error."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def progress(what: str, total: int) -> Iterator["Progress"]:
    """A bar on standard error while a block runs; none where that is no terminal."""
    if not sys.stderr.isatty():
        yield Progress(lambda: None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield Progress(lambda: bar.advance(task))


class Progress:
    """Counts what is done."""

    def __init__(self, advance: Any) -> None:
        self.advance = advance


def clock(at: float) -> str:
    """A Unix time as local time, with the date where it is not today's."""
    there, now = time.localtime(at), time.localtime()
    return time.strftime("%H:%M:%S" if there[:3] == now[:3] else "%Y-%m-%d %H:%M:%S", there)


def ahead(at: float, now: float) -> str:
    """A Unix time as local time, with how far off it is: `10:04:05 (in 3 min)`."""
    return f"{clock(at)} (in {length(at - now)})" if at > now else f"{clock(at)} ({length(now - at)} ago)"


def length(seconds: float) -> str:
    """A length of time for people: `340 ms`, `12.5 s`, `4 min`, `3.2 h`, `12 d`."""
    if seconds < 1:
        return f"{max(0.0, seconds) * 1000:.0f} ms"
    for limit, unit, digits in ((120, 1, ".3g"), (7_200, 60, ".0f"), (172_800, 3_600, ".1f")):
        if seconds < limit:
            return f"{seconds / unit:{digits}} {({1: 's', 60: 'min', 3_600: 'h'})[unit]}"
    return f"{seconds / 86_400:.0f} d"


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
