"""The terminal of `mesh top`: keys, screens, and a table that changes only where it must.

All of it reads without colour: what matters is a word, the chosen row is reversed, the open screen is in brackets.
"""

import time
from collections.abc import Awaitable, Callable
from typing import ClassVar, Final

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen, Screen
from textual.widgets import DataTable, Input, Static

from mesh.bus.connection import Bus
from mesh.cli import console
from mesh.cli.top.collector import letter_lines, order, trace_lines
from mesh.cli.top.details import capability_lines, peer_lines
from mesh.cli.top.facts import Facts
from mesh.cli.top.model import Moment, headline, warning
from mesh.cli.top.rows import View, table
from mesh.cli.top.table import Row, Table

NOTICE_S: Final = 8.0
KEYS: Final = "? help  enter open  s sort  / filter  t trace  space hold  p pause  q quit"
HELP: Final = """\
1-7, tab, shift+tab   switch the screen
arrows, page up, page down   move; tables are wider than they look
enter   open what is chosen: a capability, a peer, a task's tree, dead letters
escape  back
s, r    sort by the next column; turn the order round
/       show only rows with these words; none shows all
t       the tree of the chosen task, or of one that you name: CAPABILITY/ID
space   hold the screen still, and let it go on
p       pause the chosen capability on all peers, or resume it; asks first
b       open or close the chosen breaker on all peers; asks first
q       quit

A number with ? is old, ? alone is not known, - does not apply.
A peer is silent after three missed beats and gone after ten; its numbers are
in no sum then. `per s` are answers a second over the last ten seconds.
`failed` counts since each peer's start. `waiting` is what lies in the queue,
`running` what peers have in hand, of their slots."""


class Lines(Screen[None]):
    """Lines of text that may change; `read` is asked again and again, or once where it has to wait."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter", "app.pop_screen", "back"),
        Binding("p", "app.pause", "pause"),
        Binding("t", "app.trace", "trace"),
    ]

    def __init__(
        self,
        read: Callable[[], list[str]] | None = None,
        *,
        ask: Callable[[], Awaitable[list[str]]] | None = None,
        capability: str = "",
    ) -> None:
        super().__init__()
        self._read = read
        self._ask = ask
        self.capability = capability
        self._is_laid_out = False

    def compose(self) -> ComposeResult:
        yield Static(id="told", markup=False)
        with VerticalScroll():
            yield Static("reading...", id="lines", markup=False)
        yield Static("escape back  up, down scroll", classes="keys", markup=False)

    def on_mount(self) -> None:
        self._is_laid_out = True
        self.query_one(VerticalScroll).focus()
        if self._ask is not None:
            self._fetch()
        self.draw()

    def draw(self) -> None:
        """Show the lines as they are now, once there is a place for them."""
        if not self._is_laid_out:
            return
        app = self.app
        assert isinstance(app, Top)
        self.query_one("#told", Static).update(Text(app.told()))
        if self._read is not None:
            self.query_one("#lines", Static).update(Text("\n".join(self._read())))

    @work(exclusive=True)
    async def _fetch(self) -> None:
        assert self._ask is not None
        lines = await self._ask()
        self.query_one("#lines", Static).update(Text("\n".join(lines)))


class Confirm(ModalScreen[bool]):
    """A question that only `y` answers with yes."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "dismiss(True)", "yes"),
        Binding("n,escape,q,enter", "dismiss(False)", "no"),
    ]

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        yield Static(Text(f"{self._question}\n\ny yes   n no"), classes="box")


