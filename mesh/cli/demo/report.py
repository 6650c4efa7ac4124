"""The demo told to a reader: steps while it runs, then tables and figures."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import msgspec
from rich.console import Console, Group
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from agents.code_review import Finding, Review
from contracts.outcome import Status
from mesh.cli.console import length
from mesh.cli.demo.corpus import Corpus
from mesh.cli.demo.summary import History, Summary, results_by_peer, taken_over

RULES_SHOWN: Final = 8
FILES_SHOWN: Final = 6
LISTED_MAX: Final = 4
WIDTH_MAX: Final = 110


@dataclass(frozen=True, slots=True)
class Telling:
    """How a run is told: steps on standard error, and a bar there if it is a terminal."""

    console: Console
    is_quiet: bool

    def say(self, text: str) -> None:
        """One step in plain words; rich markup allowed."""
        if not self.is_quiet:
            self.console.print(text, highlight=False, soft_wrap=not self.console.is_terminal)

    @contextmanager
    def counting(self, total: int) -> Iterator["Counting"]:
        """A bar that counts results while a block runs."""
        columns = (
            TextColumn("  [progress.description]{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bar:
            yield Counting(bar, total)


class Counting:
    """Results as they are stored."""

    def __init__(self, bar: Progress, total: int) -> None:
        self._bar = bar
        self._task = bar.add_task("results", total=total)

    def advance(self) -> None:
        self._bar.advance(self._task)


def tell_corpus(telling: Telling, corpus: Corpus) -> None:
    """What is reviewed, and what is not."""
    chosen = len(corpus.wanted) + len(corpus.skipped)
    of_all = f" of {corpus.found:,}, evenly chosen," if corpus.found > chosen else ""
    telling.say(f"[bold]Reviewing {_count(len(corpus.wanted), 'file')}[/]{of_all} of {escape(corpus.name)}.")
    for skipped in corpus.skipped[:LISTED_MAX]:
        telling.say(f"  skipped {escape(skipped.path)}: {escape(skipped.reason)}")
    if len(corpus.skipped) > LISTED_MAX:
        telling.say(f"  skipped {len(corpus.skipped) - LISTED_MAX} more for such reasons")


def tell_takeover(telling: Telling, history: History, corpus: Corpus, peers: dict[str, str]) -> None:
    """Which of the killed peer's files were taken over, by whom, and after how long."""
    if not history.kills:
        return
    paths = {wanted.key: wanted.file.path for wanted in corpus.wanted}
    for over in taken_over(history):
        telling.say(
            f"  [green]taken over[/] {escape(paths.get(over.key, over.key))} by {peers.get(over.by, over.by)},"
            f" recorded {over.after_s:.1f} s after the kill"
        )


def show(history: History, summary: Summary, corpus: Corpus, peers: dict[str, str], *, url: str | None) -> None:
    """Findings, worst files, figures and what to try next, on standard output."""
    console = Console()
    reviews = [
        msgspec.json.decode(recorded.outcome.value, type=Review)
        for recorded in history.records.values()
        if recorded.outcome.status is Status.DONE and isinstance(recorded.outcome.value, msgspec.Raw)
    ]
    tables = Group("", _rules(reviews), "", _worst(reviews), "", _figures(history, summary, peers), "")
    console.print(tables, width=min(console.width, WIDTH_MAX))
    shortest = min((wanted.key for wanted in corpus.wanted), key=len)
    print(next_steps(url=url, key=shortest), flush=True)


def next_steps(*, url: str | None, key: str) -> str:
    """Three commands to try: on the mesh that stays, or on one of the reader's own."""
    steps: tuple[tuple[str, str], ...]
    if url is not None:
        head = f"The mesh stays until Ctrl-C. In another terminal: export MESH_NATS_URL={url}"
        steps = (
            ("mesh agents", "who is there, and how busy"),
            ("mesh doctor", "whether all is as it should be"),
            (f"mesh result review-file {key}", "one review, as it is recorded"),
        )
    else:
        head = "Next, try:"
        steps = (
            ("mesh demo .", "the same with your own code"),
            ("mesh up agents.code_review --replicas 3", "a mesh that stays"),
            ("mesh agents", "who is there, from another terminal"),
        )
    width = max(len(command) for command, _ in steps)
    return "\n".join([head, *(f"  {command:<{width}}  {meaning}" for command, meaning in steps)])


def verdict(summary: Summary) -> str:
    """One sentence on whether the promises held."""
    if summary.is_sound:
        return f"Every one of the {summary.sent:,} tasks was answered, and answered once."
    broken = ((summary.lost, "lost"), (summary.duplicated, "duplicated"), (summary.unexpected, "unexpected"))
    told = ", ".join(f"{count} {word}" for count, word in broken if count)
    return f"The promise was broken: {told} of {summary.sent} tasks."


