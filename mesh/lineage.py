"""The causal tree of a task: what its records, and those of everything below it, tell together.

Records are taken one by one and forgotten, values and payloads with them, so that a tree of many thousand tasks
fits. Nothing here asks anybody: who runs what comes in as a value. Rules:

- A task hangs below the one whose id is its own less its last token. It was sent if its parent's outcome says so,
  and called otherwise.
- A task is what its result says; without one, what a peer says that runs it; else what its latest record says.
- What a task used up contains what its steps used up, and not what its children did.
"""

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeVar

import msgspec

from contracts import headers as names
from contracts import wire
from contracts.decision import Decision
from contracts.errors import ContractError
from contracts.outcome import AttemptBegan, AttemptEnded, Ended, Failure, Outcome, Spent, Status
from contracts.subjects import Address, Identity, Kind, Subjects, parent_of
from contracts.task import Task
from contracts.workflow import Answer, Closing, Signal, Step
from mesh.bus.parks import parked_since
from mesh.bus.records import Stored
from mesh.endings import HUMAN
from mesh.resilience.retry import Ledger

T = TypeVar("T")

RELAYED_WITHIN_S = 60.0
NOBODY = "-"
"""Stands for the capability of a task of which nothing is kept."""


class State(StrEnum):
    """Where a task of the tree is."""

    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    RUNNING = "running"
    WAITING = "waiting"
    PARKED = "parked"
    WOKEN = "woken"
    RETRYING = "retrying"
    QUEUED = "queued"
    UNSERVED = "unserved"
    TO_BE_SENT = "to be sent"
    NOT_KEPT = "not kept"


ENDED = (State.DONE, State.FAILED, State.CANCELLED, State.EXPIRED)


class Edge(StrEnum):
    """How a task came to hang below its parent."""

    ROOT = "root"
    CALL = "call"
    SEND = "send"
    HANDOFF = "handoff"
    VERIFICATION = "verification"
    REDRIVE = "redrive"


class Mark(StrEnum):
    """What a leaf tells."""

    STEP = "step"
    SLEEP = "sleep"
    SIGNAL = "signal"
    VERSION = "version"
    UNDO = "undo"
    HANDOFF = "handoff"
    ESCALATION = "escalation"
    VERIFICATION = "verification"
    UNDOING = "undoing"
    ATTEMPT_FAILED = "attempt failed"
    ATTEMPT_LOST = "attempt lost"
    HANDED_BACK = "handed back"
    THROTTLED = "throttled"
    DECISION = "decision"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Leaf:
    """One thing that a task did or waits for. `until` is when a wait ends, or a failed attempt was tried again."""

    mark: Mark
    name: str
    at: float
    detail: str = ""
    by: str = ""
    peer: str = ""
    attempt: int = 0
    run_s: float | None = None
    until: float | None = None
    is_open: bool = False
    """It is waited for."""
    confidence: float | None = None
    spent: Spent | None = None
    failure: Failure | None = None
    decision: Decision | None = None


@dataclass(frozen=True, slots=True)
class Runner:
    """Who has a task in hand, as it says itself."""

    peer: str
    since: float
    attempt: int
    is_waiting: bool


@dataclass(slots=True)
class Node:
    """One task of a tree."""

    task: Identity
    state: State
    edge: Edge = Edge.ROOT
    submitted_at: float | None = None
    since: float | None = None
    until: float | None = None
    peer: str = ""
    attempt: int = 0
    parks: int = 0
    is_cancelled: bool = False
    """It, or one above it, was cancelled, and nobody has answered it so yet."""
    outcome: Outcome | None = None
    """Its result record, without the value and what it sends."""
    leaves: list[Leaf] = field(default_factory=list)
    children: list["Node"] = field(default_factory=list)
    spent: Spent | None = None
    total: Spent = field(default_factory=Spent)
    """What it and everything below it used up."""
    size: int = 1
    """How many tasks and leaves this branch has."""

    @property
    def failure(self) -> Failure | None:
        return self.outcome.failure if self.outcome is not None else None

    def timeline(self) -> "list[Node | Leaf]":
        """Leaves and children in the order in which they came to be."""
        entries: list[Node | Leaf] = [*self.leaves, *self.children]
        return sorted(entries, key=lambda entry: entry.at if isinstance(entry, Leaf) else entry.submitted_at or 0.0)

    def waits(self) -> "list[Node | Leaf]":
        """What it still waits for, as far as that is on record."""
        called = [child for child in self.children if child.state not in ENDED and child.edge is not Edge.REDRIVE]
        return [*called, *(leaf for leaf in self.leaves if leaf.is_open)]


