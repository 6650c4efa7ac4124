"""The ladder on the tickets that come with it: it learns, is honest about its doubts, and can be kept."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest

import agents.support_desk
from agents.support_desk import cross_fitting
from agents.support_desk.dropout_net import DropoutNet
from agents.support_desk.ladder import Ladder, LadderFileError, TrainingError
from agents.support_desk.learners import LinearLearner
from agents.support_desk.thresholds import Goal
from agents.support_desk.tickets import Ticket, read_tickets
from agents.support_desk.views import LETTERS, WORD_PAIRS, View
from agents.support_desk.words import LETTERS_MAX, pairs, stems

TICKETS_PATH = Path(agents.support_desk.__file__).with_name("tickets.csv")
STRANGE = ["", "?", "!!!", "\0", "zzz qqq", "привет", "\N{CROSS MARK}" * 40, "word " * 5_000]


@pytest.fixture(scope="module")
def tickets() -> list[Ticket]:
    return read_tickets(TICKETS_PATH, labels_required=True)


@pytest.fixture(scope="module")
def ladder(tickets: list[Ticket]) -> Ladder:
    return Ladder.train(tickets)


def few(tickets: list[Ticket], label_count: int) -> list[Ticket]:
    """The tickets of the first labels only, which are learned in less time."""
    labels = sorted({str(ticket.label) for ticket in tickets})[:label_count]
    return [ticket for ticket in tickets if ticket.label in labels]


def test_the_tiny_set_is_enough_to_settle_what_is_plain(ladder: Ladder) -> None:
    opinion = ladder.triage("My card was declined when I tried to pay")

    assert opinion.label == "payment_declined"
    assert opinion.confidence >= ladder.triage_threshold


def test_what_no_ticket_was_about_is_for_a_person(ladder: Ladder) -> None:
    text = "Does the moon rise before the tide turns?"

    assert ladder.triage(text).confidence < ladder.triage_threshold
    assert ladder.specialist(text).confidence < ladder.specialist_threshold


def test_the_forecast_of_the_tiny_set_keeps_to_the_floor(ladder: Ladder) -> None:
    assert 0 < ladder.forecast.triage_share < ladder.forecast.resolved_share < 1
    assert ladder.forecast.accuracy >= Goal().accuracy_floor


def test_any_text_gets_a_known_label_and_a_confidence_between_0_and_1(ladder: Ladder) -> None:
    for opinion in ladder.triage_all(STRANGE) + ladder.specialist_all(STRANGE):
        assert opinion.label in ladder.labels
        assert 0 < opinion.confidence < 1


def test_one_ticket_is_told_the_same_as_among_many(ladder: Ladder, tickets: list[Ticket]) -> None:
    texts = [ticket.text for ticket in tickets[:20]]

    together = ladder.specialist_all(texts)

    for text, opinion in zip(texts, together, strict=True):
        alone = ladder.specialist(text)
        assert alone.label == opinion.label
        assert alone.confidence == pytest.approx(opinion.confidence, abs=1e-6)


def test_nothing_to_tell_is_no_opinion(ladder: Ladder) -> None:
    assert ladder.triage_all([]) == ladder.specialist_all([]) == []


def test_the_same_tickets_give_the_same_ladder(tickets: list[Ticket]) -> None:
    some = few(tickets, 2)

    one, other = Ladder.train(some), Ladder.train(some)

    assert pickle.dumps(one) == pickle.dumps(other)


def test_a_label_with_two_tickets_can_be_learned(tickets: list[Ticket]) -> None:
    rare = [Ticket("Do you sell unicycles?", "unicycles"), Ticket("I want to buy a unicycle", "unicycles")]

    ladder = Ladder.train(few(tickets, 2) + rare)

    assert ladder.specialist("Is there a unicycle for sale?").label == "unicycles"


@pytest.mark.parametrize(
    ("tickets", "message"),
    [
        ([], "0 labels in 0 tickets"),
        ([Ticket("a", "x"), Ticket("b", "x")], "1 labels in 2 tickets"),
        ([Ticket("a", "x"), Ticket("b", "x"), Ticket("c", "y")], "labelled y: each label takes 2"),
        ([Ticket("a", "x"), Ticket("b")], "1 of 2 tickets have no label"),
    ],
)
def test_tickets_that_teach_nothing_are_refused(tickets: list[Ticket], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        Ladder.train(tickets)


def test_scores_for_thresholds_come_from_models_that_had_not_seen_the_ticket() -> None:
    # Texts with nothing in common: who has not seen one can only guess, who has knows it by heart.
    texts = [hashlib.sha256(bytes([place])).hexdigest() for place in range(60)]
    labels = np.arange(60) % 3
    rows = View(WORD_PAIRS).fit(texts).rows(texts)

    (fit,) = cross_fitting.cross_fit([(LinearLearner(), rows)], labels)

    assert (fit.learner.label_scores(rows).argmax(axis=1) == labels).all()
    assert (fit.unseen_scores.argmax(axis=1) == labels).mean() < 0.8


def test_a_net_says_nothing_about_features_it_was_not_trained_on() -> None:
    rows = View(WORD_PAIRS).fit(["red", "green", "blue"]).rows(["red", "green", "blue"])
    net = DropoutNet(seed=0).fit(rows[:2], np.array([0, 1]))

    of_unknown, of_nothing = net.label_scores(rows[2:]), net.label_scores(rows[2:] * 0)

    assert of_unknown == pytest.approx(of_nothing)


def test_a_kept_ladder_says_what_it_said_before(ladder: Ladder, tickets: list[Ticket], tmp_path: Path) -> None:
    texts = [ticket.text for ticket in tickets]

    ladder.save(tmp_path / "desk.ladder")
    loaded = Ladder.load(tmp_path / "desk.ladder")

    assert loaded.triage_all(texts) == ladder.triage_all(texts)
    assert loaded.specialist_all(texts) == ladder.specialist_all(texts)
    assert (loaded.triage_threshold, loaded.specialist_threshold) == (
        ladder.triage_threshold,
        ladder.specialist_threshold,
    )


def test_keeping_a_ladder_replaces_the_older_one_and_leaves_nothing_else(ladder: Ladder, tmp_path: Path) -> None:
    path = tmp_path / "desk.ladder"
    path.write_text("an older one")

    ladder.save(path)

    assert Ladder.load(path).labels == ladder.labels
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"text,category\n", pickle.dumps("a pickle of somebody else")])
def test_a_file_of_something_else_is_not_unpickled(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "desk.ladder"
    path.write_bytes(content)

    with pytest.raises(LadderFileError, match="does not start with"):
        Ladder.load(path)


def test_texts_of_one_word_can_be_told_apart_without_pairs() -> None:
    rows = View(WORD_PAIRS).fit(["red", "green"]).rows(["red", "green"])

    assert (rows @ rows.T).toarray() == pytest.approx(np.eye(2))


def test_texts_without_anything_to_see_are_refused() -> None:
    with pytest.raises(ValueError, match="2 texts without a word or letter"):
        View(LETTERS).fit(["", " "])


def test_forms_of_a_word_share_a_stem() -> None:
    assert stems("I can't withdraw") == ["i", "can", "not", "withdraw"]
    assert stems("cards arriving, cancelled!") == stems("card arrives cancel")


def test_a_long_ticket_is_read_up_to_a_limit() -> None:
    text = " ".join(f"w{number}" for number in range(10_000))

    assert len(" ".join(stems(text))) <= LETTERS_MAX
    assert len(pairs(text)) < 2_000
