"""The bundled NATS: what the real server says to its configuration, and how it leaves."""

import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mesh.local.server import binary
from tests.chart.cases import CASES, rendered
from tests.chart.rendering import BUNDLED, Manifest, Values, containers, merged, of_kind, one, pods, render

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
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
             "-subj", "/CN=nats", "-keyout", folder / "tls.key", "-out", folder / "tls.crt"],
            check=True, capture_output=True,
        )  # fmt: skip
        (folder / "ca.crt").write_bytes((folder / "tls.crt").read_bytes())
    (folder / "nats.conf").write_text(text.replace("/etc/nats-tls", str(folder)))
    return folder / "nats.conf"


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


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def test_a_leaving_server_is_a_lame_duck_that_sigterm_does_not_cut_short(tmp_path: Path) -> None:
    manifests = [*rendered("single server")]
    (_, pod) = next((at, pod) for at, pod in pods(manifests) if at.startswith("StatefulSet/"))
    server = containers(pod)[0]
    text = conf(manifests).replace("0.0.0.0:8222", f"127.0.0.1:{free_port()}").replace("0.0.0.0:4222", "127.0.0.1:-1")
    text = text.replace("/data", str(tmp_path / "data")).replace("/var/run/nats", str(tmp_path))
    log = tmp_path / "log"
    path = mounted(tmp_path, f'{text}\nlog_file: "{log}"\n')
    process = subprocess.Popen([binary(), "--config", path], env={**os.environ, "POD_NAME": "demo-nats-0"})
    try:
        wait_for(log, "Server is ready")
        command = [
            part.replace("/var/run/nats", str(tmp_path)) for part in server["lifecycle"]["preStop"]["exec"]["command"]
        ]
        subprocess.run([binary(), *command[1:]], check=True)
        wait_for(log, "lame duck mode")
        process.send_signal(signal.SIGTERM)

        # It leaves by itself, in its own order.
        assert process.wait(timeout=60) == 0
        assert pod["spec"]["terminationGracePeriodSeconds"] >= 60
    finally:
        process.kill()
        process.wait()


def wait_for(log: Path, words: str) -> None:
    """Returns once the log holds them; the test's own time limit ends the wait."""
    while not (log.exists() and words in log.read_text()):
        os.sched_yield()


def test_the_headless_service_knows_servers_that_are_not_ready() -> None:
    headless = one([*rendered("bundled")], "Service", "demo-starling-nats-headless")["spec"]

    assert headless["publishNotReadyAddresses"] is True
    assert {port["name"] for port in headless["ports"]} == {"client", "cluster", "monitor", "metrics"}
    assert of_kind([*rendered("bundled")], "StatefulSet")[0]["spec"]["podManagementPolicy"] == "Parallel"
