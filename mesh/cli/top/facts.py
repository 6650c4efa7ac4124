"""What `mesh top` knows of the mesh, and when it learned each part of it.

Facts are noted here as they come, with the time, and judged in `mesh.cli.top.model`. Times called `at` or `_at` are
those of a monotonic clock; a beat's own are Unix times at its peer.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from contracts.card import Beat, Described
from contracts.control import BreakerChange, Pause
from contracts.event import Event, EventKind
from mesh.bus.glance import QueueLook, Standing
from mesh.cli.limits import Use
from mesh.inbox import Question

T = TypeVar("T")

EVENTS_MAX: Final = 300
PEERS_MAX: Final = 2_000
RATE_OVER_S: Final = 10.0
FORGET_AFTER_S: Final = 120.0
"""How long a peer that is gone stays on the screen."""


@dataclass(slots=True)
class Look(Generic[T]):
    """What one question came to, and when. `value` is the last answer there was."""

    value: T
    at: float | None = None
    error: str = ""

    def took(self, value: T, at: float) -> None:
        self.value, self.at, self.error = value, at, ""


@dataclass(slots=True)
class Heard:
    """A peer by its last beat."""

    beat: Beat
    at: float
    interval_s: float
    left: bool = False
    counts: deque[tuple[float, Mapping[str, int]]] = field(default_factory=deque)
    """Answers so far by capability, as its beats of the last seconds told them, with the peer's time."""

    def rate(self, capability: str) -> float | None:
        """Answers a second lately; None before the second beat."""
        if len(self.counts) < 2:
            return None
        (began, first), (ended, last) = self.counts[0], self.counts[-1]
        length_s = ended - began
        return (last.get(capability, 0) - first.get(capability, 0)) / length_s if length_s > 0 else None


@dataclass(frozen=True, slots=True)
class Card:
    """What is known of a capability beside its load."""

    owner: str
    label: str
    contract: str
    description: str
    concurrency: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits for people: all of it counted, the oldest of it read."""

    count: int = 0
    oldest_at: float | None = None
    """Unix time."""
    shown: tuple[Question, ...] = ()


@dataclass(frozen=True, slots=True)
class Letters:
    """Dead letters: all of them, and by capability."""

    all: Standing = field(default_factory=lambda: Standing(0))
    by_capability: Mapping[str, Standing] = field(default_factory=dict)


@dataclass(slots=True)
class Facts:
    """Everything there is to show."""

    prefix: str
    server: str
    beat_s: float
    is_connected: bool = True
    connected_at: float = 0.0
    """When the connection came or went last."""
    peers: dict[str, Heard] = field(default_factory=dict)
    cards: dict[str, tuple[Card, ...]] = field(default_factory=dict)
    metrics_urls: dict[str, str] = field(default_factory=dict)
    queues: Look[tuple[QueueLook, ...]] = field(default_factory=lambda: Look(()))
    pauses: Look[dict[str, Pause]] = field(default_factory=lambda: Look({}))
    breakers: Look[dict[str, BreakerChange]] = field(default_factory=lambda: Look({}))
    limits: Look[list[Use]] = field(default_factory=lambda: Look([]))
    inbox: Look[Waiting] = field(default_factory=lambda: Look(Waiting()))
    letters: Look[Letters] = field(default_factory=lambda: Look(Letters()))
    unserved: Look[dict[str, int]] = field(default_factory=lambda: Look({}))
    events: deque[Event] = field(default_factory=lambda: deque(maxlen=EVENTS_MAX))

    def beat_heard(self, beat: Beat, at: float) -> None:
        """Take note of a beat."""
        known = self.peers.get(beat.peer)
        if known is None:
            if len(self.peers) >= PEERS_MAX:
                return
            known = self.peers[beat.peer] = Heard(beat, at, self.beat_s)
        else:
            gap_s = at - known.at
            # Beats that came late, or after a break, say nothing of the interval.
            if gap_s < 3 * known.interval_s:
                known.interval_s = max(0.05, 0.7 * known.interval_s + 0.3 * gap_s)
            known.beat, known.at, known.left = beat, at, False
        known.counts.append((beat.at, {name: load.answered for name, load in beat.load.items()}))
        while len(known.counts) > 2 and beat.at - known.counts[0][0] > RATE_OVER_S:
            known.counts.popleft()

    def event_heard(self, event: Event) -> None:
        """Take note of an event."""
        self.events.append(event)
        if event.kind == EventKind.LEFT and (known := self.peers.get(event.peer)) is not None:
            known.left = True

    def described(self, peers: list[Described]) -> None:
        """Take note of what peers say of themselves. A capability that nobody live offers keeps what was known."""
        found: dict[str, dict[Card, None]] = {}
        for peer in peers:
            self.metrics_urls[peer.beat.peer] = peer.metrics_url
            for agent in peer.cards:
                for one in agent.capabilities:
                    card = Card(
                        agent.owner,
                        f"{agent.name} {agent.version}".strip(),
                        one.contract,
                        one.description,
                        one.concurrency,
                    )
                    found.setdefault(one.name, {})[card] = None
        for name, cards in found.items():
            self.cards[name] = tuple(cards)

    def connection(self, is_connected: bool, at: float) -> None:
        """Take note that the connection came or went."""
        if is_connected != self.is_connected:
            self.is_connected, self.connected_at = is_connected, at

    def forget(self, at: float) -> None:
        """Drop peers that are gone for long, while it is known that they are."""
        if not self.is_connected:
            return
        for name in [name for name, heard in self.peers.items() if at - heard.at > FORGET_AFTER_S]:
            if at - self.connected_at > FORGET_AFTER_S:
                del self.peers[name]
                self.metrics_urls.pop(name, None)
