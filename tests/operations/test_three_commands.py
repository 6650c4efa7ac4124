"""The files of docs/deploy.md's three commands: what `mesh auth` makes of one, the chart asks for with the other."""

from pathlib import Path
from typing import Any

import yaml

from tests.chart.rendering import render
from tests.operations.access import generated
from tests.operations.pages import block

RELEASE = "starling"


def test_what_the_chart_asks_for_is_what_mesh_auth_made(tmp_path: Path) -> None:
    generated(tmp_path, block("access.yaml"))
    made = list(yaml.safe_load_all((tmp_path / "auth/kubernetes.yaml").read_text()))
    there = {secret["metadata"]["name"]: set(secret["data"]) for secret in made}

    rendered = render(yaml.safe_load(block("values.yaml")), name=RELEASE)

    wanted = {(name, key) for manifest in rendered for name, key in secrets(manifest)}
    assert {name for name, _ in wanted} == {f"{RELEASE}-{rest}" for rest in ASKED}
    assert all(key in there[name] for name, key in wanted if key)


ASKED = ("nats-accounts", "user-triage", "user-ops", "user-probe")


def secrets(found: Any) -> list[tuple[str, str]]:
    """Names of Secrets that a manifest mounts or reads, each with a key where it names one."""
    if isinstance(found, list):
        return [pair for each in found for pair in secrets(each)]
    if not isinstance(found, dict):
        return []
    pairs = [pair for each in found.values() for pair in secrets(each)]
    if name := found.get("secretName"):
        pairs += [(name, item["key"]) for item in found.get("items", ({"key": ""},))]
    if isinstance(reference := found.get("secretKeyRef"), dict):
        pairs.append((reference["name"], reference["key"]))
    if isinstance(projected := found.get("secret"), dict) and "name" in projected:
        pairs += [(projected["name"], item["key"]) for item in projected.get("items", ({"key": ""},))]
    return pairs
