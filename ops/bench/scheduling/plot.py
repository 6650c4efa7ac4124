"""The plot: p99 over load, one panel a fleet, as SVG."""

import math
from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from ops.bench.scheduling.fleets import FLEETS
from ops.bench.scheduling.report import CENTRAL, Report, ordered

COLUMNS = 3
PANEL_WIDTH, PANEL_HEIGHT = 330, 270
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 34, 40
LEGEND_HEIGHT = 46
LOADS = (0.3, 0.5, 0.75, 0.85, 0.95)
X_FROM, X_TO = 0.26, 0.99
RANGE_MAX = 200.0
"""The top of a panel is at most this many times its bottom; what is worse is drawn there as an arrow."""

FONT = 'font-family="system-ui, sans-serif" font-size="12" fill="#333"'
COLOURS = {
    "bids": "#c2185b",
    "shared": "#1565c0",
    "prefetch-4": "#ef6c00",
    "round-robin": "#6d4c41",
    "random": "#9e9d24",
    "jsq": "#00897b",
    "p2c": "#7e57c2",
    CENTRAL: "#212121",
}


def drawn(report: Report) -> str:
    """The whole picture."""
    fleets = [name for name in FLEETS if any(fleet == name for fleet, _ in report.cells)]
    rows = math.ceil(len(fleets) / COLUMNS)
    width, height = COLUMNS * PANEL_WIDTH, rows * PANEL_HEIGHT + LEGEND_HEIGHT
    size = f'width="{width}" height="{height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {size} {FONT}>',
        f'<rect {size} fill="#fff"/>',
        *_legend(report),
    ]
    for number, fleet in enumerate(fleets):
        row, column = divmod(number, COLUMNS)
        lines.append(f'<g transform="translate({column * PANEL_WIDTH} {LEGEND_HEIGHT + row * PANEL_HEIGHT})">')
        lines += _panel(report, fleet)
        lines.append("</g>")
    return "\n".join([*lines, "</svg>", ""])


def _legend(report: Report) -> Iterator[str]:
    shown = ordered({policy: None for cell in report.cells.values() for policy in cell})
    x = LEFT
    for policy in shown:
        yield f'<line x1="{x}" y1="24" x2="{x + 24}" y2="24" {_stroke(policy)}/>'
        yield f'<text x="{x + 30}" y="28">{escape(policy)}</text>'
        x += 50 + 7 * len(policy)


def _panel(report: Report, fleet: str) -> Iterator[str]:
    points = {
        policy: [
            (load, report.mean_ms(fleet, load, policy))
            for name, load in sorted(report.cells)
            if name == fleet and policy in report.cells[name, load]
        ]
        for policy in ordered(
            {policy: None for (name, _), cell in report.cells.items() if name == fleet for policy in cell}
        )
    }
    heights = [p99_ms for line in points.values() for _, p99_ms in line]
    low = 0.85 * min(heights)
    high = min(1.2 * max(heights), RANGE_MAX * low)
    yield f'<text x="{LEFT}" y="20" font-weight="600">{escape(FLEETS[fleet].title)}</text>'
    yield from _axes(low, high)
    for policy, line in reversed(points.items()):
        yield from _line(policy, line, low, high)


def _axes(low: float, high: float) -> Iterator[str]:
    bottom, right = PANEL_HEIGHT - BOTTOM, PANEL_WIDTH - RIGHT
    for p99_ms in _ticks(low, high):
        y = _y(p99_ms, low, high)
        yield f'<line x1="{LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#e4e4e4"/>'
        yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" font-size="11">{_label(p99_ms)}</text>'
    for load in LOADS:
        x = _x(load)
        yield f'<line x1="{x:.1f}" y1="{bottom}" x2="{x:.1f}" y2="{bottom + 4}" stroke="#888"/>'
        yield f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle" font-size="11">{load:g}</text>'
    yield f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="#888"/>'
    yield f'<text x="{(LEFT + right) / 2}" y="{bottom + 33}" text-anchor="middle" font-size="11">load</text>'
    middle = (TOP + bottom) / 2
    yield f'<text transform="translate(11 {middle}) rotate(-90)" text-anchor="middle" font-size="11">p99</text>'


def _line(policy: str, points: Sequence[tuple[float, float]], low: float, high: float) -> Iterator[str]:
    places = [(_x(load), _y(p99_ms, low, high)) for load, p99_ms in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    yield f'<polyline points="{path}" fill="none" {_stroke(policy)}/>'
    for (x, y), (_, p99_ms) in zip(places, points, strict=True):
        if p99_ms > high:
            yield f'<path d="M{x - 4:.1f} {y + 5:.1f}l4 -8 4 8z" fill="{COLOURS[policy]}"/>'
        elif policy != CENTRAL:
            radius = 3 if policy == "bids" else 2
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{COLOURS[policy]}"/>'


def _stroke(policy: str) -> str:
    width = 2.8 if policy == "bids" else 1.5
    dashes = ' stroke-dasharray="5 4"' if policy == CENTRAL else ""
    return f'stroke="{COLOURS[policy]}" stroke-width="{width}" stroke-linejoin="round"{dashes}'


def _x(load: float) -> float:
    return LEFT + (load - X_FROM) / (X_TO - X_FROM) * (PANEL_WIDTH - LEFT - RIGHT)


def _y(p99_ms: float, low: float, high: float) -> float:
    share = math.log(min(p99_ms, high) / low) / math.log(high / low)
    return PANEL_HEIGHT - BOTTOM - share * (PANEL_HEIGHT - BOTTOM - TOP)


def _ticks(low: float, high: float) -> list[float]:
    tens = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [step * 10.0**ten for ten in tens for step in (1, 2, 5) if low <= step * 10.0**ten <= high]


def _label(p99_ms: float) -> str:
    return f"{p99_ms / 1e3:g} s" if p99_ms >= 1e3 else f"{p99_ms:g} ms"
