"""`mesh drain`: have a peer's process end in good order, and wait until it has.

For a container's preStop hook, and for machines without an orchestrator. Process 1 of a container is special twice:
the kernel drops a SIGTERM that comes before it has a handler, so the handler is waited for; and its container ends
with it, this command included, so its end is not.
"""

import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Final

import typer

from mesh.cli import console

PROC: Final = Path("/proc")
FIRST_PROCESS: Final = 1
WITHIN_S: Final = 30.0
LOOK_EVERY_S: Final = 0.05


def drain(
    pid: Annotated[int, typer.Option(min=1, help="The peer's process; in a container it is 1.")],
    within_s: Annotated[
        float, typer.Option("--within", min=0, help="Seconds to wait for its end. It is not killed after that.")
    ] = WITHIN_S,
) -> None:
    """Tell a peer to take no more work, to finish what it runs and to end; wait until it has ended.

    It is sent SIGTERM; what it has not finished after its MESH_GRACE_S goes to other peers. Safe to repeat. Process 1
    is told and not waited for: its container ends with it.
    """
    from mesh.errors import DeadlineExceeded

    give_up_at = time.monotonic() + within_s
    try:
        with _watched(pid) as (terminate, has_ended):
            if has_ended():
                console.note(f"process {pid} has ended already")
                return
            if (arguments := _arguments(pid)) is not None and not is_peer(arguments):
                started_as = console.one_line(" ".join(arguments))
                raise console.Failed(
                    f"process {pid} is no peer but {started_as!r}; `kill {pid}` ends it if it is meant"
                )
            while pid == FIRST_PROCESS and not _has_handler(pid):
                if time.monotonic() >= give_up_at:
                    raise DeadlineExceeded(f"process {pid} takes no SIGTERM after {within_s:g} s: it has not started")
                time.sleep(LOOK_EVERY_S)
            terminate()
            if pid == FIRST_PROCESS:
                return
            while not has_ended():
                if time.monotonic() >= give_up_at:
                    raise DeadlineExceeded(
                        f"process {pid} has not ended after {within_s:g} s; it was told to, and may yet"
                    )
                time.sleep(LOOK_EVERY_S)
    except ProcessLookupError:
        raise console.Failed(f"there is no process {pid}") from None
    except PermissionError:
        raise console.Failed(f"process {pid} belongs to somebody else: drain it as its own user, or as root") from None


def is_peer(arguments: Sequence[str]) -> bool:
    """Whether SIGTERM drains what was started with these arguments: `mesh run`, `mesh up`, `faststream run`."""
    for program, verb in pairwise(arguments):
        match Path(program).name, verb:
            case ("mesh", "run" | "up") | ("faststream", "run"):
                return True
    return False


@contextmanager
def _watched(pid: int) -> Iterator[tuple[Callable[[], None], Callable[[], bool]]]:
    """How to tell a process to end, and whether it has.

    Where the system can (Linux), no later process with the same id is taken for it.

    Raises:
        ProcessLookupError: there is none.
    """
    if not hasattr(os, "pidfd_open"):
        os.kill(pid, 0)
        yield lambda: os.kill(pid, signal.SIGTERM), lambda: not _exists(pid)
        return
    fd = os.pidfd_open(pid)
    try:
        yield lambda: signal.pidfd_send_signal(fd, signal.SIGTERM), lambda: bool(select.select([fd], [], [], 0)[0])
    finally:
        os.close(fd)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _arguments(pid: int) -> list[str] | None:
    """A process's command line; None where the system does not tell."""
    try:
        return [part.decode(errors="replace") for part in (PROC / f"{pid}/cmdline").read_bytes().split(b"\0")[:-1]]
    except OSError:
        return None


def _has_handler(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM; true where the system does not tell."""
    try:
        status = (PROC / f"{pid}/status").read_text()
    except OSError:
        return True
    caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "")
    return not caught or bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)
