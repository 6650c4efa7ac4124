"""The causal tree: assembled from records alone, and cut to what fits on a screen."""

from typing import Any

import msgspec
import pytest

from contracts import headers, wire
from contracts.outcome import (
    AttemptBegan,
    AttemptEnded,
    Ended,
    Failure,
    FailureKind,
    Outcome,
    Send,
    Spent,
    Status,
)
from contracts.subjects import Identity, Subjects
from contracts.task import Task
from contracts.workflow import Answer, Closing, HandoffTo, Signal, Step, Verdict
from mesh.bus.records import Stored
from mesh.cli.trace import document, headline, leaf_line, lines
from mesh.cli.view import ALIKE_SHOWN, View, hidden, view
from mesh.lineage import Edge, Leaf, Lineage, Mark, Node, Runner, State, Tree, open_waits

SUBJECTS = Subjects("mesh")
ROOT = Identity("order", "o-1")
NOW = 1_000_000.0


class Records:
    """The records of one tree, stored a second apart unless it is said when."""

    def __init__(self) -> None:
        self.lineage = Lineage(SUBJECTS)
        self._at = NOW - 1_000

    def add(self, subject: str, body: Any = b"", *, at: float | None = None, **found: str) -> None:
        self._at += 1
        data = body if isinstance(body, bytes) else wire.encode(body)
        self.lineage.note(Stored(subject, 1, at or self._at, data, {**found}))

    def task(self, task: Identity, **envelope: Any) -> None:
        self.add(SUBJECTS.task(task), b"1", **{headers.TASK: wire.encode(Task(**envelope)).decode()})

    def park(self, task: Identity, *, since: float) -> None:
        self.add(SUBJECTS.park(task), b"1", **{headers.PARKED: repr(since)})

    def done(self, task: Identity, *, at: float | None = None, **more: Any) -> None:
        self.add(SUBJECTS.result(task), Outcome(**{"status": Status.DONE, **more}), at=at)

    def step(self, task: Identity, name: str, record: Any, *, at: float | None = None) -> None:
        self.add(SUBJECTS.step(task, name), record, at=at)

    def tree(self, root: Identity = ROOT, **more: Any) -> Tree:
        tree = self.lineage.tree(root, now=NOW, running=more.pop("running", {}), **more)
        assert tree is not None
        return tree


@pytest.fixture
def records() -> Records:
    return Records()


def below(task: Identity, capability: str, token: str) -> Identity:
    return Identity(capability, f"{task.id}.~{token}")


def text(node: Node) -> str:
    return "".join(part for part, _ in headline(node, NOW))


def words(leaf: Leaf) -> str:
    return "".join(part for part, _ in leaf_line(leaf, NOW))


def number(value: float) -> Step:
    return Step(value=msgspec.Raw(repr(value).encode()))


def test_nothing_on_record_is_no_tree() -> None:
    assert Lineage(SUBJECTS).tree(ROOT, now=NOW, running={}) is None


def test_children_hang_below_the_task_that_asked_for_them_however_deep(records: Records) -> None:
    child = below(ROOT, "lookup", "lookup-1-c0")
    grandchild = below(child, "fetch", "fetch-1-c0")
    records.done(grandchild)
    records.done(ROOT)
    records.done(child)

    tree = records.tree()

    assert [node.task for node in tree] == [ROOT, child, grandchild]
    assert [node.edge for node in tree] == [Edge.ROOT, Edge.CALL, Edge.CALL]


def test_siblings_stand_in_the_order_in_which_they_were_submitted(records: Records) -> None:
    slow, quick = below(ROOT, "a", "a-1-c0"), below(ROOT, "b", "b-1-c0")
    records.task(ROOT)
    records.done(quick, at=NOW - 10, queue_s=1, run_s=1)
    records.done(slow, at=NOW - 5, queue_s=5, run_s=45)

    assert [child.task for child in records.tree().root.children] == [slow, quick]


def test_what_a_task_did_and_whom_it_asked_stand_in_one_order(records: Records) -> None:
    records.task(ROOT)
    records.step(ROOT, "first", Step())
    records.task(below(ROOT, "then", "then-1-c0"))
    records.step(ROOT, "last", Step())

    told = lines(view(records.tree(), limit=10), NOW)

    assert [line.split()[0] for line in told] == ["order/o-1", "step", "then", "step"]


