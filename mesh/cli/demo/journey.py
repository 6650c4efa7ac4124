"""The demo itself: every file to the mesh twice, one peer killed on the way, and everything observed."""

import asyncio
import os
import random
import signal
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Final

from prometheus_client.parser import text_string_to_metric_families
from rich.markup import escape

from agents.code_review import Review, review
from contracts import headers as names
from contracts import wire
from contracts.card import Described
from contracts.control import Runs, WhoRuns
from contracts.outcome import Outcome
from contracts.subjects import Identity
from mesh.bus import topology
from mesh.bus.commit import read_outcome
from mesh.bus.connection import Bus
from mesh.bus.ledger import read_ledger
from mesh.bus.records import read_many
from mesh.cli.console import Failed
from mesh.cli.demo.corpus import Corpus
from mesh.cli.demo.peers import ASK_WITHIN_S, PeerProcess
from mesh.cli.demo.summary import History, Kill, Recorded, choose_victim
from mesh.cli.fleet import describe
from mesh.client import Handle, Mesh
from mesh.errors import DeadlineExceeded
from mesh.fibers import serving
from mesh.settings import Settings

ANSWERED_WITHIN_S: Final = 60.0
QUEUE_EMPTY_WITHIN_S: Final = 20.0
SCRAPE_WITHIN_S: Final = 5.0
LOOK_AGAIN_S: Final = 0.1
KILL_BETWEEN: Final = (0.25, 0.5)
"""The share of results after which the peer is killed, drawn from the seed."""

Tell = Callable[[str], None]


@dataclass(slots=True)
class Observer:
    """Hears the server's echo of every stored result, and takes part in nothing."""

    bus: Bus
    on_result: Callable[[], None]
    echoes: list[tuple[str, int]] = field(default_factory=list)
    _heard: asyncio.Event = field(default_factory=asyncio.Event)

    def listening(self) -> AbstractAsyncContextManager[None]:
        """Hear results until left."""
        return self.bus.listening(self.bus.subjects.result_echo[1], self._note)

    async def until(self, results: int) -> None:
        """Return when that many results are stored."""
        while len(self.echoes) < results:
            self._heard.clear()
            await self._heard.wait()

    def _note(self, subject: str, _: bytes, found: Mapping[str, str]) -> None:
        self.echoes.append((self.bus.subjects.parse(subject).id, int(found.get(names.SEQUENCE, 0))))
        self._heard.set()
        self.on_result()