@dataclass(frozen=True, slots=True)
class Tree:
    """A task and everything below it. `is_partial` says that there are more records than were read."""

    root: Node
    is_partial: bool = False

    def __iter__(self) -> Iterator[Node]:
        """Every task, parents before their children."""
        standing = [self.root]
        while standing:
            node = standing.pop()
            yield node
            standing += reversed(node.children)


@dataclass(slots=True)
class _Known:
    """What is on record about one task."""

    envelope: Task | None = None
    submitted_at: float | None = None
    is_queued: bool = False
    is_parked: bool = False
    is_woken: bool = False
    outcome: Outcome | None = None
    ended_at: float = 0.0
    sends: tuple[Identity, ...] = ()
    began: dict[int, AttemptBegan] = field(default_factory=dict)
    ended: dict[int, AttemptEnded] = field(default_factory=dict)
    leaves: list[Leaf] = field(default_factory=list)
    patience: dict[str, tuple[float, float]] = field(default_factory=dict)
    """By signal: when it was asked for, and until when."""
    signals: dict[str, tuple[float, Signal, str]] = field(default_factory=dict)


class Lineage:
    """The records of one tree, as they come."""

    def __init__(self, subjects: Subjects) -> None:
        self._subjects = subjects
        self._known: dict[Identity, _Known] = {}
        self.records = 0

    def note(self, stored: Stored) -> None:
        """Take in what a record tells. One that cannot be read tells that it is there."""
        self.records += 1
        try:
            address = self._subjects.parse(stored.subject)
        except ContractError:
            return
        known = self._known.setdefault(address.identity, _Known())
        match address.kind:
            case Kind.TASK:
                known.is_queued = True
                known.envelope = _envelope(stored)
                known.submitted_at = stored.stored_at
            case Kind.PARK:
                known.is_parked = True
                known.envelope = _envelope(stored)
                known.submitted_at = parked_since(stored)
            case Kind.WAKE:
                known.is_woken = True
            case Kind.RESULT:
                _note_result(known, stored)
            case Kind.STEP:
                _note_step(known, address, stored)
            case _:
                return

    @property
    def unsettled(self) -> list[Identity]:
        """Tasks without a result, about which peers may know more."""
        return [task for task, known in self._known.items() if known.outcome is None]

    @property
    def queued(self) -> set[str]:
        """Capabilities of tasks that wait to be taken."""
        return {
            task.capability
            for task, known in self._known.items()
            if known.outcome is None and (known.is_queued or known.is_woken)
        }

    def tree(
        self,
        root: Identity,
        *,
        now: float,
        running: Mapping[Identity, Runner],
        unserved: Iterable[str] = (),
        cancelled: Collection[Identity] = (),
        is_partial: bool = False,
    ) -> Tree | None:
        """The tree below a task, or None where nothing of it is on record."""
        if not self._known:
            return None
        nobody = frozenset(unserved)
        nodes = {
            task: _node(task, known, running.get(task), now=now, unserved=nobody) for task, known in self._known.items()
        }
        for known in self._known.values():
            # What is sent is relayed at once; later it has come and gone.
            state = State.TO_BE_SENT if now - known.ended_at < RELAYED_WITHIN_S else State.NOT_KEPT
            for sent in known.sends:
                nodes.setdefault(sent, Node(sent, state, submitted_at=known.ended_at)).edge = Edge.SEND
        nodes.setdefault(root, Node(root, State.NOT_KEPT))
        self._link(nodes, root)
        tree = Tree(nodes[root], is_partial)
        in_order = list(tree)
        for node in in_order:
            is_cancelled = node.state is State.CANCELLED or node.is_cancelled or node.task in cancelled
            node.is_cancelled = is_cancelled and node.state not in ENDED
            for child in node.children:
                child.is_cancelled = is_cancelled
        for node in reversed(in_order):
            _sum_up(node)
        return tree

    def _link(self, nodes: dict[Identity, Node], root: Identity) -> None:
        by_id: dict[str, list[Node]] = {}
        for node in nodes.values():
            by_id.setdefault(node.task.id, []).append(node)
        standing = deque(nodes.values())
        while standing:
            node = standing.popleft()
            task = node.task
            if task == root or not task.id.startswith(f"{root.id}."):
                continue
            known = self._known.get(task)
            lineage = known.envelope.lineage if known is not None and known.envelope is not None else ()
            above = parent_of(task.id)
            candidates = by_id.get(above, [])
            if not candidates:
                lost = Node(Identity(lineage[-1] if lineage else NOBODY, above), State.NOT_KEPT)
                by_id[above] = candidates = [lost]
                standing.append(lost)
            parent = _parent(candidates, root, lineage)
            parent.children.append(node)
            if node.edge is Edge.ROOT:
                node.edge = _edge(task)


