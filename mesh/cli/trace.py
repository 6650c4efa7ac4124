"""`mesh trace`, and `mesh status --tree`: a task and everything below it."""

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from typing_extensions import TypeIs

from contracts.subjects import Identity
from mesh.cli import console
from mesh.cli.console import AsJson, ahead, clock, length, one_line
from mesh.cli.events import decision_words

if TYPE_CHECKING:
    from rich.tree import Tree as RichTree

    from contracts.outcome import Spent
    from mesh.bus.connection import Bus
    from mesh.cli.view import View
    from mesh.lineage import Leaf, Node, Tree

SHOWN = 200

Limit = Annotated[int, typer.Option(min=1, help="How many tasks and steps to show at most.")]
Segments = list[tuple[str, str]]
"""A line as pieces of text, each with its style."""

_STYLES = {
    "done": "green",
    "failed": "bold red",
    "cancelled": "magenta",
    "expired": "magenta",
    "running": "cyan",
    "waiting": "blue",
    "parked": "blue",
    "woken": "blue",
    "retrying": "yellow",
    "queued": "yellow",
    "unserved": "bold red",
}
_WORDS = {
    "unserved": "queued",
    "retrying": "waits for a retry",
    "not kept": "not kept: its records have expired, or it is a client's session",
}
_EDGES = {"send": "sent ", "handoff": "handed over ", "verification": "verifier ", "redrive": "redriven "}


def trace(
    capability: Annotated[str, typer.Argument(metavar="TASK", help="CAPABILITY/ID, or an id alone.")],
    task_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="The id, where TASK is a capability.")] = None,
    limit: Limit = SHOWN,
    as_json: AsJson = False,
) -> None:
    """Print a task and everything it caused: states, times, peers, attempts, confidences, costs and failures."""
    if task_id is None and "/" not in capability:
        console.run(_print_bare(capability, limit, as_json=as_json))
        return
    task = console.identity(capability, task_id)
    console.run(print_tree(task, limit=limit, as_json=as_json))


async def print_tree(task: Identity, *, limit: int, as_json: bool) -> None:
    """Print the tree of a task.

    Raises:
        Failed: nothing of it is kept.
    """
    async with console.connected() as bus:
        await console.check_made(bus)
        tree = await _read(bus, task)
    _print(tree, limit, as_json=as_json)


async def _print_bare(task_id: str, limit: int, *, as_json: bool) -> None:
    from contracts.errors import ContractError
    from contracts.subjects import is_legal_id
    from mesh.lineage import NOBODY
    from mesh.whereabouts import capabilities_of

    if not is_legal_id(task_id):
        raise ContractError(f"no task can have the id {task_id!r}")
    async with console.connected() as bus:
        await console.check_made(bus)
        found = await capabilities_of(bus, task_id)
        if len(found) > 1:
            choices = ", ".join(f"{capability}/{task_id}" for capability in found)
            raise ContractError(f"{task_id} stands for several tasks: {choices}")
        # A client's session has no record of its own; what it submitted hangs below it.
        tree = await _read(bus, Identity(found[0] if found else NOBODY, task_id))
    _print(tree, limit, as_json=as_json)


async def _read(bus: "Bus", task: Identity) -> "Tree":
    from mesh.lineage import NOBODY
    from mesh.whereabouts import trace as read

    tree = await read(bus, task)
    if tree is None:
        told = task.id if task.capability == NOBODY else str(task)
        raise console.Failed(f"no task {told} is kept: it was never submitted, or its result has expired")
    return tree


def _print(tree: "Tree", limit: int, *, as_json: bool) -> None:
    from mesh.cli.view import hidden, view

    shown = view(tree, limit=limit)
    left_out, tasks = hidden(shown), sum(1 for _ in tree)
    if as_json:
        total = msgspec.to_builtins(tree.root.total)
        more = {"tasks": tasks, "spent": total, "left_out": left_out, "is_partial": tree.is_partial}
        console.print_json({"root": document(shown), **more})
        return
    now = time.time()
    if sys.stdout.isatty():
        console.out().print(_rich(shown, now))
    else:
        print("\n".join(lines(shown, now)))
    print(f"\n{_count(tasks, 'task')}{_used(tree.root.total, ', ')}")
    if left_out:
        console.note(f"{left_out:,} tasks and steps are left out; --limit {tree.root.size} shows all")
    if tree.is_partial:
        console.note("there are more records than were read: the tree has the oldest")


def lines(shown: "View", now: float) -> list[str]:
    """A tree as indented lines of plain text."""
    found: list[str] = []
    standing: list[tuple[int, View | Leaf | str]] = [(0, shown)]
    while standing:
        depth, entry = standing.pop()
        indent = "  " * depth
        if isinstance(entry, str):
            found.append(f"{indent}{entry}")
            continue
        found.append(indent + "".join(text for text, _ in _segments(entry, now, is_root=depth == 0)))
        if _is_view(entry):
            below = [*entry.entries, *_left_out(entry)]
            standing += [(depth + 1, one) for one in reversed(below)]
    return found


