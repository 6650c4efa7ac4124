"""The models that a peer of the desk uses, loaded once."""

import hashlib
import logging
import time
from functools import cache
from pathlib import Path
from typing import Final

from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

from agents.support_desk.ladder import Ladder
from agents.support_desk.settings import MODELS_FILE, models_file
from agents.support_desk.tickets import read_tickets

log = logging.getLogger("support_desk")

SHIPPED_TICKETS: Final = Path(__file__).with_name("tickets.csv")


@cache
def models() -> Ladder:
    """The ladder in the file that `SUPPORT_DESK_MODELS` names; without one, trained on the shipped tickets.

    The latter takes some seconds on each start of each peer. It is not kept in a file that peers would share: that
    would have to be one that nobody else can write, as reading models runs what is in them.

    Raises:
        LadderFileError: the file was not written by `Ladder.save` of this version.
        OSError: it cannot be read.
    """
    # Several predictions run at once, on threads of ours: threads below each of them would fight over the cores.
    threadpool_limits(1)
    if (trained := models_file()) is not None:
        return Ladder.load(trained)
    began = time.monotonic()
    ladder = Ladder.train(read_tickets(SHIPPED_TICKETS, labels_required=True))
    log.warning(
        "%s is not set: trained on the shipped example tickets in %.1f s", MODELS_FILE, time.monotonic() - began
    )
    return ladder


@cache
def models_digest() -> str:
    """What tells these models from others: the digest of their file, or of the tickets they are trained on here."""
    return hashlib.sha256((models_file() or SHIPPED_TICKETS).read_bytes()).hexdigest()[:32]
