"""Write the dashboards: `python -m ops.grafana.build`, or with `--check` say whether they are as written."""

import json
import sys
from pathlib import Path

from ops.grafana.boards import BOARDS
from ops.grafana.panels import dashboard

OUT = Path(__file__).parent / "dashboards"


def files() -> dict[str, str]:
    """What each file holds, by its name."""
    return {f"{board.uid}.json": json.dumps(dashboard(board), indent=1, ensure_ascii=False) + "\n" for board in BOARDS}


def main() -> None:
    wanted = files()
    if "--check" in sys.argv[1:]:
        stale = [name for name, text in wanted.items() if not (OUT / name).exists() or (OUT / name).read_text() != text]
        sys.exit(f"not current: {', '.join(stale)}; run python -m ops.grafana.build" if stale else 0)
    OUT.mkdir(exist_ok=True)
    for name, text in wanted.items():
        (OUT / name).write_text(text)
    print(f"{len(wanted)} dashboards in {OUT}")


if __name__ == "__main__":
    main()
