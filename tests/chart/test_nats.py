"""The bundled NATS: what the real server says to its configuration, and how it leaves."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mesh.bus.topology import streams
from mesh.local.server import binary
from mesh.settings import Settings
from mesh.testing import eventually
from tests.chart.cases import CASES, rendered
from tests.chart.rendering import BUNDLED, Manifest, Values, merged, of_kind, one, pods, render

ACCOUNTS = """
accounts {
  MESH { jetstream: enabled, exports: [{service: "$JS.API.>"}] }
  MESH_AGENTS {
    users: [{nkey: UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4}]
    imports: [{service: {account: MESH, subject: "$JS.API.>"}}]
  }
}
"""
SERVERS = [case for case, values in CASES.items() if values["nats"].get("bundled", {}).get("enabled")]


def conf(manifests: list[Manifest], name: str = "demo-starling-nats") -> str:
    text: str = one(manifests, "ConfigMap", name)["data"]["nats.conf"]
    return text


def mounted(folder: Path, text: str) -> Path:
    """The configuration beside the accounts, as one volume has them, with certificates where it names some."""
    (folder / "accounts.conf").write_text(ACCOUNTS)
    if "/etc/nats-tls" in text:
        certificates = certified(folder.parent / "certificates")
        text = text.replace("/etc/nats-tls", str(certificates))
    (folder / "nats.conf").write_text(text)
    return folder / "nats.conf"


def certified(folder: Path) -> Path:
    """A certificate for this machine that signed itself; the same one for whoever asks again."""
    if not folder.exists():
        folder.mkdir()
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
             "-subj", "/CN=nats", "-addext", "subjectAltName=IP:127.0.0.1",
             "-addext", "basicConstraints=critical,CA:TRUE", "-keyout", folder / "tls.key", "-out", folder / "tls.crt"],
            check=True, capture_output=True,
        )  # fmt: skip
        (folder / "ca.crt").write_bytes((folder / "tls.crt").read_bytes())
    return folder


def refusal(path: Path) -> str:
    """What the real server has against a configuration, empty where nothing."""
    run = subprocess.run(
        [binary(), "-t", "-c", path], capture_output=True, text=True, env={**os.environ, "POD_NAME": "demo-nats-0"}
    )
    return "" if run.returncode == 0 else run.stderr


@pytest.mark.parametrize("case", SERVERS)
def test_the_real_server_takes_the_configuration(case: str, tmp_path: Path) -> None:
    assert refusal(mounted(tmp_path, conf([*rendered(case)]))) == ""


def test_the_real_server_would_refuse_a_wrong_one(tmp_path: Path) -> None:
    text = conf(render(BUNDLED)).replace("sync_interval: always", "sync_interval: sometimes")

    assert "sync_interval" in refusal(mounted(tmp_path, text)) or "time" in refusal(mounted(tmp_path, text))


def test_the_accounts_are_read(tmp_path: Path) -> None:
    path = mounted(tmp_path, conf(render(BUNDLED)))
    (tmp_path / "accounts.conf").write_text("accounts { A { users: [{nkey: NONE}] } }")

    assert "nkey" in refusal(path)


def test_without_accounts_nothing_is_included(tmp_path: Path) -> None:
    text = conf([*rendered("insecure")])

    assert "include" not in text
    assert refusal(mounted(tmp_path, text)) == ""


def test_one_server_has_no_cluster_and_three_know_each_other() -> None:
    assert "cluster {" not in conf([*rendered("single server")])

    text = conf([*rendered("bundled")])
    routes = [line.strip() for line in text.splitlines() if "nats-route://" in line]
    assert routes == [
        f"nats-route://demo-starling-nats-{i}.demo-starling-nats-headless.agents.svc:6222" for i in range(3)
    ]


def test_what_is_acknowledged_is_on_three_disks() -> None:
    manifests = [*rendered("bundled")]
    shared = one(manifests, "ConfigMap", "demo-starling")["data"]

    assert "sync_interval: always" in conf(manifests)
    assert shared["MESH_REPLICAS"] == "3"
    assert one([*rendered("single server")], "ConfigMap", "demo-starling")["data"]["MESH_REPLICAS"] == "1"


def test_the_store_fits_on_its_volume() -> None:
    units = {"Gi": 2**30, "GiB": 2**30}
    stateful = one([*rendered("bundled")], "StatefulSet", "demo-starling-nats")["spec"]
    size = stateful["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"]

    most = next(line.split()[1] for line in conf([*rendered("bundled")]).splitlines() if "max_file_store" in line)
    assert int(most[:-3]) * units[most[-3:]] < int(size[:-2]) * units[size[-2:]]


def test_the_store_holds_what_the_streams_are_promised() -> None:
    promised = sum(spec.config.get("max_bytes", 0) for spec in streams(Settings()))
    fits = {"nats": {"bundled": {"jetstream": {"maxFile": f"{promised // 2**20}MiB"}}}}

    # One MiB less is among the refusals.
    assert promised == 6464 * 2**20
    assert f"max_file_store: {promised // 2**20}MiB" in conf(render(merged(BUNDLED, fits)))


def test_no_two_servers_stand_on_one_node_and_one_at_a_time_leaves() -> None:
    manifests = [*rendered("bundled")]
    stateful = one(manifests, "StatefulSet", "demo-starling-nats")["spec"]
    budget = one(manifests, "PodDisruptionBudget", "demo-starling-nats")["spec"]
    (apart,) = stateful["template"]["spec"]["affinity"]["podAntiAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]

    assert apart["topologyKey"] == "kubernetes.io/hostname"
    assert apart["labelSelector"] == budget["selector"] == stateful["selector"]
    assert budget["maxUnavailable"] == 1


def test_a_changed_configuration_starts_the_servers_anew_and_nothing_else_does() -> None:
    def started(values: Values) -> Any:
        return one(render(values), "StatefulSet", "demo-starling-nats")["spec"]["template"]

    was = started(BUNDLED)

    assert started(merged(BUNDLED, {"nats": {"bundled": {"maxPayload": 2_097_152}}})) != was
    assert started(merged(BUNDLED, {"mesh": {"logLevel": "DEBUG"}})) == was


def test_a_changed_setting_starts_the_peers_anew() -> None:
    def started(values: Values) -> Any:
        return one(render(values), "Deployment", "demo-starling-triage")["spec"]["template"]["metadata"]["annotations"]

    changed = merged(BUNDLED, {"mesh": {"settings": {"MESH_RESULT_TTL_S": "60"}}})
    assert started(changed)["checksum/config"] != started(BUNDLED)["checksum/config"]


def test_clients_are_given_the_authority_and_never_the_servers_key() -> None:
    values = merged(BUNDLED, {"nats": {"bundled": {"tls": {"existingSecret": "nats-tls"}}}})
    for at, pod in pods(render(values)):
        of_tls = [v for v in pod["spec"]["volumes"] if v["name"] == "nats-tls"]
        if at.startswith("StatefulSet/"):
            continue
        (source,) = of_tls[0]["projected"]["sources"]
        assert [item["key"] for item in source["secret"]["items"]] == ["ca.crt"], at


def test_only_servers_are_told_of_the_accounts() -> None:
    for at, pod in pods([*rendered("bundled")]):
        secrets = [v for v in pod["spec"]["volumes"] if "demo-nats-accounts" in str(v)]
        assert bool(secrets) == at.startswith("StatefulSet/"), at


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [found.getsockname()[1] for found in held]
    for found in held:
        found.close()
    return ports


@dataclass(frozen=True, slots=True)
class Server:
    """A real server on the rendered configuration, moved to this machine's ports and folders."""

    folder: Path
    monitoring: str
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text() if path.exists() else ""

    def page(self, path: str) -> tuple[int, Any]:
        """Status and body of a page of its monitoring; 0 while it does not answer."""
        try:
            with urllib.request.urlopen(f"{self.monitoring}{path}", timeout=5) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
        except OSError:
            return 0, None


