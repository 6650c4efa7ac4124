"""Alerts: checked by promtool, tried both ways, each with a runbook whose commands exist."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from mesh.cli.main import app
from mesh.telemetry import catalogue
from ops.grafana.boards import BOARDS
from tests.journeys.watched import for_all, hurried, tool

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "ops/prometheus"
RUNBOOKS = ROOT / "ops/runbooks"
OF_PROMETHEUS = {"ALERTS", "up"}
HISTOGRAM_PARTS = ("_bucket", "_sum", "_count")


def rules(*names: str) -> list[dict[str, Any]]:
    files = [PROMETHEUS / f"rules/{name}.yml" for name in names] or sorted(PROMETHEUS.glob("rules/*.yml"))
    return [rule for file in files for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in rules("alerts")}
RECORDED = {rule["record"] for rule in rules("thresholds", "recording")}


def exported() -> set[str]:
    """Every series that there is where peers are scraped."""
    found = set(OF_PROMETHEUS)
    for metric in catalogue.CATALOGUE:
        parts = HISTOGRAM_PARTS if metric.type == "histogram" else ("",)
        found |= {metric.name + part for part in parts}
    return found


def named(expr: str) -> set[str]:
    """The series that an expression names."""
    bare = re.sub(r'"[^"]*"', '""', expr)
    by_pattern = re.findall(r'__name__=~"([^"]+)"', expr)
    names = set(re.findall(r"\b(?:mesh_\w+|mesh:[\w:]+|process_\w+|up|ALERTS)\b(?=[{\[)\s]|$)", bare))
    return names | {name for pattern in by_pattern for name in pattern.split("|")}


def promtool(*arguments: str | Path, cwd: Path = PROMETHEUS) -> str:
    command = [tool("promtool"), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_takes_the_configuration_and_the_rules() -> None:
    promtool("check", "config", "prometheus.yml")
    promtool("check", "rules", *sorted(PROMETHEUS.glob("rules/*.yml")))


def test_what_stands_in_comments_for_kubernetes_is_a_configuration(tmp_path: Path) -> None:
    text = (PROMETHEUS / "prometheus.yml").read_text()
    commented = re.search(r"^    # kubernetes_sd_configs:\n(?:    # .*\n)+(?=    #\n)", text, flags=re.MULTILINE)
    assert commented is not None
    found = yaml.safe_load(re.sub(r"^    # ", "", commented[0], flags=re.MULTILINE))

    # Debian's Prometheus is built without that discovery, so it is asked about the rest.
    config = {"scrape_configs": [{"job_name": "mesh", "relabel_configs": found["relabel_configs"]}]}
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))

    assert found["kubernetes_sd_configs"] == [{"role": "pod"}]
    promtool("check", "config", tmp_path / "prometheus.yml")


@pytest.mark.parametrize("cases", sorted(PROMETHEUS.glob("tests/*.yml")), ids=lambda path: path.stem)
def test_alerts_fire_when_they_should_and_do_not_when_they_should_not(cases: Path) -> None:
    promtool("test", "rules", cases)


def test_each_alert_is_tried_both_ways() -> None:
    fires, silent = set(), set()
    for cases in PROMETHEUS.glob("tests/*.yml"):
        for case in yaml.safe_load(cases.read_text())["tests"]:
            for tried in case.get("alert_rule_test", ()):
                (fires if tried["exp_alerts"] else silent).add(tried["alertname"])

    assert fires == ALERTS.keys()
    assert silent == ALERTS.keys()


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_what_happened_whom_to_call_and_where_to_read_on(name: str) -> None:
    alert = ALERTS[name]
    by_capability = "$labels.capability" in alert["annotations"]["summary"]

    assert alert["labels"]["severity"] in ("page", "ticket")
    assert alert["annotations"].keys() == {"summary", "description", "runbook"}
    assert alert["annotations"]["runbook"] == f"ops/runbooks/{name}.md"
    assert alert["for"]
    if by_capability:
        assert alert["expr"].endswith("* on (capability) group_left (owner) mesh:capability_owner")


def test_rules_ask_for_nothing_that_no_peer_shows() -> None:
    for rule in rules():
        assert named(str(rule["expr"])) <= exported() | RECORDED, rule.get("alert") or rule["record"]


def test_recorded_series_are_used() -> None:
    used = set().union(*(named(str(rule["expr"])) for rule in rules()))
    queries = [query.full for board in BOARDS for row in board.rows for panel in row.panels for query in panel.queries]
    assert used | set().union(*(named(for_all(query)) for query in queries)) >= RECORDED


def test_hurried_rules_are_rules_without_patience(tmp_path: Path) -> None:
    for file in PROMETHEUS.glob("rules/*.yml"):
        (tmp_path / file.name).write_text(hurried(file.read_text()))

    promtool("check", "rules", *tmp_path.glob("*.yml"))
    text = (tmp_path / "alerts.yml").read_text()
    assert "for:" not in text
    assert "[5s]" in text


def test_each_alert_has_its_runbook_and_each_runbook_its_alert() -> None:
    assert {file.stem for file in RUNBOOKS.glob("*.md")} == ALERTS.keys()


@pytest.mark.parametrize("name", ALERTS)
def test_a_runbook_says_what_to_see_what_to_do_and_when_to_do_nothing(name: str) -> None:
    text = (RUNBOOKS / f"{name}.md").read_text()
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)

    assert headings == [name, "See it", "Do", "Ignore it when"]
    assert "\nThreshold: " in text
    assert len(text.splitlines()) < 50


@pytest.mark.parametrize("name", ALERTS)
def test_the_queries_of_a_runbook_name_what_there_is(name: str) -> None:
    text = (RUNBOOKS / f"{name}.md").read_text()
    queries = re.findall(r"```promql\n(.*?)```", text, flags=re.DOTALL)

    assert queries
    assert set(re.findall(r"\bmesh[_:]\w[\w:]*", text)) <= exported() | RECORDED | exported_bases()


def exported_bases() -> set[str]:
    return {metric.name for metric in catalogue.CATALOGUE}


PAGES = [*sorted(RUNBOOKS.glob("*.md")), ROOT / "docs/monitoring.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_commands_that_are_named_exist(page: Path) -> None:
    # Text, opening mark, block, closing mark, text, …
    fences = re.split(r"^```(\w*)\n", page.read_text(), flags=re.MULTILINE)
    lines = [line for block in fences[2::4] for line in block.splitlines()]
    inline = [found for text in fences[0::4] for found in re.findall(r"`(mesh [^`]+)`", text)]

    for line in [*lines, *inline]:
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if words[:1] == ["mesh"]:
            assert not unknown(words[1:]), line


def unknown(words: list[str]) -> list[str]:
    """What of a command line no command or option of `mesh` is."""
    command: Any = typer.main.get_command(app)
    while commands := getattr(command, "commands", None):
        if words[:1] == ["--help"]:
            return []
        if not words or words[0] not in commands:
            return words[:1] or ["nothing"]
        command, words = commands[words[0]], words[1:]
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    return [word for word in words if word.startswith("-") and word not in options | {"--help", "-h"}]


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        (("owner=team-desk", "severity=page"), "team-desk-pager"),
        (("owner=team-errands", "severity=ticket"), "team-errands"),
        (("severity=page",), "platform-pager"),
        (("owner=unheard-of", "severity=ticket"), "platform"),
    ],
)
def test_an_alert_reaches_its_owner(labels: tuple[str, ...], receiver: str) -> None:
    config = PROMETHEUS / "alertmanager.yml"
    command = [tool("amtool"), "config", "routes", "test", f"--config.file={config}", *labels]

    routed = subprocess.run(command, capture_output=True, text=True, check=True)

    assert routed.stdout.strip() == receiver


def test_the_routes_name_alerts_that_there_are() -> None:
    config = (PROMETHEUS / "alertmanager.yml").read_text()

    subprocess.run([tool("amtool"), "check-config", str(PROMETHEUS / "alertmanager.yml")], check=True)
    assert set(re.findall(r"\bMesh[A-Z]\w+", config)) <= ALERTS.keys()


def test_the_page_lists_each_alert_as_it_is() -> None:
    page = (ROOT / "docs/monitoring.md").read_text()
    listed = re.findall(r"^\| \[(\w+)\]\(\.\./ops/runbooks/\1\.md\) \| (\w+) \| .* \| (\w+) \|$", page, re.MULTILINE)

    assert listed == [(name, alert["labels"]["severity"], alert["for"]) for name, alert in ALERTS.items()]
