"""Users and accounts as an operator makes them: `mesh auth` on an access file."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mesh.auth.rights import inbox_prefix
from mesh.settings import Settings
from mesh.testing.fixtures import ACK_WAIT_S, BEAT_S, EVENTS_BYTES_MAX, OBJECTS_BYTES_MAX, STREAM_BYTES_MAX, SWEEP_S


@dataclass(frozen=True)
class Access:
    """A folder with `access.yaml` and what `mesh auth generate` made of it, in `auth`."""

    folder: Path

    @property
    def accounts(self) -> str:
        """The accounts, to stand in a server's configuration."""
        return (self.folder / "auth/accounts.conf").read_text()

    def seed(self, user: str) -> Path:
        return self.folder / f"auth/users/{user}.nk"

    def mesh_auth(self, command: str, *users: str) -> None:
        """`mesh auth generate`, or `rotate` or `retire` of a user."""
        subprocess.run(
            [sys.executable, "-m", "mesh", "auth", command, "access.yaml", *users, "--out", "auth"],
            cwd=self.folder,
            check=True,
            capture_output=True,
        )

    def settings(self, user: str, port: int, *, inbox_of: str = "", **changes: Any) -> Settings:
        """Settings of a user's peer or client, with short waits."""
        short: dict[str, Any] = {"ack_wait_s": ACK_WAIT_S, "sweep_s": SWEEP_S, "beat_s": BEAT_S, "grace_s": 2.0}
        small = {
            "stream_bytes_max": STREAM_BYTES_MAX,
            "objects_bytes_max": OBJECTS_BYTES_MAX,
            "events_bytes_max": EVENTS_BYTES_MAX,
        }
        return Settings(
            nats_url=f"nats://127.0.0.1:{port}",
            nats_nkey_seed=self.seed(user),
            nats_inbox_prefix=inbox_prefix(inbox_of or user),
            **{**short, **small, **changes},
        )


def generated(folder: Path, access: dict[str, Any] | str) -> Access:
    """What `mesh auth generate` makes of an access file."""
    (folder / "access.yaml").write_text(access if isinstance(access, str) else yaml.safe_dump(access))
    made = Access(folder)
    made.mesh_auth("generate")
    return made
