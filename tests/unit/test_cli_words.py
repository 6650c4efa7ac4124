"""What the command line says: exit codes, times, restarts, and where a task is."""

import pytest

from contracts.card import AgentCard, Beat, CapabilityCard, Described, Load, PeerState
from contracts.outcome import Outcome, Status
from contracts.subjects import Identity
from mesh import errors
from mesh.cli import console
from mesh.cli.fleet import offers
from mesh.cli.tasks import sentence
from mesh.cli.up import RESTART_S_MAX, greeting, restart_after_s, submission
from mesh.whereabouts import Where, Whereabouts

TASK = Identity("add", "k1")
NOW = 1_000_000.0


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (console.Failed("no"), 1),
        (errors.TaskCancelled("no", Outcome(status=Status.CANCELLED)), 1),
        (errors.TopologyDrift("no"), 1),
        (errors.ContractError("no"), 2),
        (errors.SetupError("no"), 2),
        (console.NoMesh("no"), 3),
        (errors.BusUnavailable("no"), 3),
        (errors.DeadlineExceeded("no"), 4),
        (errors.PublishRejected("no"), 5),
        (errors.Overloaded("no", retry_after_s=1), 5),
        (errors.IdempotencyConflict("no"), 5),
        (errors.SignalRefused("no"), 5),
        (errors.PublishUnconfirmed("no"), 6),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_every_error_has_its_exit_code(error: errors.MeshError, code: int) -> None:
    assert console.exit_code(error) == code
    assert code in dict(console.EXIT_CODES)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 ms"), (0.0004, "0 ms"), (0.34, "340 ms"), (1, "1 s"), (12.5, "12.5 s"),
        (119, "119 s"), (240, "4 min"), (11_520, "3.2 h"), (86_400 * 12, "12 d"),
    ],
)  # fmt: skip
def test_lengths_of_time_read_at_a_glance(seconds: float, text: str) -> None:
    assert console.length(seconds) == text


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (Whereabouts(TASK, Where.RUNNING, peer="p1", attempt=2), "add/k1 is running on p1, attempt 2"),
        (Whereabouts(TASK, Where.PARKED), "add/k1 is parked"),
        (Whereabouts(TASK, Where.PARKED, "waits for b/c"), "add/k1 is parked: waits for b/c"),
        (Whereabouts(TASK, Where.WAITING, "waits for b/c", "p1"), "add/k1 is waiting on p1: waits for b/c"),
        (Whereabouts(TASK, Where.QUEUED, "3 in its queue"), "add/k1 is queued: 3 in its queue"),
        (Whereabouts(TASK, Where.UNSERVED, "why"), "add/k1 is queued, and nobody serves it: why"),
        (Whereabouts(TASK, Where.ORPHANED, "why"), "add/k1 is orphaned: why"),
        (
            Whereabouts(TASK, Where.DONE, "no ink", "p1", 3, NOW - 5, outcome=Outcome(status=Status.FAILED)),
            "add/k1 is failed by p1, attempt 3, 5 s ago: no ink",
        ),
        (
            Whereabouts(TASK, Where.UNKNOWN),
            "add/k1 is unknown: it was never submitted, or its result has expired",
        ),
    ],
    ids=lambda value: str(value.where) if isinstance(value, Whereabouts) else "",
)
def test_where_a_task_is_is_one_sentence(found: Whereabouts, text: str) -> None:
    assert sentence(found, now=NOW) == text


def test_a_retry_is_told_with_its_time_and_its_reason() -> None:
    found = Whereabouts(TASK, Where.RETRYING, "too early", attempt=1, until=NOW + 30)

    told = sentence(found, now=NOW)

    assert "(in 30 s)" in told
    assert told.endswith("after attempt 1: too early")


def test_a_wait_with_a_limit_is_told_with_its_time() -> None:
    told = sentence(Whereabouts(TASK, Where.PARKED, "waits for the signal paid", until=NOW + 240), now=NOW)

    assert told.startswith("add/k1 is parked: waits for the signal paid, until ")
    assert told.endswith("(in 4 min)")


@pytest.mark.parametrize(
    ("given", "shown"),
    [("a\nb\t c", "a b c"), ("\x1b[31mred", "[31mred"), ("x" * 20, "xxxxxxxxx…"), ("", "")],
)
def test_text_from_elsewhere_is_made_part_of_a_line(given: str, shown: str) -> None:
    assert console.one_line(given, 10) == shown


def test_crashes_in_a_row_are_answered_ever_later_up_to_a_bound() -> None:
    waits = [restart_after_s(crashes) for crashes in range(1, 40)]

    assert waits == sorted(waits)
    assert waits[0] < 1
    assert waits[-1] == RESTART_S_MAX


def test_a_capability_without_payload_is_submitted_without_one() -> None:
    assert submission(CapabilityCard(name="tick", input_schema={"type": "null"})) == "mesh submit tick"


def test_a_submission_can_be_pasted_into_a_shell() -> None:
    schema = {"type": "string", "examples": ["it's"]}

    assert submission(CapabilityCard(name="say", input_schema=schema)) == """mesh submit say '"it'"'"'s"'"""


def test_the_greeting_names_each_capability_once() -> None:
    card = AgentCard(name="a", capabilities=(CapabilityCard(name="add", description="Add up."),))
    beat = Beat(peer="p", at=0.0, state=PeerState.READY)

    text = greeting([Described(beat=beat, cards=(card,))] * 3, "here")

    assert "3 peers on here" in text
    assert text.count("Add up.") == 1


def test_offers_of_one_agents_version_stand_together_and_another_version_apart() -> None:
    def peer(name: str, version: str) -> Described:
        card = AgentCard(name="a", version=version, owner="desk", capabilities=(CapabilityCard(name="add"),))
        beat = Beat(peer=name, at=0.0, state=PeerState.READY, load={"add": Load(slots=2, in_flight=1)})
        return Described(beat=beat, cards=(card,))

    found = offers([peer("p1", "1"), peer("p2", "2"), peer("p3", "1")])

    assert [(offer.version, len(offer.loads)) for offer in found] == [("1", 2), ("2", 1)]
