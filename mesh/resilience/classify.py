"""What an exception means for a task: try again, not now, or never.

Who says so, in this order:

- The exception's own classes, the nearest first: what the capability's rules name, and Starling's own errors.
- The answer of an HTTP callee that the exception carries, whatever library raised it: httpx, requests, aiohttp,
  urllib, or the client of an LLM's provider. It is told by its shape; none of them is imported.
- The same of its `__cause__`, and so on: a wrapper that says nothing by itself means what it wraps.
- Otherwise another attempt may succeed.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

from contracts.errors import ContractError
from contracts.outcome import FailureKind
from mesh.errors import (
    HandoffLoop,
    NonDeterminism,
    ObjectGone,
    Permanent,
    PublishRejected,
    Rejected,
    SetupError,
    TaskError,
    TaskUnfinished,
    Throttled,
    Transient,
)

AFTER_S_MAX: Final = 86_400.0
"""The longest wait that a callee is believed."""
CAUSES_MAX: Final = 8
TOLD_MAX: Final = 1_000

THROTTLING: Final = frozenset({429})
THROTTLING_IF_TIMED: Final = frozenset({503, 529})
"""Statuses that throttle where the callee says when to come back."""
FINAL: Final = frozenset({400, 404, 405, 410, 413, 414, 415, 422})
"""Statuses with which a callee says that this very request cannot succeed."""

_OURS: Final[dict[type[BaseException], FailureKind]] = {
    NonDeterminism: FailureKind.NON_DETERMINISM,
    HandoffLoop: FailureKind.LOOP,
    Rejected: FailureKind.REJECTED,
    Permanent: FailureKind.PERMANENT,
    Transient: FailureKind.TRANSIENT,
    # What a child came to is on record: no attempt will find it otherwise.
    TaskUnfinished: FailureKind.PERMANENT,
    ContractError: FailureKind.CONTRACT,
    ObjectGone: FailureKind.TOO_OLD,
    PublishRejected: FailureKind.CONTRACT,
}


@dataclass(frozen=True, slots=True)
class Rules:
    """What an author says of exception types; their subclasses are meant, too.

    Raises:
        SetupError: something else than exception types is named, or one of them twice.
    """

    permanent: tuple[type[Exception], ...] = ()
    transient: tuple[type[Exception], ...] = ()

    def __post_init__(self) -> None:
        for name, types in (("permanent", self.permanent), ("transient", self.transient)):
            if not isinstance(types, tuple) or not all(
                isinstance(each, type) and issubclass(each, Exception) for each in types
            ):
                raise SetupError(f"{name} is {types!r}; it must be a tuple of exception types")
        if both := set(self.permanent) & set(self.transient):
            raise SetupError(f"permanent and transient both name {', '.join(sorted(each.__name__ for each in both))}")


NO_RULES: Final = Rules()


@dataclass(frozen=True, slots=True)
class Meaning:
    """What an exception means: `transient` is tried again, any other kind never.

    `after_s` is when, if that was said. What is throttled does not count as an attempt. `told` is for people, where the
    exception's own words would not do.
    """

    kind: FailureKind
    after_s: float | None = None
    is_throttled: bool = False
    told: str = ""

    @property
    def is_final(self) -> bool:
        return self.kind is not FailureKind.TRANSIENT


def classify(error: BaseException, rules: Rules = NO_RULES, *, now: float) -> Meaning:
    """What an exception means at a Unix time. Never raises."""
    for each in _causes(error):
        is_wrapped = each is not error
        if (meaning := _by_class(each, rules, is_wrapped=is_wrapped) or _by_answer(each, now)) is not None:
            return meaning
    return Meaning(FailureKind.TRANSIENT)


def retry_after_s(headers: Any, *, now: float) -> float | None:
    """When a callee's headers say to come back, in seconds from a Unix time; None where they do not say."""
    if (milliseconds := _seconds(_header(headers, "retry-after-ms"))) is not None:
        return min(milliseconds / 1_000, AFTER_S_MAX)
    text = _header(headers, "retry-after")
    if (seconds := _seconds(text)) is not None:
        return min(seconds, AFTER_S_MAX)
    try:
        date = parsedate_to_datetime(text)
        # RFC 9110 has one form of a date without a zone, which is in UTC.
        at = (date if date.tzinfo is not None else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return min(max(0.0, at - now), AFTER_S_MAX)


def without_secrets(text: str) -> str:
    """A text whose addresses have lost what may be secret: user, password, query and fragment."""
    return _PATH.sub(r"\1", _URL.sub(lambda found: _bare(found[0]), text))


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    for _ in range(CAUSES_MAX):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__


def _by_class(error: BaseException, rules: Rules, *, is_wrapped: bool) -> Meaning | None:
    for kind in type(error).__mro__:
        if kind in rules.permanent:
            return Meaning(FailureKind.PERMANENT)
        if kind in rules.transient:
            return Meaning(FailureKind.TRANSIENT)
        # What the mesh itself raised, and a handler turned into something else, is the handler's to judge.
        if kind in _OURS and (not is_wrapped or issubclass(kind, TaskError)):
            return _ours(error, _OURS[kind])
    return None


def _ours(error: BaseException, kind: FailureKind) -> Meaning:
    after_s = error.after_s if isinstance(error, Transient) else None
    return Meaning(kind, after_s=after_s, is_throttled=isinstance(error, Throttled))


def _by_answer(error: BaseException, now: float) -> Meaning | None:
    response = _of(error, "response")
    status = _status(error, response)
    if status is None or not 400 <= status <= 599:
        return None
    headers = _of(response, "headers") if response is not None else None
    after_s = retry_after_s(headers if headers is not None else _of(error, "headers"), now=now)
    if after_s is None:
        after_s = _seconds(_of(error, "retry_after"))
    told = _told(status, error, response)
    if status in FINAL:
        return Meaning(FailureKind.PERMANENT, told=told)
    is_throttled = status in THROTTLING or (status in THROTTLING_IF_TIMED and after_s is not None)
    return Meaning(FailureKind.TRANSIENT, after_s=after_s, is_throttled=is_throttled, told=told)


def _status(error: BaseException, response: Any) -> int | None:
    # An exception of something else than HTTP may have a `code` or `status`, too: it needs headers beside it.
    names = ("status_code",) if _of(error, "headers") is None else ("status_code", "status", "code")
    found = [_of(error, name) for name in names] + [_of(response, name) for name in ("status_code", "status")]
    return next((int(each) for each in found if isinstance(each, int) and not isinstance(each, bool)), None)


def _told(status: int, error: BaseException, response: Any) -> str:
    request = _of(error, "request") or _of(error, "request_info") or _of(response, "request")
    url = _of(request, "url") or _of(response, "url") or _of(error, "url")
    where = f" from {_bare(str(url))}" if url else ""
    try:
        phrase = f" {HTTPStatus(status).phrase}"
    except ValueError:
        phrase = ""
    first_line = _text(error).partition("\n")[0]
    return f"{status}{phrase}{where}: {without_secrets(first_line)}"[:TOLD_MAX]


def _bare(url: str) -> str:
    try:
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.netloc else parts.path
    except ValueError:
        return "an address"


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001  # somebody else's exception must not stop ours
        return type(error).__name__


def _of(thing: Any, name: str) -> Any:
    """An attribute, or None; properties of others may raise anything."""
    try:
        return getattr(thing, name, None)
    except Exception:  # noqa: BLE001  # httpx raises where an exception has no request
        return None


def _header(headers: Any, name: str) -> str:
    if not isinstance(headers, Mapping) and not hasattr(headers, "items"):
        return ""
    try:
        return next((str(value) for key, value in headers.items() if str(key).lower() == name), "").strip()
    except Exception:  # noqa: BLE001  # not the headers of an answer after all
        return ""


def _seconds(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number >= 0 else None


_URL: Final = re.compile(r"\b[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
_PATH: Final = re.compile(r"(url: /[^\s?#'\"]*)[?#][^\s'\"]*")
