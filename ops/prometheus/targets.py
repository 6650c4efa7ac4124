"""Tell Prometheus where the peers of a mesh are: a file for its `file_sd_configs`.

    python -m ops.prometheus.targets --every-s 10

asks the mesh of this folder, or of MESH_NATS_URL, who is there, as `mesh agents` does, and writes
`ops/prometheus/targets/peers.json`. Each peer's `instance` is its id. A peer that does not answer any more is left
out, so on Kubernetes use its service discovery instead, which knows who ought to answer.
"""

import argparse
import asyncio
import json
import sys
from pathlib import Path
from urllib.parse import urlsplit

from contracts.card import Described
from contracts.errors import MeshError
from mesh.cli import console
from mesh.cli.fleet import describe

OUT = Path(__file__).parent / "targets" / "peers.json"
ASK_WITHIN_S = 1.0


def entries(peers: list[Described]) -> list[dict[str, object]]:
    """What `file_sd_configs` reads: one entry for each peer that serves metrics."""
    return [
        {
            "targets": [urlsplit(peer.metrics_url).netloc],
            "labels": {"instance": peer.beat.peer, "host": peer.beat.host},
        }
        for peer in peers
        if peer.metrics_url
    ]


def write(peers: list[Described], out: Path) -> None:
    """Replace the file in one step: Prometheus reads it whenever it likes."""
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_suffix(".draft")
    draft.write_text(json.dumps(entries(peers), indent=1) + "\n")
    draft.replace(out)


async def keep(out: Path, *, every_s: float | None) -> None:
    """Write the file once, or again and again; while nobody answers it stays as it is."""
    while True:
        try:
            async with console.connected() as bus:
                peers = await describe(bus, within_s=ASK_WITHIN_S)
        except MeshError as error:
            if every_s is None:
                raise
            print(f"{error}; trying on", file=sys.stderr)
        else:
            write(peers, out)
            if every_s is None:
                print(f"{len(peers)} peers in {out}")
        if every_s is None:
            return
        await asyncio.sleep(every_s)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ops.prometheus.targets", description=str(__doc__).split("\n")[0])
    parser.add_argument("--out", type=Path, default=OUT, help="the file to write")
    parser.add_argument("--every-s", type=float, help="write it again and again; without it, once")
    options = parser.parse_args()
    try:
        asyncio.run(keep(options.out, every_s=options.every_s))
    except MeshError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