@dataclass(frozen=True, slots=True)
class Open:
    """What a task waits for, by the names of its records: children without a result, waits that may be open."""

    children: tuple[Identity, ...] = ()
    sleeps: tuple[str, ...] = ()
    """Steps that tell until when it sleeps, those that are over among them."""
    signals: tuple[str, ...] = ()
    """Signals with a time limit that did not come yet."""


def open_waits(subjects: Subjects, task: Identity, standing: Iterable[str]) -> Open:
    """What a task waits for, from the subjects of the records below it."""
    begun: dict[Identity, None] = {}
    ended: set[Identity] = set()
    sleeps, limited, come = [], [], set()
    for subject in standing:
        try:
            address = subjects.parse(subject)
        except ContractError:
            continue
        if address.kind is Kind.STEP and address.identity == task:
            word, _, name = address.name.removeprefix("~~").partition("-")
            if not address.name.startswith("~~"):
                continue
            if word == "sleep":
                sleeps.append(address.name)
            elif word == "patience":
                limited.append(name)
            elif word == "signal":
                come.add(name)
        elif parent_of(address.id) == task.id:
            if address.kind in (Kind.TASK, Kind.PARK):
                begun[address.identity] = None
            elif address.kind is Kind.RESULT:
                ended.add(address.identity)
    return Open(
        tuple(child for child in begun if child not in ended),
        tuple(sleeps),
        tuple(name for name in limited if name not in come),
    )


def _note_result(known: _Known, stored: Stored) -> None:
    try:
        outcome = wire.decode(Outcome, stored.data, wire.content_type(stored.headers.get(names.CONTENT_TYPE)))
    except ContractError as error:
        outcome = Outcome(status=Status.FAILED, reason=f"its result cannot be read: {error}")
    known.sends = tuple(Identity(send.capability, send.id) for send in outcome.sends)
    known.outcome = msgspec.structs.replace(outcome, value=msgspec.UNSET, sends=())
    known.ended_at = stored.stored_at
    if known.submitted_at is None:
        known.submitted_at = stored.stored_at - outcome.run_s - outcome.queue_s


