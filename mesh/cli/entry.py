"""The entry point: SIGTERM ends the process from here on, before anything else is loaded.

To process 1 of a container the kernel delivers no signal that has no handler. Without one, a container that is told
to stop while it starts would live until it is killed.
"""

import signal
import sys
from types import FrameType
from typing import NoReturn


def main() -> None:
    """Run the command line. What has to end in good order on SIGTERM sets a handler of its own."""
    signal.signal(signal.SIGTERM, _end)
    from mesh.cli.main import run

    run()


def _end(signum: int, _: FrameType | None) -> NoReturn:
    sys.exit(128 + signum)
