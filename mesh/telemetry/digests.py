"""The digests of models and prompts that are in use, so that a change of either shows."""

import time
from collections import OrderedDict
from typing import Final, Literal

from mesh.telemetry.catalogue import DIGEST_LENGTH_MAX, DIGESTS_KEPT_S, DIGESTS_MAX
from mesh.telemetry.cells import legible

What = Literal["model", "prompt"]
WHATS: Final[tuple[What, ...]] = ("model", "prompt")


class Digests:
    """What the answers and decisions of one capability carried: a few of each kind, the last used ones."""

    def __init__(self) -> None:
        self._used: dict[What, OrderedDict[str, float]] = {what: OrderedDict() for what in WHATS}

    def use(self, *, model: str = "", prompt: str = "") -> None:
        """Take note that something was decided with a model and a prompt; an empty digest says nothing."""
        if model:
            self._note("model", model)
        if prompt:
            self._note("prompt", prompt)

    def in_use(self) -> list[tuple[What, str]]:
        """Those that were used within the last hour, the last one first."""
        since = time.monotonic() - DIGESTS_KEPT_S
        return [
            (what, digest)
            for what, used in self._used.items()
            for digest, at in reversed(list(used.copy().items()))
            if at >= since
        ]

    def _note(self, what: What, digest: str) -> None:
        used, digest = self._used[what], legible(digest, DIGEST_LENGTH_MAX)
        used[digest] = time.monotonic()
        used.move_to_end(digest)
        if len(used) > DIGESTS_MAX:
            used.popitem(last=False)
