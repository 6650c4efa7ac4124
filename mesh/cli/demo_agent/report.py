"""The demo told to a reader: the answer as it is written, then the bill."""

from collections.abc import Mapping
from typing import Final

from rich.console import Console
from rich.table import Table

from mesh.cli.console import length
from mesh.cli.demo_agent.journey import TOOL, Summary

WIDTH_MIN: Final = 100


class Screen:
    """Shows a stream as one text: what another attempt says again is not shown again."""

    def __init__(self, console: Console, *, is_quiet: bool) -> None:
        self._console = console
        self._is_quiet = is_quiet
        self._shown = ""
        self._said = ""

    def remark(self, text: str) -> None:
        """A line of ours, apart from what the model says."""
        if not self._is_quiet:
            self._console.print(text, highlight=False, soft_wrap=not self._console.is_terminal)

    def text(self, piece: str) -> None:
        self._said += piece
        if self._shown.startswith(self._said):
            return
        if not self._said.startswith(self._shown):
            # A real model says the repeated call in other words.
            same = next(at for at, sign in enumerate(self._shown) if sign != self._said[at : at + 1])
            self._print("\n… " + self._said[same:])
        else:
            self._print(self._said[len(self._shown) :])
        self._shown = self._said

    def tool(self, name: str, arguments: Mapping[str, object]) -> None:
        told = f"→ {name}({', '.join(str(value) for value in arguments.values())})\n"
        self.text(told)

    def restart(self) -> None:
        self._said = ""
        if not self._is_quiet:
            self._console.print("\n[bold green]Another peer goes on[/], from what is recorded.\n", highlight=False)

    def _print(self, text: str) -> None:
        if not self._is_quiet:
            self._console.print(text, end="", markup=False, highlight=False, soft_wrap=True)


def show(summary: Summary) -> None:
    """The bill, on standard output."""
    console = Console()
    bill = Table(title="The bill", title_justify="left", box=None, pad_edge=False, show_header=False)
    bill.add_column()
    bill.add_column(justify="right")
    bill.add_column(style="dim")
    for row in _rows(summary):
        bill.add_row(*row)
    console.print()
    console.print(bill, width=max(console.width, WIDTH_MIN))
    console.print(
        f"\n{summary.attempts} attempts; killed: {summary.killed or 'nobody'}; answered by {summary.went_on}"
        f" after {length(summary.elapsed_s)}.",
        highlight=False,
    )


def _rows(summary: Summary) -> list[tuple[str, str, str]]:
    rows = [("model calls the answer took", str(summary.calls), "records under the task")]
    if summary.asked is not None:
        rows += [
            ("requests the endpoint counted", str(summary.asked), summary.endpoint),
            ("  made twice", str(summary.repeated), "the one under way when its peer died, at most"),
        ]
    rows += [
        ("read from records after the kill", str(summary.from_records), "paid once, before it"),
        ("tool calls, each a task of its own", str(summary.tools), f"{TOOL}, by the agent library"),
        ("tokens in / out", f"{summary.tokens_in:,} / {summary.tokens_out:,}", f"model {summary.model}"),
    ]
    if summary.usd:
        rows.append(("price", f"${summary.usd:.4f}", "by the public price list"))
    if summary.took_over_s is not None:
        rows.append(("taken over after", length(summary.took_over_s), "from the kill to the first word"))
    return rows
