"""The chart as Helm itself renders it, without a cluster."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import helm_python
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "starling"
RELEASE, NAMESPACE = "demo", "agents"

Manifest = dict[str, Any]
Values = Mapping[str, Any]

EXTERNAL: Values = {
    "nats": {"external": {"url": "nats://nats.example:4222"}},
    "agents": {"triage": {"targets": ["my_agents.triage"], "capabilities": ["triage"]}},
}
"""The least that says where NATS is, and one agent."""
BUNDLED: Values = {
    "nats": {"bundled": {"enabled": True, "auth": {"existingSecret": "demo-nats-accounts"}}},
    "agents": {"triage": {"targets": ["my_agents.triage"], "capabilities": ["triage"]}},
}
"""The least with a NATS of the chart's own."""


def texts(values: Values, *, name: str = RELEASE, namespace: str = NAMESPACE, revision: int = 1) -> dict[str, str]:
    """What each template comes to, by its path in the chart; values are held against the schema first.

    Raises:
        helm_python.HelmError: Helm, the schema or a template refuses them.
    """
    with helm_python.Chart.load(CHART) as chart:
        chart.validate_schema(dict(values))
        rendered = chart.render(
            dict(values), name=name, namespace=namespace, revision=revision, is_install=revision == 1
        )
    return {path.partition("/")[2]: text for path, text in rendered.items()}


def render(values: Values, *, name: str = RELEASE, namespace: str = NAMESPACE, revision: int = 1) -> list[Manifest]:
    """Every object that Helm would send to the cluster, hooks and tests included."""
    rendered = texts(values, name=name, namespace=namespace, revision=revision)
    return [
        manifest
        for path, text in sorted(rendered.items())
        if not path.endswith("NOTES.txt")
        for manifest in yaml.safe_load_all(text)
        if manifest
    ]


def notes(values: Values) -> str:
    """What Helm says at the end."""
    return texts(values)["templates/NOTES.txt"]


def merged(*layers: Values) -> dict[str, Any]:
    """Values laid over each other as Helm does with several files: maps are merged, the rest replaced."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = result.get(key)
            if isinstance(value, Mapping):
                result[key] = merged(below if isinstance(below, Mapping) else {}, value)
            else:
                result[key] = value
    return result


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    """Those of one kind, in the order of their names."""
    return sorted((m for m in manifests if m["kind"] == kind), key=lambda m: str(m["metadata"]["name"]))


def one(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    """The one of this kind and name."""
    (found,) = (m for m in manifests if m["kind"] == kind and m["metadata"]["name"] == name)
    return found


def topology_job(manifests: list[Manifest]) -> Manifest:
    """The Job that makes the streams, whose name tells its revision and its content."""
    (found,) = (m for m in manifests if m["kind"] == "Job" and "-topology" in m["metadata"]["name"])
    return found


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Every pod or pod template, with what it belongs to: `Deployment/demo-triage`."""
    for manifest in manifests:
        at = f"{manifest['kind']}/{manifest['metadata']['name']}"
        if manifest["kind"] == "Pod":
            yield at, manifest
        elif "template" in manifest.get("spec", {}):
            yield at, manifest["spec"]["template"]


def containers(pod: Manifest) -> list[Manifest]:
    """All containers of a pod, those before it included."""
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
