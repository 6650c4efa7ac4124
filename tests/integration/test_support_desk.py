"""The support desk on a real server: who settles a ticket, and what becomes of one that waits for a person."""

from collections.abc import Iterator
from importlib import import_module
from types import ModuleType

import msgspec
import pytest

from agents.support_desk import inbox
from agents.support_desk.payloads import HUMAN, SPECIALIST, SUPPORT, TRIAGE, Label, Resolution, Ticket
from agents.support_desk.settings import MODELS_FILE
from contracts.workflow import Answer, Verdict
from mesh import Agent, Mesh
from mesh.human import agent as people
from mesh.settings import Settings
from mesh.testing import eventually, hosting

CLEAR = "My card was declined when I tried to pay"
UNCLEAR = "Please stop my order"
STRANGE = "Does the moon rise before the tide turns?"


@pytest.fixture(scope="module")
def module() -> Iterator[ModuleType]:
    """The module of the desk, which trains on the shipped tickets when it is imported first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(MODELS_FILE, raising=False)
        yield import_module("agents.support_desk.desk")


@pytest.fixture
def desk(module: ModuleType) -> Agent:
    found: Agent = module.desk
    return found


async def asked(mesh: Mesh, key: str) -> str:
    """The `human` task that the ticket waits for, once it does."""

    async def found() -> str | None:
        return (await inbox.waiting(mesh)).get(key)

    return str(await eventually(found))


@pytest.mark.parametrize(
    ("text", "rung", "label", "queue"),
    [(CLEAR, TRIAGE, "payment_declined", "payments"), (UNCLEAR, SPECIALIST, "cancel_order", "orders")],
    ids=["clear", "unclear"],
)
async def test_a_ticket_is_settled_by_the_first_that_is_sure_of_it(
    mesh: Mesh, settings: Settings, desk: Agent, text: str, rung: str, label: str, queue: str
) -> None:
    async with hosting(desk, people, settings=settings):
        handle = await mesh.submit(SUPPORT, Ticket(text), returns=Resolution)
        resolution = await handle.result(within_s=20)

    assert (resolution.rung, resolution.label, resolution.queue) == (rung, label, queue)


async def test_a_person_who_corrects_a_proposal_writes_the_label_alone(
    mesh: Mesh, settings: Settings, desk: Agent
) -> None:
    async with hosting(desk, people, settings=settings):
        handle = await mesh.submit(SUPPORT, Ticket(STRANGE), key="t-1", returns=Resolution)
        answer = Answer(verdict=Verdict.EDITED, value={"label": "tides"}, by="ann")
        await mesh.signal(HUMAN, await asked(mesh, "t-1"), "answer", answer, by="ann")

        assert await handle.result(within_s=20) == Resolution("tides", HUMAN, 1.0, "general", "Answer it.")


async def test_what_a_person_approves_counts_as_theirs(
    mesh: Mesh, settings: Settings, desk: Agent, module: ModuleType
) -> None:
    proposed = module.models().specialist(STRANGE).label
    async with hosting(desk, people, settings=settings):
        handle = await mesh.submit(SUPPORT, Ticket(STRANGE), key="t-1", returns=Resolution)
        answer = Answer(verdict=Verdict.APPROVED, by="ann")
        await mesh.signal(HUMAN, await asked(mesh, "t-1"), "answer", answer, by="ann")
        resolution = await handle.result(within_s=20)

    assert (resolution.label, resolution.rung, resolution.confidence) == (proposed, HUMAN, 1.0)


async def test_a_ticket_that_a_person_rejects_is_closed(mesh: Mesh, settings: Settings, desk: Agent) -> None:
    async with hosting(desk, people, settings=settings):
        handle = await mesh.submit(SUPPORT, Ticket(STRANGE), key="t-1", returns=Resolution)
        answer = Answer(verdict=Verdict.REJECTED, by="ann", note="spam")
        await mesh.signal(HUMAN, await asked(mesh, "t-1"), "answer", answer, by="ann")
        resolution = await handle.result(within_s=20)

    assert (resolution.label, resolution.rung, resolution.queue) == (None, HUMAN, "closed")
    assert "spam" in resolution.next_action


async def test_a_ticket_that_waits_for_a_person_outlives_its_peers(mesh: Mesh, settings: Settings, desk: Agent) -> None:
    async with hosting(desk, people, settings=settings):
        handle = await mesh.submit(SUPPORT, Ticket(STRANGE), key="t-1", returns=Resolution)
        task = await asked(mesh, "t-1")
    await mesh.signal(HUMAN, task, "answer", Answer(verdict=Verdict.EDITED, value={"label": "tides"}), by="ann")

    async with hosting(desk, people, settings=settings):
        resolution = await handle.result(within_s=20)

    assert (resolution.label, resolution.rung) == ("tides", HUMAN)


def test_a_proposal_shows_a_person_nothing_but_the_label() -> None:
    assert msgspec.json.encode(Label("size_advice")) == b'{"label":"size_advice"}'
