"""The parts of a dashboard, and how Grafana (11 and newer) wants them written.

A row asks a question that an operator has; its panels answer it. What each panel alone answers is its description.
Panels of a row stand side by side in the order they are given, 24 columns to a line.
"""

from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final, Literal

COLUMNS: Final = 24
SCHEMA: Final = 39
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
ZERO: Final = " or vector(0)"

Json = dict[str, Any]
Kind = Literal["timeseries", "stat", "table", "state-timeline", "text"]


@dataclass(frozen=True, slots=True)
class Query:
    """One question to Prometheus. `is_zero_at_rest`: where it has no answer, 0 is one."""

    expr: str
    legend: str = ""
    has_exemplars: bool = False
    is_zero_at_rest: bool = False

    @property
    def full(self) -> str:
        return self.expr + ZERO if self.is_zero_at_rest else self.expr


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture. Thresholds are (colour, from value on) pairs after the first colour."""

    title: str
    question: str
    queries: tuple[Query, ...] = ()
    unit: str = "short"
    kind: Kind = "timeseries"
    width: int = 8
    height: int = 7
    is_stacked: bool = False
    thresholds: tuple[tuple[str, float], ...] = ()
    text: str = ""
    columns: tuple[str, ...] = ()
    """Of a table: its labels in order; each query adds a column of its own, named by its legend."""


@dataclass(frozen=True, slots=True)
class Row:
    """A question, and the panels that answer it."""

    question: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard."""

    uid: str
    title: str
    about: str
    rows: tuple[Row, ...]
    has_capability: bool = True
    tags: tuple[str, ...] = field(default=("starling",))


# Short ways to write panels.


def graph(
    title: str, question: str, *queries: Query, unit: str = "short", width: int = 8, stacked: bool = False
) -> Panel:
    """Lines over time."""
    return Panel(title, question, queries, unit, width=width, is_stacked=stacked)


def number(
    title: str, question: str, query: Query, *, unit: str = "short", width: int = 4, alarm: float | None = None
) -> Panel:
    """One number as it is now, red from `alarm` on."""
    thresholds = () if alarm is None else (("red", alarm),)
    return Panel(title, question, (query,), unit, "stat", width, 4, thresholds=thresholds)


def table(
    title: str, question: str, *queries: Query, columns: tuple[str, ...], unit: str = "short", width: int = 12
) -> Panel:
    """A line for each set of labels, as things are now."""
    return Panel(title, question, queries, unit, "table", width, 8, columns=columns)


def states(title: str, question: str, query: Query) -> Panel:
    """A band for each breaker: 0 closed, 1 half-open, 2 open."""
    return Panel(title, question, (query,), kind="state-timeline")


def words(title: str, question: str, text: str, *, width: int = 8) -> Panel:
    """What a picture cannot say."""
    return Panel(title, question, kind="text", width=width, text=text)


def quantiles(metric: str, by: str, where: str, *, shares: tuple[float, ...] = (0.5, 0.95)) -> tuple[Query, ...]:
    """Quantiles of a histogram of times, with the trace ids behind its points."""
    return tuple(
        Query(
            f"histogram_quantile({share:g}, sum by ({by}, le) (rate({metric}_bucket{where}[$__rate_interval])))",
            f"{{{{{by}}}}} p{share * 100:g}",
            has_exemplars=metric.endswith("_seconds"),
        )
        for share in shares
    )


# As Grafana wants them.


