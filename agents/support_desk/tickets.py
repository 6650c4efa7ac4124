"""Tickets read from a CSV file with the columns `text` and `category`; other columns are left alone."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TEXT_COLUMN: Final = "text"
LABEL_COLUMN: Final = "category"


class TicketFileError(ValueError):
    """The file is not a list of tickets. The message names the file, the line and the column."""

    def __init__(self, path: Path, complaint: str, *, line: int | None = None, column: str | None = None) -> None:
        place = str(path) if line is None else f"{path}, line {line}"
        super().__init__(f"{place}: {complaint}" if column is None else f"{place}, column {column}: {complaint}")
        self.path = path
        self.line = line
        self.column = column


@dataclass(frozen=True)
class Ticket:
    """What a customer wrote and, where somebody has decided it, what it is about."""

    text: str
    label: str | None = None


def read_tickets(path: Path, *, labels_required: bool = False) -> list[Ticket]:
    """The file's tickets in their order. An empty or missing label is None.

    Args:
        path: A CSV file in UTF-8 whose first line names the columns.
        labels_required: For training: refuse a file in which a label is missing.

    Raises:
        TicketFileError: a column is missing, a line does not fit the columns, a text is empty, a label that is
            required is missing, or there is no ticket at all.
        OSError: the file cannot be read.
    """
    lines = _lines(path)
    _, header = next(lines, (1, []))
    text_place = _place(path, header, TEXT_COLUMN)
    if text_place is None:
        raise TicketFileError(path, "the file has no such column", line=1, column=TEXT_COLUMN)
    label_place = _place(path, header, LABEL_COLUMN)
    if labels_required and label_place is None:
        raise TicketFileError(
            path, "training needs labels, and the file has no such column", line=1, column=LABEL_COLUMN
        )
    tickets = []
    for line, fields in lines:
        if len(fields) != len(header):
            complaint = f"{len(fields)} fields where the first line names {len(header)}; is a comma not in quotes?"
            raise TicketFileError(path, complaint, line=line)
        text = fields[text_place].strip()
        label = None if label_place is None else fields[label_place].strip() or None
        if not text:
            raise TicketFileError(path, "the text is empty", line=line, column=TEXT_COLUMN)
        if labels_required and label is None:
            raise TicketFileError(path, "training needs a label", line=line, column=LABEL_COLUMN)
        tickets.append(Ticket(text, label))
    if not tickets:
        raise TicketFileError(path, "there are no tickets after the first line")
    return tickets


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Each record with the number of the line it starts on; blank lines are left out."""
    rows = csv.reader(io.StringIO(_decoded(path), newline=""), strict=True)
    start = 1
    try:
        for fields in rows:
            if fields:
                yield start, fields
            start = rows.line_num + 1
    except csv.Error as error:
        raise TicketFileError(path, f"not CSV: {error}", line=start) from error


def _decoded(path: Path) -> str:
    encoded = path.read_bytes()
    try:
        # Spreadsheets start their UTF-8 with a mark that would become part of the first column's name.
        return encoded.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise TicketFileError(path, "not UTF-8 text", line=line) from error


def _place(path: Path, header: list[str], column: str) -> int | None:
    places = [place for place, name in enumerate(header) if name.strip() == column]
    if len(places) > 1:
        raise TicketFileError(path, f"the column is there {len(places)} times", line=1, column=column)
    return places[0] if places else None