@contextmanager
def started(folder: Path, text: str, *, name: str, moved: dict[str, str]) -> Iterator[Server]:
    folder.mkdir(parents=True)
    (port,) = free_ports(1)
    here = {
        "0.0.0.0:8222": f"127.0.0.1:{port}",
        "0.0.0.0:4222": "127.0.0.1:-1",
        "store_dir: /data": f"store_dir: {folder / 'data'}",
        "/var/run/nats": str(folder),
        **moved,
    }
    for old, new in here.items():
        text = text.replace(old, new)
    path = mounted(folder, f'{text}\nlog_file: "{folder / "log"}"\n')
    process = subprocess.Popen([binary(), "--config", path], env={**os.environ, "POD_NAME": name})
    try:
        yield Server(folder, f"http://127.0.0.1:{port}", process)
    finally:
        process.kill()
        process.wait()


def nats_container(manifests: list[Manifest]) -> Manifest:
    return one(manifests, "StatefulSet", "demo-starling-nats")["spec"]["template"]["spec"]["containers"][0]


async def test_every_probe_is_answered_by_the_real_server(tmp_path: Path) -> None:
    manifests = [*rendered("single server")]
    with started(tmp_path / "nats", conf(manifests), name="demo-starling-nats-0", moved={}) as server:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            path = nats_container(manifests)[probe]["httpGet"]["path"]

            async def is_fine(path: str = path) -> bool:
                return server.page(path) == (200, {"status": "ok"})

            await eventually(is_fine)
            # An option that the server does not know would be no error, and the question another one.
            assert path in PROBES


