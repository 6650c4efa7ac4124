"""What a handler can say besides its answer, on a context made by hand."""

import time

import msgspec
import pytest

from contracts import wire
from contracts.errors import ContractError
from contracts.outcome import DecidedBy, Spent
from contracts.subjects import CHILD_ID_BYTES_MAX, ID_BYTES_MAX, SESSION, Identity, is_legal_id
from contracts.task import Budget, Sender, Task
from mesh.agent import Agent
from mesh.context import BlockingContext, Context
from mesh.digest import digest
from mesh.task_context import PARTS_KEPT, SENDS_MAX

agent = Agent("tester")


class Order(msgspec.Struct):
    item: str


@agent.handles("pack")
async def pack(order: Order) -> None:
    return None


def context(task: Task | None = None, task_id: str = "order-42") -> Context:
    return Context(
        Identity("sell", task_id), task, me=Sender(agent="tester", role="shop"), trace={"traceparent": "00-ab-cd-01"}
    )


def test_a_child_is_named_by_what_is_asked() -> None:
    first, second = context(), context()

    asked = [first.send(pack, Order("tea")), first.send(pack, Order("milk")), first.send("weigh", Order("tea"))]
    again = [second.send("weigh", Order("tea")), second.send(pack, Order("milk")), second.send("pack", Order("tea"))]

    assert sorted(asked) == sorted(again)
    assert len(set(asked)) == 3
    assert all(child.startswith("order-42.~") and is_legal_id(child) for child in asked)


def test_the_same_asked_twice_is_two_children_and_the_same_two_again() -> None:
    first, second = context(), context()

    asked = [first.send(pack, Order("tea")) for _ in range(3)]
    again = [second.send(pack, Order("tea")) for _ in range(3)]

    assert asked == again
    assert len(set(asked)) == 3


def test_a_name_fixes_the_childs_id() -> None:
    sending = context()

    child = sending.send(pack, Order("tea"), name="first")

    assert child == "order-42.~first"


def test_a_name_is_used_once_per_capability() -> None:
    sending = context()
    sending.send(pack, Order("tea"), name="first")

    with pytest.raises(ContractError, match=r"pack/order-42\.~first is sent already: give each send its own name"):
        sending.send(pack, Order("milk"), name="first")

    assert sending.send("weigh", Order("tea"), name="first") == "order-42.~first"
    assert len(sending.sends) == 2


@pytest.mark.parametrize("name", ["", "two words", "a.b", "~x", "a>", "x" * (ID_BYTES_MAX + 1)])
def test_a_name_that_is_no_id_is_refused(name: str) -> None:
    sending = context()

    with pytest.raises(ContractError):
        sending.send(pack, Order("tea"), name=name)

    assert sending.sends == []


def test_an_illegal_capability_or_payload_is_refused_before_anything_is_sent() -> None:
    sending = context()

    with pytest.raises(ContractError, match="capability"):
        sending.send("two words", Order("tea"))
    with pytest.raises(ContractError, match="cannot travel"):
        sending.send(pack, object())

    assert sending.sends == []


def test_a_task_sends_a_bounded_number_of_others() -> None:
    sending = context()
    for number in range(SENDS_MAX):
        sending.send("pack", number, name=str(number))

    with pytest.raises(ContractError, match=f"a task sends at most {SENDS_MAX} others"):
        sending.send("pack", name="one-more")

    assert len(sending.sends) == SENDS_MAX


