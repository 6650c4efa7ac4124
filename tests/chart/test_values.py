"""values.yaml, values.schema.json, docs/chart.md and the settings of the program say the same."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator
from pydantic_settings import BaseSettings

from mesh import settings
from tests.chart.cases import CASES, rendered
from tests.chart.rendering import CHART, ROOT, containers, of_kind, pods

VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    return SCHEMA["definitions"][reference.rpartition("/")[2]] if reference else schema


def described(schema: dict[str, Any], at: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every key that the schema names, with what it says of it."""
    schema = resolved(schema)
    for key, below in schema.get("properties", {}).items():
        path = f"{at}.{key}" if at else key
        yield path, resolved(below)
        yield from described(below, path)
    for inner in ("items", "additionalProperties"):
        if isinstance(schema.get(inner), dict):
            yield from described(schema[inner], f"{at}.*")


def comments() -> dict[str, str]:
    """Of each key of values.yaml what the comment above it says, examples left out."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    above: list[str] = []
    for line in (CHART / "values.yaml").read_text().splitlines():
        if comment := re.fullmatch(r" *# ?(.*)", line):
            above = [] if comment[1].startswith("-- ") else [*above, comment[1]]
        elif key := re.match(r"( *)([A-Za-z]+):", line):
            path = [(indent, name) for indent, name in path if indent < len(key[1])] + [(len(key[1]), key[2])]
            example = next((i for i, text in enumerate(above) if text == "" or text.startswith(" ")), len(above))
            found[".".join(name for _, name in path)] = " ".join(above[:example])
            above = []
        elif not line:
            above = []
    return found


def test_every_key_has_a_comment_that_is_its_description() -> None:
    told = {path: schema.get("description", "") for path, schema in described(SCHEMA)}

    for path, comment in comments().items():
        assert comment, f"values.yaml says nothing of {path}"
        assert told[path] == comment, path


def test_every_key_of_the_schema_is_described_and_has_a_default() -> None:
    defaults = set(comments())
    for path, schema in described(SCHEMA):
        assert schema.get("description"), path
        # Lists, maps with free keys and what belongs to Kubernetes have no defaults of their own.
        if "*" not in path and path != "global" and not path.startswith(("agents.", "resources.")):
            top = next((p for p in defaults if path == p or path.startswith(f"{p}.")), None)
            assert top, f"values.yaml has no {path}"


def test_no_map_of_the_chart_takes_a_key_that_it_does_not_know() -> None:
    for path, schema in [("", SCHEMA), *described(SCHEMA)]:
        if "properties" in schema:
            assert schema["additionalProperties"] is False, path


def test_the_schema_is_one_and_takes_the_defaults() -> None:
    Draft7Validator.check_schema(SCHEMA)

    assert list(Draft7Validator(SCHEMA).iter_errors(VALUES)) == []


def test_every_key_is_one_that_some_template_reads() -> None:
    templates = "".join(path.read_text() for path in (CHART / "templates").rglob("*") if path.is_file())
    # What the chart hands on as a whole is Kubernetes's to read, and agents are laid over what stands at the top.
    read = set(re.findall(r"\.([A-Za-z]+)\b", templates))

    assert {path for path in comments() if path.rpartition(".")[2] not in read} == set()


def test_an_agent_may_say_otherwise_whatever_holds_for_all() -> None:
    own = SCHEMA["definitions"]["agent"]["properties"].keys() - {"targets", "capabilities", "breakers", "nats"}
    helper = re.search(r"pick \.root\.Values (.*?) -}}", (CHART / "templates/_names.tpl").read_text())
    assert helper

    assert own == set(re.findall(r'"(\w+)"', helper[1]))
    assert own <= VALUES.keys()


def known_settings() -> set[str]:
    """Every variable that the program reads."""
    return {
        f"{kind.model_config['env_prefix']}{field}".upper()
        for kind in vars(settings).values()
        if isinstance(kind, type) and issubclass(kind, BaseSettings) and kind is not BaseSettings
        for field in kind.model_fields
    }


@pytest.mark.parametrize("case", CASES)
def test_every_variable_is_one_that_the_program_reads(case: str) -> None:
    manifests = [*rendered(case)]
    in_pods = {v["name"] for _, pod in pods(manifests) for c in containers(pod) for v in c.get("env", [])}
    shared = {key for m in of_kind(manifests, "ConfigMap") for key in m.get("data", {}) if key.isupper()}

    wrong = {name for name in in_pods | shared if name.startswith("MESH_")} - known_settings()
    assert wrong == set()


@pytest.mark.parametrize("case", CASES)
def test_the_program_takes_the_settings_as_they_are(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    manifests = [*rendered(case)]
    config = next(m for m in of_kind(manifests, "ConfigMap") if "MESH_PREFIX" in m.get("data", {}))
    for at, pod in pods(manifests):
        if not at.startswith("Deployment/"):
            continue
        variables = {v["name"]: v["value"] for c in containers(pod) for v in c.get("env", []) if "value" in v}
        with monkeypatch.context() as context:
            for name, value in {**config["data"], **variables}.items():
                context.setenv(name, value)
            taken, grace = settings.Settings(), pod["spec"]["terminationGracePeriodSeconds"]

        assert taken.http_port == 9464
        assert grace >= taken.grace_s + 15


def test_a_setting_is_passed_on_as_it_was_written() -> None:
    # Helm reads numbers as floats: 3600000 would become 3.6e+06, which is no whole number to the program.
    (config,) = (m for m in rendered("external, everything") if "MESH_PREFIX" in m.get("data", {}))

    assert {name: config["data"][name] for name in ("MESH_RESULT_TTL_S", "MESH_BIDS", "MESH_GRACE_S")} == {
        "MESH_RESULT_TTL_S": "3600000",
        "MESH_BIDS": "false",
        "MESH_GRACE_S": "45.5",
    }


def test_the_page_tells_of_every_part() -> None:
    page = (ROOT / "docs" / "chart.md").read_text()

    for key in VALUES:
        assert f"`{key}`" in page, f"docs/chart.md does not tell of {key}"