def _rich(shown: "View", now: float) -> "RichTree":
    from rich.text import Text
    from rich.tree import Tree as RichTree

    def text(entry: "View | Leaf", *, is_root: bool = False) -> Text:
        return Text.assemble(*_segments(entry, now, is_root=is_root))

    whole = RichTree(text(shown, is_root=True), guide_style="dim")
    standing = [(shown, whole)]
    while standing:
        branch, drawn = standing.pop()
        for entry in branch.entries:
            below = drawn.add(text(entry))
            if _is_view(entry):
                standing.append((entry, below))
        for told in _left_out(branch):
            drawn.add(Text(told, style="dim"))
    return whole


def _is_view(entry: "View | Leaf") -> TypeIs["View"]:
    from mesh.cli.view import View

    return isinstance(entry, View)


def _segments(entry: "View | Leaf", now: float, *, is_root: bool) -> Segments:
    return headline(entry.node, now, is_root=is_root) if _is_view(entry) else leaf_line(entry, now)


def headline(node: "Node", now: float, *, is_root: bool = False) -> Segments:
    """One task in one line."""
    state = str(node.state)
    facts = [fact for fact in _facts(node, now) if fact]
    found: Segments = [(_EDGES.get(node.edge, ""), "dim")]
    found += [(str(node.task) if is_root else node.task.capability, "bold")]
    if not is_root and node.edge != "handoff":
        found.append((f" {_token(node.task)}", "dim"))
    found += [("  ", ""), (_WORDS.get(state, state), _STYLES.get(state, ""))]
    if facts:
        found.append((f" {', '.join(facts)}", ""))
    if node.failure is not None:
        found.append((f": {one_line(node.failure.message)}", "red"))
    if node.submitted_at:
        found.append((f"  {clock(node.submitted_at)}", "dim"))
    return found


def _facts(node: "Node", now: float) -> list[str]:
    from mesh.lineage import State

    outcome = node.outcome
    found: list[str] = []
    if outcome is not None:
        took_s = outcome.queue_s + outcome.run_s
        found.append(f"in {length(took_s if node.parks else outcome.run_s)}")
        if not node.parks and outcome.queue_s >= 0.1:
            found.append(f"queued {length(outcome.queue_s)}")
    elif node.state is State.RETRYING and node.until:
        found.append(f"until {ahead(node.until, now)}")
    elif node.since and node.state is not State.TO_BE_SENT:
        found.append(f"for {length(now - node.since)}")
    if node.state is State.UNSERVED:
        found.append("and no peer serves it")
    elif node.state in (State.WAITING, State.PARKED):
        found.append(_waits(node, now))
    if node.is_cancelled:
        found.append("cancelled, and answered so by the peer that touches it next")
    found.append(f"on {node.peer}" if node.peer else "")
    if node.attempt > 1:
        found.append(f"attempt {node.attempt}" + (f", parked {_count(node.parks, 'time')}" if node.parks else ""))
    if outcome is not None:
        if outcome.confidence is not None:
            found.append(f"confidence {outcome.confidence:.2g}")
        decided = outcome.decided_by
        if decided is not None:
            found.append(f"by {decided.model}" if decided.model else "")
            found.append(f"decided by {decided.agent}" if decided.agent.startswith("human") else "")
    found.append(_used(node.spent, ""))
    if outcome is not None and outcome.value_at is not None:
        found.append(f"value of {outcome.value_at.bytes:,} bytes")
    if outcome is not None and outcome.reason:
        found.append(f'"{one_line(outcome.reason, 80)}"')
    return found


def _waits(node: "Node", now: float) -> str:
    from mesh.lineage import Leaf

    waits = node.waits()
    called = [wait for wait in waits if not isinstance(wait, Leaf)]
    dues = [wait.until for wait in waits if isinstance(wait, Leaf) and wait.until]
    told = [f"for {_count(len(called), 'child', 'children')}"] if called else []
    if dues:
        told.append(f"until {ahead(min(dues), now)}")
    return " or ".join(told) or "for a signal or a time"


def leaf_line(leaf: "Leaf", now: float) -> Segments:
    """One thing that a task did or waits for, in one line."""
    found: Segments = [(_leaf_words(leaf, now), "")]
    facts = []
    if leaf.run_s is not None:
        facts.append(f"in {length(leaf.run_s)}")
    if leaf.attempt > 1 and leaf.run_s is not None:
        facts.append(f"attempt {leaf.attempt}")
    facts.append(_used(leaf.spent, ""))
    if told := ", ".join(filter(None, facts)):
        found.append((f"  {told}", ""))
    if leaf.failure is not None:
        found.append((f": {one_line(leaf.failure.message)}", "red"))
    found.append((f"  {clock(leaf.at)}", "dim"))
    return found