class Prompt(ModalScreen[str]):
    """A line of text from the keyboard; empty where it was left."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss('')", "back")]

    def __init__(self, question: str, start: str = "") -> None:
        super().__init__()
        self._question = question
        self._start = start

    def compose(self) -> ComposeResult:
        yield Static(Text(self._question), classes="box")
        yield Input(self._start, compact=True)

    def on_input_submitted(self, submitted: Input.Submitted) -> None:
        """Take what was typed."""
        self.dismiss(submitted.value.strip())


class Top(App[None]):
    """The live view of a mesh."""

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Screen { layers: base; }
    #head, #told, #tabs, .keys { height: auto; width: 100%; }
    #tabs { text-style: bold; }
    #told { text-style: reverse; }
    DataTable { height: 1fr; scrollbar-size: 1 1; }
    DataTable > .datatable--cursor { text-style: reverse; }
    DataTable > .datatable--header { text-style: bold underline; }
    VerticalScroll { height: 1fr; scrollbar-size: 1 1; }
    #lines { width: auto; }
    ModalScreen { align: center middle; }
    .box { width: auto; max-width: 90%; height: auto; border: ascii $foreground; padding: 1 2; }
    ModalScreen Input { width: 90%; border: ascii $foreground; height: 3; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(str(number), f"view({number})", view) for number, view in enumerate(View, 1)),
        Binding("tab", "next(1)", "next", priority=True),
        Binding("shift+tab", "next(-1)", "previous", priority=True),
        Binding("s", "sort", "sort"),
        Binding("r", "reverse", "reverse"),
        Binding("slash", "filter", "filter"),
        Binding("t", "trace", "trace"),
        Binding("space", "hold", "hold", priority=False),
        Binding("p", "pause", "pause"),
        Binding("b", "breaker", "breaker"),
        Binding("question_mark", "help", "help"),
        Binding("q", "quit", "quit"),
    ]

    def __init__(self, bus: Bus, facts: Facts, *, slow: float = 1.0) -> None:
        super().__init__(ansi_color=True)
        self.animation_level = "none"
        self._bus = bus
        self._facts = facts
        self._slow = slow
        self._view = View.CAPABILITIES
        self._words = ""
        self._sorts: dict[View, tuple[int, bool]] = {}
        self._held: Moment | None = None
        self._notice = ("", 0.0)
        self._shown: Table | None = None
        self._shown_view: View | None = None

    def compose(self) -> ComposeResult:
        yield Static(id="head", markup=False)
        yield Static(id="told", markup=False)
        yield Static(id="tabs", markup=False)
        yield DataTable(cursor_type="row", id="rows")
        yield Static(KEYS, classes="keys", markup=False)

    def on_mount(self) -> None:
        self.title = "mesh top"
        self.set_interval(self._slow, self.draw)
        self.draw()

    # What is shown.

    def moment(self) -> Moment:
        """Now."""
        return Moment(time.monotonic(), time.time(), self._slow)

    def told(self) -> str:
        """The line that says what is wrong, held, or was just done; empty if nothing."""
        now = self.moment()
        notice, until = self._notice
        held = ""
        if self._held is not None:
            held = f"HELD at {console.clock(self._held.unix)}: space goes on"
        return "   ".join(filter(None, (warning(self._facts, now), held, notice if now.at < until else "")))

    def draw(self) -> None:
        """Bring the screen up to date."""
        told = self.told()
        line = self.screen_stack[0].query_one("#told", Static)
        line.update(Text(told))
        line.display = bool(told)
        for screen in self.screen_stack[1:]:
            if isinstance(screen, Lines):
                screen.draw()
        if self._held is not None and self._shown_view is self._view:
            return
        self._draw_rows(self.moment())

    def _draw_rows(self, moment: Moment) -> None:
        base = self.screen_stack[0]
        first, second = headline(self._facts, moment)
        where = f"mesh top   {self._facts.prefix} on {self._facts.server}   {console.clock(moment.unix)}"
        base.query_one("#head", Static).update(Text(f"{where}\n{first}\n{second}"))
        base.query_one("#tabs", Static).update(Text(self._tabs()))
        found = table(self._view, self._facts, moment).containing(self._words)
        column, is_descending = self._sorts.get(self._view, (-1, False))
        self._fill(found.by(column, is_descending=is_descending))

    def _tabs(self) -> str:
        names = (f"[{place} {view}]" if view is self._view else f"{place} {view}" for place, view in enumerate(View, 1))
        line = " ".join(names)
        more = []
        if self._words:
            more.append(f"/{self._words}")
        if (sort := self._sorts.get(self._view)) is not None and self._shown is not None:
            column, is_descending = sort
            more.append(f"by {self._shown.columns[column].name}{', largest first' if is_descending else ''}")
        return "\n".join(filter(None, (line, "  ".join(more))))

    def _fill(self, wanted: Table) -> None:
        rows = self.screen_stack[0].query_one("#rows", DataTable)
        before = self._shown if self._shown_view is self._view else None
        self._shown, self._shown_view = wanted, self._view
        # A column keeps the width of the widest text that ever stood in it, such as what stands in place of rows.
        if before is None or not before.rows or not wanted.rows:
            rows.clear(columns=True)
            for column in wanted.columns:
                rows.add_column(_text(column.name, is_number=column.is_number), key=column.name)
            before = None
        keys = [row.key for row in wanted.rows]
        if keys and before is not None and [row.key for row in before.rows] == keys:
            _update(rows, before, wanted)
            return
        chosen = self._chosen_key(before)
        top = rows.scroll_y
        rows.clear()
        for row in wanted.rows:
            rows.add_row(*_texts(wanted, row), key=row.key)
        if not wanted.rows:
            rows.add_row(Text(f"({wanted.empty})"), *[""] * (len(wanted.columns) - 1), key="(empty)")
        places = {row.key: place for place, row in enumerate(wanted.rows)}
        rows.move_cursor(row=places.get(chosen, 0), scroll=False)
        rows.scroll_to(y=top if chosen in places else 0, animate=False)

    def _chosen_key(self, shown: Table | None) -> str:
        row = self.chosen(shown)
        return row.key if row is not None else ""

    def chosen(self, shown: Table | None = None) -> Row | None:
        """The row under the cursor."""
        shown = shown or self._shown
        place = self.screen_stack[0].query_one("#rows", DataTable).cursor_row
        return shown.rows[place] if shown is not None and 0 <= place < len(shown.rows) else None

    def say(self, notice: str) -> None:
        """Show a line for a while."""
        self._notice = (notice, time.monotonic() + NOTICE_S)
        self.draw()

    # Keys.

    def action_view(self, number: int) -> None:
        """Switch to a screen by its number."""
        self._switch(list(View)[number - 1])

    def action_next(self, step: int) -> None:
        """Switch to the screen beside this one."""
        views = list(View)
        self._switch(views[(views.index(self._view) + step) % len(views)])

    def _switch(self, view: View) -> None:
        if len(self.screen_stack) > 1:
            return
        self._view = view
        self.draw()

    def action_sort(self) -> None:
        """Sort by the next column; after the last one, as it comes."""
        if self._shown is None:
            return
        column, _ = self._sorts.get(self._view, (-1, False))
        if column + 1 >= len(self._shown.columns):
            self._sorts.pop(self._view, None)
        else:
            self._sorts[self._view] = (column + 1, self._shown.columns[column + 1].is_number)
        self._redraw()

    def action_reverse(self) -> None:
        """Turn the order round."""
        column, is_descending = self._sorts.get(self._view, (0, False))
        self._sorts[self._view] = (column, not is_descending)
        self._redraw()

    def _redraw(self) -> None:
        self._draw_rows(self._held or self.moment())
        # The line above the table names the column of what is shown now.
        self.screen_stack[0].query_one("#tabs", Static).update(Text(self._tabs()))

    def action_filter(self) -> None:
        """Ask for words that rows must have."""

        def given(words: str | None) -> None:
            self._words = words or ""
            self._redraw()

        self.push_screen(Prompt("only rows with these words; escape shows all", self._words), given)

    def action_hold(self) -> None:
        """Hold the screen still, or let it go on."""
        self._held = None if self._held is not None else self.moment()
        self.draw()

    def action_help(self) -> None:
        """Say what the keys do."""
        self.push_screen(Lines(HELP.splitlines))

    def on_data_table_row_selected(self, _: DataTable.RowSelected) -> None:
        """Open what is chosen."""
        row = self.chosen()
        if row is None:
            return
        facts = self._facts
        match self._view:
            case View.CAPABILITIES:
                self.push_screen(Lines(lambda: capability_lines(row.key, facts, self.moment()), capability=row.key))
            case View.PEERS:
                self.push_screen(Lines(lambda: peer_lines(row.key, facts, self.moment())))
            case View.INBOX | View.EVENTS if row.task:
                self._open_trace(row.task)
            case View.STUCK if row.cells[0].text == "dead letters":
                self.push_screen(Lines(ask=lambda: letter_lines(self._bus, _letters_of(row))))
            case _:
                self.push_screen(Lines(lambda: [" ".join(cell.text for cell in row.cells)]))

    def action_trace(self) -> None:
        """Show the tree of the chosen task, or of one that is named."""
        row = self.chosen()
        if row is not None and row.task and len(self.screen_stack) == 1:
            self._open_trace(row.task)
            return

        def given(named: str | None) -> None:
            if named:
                self._open_trace(named)

        self.push_screen(Prompt("which task, as CAPABILITY/ID?"), given)

    def _open_trace(self, named: str) -> None:
        self.push_screen(Lines(ask=lambda: trace_lines(self._bus, named)))

    def action_pause(self) -> None:
        """Pause the chosen capability, or resume it."""
        name = self._chosen_capability()
        if not name:
            self.say("choose a capability first (1)")
            return
        is_paused = name in self._facts.pauses.value
        what = "resume" if is_paused else "pause"
        told = "peers take work of it again" if is_paused else "no peer takes work of it; what comes waits"
        self._confirmed(f"{what} {name} in the whole mesh? {told}.", what, name)

    def _chosen_capability(self) -> str:
        screen = self.screen
        if isinstance(screen, Lines):
            return screen.capability
        row = self.chosen()
        return row.key if row is not None and self._view is View.CAPABILITIES else ""

    def action_breaker(self) -> None:
        """Open the chosen breaker, or close it."""
        row = self.chosen()
        if row is None or self._view is not View.BREAKERS or len(self.screen_stack) > 1:
            self.say("choose a breaker first (3)")
            return
        change = self._facts.breakers.value.get(row.key)
        what = "open" if change is None or change.state == "closed" else "close"
        told = "no call passes for 60 s, then one peer probes" if what == "open" else "calls pass again"
        self._confirmed(f"{what} breaker {row.key} in the whole mesh? {told}.", what, row.key)

    def _confirmed(self, question: str, what: str, name: str) -> None:
        def answered(is_sure: bool | None) -> None:
            if is_sure:
                self._give(what, name)

        self.push_screen(Confirm(question), answered)

    @work
    async def _give(self, what: str, name: str) -> None:
        self.say(await order(self._bus, what, name, by=console.whoami()))


def _update(rows: "DataTable[Text]", before: Table, wanted: Table) -> None:
    for old, new in zip(before.rows, wanted.rows, strict=True):
        for column, was, now in zip(wanted.columns, old.cells, new.cells, strict=True):
            if was.text != now.text:
                rows.update_cell(new.key, column.name, _text(now.text, is_number=column.is_number), update_width=True)


def _texts(wanted: Table, row: Row) -> list[Text]:
    return [
        _text(cell.text, is_number=column.is_number) for column, cell in zip(wanted.columns, row.cells, strict=True)
    ]


def _text(told: str, *, is_number: bool) -> Text:
    return Text(told, justify="right" if is_number else "left", no_wrap=True)


def _letters_of(row: Row) -> str:
    name = row.cells[1].text
    return "*" if name.startswith("(") else name