def dashboard(board: Board) -> Json:
    """The dashboard as JSON-like builtins."""
    ids = count(1)
    panels: list[Json] = []
    y = 0
    for row in board.rows:
        heading = {"id": next(ids), "type": "row", "title": row.question, "collapsed": False, "panels": []}
        panels.append({**heading, "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1}})
        y += 1
        x, highest = 0, 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, y, highest = 0, y + highest, 0
            place = {"x": x, "y": y, "w": panel.width, "h": panel.height}
            panels.append(_panel(panel, next(ids), place))
            x, highest = x + panel.width, max(highest, panel.height)
        y += highest
    return {
        "uid": board.uid,
        "title": board.title,
        "description": board.about,
        "tags": list(board.tags),
        "editable": True,
        "graphTooltip": 1,
        "schemaVersion": SCHEMA,
        "version": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "timepicker": {},
        "annotations": {"list": [_alerts()]},
        "links": [_links()],
        "templating": {"list": _variables(board)},
        "panels": panels,
    }


def _panel(panel: Panel, number: int, place: Json) -> Json:
    shown: Json = {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.question,
        "gridPos": place,
    }
    if panel.kind == "text":
        return {**shown, "options": {"mode": "markdown", "content": panel.text}}
    is_now = panel.kind in ("stat", "table")
    shown |= {
        "datasource": SOURCE,
        "targets": [_target(query, chr(65 + place_), panel.kind, is_now) for place_, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _options(panel),
    }
    if panel.kind == "table":
        shown["transformations"] = _one_table(panel)
    return shown


def _target(query: Query, letter: str, kind: Kind, is_now: bool) -> Json:
    return {
        "refId": letter,
        "datasource": SOURCE,
        "editorMode": "code",
        "expr": query.full,
        "legendFormat": query.legend or "__auto",
        "instant": is_now,
        "range": not is_now,
        "exemplar": query.has_exemplars,
        "format": "table" if kind == "table" else "time_series",
    }


def _defaults(panel: Panel) -> Json:
    steps: list[Json] = [{"color": "green", "value": None}]
    steps += [{"color": colour, "value": value} for colour, value in panel.thresholds]
    defaults: Json = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}}
    match panel.kind:
        case "timeseries":
            defaults |= {
                "min": 0,
                "color": {"mode": "palette-classic"},
                "custom": {
                    "drawStyle": "line",
                    "lineWidth": 1,
                    "fillOpacity": 20 if panel.is_stacked else 5,
                    "showPoints": "never",
                    "spanNulls": False,
                    "stacking": {"mode": "normal" if panel.is_stacked else "none", "group": "A"},
                },
            }
        case "stat":
            defaults["color"] = {"mode": "thresholds"}
        case "state-timeline":
            defaults |= {
                "color": {"mode": "thresholds"},
                "custom": {"fillOpacity": 70, "lineWidth": 0},
                "mappings": [
                    {"type": "value", "options": {"0": {"text": "closed", "color": "green"}}},
                    {"type": "value", "options": {"1": {"text": "half-open", "color": "yellow"}}},
                    {"type": "value", "options": {"2": {"text": "open", "color": "red"}}},
                ],
            }
        case "table":
            defaults["custom"] = {"align": "auto", "filterable": True}
    return defaults


def _options(panel: Panel) -> Json:
    match panel.kind:
        case "stat":
            reduced = {"calcs": ["lastNotNull"], "fields": "", "values": False}
            return {"reduceOptions": reduced, "colorMode": "value", "graphMode": "area", "textMode": "auto"}
        case "table":
            return {"showHeader": True, "cellHeight": "sm", "footer": {"show": False}}
        case "state-timeline":
            return {"showValue": "never", "rowHeight": 0.8, "legend": {"showLegend": False}}
        case _:
            return {
                "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }


def _one_table(panel: Panel) -> list[Json]:
    """Join the queries' tables, in the order of the columns, each value under its query's legend."""
    letters = [chr(65 + place) for place in range(len(panel.queries))]
    values = ["Value"] if len(letters) == 1 else [f"Value #{letter}" for letter in letters]
    names = dict(zip(values, (query.legend for query in panel.queries), strict=True))
    ordered = [*panel.columns, *(value for value, name in names.items() if name)]
    hidden = ["Time", *(value for value, name in names.items() if not name)]
    return [
        {"id": "merge", "options": {}},
        {
            "id": "organize",
            "options": {
                "indexByName": {name: place for place, name in enumerate(ordered)},
                "renameByName": {value: name for value, name in names.items() if name},
                "excludeByName": dict.fromkeys(hidden, True),
            },
        },
    ]


def _variables(board: Board) -> list[Json]:
    source = {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "hide": 0,
        "multi": False,
        "includeAll": False,
        "options": [],
        "current": {},
    }
    if not board.has_capability:
        return [source]
    owner = _labels("owner", "Owner", "label_values(mesh_agent_info, owner)", all_value=".*")
    # All stands for those listed, so that an owner chosen narrows what all means.
    wanted = 'label_values(mesh_agent_info{owner=~"$owner"}, capability)'
    return [source, owner, _labels("capability", "Capability", wanted)]


def _labels(name: str, label: str, query: str, *, all_value: str | None = None) -> Json:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        # When the time range changes: who was there then.
        "refresh": 2,
        "sort": 1,
        "hide": 0,
        "multi": True,
        "includeAll": True,
        "allValue": all_value,
        "options": [],
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _alerts() -> Json:
    return {
        "name": "Alerts",
        "enable": True,
        "iconColor": "red",
        "datasource": SOURCE,
        "expr": 'ALERTS{alertstate="firing", alertname=~"Mesh.+", severity="page"}',
        "titleFormat": "{{alertname}}",
        "textFormat": "{{capability}} {{owner}}",
        "step": "60s",
    }


def _links() -> Json:
    return {
        "title": "Starling",
        "type": "dashboards",
        "tags": ["starling"],
        "asDropdown": False,
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
        "url": "",
    }
