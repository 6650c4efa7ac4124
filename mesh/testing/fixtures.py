"""Pytest fixtures: one real server a session, and a mesh of its own for every test.

Import them by name into a `conftest.py`. A test that hurts its server starts one with
`mesh.local.server.local_server`.
"""

import secrets
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from mesh.bus import topology
from mesh.bus.connection import Bus
from mesh.bus.replies import ApiError
from mesh.client import Mesh
from mesh.local.server import LocalServer, local_server
from mesh.settings import Settings

__all__ = ["mesh", "nats_server", "nats_url", "settings"]

STREAM_BYTES_MAX = 64 * 2**20
OBJECTS_BYTES_MAX = 64 * 2**20
EVENTS_BYTES_MAX = 16 * 2**20
ACK_WAIT_S = 2.0
SWEEP_S = 2.0
BEAT_S = 0.5
GRACE_S = 5.0


@pytest.fixture(scope="session")
def nats_server() -> Iterator[LocalServer]:
    """A nats-server on a free port with a temporary store, for the whole session: do not hurt it."""
    with local_server() as server:
        yield server


@pytest.fixture(scope="session")
def nats_url(nats_server: LocalServer) -> str:
    """The address of the session's server."""
    return nats_server.url


@pytest_asyncio.fixture
async def settings(nats_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Settings]:
    """Settings of a mesh that only this test knows, with short waits; its streams go with the test.

    What the environment sets (`MESH_*`) is left out.
    """
    for name in Settings.model_fields:
        monkeypatch.delenv(f"MESH_{name.upper()}", raising=False)
    alone = fresh_settings(nats_url)
    yield alone
    async with Bus.connect(alone, "fixtures") as bus:
        for stream in (*(spec.name for spec in topology.streams(alone)), *await topology.timer_streams(bus)):
            try:
                await bus.api(f"STREAM.DELETE.{stream}")
            except ApiError as error:
                if error.status != 404:
                    raise


def fresh_settings(nats_url: str) -> Settings:
    """Settings with a random prefix, so with streams and subjects of their own, and short waits."""
    return Settings(
        nats_url=nats_url,
        prefix=f"t{secrets.token_hex(6)}",
        stream_bytes_max=STREAM_BYTES_MAX,
        objects_bytes_max=OBJECTS_BYTES_MAX,
        events_bytes_max=EVENTS_BYTES_MAX,
        ack_wait_s=ACK_WAIT_S,
        sweep_s=SWEEP_S,
        beat_s=BEAT_S,
        grace_s=GRACE_S,
    )


@pytest_asyncio.fixture
async def mesh(settings: Settings) -> AsyncIterator[Mesh]:
    """A client of the test's own mesh. Its streams exist, so tasks may be submitted before any peer starts."""
    async with Mesh.connect(settings=settings) as client:
        await topology.ensure(client.bus, topology.of_mesh(settings))
        yield client
