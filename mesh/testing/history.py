"""A recorded history of tasks, and what it proves.

Whoever takes part (submitters, peers, observers, faults) appends what it did to one file. The checker reads
that file and nothing else:

- *lost*: a submission was confirmed, or a stored result sends the task, and no result of it stands;
- *unexpected*: a result, a run or a dead letter of something that nobody asked for;
- *repeated*: more than one submission started a task, more than one result was stored for it, a submitter was
  told another than stands, or a step of a task came to two values;
- *left*: still queued, parked without a result, due, or counted by a consumer, when everything should be over;
- *undue* and *missing*: dead letters that should not, or should, be there;
- *broken*: peers that ended by themselves, neither drained nor killed;
- *differing*: replicas of a cluster that do not keep the same (found by asking them, not from the history).

A submission that was attempted and not confirmed may have a result or none. A handler may run more than
once; its recorded effects (the result, its steps, and the tasks it sends) happen once.
"""

import hashlib
import os
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import TracebackType

import msgspec

from contracts import headers as names
from contracts import wire
from contracts.subjects import Identity, Kind, root_of
from contracts.workflow import Step
from mesh.bus import topology
from mesh.bus.commit import read_outcome
from mesh.bus.connection import Bus
from mesh.bus.records import read_range

SHOWN = 10
TOLD_BYTES_MAX = 128 * 1024
"""Of a value that an entry has as it is; larger ones are kept as objects."""
LATE_S = 1.0
"""How long after it is due a timer may still stand."""
UNDO = "~~undo-"
"""How names of recorded compensations begin; other names that begin with `~~` are no steps."""


class What(StrEnum):
    """What an entry tells."""

    ATTEMPTED = "attempted"
    CONFIRMED = "confirmed"
    ANSWERED = "answered"
    """The submitter was told an outcome."""
    RAN = "ran"
    EFFECT = "effect"
    """A run asked something outside to be done: `detail` is what, `value` the idempotency key."""
    STEPPED = "stepped"
    """A step's record, `detail` its name: as it stands at the end, or, without a sequence, as a run was told."""
    ECHOED = "echoed"
    """The server stored a result."""
    RECORDED = "recorded"
    """A result stands at the end."""
    BURIED = "buried"
    """A dead letter stands at the end."""
    LEFT = "left"
    """Something is still queued at the end."""
    READY = "ready"
    """A peer serves."""
    ENDED = "ended"
    """A peer's process is over; `detail` is its exit code."""
    FAULT = "fault"
    """Something goes wrong: `detail` is the fault's name, `value` the number of the strike, `peer` its target."""
    HEALED = "healed"
    """A strike is over: what it broke may work again from here on. `value` is its number."""


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of a history. `task` is `capability/id`; other fields where they apply."""

    what: What
    task: str = ""
    peer: str = ""
    attempt: int = 0
    sequence: int = 0
    status: str = ""
    value: str = ""
    sends: tuple[str, ...] = ()
    is_new: bool = False
    """Of a confirmed submission: it says that it started the task."""
    is_doomed: bool = False
    """Of an attempted task: it is expected to end as a dead letter."""
    is_workflow: bool = False
    """Of an attempted task: its runs ask for what is below it."""
    detail: str = ""
    at: float = 0.0
    """When it was added: seconds of this machine's monotonic clock, which all its processes share."""


