"""The Secrets that the chart names are those that `mesh auth generate` writes, and the servers know their users."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from mesh.cli.main import app
from tests.chart.rendering import BUNDLED, Manifest, merged, of_kind, pods, render
from tests.chart.test_nats import conf, mounted, refusal

ACCESS = """
meshes:
  mesh:
    peers:
      triage: {handles: [triage]}
      writer: {handles: [write], calls: [triage]}
    clients:
      probe: {calls: [triage]}
    operators: [ops]
    monitors: [keda]
"""
VALUES = merged(
    BUNDLED,
    {
        "agents": {"writer": {"targets": ["my_agents.writer"], "capabilities": ["write"]}},
        "autoscaling": {"mode": "keda"},
        "test": {"capability": "triage"},
    },
)


@pytest.fixture
def generated(tmp_path: Path) -> Path:
    """What `mesh auth generate` writes for the release."""
    (tmp_path / "ACCESS.yaml").write_text(ACCESS)
    out = tmp_path / "generated"
    result = CliRunner().invoke(
        app, ["auth", "generate", str(tmp_path / "ACCESS.yaml"), "--out", str(out), "--release", "demo"]
    )
    assert result.exit_code == 0, result.output
    return out


def named(manifests: list[Manifest]) -> Iterator[tuple[str, str]]:
    """Each Secret that a volume names, with the key that it wants of it."""
    for _, pod in pods(manifests):
        for volume in pod["spec"]["volumes"]:
            sources = [source.get("secret", {}) for source in volume.get("projected", {}).get("sources", [])]
            for secret in [volume.get("secret", {}), *sources]:
                for item in secret.get("items", []):
                    yield secret.get("secretName") or secret["name"], item["key"]


def test_every_secret_that_a_pod_wants_is_written(generated: Path) -> None:
    written = {
        (secret["metadata"]["name"], key)
        for secret in yaml.safe_load_all((generated / "kubernetes.yaml").read_text())
        for key in {**secret.get("data", {}), **secret.get("stringData", {})}
    }
    wanted = set(named(render(VALUES)))

    assert wanted <= written
    assert wanted == {
        ("demo-nats-accounts", "accounts.conf"),
        *((f"demo-user-{user}", "seed") for user in ("triage", "writer", "ops", "probe")),
    }


def test_the_servers_take_the_generated_accounts(generated: Path, tmp_path: Path) -> None:
    path = mounted(tmp_path, conf(render(VALUES)))
    (tmp_path / "accounts.conf").write_text((generated / "accounts.conf").read_text())

    assert refusal(path) == ""


def test_keda_looks_into_an_account_that_has_the_streams(generated: Path) -> None:
    (account,) = {
        trigger["metadata"]["account"]
        for scaled in of_kind(render(VALUES), "ScaledObject")
        for trigger in scaled["spec"]["triggers"]
    }
    accounts = (generated / "accounts.conf").read_text()

    assert f"  {account} {{\n    jetstream: enabled" in accounts
