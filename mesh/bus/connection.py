"""One NATS connection with an inbox of its own for every answer.

nats-py's `publish_async` never resolves when the server answers with an error, and `request` costs a
`wait_for` a call; here one wildcard subscription and a dictionary of futures serve both (NATS_FACTS 13).
"""

import asyncio
import itertools
import logging
import re
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import nats
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from contracts import headers
from mesh.bus.options import client_options
from mesh.bus.replies import ApiError, PubAck, translate
from mesh.errors import BusError, BusUnavailable, PermissionDenied, PublishRejected, PublishUnconfirmed, SetupError
from mesh.fibers import serving
from mesh.settings import Settings

log = logging.getLogger("mesh.bus")

HEADER_FRAME_BYTES = len("NATS/1.0\r\n\r\n")
HEADER_ROOM_BYTES = 64 * 1024
"""Payloads this close to the server's limit are measured with their headers."""
WINDOWS = 4
"""How many large objects are on their way at once; see `mesh.bus.objects`."""
REPLY_WITHIN_S = 2.0
"""How long an answer is waited for before the request counts as unconfirmed.

What was sent to a leader that died is never answered, so this is a part of what a failover costs; another leader is
elected after 4 to 9 s, and what is repeated until then is refused at once.
"""
DENIALS_TOLD_MAX = 100
INBOX_BYTES = 12
LIST_WITHIN_S = 5.0
"""As long for what the server may have to look up at length."""

Headers = dict[str, str]
_pub_ack = msgspec.json.Decoder(PubAck)