def _rules(reviews: Sequence[Review]) -> Table:
    findings = [(review, finding) for review in reviews for finding in review.findings]
    left_out = sum(review.findings_left_out for review in reviews)
    by_rule = Counter(finding.rule for _, finding in findings)
    more = f", {left_out:,} more not listed" if left_out else ""
    title = f"{len(findings):,} findings by {len(by_rule)} rules in {_count(len(reviews), 'file')}{more}"
    table = _table(title)
    table.add_column("rule", no_wrap=True)
    table.add_column("findings", justify="right")
    table.add_column("files", justify="right")
    table.add_column("what it says, and where, for example", overflow="ellipsis", no_wrap=True, ratio=1)
    for rule, count in by_rule.most_common(RULES_SHOWN):
        review, finding = next((review, finding) for review, finding in findings if finding.rule == rule)
        files = sum(any(finding.rule == rule for finding in review.findings) for review in reviews)
        table.add_row(rule, f"{count:,}", f"{files:,}", _example(review, finding))
    if len(by_rule) > RULES_SHOWN:
        rest = by_rule.total() - sum(count for _, count in by_rule.most_common(RULES_SHOWN))
        table.add_row(f"{len(by_rule) - RULES_SHOWN} more", f"{rest:,}", "", "")
    return table


def _worst(reviews: Sequence[Review]) -> Table:
    lines = sum(review.size.code_lines for review in reviews)
    functions = sum(review.size.functions for review in reviews)
    table = _table(f"Worst files, of {lines:,} lines of code and {functions:,} functions")
    table.add_column("file", overflow="ellipsis", no_wrap=True, max_width=34)
    table.add_column("findings", justify="right")
    table.add_column("code lines", justify="right")
    table.add_column("hardest function", overflow="ellipsis", no_wrap=True, ratio=1)
    table.add_column("paths", justify="right")
    for review in sorted(reviews, key=_badness, reverse=True)[:FILES_SHOWN]:
        worst = review.worst
        table.add_row(
            escape(review.path),
            f"{len(review.findings) + review.findings_left_out:,}",
            f"{review.size.code_lines:,}",
            f"{escape(worst.function)}, line {worst.line}" if worst else "",
            str(worst.mccabe) if worst else "",
        )
    return table


def _figures(history: History, summary: Summary, peers: dict[str, str]) -> Panel:
    by_peer = results_by_peer(history)
    shares = ", ".join(f"{name} {by_peer[peer]}" for peer, name in peers.items())
    killed = ", ".join(peers.get(kill.peer, kill.peer) for kill in history.kills) or "none"
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    rows = [
        (
            "sent",
            f"{summary.sent:,} tasks, in {summary.submissions:,} submissions of which {summary.started:,} started one",
        ),
        ("results", f"{summary.results:,}{_failures(summary)}  ({shares})"),
        ("lost", _judged(summary.lost)),
        ("duplicated", _judged(summary.duplicated)),
        ("killed", f"{summary.killed}  ({killed}, SIGKILL)" if history.kills else "none: everything was done before"),
        ("taken over", _takeover(summary)),
        ("redelivered", f"{summary.redelivered}  (repeated deliveries, as the living peers counted them)"),
        ("queue time", f"{_percentiles(summary.queue_p50_s, summary.queue_p99_s)}, the killed peer's tasks included"),
        ("run time", _percentiles(summary.run_p50_s, summary.run_p99_s)),
        ("rate", _rate(summary)),
        ("elapsed", f"{summary.elapsed_s:.1f} s"),
    ]
    if summary.queued:
        rows.insert(4, ("still queued", f"[red]{summary.queued}[/]"))
    if summary.unexpected:
        rows.insert(4, ("unexpected", f"[red]{summary.unexpected}[/]  (results of tasks that nobody sent)"))
    for name, told in rows:
        grid.add_row(name, told)
    colour = "green" if summary.is_sound else "red"
    return Panel(grid, title=verdict(summary), title_align="left", border_style=colour, expand=False)


def _table(title: str) -> Table:
    return Table(
        title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim", expand=True
    )


def _example(review: Review, finding: Finding) -> str:
    return escape(f"{finding.message} ({review.path}:{finding.line})".replace("\n", " "))


def _badness(review: Review) -> tuple[int, int, str]:
    worst = review.worst.mccabe if review.worst is not None else 0
    return len(review.findings) + review.findings_left_out, worst, review.path


def _failures(summary: Summary) -> str:
    return f", [red]{summary.failed} of them failures[/]" if summary.failed else ""


def _judged(count: int) -> str:
    return f"[green]{count}[/]" if not count else f"[bold red]{count}[/]"


def _takeover(summary: Summary) -> str:
    if summary.takeover_s is None:
        return "0"
    return f"{summary.taken_over}, the last of them recorded {summary.takeover_s:.1f} s after the kill"


def _percentiles(p50_s: float | None, p99_s: float | None) -> str:
    if p50_s is None or p99_s is None:
        return "not measured"
    return f"{length(p50_s)} p50, {length(p99_s)} p99"


def _rate(summary: Summary) -> str:
    if summary.tasks_per_s is None:
        return "not measured"
    return f"{summary.tasks_per_s:,.0f} tasks per second, without the wait for the takeover"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