def _leaf_words(leaf: "Leaf", now: float) -> str:
    from mesh.lineage import Mark

    sure = f" (confidence {leaf.confidence:.2g})" if leaf.confidence is not None else ""
    why = f": {one_line(leaf.detail)}" if leaf.detail else ""
    match leaf.mark:
        case Mark.STEP:
            return f"step {leaf.name}{' failed' if leaf.failure else ''}"
        case Mark.SLEEP if leaf.until is not None:
            named = "" if leaf.name.partition("-")[0].removesuffix("ms").isdecimal() else f" ({leaf.name})"
            if leaf.until > now and leaf.is_open:
                return f"sleeps until {ahead(leaf.until, now)}{named}"
            return f"slept until {clock(leaf.until)}{named}"
        case Mark.SIGNAL:
            return _signal_words(leaf, now)
        case Mark.VERSION:
            return f"follows version {leaf.detail} of {leaf.name}"
        case Mark.UNDO:
            return f"{'cannot undo' if leaf.failure else 'undone'}: {leaf.name}"
        case Mark.HANDOFF:
            return f"handed to {leaf.name}{why}{sure}"
        case Mark.ESCALATION:
            return f"escalated to {leaf.name}{why}{sure}"
        case Mark.VERIFICATION:
            return f"answered, for its verifiers to judge{why}{sure}"
        case Mark.DECISION if leaf.decision is not None:
            return f"decided {decision_words(leaf.decision)}"
        case Mark.UNDOING:
            return f"ends {leaf.name}, once all it did is undone"
        case Mark.ATTEMPT_FAILED | Mark.THROTTLED:
            again = f", again {clock(leaf.until)}" if leaf.until else ""
            how = "was throttled" if leaf.mark is Mark.THROTTLED else "failed"
            return f"attempt {leaf.name} {how} on {leaf.peer}{again}"
        case Mark.ATTEMPT_LOST:
            return f"attempt {leaf.name} on {leaf.peer} ended without a word: the peer died or stalled"
        case Mark.HANDED_BACK:
            return f"attempt {leaf.name} was handed back by {leaf.peer}"
        case _:
            return leaf.name


def _signal_words(leaf: "Leaf", now: float) -> str:
    until = f" until {ahead(leaf.until, now)}" if leaf.until else ""
    if leaf.is_open:
        return f"waits for the signal {leaf.name}{until}"
    if leaf.detail == "late":
        return f"nobody signalled {leaf.name}{f' until {clock(leaf.until)}' if leaf.until else ''}"
    by = f" by {leaf.by}" if leaf.by else ""
    if leaf.detail:
        return f"{leaf.detail}{by}"
    return f"signal {leaf.name}{by}" if leaf.by else f"waited for the signal {leaf.name}{until}"


def _token(task: Identity) -> str:
    """The last token of an id, less what its capability tells."""
    return task.id.rpartition(".")[2].removeprefix("~").removeprefix(f"{task.capability}-")


def _left_out(branch: "View") -> list[str]:
    told = []
    for (what, state), count in branch.left_out.items():
        alike = f", all {state}" if state and count > 1 else f", {state}" if state else ""
        told.append(f"… {count:,} more {what}{alike}")
    if told and (below := branch.hidden - sum(branch.left_out.values())) > 0:
        told[-1] += f", with {below:,} below them"
    return told


def _used(spent: "Spent | None", before: str) -> str:
    if spent is None:
        return ""
    tokens = spent.tokens_in + spent.tokens_out
    told = [f"{tokens:,} tokens" if tokens else "", f"${spent.usd:,.4g}" if spent.usd else ""]
    text = ", ".join(filter(None, told))
    return f"{before}{text}" if text else ""


def _count(count: int, what: str, many: str = "") -> str:
    return f"1 {what}" if count == 1 else f"{count:,} {many or f'{what}s'}"


def document(shown: "View") -> dict[str, Any]:
    """A tree as one JSON document; a branch has at most 100 levels."""
    node = shown.node
    outcome = node.outcome
    return {
        "capability": node.task.capability,
        "id": node.task.id,
        "state": str(node.state),
        "edge": str(node.edge),
        "submitted_at": node.submitted_at,
        "since": node.since,
        "until": node.until,
        "peer": node.peer,
        "attempt": node.attempt,
        "parks": node.parks,
        "is_cancelled": node.is_cancelled,
        "queue_s": None if outcome is None else outcome.queue_s,
        "run_s": None if outcome is None else outcome.run_s,
        "confidence": None if outcome is None else outcome.confidence,
        "reason": "" if outcome is None else outcome.reason,
        "decided_by": None if outcome is None else msgspec.to_builtins(outcome.decided_by),
        "failure": msgspec.to_builtins(node.failure),
        "spent": msgspec.to_builtins(node.spent),
        "spent_below": msgspec.to_builtins(node.total),
        "waits_for": [_waited(wait) for wait in node.waits()[:SHOWN]],
        "leaves": [_leaf_document(entry) for entry in shown.entries if not _is_view(entry)],
        "children": [document(entry) for entry in shown.entries if _is_view(entry)],
        "left_out": [{"what": what, "state": state, "count": count} for (what, state), count in shown.left_out.items()],
    }


def _waited(wait: "Node | Leaf") -> str:
    from mesh.lineage import Leaf

    return f"{wait.mark} {wait.name}" if isinstance(wait, Leaf) else str(wait.task)


def _leaf_document(leaf: "Leaf") -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(leaf)
    return found