class Bus:
    """A connection that reconnects for ever, and the answers that come over it.

    Made closed; `options` goes to `nats.connect` or to a `NatsBroker`, then `open` takes the client.
    Whoever made the client closes it.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        self.settings = settings
        self.subjects = settings.subjects
        self.name = name
        self.nc: Client = None  # type: ignore[assignment]  # set by `open`; nothing else may be called before
        self.reconnects = 0
        self.windows = asyncio.Semaphore(WINDOWS)
        """Taken by whoever sends or reads a few chunks of an object at once."""
        self.steps_denied: set[str] = set()
        """Capabilities whose steps this user may not read; asking again would only fill the server's log."""
        self._connected = asyncio.Event()
        self._waiting: dict[str, tuple[asyncio.Future[Msg], float, str]] = {}
        self._tokens = map(_base36, itertools.count())
        self._on_reconnect: list[Callable[[], None]] = []
        self._last_error = ""
        self._denied: set[str] = set()
        self._deaf = ""
        self._is_refused = False
        self._is_leaving = False
        self._closed = asyncio.Event()
        self._inbox = ""

    # Life.

    def options(self) -> dict[str, Any]:
        """Keyword arguments for the connection, credentials and callbacks included.

        Raises:
            SetupError: a credentials or certificate file is missing, or is none.
        """
        plain = plain_options(self.settings)
        try:
            opened = client_options(plain)
        except (ssl.SSLError, OSError) as error:
            named = " or ".join(f"MESH_{field.upper()}" for field in _FILES if field in plain and "tls" in field)
            raise SetupError(f"{named} names no certificate in PEM, or no key that fits it: {error}") from error
        return {
            **opened,
            "name": self.name,
            "error_cb": self._on_error,
            "disconnected_cb": self._on_disconnected,
            "reconnected_cb": self._on_reconnected,
            "closed_cb": self._on_closed,
        }

    @classmethod
    @asynccontextmanager
    async def connect(cls, settings: Settings, name: str) -> AsyncIterator["Bus"]:
        """A bus on a connection of its own, closed on leaving.

        Raises:
            BusUnavailable: no server answered within `connect_within_s`.
        """
        bus = cls(settings, name)
        servers, options = server_addresses(settings), bus.options()
        try:
            async with asyncio.timeout(settings.connect_within_s):
                nc = await nats.connect(servers, **options)
        except (TimeoutError, OSError, nats.errors.Error) as error:
            reason = str(error) or bus._last_error or "no answer"
            raise BusUnavailable(
                f"no NATS server at {', '.join(map(_without_secret, servers))}"
                f" within {settings.connect_within_s:g} s: {reason}"
            ) from error
        try:
            async with bus.open(nc):
                yield bus
        finally:
            await bus.close()

    @asynccontextmanager
    async def open(self, nc: Client) -> AsyncIterator[None]:
        """Serve answers over a connected client until left."""
        self.nc = nc
        self._connected.set()
        self._inbox = self.new_inbox()
        self._cut = len(self._inbox) + 1
        await nc.subscribe(f"{self._inbox}.*", cb=self._answered)
        try:
            async with serving(self._expire(), self._until_closed()):
                yield
        finally:
            self._is_leaving = True
            self._fail_waiting("the connection was closed")

    async def close(self) -> None:
        """Close the client, connected or not. Safe to repeat."""
        self._is_leaving = True
        # Closing a connection that is gone meets its broken socket.
        with suppress(nats.errors.Error, OSError):
            await self.nc.close()

    @property
    def is_connected(self) -> bool:
        return self._connected.is_set()

    async def until_connected(self) -> None:
        await self._connected.wait()

    def on_reconnect(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` after each reconnection; returns what takes it off again."""
        self._on_reconnect.append(callback)
        return lambda: self._on_reconnect.remove(callback)

    # Sending.

    def new_inbox(self) -> str:
        """A subject for answers that nobody can guess, whatever other inbox of this user they know.

        Peers may write to the inboxes of those who ask them; the names of nats-py count upwards.
        """
        return f"{self.settings.nats_inbox_prefix}.{secrets.token_hex(INBOX_BYTES)}"

    async def publish(self, subject: str, data: bytes = b"", reply: str = "", headers: Headers | None = None) -> None:
        """Hand a message to the connection; nothing says whether it arrives.

        Raises:
            BusUnavailable: the connection is gone and its buffer is full, or it was closed.
            PublishRejected: the message is larger than the server takes.
        """
        limit = self.nc.max_payload
        if len(data) + HEADER_ROOM_BYTES > limit:
            # The server counts headers in, and closes the connection on one that is over.
            lines = [f"{name}: {value}\r\n" for name, value in (headers or {}).items()]
            size = len(data) + HEADER_FRAME_BYTES + sum(len(line.encode()) for line in lines)
            if size > limit:
                raise PublishRejected(f"message of {size} bytes, headers included, exceeds the server's {limit} bytes")
        try:
            await self.nc.publish(subject, data, reply=reply, headers=headers)
        except (nats.errors.Error, OSError) as error:
            raise BusUnavailable(f"cannot publish to {subject}: {error or type(error).__name__}") from error

    async def post(
        self, subject: str, data: bytes, headers: Headers | None = None, *, within_s: float = REPLY_WITHIN_S
    ) -> Awaitable[Msg]:
        """Publish a request; what is returned waits for its answer.

        Waiting raises `PublishUnconfirmed` when none came in `within_s` seconds, or the connection broke first, and
        `PermissionDenied` when this user may not publish there. Where it may not hear answers that is raised at once.
        """
        if self._deaf:
            raise PermissionDenied(self._deaf)
        token = next(self._tokens)
        answer: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._waiting[token] = (answer, time.monotonic() + within_s, subject)
        try:
            await self.publish(subject, data, f"{self._inbox}.{token}", headers)
        except BaseException:
            del self._waiting[token]
            raise
        return answer

    async def request(
        self, subject: str, data: bytes = b"", headers: Headers | None = None, *, within_s: float = REPLY_WITHIN_S
    ) -> Msg:
        """The answer to a request.

        Raises:
            BusUnavailable: nobody serves the subject.
            PublishUnconfirmed: no answer came.
            PermissionDenied: this user may not publish there, or hear answers.
        """
        answer = await (await self.post(subject, data, headers, within_s=within_s))
        if not answer.data and answer.headers and answer.headers.get(_STATUS) == "503":
            raise BusUnavailable(f"nobody answers on {subject}")
        return answer

    async def api(self, endpoint: str, body: Any = None, *, within_s: float = LIST_WITHIN_S) -> dict[str, Any]:
        """The answer of a JetStream API endpoint, named without its `$JS.API.`.

        Where nobody leads nobody answers: `within_s` says how long to wait for that.

        Raises:
            ApiError: the server refused it.
            BusUnavailable, PublishUnconfirmed: as `request`; also when the server says "not now" (503).
        """
        data = b"" if body is None else msgspec.json.encode(body)
        reply: dict[str, Any] = msgspec.json.decode(
            (await self.request(f"$JS.API.{endpoint}", data, within_s=within_s)).data
        )
        if error := reply.get("error"):
            if error.get("code") == 503:
                raise BusUnavailable(f"{endpoint}: {error.get('description', '')} ({error.get('err_code', 0)})")
            raise ApiError(error.get("description", ""), code=error.get("err_code", 0), status=error.get("code", 0))
        return reply

    async def store(self, subject: str, data: bytes, headers: Headers | None = None) -> int:
        """Publish into a stream; the sequence at which it is stored.

        Raises:
            BusUnavailable: nothing was stored.
            SequenceConflict, StreamFull, PublishRejected: the stream refused it.
            PublishUnconfirmed: it may be stored.
        """
        return self.stored_at(subject, await (await self.post(subject, data, headers)))

    def stored_at(self, subject: str, answer: Msg) -> int:
        """The sequence in a stream's answer to a `post`; raises what `store` does."""
        if not answer.data:
            raise BusUnavailable(f"no stream takes {subject} now")
        ack = _pub_ack.decode(answer.data)
        if ack.error is not None:
            raise translate(ack.error)
        return ack.seq

    @asynccontextmanager
    async def listening(self, subject: str, heard: Callable[[str, bytes, Headers], None]) -> AsyncIterator[None]:
        """Have `heard` called with the subject, body and headers of each message, until left.

        What nobody stores is missed while the connection is gone.
        """

        async def arrived(message: Msg) -> None:
            heard(message.subject, message.data, message.headers or {})

        subscription = await self.nc.subscribe(subject, cb=arrived, pending_msgs_limit=0, pending_bytes_limit=0)
        try:
            yield
        finally:
            with suppress(nats.errors.Error):
                await subscription.unsubscribe()

    async def gather(self, subject: str, data: bytes, *, within_s: float, enough: int = 0) -> list[bytes]:
        """Answers of all who serve a subject, for `within_s` seconds or until `enough` of them came."""
        inbox = self.new_inbox()
        answers: list[bytes] = []
        done = asyncio.Event()

        def heard(_: str, body: bytes, found: Headers) -> None:
            if found.get(_STATUS) == "503":
                done.set()
            elif body:
                answers.append(body)
                if enough and len(answers) >= enough:
                    done.set()

        async with self.listening(inbox, heard):
            await self.publish(subject, data, inbox)
            with suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await done.wait()
        return answers

    # What the connection tells.

    async def _answered(self, message: Msg) -> None:
        waiting = self._waiting.pop(message.subject[self._cut :], None)
        if waiting is not None and not waiting[0].done():
            waiting[0].set_result(message)

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(0.25)
            now = time.monotonic()
            for token, (answer, expires_at, _) in list(self._waiting.items()):
                if expires_at <= now or answer.done():
                    del self._waiting[token]
                    _fail(answer, PublishUnconfirmed("no answer came in time"))

    def _fail_waiting(self, reason: str) -> None:
        waiting, self._waiting = self._waiting, {}
        for answer, _, _ in waiting.values():
            _fail(answer, PublishUnconfirmed(reason))

    async def _on_disconnected(self) -> None:
        if self._connected.is_set():
            self._connected.clear()
            if not self._is_leaving:
                log.warning("%s: connection lost; reconnecting", self.name)
        self._fail_waiting("the connection broke before the answer came")

    async def _on_reconnected(self) -> None:
        self.reconnects += 1
        self._is_refused = False
        self._deaf = ""
        self._connected.set()
        log.info("%s: reconnected", self.name)
        for callback in list(self._on_reconnect):
            callback()

    async def _on_closed(self) -> None:
        self._closed.set()

    async def _until_closed(self) -> None:
        # nats-py reconnects for ever, but gives up for good on some errors, credentials taken away among them.
        await self._closed.wait()
        if not self._is_leaving:
            raise BusUnavailable(f"{self.name}: the connection was closed for good: {self._last_error or 'no reason'}")

    async def _on_error(self, error: Exception) -> None:
        self._last_error = str(error) or type(error).__name__
        if (denied := _DENIED.search(self._last_error)) is not None:
            self._deny(denied["verb"], denied["subject"])
        elif _REFUSED in self._last_error.lower() and not self._is_refused:
            self._is_refused = True
            log.warning("%s: the server does not let this user in (%s); trying on", self.name, self._last_error)
        else:
            log.debug("%s: %s", self.name, self._last_error)

    def check_denied(self, subject: str) -> None:
        """Look whether the server refused what was published there, for those who wait for no answer to it.

        Raises:
            PermissionDenied: it did.
        """
        if _told("publish", subject.lower()) in self._denied:
            raise PermissionDenied(f"this {_told('publish', subject)}")

    def _deny(self, verb: str, subject: str) -> None:
        # nats-py has made lower case of the server's words.
        if verb != "publish" and subject == f"{self._inbox}.*".lower():
            self._deaf = (
                f"this user may not hear answers at {self.settings.nats_inbox_prefix}.>: with users made by `mesh auth`"
                " set MESH_NATS_INBOX_PREFIX=_INBOX_<user>, and MESH_NATS_NKEY_SEED to the seed of the same user"
            )
            log.error("%s: %s", self.name, self._deaf)
            for answer, _, _ in list(self._waiting.values()):
                _fail(answer, PermissionDenied(self._deaf))
            return
        told = _told(verb, subject)
        if told not in self._denied and len(self._denied) < DENIALS_TOLD_MAX:
            self._denied.add(told)
            log.error("%s: this %s", self.name, told)
        for answer, _, asked in list(self._waiting.values()):
            if verb == "publish" and asked.lower() == subject:
                _fail(answer, PermissionDenied(f"this {_told(verb, asked)}"))


_STATUS = headers.STATUS
_REFUSED = "authorization violation"
_DENIED = re.compile(r'permissions violation for (?P<verb>publish|subscription) to "(?P<subject>[^"]*)"')

_FILES = ("nats_creds", "nats_nkey_seed", "nats_tls_ca", "nats_tls_cert", "nats_tls_key")


def server_addresses(settings: Settings) -> list[str]:
    """Addresses to connect to.

    Raises:
        SetupError: the settings name none.
    """
    addresses = [address.strip() for address in (settings.nats_url or "").split(",") if address.strip()]
    if not addresses:
        raise SetupError("no NATS server: set MESH_NATS_URL, or start one here with `mesh up`")
    return addresses


def plain_options(settings: Settings) -> dict[str, str]:
    """Credentials and certificates as plain values.

    Raises:
        SetupError: a file that is named does not exist, holds no key, or needs a package that is not there.
    """
    plain: dict[str, str] = {"nats_inbox_prefix": settings.nats_inbox_prefix}
    for field in _FILES:
        path = getattr(settings, field)
        if path is None:
            continue
        if not path.is_file():
            raise SetupError(f"MESH_{field.upper()} names {path}, which is not a file")
        plain[field] = str(path)
    _check_keys(settings)
    if settings.nats_user is not None:
        plain["nats_user"] = settings.nats_user
    if settings.nats_password is not None:
        plain["nats_password"] = settings.nats_password.get_secret_value()
    if settings.nats_token is not None:
        plain["nats_token"] = settings.nats_token.get_secret_value()
    return plain


def _told(verb: str, subject: str) -> str:
    return f"user may not {'publish' if verb == 'publish' else 'subscribe'} to {subject}"


def _check_keys(settings: Settings) -> None:
    if settings.nats_nkey_seed is None and settings.nats_creds is None:
        return
    try:
        import nkeys  # type: ignore[import-untyped]  # an extra, and untyped
    except ImportError:
        named = "MESH_NATS_CREDS" if settings.nats_nkey_seed is None else "MESH_NATS_NKEY_SEED"
        raise SetupError(f"{named} needs more: pip install 'starling-mesh[nkeys]'") from None
    if settings.nats_creds is not None and b"BEGIN NATS USER JWT" not in settings.nats_creds.read_bytes():
        raise SetupError(f"MESH_NATS_CREDS names {settings.nats_creds}, which holds no credentials of NATS")
    if settings.nats_nkey_seed is not None:
        try:
            nkeys.from_seed(bytearray(settings.nats_nkey_seed.read_bytes().strip())).wipe()
        except (nkeys.NkeysError, ValueError):
            # Whatever the file holds, it may be a secret.
            raise SetupError(f"MESH_NATS_NKEY_SEED names {settings.nats_nkey_seed}, which holds no seed") from None


def _fail(answer: asyncio.Future[Msg], error: BusError) -> None:
    if not answer.done():
        answer.set_exception(error)
        # Whoever asked may have been cancelled, and an error that nobody fetches is logged by the loop.
        answer.exception()


def _base36(number: int) -> str:
    digits = ""
    while True:
        number, digit = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
        if not number:
            return digits


def _without_secret(url: str) -> str:
    scheme, separator, rest = url.rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"
