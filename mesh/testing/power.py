"""A disk whose power can be cut: an ext4 file system in a file, which forgets at once what was not synced.

    with disk(folder) as power:
        ...                # processes write below `power.folder`
        power.cut()        # nothing reaches the disk any more: end the processes that wrote, then
        power.restore()    # what was on the disk at the cut, after the file system's own recovery

The cut is the shutdown that file systems are tested with (`EXT4_IOC_SHUTDOWN`, no flush of the journal): dirty pages
and everything the journal has not committed are gone, what was synced stays. What reached the disk's own volatile cache
counts as kept. Needs root and loop devices.
"""

import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mesh.errors import SetupError

DISK_BYTES = 2**30
_SHUTDOWN = 0x8004587D
_NO_JOURNAL_FLUSH = 2


@dataclass(frozen=True, slots=True)
class Disk:
    """A mounted file system."""

    image: Path
    folder: Path

    def settle(self) -> None:
        """Have everything that was written until now on the disk."""
        _run("sync", "--file-system", str(self.folder))

    def cut(self) -> None:
        """Let nothing reach the disk from now on; who writes meets an error. Stop the writers first."""
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(handle, _SHUTDOWN, struct.pack("I", _NO_JOURNAL_FLUSH))
        finally:
            os.close(handle)

    def restore(self) -> None:
        """Mount what the disk has. Nobody may have a file open there."""
        _run("umount", str(self.folder))
        _run("mount", "-o", "loop", str(self.image), str(self.folder))


@contextmanager
def disk(folder: Path) -> Iterator[Disk]:
    """A fresh disk, its image and its mount point below `folder`, until left.

    Raises:
        SetupError: file systems cannot be made or mounted here; the message says why.
    """
    image, mounted = folder / "disk.img", folder / "disk"
    mounted.mkdir(parents=True)
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    _run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(image))
    _run("mount", "-o", "loop", str(image), str(mounted))
    try:
        yield Disk(image, mounted)
    finally:
        _run("umount", "--lazy", str(mounted))


def _run(command: str, *arguments: str) -> None:
    found = shutil.which(command) or shutil.which(command, path="/usr/sbin:/sbin")
    if found is None:
        raise SetupError(f"a disk whose power can be cut needs {command}")
    done = subprocess.run([found, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SetupError(f"{command} {' '.join(arguments)}: {done.stderr.strip() or done.returncode}")
