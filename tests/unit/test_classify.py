"""What an exception means: try again, not now, or never. Foreign ones are those that their libraries raise."""

import email.message
import urllib.error
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import httpx2
import openai
import pytest
import requests
import tenacity

from contracts.outcome import FailureKind
from mesh.errors import (
    ContractError,
    HandoffLoop,
    NobodyAnswered,
    NonDeterminism,
    Permanent,
    SetupError,
    Throttled,
    Transient,
)
from mesh.resilience.classify import (
    AFTER_S_MAX,
    FINAL,
    NO_RULES,
    Meaning,
    Rules,
    classify,
    retry_after_s,
    without_secrets,
)

NOW = 1_800_000_000.0
SECRET = "hunter2"
ADDRESS = f"https://me:{SECRET}@api.example.com:8443/v1/items?api_key={SECRET}#{SECRET}"
SHOWN = "https://api.example.com:8443/v1/items"


def by_requests(status: int, headers: dict[str, str]) -> Exception:
    response = requests.Response()
    response.status_code, response.reason, response.url = status, "Reason", ADDRESS
    response.headers.update(headers)
    try:
        response.raise_for_status()
    except requests.HTTPError as error:
        return error
    raise AssertionError(status)


def by_urllib(status: int, headers: dict[str, str]) -> Exception:
    told = email.message.Message()
    for name, value in headers.items():
        told[name] = value
    return urllib.error.HTTPError(ADDRESS, status, "Reason", told, None)


def by_openai(status: int, headers: dict[str, str]) -> Exception:
    response = httpx2.Response(status, headers=headers, request=httpx2.Request("POST", ADDRESS))
    return openai.APIStatusError(f"Error code: {status}", response=response, body=None)


def by_httpx(status: int, headers: dict[str, str]) -> Exception:
    response = httpx2.Response(status, headers=headers, request=httpx2.Request("POST", ADDRESS))
    try:
        response.raise_for_status()
    except httpx2.HTTPStatusError as error:
        return error
    raise AssertionError(status)


class ByAiohttp(Exception):
    """Shaped as aiohttp's `ClientResponseError`."""

    def __init__(self, status: int, headers: dict[str, str]) -> None:
        super().__init__(f"{status}, message='Reason', url={ADDRESS!r}")
        self.status, self.headers = status, headers
        self.request_info = type("RequestInfo", (), {"url": ADDRESS})()


LIBRARIES = pytest.mark.parametrize("raised", [by_requests, by_urllib, by_openai, by_httpx, ByAiohttp])
Raised = Callable[[int, dict[str, str]], Exception]


def meant(error: Exception, rules: Rules = NO_RULES) -> Meaning:
    return classify(error, rules, now=NOW)


@LIBRARIES
def test_429_is_throttled_for_as_long_as_the_callee_says(raised: Raised) -> None:
    found = meant(raised(429, {"Retry-After": "17"}))

    assert (found.kind, found.is_throttled, found.after_s) == (FailureKind.TRANSIENT, True, 17.0)
    assert found.told.startswith(f"429 Too Many Requests from {SHOWN}: ")


@LIBRARIES
def test_429_without_a_time_is_throttled_too(raised: Raised) -> None:
    found = meant(raised(429, {}))

    assert (found.is_throttled, found.after_s) == (True, None)


@LIBRARIES
def test_503_is_throttled_where_it_says_when_and_a_failure_where_not(raised: Raised) -> None:
    assert meant(raised(503, {"retry-after": "2"})).is_throttled
    assert meant(raised(503, {})) == Meaning(FailureKind.TRANSIENT, told=meant(raised(503, {})).told)


@LIBRARIES
@pytest.mark.parametrize("status", sorted(FINAL))
def test_a_callee_that_says_the_request_cannot_succeed_ends_the_task(raised: Raised, status: int) -> None:
    found = meant(raised(status, {}))

    assert (found.kind, found.is_final) == (FailureKind.PERMANENT, True)
    assert found.told.startswith(f"{status} ")
    assert SHOWN in found.told


@LIBRARIES
@pytest.mark.parametrize("status", [401, 403, 408, 409, 425, 500, 502, 504, 599])
def test_what_may_pass_is_tried_again(raised: Raised, status: int) -> None:
    found = meant(raised(status, {}))

    assert (found.kind, found.is_throttled, found.after_s) == (FailureKind.TRANSIENT, False, None)


@LIBRARIES
@pytest.mark.parametrize("status", [404, 429, 500])
def test_no_secret_of_an_address_or_a_header_is_told(raised: Raised, status: int) -> None:
    told = meant(raised(status, {"Set-Cookie": SECRET, "Authorization": SECRET})).told

    assert told
    assert SECRET not in told