def _note_step(known: _Known, address: Address, stored: Stored) -> None:
    name, at = address.name, stored.stored_at
    if not name.startswith("~~"):
        step = _read(Step, stored) or Step()
        known.leaves.append(_step_leaf(Mark.STEP, name, step, at))
        return
    word, _, rest = name.removeprefix("~~").partition("-")
    if word == "began" and rest.isdecimal() and (began := _read(AttemptBegan, stored)) is not None:
        known.began[int(rest)] = began
    elif word == "ended" and rest.isdecimal() and (ended := _read(AttemptEnded, stored)) is not None:
        known.ended[int(rest)] = ended
    elif word == "sleep":
        known.leaves.append(Leaf(Mark.SLEEP, rest, at, until=number_of(stored)))
    elif word == "patience":
        known.patience[rest] = at, number_of(stored) or at
    elif word == "signal" and (signal := _read(Signal, stored)) is not None:
        known.signals[rest] = at, signal, _verdict(address.capability, signal)
    elif word == "version":
        known.leaves.append(Leaf(Mark.VERSION, rest, at, detail=f"{number_of(stored) or 0:g}"))
    elif word == "undo":
        # Named by the mesh: what it undoes, a digest of its arguments, and a number.
        known.leaves.append(_step_leaf(Mark.UNDO, rest.rsplit("-", 2)[0], _read(Step, stored) or Step(), at))
    elif word == "closing" and (closing := _read(Closing, stored)) is not None:
        known.leaves.append(_closing_leaf(closing, at))
    elif word == "failed" and (closing := _read(Closing, stored)) is not None:
        outcome = closing.outcome
        known.leaves.append(Leaf(Mark.UNDOING, str(outcome.status), at, failure=outcome.failure))
    elif word != "saga":
        known.leaves.append(Leaf(Mark.OTHER, name.removeprefix("~~"), at))


def _step_leaf(mark: Mark, name: str, step: Step, at: float) -> Leaf:
    return Leaf(
        mark,
        name,
        at,
        peer=step.peer,
        attempt=step.attempt,
        run_s=step.run_s,
        spent=step.spent,
        failure=step.failure,
    )


def _closing_leaf(closing: Closing, at: float) -> Leaf:
    if closing.to is None:
        return Leaf(Mark.VERIFICATION, "", at, confidence=closing.outcome.confidence, detail=closing.outcome.reason)
    to = closing.to
    mark = Mark.ESCALATION if closing.is_rung else Mark.HANDOFF
    return Leaf(mark, to.capability, at, detail=to.reason, confidence=to.confidence)


def _node(task: Identity, known: _Known, runner: Runner | None, *, now: float, unserved: frozenset[str]) -> Node:
    ledger = Ledger(frozenset(known.began), tuple(sorted(known.ended.items())))
    node = Node(task, State.QUEUED, submitted_at=known.submitted_at, since=known.submitted_at)
    node.attempt = ledger.last
    node.parks = sum(end.how is Ended.PARKED for end in known.ended.values())
    parked_at = max((end.at for end in known.ended.values() if end.how is Ended.PARKED), default=known.submitted_at)
    outcome = node.outcome = known.outcome
    if outcome is not None:
        node.state, node.since = State(outcome.status), known.ended_at
        node.peer, node.attempt = outcome.peer, outcome.attempt
    elif runner is not None:
        node.state = State.WAITING if runner.is_waiting else State.RUNNING
        node.since, node.peer, node.attempt = runner.since, runner.peer, runner.attempt
    elif ledger.retry_at > now:
        node.state, node.until = State.RETRYING, ledger.retry_at
    elif known.is_parked and not known.is_woken:
        node.state, node.since = State.PARKED, parked_at
    elif not known.is_parked and not known.is_queued:
        node.state = State.NOT_KEPT
    elif task.capability in unserved:
        node.state = State.UNSERVED
    elif known.is_woken:
        node.state, node.since = State.WOKEN, parked_at
    is_over = outcome is not None
    node.leaves = [
        replace(leaf, is_open=not is_over and leaf.until > now)
        if leaf.mark is Mark.SLEEP and leaf.until is not None
        else leaf
        for leaf in known.leaves
    ]
    node.leaves += _signal_leaves(known, is_over=is_over)
    node.leaves += _attempt_leaves(known, node)
    # A run that is still in memory has told nobody what it decided.
    decided = outcome.decisions if outcome is not None else ledger.decisions
    node.leaves += [Leaf(Mark.DECISION, one.choice, one.at, by=one.by, decision=one) for one in decided]
    node.spent = outcome.spent if outcome is not None else None
    stepped = [leaf.spent for leaf in node.leaves if leaf.spent is not None]
    if node.spent is None and stepped:
        node.spent = sum(stepped, Spent())
    return node


