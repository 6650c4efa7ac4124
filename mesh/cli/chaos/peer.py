"""`python -m mesh.cli.chaos.peer '<briefing as JSON>'`: one peer of a game day."""

import asyncio
import sys

import msgspec

from mesh.cli.loading import load_agents
from mesh.testing.chaos.peer import Briefing, serve


def main() -> None:
    briefing = msgspec.json.decode(sys.argv[1], type=Briefing)
    asyncio.run(serve(briefing, load_agents(briefing.targets)))


if __name__ == "__main__":
    main()
