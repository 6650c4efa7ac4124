"""What Helm would send: known to the oldest and newest Kubernetes, to KEDA and to Prometheus's operator."""

from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.chart.cases import CASES, EVERYTHING, HPA, INSECURE, KEDA, PROMETHEUS, SEVERAL, TLS_EXTERNAL, rendered
from tests.chart.kubernetes import NEWEST, OLDEST, faults
from tests.chart.rendering import BUNDLED, CHART, EXTERNAL, ROOT, Manifest, Values, merged, render


def all_faults(manifests: list[Manifest]) -> list[str]:
    return [fault for version in (OLDEST, NEWEST) for manifest in manifests for fault in faults(manifest, version)]


@pytest.mark.parametrize("case", CASES)
def test_every_object_is_one_that_old_and_new_clusters_know(case: str) -> None:
    assert all_faults([*rendered(case)]) == []


@pytest.mark.parametrize("case", CASES)
def test_no_two_objects_share_a_name(case: str) -> None:
    names = [(m["kind"], m["metadata"]["name"]) for m in [*rendered(case)]]

    assert len(names) == len(set(names))


@st.composite
def mixtures(draw: st.DrawFn) -> Values:
    nats = draw(st.sampled_from([EXTERNAL, merged(EXTERNAL, TLS_EXTERNAL), BUNDLED, INSECURE]))
    options: list[str] = draw(st.lists(st.sampled_from(sorted(EVERYTHING)), unique=True))
    layers: list[Values] = [nats, {name: EVERYTHING[name] for name in options}]
    if draw(st.booleans()):
        layers.append(SEVERAL)
    if not draw(st.booleans()):
        layers.append({"networkPolicy": {"enabled": False}})
    if draw(st.booleans()):
        monitoring = {"monitoring": {"endpoint": "nats.example:8222"}}
        layers.append({} if nats in (BUNDLED, INSECURE) else {"nats": {"external": monitoring}})
        layers.append(
            {"agents": {"triage": {"autoscaling": draw(st.sampled_from([HPA, KEDA, merged(KEDA, PROMETHEUS)]))}}}
        )
    values = merged(*layers)
    needs_monitoring = any(a.get("autoscaling", {}).get("mode") == "keda" for a in values["agents"].values())
    if needs_monitoring and not values["nats"].get("bundled", {}).get("enabled"):
        values = merged(values, {"nats": {"external": {"monitoring": {"endpoint": "nats.example:8222"}}}})
    return values


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(mixtures())
def test_any_mixture_of_options_gives_objects_that_clusters_know(values: Values) -> None:
    assert all_faults(render(values)) == []


def test_the_schemas_would_notice_a_wrong_object() -> None:
    # A schema that takes everything would pass all tests above.
    (deployment,) = (m for m in render(EXTERNAL) if m["kind"] == "Deployment")
    scaled = next(m for m in render(CASES["external, everything"]) if m["kind"] == "ScaledObject")
    deployment["spec"]["template"]["spec"]["containers"][0]["prots"] = []
    scaled["spec"]["triggers"][0]["metadata"]["lag"] = "1"

    assert len(faults(deployment, OLDEST)) == len(faults(deployment, NEWEST)) == 1
    assert faults(scaled, NEWEST)


def test_helm_finds_nothing_to_complain_of() -> None:
    for case in CASES.values():
        found = helm_python.lint(CHART, dict(case), strict=True, kube_version="1.27.0")

        assert found["errors"] == []
        assert [told["error"] for told in found["messages"]] == ["icon is recommended"]


def test_the_packaged_chart_holds_what_it_renders(tmp_path: Path) -> None:
    archive = helm_python.package(CHART, destination=tmp_path)

    with helm_python.Chart.load(archive) as chart:
        chart.validate_schema(dict(EXTERNAL))
        packed = chart.render(dict(CASES["bundled, everything"]), name="demo", namespace="agents", is_install=True)
    with helm_python.Chart.load(CHART) as chart:
        unpacked = chart.render(dict(CASES["bundled, everything"]), name="demo", namespace="agents", is_install=True)
    assert packed == unpacked
    # A release is kept in a Secret, which holds a megabyte.
    assert Path(archive).stat().st_size < 200_000


def test_the_chart_says_the_version_of_the_package_and_which_clusters_it_is_for() -> None:
    chart: dict[str, Any] = yaml.safe_load((CHART / "Chart.yaml").read_text())
    pyproject = (ROOT / "pyproject.toml").read_text()

    assert f'\nversion = "{chart["appVersion"]}"\n' in pyproject
    assert chart["kubeVersion"] == f">={OLDEST}.0-0"
