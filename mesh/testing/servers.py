"""A nats-server on an operator's own configuration, and what operators do to it: reload, lame duck, kill."""

import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mesh.errors import SetupError
from mesh.local.server import START_WITHIN_S, binary, end

_LOOK_EVERY_S = 0.02


@dataclass(slots=True)
class ConfiguredServer:
    """A nats-server process. The configuration is its own folder's `nats.conf`, and says where it listens: `port`."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    environment: Mapping[str, str] | None = None

    @property
    def log(self) -> str:
        return (self.folder / "nats.log").read_text(errors="replace")

    def reload(self, config: str) -> None:
        """Give the running server another configuration, as `nats-server --signal reload` does; returns when taken.

        Raises:
            SetupError: it refused; it goes on with the old one.
        """
        was = len(self.log)
        (self.folder / "nats.conf").write_text(config)
        self.process.send_signal(signal.SIGHUP)
        give_up_at = time.monotonic() + START_WITHIN_S
        while time.monotonic() < give_up_at:
            told = self.log[was:]
            if "Reloaded server configuration" in told:
                return
            if "Failed to reload" in told or self.process.poll() is not None:
                break
            time.sleep(_LOOK_EVERY_S)
        raise SetupError(f"the configuration was not taken: {self.log[was:].strip()[-300:]}")

    def lame_duck(self) -> None:
        """Have it send its clients elsewhere and end, as `nats-server --signal ldm` does; returns at its end."""
        self.process.send_signal(signal.SIGUSR2)
        self.process.wait()

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End it in good order. Safe to repeat."""
        end(self.process)

    def restart(self) -> None:
        """Start it again on the configuration and the store it had."""
        self.process = _spawn(self.folder, self.port, self.environment)


def start(folder: Path, config: str, *, port: int, environment: Mapping[str, str] | None = None) -> ConfiguredServer:
    """A server on that configuration, started in the folder and listening; `environment` is in place of this process's.

    Raises:
        SetupError: it does not come up; the message has the end of its log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "nats.conf").write_text(config)
    return ConfiguredServer(folder, port, _spawn(folder, port, environment), environment)


@contextmanager
def configured_server(
    folder: Path, config: str, *, port: int, environment: Mapping[str, str] | None = None
) -> Iterator[ConfiguredServer]:
    """As `start`, ended when left."""
    server = start(folder, config, port=port, environment=environment)
    try:
        yield server
    finally:
        server.stop()


def _spawn(folder: Path, port: int, environment: Mapping[str, str] | None) -> subprocess.Popen[bytes]:
    with (folder / "nats.log").open("ab") as log:
        # A session of its own: Ctrl-C reaches the peers first, and they drain over a live connection.
        process = subprocess.Popen(
            [binary(), "-c", "nats.conf"],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    give_up_at = time.monotonic() + START_WITHIN_S
    while time.monotonic() < give_up_at and process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return process
        except OSError:
            time.sleep(_LOOK_EVERY_S)
    process.kill()
    process.wait()
    tail = (folder / "nats.log").read_text(errors="replace").strip().splitlines()[-3:]
    raise SetupError(f"nats-server did not start: {' | '.join(tail) or 'it said nothing'}")
