"""Reading tickets: what is wrong in a file is told by file, line and column."""

from pathlib import Path

import pytest

from agents.support_desk.tickets import Ticket, TicketFileError, read_tickets


@pytest.fixture
def csv_path(tmp_path: Path) -> Path:
    return tmp_path / "tickets.csv"


def complaint(path: Path, *, labels_required: bool = False) -> str:
    with pytest.raises(TicketFileError) as caught:
        read_tickets(path, labels_required=labels_required)
    return str(caught.value)


def test_tickets_come_in_the_order_of_the_file(csv_path: Path) -> None:
    csv_path.write_text('text,category\nWhere is it?,parcel\n"Wrong, too small",size\n')

    assert read_tickets(csv_path) == [Ticket("Where is it?", "parcel"), Ticket("Wrong, too small", "size")]


def test_other_columns_are_left_alone(csv_path: Path) -> None:
    csv_path.write_text("id,category,text,from\n7,parcel,Where is it?,web\n")

    assert read_tickets(csv_path, labels_required=True) == [Ticket("Where is it?", "parcel")]


def test_a_mark_at_the_start_of_the_file_is_not_part_of_a_column(csv_path: Path) -> None:
    csv_path.write_text("text,category\nWhere is it?,parcel\n", encoding="utf-8-sig")

    assert read_tickets(csv_path) == [Ticket("Where is it?", "parcel")]


@pytest.mark.parametrize("content", ["text\nWhere is it?\n", "text,category\nWhere is it?,\n"])
def test_a_ticket_to_be_run_needs_no_label(csv_path: Path, content: str) -> None:
    csv_path.write_text(content)

    assert read_tickets(csv_path) == [Ticket("Where is it?")]


def test_a_ticket_to_be_trained_on_needs_a_label(csv_path: Path) -> None:
    csv_path.write_text("text,category\nWhere is it?,parcel\nToo small,\n")

    assert complaint(csv_path, labels_required=True) == f"{csv_path}, line 3, column category: training needs a label"


def test_a_file_to_be_trained_on_needs_the_label_column(csv_path: Path) -> None:
    csv_path.write_text("text\nWhere is it?\n")

    assert f"{csv_path}, line 1, column category:" in complaint(csv_path, labels_required=True)


def test_a_missing_text_column_is_named(csv_path: Path) -> None:
    csv_path.write_text("ticket,category\nWhere is it?,parcel\n")

    assert complaint(csv_path) == f"{csv_path}, line 1, column text: the file has no such column"


def test_a_column_that_is_there_twice_is_refused(csv_path: Path) -> None:
    csv_path.write_text("text,text\nWhere is it?,parcel\n")

    assert complaint(csv_path) == f"{csv_path}, line 1, column text: the column is there 2 times"


def test_an_empty_text_is_told_by_the_line_its_record_starts_on(csv_path: Path) -> None:
    csv_path.write_text('text,category\n"Where\nis it?",parcel\n\n "",size\n'.replace(' ""', '"  "'))

    assert complaint(csv_path) == f"{csv_path}, line 5, column text: the text is empty"


def test_a_comma_outside_quotes_is_told_by_its_line(csv_path: Path) -> None:
    csv_path.write_text("text,category\nToo small, sadly,size\n")

    assert complaint(csv_path).startswith(f"{csv_path}, line 2: 3 fields where the first line names 2")


def test_a_quote_that_is_never_closed_is_told_by_the_line_it_opens_on(csv_path: Path) -> None:
    csv_path.write_text('text,category\nWhere is it?,parcel\n"Too small,size\n')

    assert complaint(csv_path).startswith(f"{csv_path}, line 3: not CSV")


def test_bytes_that_are_not_utf8_are_told_by_their_line(csv_path: Path) -> None:
    csv_path.write_bytes(b"text,category\nWhere is it?,parcel\nZu gro\xdf,size\n")

    assert complaint(csv_path) == f"{csv_path}, line 3: not UTF-8 text"


@pytest.mark.parametrize("content", ["text,category\n", "text,category\n\n\n"])
def test_a_file_without_tickets_is_refused(csv_path: Path, content: str) -> None:
    csv_path.write_text(content)

    assert complaint(csv_path) == f"{csv_path}: there are no tickets after the first line"


def test_an_empty_file_lacks_the_text_column(csv_path: Path) -> None:
    csv_path.touch()

    assert complaint(csv_path) == f"{csv_path}, line 1, column text: the file has no such column"
