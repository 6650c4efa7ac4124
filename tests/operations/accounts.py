"""Accounts as `mesh auth generate` makes them, without its permissions: one holds the streams, one has the users."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nkeys

from mesh.bus import topology
from mesh.settings import Settings
from mesh.testing.fixtures import ACK_WAIT_S, BEAT_S, EVENTS_BYTES_MAX, OBJECTS_BYTES_MAX, STREAM_BYTES_MAX, SWEEP_S

API = "$JS.API.>"
"""A pull is answered many times: by heartbeats, messages and its end. With one answer, the default, the server forgets
whom to answer after the first heartbeat. What it remembers goes 15 s after the last answer; without a threshold, after
two minutes. It has to be this very subject: the server's own import of it would stand beside any narrower one."""


@dataclass(frozen=True)
class User:
    """A key pair: the server's configuration has the public half, a file the seed."""

    public: str
    seed: Path


def user(folder: Path, name: str) -> User:
    """A new user, its seed in the folder."""
    pair = nkeys.from_seed(nkeys.encode_seed(_random(32), nkeys.PREFIX_BYTE_USER))
    seed = folder / f"{name}.nk"
    seed.write_bytes(bytes(pair.seed))
    seed.chmod(0o600)
    return User(pair.public_key.decode(), seed)


def mesh_accounts(prefix: str, users: Sequence[User], *, limits: str = "enabled") -> str:
    """Both accounts of a mesh, for the block `accounts {…}`; `limits` is what JetStream lets the mesh have."""
    settings = Settings(prefix=prefix)
    subjects = settings.subjects
    stored = [subject for spec in topology.streams(settings) for subject in spec.config["subjects"]]
    head = f"{prefix}."
    timed = [f"{head}{word}.>" for word in ("timer", "due", "cron", "tick")]
    services = sorted({*stored, *timed, "$JS.ACK.>"})
    streams = [subjects.result_echo[1], subjects.control_echo[1], *(echo for echo in [subjects.limit_echoes[1]])]
    name = subjects.stream
    exports = [f'{{ service: "{one}" }}' for one in services] + [f'{{ stream: "{one}" }}' for one in streams]
    exports.append(f'{{ service: "{API}", response: stream, response_threshold: "15s" }}')
    imports = [f'{{ service: {{ account: {name}, subject: "{one}" }} }}' for one in (*services, API)]
    imports += [f'{{ stream: {{ account: {name}, subject: "{one}" }} }}' for one in streams]
    return f"""\
  {name} {{
    jetstream: {limits}
    exports: [{", ".join(exports)}]
  }}
  {name}_AGENTS {{
    users: [{", ".join(f"{{ nkey: {one.public} }}" for one in users)}]
    imports: [{", ".join(imports)}]
  }}
"""


def settings_of(user: User, port: int, prefix: str = "mesh", **changes: Any) -> Settings:
    """Settings of a user's peer or client, with short waits."""
    short: dict[str, Any] = {"ack_wait_s": ACK_WAIT_S, "sweep_s": SWEEP_S, "beat_s": BEAT_S, "grace_s": 2.0}
    small = {
        "stream_bytes_max": STREAM_BYTES_MAX,
        "objects_bytes_max": OBJECTS_BYTES_MAX,
        "events_bytes_max": EVENTS_BYTES_MAX,
    }
    return Settings(
        nats_url=f"nats://127.0.0.1:{port}",
        nats_nkey_seed=user.seed,
        prefix=prefix,
        **{**short, **small, **changes},
    )


def _random(length: int) -> bytes:
    import secrets

    return secrets.token_bytes(length)
