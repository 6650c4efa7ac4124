"""Dashboards: as their definitions say, well laid out, and asking for what there is."""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from ops.grafana import build
from ops.grafana.boards import BOARDS, QUESTIONS
from ops.grafana.panels import COLUMNS, Board, Panel
from tests.unit.test_alerts import RECORDED, exported, named

GRAFANA = Path(build.__file__).parent
PANELS = [(board, row, panel) for board in BOARDS for row in board.rows for panel in row.panels]
UNITS = {"short", "s", "percentunit", "bytes", "currencyUSD", "suffix: /s", "suffix: tokens/s"}
boards = pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)


def written(board: Board) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((build.OUT / f"{board.uid}.json").read_text())
    return document


def test_the_files_are_as_the_definitions_say() -> None:
    assert {file.name: file.read_text() for file in build.OUT.iterdir()} == build.files()


@boards
def test_panels_have_ids_of_their_own_and_do_not_overlap(board: Board) -> None:
    panels = written(board)["panels"]
    places = [panel["gridPos"] for panel in panels]

    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= COLUMNS for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below


@boards
def test_each_panel_asks_the_chosen_prometheus_and_says_which_question_it_answers(board: Board) -> None:
    for panel in written(board)["panels"]:
        if panel["type"] == "row":
            assert panel["title"]
            continue
        assert panel["description"].count("?") >= 1 or panel["description"].endswith("."), panel["title"]
        for target in panel.get("targets", ()):
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        letters = [target["refId"] for target in panel.get("targets", ())]
        assert len(set(letters)) == len(letters)


@pytest.mark.parametrize("panel", [panel for _, _, panel in PANELS], ids=lambda panel: panel.title)
def test_a_panel_asks_for_what_there_is_in_a_known_unit(panel: Panel) -> None:
    assert panel.unit in UNITS
    assert "?" in panel.question
    assert panel.kind == "text" or panel.queries
    for query in panel.queries:
        assert named(query.full) <= exported() | RECORDED
        # A window of a fixed length shows gaps, or nothing, at another scrape interval.
        assert re.search(r"rate\([^()]*\[(?!\$__rate_interval)", query.full) is None
        assert ("_seconds_bucket" in query.full) == query.has_exemplars


@boards
def test_variables_that_queries_use_are_declared(board: Board) -> None:
    document = written(board)
    declared = {variable["name"] for variable in document["templating"]["list"]} | {
        "__rate_interval",
        "__range",
        "__all",
    }

    used = set(re.findall(r"\$\{?(\w+)", json.dumps([document["panels"], document["templating"]])))
    assert used <= declared


def test_each_of_an_operators_questions_has_a_row() -> None:
    rows = [row.question for board in BOARDS for row in board.rows]

    assert set(QUESTIONS) <= set(rows)
    assert len(set(rows)) == len(rows)
    assert all(row.endswith("?") for row in rows)


def test_dashboards_are_told_apart() -> None:
    assert len({board.uid for board in BOARDS}) == len({board.title for board in BOARDS}) == len(BOARDS)


def test_grafana_is_told_where_prometheus_and_the_dashboards_are() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/starling.yml").read_text())["providers"]

    assert source["type"] == "prometheus"
    assert provider["options"]["path"]
