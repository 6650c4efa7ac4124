"""A program in a real terminal: tmux holds the screen, keys are pressed, and what stands there is read.

Each terminal has a tmux server of its own, on a socket in a folder of its own, which ends with it.
"""

import asyncio
import shlex
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

TMUX = "tmux"


def is_installed() -> bool:
    """Whether there is a tmux."""
    return shutil.which(TMUX) is not None


class Terminal:
    """A terminal in which one program runs."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def press(self, *keys: str) -> None:
        """Press keys, by tmux's names: `Enter`, `Escape`, `Up`, or the letters themselves."""
        await self._tmux("send-keys", "--", *keys)

    async def screen(self) -> str:
        """What stands on the screen, line by line."""
        return await self._tmux("capture-pane", "-p")

    async def resize(self, columns: int, rows: int) -> None:
        """Change the size of the terminal."""
        await self._tmux("resize-window", "-x", str(columns), "-y", str(rows))

    async def pid(self) -> int:
        """The program's process."""
        return int(await self._tmux("display-message", "-p", "#{pane_pid}"))

    async def has_ended(self) -> bool:
        """Whether the program is over."""
        return (await self._tmux("display-message", "-p", "#{pane_dead}")).strip() == "1"

    async def _tmux(self, *arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
        process = await asyncio.create_subprocess_exec(
            *(TMUX, "-S", str(self._socket), "-f", "/dev/null", *arguments),
            env=env,
            cwd=cwd,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        if process.returncode:
            raise RuntimeError(f"tmux {' '.join(arguments[:2])}: {err.decode().strip()}")
        return out.decode()


@asynccontextmanager
async def terminal(
    command: Sequence[str], *, env: Mapping[str, str], cwd: Path, columns: int = 80, rows: int = 24
) -> AsyncIterator[Terminal]:
    """A program in a terminal of its own until left; then both are killed.

    Raises:
        FileNotFoundError: there is no tmux.
        RuntimeError: tmux refuses.
    """
    # Paths of sockets are short; those of tests are not.
    with tempfile.TemporaryDirectory(prefix="tmux-") as folder:
        opened = Terminal(Path(folder) / "socket")
        size = ("-x", str(columns), "-y", str(rows))
        # Once the program ends, its last screen stays to be read.
        stays = (";", "set-option", "-g", "remain-on-exit", "on")
        start = ("new-session", "-d", *size, shlex.join(command), *stays)
        await opened._tmux(*start, env={"LANG": "C.UTF-8", **env}, cwd=cwd)
        try:
            yield opened
        finally:
            await opened._tmux("kill-server")