def test_what_an_outcome_sends_is_told_from_what_was_called(records: Records) -> None:
    sent, called = below(ROOT, "mail", "mail-1-0"), below(ROOT, "mail", "mail-1-c0")
    send = Send(capability=sent.capability, id=sent.id, payload=msgspec.Raw(b"1"), task=Task())
    records.done(called)
    records.done(ROOT, sends=(send,))
    records.done(sent)

    assert {child.task: child.edge for child in records.tree().root.children} == {sent: Edge.SEND, called: Edge.CALL}


@pytest.mark.parametrize(("ago_s", "state"), [(1.0, State.TO_BE_SENT), (3_600.0, State.NOT_KEPT)])
def test_a_send_without_a_record_is_about_to_be_relayed_or_has_expired(
    records: Records, ago_s: float, state: State
) -> None:
    send = Send(capability="mail", id=f"{ROOT.id}.~m", payload=msgspec.Raw(b"1"), task=Task())
    records.done(ROOT, sends=(send,), at=NOW - ago_s)

    assert [child.state for child in records.tree().root.children] == [state]


@pytest.mark.parametrize(
    ("token", "edge"),
    [
        ("handoff", Edge.HANDOFF),
        ("verify-2", Edge.VERIFICATION),
        ("redrive-17", Edge.REDRIVE),
        ("order-ab-c1", Edge.CALL),
    ],
)
def test_a_childs_name_tells_how_it_came_to_be(records: Records, token: str, edge: Edge) -> None:
    records.done(ROOT)
    records.done(below(ROOT, "other", token))

    assert [child.edge for child in records.tree().root.children] == [edge]


def test_a_task_whose_parent_is_not_kept_hangs_below_its_place(records: Records) -> None:
    lost = below(ROOT, "middle", "middle-1-c0")
    leaf = below(lost, "leaf", "leaf-1-c0")
    records.done(ROOT)
    records.task(leaf, lineage=("order", "middle"))

    (middle,) = records.tree().root.children

    assert (middle.task, middle.state) == (lost, State.NOT_KEPT)
    assert [node.task for node in middle.children] == [leaf]


def test_of_two_tasks_with_one_id_a_child_hangs_below_the_one_that_it_names(records: Records) -> None:
    namesake = Identity("invoice", ROOT.id)
    mine, other = below(ROOT, "lookup", "l-1-c0"), below(ROOT, "lookup", "l-2-c0")
    for task in (ROOT, namesake):
        records.task(task)
    records.task(mine, lineage=("order",))
    records.task(other, lineage=("invoice",))

    assert [child.task for child in records.tree(ROOT).root.children] == [mine]
    assert [child.task for child in records.tree(namesake).root.children] == [other]


def test_a_clients_session_is_a_root_without_a_record(records: Records) -> None:
    session = Identity("-", "s-1")
    records.done(Identity("add", "s-1.~0"))
    records.done(Identity("add", "s-1.~1"))

    tree = records.tree(session)

    assert tree.root.state is State.NOT_KEPT
    assert len(tree.root.children) == 2


def test_a_result_says_what_a_task_came_to_whoever_claims_to_run_it(records: Records) -> None:
    records.task(ROOT)
    records.done(ROOT, status=Status.FAILED, failure=Failure(kind=FailureKind.PERMANENT, message="no\nink"))

    node = records.tree(running={ROOT: Runner("p1", NOW, 1, is_waiting=False)}).root

    assert node.state is State.FAILED
    assert "failed" in text(node)
    assert "no ink" in text(node)


@pytest.mark.parametrize(("is_waiting", "state"), [(False, State.RUNNING), (True, State.WAITING)])
def test_what_a_peer_has_in_hand_runs_or_waits_there(records: Records, is_waiting: bool, state: State) -> None:
    records.park(ROOT, since=NOW - 50)

    node = records.tree(running={ROOT: Runner("p1", NOW - 3, 2, is_waiting=is_waiting)}).root

    assert (node.state, node.peer, node.attempt, node.since) == (state, "p1", 2, NOW - 3)


