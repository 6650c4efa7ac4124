"""A container without an engine: namespaces, a read-only root, a user without rights, process 1.

The file system is the machine's own, every mount of it read-only but the folders that are given; the network is the
machine's. Needs root with the right to mount.
"""

import asyncio
import os
import shlex
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

from mesh.testing import eventually

USER = 10_001
AS_USER = f"setpriv --reuid={USER} --regid={USER} --clear-groups --bounding-set=-all --inh-caps=-all --no-new-privs --"
# Writable folders first: they are mounts of their own, which stay as they are.
_ENTER = """
set -e
for folder in {writable}; do mount -t tmpfs -o mode=1777 tmpfs "$folder"; done
for folder in {bound}; do mount --bind "$folder" "$folder"; done
while read -r _ place _; do
    case " /proc {writable} {bound} " in *" $place "*) continue ;; esac
    mount -o remount,bind,ro "$place" 2>/dev/null || true
done < /proc/self/mounts
cd {folder}
exec {as_user} "$@"
"""


@cache
def why_not() -> str:
    """Why no container can be made here; empty where one can."""
    if os.getuid() != 0:
        return "not root"
    try:
        ended = subprocess.run(
            [
                "unshare",
                "--mount",
                "--pid",
                "--fork",
                "--mount-proc",
                "sh",
                "-c",
                f"mount -t tmpfs t /mnt && {AS_USER} true",
            ],
            capture_output=True,
            text=True,
        )
    except FileNotFoundError as error:
        return str(error)
    return "" if ended.returncode == 0 else ended.stderr.strip() or "unshare failed"


@dataclass
class Container:
    """A running container. `process` is its process 1 as the machine sees it."""

    runner: asyncio.subprocess.Process
    process: psutil.Process
    variables: Mapping[str, str]
    folder: Path

    async def execute(self, *command: str) -> tuple[int, str]:
        """What another command in the container comes to, as `kubectl exec` and the kubelet's hooks run it."""
        entered = await asyncio.create_subprocess_exec(
            *("nsenter", f"--target={self.process.pid}", "--mount", "--pid", f"--wdns={self.folder}"),
            *(*shlex.split(AS_USER), *command),
            env=dict(self.variables),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await entered.communicate()
        assert entered.returncode is not None
        return entered.returncode, out.decode()

    async def ended(self, within_s: float) -> int:
        """The exit code of process 1."""
        async with asyncio.timeout(within_s):
            return await self.runner.wait()


@asynccontextmanager
async def running(
    *command: str, variables: Mapping[str, str], folder: Path, writable: Sequence[Path]
) -> AsyncIterator[Container]:
    """A container that runs a command as process 1, until left; it is killed then if it has not ended.

    `writable` are empty volumes of its own.
    """
    runner = await _entered(command, variables, folder, writable, ())
    try:
        process = await eventually(lambda: _first_child(runner.pid), within_s=60, every_s=0.002)
        yield Container(runner, process, variables, folder)
    finally:
        # Process 1 first, and its container goes with it; a change of users has taken the tie to its parent away.
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(runner.pid).children():
                child.kill()
        with suppress(ProcessLookupError):
            runner.kill()
        await runner.communicate()


async def ended(
    *command: str, variables: Mapping[str, str], folder: Path, writable: Sequence[Path], bound: Sequence[Path] = ()
) -> tuple[int, str]:
    """What a container that ends by itself comes to; `bound` are folders of the machine that it may write to."""
    runner = await _entered(command, variables, folder, writable, bound)
    out, _ = await runner.communicate()
    assert runner.returncode is not None
    return runner.returncode, out.decode()


async def _entered(
    command: Sequence[str],
    variables: Mapping[str, str],
    folder: Path,
    writable: Sequence[Path],
    bound: Sequence[Path],
) -> asyncio.subprocess.Process:
    script = _ENTER.format(
        writable=" ".join(map(str, writable)), bound=" ".join(map(str, bound)), folder=folder, as_user=AS_USER
    )
    return await asyncio.create_subprocess_exec(
        *("unshare", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-c", script, "sh", *command),
        env=dict(variables),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


def _first_child(pid: int) -> psutil.Process | None:
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children():
            # The shell that mounts has become the command.
            if child.uids().real == USER and child.name() not in ("sh", "setpriv"):
                return child
    return None
