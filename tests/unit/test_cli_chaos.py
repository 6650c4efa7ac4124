"""What `mesh chaos` says before anything is started, and what its report holds."""

import json

import pytest
from typer.testing import CliRunner

from mesh.cli.chaos.report import show
from mesh.cli.main import app
from mesh.testing.chaos.game_day import Plan, judge
from mesh.testing.history import Entry, What, check

KEYS = {"seed", "verdict", "tasks", "answered", "lost", "duplicated", "faults", "recovery_s", "timeline", "violations"}
PLAN = Plan(for_s=60, seed=7, faults=(), key_prefix="t")
SHARED = ("--nats", "nats://x", "--safe-only", "--capability", "greet")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--nodes", "2"), "neither 1 nor 3"),
        (("--minutes", "0"), "--minutes"),
        (("--nats", "nats://x"), "say --safe-only"),
        (("--nats", "nats://x", "--safe-only"), "what may be asked for"),
        (("--nats", "nats://x", "--safe-only", "--agents", "a"), "no peer is started"),
        (("--capability", "greet"), "go together"),
        (("--agents", "greeter.py"), "go together"),
        (("--agents", "nowhere.py", "--capability", "greet"), "nowhere.py: no such Python file"),
        (("--agents", "mesh.testing.chaos.agents:agent", "--capability", "greet"), "those agents handle chaos-"),
        (("--faults", "kill-pear"), "no fault is called 'kill-pear'"),
        (("--faults", "kill-leader"), "needs own cluster"),
        (("--safe-only", "--faults", "kill-peer"), "not safe"),
        ((*SHARED, "--payload", "{"), "not JSON"),
        ((*SHARED, "--payload", "@nowhere"), "nowhere"),
    ],
)
def test_what_a_game_day_cannot_be_is_told_at_once(options: tuple[str, ...], told: str) -> None:
    ended = CliRunner().invoke(app, ["chaos", "game-day", *options], env={"COLUMNS": "300"})

    assert ended.exit_code == 2
    assert told in " ".join(ended.stderr.split())


def test_the_faults_are_listed_with_what_they_need() -> None:
    listed = CliRunner().invoke(app, ["chaos", "faults", "--json"])

    faults = {fault["name"]: fault for fault in json.loads(listed.stdout)["faults"]}
    assert faults["kill-leader"]["needs"] == ["own cluster"]
    assert {name for name, fault in faults.items() if fault["is_safe"]} == {"submit-again", "cancel", "cut-submitter"}


def test_a_report_tells_what_broke_and_how_long_recovery_took(capsys: pytest.CaptureFixture[str]) -> None:
    entries = [
        *(Entry(What.ANSWERED, task=f"work/t{number}", at=100 + number / 10) for number in range(100)),
        Entry(What.CONFIRMED, task="work/gone", at=101.0),
        Entry(What.FAULT, detail="kill-peer", peer="77", value="1", at=105.0),
        Entry(What.HEALED, detail="kill-peer", peer="77", value="1", at=105.0),
    ]

    report = judge(PLAN, entries, check(entries), began=100.0)
    show(report)
    told = capsys.readouterr().out

    assert {field for field in report.__dataclass_fields__ if field != "figures"} == KEYS
    assert not report.is_sound
    assert (report.faults, report.recovery_s["kill-peer"].throughput_max_s) == ({"kill-peer": 1}, 0)
    assert report.recovery_s["kill-peer"].unrecovered == 1
    assert "work/gone" in report.violations["lost"]
    assert "broken: " in told
    assert "work/gone" in told
    assert "kill-peer" in told


def test_a_submitter_that_was_never_told_breaks_a_promise() -> None:
    entries = [
        Entry(What.ATTEMPTED, task="work/a", at=1.0),
        Entry(What.CONFIRMED, task="work/a", at=1.0),
        Entry(What.RECORDED, task="work/a", sequence=5, status="done", at=9.0),
    ]

    report = judge(PLAN, entries, check(entries), began=0.0)

    assert report.violations == {"untold": ("work/a",)}
    assert report.verdict == "broken: 1 untold"