def _signal_leaves(known: _Known, *, is_over: bool) -> list[Leaf]:
    leaves = []
    for name, (at, until) in known.patience.items():
        if name not in known.signals:
            leaves.append(Leaf(Mark.SIGNAL, name, at, until=until, is_open=not is_over))
    for name, (at, signal, verdict) in known.signals.items():
        told = "late" if signal.is_late else verdict
        limit = known.patience[name][1] if name in known.patience else None
        leaves.append(Leaf(Mark.SIGNAL, name, at, detail=told, by=signal.by, until=limit))
    return leaves


def _attempt_leaves(known: _Known, node: Node) -> list[Leaf]:
    """Attempts that failed, were handed back, or ended without a word."""
    leaves = []
    for number, end in known.ended.items():
        if end.how is Ended.FAILED or end.is_throttled:
            leaves.append(
                Leaf(
                    Mark.THROTTLED if end.is_throttled else Mark.ATTEMPT_FAILED,
                    str(number),
                    end.at,
                    peer=end.peer,
                    attempt=number,
                    until=end.retry_at,
                    failure=end.failure,
                )
            )
        elif end.how is Ended.HANDED_BACK:
            leaves.append(Leaf(Mark.HANDED_BACK, str(number), end.at, peer=end.peer, attempt=number))
    is_in_hand = node.outcome is not None or node.state in (State.RUNNING, State.WAITING)
    for number, began in known.began.items():
        if number in known.ended or (number >= node.attempt and is_in_hand):
            continue
        if number < max((*known.began, *known.ended)) or node.outcome is not None:
            leaves.append(Leaf(Mark.ATTEMPT_LOST, str(number), began.at, peer=began.peer, attempt=number))
    return leaves


def _parent(candidates: list[Node], root: Identity, lineage: tuple[str, ...]) -> Node:
    """The one of several tasks with the same id that a child hangs below."""
    wanted = [*lineage[-1:], root.capability]
    return next(
        (node for capability in wanted for node in candidates if node.task.capability == capability), candidates[0]
    )


def _edge(task: Identity) -> Edge:
    name = task.id.rpartition(".")[2]
    if name == "~handoff":
        return Edge.HANDOFF
    if name.startswith("~verify-"):
        return Edge.VERIFICATION
    return Edge.REDRIVE if name.startswith("~redrive-") else Edge.CALL


def _sum_up(node: Node) -> None:
    """What a branch used up, and how large it is; its children's are known."""
    node.children.sort(key=lambda child: (child.submitted_at or 0.0, child.task.id))
    node.total = sum((child.total for child in node.children), node.spent or Spent())
    node.size = 1 + len(node.leaves) + sum(child.size for child in node.children)


def _verdict(capability: str, signal: Signal) -> str:
    """What a person's answer says, where the signal is one."""
    if capability != HUMAN or signal.is_late:
        return ""
    try:
        return str(wire.decode(Answer, bytes(signal.value)).verdict)
    except ContractError:
        return ""


def _envelope(stored: Stored) -> Task | None:
    try:
        return wire.decode(Task, stored.headers.get(names.TASK, "{}").encode())
    except ContractError:
        return None


def number_of(stored: Stored) -> float | None:
    """The number that a step returned, such as the Unix time at which a wait ends."""
    step = _read(Step, stored)
    try:
        return None if step is None or step.value is msgspec.UNSET else float(bytes(step.value))
    except ValueError:
        return None


def _read(kind: type[T], stored: Stored) -> T | None:
    """A record made as a step, or None where it cannot be read. Its bytes say what they are written in."""
    is_json = stored.data[:1] == b"{"
    try:
        return wire.decode(kind, stored.data, "application/json" if is_json else "application/msgpack")
    except ContractError:
        return None
