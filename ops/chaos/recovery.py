"""How long a mesh takes to recover from each fault: several game days, and one table of all their strikes.

    python -m ops.chaos.recovery --minutes 5 --seeds 1,2,3 --nodes 1 [--nodes 3] [--peers 4] [--json]

Each day is `mesh chaos game-day` as anybody can run it, one after the other, with shipped settings unless MESH_*
variables say otherwise. Ends with 1 if any of them broke a promise; its seed repeats it.
"""

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from mesh.testing.recovery import middle

HEAD = "| fault | strikes | throughput back p50 | max | in flight answered p50 | max | never |"
RULE = "|---|---|---|---|---|---|---|"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seeds", default="1,2,3", help="one game day for each")
    parser.add_argument("--nodes", type=int, action="append", choices=(1, 3), help="may be given twice")
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    wanted = parser.parse_args()
    told: dict[int, list[dict[str, Any]]] = {}
    for nodes in wanted.nodes or [1]:
        told[nodes] = [game_day(seed, nodes, wanted.minutes, wanted.peers) for seed in wanted.seeds.split(",")]
    if wanted.json:
        print(json.dumps(told))
    else:
        for nodes, days in told.items():
            print("\n".join(table(nodes, days)), end="\n\n")
    return 0 if all(day["verdict"] == "every promise held" for days in told.values() for day in days) else 1


def game_day(seed: str, nodes: int, minutes: float, peers: int) -> dict[str, Any]:
    """The report of one day."""
    options = ("--seed", seed, "--nodes", str(nodes), "--minutes", str(minutes), "--peers", str(peers), "--json")
    print(f"seed {seed} on {nodes} node(s)", file=sys.stderr, flush=True)
    day = subprocess.run(
        [sys.executable, "-m", "mesh", "chaos", "game-day", *options], stdout=subprocess.PIPE, check=False, text=True
    )
    report: dict[str, Any] = json.loads(day.stdout)
    print(f"  {report['tasks']:,} tasks: {report['verdict']}", file=sys.stderr, flush=True)
    return report


def table(nodes: int, days: Sequence[dict[str, Any]]) -> list[str]:
    """All strikes of all days, by fault, as lines of Markdown."""
    by_fault: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for day in days:
        for event in day["timeline"]:
            by_fault[event["fault"]].append(event)
    tasks, lost, twice = (sum(day[field] for day in days) for field in ("tasks", "lost", "duplicated"))
    head = f"{nodes} node(s), seeds {', '.join(str(day['seed']) for day in days)}: {tasks:,} tasks, {lost} lost,"
    lines = [f"{head} {twice} duplicated, {sum(map(len, by_fault.values()))} faults", "", HEAD, RULE]
    for fault, events in sorted(by_fault.items()):
        throughput = seconds(event["throughput_s"] for event in events)
        in_flight = seconds(event["in_flight_s"] for event in events)
        never = sum(None in (event["throughput_s"], event["in_flight_s"]) for event in events)
        lines.append(f"| {fault} | {len(events)} | {throughput} | {in_flight} | {never or ''} |")
    return lines


def seconds(found: Iterable[float | None]) -> str:
    """The median and the longest of some times, as two cells."""
    times = [time for time in found if time is not None]
    if not times:
        return "- | -"
    return f"{middle(times):.1f} s | {max(times):.1f} s"


if __name__ == "__main__":
    sys.exit(main())
