"""How a command finds the mesh that `mesh up` runs: `.mesh/server.json`, here or in a folder above."""

import json
import os
from pathlib import Path

from mesh.errors import SetupError
from mesh.settings import Settings

FOLDER = ".mesh"
FILE = "server.json"


def announce(folder: Path, *, url: str, prefix: str, sync_interval: str = "") -> Path:
    """Write where the mesh of this folder listens; returns the file, which whoever runs the mesh removes.

    `sync_interval` is the server's, which a client cannot ask for.
    """
    home = folder / FOLDER
    home.mkdir(parents=True, exist_ok=True)
    ignore = home / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n")
    path = home / FILE
    scratch = path.with_suffix(f".{os.getpid()}")
    scratch.write_text(json.dumps({"url": url, "prefix": prefix, "pid": os.getpid(), "sync_interval": sync_interval}))
    scratch.replace(path)
    return path


def find_local(start: Path | None = None) -> dict[str, str] | None:
    """What the nearest `mesh up` announced, if its process still runs."""
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (found := _read(folder)) is not None:
            return found
    return None


def find_announced(folder: Path) -> int | None:
    """The process that runs a mesh of this very folder, or None."""
    found = _read(folder)
    return None if found is None else int(found["pid"])


def _read(folder: Path) -> dict[str, str] | None:
    try:
        found = json.loads((folder / FOLDER / FILE).read_text())
        os.kill(int(found["pid"]), 0)
        return {
            "url": str(found["url"]),
            "prefix": str(found["prefix"]),
            "pid": str(found["pid"]),
            "sync_interval": str(found.get("sync_interval", "")),
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None


def with_local_server(settings: Settings, url: str | None = None) -> Settings:
    """The settings with a server to connect to: the given one, their own, or the local mesh's.

    Raises:
        SetupError: there is none.
    """
    if url is not None:
        return settings.model_copy(update={"nats_url": url})
    if settings.nats_url:
        return settings
    local = find_local()
    if local is None:
        raise SetupError(
            f"no mesh here: set MESH_NATS_URL, or start one with `mesh up` in this folder"
            f" (looked for {FOLDER}/{FILE} here and above)"
        )
    return Settings.model_validate({**settings.model_dump(), "nats_url": local["url"], "prefix": local["prefix"]})
