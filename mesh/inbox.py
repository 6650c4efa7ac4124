"""What waits for people: read it, and answer it.

A proposal is a task for `human`. It waits while it is queued or parked and has no result. Its answer is a signal, a
create-once record: of two people who answer at once one wins, and the other is told who. Rules:

- A proposal that is answered, and not taken up yet because no peer hosts `human`, waits for nobody any more. Nor does
  one whose asker was cancelled or is over, though it stays parked until it is woken.
- It is decided without a person at the earlier of two times: when the patience runs out that began with its first run,
  which `at_deadline` decides, and at the deadline of the task, when it expires.
- Who may answer is compared with the name that the one who answers gives. It keeps colleagues from taking each
  other's decisions, not an intruder out; permissions on the server do that.
"""

import random
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from contracts import headers as names
from contracts import wire
from contracts.errors import ContractError
from contracts.subjects import Identity, ancestry
from contracts.task import Task
from contracts.workflow import Answer, Proposal, Signal, Verdict
from mesh.bus import control, topology
from mesh.bus.commit import read_outcome, stored_type
from mesh.bus.connection import Bus
from mesh.bus.objects import get, kept_payload, payload_place
from mesh.bus.parks import parked_since
from mesh.bus.records import Stored, read_many
from mesh.bus.steps import read_step, signal_name
from mesh.client import Mesh
from mesh.endings import HUMAN
from mesh.errors import ObjectGone, SignalRefused
from mesh.lineage import number_of
from mesh.verbs import ANSWER
from mesh.workflow.inbox import PAGE, unanswered

HANDLE_LENGTH_MIN: Final = 6
EXPIRE: Final = "expire"
PATIENCE: Final = f"~~patience-{ANSWER}"


@dataclass(frozen=True, slots=True)
class Question:
    """A proposal that waits, or waited, for somebody's answer."""

    task: Identity
    proposal: Proposal
    asked_at: float
    is_parked: bool
    """A peer that hosts `human` has taken it up."""
    due: float | None
    """When it is decided without a person, as Unix seconds; None for never, or not before a peer takes it up."""
    then: str
    """What happens at `due`: `reject`, `approve` or `fail`; or `expire`."""
    answered_by: str | None = None
    """Who gave the answer that is not taken up yet."""
    moot: str = ""
    """Why an answer would change nothing."""

    @property
    def is_open(self) -> bool:
        """Whether somebody's answer is waited for."""
        return self.answered_by is None and not self.moot


async def read_inbox(bus: Bus) -> list[Question]:
    """Every proposal without a result, oldest first; those that wait for nobody any more among them."""
    waiting = sorted(task.id for task in await unanswered(bus))
    found: list[Question] = []
    for start in range(0, len(waiting), PAGE):
        found += await read_questions(bus, waiting[start : start + PAGE])
    return sorted(found, key=lambda question: question.asked_at)


async def find_question(bus: Bus, name: str) -> Question | None:
    """The one proposal that waits under a name: its id, the start of it, or its handle. None if there is none.

    Raises:
        ContractError: the name stands for several.
        SignalRefused: it was answered before, or is over; the message says by whom.
    """
    waiting = sorted(task.id for task in await unanswered(bus))
    matching = matches(name, waiting)
    if len(matching) > 1:
        short = handles(waiting)
        raise ContractError(f"{name!r} stands for several proposals: {', '.join(short[found] for found in matching)}")
    if matching:
        questions = await read_questions(bus, matching)
        if questions:
            return questions[0]
        # Answered and acked between two reads.
    await _refuse_answered(bus, name)
    return None


async def give(mesh: Mesh, question: Question, verdict: Verdict, *, by: str, value: Any = None, note: str = "") -> None:
    """Answer a proposal. Safe to race: the first answer counts.

    Raises:
        SignalRefused: somebody else answered first, it is not `by`'s to answer, or it is decided already.
        ContractError: the value cannot travel.
    """
    task, who = question.task, question.proposal.who
    if question.moot:
        raise SignalRefused(f"{task.id} asks nobody any more: {question.moot}")
    if who and by not in who:
        raise SignalRefused(f"{task.id} is for {' or '.join(who)} to answer, not for {by}")
    answer = Answer(verdict=verdict, value=value, by=by, note=note, at=time.time())
    try:
        await mesh.signal(HUMAN, task.id, ANSWER, answer, by=by)
    except SignalRefused as refused:
        standing = await read_step(mesh.bus, task, signal_name(ANSWER), Signal)
        if standing is None:
            raise
        raise SignalRefused(f"{task.id} {_told(standing)}; this answer changes nothing") from refused


def handles(ids: Collection[str]) -> dict[str, str]:
    """A short name for each of several proposals: its workflow's id where that has only one, else a part of its own."""
    roots = [task_id.partition(".")[0] for task_id in ids]
    short: dict[str, str] = {}
    for task_id, root in zip(ids, roots, strict=True):
        candidates = [root] if roots.count(root) == 1 else []
        own = _own_name(task_id)
        candidates += [own[:length] for length in range(HANDLE_LENGTH_MIN, len(own) + 1)]
        short[task_id] = next((name for name in candidates if matches(name, ids) == [task_id]), task_id)
    return short


def matches(name: str, ids: Iterable[str]) -> list[str]:
    """The ids that a name stands for: the one it is, or those that it begins, as a whole or by their last token."""
    ids = list(ids)
    if name in ids:
        return [name]
    return [task_id for task_id in ids if task_id.startswith(name) or _own_name(task_id).startswith(name)]