def test_a_path_with_a_query_is_told_without_it() -> None:
    text = f"Max retries exceeded with url: /v1/items?key={SECRET} (Caused by x)"

    assert without_secrets(text) == "Max retries exceeded with url: /v1/items (Caused by x)"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Retry-After": "120"}, 120.0),
        ({"RETRY-AFTER": " 1.5 "}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"Retry-After": format_datetime(datetime.fromtimestamp(NOW + 30, UTC), usegmt=True)}, 30.0),
        ({"Retry-After": datetime.fromtimestamp(NOW + 30, UTC).strftime("%A, %d-%b-%y %H:%M:%S GMT")}, 30.0),
        ({"Retry-After": datetime.fromtimestamp(NOW + 30, UTC).strftime("%a %b %d %H:%M:%S %Y")}, 30.0),
        ({"Retry-After": format_datetime(datetime.fromtimestamp(NOW - 30, UTC), usegmt=True)}, 0.0),
        ({"Retry-After": "99999999999"}, AFTER_S_MAX),
        ({"Retry-After": "-3"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "1e999"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": ""}, None),
        ({}, None),
        (None, None),
        ("Retry-After: 3", None),
        (object(), None),
    ],
)
def test_when_to_come_back_is_read_as_seconds_or_a_date(headers: Any, expected: float | None) -> None:
    found = retry_after_s(headers, now=NOW)

    assert found == (None if expected is None else pytest.approx(expected, abs=1.0))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Transient("x"), FailureKind.TRANSIENT),
        (Permanent("x"), FailureKind.PERMANENT),
        (NonDeterminism("x"), FailureKind.NON_DETERMINISM),
        (HandoffLoop("x"), FailureKind.LOOP),
        (NobodyAnswered("x"), FailureKind.PERMANENT),
        (ContractError("x"), FailureKind.CONTRACT),
        (RuntimeError("x"), FailureKind.TRANSIENT),
        (ConnectionResetError("x"), FailureKind.TRANSIENT),
        (TimeoutError("x"), FailureKind.TRANSIENT),
    ],
)
def test_our_own_errors_mean_what_they_say_and_others_may_pass(error: Exception, kind: FailureKind) -> None:
    assert meant(error) == Meaning(kind)


def test_a_handler_says_itself_when_to_come_back() -> None:
    assert meant(Throttled("x", after_s=3)) == Meaning(FailureKind.TRANSIENT, after_s=3, is_throttled=True)
    assert meant(Transient("x", after_s=3)) == Meaning(FailureKind.TRANSIENT, after_s=3)


class Flawed(ValueError):
    """An author's own error."""


def test_an_authors_rules_go_before_what_a_callee_answered() -> None:
    rules = Rules(permanent=(ValueError,), transient=(requests.HTTPError,))

    assert meant(Flawed("x"), rules).is_final
    assert meant(by_requests(404, {}), rules) == Meaning(FailureKind.TRANSIENT)


def test_the_nearest_class_decides() -> None:
    every = Rules(permanent=(Exception,))

    assert meant(LookupError("x"), every).is_final
    assert not meant(Transient("x"), every).is_final
    assert not meant(Flawed("x"), Rules(permanent=(ValueError,), transient=(Flawed,))).is_final
    assert meant(Flawed("x"), Rules(permanent=(Flawed,), transient=(ValueError,))).is_final


def wrapped(inner: Exception, outer: Exception) -> Exception:
    try:
        raise outer from inner
    except type(outer) as error:
        return error


def test_a_wrapper_that_says_nothing_means_what_it_wraps() -> None:
    assert meant(wrapped(by_requests(404, {}), RuntimeError("it broke"))).is_final
    assert meant(wrapped(wrapped(by_requests(429, {"Retry-After": "4"}), OSError()), RuntimeError())).after_s == 4
    assert meant(wrapped(Permanent("x"), RuntimeError())).is_final
    assert meant(wrapped(Flawed("x"), RuntimeError()), Rules(permanent=(Flawed,))).is_final


def test_a_wrapper_that_says_something_is_believed() -> None:
    assert not meant(wrapped(by_requests(404, {}), Transient("it may come"))).is_final
    assert meant(wrapped(by_requests(503, {}), Permanent("gave up"))).is_final
    assert not meant(wrapped(by_requests(404, {}), by_requests(500, {}))).is_final


def test_what_is_raised_while_another_is_handled_is_not_wrapped() -> None:
    slip = RuntimeError("a slip")
    slip.__context__ = by_requests(404, {})

    assert not meant(slip).is_final


def test_a_circle_of_causes_ends() -> None:
    first, second = RuntimeError("a"), RuntimeError("b")
    first.__cause__, second.__cause__ = second, first

    assert meant(first) == Meaning(FailureKind.TRANSIENT)


class Hostile(Exception):
    """Raises whatever it is asked for."""

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__") and name != "__str__":
            return super().__getattribute__(name)
        raise SystemError(name)

    def __str__(self) -> str:
        raise ValueError("no words")


def test_an_exception_that_raises_when_it_is_looked_at_may_pass() -> None:
    assert meant(Hostile()) == Meaning(FailureKind.TRANSIENT)


@pytest.mark.parametrize("code", [404, "404", True, lambda: 404])
def test_an_exception_with_a_code_of_its_own_is_no_answer_of_a_callee(code: object) -> None:
    error = RuntimeError("exit status")
    error.code = error.status = code  # type: ignore[attr-defined]

    assert meant(error) == Meaning(FailureKind.TRANSIENT)


@pytest.mark.parametrize(
    ("permanent", "transient", "told"),
    [
        (ValueError, (), "permanent is <class 'ValueError'>; it must be a tuple of exception types"),
        ((), ("ValueError",), "transient is .* must be a tuple of exception types"),
        ((int,), (), "permanent is .* must be a tuple of exception types"),
        ((KeyboardInterrupt,), (), "permanent is .* must be a tuple of exception types"),
        ((ValueError,), (ValueError,), "permanent and transient both name ValueError"),
    ],
)
def test_rules_that_cannot_work_are_refused(permanent: Any, transient: Any, told: str) -> None:
    with pytest.raises(SetupError, match=told):
        Rules(permanent, transient)


def test_an_error_of_tenacity_says_nothing_by_itself() -> None:
    @tenacity.retry(stop=tenacity.stop_after_attempt(1))
    def call() -> None:
        raise by_requests(422, {})

    with pytest.raises(tenacity.RetryError) as caught:
        call()

    assert meant(caught.value).is_final
