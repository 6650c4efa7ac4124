"""Several game days as one table."""

from typing import Any

from ops.chaos.recovery import seconds, table


def day(seed: int, *events: tuple[str, float | None, float | None]) -> dict[str, Any]:
    timeline = [{"fault": fault, "throughput_s": back, "in_flight_s": over} for fault, back, over in events]
    return {"seed": seed, "tasks": 1_000, "lost": 0, "duplicated": 0, "timeline": timeline}


def test_strikes_of_all_days_are_told_together() -> None:
    days = [day(1, ("kill-peer", 0.0, 6.0), ("cancel", 0.0, 0.0)), day(2, ("kill-peer", 1.0, None))]

    head, _, *rows = table(3, days)

    assert head == "3 node(s), seeds 1, 2: 2,000 tasks, 0 lost, 0 duplicated, 3 faults"
    assert rows[2:] == [
        "| cancel | 1 | 0.0 s | 0.0 s | 0.0 s | 0.0 s |  |",
        "| kill-peer | 2 | 0.0 s | 1.0 s | 6.0 s | 6.0 s | 1 |",
    ]


def test_times_that_never_came_leave_no_figure() -> None:
    assert seconds([None]) == "- | -"