class History:
    """A file that any number of processes append to, one write an entry. Close it, or use it in a `with`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)

    def add(self, entry: Entry) -> None:
        """Append an entry, with the time if it has none. It outlives the death of this process."""
        stamped = entry if entry.at else msgspec.structs.replace(entry, at=round(time.monotonic(), 4))
        os.write(self._file, _encoder.encode(stamped) + b"\n")

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> "History":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def read(self, *what: What) -> list[Entry]:
        """The entries so far, of some kinds or all, in the order they were written."""
        lines = self.path.read_bytes().split(b"\n")
        # The last line may be under way.
        entries = [_decoder.decode(line) for line in lines[:-1]]
        return [entry for entry in entries if not what or entry.what in what]


@dataclass(frozen=True, slots=True)
class Findings:
    """What a history proves. Everything but `figures` is empty where the promises held."""

    lost: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    repeated: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    undue: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    differing: tuple[str, ...] = ()
    figures: dict[str, int] = field(default_factory=dict)

    @property
    def violations(self) -> dict[str, tuple[str, ...]]:
        return {name: found for name in _VIOLATIONS if (found := getattr(self, name))}

    def __str__(self) -> str:
        told = [
            f"{name} {len(found)}: {', '.join(found[:SHOWN])}{' …' if len(found) > SHOWN else ''}"
            for name, found in self.violations.items()
        ]
        return "; ".join(told) or "every promise held"


def check(entries: Iterable[Entry]) -> Findings:
    """What the entries prove."""
    by_kind: dict[What, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_kind[entry.what].append(entry)
    attempted = {entry.task: entry for entry in by_kind[What.ATTEMPTED]}
    confirmed = {entry.task for entry in by_kind[What.CONFIRMED]}
    recorded = {entry.task: entry for entry in by_kind[What.RECORDED]}
    sent = [child for entry in recorded.values() for child in entry.sends]
    asked = attempted.keys() | set(sent)
    workflows = {_root(entry.task) for entry in attempted.values() if entry.is_workflow}

    stored: dict[str, set[int]] = defaultdict(set)
    for entry in (*by_kind[What.ECHOED], *by_kind[What.RECORDED]):
        stored[entry.task].add(entry.sequence)
    repeated = [f"{task} stored at {sorted(found)}" for task, found in stored.items() if len(found) > 1]
    repeated += [f"{task} sent {times} times" for task, times in Counter(sent).items() if times > 1]
    started = Counter(entry.task for entry in by_kind[What.CONFIRMED] if entry.is_new)
    repeated += [f"{task} started {times} times" for task, times in started.items() if times > 1]
    for entry in by_kind[What.ANSWERED]:
        stands = recorded.get(entry.task)
        if stands is not None and (stands.status, stands.value) != (entry.status, entry.value):
            repeated.append(f"{entry.task} told {entry.status}, stands {stands.status}")

    steps: dict[tuple[str, str], set[tuple[str, str]]] = defaultdict(set)
    for entry in by_kind[What.STEPPED]:
        steps[entry.task, entry.detail].add((entry.status, entry.value))
    repeated += [
        f"step {name} of {task} came to {sorted(found)}" for (task, name), found in steps.items() if len(found) > 1
    ]

    told = {entry.task for entry in by_kind[What.ANSWERED]}
    seen = {entry.task for kind in (What.RECORDED, What.ECHOED, What.RAN, What.BURIED) for entry in by_kind[kind]}
    buried = {entry.task for entry in by_kind[What.BURIED]}
    doomed = {task for task, entry in attempted.items() if entry.is_doomed}
    runs = Counter(entry.task for entry in by_kind[What.RAN])
    statuses = Counter(entry.status for entry in recorded.values())
    return Findings(
        lost=tuple(sorted((confirmed | set(sent) | told) - recorded.keys())),
        unexpected=tuple(sorted(task for task in seen - asked if _root(task) not in workflows)),
        repeated=tuple(sorted(repeated)),
        left=tuple(sorted(entry.task or entry.detail for entry in by_kind[What.LEFT])),
        undue=tuple(
            sorted(f"{entry.task} ({entry.detail})" for entry in by_kind[What.BURIED] if entry.task not in doomed)
        ),
        missing=tuple(sorted((doomed & confirmed) - buried)),
        broken=tuple(
            f"{entry.peer} ended with {entry.detail}" for entry in by_kind[What.ENDED] if entry.detail not in _ORDERLY
        ),
        figures={
            "attempted": len(attempted),
            "confirmed": len(confirmed),
            "sent": len(set(sent)),
            "results": len(recorded),
            **{f"results_{status}": count for status, count in sorted(statuses.items())},
            "dead_letters": len(buried),
            "runs": runs.total(),
            "rerun_tasks": sum(count > 1 for count in runs.values()),
            **({"steps": len(steps)} if steps else {}),
            **{
                f"fault_{kind}": count for kind, count in sorted(Counter(e.detail for e in by_kind[What.FAULT]).items())
            },
        },
    )


async def observe(bus: Bus, history: History) -> None:
    """Record every result, step and dead letter that stands, and what is left in the queue."""
    subjects = bus.subjects
    answered: set[Identity] = set()
    async for stored in read_range(bus, subjects.stream, subjects.results_of()):
        outcome = read_outcome(stored)
        identity = subjects.parse(stored.subject).identity
        answered.add(identity)
        history.add(
            Entry(
                What.RECORDED,
                task=str(identity),
                sequence=stored.sequence,
                status=outcome.status,
                value=text(outcome.value) if outcome.value_at is None else outcome.value_at.digest,
                sends=tuple(str(Identity(send.capability, send.id)) for send in outcome.sends),
                attempt=outcome.attempt,
                peer=outcome.peer,
                detail=outcome.failure.message if outcome.failure is not None else "",
            )
        )
    async for stored in read_range(bus, subjects.stream, subjects.dead_letters_of()):
        task = str(subjects.parse(stored.subject).identity)
        history.add(Entry(What.BURIED, task=task, sequence=stored.sequence, detail=stored.headers[names.DEAD]))
    async for stored in read_range(bus, subjects.stream, subjects.steps_of()):
        address = subjects.parse(stored.subject)
        if address.name.startswith("~~") and not address.name.startswith(UNDO):
            continue
        step = wire.decode(Step, stored.data)
        history.add(
            Entry(
                What.STEPPED,
                task=str(address.identity),
                sequence=stored.sequence,
                status="failed" if step.failure is not None else "done",
                value=text(step.value) if step.value_at is None else step.value_at.digest,
                attempt=step.attempt,
                peer=step.peer,
                detail=address.name,
            )
        )
    for pattern in subjects.stored:
        for subject in await topology.queued(bus, pattern):
            address = subjects.parse(subject)
            # A park stays as long as its result.
            is_over = address.kind is Kind.PARK and address.identity in answered
            if address.kind in (Kind.TASK, Kind.PARK, Kind.WAKE) and not is_over:
                history.add(Entry(What.LEFT, detail=subject))
    for subject in await _timers(bus):
        address = subjects.parse(subject)
        # One that is far ahead fires in vain if its task is over.
        if address.kind is Kind.DUE or int(address.name, 16) / 1_000 < time.time() - LATE_S:
            history.add(Entry(What.LEFT, detail=subject))
    for name in await topology.served(bus):
        consumer = await bus.api(f"CONSUMER.INFO.{subjects.stream}.{name}")
        if consumer["num_pending"] or consumer["num_ack_pending"]:
            counted = f"{consumer['num_pending']} pending, {consumer['num_ack_pending']} in flight"
            history.add(Entry(What.LEFT, detail=f"consumer {name}: {counted}"))


async def _timers(bus: Bus) -> list[str]:
    """Subjects of timers that are set, or due and not acted on; recurring tasks are none."""
    subjects = bus.subjects
    found: list[str] = []
    for stream in await topology.timer_streams(bus):
        info = await bus.api(f"STREAM.INFO.{stream}", {"subjects_filter": ">"})
        found += [subject for subject in info["state"].get("subjects") or {} if not subjects.schedule_name(subject)]
    return found


def _root(task: str) -> str:
    """The root that a task, as `capability/id`, belongs to."""
    return root_of(task.partition("/")[2])


def text(value: msgspec.Raw | msgspec.UnsetType) -> str:
    """A recorded value as an entry has it; a large one by its digest, as a reference to it tells."""
    if value is msgspec.UNSET:
        return ""
    content = bytes(value)
    return content.decode() if len(content) <= TOLD_BYTES_MAX else hashlib.sha256(content).hexdigest()


_VIOLATIONS = ("lost", "unexpected", "repeated", "left", "undue", "missing", "broken", "differing")
# Drained, told to end before it could drain, killed.
_ORDERLY = ("0", str(-signal.SIGTERM), str(-signal.SIGKILL))

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Entry)