def test_a_parked_task_waits_since_its_last_run_and_says_for_what(records: Records) -> None:
    child, over = below(ROOT, "lookup", "lookup-1-c0"), below(ROOT, "lookup", "lookup-2-c0")
    records.park(ROOT, since=NOW - 900)
    records.step(ROOT, "~~ended-1", AttemptEnded(how=Ended.PARKED, peer="p1", at=NOW - 800))
    records.step(ROOT, "~~began-2", AttemptBegan(peer="p2", at=NOW - 500))
    records.step(ROOT, "~~ended-2", AttemptEnded(how=Ended.PARKED, peer="p2", at=NOW - 400))
    records.step(ROOT, "~~patience-paid", number(NOW + 60))
    records.step(ROOT, "~~sleep-500ms-0", number(NOW - 100))
    records.task(child)
    records.done(over)

    node = records.tree().root

    assert (node.state, node.submitted_at, node.since, node.parks) == (State.PARKED, NOW - 900, NOW - 400, 2)
    waits = [wait.name if isinstance(wait, Leaf) else wait.task for wait in node.waits()]
    assert waits == [child, "paid"]
    assert "parked for 7 min, for 1 child or until" in text(node)
    assert "(in 60 s)" in text(node)


def test_a_woken_task_is_about_to_go_on_or_served_by_nobody(records: Records) -> None:
    records.park(ROOT, since=NOW - 900)
    records.add(SUBJECTS.wake(ROOT))

    assert records.tree().root.state is State.WOKEN
    assert records.tree(unserved=["order"]).root.state is State.UNSERVED
    assert records.lineage.queued == {"order"}


def test_a_failed_attempt_is_told_with_the_time_of_the_next(records: Records) -> None:
    records.task(ROOT)
    failure = Failure(kind=FailureKind.TRANSIENT, message="busy")
    end = AttemptEnded(how=Ended.FAILED, peer="p1", at=NOW - 5, retry_at=NOW + 30, failure=failure)
    records.step(ROOT, "~~ended-1", end)

    node = records.tree().root

    assert (node.state, node.until) == (State.RETRYING, NOW + 30)
    (leaf,) = node.leaves
    assert leaf.mark is Mark.ATTEMPT_FAILED
    assert words(leaf).startswith("attempt 1 failed on p1, again ")
    assert ": busy" in words(leaf)


def test_a_throttled_attempt_is_told_with_the_time_that_its_callee_said(records: Records) -> None:
    records.task(ROOT)
    failure = Failure(kind=FailureKind.TRANSIENT, message="429 Too Many Requests")
    end = AttemptEnded(
        how=Ended.HANDED_BACK, peer="p1", at=NOW - 5, retry_at=NOW + 30, failure=failure, is_throttled=True
    )
    records.step(ROOT, "~~ended-1", end)

    (leaf,) = records.tree().root.leaves

    assert leaf.mark is Mark.THROTTLED
    assert words(leaf).startswith("attempt 1 was throttled on p1, again ")
    assert ": 429 Too Many Requests" in words(leaf)


def test_an_attempt_without_an_end_was_lost_unless_it_is_the_last_one(records: Records) -> None:
    records.task(ROOT)
    records.step(ROOT, "~~began-2", AttemptBegan(peer="p2", at=NOW - 50))
    records.step(ROOT, "~~began-3", AttemptBegan(peer="p3", at=NOW - 40))

    queued = records.tree().root
    records.done(ROOT, attempt=3)
    done = records.tree().root

    for node in (queued, done):
        assert [(leaf.mark, leaf.peer) for leaf in node.leaves] == [(Mark.ATTEMPT_LOST, "p2")]


@pytest.mark.parametrize(
    ("name", "record", "told"),
    [
        ("charge", Step(run_s=0.02, attempt=2, spent=Spent(usd=0.5)), "step charge  in 20 ms, attempt 2, $0.5"),
        ("charge", Step(failure=Failure(kind=FailureKind.PERMANENT, message="broke")), "step charge failed"),
        ("~~version-new-tax", number(1), "follows version 1 of new-tax"),
        ("~~undo-refund-0123456789ab-0", Step(), "undone: refund"),
        ("~~undo-re-fund-0123456789ab-10", Step(), "undone: re-fund"),
        ("~~sleep-250ms-0", number(NOW - 1), "slept until "),
        ("~~sleep-for-tea", number(NOW + 60), "sleeps until "),
        ("~~patience-paid", number(NOW + 60), "waits for the signal paid until "),
        ("~~signal-paid", Signal(by="ann"), "signal paid by ann"),
        ("~~signal-paid", Signal(is_late=True), "nobody signalled paid"),
        ("~~from-the-future", Step(), "from-the-future"),
    ],
)
def test_what_the_mesh_records_of_a_task_reads_as_words(records: Records, name: str, record: Any, told: str) -> None:
    records.task(ROOT)
    records.step(ROOT, name, record)

    (leaf,) = records.tree().root.leaves

    assert words(leaf).startswith(told)


