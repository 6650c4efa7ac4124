"""Whether a cluster would take a manifest, as far as the published schemas of its objects say."""

import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jsonschema import Draft7Validator, Draft202012Validator
from jsonschema.protocols import Validator
from referencing import Registry, Resource

from tests.chart.rendering import Manifest

OLDEST, NEWEST = "1.27", "1.37"
"""Of what Chart.yaml allows, and of what kubernetes-validate knows."""
OWN = Path(__file__).parent / "schemas"


def faults(manifest: Manifest, version: str) -> list[str]:
    """What is wrong with a manifest for this version of Kubernetes; unknown fields are."""
    at = f"{manifest['kind']}/{manifest['metadata']['name']}"
    return [
        f"{at}: {'.'.join(map(str, error.absolute_path))}: {error.message[:300]}"
        for error in _validator(manifest["kind"], manifest["apiVersion"], version).iter_errors(manifest)
    ]


@cache
def _validator(kind: str, api_version: str, version: str) -> Validator:
    own = OWN / f"{kind.lower()}.json"
    if own.exists():
        return Draft7Validator(json.loads(own.read_text()))
    group, slash, of_group = api_version.partition("/")
    name = f"{kind.lower()}-{group.partition('.')[0]}{'-' if slash else ''}{of_group}.json"
    resource = Resource.from_contents(_read(version, name))
    return Draft202012Validator(resource.contents, registry=resource @ _definitions(version))


@cache
def _definitions(version: str) -> Registry[Any]:
    registry: Registry[Any] = Resource.from_contents(_read(version, "_definitions.json")) @ Registry()
    return registry


def _read(version: str, name: str) -> Any:
    folder = files("kubernetes_validate").joinpath("kubernetes-json-schema").joinpath(f"v{version}.0-local-strict")
    return json.loads(folder.joinpath(name).read_text())
