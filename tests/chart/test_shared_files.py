"""Rules and dashboards in the chart are those of the repository, and the tools they are for take them."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from ops.chart import files
from tests.chart.cases import rendered
from tests.chart.rendering import EXTERNAL, ROOT, Manifest, merged, of_kind, one, render


def test_the_charts_copies_are_the_files_of_the_repository() -> None:
    assert files.stale() == [], "run python -m ops.chart.files"


def test_every_dashboard_is_rendered_as_it_is() -> None:
    boards = {
        name: text
        for m in of_kind([*rendered("external, everything")], "ConfigMap")
        if m["metadata"].get("labels", {}).get("grafana_dashboard") == "1"
        for name, text in m["data"].items()
    }

    of_repository = {path.name: path.read_text() for path in (ROOT / "ops/grafana/dashboards").glob("*.json")}
    assert {name: json.loads(text) for name, text in boards.items()} == {
        name: json.loads(text) for name, text in of_repository.items()
    }
    assert {name: text.strip() for name, text in boards.items()} == {
        name: text.strip() for name, text in of_repository.items()
    }


def rule(manifests: list[Manifest]) -> list[Manifest]:
    groups: list[Manifest] = one(manifests, "PrometheusRule", "demo-starling")["spec"]["groups"]
    return groups


def test_every_rule_is_rendered_as_it_is() -> None:
    of_repository = [
        group
        for name in ("thresholds", "recording", "alerts")
        for group in yaml.safe_load((ROOT / f"ops/prometheus/rules/{name}.yml").read_text())["groups"]
    ]

    assert rule([*rendered("external, everything")]) == of_repository


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs Prometheus's promtool")
def test_prometheus_takes_the_rendered_rules(tmp_path: Path) -> None:
    thresholds = [{"record": "mesh:threshold:queue_wait_seconds", "expr": "vector(5)"}]
    own = render(merged(EXTERNAL, {"prometheusRule": {"enabled": True, "thresholds": thresholds}}))
    for groups in (rule([*rendered("external, everything")]), rule(own)):
        (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": groups}))

        subprocess.run(["promtool", "check", "rules", tmp_path / "rules.yml"], check=True, capture_output=True)


def test_own_thresholds_take_the_place_of_the_built_in_ones() -> None:
    thresholds = [{"record": "mesh:threshold:queue_wait_seconds", "expr": "vector(5)"}]
    groups = rule(render(merged(EXTERNAL, {"prometheusRule": {"enabled": True, "thresholds": thresholds}})))

    assert groups[0] == {"name": "mesh-thresholds", "rules": thresholds}
    assert [group["name"] for group in groups].count("mesh-thresholds") == 1


def test_alerts_find_what_the_monitors_scrape() -> None:
    for monitor in of_kind([*rendered("external, everything")], "ServiceMonitor"):
        (endpoint,) = monitor["spec"]["endpoints"]
        made = {r["targetLabel"]: r.get("replacement", r.get("sourceLabels")) for r in endpoint["relabelings"]}

        assert made["job"] == "mesh"
        assert made["instance"] == ["__meta_kubernetes_pod_name"]