@dataclass(slots=True)
class Submission:
    """What one submitter asked for, and what it was told."""

    handles: list[Handle[Review]] = field(default_factory=list)
    answers: list[tuple[str, Outcome]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Stage:
    """Everything the journey needs: who is there, what is to be done, and whom to tell."""

    url: str
    bus: Bus
    peers: Sequence[PeerProcess]
    described: dict[str, Described]
    corpus: Corpus
    seed: int
    began_at: float
    tell: Tell
    on_result: Callable[[], None]

    def process_of(self, peer: str) -> PeerProcess:
        pid = self.described[peer].beat.pid
        return next(process for process in self.peers if process.pid == pid)

    def peers_in_order(self) -> list[str]:
        """Peer ids in the order in which their processes were started."""
        return sorted(self.described, key=lambda peer: self.process_of(peer).number)

    def path_of(self, key: str) -> str:
        return next((wanted.file.path for wanted in self.corpus.wanted if wanted.key == key), key)


def default_settings(url: str) -> Settings:
    """The shipped defaults with a server, whatever MESH_* variables say."""
    return Settings.model_construct(nats_url=url)


async def travel(stage: Stage) -> History:
    """Submit everything twice, kill a peer on the way, wait for every answer, and read everything back."""
    observer = Observer(stage.bus, stage.on_result)
    submissions = (Submission(), Submission())
    settings = default_settings(stage.url)
    killed: set[int] = set()
    async with (
        serving(*(_outlived(stage, peer, killed) for peer in stage.peers)),
        observer.listening(),
        Mesh.connect(settings=settings, name="submitter-1") as first,
        Mesh.connect(settings=settings, name="submitter-2") as second,
    ):
        total = len(stage.corpus.wanted)
        stage.tell(f"Two submitters send all {total} files, each under the same keys: {2 * total} submissions.")
        submitted_from = time.time()
        async with asyncio.TaskGroup() as fibers:
            fibers.create_task(_submit(first, stage.corpus, submissions[0]))
            fibers.create_task(_submit(second, stage.corpus, submissions[1]))
            killing = fibers.create_task(_kill_one(stage, observer, killed))
        handles = [handle for submission in submissions for handle in submission.handles]
        started = sum(handle.is_new for handle in handles)
        stage.tell(f"{started} submissions started a task; {len(handles) - started} were told that it exists already.")
        if kill := killing.result():
            stage.tell(
                f"What it held is handed to others once it has been silent for {settings.ack_wait_s:g} s (ack_wait)."
            )
        give_up_at = time.monotonic() + ANSWERED_WITHIN_S
        for submission in submissions:
            await _await_answers(submission, give_up_at)
        # The observer listens on: what is answered a second time may well be answered late.
        queued = await _until_queue_empty(stage.bus)
        redelivered = await _count_redeliveries(stage)
        records = await _read_back(stage.bus)
    return History(
        began_at=stage.began_at,
        submitted_from=submitted_from,
        ended_at=time.time(),
        accepted=[handle.id for handle in handles],
        started=started,
        answers=[answer for submission in submissions for answer in submission.answers],
        echoes=observer.echoes,
        records=records,
        kills=[kill] if kill is not None else [],
        redelivered=redelivered,
        queued=queued,
    )


async def _submit(mesh: Mesh, corpus: Corpus, submission: Submission) -> None:
    for wanted in corpus.wanted:
        submission.handles.append(await mesh.submit(review, wanted.file, key=wanted.key))


async def _await_answers(submission: Submission, give_up_at: float) -> None:
    for handle in submission.handles:
        try:
            outcome = await handle.outcome(within_s=max(0.0, give_up_at - time.monotonic()))
        except DeadlineExceeded:
            continue
        submission.answers.append((handle.id, outcome))


async def _outlived(stage: Stage, peer: PeerProcess, killed: set[int]) -> None:
    """Tell when a peer ends that is not among the `killed`.

    Raises:
        Failed: no other is left; the message has the end of its log.
    """
    code = await peer.process.wait()
    if peer.pid in killed:
        return
    if not any(other.is_running for other in stage.peers):
        raise Failed(f"{peer}, the last one, ended with {code}, unasked: {peer.last_words()}")
    stage.tell(f"{peer} ended with {code}, unasked; the others go on.")


async def _kill_one(stage: Stage, observer: Observer, killed: set[int]) -> Kill | None:
    """Kill a peer in the middle of a task, once a share of the results is stored.

    The seed says when, and which peer if it is running something. None: there was nothing to interrupt.
    """
    dice = random.Random(stage.seed)  # noqa: S311  # a run can be repeated
    kill_after = int(len(stage.corpus.wanted) * dice.uniform(*KILL_BETWEEN))
    victims = stage.peers_in_order()
    dice.shuffle(victims)
    try:
        async with asyncio.timeout(ANSWERED_WITHIN_S):
            await observer.until(kill_after)
    except TimeoutError:
        return None
    while len(observer.echoes) < len(stage.corpus.wanted):
        victim = choose_victim(victims, await _who_runs(stage.bus, enough=len(victims)))
        if victim is None:
            continue
        peer, said = victim
        process = stage.process_of(peer)
        # Stopped first: it may have finished since it answered, and what is named is to be in its hands.
        os.kill(process.pid, signal.SIGSTOP)
        running = await _unrecorded(stage.bus, said)
        if not running:
            os.kill(process.pid, signal.SIGCONT)
            continue
        killed.add(process.pid)
        os.kill(process.pid, signal.SIGKILL)
        kill = Kill(peer, time.time(), running)
        stage.tell(
            f"[bold red]SIGKILL[/] to {process} (process {process.pid}) in the middle of"
            f" [bold]{escape(stage.path_of(running[0]))}[/]."
        )
        return kill
    return None


async def _who_runs(bus: Bus, *, enough: int) -> dict[str, tuple[str, ...]]:
    """The keys of what each peer says it is running."""
    subject, question = bus.subjects.ctl("all", "who-runs"), wire.encode(WhoRuns())
    answers = list(wire.readable(Runs, await bus.gather(subject, question, within_s=ASK_WITHIN_S, enough=enough)))
    return {runs.peer: tuple(task.id for task in runs.running) for runs in answers}


async def _unrecorded(bus: Bus, keys: Sequence[str]) -> tuple[str, ...]:
    """Those of the tasks that have no result record yet."""
    subjects = [bus.subjects.result(Identity(review.name, key)) for key in keys]
    return tuple(key for key, stored in zip(keys, await read_many(bus, subjects), strict=True) if stored is None)


async def _until_queue_empty(bus: Bus) -> int:
    """Wait until no task is left, and return how many still are after a while."""
    give_up_at = time.monotonic() + QUEUE_EMPTY_WITHIN_S
    while True:
        queued = len(await topology.queued(bus, bus.subjects.tasks_of()))
        if not queued or time.monotonic() > give_up_at:
            return queued
        await asyncio.sleep(LOOK_AGAIN_S)


async def _read_back(bus: Bus) -> dict[str, Recorded]:
    """Every result record in the stream, by key."""
    subjects = await topology.queued(bus, bus.subjects.results_of())
    records: dict[str, Recorded] = {}
    for stored in await read_many(bus, sorted(subjects)):
        if stored is None:
            continue
        task, outcome = bus.subjects.parse(stored.subject).identity, read_outcome(stored)
        ended = (await read_ledger(bus, task, is_redelivered=False)).ended if outcome.attempt > 1 else ()
        records[task.id] = Recorded(outcome, stored.sequence, stored.stored_at, ended_before=len(ended))
    return records


async def _count_redeliveries(stage: Stage) -> int:
    """Repeated deliveries, as the living peers' metrics count them."""
    living = await describe(stage.bus, within_s=ASK_WITHIN_S, enough=sum(peer.is_running for peer in stage.peers))
    return sum([await asyncio.to_thread(_redeliveries, found.metrics_url) for found in living])


def _redeliveries(metrics_url: str) -> int:
    with urllib.request.urlopen(f"{metrics_url}/metrics", timeout=SCRAPE_WITHIN_S) as page:  # noqa: S310  # our peer's
        text = page.read().decode()
    return int(
        sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "mesh_redeliveries_total"
        )
    )
