"""`mesh auth`: files that a server takes, keys that rotate, and seeds that nobody sees."""

import asyncio
import os
import re
import signal
import subprocess
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import nats
import pytest

from mesh.bus import topology
from mesh.bus.connection import Bus
from mesh.errors import BusError, BusUnavailable, PermissionDenied, SetupError
from mesh.local.server import binary
from mesh.settings import Settings
from mesh.testing import eventually
from mesh.testing.cluster import free_ports
from tests.integration.conftest import CommandLine
from tests.security.scene import closed

ACCESS = """\
meshes:
  mesh:
    peers:
      triage: {handles: [triage], calls: [write]}
      writer: {handles: [write]}
    clients:
      shop: {calls: [triage]}
    operators: [ops]
    monitors: [watch]
  other:
    operators: [other-ops]
    jetstream: {max_file: 1GB, max_streams: 20}
"""
USERS = ("triage", "writer", "shop", "ops", "watch", "other-ops")


@pytest.fixture
def line(alone: CommandLine) -> CommandLine:
    (alone.folder / "access.yaml").write_text(ACCESS)
    return alone


def seeds(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text().strip() for path in (folder / "auth/users").iterdir()}


async def test_it_writes_what_servers_and_users_need_and_shows_no_seed(line: CommandLine) -> None:
    first = await line("auth", "generate", "access.yaml", "--out", "auth")
    made = seeds(line.folder)
    accounts = (line.folder / "auth/accounts.conf").read_text()
    again = await line("auth", "generate", "access.yaml", "--out", "auth", "--release", "blue")

    assert (first.code, again.code) == (0, 0), first.err + again.err
    assert set(made) == {f"{user}.nk" for user in USERS}
    assert seeds(line.folder) == made
    assert (line.folder / "auth/accounts.conf").read_text() == accounts
    assert oct((line.folder / "auth/users").stat().st_mode)[-3:] == "700"
    assert {oct(path.stat().st_mode)[-3:] for path in (line.folder / "auth/users").iterdir()} == {"600"}
    assert oct((line.folder / "auth/kubernetes.yaml").stat().st_mode)[-3:] == "600"
    assert "name: blue-user-other-ops" in (line.folder / "auth/kubernetes.yaml").read_text()
    said = first.out + first.err + again.out + again.err + accounts
    assert not any(seed in said for seed in made.values())


async def test_it_shows_what_a_user_may_do_and_why(line: CommandLine) -> None:
    shown = await line("auth", "show", "access.yaml", "shop")
    told = await line("auth", "show", "access.yaml", "shop", "--json")
    unknown = await line("auth", "show", "access.yaml", "nobody")

    assert "may submit tasks to triage, and wait for their results" in shown.out
    assert "mesh.task.triage.>" in told.document[0]["publish"]
    assert (unknown.code, "no user 'nobody'; there are triage, writer" in unknown.err) == (1, True)


async def test_what_is_wrong_with_an_access_file_is_told_with_its_place(line: CommandLine) -> None:
    (line.folder / "wrong.yaml").write_text("meshes: {mesh: {peers: {p: {handle: [a]}}}}")
    (line.folder / "torn.yaml").write_text("meshes: {")

    wrong = await line("auth", "generate", "wrong.yaml", "--out", "auth")
    torn = await line("auth", "generate", "torn.yaml", "--out", "auth")
    missing = await line("auth", "generate", "nowhere.yaml", "--out", "auth")

    assert (wrong.code, torn.code, missing.code) == (2, 2, 2)
    assert "wrong.yaml: meshes.mesh.peers.p.handle: no such field" in wrong.err
    assert "torn.yaml is no YAML" in torn.err
    assert "nowhere.yaml cannot be read: No such file" in missing.err
    assert not (line.folder / "auth").exists()