def sampled(questions: Sequence[Question], count: int, *, seed: int | None) -> list[Question]:
    """A random sample in the order given; with a seed, the same of the same."""
    dice = random.Random(seed)  # noqa: S311  # a sample, no secret
    chosen = dice.sample(range(len(questions)), min(count, len(questions)))
    return [questions[index] for index in sorted(chosen)]


async def read_questions(bus: Bus, ids: Sequence[str]) -> list[Question]:
    """The proposals of these ids that stand, in their order; those that wait for nobody any more among them."""
    subjects = bus.subjects
    tasks = [Identity(HUMAN, task_id) for task_id in ids]
    places = {task: (subjects.park(task), *subjects.queued(task)) for task in tasks}
    found = iter(await read_many(bus, [subject for place in places.values() for subject in place]))
    standing: dict[Identity, tuple[Stored, bool]] = {}
    for task, place in places.items():
        park, *queued = (next(found) for _ in place)
        stored = park or next(filter(None, queued), None)
        if stored is not None:
            standing[task] = stored, park is not None
    steps = await read_many(
        bus, [subjects.step(task, name) for task in standing for name in (PATIENCE, signal_name(ANSWER))]
    )
    envelopes = {task: _envelope(stored) for task, (stored, _) in standing.items()}
    moot = await _moot(bus, envelopes)
    proposals = {task: await _proposal(bus, task, stored) for task, (stored, _) in standing.items()}
    return [
        _question(
            task,
            stored,
            proposals[task],
            envelopes[task],
            is_parked=is_parked,
            limit=limit,
            answer=answer,
            moot=moot[task],
        )
        for (task, (stored, is_parked)), limit, answer in zip(standing.items(), steps[::2], steps[1::2], strict=True)
    ]


async def _moot(bus: Bus, envelopes: Mapping[Identity, Task]) -> dict[Identity, str]:
    """Why nobody waits for the answer of a task, for each; empty where somebody does."""
    above = {task: ancestry(task, envelope.lineage) for task, envelope in envelopes.items()}
    cancels = await control.cancels(bus, {one for line in above.values() for one in line})
    askers = {task: line[-2] for task, line in above.items() if len(line) > 1 and envelopes[task].is_awaited}
    results = await read_many(bus, [bus.subjects.result(asker) for asker in askers.values()])
    over = {task for task, result in zip(askers, results, strict=True) if result is not None}
    told = {task: next((f"{one} is cancelled" for one in line if one in cancels), "") for task, line in above.items()}
    return {task: told[task] or (f"{askers[task]} is over" if task in over else "") for task in above}


async def _proposal(bus: Bus, task: Identity, stored: Stored) -> Proposal:
    """What is proposed, also where it is too large for the task's message."""
    try:
        kept = kept_payload(stored.headers, stored.data, task)
        payload = stored.data if kept is None else await get(bus, payload_place(task, kept), kept)
        return wire.decode(Proposal, payload or b"null", stored_type(stored))
    except (ContractError, ObjectGone) as error:
        return Proposal(reason=f"this is no proposal: {error}")


def _question(
    task: Identity,
    stored: Stored,
    proposal: Proposal,
    envelope: Task,
    *,
    is_parked: bool,
    limit: Stored | None,
    answer: Stored | None,
    moot: str,
) -> Question:
    due, then = None if limit is None else number_of(limit), str(proposal.at_deadline)
    if envelope.deadline is not None and (due is None or envelope.deadline < due):
        due, then = envelope.deadline, EXPIRE
    by = None
    if answer is not None:
        signal = wire.decode(Signal, answer.data)
        by = "the deadline" if signal.is_late else signal.by
    return Question(task, proposal, parked_since(stored), is_parked, due, then, by, moot)


def _envelope(stored: Stored) -> Task:
    try:
        return wire.decode(Task, stored.headers.get(names.TASK, "{}").encode())
    except ContractError:
        return Task()


async def _refuse_answered(bus: Bus, name: str) -> None:
    """Say what a proposal of this name came to, if one did."""
    kept = await topology.queued(bus, bus.subjects.results_of(HUMAN))
    over = matches(name, sorted(bus.subjects.parse(subject).id for subject in kept))
    if len(over) != 1:
        return
    task = Identity(HUMAN, over[0])
    result, standing = await read_many(bus, [bus.subjects.result(task), bus.subjects.step(task, signal_name(ANSWER))])
    if standing is not None:
        raise SignalRefused(f"{task.id} {_told(wire.decode(Signal, standing.data))}")
    if result is not None:
        raise SignalRefused(f"{task.id} is over: {read_outcome(result).status}")


def _told(standing: Signal) -> str:
    """What an answer on record says, as the rest of a sentence."""
    if standing.is_late:
        return "was answered by nobody in time, and is decided"
    try:
        answer = wire.decode(Answer, bytes(standing.value))
    except ContractError:
        return f"was answered{f' by {standing.by}' if standing.by else ''} before"
    by = answer.by or standing.by
    return f"was {answer.verdict}{f' by {by}' if by else ''} before{f' ({answer.note})' if answer.note else ''}"


def _own_name(task_id: str) -> str:
    """The last token of an id, less what says that it is a proposal."""
    return task_id.rpartition(".")[2].removeprefix("~").removeprefix(f"{HUMAN}-")