@pytest.mark.parametrize("as_type", ["application/json", "application/msgpack"])
def test_a_handoff_says_to_whom_and_why_in_whatever_it_is_written(records: Records, as_type: Any) -> None:
    to = HandoffTo(capability="expert", payload=msgspec.Raw(wire.encode(1, as_type)), reason="hard", confidence=0.61)
    closing = Closing(outcome=Outcome(status=Status.DONE), to=to)
    records.task(ROOT)
    records.step(ROOT, "~~closing", wire.encode(closing, as_type))

    (leaf,) = records.tree().root.leaves

    assert words(leaf).startswith("handed to expert: hard (confidence 0.61)")


def test_a_proposal_tells_what_was_answered_and_by_whom(records: Records) -> None:
    proposal = below(ROOT, "human", "human-1-c0")
    answer = Answer(verdict=Verdict.EDITED, value=1, by="ann")
    records.done(ROOT)
    records.done(proposal)
    records.step(proposal, "~~signal-answer", Signal(value=msgspec.Raw(wire.encode(answer)), by="ann"))

    (leaf,) = records.tree().root.children[0].leaves

    assert words(leaf).startswith("edited by ann")


def test_costs_add_up_over_the_tree_and_a_steps_count_once(records: Records) -> None:
    child = below(ROOT, "lookup", "lookup-1-c0")
    records.step(ROOT, "think", Step(spent=Spent(tokens_in=5, usd=0.25)))
    records.done(ROOT, spent=Spent(tokens_in=7, usd=0.5))
    records.done(child, spent=Spent(tokens_out=3, usd=1.0))

    root = records.tree().root

    assert root.spent == Spent(tokens_in=7, usd=0.5)
    assert root.total == Spent(tokens_in=7, tokens_out=3, usd=1.5)


def test_a_task_without_a_result_has_used_up_what_its_steps_did(records: Records) -> None:
    records.task(ROOT)
    records.step(ROOT, "think", Step(spent=Spent(usd=0.25)))
    records.step(ROOT, "think-more", Step(spent=Spent(usd=0.5)))

    assert records.tree().root.total == Spent(usd=0.75)


def test_a_record_that_cannot_be_read_does_not_hide_the_others(records: Records) -> None:
    records.task(ROOT)
    records.add(SUBJECTS.result(below(ROOT, "lookup", "l-1-c0")), b"{nonsense")
    records.step(ROOT, "charge", b"\xff")
    records.step(ROOT, "~~signal-paid", b"[]")
    records.add("elsewhere.at.all", b"")

    root = records.tree().root

    assert [leaf.name for leaf in root.leaves] == ["charge", "signal-paid"]
    assert [child.state for child in root.children] == [State.FAILED]


def test_a_chain_as_deep_as_ids_allow_is_assembled_and_shown(records: Records) -> None:
    task = ROOT
    for _ in range(900):
        task = below(task, "down", "a")
        records.done(task)

    tree = records.tree()
    shown = view(tree, limit=10_000)

    assert sum(1 for _ in tree) == 901
    assert 50 < len(lines(shown, NOW)) < 200
    assert hidden(shown) > 700
    assert document(shown)["children"]


def test_what_hangs_below_a_cancelled_task_is_cancelled_and_waits_to_be_told(records: Records) -> None:
    parked, over = below(ROOT, "human", "human-1-c0"), below(ROOT, "lookup", "l-1-c0")
    grandchild = below(parked, "lookup", "l-2-c0")
    records.done(ROOT, status=Status.CANCELLED)
    records.park(parked, since=NOW - 10)
    records.task(grandchild)
    records.done(over)

    cancelled = {node.task for node in records.tree() if node.is_cancelled}

    assert cancelled == {parked, grandchild}


