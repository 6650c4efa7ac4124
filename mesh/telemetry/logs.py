"""Log lines that tell which task they belong to, as text or as one JSON object a line.

The task stands in a context variable around its handler, in the handler's thread too, so that the line of any library
it uses carries it.
"""

import json
import logging
import re
import sys
import time
from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any, Final

import msgspec

from mesh.errors import SetupError
from mesh.settings import Settings
from mesh.telemetry.tracing import current_ids

TEXT: Final = "%(asctime)s %(levelname)s %(name)s %(message)s"
EXTRA_MAX: Final = 50
"""Fields of its own that one line may have."""

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_SECRET: Final = re.compile(
    r"(^|_)(password|passwd|secret|token|api_?key|authorization|cookie|credentials?|seed)$", re.IGNORECASE
)
_USER_OF_URL: Final = re.compile(r"(?<=://)[^/\s@]+@")
_HIDDEN: Final = "***"

_running: ContextVar[tuple[str, str, int] | None] = ContextVar("mesh_running", default=None)
_peer = ""


class TaskLog(logging.LoggerAdapter[logging.Logger]):
    """A logger that names the task and the attempt, beside what a call adds as `extra`."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, peer, the task and trace where there is one, extras."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": without_users(record.getMessage()),
        }
        if _peer:
            line["peer"] = _peer
        if (running := _running.get()) is not None:
            line["capability"], line["task_id"], line["attempt"] = running
        if (ids := current_ids()) is not None:
            line["trace_id"], line["span_id"] = ids
        if record.exc_info:
            line["exception"] = without_users(self.formatException(record.exc_info))
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        extras = [(name, value) for name, value in vars(record).items() if name not in _STANDARD]
        for name, value in extras[:EXTRA_MAX]:
            line.setdefault(name, _HIDDEN if _SECRET.search(name) else value)
        try:
            return msgspec.json.encode(line, enc_hook=str).decode()
        except (TypeError, ValueError, RecursionError):
            # Whatever it is, as text, what cannot be encoded escaped.
            plain = (str, int, float)
            return json.dumps(
                {name: value if isinstance(value, plain) else ascii(value) for name, value in line.items()}
            )


class TextFormatter(logging.Formatter):
    """Lines for people; the task stands at the end where the message does not name it."""

    def __init__(self) -> None:
        super().__init__(TEXT)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # the name of the base class
        told = super().formatMessage(record)
        running = _running.get()
        if running is not None and running[1] not in record.message:
            capability, task_id, attempt = running
            told = f"{told} [{capability}/{task_id} attempt {attempt}]"
        return told

    def format(self, record: logging.LogRecord) -> str:
        return without_users(super().format(record))


def set_up(settings: Settings) -> None:
    """Log to standard error as `MESH_LOG_LEVEL` and `MESH_LOG_FORMAT` say, unless the process logs somewhere already.

    Raises:
        SetupError: there is no such level.
    """
    known = logging.getLevelNamesMapping()
    level = settings.log_level.upper()
    if level not in known:
        names = ", ".join(sorted(known, key=known.__getitem__))
        raise SetupError(f"MESH_LOG_LEVEL is {settings.log_level!r}; it may be {names}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    logging.basicConfig(level=level, handlers=[handler])


def of_peer(peer: str) -> None:
    """Have the lines of this process name its peer."""
    global _peer
    _peer = peer


def of_task(capability: str, task_id: str, attempt: int) -> None:
    """Have the lines of this fiber, and of what it starts, name a task."""
    _running.set((capability, task_id, attempt))


def without_users(text: str) -> str:
    """A text whose addresses name no users and passwords."""
    return _USER_OF_URL.sub(f"{_HIDDEN}@", text) if "@" in text else text