def test_children_of_children_end_where_ids_end() -> None:
    deep = context(task_id="a" + ".~deeper" * (CHILD_ID_BYTES_MAX // 8))

    with pytest.raises(ContractError, match="nested too deep"):
        deep.send(pack, Order("tea"))

    assert deep.sends == []


def test_a_child_inherits_what_belongs_to_the_whole_tree() -> None:
    budget = Budget(usd=1.0)
    parent = context(Task(deadline=time.time() + 60, conversation="c1", budget=budget, lineage=()))

    parent.send(pack, Order("tea"), reason="sold", confidence=0.5)

    (send,) = parent.sends
    assert send.task == Task(
        digest=digest(wire.encode(Order("tea"))),
        deadline=parent.deadline,
        sender=Sender(agent="tester", role="shop"),
        lineage=("sell",),
        conversation="c1",
        budget=budget,
        confidence=0.5,
        reason="sold",
    )
    assert send.traceparent == "00-ab-cd-01"
    assert bytes(send.payload) == wire.encode(Order("tea"))


def test_a_childs_own_deadline_counts_from_now() -> None:
    parent = context(Task(deadline=1.0))
    before = time.time()

    parent.send(pack, Order("tea"), deadline_s=30)

    deadline = parent.sends[0].task.deadline
    assert deadline is not None
    assert before + 30 <= deadline <= time.time() + 30


@pytest.mark.parametrize(
    ("task_id", "lineage", "childs"),
    [
        ("a", (), ("sell",)),
        ("s-1.~0", (SESSION,), (SESSION, "sell")),
        ("a.~b", ("buy",), ("buy", "sell")),
        # A raw publisher told no lineage: the ancestors' capabilities are unknown.
        ("a.~b.~c", (), (SESSION, SESSION, "sell")),
    ],
)
def test_a_child_knows_the_capabilities_of_its_ancestors(
    task_id: str, lineage: tuple[str, ...], childs: tuple[str, ...]
) -> None:
    parent = context(Task(lineage=lineage), task_id)

    parent.send(pack, Order("tea"))

    (send,) = parent.sends
    assert send.task.lineage == childs
    assert len(send.task.lineage) == send.id.count(".")


def test_a_child_speaks_its_parents_content_type() -> None:
    packed = Context(Identity("sell", "k"), content_type="application/msgpack")
    plain = Context(Identity("sell", "k"))

    packed.send(pack, Order("tea"))
    plain.send(pack, Order("tea"))

    assert wire.decode(Order, bytes(packed.sends[0].payload), "application/msgpack") == Order("tea")
    assert wire.decode(Order, bytes(plain.sends[0].payload)) == Order("tea")


@pytest.mark.parametrize("confidence", [0, 0.5, 1])
def test_an_explanation_is_kept(confidence: float) -> None:
    explained = context()

    explained.explain(confidence=confidence, reason="seen before", model="m", model_digest="d", prompt_digest="p")

    assert explained.confidence == confidence
    assert explained.reason == "seen before"
    assert explained.decided_by == DecidedBy(model="m", model_digest="d", prompt_digest="p")


@pytest.mark.parametrize("confidence", [-0.01, 1.01, float("inf"), float("nan")])
def test_a_confidence_outside_0_to_1_is_refused_and_changes_nothing(confidence: float) -> None:
    explained = context()
    explained.explain(confidence=0.5, reason="kept")

    with pytest.raises(ContractError, match="outside 0 to 1"):
        explained.explain(confidence=confidence, reason="lost")

    assert (explained.confidence, explained.reason) == (0.5, "kept")


def test_a_later_explanation_replaces_what_it_says_and_keeps_the_rest() -> None:
    explained = context()

    explained.explain(confidence=0.5, reason="first", model="small", prompt_digest="p1")
    explained.explain(reason="second", model="large")

    assert (explained.confidence, explained.reason) == (0.5, "second")
    assert explained.decided_by == DecidedBy(model="large", prompt_digest="p1")


def test_reports_of_what_was_spent_add_up() -> None:
    spending = context()
    assert spending.spent_total is None

    spending.spent(tokens_in=10, usd=0.25)
    spending.spent(tokens_in=1, tokens_out=5, usd=0.5)

    assert spending.spent_total == Spent(tokens_in=11, tokens_out=5, usd=0.75)


async def test_parts_are_numbered_from_0_and_the_last_thousand_kept() -> None:
    published: list[tuple[int, int, bytes]] = []

    async def publish(attempt: int, sequence: int, encoded: bytes) -> None:
        published.append((attempt, sequence, encoded))

    emitting = Context(Identity("sell", "k"), attempt=3, emit_part=publish)

    for number in range(PARTS_KEPT + 2):
        await emitting.emit(number)

    assert published[:2] == [(3, 0, b"0"), (3, 1, b"1")]
    assert emitting.parts_emitted == PARTS_KEPT + 2
    assert len(emitting.parts) == PARTS_KEPT
    assert emitting.parts[0] == (2, 2)


async def test_a_part_that_cannot_travel_takes_no_number() -> None:
    emitting = context()

    with pytest.raises(ContractError, match="cannot travel"):
        await emitting.emit(object())
    await emitting.emit("fine")

    assert list(emitting.parts) == [(0, "fine")]


def test_a_context_that_blocks_collects_parts_and_sends_the_same_way() -> None:
    blocking = BlockingContext(Identity("sell", "order-42"))

    blocking.emit("a")
    child = blocking.send(pack, Order("tea"))

    assert list(blocking.parts) == [(0, "a")]
    assert child == context().send(pack, Order("tea"))


def test_the_idempotency_key_names_the_task_whatever_the_attempt() -> None:
    first = Context(Identity("sell", "k"), attempt=1)
    second = Context(Identity("sell", "k"), attempt=2)

    assert first.idempotency_key == second.idempotency_key == "sell/k"
    assert Context(Identity("buy", "k")).idempotency_key != first.idempotency_key
