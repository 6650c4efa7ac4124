"""Copy rules and dashboards into the chart: `python -m ops.chart.files`; `--check` says whether they are the same.

Helm lets a chart read its own folder only.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
OUT = ROOT / "helm" / "starling" / "files"
SOURCES = {"rules": (ROOT / "ops/prometheus/rules", "*.yml"), "dashboards": (ROOT / "ops/grafana/dashboards", "*.json")}


def copies() -> dict[Path, str]:
    """What each file of the chart holds, by where it lies."""
    return {
        OUT / folder / source.name: source.read_text()
        for folder, (sources, pattern) in SOURCES.items()
        for source in sorted(sources.glob(pattern))
    }


def stale() -> list[Path]:
    """Files of the chart that are missing, differ, or have no source any more."""
    wanted = copies()
    there = {path for path in OUT.rglob("*") if path.is_file()}
    differing = (path for path, text in wanted.items() if path not in there or path.read_text() != text)
    return sorted({*differing, *(there - wanted.keys())})


def main() -> None:
    if "--check" in sys.argv[1:]:
        names = ", ".join(str(path.relative_to(OUT)) for path in stale())
        sys.exit(f"not current: {names}; run python -m ops.chart.files" if names else 0)
    wanted = copies()
    for path in stale():
        if path in wanted:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[path])
        else:
            path.unlink()
    print(f"{len(wanted)} files in {OUT}")


if __name__ == "__main__":
    main()
