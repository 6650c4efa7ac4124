"""Rows of a screen: cells that are read as text and sorted by value."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

UNKNOWN: Final = "?"
NOTHING: Final = "-"


@dataclass(frozen=True, slots=True)
class Column:
    """A heading, and whether numbers stand below it."""

    name: str
    is_number: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """A value as it is shown and as it is sorted."""

    text: str
    value: Any = None

    @property
    def order(self) -> tuple[bool, float, str]:
        """What cells of one column are sorted by: numbers by size, words by letters, what is not known last."""
        if self.value is None:
            return (self.text in ("", UNKNOWN, NOTHING), 0.0, self.text.casefold())
        return (False, float(self.value), "")


@dataclass(frozen=True, slots=True)
class Row:
    """One line. `key` is the same for the same thing at every look; `task` is what can be traced."""

    key: str
    cells: tuple[Cell, ...]
    task: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A screen full of rows."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...] = ()
    empty: str = ""
    """What is said in place of rows."""

    def containing(self, words: str) -> "Table":
        """The rows in which every word stands, in any cell, small or capital."""
        wanted = words.casefold().split()
        if not wanted:
            return self
        kept = tuple(row for row in self.rows if all(word in _text(row) for word in wanted))
        return replace(self, rows=kept, empty=f"nothing here matches {words!r}")

    def by(self, column: int, *, is_descending: bool) -> "Table":
        """The same rows in the order of a column; equal ones keep theirs."""
        if not 0 <= column < len(self.columns):
            return self
        known = [row for row in self.rows if not row.cells[column].order[0]]
        unknown = [row for row in self.rows if row.cells[column].order[0]]
        known.sort(key=lambda row: row.cells[column].order, reverse=is_descending)
        return replace(self, rows=(*known, *unknown))


def word(text: str) -> Cell:
    """A cell of words."""
    return Cell(text)


def number(value: float | None, text: str | None = None, *, is_stale: bool = False) -> Cell:
    """A cell of a number, which is marked with `?` where it is not known to hold still."""
    if value is None:
        return Cell(UNKNOWN)
    told = f"{value:,.0f}" if text is None else text
    return Cell(f"{told}?" if is_stale else told, value)


def plain(table: Table, *, columns: Iterable[int] | None = None) -> list[str]:
    """A table as lines of text."""
    chosen = range(len(table.columns)) if columns is None else tuple(columns)
    if not table.rows:
        return [f"({table.empty})"]
    lines = [[table.columns[place].name for place in chosen]]
    lines += [[row.cells[place].text for place in chosen] for row in table.rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    numeric = [table.columns[place].is_number for place in chosen]
    return [
        "  ".join(
            cell.rjust(width) if is_number else cell.ljust(width)
            for cell, width, is_number in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    ]


def _text(row: Row) -> str:
    return " ".join(cell.text for cell in row.cells).casefold()
