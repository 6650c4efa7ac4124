"""Log lines for people and for programs: the task they belong to, and no secrets."""

import contextvars
import json
import logging
import sys
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from contracts.subjects import Identity
from mesh import Context
from mesh.errors import SetupError
from mesh.settings import Settings
from mesh.telemetry import logs

log = logging.getLogger("somebody.else")


class Lines(logging.Handler):
    """Keeps what a formatter makes of each line."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(self.format(record))


def told(formatter: logging.Formatter, write: Callable[[], object], *, task: tuple[str, str, int] | None = None) -> str:
    """The one line that `write` logs, within a task or outside of all."""
    lines = Lines(formatter)
    root = logging.getLogger()
    before = root.level
    root.addHandler(lines)
    root.setLevel(logging.DEBUG)

    def within() -> None:
        if task is not None:
            logs.of_task(*task)
        write()

    try:
        contextvars.copy_context().run(within)
    finally:
        root.removeHandler(lines)
        root.setLevel(before)
    (line,) = lines.told
    return line


def as_json(write: Callable[[], object], *, task: tuple[str, str, int] | None = None) -> dict[str, Any]:
    line = told(logs.JsonFormatter(), write, task=task)
    assert "\n" not in line
    found: dict[str, Any] = json.loads(line)
    return found


def test_a_json_line_says_when_where_and_what() -> None:
    line = as_json(lambda: log.warning("%d left", 3))

    assert (line["level"], line["logger"], line["message"]) == ("WARNING", "somebody.else", "3 left")
    assert line["time"][10] == "T"
    assert line["time"][-5] == "."
    assert line["time"][-1] == "Z"
    assert "task_id" not in line


def test_a_line_within_a_handler_names_the_task_whoever_writes_it_in_threads_too() -> None:
    def in_thread() -> None:
        context = contextvars.copy_context()
        thread = threading.Thread(target=lambda: context.run(log.info, "from below"))
        thread.start()
        thread.join()

    line = as_json(in_thread, task=("review", "order-42", 2))

    assert (line["capability"], line["task_id"], line["attempt"]) == ("review", "order-42", 2)


def test_a_handler_s_own_logger_adds_what_a_call_gives_it() -> None:
    ctx = Context(Identity("review", "order-42"))

    line = as_json(lambda: ctx.log.info("looked", extra={"files": 3, "kind": object}))

    assert (line["capability"], line["task_id"], line["attempt"], line["files"]) == ("review", "order-42", 1, 3)
    assert line["kind"] == str(object)


def test_an_exception_stands_in_its_line() -> None:
    def fail() -> None:
        try:
            raise ValueError("no")
        except ValueError:
            log.exception("it failed")

    line = as_json(fail)

    assert line["message"] == "it failed"
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ValueError: no")


@pytest.mark.parametrize(
    "value", [float("nan"), {1, 2}, b"\xff", {(1, 2): 3}, "\ud800", msgspec.UNSET, 2**80, [object]], ids=repr
)
def test_whatever_is_logged_the_line_is_json(value: object) -> None:
    line = as_json(lambda: log.info("odd", extra={"odd": value}))

    assert line["message"] == "odd"


def test_passwords_stand_in_no_line() -> None:
    extra = {
        "password": "hunter2",
        "api_key": "hunter2",
        "Authorization": "hunter2",
        "tokens_in": 7,
        "url_token": "hunter2",
    }

    def write() -> None:
        log.info("connecting to nats://ann:hunter2@server:4222, then %s", "tls://hunter2@other", extra=extra)

    line, text = as_json(write), told(logs.TextFormatter(), write)

    assert "hunter2" not in json.dumps(line)
    assert "hunter2" not in text
    assert "nats://***@server:4222" in text
    assert (line["tokens_in"], line["password"]) == (7, "***")


def test_a_text_line_names_the_task_unless_its_message_does() -> None:
    task = ("review", "order-42", 2)

    beside = told(logs.TextFormatter(), lambda: log.info("looked"), task=task)
    named = told(logs.TextFormatter(), lambda: log.info("review/order-42 is late"), task=task)

    assert beside.endswith("somebody.else looked [review/order-42 attempt 2]")
    assert named.endswith("review/order-42 is late")


def test_an_unknown_level_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(SetupError, match=r"MESH_LOG_LEVEL is 'loud'; it may be .*DEBUG"):
        logs.set_up(Settings(log_level="loud"))


def test_a_process_that_logs_somewhere_keeps_its_own_way() -> None:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    assert handlers, "pytest has set some"

    logs.set_up(Settings(log_level="DEBUG", log_format="json"))

    assert (root.handlers, root.level) == (handlers, level)
    assert sys.stderr is not None