async def test_a_key_is_rotated_while_both_are_valid_and_the_old_one_is_out_after_a_reload(line: CommandLine) -> None:
    await line("auth", "generate", "access.yaml", "--out", "auth")
    old = seeds(line.folder)["shop.nk"]
    with served(line.folder) as (server, url):
        holder = await connected(url, old)

        (line.folder / "auth/server.conf").write_text("# adapted\n")
        rotated = await line("auth", "rotate", "access.yaml", "shop", "--out", "auth")
        twice = await line("auth", "rotate", "access.yaml", "shop", "--out", "auth")
        new = seeds(line.folder)["shop.nk"]
        await reload(server, line.folder)
        both = [await connected(url, seed) for seed in (old, new)]
        retired = await line("auth", "retire", "access.yaml", "shop", "--out", "auth")
        await reload(server, line.folder)

        await eventually(lambda: holder.is_closed)
        with pytest.raises(nats.errors.Error):
            await connected(url, old)
        await (await connected(url, new)).close()
        for one in both:
            await one.close()

    assert (rotated.code, twice.code, retired.code) == (0, 1, 0), rotated.err + retired.err
    assert "has two keys already" in twice.err
    assert new != old
    assert not (line.folder / "auth/users/shop.old.nk").exists()
    assert (line.folder / "auth/server.conf").read_text() == "# adapted\n"
    assert not any(seed in rotated.out + retired.out for seed in (old, new))


async def test_the_single_server_and_the_cluster_take_users_over_tls(line: CommandLine) -> None:
    hosts = "localhost,localhost,localhost"
    await line("auth", "generate", "access.yaml", "--out", "auth", "--hosts", hosts)
    certificates(line.folder / "tls")
    ports = free_ports(9)
    folder = line.folder / "auth"
    with ExitStack() as running:
        for number, name in enumerate(("server", "cluster-1", "cluster-2", "cluster-3")):
            config = (folder / f"{name}.conf").read_text()
            config = config.replace("/etc/nats/tls", str(line.folder / "tls")).replace(
                "/data/", f"{line.folder}/{name}/"
            )
            config = config.replace("port: 4222", f"port: {ports[number]}").replace("127.0.0.1:8222", "127.0.0.1:-1")
            config = config.replace("port: 6222", f"port: {ports[5 + number]}")
            # All three are on this machine, so each has a port of its own.
            routes = ", ".join(f'"nats-route://localhost:{port}"' for port in ports[6:9])
            config = re.sub(r"routes: \[.*\]", f"routes: [{routes}]", config)
            (folder / f"here-{name}.conf").write_text(config)
            running.enter_context(process(folder / f"here-{name}.conf", line.folder / f"{name}.log"))
        for nodes, replicas in ((ports[:1], 1), (ports[1:4], 3)):
            settings = Settings(
                nats_url=",".join(f"tls://localhost:{port}" for port in nodes),
                nats_nkey_seed=folder / "users/ops.nk",
                nats_inbox_prefix="_INBOX_ops",
                nats_tls_ca=line.folder / "tls/ca.crt",
                replicas=replicas,
            )
            assert "MESH" in await eventually(partial(made_on, settings), within_s=60.0)


async def test_a_user_with_the_inbox_of_another_is_told_which_setting_is_missing(line: CommandLine) -> None:
    await line("auth", "generate", "access.yaml", "--out", "auth")
    with served(line.folder) as (_, url):
        settings = Settings(nats_url=url, nats_nkey_seed=line.folder / "auth/users/ops.nk")

        async def refused() -> str:
            try:
                async with Bus.connect(settings, "ops") as bus:
                    await bus.api("INFO")
            except PermissionDenied as error:
                return str(error)
            except BusUnavailable:  # the server starts
                return ""
            return "it heard an answer"

        assert "MESH_NATS_INBOX_PREFIX=_INBOX_<user>" in await eventually(refused)