PROBES = ("/healthz", "/healthz?js-server-only=true", "/healthz?js-enabled-only=true")
"""As NATS's documents have them."""


async def test_a_leaving_server_is_a_lame_duck_that_sigterm_does_not_cut_short(tmp_path: Path) -> None:
    manifests = [*rendered("single server")]
    with started(tmp_path / "nats", conf(manifests), name="demo-starling-nats-0", moved={}) as server:

        async def is_up() -> bool:
            return "Server is ready" in server.log

        async def leaves() -> bool:
            return "lame duck mode" in server.log

        await eventually(is_up)
        command = nats_container(manifests)["lifecycle"]["preStop"]["exec"]["command"]
        option = command[1].replace("/var/run/nats", str(server.folder))
        await asyncio.to_thread(subprocess.run, [binary(), option], check=True)
        await eventually(leaves)
        server.process.send_signal(signal.SIGTERM)

        # It leaves by itself, in its own order.
        assert await asyncio.to_thread(server.process.wait, timeout=60) == 0


def test_the_kubelet_waits_longer_than_the_lame_duck() -> None:
    for case in SERVERS:
        manifests = [*rendered(case)]
        pod = of_kind(manifests, "StatefulSet")[0]["spec"]["template"]["spec"]
        lengths = re.findall(
            r"lame_duck_\w+: (\d+)s", conf(manifests, of_kind(manifests, "StatefulSet")[0]["metadata"]["name"])
        )

        assert len(lengths) == 2
        assert pod["terminationGracePeriodSeconds"] > sum(map(int, lengths))


async def test_keda_can_tell_every_server_from_what_one_of_them_says(tmp_path: Path) -> None:
    """Clients are told no addresses, so KEDA takes a server's name from the routes, up to the first dot."""
    manifests = [*rendered("bundled")]
    text = conf(manifests).replace("0.0.0.0:6222", "127.0.0.1:-1")
    with started(tmp_path / "nats", text, name="demo-starling-nats-0", moved={}) as server:

        async def answers() -> bool:
            return server.page("/varz")[0] == 200

        await eventually(answers)
        _, said = server.page("/varz")

    assert said["server_name"] == "demo-starling-nats-0"
    assert {url.partition(".")[0] for url in said["cluster"]["urls"]} == {f"demo-starling-nats-{i}" for i in range(3)}


@pytest.mark.parametrize("case", ["bundled", "bundled, everything"])
async def test_three_servers_on_the_rendered_configuration_are_one_cluster(case: str, tmp_path: Path) -> None:
    manifests = [*rendered(case)]
    ports = free_ports(3)
    routes = {
        f"demo-starling-nats-{i}.demo-starling-nats-headless.agents.svc:6222": f"127.0.0.1:{port}"
        for i, port in enumerate(ports)
    }
    with ExitStack() as stack:
        servers = [
            stack.enter_context(
                started(
                    tmp_path / str(i),
                    conf(manifests),
                    name=f"demo-starling-nats-{i}",
                    moved={**routes, "0.0.0.0:6222": f"127.0.0.1:{port}"},
                )
            )
            for i, port in enumerate(ports)
        ]

        async def are_one() -> bool:
            pages = [server.page("/jsz") for server in servers]
            return all(
                status == 200
                and page.get("meta_cluster", {}).get("cluster_size") == 3
                and page["meta_cluster"].get("leader")
                for status, page in pages
            ) and all(server.page("/healthz")[0] == 200 for server in servers)

        await eventually(are_one, within_s=30)
        # Where clients were told addresses, KEDA would ask those of pods, and take each for a server's name.
        assert all("connect_urls" not in server.page("/varz")[1] for server in servers)


def test_the_headless_service_knows_servers_that_are_not_ready() -> None:
    headless = one([*rendered("bundled")], "Service", "demo-starling-nats-headless")["spec"]

    assert headless["publishNotReadyAddresses"] is True
    assert {port["name"] for port in headless["ports"]} == {"client", "cluster", "monitor", "metrics"}
    assert of_kind([*rendered("bundled")], "StatefulSet")[0]["spec"]["podManagementPolicy"] == "Parallel"
