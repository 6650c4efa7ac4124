"""Which part of a causal tree is shown, where all of it would be too much: a decision over its size."""

from collections import Counter, deque
from dataclasses import dataclass, field

from mesh.lineage import Leaf, Node, State, Tree

ALIKE_SHOWN = 10
"""Siblings of one capability and state that are shown of a tree that is too large."""
DEPTH_SHOWN = 100


@dataclass(slots=True)
class View:
    """The part of a branch that is shown. `left_out` counts what is not, by capability and state."""

    node: Node
    entries: "list[View | Leaf]" = field(default_factory=list)
    left_out: Counter[tuple[str, str]] = field(default_factory=Counter)
    hidden: int = 0
    """Tasks and leaves of this branch that are not shown, at any depth below what is left out here."""


def view(tree: Tree, *, limit: int) -> View:
    """What is shown of a tree where `limit` tasks and leaves are: everything, if it fits.

    Else of siblings that are alike only the first few, those that are not done before those that are, and what is
    near the root before what is far from it.
    """
    whole = View(tree.root)
    fits = tree.root.size <= limit
    room = max(1, limit) - 1
    standing = deque([(whole, 0)])
    while standing:
        branch, depth = standing.popleft()
        timeline = branch.node.timeline()
        alike: Counter[tuple[str, str]] = Counter()
        chosen: set[int] = set()
        for index, entry in sorted(enumerate(timeline), key=lambda item: _is_done(item[1])):
            key = _kind(entry)
            alike[key] += 1
            is_one_of_many = not fits and alike[key] > ALIKE_SHOWN
            is_too_deep = isinstance(entry, Node) and depth >= DEPTH_SHOWN
            if room <= 0 or is_one_of_many or is_too_deep:
                branch.left_out[key] += 1
                branch.hidden += entry.size if isinstance(entry, Node) else 1
            else:
                room -= 1
                chosen.add(index)
        branch.entries = [
            View(entry) if isinstance(entry, Node) else entry for index, entry in enumerate(timeline) if index in chosen
        ]
        standing += [(below, depth + 1) for below in branch.entries if isinstance(below, View)]
    return whole


def hidden(whole: View) -> int:
    """How many tasks and leaves of a tree a view leaves out."""
    count, standing = 0, [whole]
    while standing:
        branch = standing.pop()
        count += branch.hidden
        standing += [entry for entry in branch.entries if isinstance(entry, View)]
    return count


def _kind(entry: Node | Leaf) -> tuple[str, str]:
    return (entry.task.capability, str(entry.state)) if isinstance(entry, Node) else (str(entry.mark), "")


def _is_done(entry: Node | Leaf) -> bool:
    return isinstance(entry, Leaf) or entry.state is State.DONE