async def test_the_seed_of_a_restorer_goes_into_no_cluster(line: CommandLine) -> None:
    (line.folder / "access.yaml").write_text("meshes: {mesh: {operators: [ops], restorers: [vault]}}")

    await line("auth", "generate", "access.yaml", "--out", "auth")

    secrets = (line.folder / "auth/kubernetes.yaml").read_text()
    assert ("starling-user-ops" in secrets, "starling-user-vault" in secrets) == (True, False)
    assert (line.folder / "auth/users/vault.nk").is_file()


async def test_an_agent_that_cannot_be_loaded_leaves_nothing_half_made(line: CommandLine) -> None:
    (line.folder / "access.yaml").write_text("meshes: {mesh: {peers: {triage: {agents: [not_there]}}}}")

    refused = await line("auth", "generate", "access.yaml", "--out", "auth")

    assert (refused.code, "not_there" in refused.err) == (2, True)
    assert not (line.folder / "auth").exists()


async def made_on(settings: Settings) -> tuple[str, ...]:
    """The streams that are there; none while the servers are not there yet."""
    try:
        async with Bus.connect(settings, "ops") as bus:
            await topology.ensure(bus, topology.streams(settings))
            return tuple(spec.name for spec in topology.streams(settings))
    except (BusError, SetupError) as error:
        print(error)  # noqa: T201  # shown where the test fails
        return ()


def certificates(folder: Path) -> None:
    """A certificate authority, and one certificate for localhost that servers and routes show."""
    folder.mkdir()

    def openssl(arguments: str) -> None:
        subprocess.run(["openssl", *arguments.split()], cwd=folder, check=True, capture_output=True)

    (folder / "names").write_text("subjectAltName=DNS:localhost\n")
    openssl("req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=ca")
    openssl("req -newkey rsa:2048 -nodes -keyout tls.key -out tls.csr -subj /CN=localhost")
    openssl("x509 -req -in tls.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile names -out tls.crt")


class process:  # noqa: N801  # reads as what it is
    """A nats-server with a configuration, until left."""

    def __init__(self, config: Path, log: Path) -> None:
        self.config, self.log = config, log

    def __enter__(self) -> "subprocess.Popen[bytes]":
        with self.log.open("ab") as log:
            self.started = subprocess.Popen([binary(), "-c", str(self.config)], stdout=log, stderr=log)
        return self.started

    def __exit__(self, *_: object) -> None:
        self.started.kill()
        self.started.wait()


class served:  # noqa: N801  # reads as what it is
    """A server without TLS that includes the generated accounts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> "tuple[subprocess.Popen[bytes], str]":
        (port,) = free_ports(1)
        config = self.folder / "auth/here.conf"
        store = self.folder / "store"
        config.write_text(
            f'listen: "127.0.0.1:{port}"\njetstream {{ store_dir: "{store}" }}\ninclude "accounts.conf"\n'
        )
        self.process = process(config, self.folder / "nats.log")
        return self.process.__enter__(), f"nats://127.0.0.1:{port}"

    def __exit__(self, *_: object) -> None:
        self.process.__exit__()


async def reload(server: "subprocess.Popen[bytes]", folder: Path) -> None:
    log = folder / "nats.log"
    before = log.read_text().count("Reloaded")
    os.kill(server.pid, signal.SIGHUP)
    await eventually(lambda: log.read_text().count("Reloaded") > before)


async def connected(url: str, seed: str) -> "nats.NATS":
    async def quiet(_: Exception) -> None:
        return None

    async def attempt() -> "nats.NATS | None":
        found = nats.NATS()
        try:
            await found.connect(url, nkeys_seed_str=seed, allow_reconnect=False, error_cb=quiet, connect_timeout=2)
        except (ConnectionRefusedError, nats.errors.NoServersError):
            await closed(found)
            return None
        except nats.errors.Error:
            await closed(found)
            raise
        return found

    async with asyncio.timeout(10):
        found = await eventually(attempt)
    assert found is not None
    return found