def test_a_cancel_on_record_counts_before_it_is_answered(records: Records) -> None:
    child = below(ROOT, "lookup", "l-1-c0")
    records.task(ROOT)
    records.task(child)

    assert {node.task for node in records.tree(cancelled=[child]) if node.is_cancelled} == {child}
    assert {node.task for node in records.tree(cancelled=[ROOT]) if node.is_cancelled} == {ROOT, child}


# What is shown.


def fan(records: Records, *, done: int, failed: int = 0) -> Tree:
    for index in range(done):
        records.done(below(ROOT, "lookup", f"lookup-{index}-c0"))
    for index in range(failed):
        records.done(below(ROOT, "lookup", f"bad-{index}"), status=Status.FAILED)
    records.done(ROOT)
    return records.tree()


def test_a_tree_that_fits_is_shown_whole(records: Records) -> None:
    shown = view(fan(records, done=50), limit=51)

    assert len(shown.entries) == 50
    assert hidden(shown) == 0


def test_of_many_alike_a_few_are_shown_and_the_rest_is_counted(records: Records) -> None:
    shown = view(fan(records, done=5_000, failed=3), limit=200)

    told = lines(shown, NOW)
    states = [entry.node.state for entry in shown.entries if isinstance(entry, View)]
    assert states.count(State.FAILED) == 3
    assert states.count(State.DONE) == ALIKE_SHOWN
    assert told[-1] == f"  … {5_000 - ALIKE_SHOWN:,} more lookup, all done"
    assert hidden(shown) == 5_000 - ALIKE_SHOWN


def test_what_is_not_done_is_shown_first_where_there_is_room_for_little(records: Records) -> None:
    shown = view(fan(records, done=50, failed=2), limit=3)

    assert [entry.node.state for entry in shown.entries if isinstance(entry, View)] == [State.FAILED, State.FAILED]


def test_what_is_near_the_root_is_shown_before_what_is_far(records: Records) -> None:
    near = [below(ROOT, "near", f"near-{index}-c0") for index in range(5)]
    for task in near:
        records.done(task)
        for index in range(5):
            records.done(below(task, "far", f"far-{index}-c0"))
    records.done(ROOT)

    shown = view(records.tree(), limit=8)

    branches = [entry for entry in shown.entries if isinstance(entry, View)]
    assert [branch.node.task for branch in branches] == near
    assert sum(len(branch.entries) for branch in branches) == 2
    assert hidden(shown) == 23


def test_what_hangs_below_the_left_out_is_counted_too(records: Records) -> None:
    for index in range(30):
        task = below(ROOT, "near", f"near-{index}-c0")
        records.done(task)
        records.done(below(task, "far", "far-0-c0"))
    records.done(ROOT)

    told = lines(view(records.tree(), limit=20), NOW)

    assert told[-1] == "  … 20 more near, all done, with 20 below them"


def test_control_characters_of_a_handler_do_not_reach_the_terminal(records: Records) -> None:
    records.done(ROOT, status=Status.FAILED, failure=Failure(kind=FailureKind.PERMANENT, message="\x1b[31mred\r\nX"))

    assert "\x1b" not in text(records.tree().root)
    assert "\r" not in text(records.tree().root)


# What a parked task waits for, from the names of its records alone.


def test_the_names_of_records_tell_what_is_waited_for() -> None:
    open_child, done_child = below(ROOT, "lookup", "l-1-c0"), below(ROOT, "lookup", "l-2-c0")
    grandchild = below(open_child, "fetch", "f-1-c0")
    standing = [
        SUBJECTS.park(open_child),
        SUBJECTS.park(done_child),
        SUBJECTS.result(done_child),
        SUBJECTS.task(grandchild),
        SUBJECTS.step(ROOT, "~~sleep-for-tea"),
        SUBJECTS.step(ROOT, "~~patience-paid"),
        SUBJECTS.step(ROOT, "~~patience-sent"),
        SUBJECTS.step(ROOT, "~~signal-sent"),
        SUBJECTS.step(open_child, "~~patience-else"),
        SUBJECTS.step(ROOT, "sleep-of-the-just"),
    ]

    found = open_waits(SUBJECTS, ROOT, standing)

    assert found.children == (open_child,)
    assert found.sleeps == ("~~sleep-for-tea",)
    assert found.signals == ("paid",)
