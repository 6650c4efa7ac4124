"""Whatever order echoes and snapshots come in, a peer ends up with the control records as they are."""

import time

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from contracts import headers as names
from contracts import wire
from contracts.control import Cancel, Pause
from contracts.subjects import Identity, Subjects, key_cancel, key_pause
from mesh.bus.records import Stored
from mesh.runtime.controls import Controls

TASKS = [Identity("a", "k1"), Identity("a", "k1.~c"), Identity("b", "k2")]
CAPABILITIES = ["a", "b"]
KEYS = [*map(key_cancel, TASKS), *map(key_pause, CAPABILITIES)]
NOW = time.time()

SUBJECTS = Subjects("mesh")


def told(key: str, sequence: int) -> dict[str, str]:
    """The headers by which the server says what it echoes."""
    return {
        names.STREAM: SUBJECTS.control_stream,
        names.SUBJECT: SUBJECTS.control_record(key),
        names.SEQUENCE: str(sequence),
    }


class Bucket(RuleBasedStateMachine):
    """The server's bucket, the link to one peer, and what the peer has made of both.

    Echoes come in order, late, or not at all when the link is lost; then a snapshot follows. A snapshot shows
    the bucket as it was when it was taken, and comes in at any time after.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sequence = 0
        self.stored: dict[str, Stored] = {}
        self.echoes: list[tuple[str, bytes, dict[str, str]]] = []
        self.snapshot: tuple[list[Stored], dict[str, int]] | None = None
        self.is_snapshot_due = False
        self.changes = 0
        self.controls = Controls(SUBJECTS, cancel_ttl_s=86_400)
        self.controls.on_change.append(self._count)

    def _count(self) -> None:
        self.changes += 1

    def _echo(self, key: str, data: bytes, headers: dict[str, str]) -> None:
        echo = SUBJECTS.control_echo[1].replace(">", key)
        self.echoes.append((echo, data, {**headers, **told(key, self.sequence)}))

    @rule(key=st.sampled_from(KEYS))
    def put(self, key: str) -> None:
        self.sequence += 1
        data = wire.encode(Cancel(at=NOW) if key.startswith("cancel") else Pause(at=NOW))
        self.stored[key] = Stored(SUBJECTS.control_record(key), self.sequence, NOW, data, {})
        self._echo(key, data, {})

    @rule(key=st.sampled_from(KEYS))
    def take_back(self, key: str) -> None:
        self.sequence += 1
        self.stored.pop(key, None)
        self._echo(key, b"", {"KV-Operation": "DEL"})

    @precondition(lambda self: not self.echoes)
    @rule(key=st.sampled_from(KEYS))
    def expire(self, key: str) -> None:
        """Nothing tells of it but the next snapshot. It takes far longer than an echo."""
        if self.stored.pop(key, None) is not None:
            self.is_snapshot_due = True

    @precondition(lambda self: self.echoes)
    @rule()
    def hear(self) -> None:
        self.controls.heard(*self.echoes.pop(0))

    @rule()
    def lose_the_link(self) -> None:
        self.echoes.clear()
        self.snapshot = None
        self.is_snapshot_due = True

    @precondition(lambda self: self.snapshot is None)
    @rule()
    def take_a_snapshot(self) -> None:
        self.snapshot = list(self.stored.values()), self.controls.known()
        self.is_snapshot_due = False

    @precondition(lambda self: self.snapshot is not None)
    @rule()
    def read_the_snapshot(self) -> None:
        assert self.snapshot is not None
        before = self.changes
        self.controls.read(*self.snapshot)
        self.snapshot = None
        assert self.changes == before + 1

    @invariant()
    def an_uncancelled_task_is_cancelled_by_nobody(self) -> None:
        assert self.controls.cancel_of(Identity("c", "k3"), ()) is None

    def teardown(self) -> None:
        if self.snapshot is not None:
            self.read_the_snapshot()
        if self.is_snapshot_due:
            self.take_a_snapshot()
            self.read_the_snapshot()
        while self.echoes:
            self.hear()

        cancelled = {task for task in TASKS if self.controls.cancel_of(task, ("x",) * task.id.count("."))}
        paused = {capability for capability in CAPABILITIES if self.controls.is_paused(capability)}
        assert cancelled == {task for task in TASKS if key_cancel(task) in self.stored}
        assert paused == {capability for capability in CAPABILITIES if key_pause(capability) in self.stored}


TestControlsConverge = Bucket.TestCase
TestControlsConverge.settings = settings(max_examples=300, stateful_step_count=25, deadline=None)


def cancelled(*tasks: Identity, at: float = NOW) -> Controls:
    controls = Controls(SUBJECTS, cancel_ttl_s=3_600)
    for number, task in enumerate(tasks, 1):
        record = SUBJECTS.control_record(key_cancel(task))
        controls.heard(record, wire.encode(Cancel(at=at, reason=str(task))), told(key_cancel(task), number))
    return controls


def test_a_cancel_covers_everything_below_its_task() -> None:
    controls = cancelled(Identity("a", "k1"))

    assert controls.cancel_of(Identity("b", "k1.~c"), ("a",)) is not None
    assert controls.cancel_of(Identity("c", "k1.~c.~d"), ("a", "b")) is not None
    assert controls.cancel_of(Identity("b", "k1.~c"), ("x",)) is None
    assert controls.cancel_of(Identity("b", "k1"), ()) is None
    assert controls.cancel_of(Identity("b", "k10"), ()) is None


def test_a_cancel_of_a_child_leaves_its_parent() -> None:
    controls = cancelled(Identity("b", "k1.~c"))

    assert controls.cancel_of(Identity("a", "k1"), ()) is None
    assert controls.cancel_of(Identity("b", "k1.~c"), ("a",)) is not None


def test_a_cancel_as_old_as_any_result_covers_nothing() -> None:
    controls = cancelled(Identity("a", "k1"), at=NOW - 3_601)

    assert controls.cancel_of(Identity("a", "k1"), ()) is None


def test_a_cancel_of_a_newer_format_still_cancels() -> None:
    controls = Controls(SUBJECTS, cancel_ttl_s=3_600)
    newer = wire.amend(wire.encode(Cancel(at=NOW)), {"v": wire.FORMAT + 1})

    controls.heard(SUBJECTS.control_record(key_cancel(TASKS[0])), newer, told(key_cancel(TASKS[0]), 1))

    assert controls.cancel_of(TASKS[0], ()) is not None


def test_what_only_looks_like_the_echo_of_a_change_is_passed_over() -> None:
    controls = Controls(SUBJECTS, cancel_ttl_s=3_600)
    key, pause = key_pause("a"), wire.encode(Pause(at=NOW))
    elsewhere = {names.STREAM: SUBJECTS.stream, names.SUBJECT: SUBJECTS.control_record(key), names.SEQUENCE: "9"}
    other = {**told(key_pause("b"), 9)}

    for headers in ({}, {names.SEQUENCE: "9"}, elsewhere, other):
        controls.heard(SUBJECTS.control_record(key), pause, headers)

    assert not controls.is_paused("a")
