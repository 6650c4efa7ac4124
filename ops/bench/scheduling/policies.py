"""Who decides which peer gets a task, and by what knowledge."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

INBOX_TASKS_MAX = 512


@dataclass(frozen=True, slots=True)
class Policy:
    """One way to hand out tasks. With inboxes the submitter picks the peer, else the server does."""

    name: str
    knows: str
    is_bidding: bool = False
    has_inboxes: bool = False
    held_per_slot: int | None = 1
    """Tasks that a peer takes in per slot; None: all that come."""

    def concurrency(self, slots: int) -> int:
        """Of the capability; a semaphore of `slots` in its handler lets no more of them run."""
        return INBOX_TASKS_MAX if self.held_per_slot is None else slots * self.held_per_slot


POLICIES = {
    policy.name: policy
    for policy in (
        Policy("bids", "each peer its own load and service time, told to the server as a bid", is_bidding=True),
        Policy("shared", "nothing: a free slot takes the next task of the one queue (MESH_BIDS=false)"),
        Policy("prefetch-4", "nothing: as shared, but a peer holds four tasks a slot", held_per_slot=4),
        Policy("round-robin", "the list of peers", False, True, None),
        Policy("random", "the list of peers", False, True, None),
        Policy("jsq", "queued + running tasks of each peer, by heartbeat once a second", False, True, None),
        Policy("p2c", "what it sent itself and has not seen finished, of two random peers", False, True, None),
    )
}


def pick(
    policy: str, peers: Sequence[int], *, turn: int, told: Mapping[int, int], out: Mapping[int, int], dice: Random
) -> int:
    """The inbox for a task: `told` counts tasks in each peer by its last heartbeat, `out` those sent and not back."""
    match policy:
        case "round-robin":
            return peers[turn % len(peers)]
        case "random":
            return dice.choice(peers)
        case "jsq":
            least = min(told[peer] for peer in peers)
            return dice.choice([peer for peer in peers if told[peer] == least])
        case "p2c":
            return min(dice.sample(peers, 2), key=lambda peer: out[peer])
        case _:
            raise ValueError(f"{policy} has no inboxes")
