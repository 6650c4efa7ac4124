"""A peer: one process that hosts agents. The only module that wires the parts together.

FastStream is the shell: its application owns signals and life cycle, its broker the connection, and its
subscribers and publishers the planes that are not stored (control, presence, questions). The task plane, and the
events it tells, run over the same connection.

Life: connect → make sure of the topology → learn the control records → offer slots … on SIGTERM: stop bidding
→ finish within grace → hand the rest back → leave.
"""

import asyncio
import itertools
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from typing import Any, TypeVar

from fast_depends.msgspec import MsgSpecSerializer
from faststream import FastStream
from faststream.nats import NatsBroker, NatsMessage
from faststream.nats.security import NatsCredentials, NatsNKey, NatsSecurity, NatsToken, NatsUserPassword

from contracts.card import Beat, Described, PeerState
from contracts.control import PartsKept, PartsWanted, Running, Runs, WhoRuns
from contracts.event import EventKind
from contracts.subjects import Identity, consumer_name
from mesh.bus import control, topology
from mesh.bus.connection import Bus, Headers, server_addresses
from mesh.bus.leader import consumer_elections
from mesh.capability import AgentInfo, Capability, agent_card
from mesh.errors import BusError, BusUnavailable, PublishUnconfirmed, SetupError, TopologyMissing
from mesh.fibers import serving
from mesh.questions import AnswersToInboxes
from mesh.runtime.breakers import Breakers
from mesh.runtime.cancelled import Cancelled
from mesh.runtime.controls import Controls
from mesh.runtime.events import Events
from mesh.runtime.gauges import Gauges
from mesh.runtime.heartbeat import Heartbeat
from mesh.runtime.host import Host
from mesh.runtime.intake import Intake
from mesh.runtime.survey import Survey
from mesh.runtime.sweep import Sweep
from mesh.runtime.timekeeper import Timekeeper
from mesh.scheduling.bids import Offer
from mesh.scheduling.lanes import ORDER
from mesh.settings import Settings
from mesh.telemetry import logs, tracing
from mesh.telemetry.http import Pages, served
from mesh.telemetry.metrics import Metrics
from mesh.telemetry.tracing import Tracing
from mesh.workflow.durable import Services
from mesh.workflow.limits import Limiter

log = logging.getLogger("mesh.peer")

T = TypeVar("T")

BEATS_MISSED = 3
ALIVE_SLACK_S = 60.0
SPARE_ROWS = 256
RECOVER_AGAIN_S = 0.5
MISSING_AGAIN_S = 5.0
"""How long after an operator made what was missing a peer goes on, at most."""

Hosted = tuple[AgentInfo, Sequence[Capability[Any, Any, Any]]]


class Peer:
    """One process's share of the mesh: agents, their slots, and the planes they speak on.

    Runs are traced by OpenTelemetry's `tracer_provider`, or as MESH_TRACES says.

    Raises:
        SetupError: no capability to serve, two handlers for one capability, or no server to connect to.
    """

    def __init__(self, *hosted: Hosted, settings: Settings | None = None, tracer_provider: Any = None) -> None:
        self.settings = settings = settings or Settings()
        self.hosted = hosted
        self._tracer_provider = tracer_provider
        capabilities = [capability for _, offered in hosted for capability in offered]
        names = [capability.name for capability in capabilities]
        if not names:
            raise SetupError("nothing to serve: no agent handles a capability")
        if twice := {name for name in names if names.count(name) > 1}:
            raise SetupError(f"handled twice in one peer: {', '.join(sorted(twice))}")
        self.id = _peer_id(settings)
        self.bus = Bus(settings, self.id)
        self.metrics = Metrics(is_on=settings.metrics)
        self.state = PeerState.STARTING
        self.metrics_url = ""
        self._since = time.time()
        self._beats: dict[str, tuple[float, Beat]] = {}
        self._ticked_at = time.monotonic()
        self._connected, self._ready = asyncio.Event(), asyncio.Event()
        self._takes_work = False
        self._drain, self._drained, self._shaken = asyncio.Event(), asyncio.Event(), asyncio.Event()
        controls = Controls(settings.subjects, cancel_ttl_s=settings.result_ttl_s)
        limiter = Limiter(
            self.bus,
            self.id,
            self.metrics.limits,
            operator=controls.limit_of,
            declared=_declared("limits", (agent.limits for agent, _ in hosted)),
        )
        controls.on_change.append(limiter.stir)
        slots = sum(capability.limits.concurrency for capability in capabilities)
        self.host = Host(
            bus=self.bus,
            settings=settings,
            peer=self.id,
            metrics=self.metrics,
            controls=controls,
            breakers=Breakers(
                self.bus,
                self.id,
                controls,
                self.metrics,
                _declared("breakers", (agent.breakers for agent, _ in hosted)),
                tell=self._tell_of_breaker,
            ),
            heartbeat=Heartbeat(settings, rows=4 * slots + settings.hot_waits_max + SPARE_ROWS),
            services=Services(self.bus, settings, self.id, limiter),
            events=Events(self.bus, settings, self.id, self.metrics),
            offers_of=self._offers_of,
        )
        self.host.controls.on_change.append(self.host.cancel_running)
        self._cancelled = Cancelled(self.host, self._serving)
        self.host.controls.on_cancel.append(self._cancelled.heard)
        self.intakes = [Intake(self.host, capability, on_lost=self._shake) for capability in capabilities]
        self._timekeepers = [Timekeeper(self.host, name, on_lost=self._shake) for name in names]
        self._survey_of_mesh = Survey(self.host, names, live_peers=self.live_peers)
        self.metrics.watch(self._survey_of_mesh.read)
        self.metrics.watch(Gauges(self.host, self.intakes, is_ready=self.is_ready, live_peers=self.live_peers).read)
        self.broker = self._broker()
        self.app = FastStream(
            self.broker,
            logger=None,
            lifespan=self._lifespan,
            after_startup=[self._started],
            on_shutdown=[self._stopping],
        )

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain.

        Raises:
            SetupError, TopologyDrift: the peer cannot serve on this server.
        """
        try:
            await self.app.run()
        except BaseExceptionGroup as group:
            if not self._drained.is_set() or self.bus.is_connected:
                raise _first(group) from group
            # It drained; what failed then is the farewell over a connection that is gone.
            log.info("%s left while the connection was gone", self.id)
        finally:
            await self._close()

    def stop(self) -> None:
        """Begin to drain, as SIGTERM does."""
        self.app.exit()

    # The planes that are not stored.

    def _broker(self) -> NatsBroker:
        options = self.bus.options()
        security = _security(options)
        broker = NatsBroker(
            server_addresses(self.settings),
            security=security,
            serializer=MsgSpecSerializer(),
            logger=None,
            graceful_timeout=1.0,
            middlewares=[AnswersToInboxes],
            **options,
        )
        subjects = self.settings.subjects
        names = [intake.capability.name for intake in self.intakes]
        self._beat_publisher = broker.publisher(subjects.beat(self.id), schema=Beat, description="Presence and load.")

        @broker.subscriber(subjects.control_echoes, description="Changes of control records.")
        async def control_changed(message: NatsMessage) -> None:
            raw = message.raw_message
            self.host.controls.heard(raw.subject, raw.data, raw.headers or {})

        @broker.subscriber(subjects.beats, description="Presence and load of peers.")
        async def beat_heard(beat: Beat) -> None:
            self._beats[beat.peer] = time.monotonic(), beat

        @broker.subscriber(subjects.ctl("all", "describe"), description="Who is there, and what can it do?")
        async def describe() -> Described:
            cards = tuple(agent_card(agent, offered) for agent, offered in self.hosted)
            return Described(
                beat=self._beat(), cards=cards, metrics_url=self.metrics_url, calls=self.host.answered.calls()
            )

        @broker.subscriber(subjects.ctl("all", "who-runs"), description="What runs where?")
        async def everything_running(question: WhoRuns) -> Runs | None:
            return self._runs(question.id, names)

        for name in names:
            self._answer_for(broker, name)
        return broker

    def _answer_for(self, broker: NatsBroker, name: str) -> None:
        subjects = self.settings.subjects

        @broker.subscriber(subjects.ctl(name, "who-runs"), description="Who runs this task?")
        async def who_runs(question: WhoRuns) -> Runs | None:
            return self._runs(question.id, [name])

        @broker.subscriber(subjects.ctl(name, "distrust"), description="Delivery counts start over.")
        async def distrust(question: WhoRuns) -> Runs | None:
            self._shake()
            return self._runs(question.id, [name])

        @broker.subscriber(subjects.ctl(name, "parts"), description="Streamed parts that were missed.")
        async def parts_wanted(wanted: PartsWanted) -> PartsKept | None:
            return self._parts(Identity(name, wanted.id), wanted)

    def _runs(self, task_id: str, capabilities: Sequence[str]) -> Runs | None:
        running = tuple(
            Running(
                capability=attempt.identity.capability,
                id=attempt.identity.id,
                since=attempt.started_at,
                attempt=attempt.number,
                parts=attempt.context.parts_emitted if attempt.context is not None else 0,
                is_waiting=attempt.identity in self.host.waiting,
            )
            for attempt in self.host.running.values()
            if attempt.started_at
            and attempt.identity.capability in capabilities
            and task_id in ("", attempt.identity.id)
        )
        return Runs(peer=self.id, running=running) if running or not task_id else None

    def _parts(self, identity: Identity, wanted: PartsWanted) -> PartsKept | None:
        kept = tuple(
            part for part in self.host.parts_of(identity, wanted.attempt) if wanted.first <= part[0] < wanted.end
        )
        return PartsKept(parts=kept) if kept else None

    def _beat(self) -> Beat:
        return Beat(
            peer=self.id,
            at=time.time(),
            state=self.state,
            host=socket.gethostname(),
            pid=os.getpid(),
            since=self._since,
            agents=tuple(agent.name for agent, _ in self.hosted),
            load={intake.capability.name: intake.load() for intake in self.intakes},
        )

    def live_peers(self) -> int:
        """How many peers beat lately, this one included."""
        since = time.monotonic() - BEATS_MISSED * self.settings.beat_s
        return max(1, sum(heard_at > since for heard_at, _ in self._beats.copy().values()))

    def _forget_silent(self) -> None:
        since = time.monotonic() - BEATS_MISSED * self.settings.beat_s
        self._beats = {peer: heard for peer, heard in self._beats.items() if heard[0] > since}

    def _offers_of(self, capability: str) -> Iterator[Offer]:
        since = time.monotonic() - BEATS_MISSED * self.settings.beat_s
        for peer, (heard_at, beat) in self._beats.items():
            load = beat.load.get(capability)
            if (
                load is not None
                and peer != self.id
                and heard_at > since
                and beat.state is PeerState.READY
                and not load.is_paused
                and not load.held_by
            ):
                yield Offer(load.slots, load.delay_s, load.classes)

    def _serving(self, capability: str) -> Iterator[str]:
        self._forget_silent()
        return (peer for peer, (_, beat) in self._beats.items() if capability in beat.load)

    async def _tell_of_breaker(self, kind: EventKind, name: str) -> None:
        await self.host.tell(kind, detail=name)

    # Life.

    @asynccontextmanager
    async def _lifespan(self) -> AsyncIterator[None]:
        # The fibers live in this task's group: one that fails ends the application, and so the process.
        async with asyncio.TaskGroup() as fibers:
            live = fibers.create_task(self._live())
            try:
                yield
            finally:
                live.cancel()

    async def _started(self) -> None:
        self._connected.set()
        await self._ready.wait()

    async def _stopping(self) -> None:
        self._drain.set()
        # One that still waits for its streams has nothing in hand, and may wait for long.
        if not self._takes_work:
            self._drained.set()
        await self._drained.wait()

    async def _close(self) -> None:
        # Safe to repeat; FastStream leaves the connection open when a start or a fiber fails.
        try:
            await self.broker.stop()
        except Exception:
            # nats-py does not drain a connection that is gone.
            if self.bus.is_connected:
                raise
            await self.bus.close()

    async def _live(self) -> None:
        await self._connected.wait()
        logs.of_peer(self.id)
        connection = self.broker.connection
        async with self.bus.open(connection), AsyncExitStack() as stack:
            elections = consumer_elections(self.settings.subjects.stream)
            await stack.enter_async_context(self.bus.listening(elections, self._elected))
            ensured = await self._ensure()
            for difference in ensured.tolerated:
                log.warning("kept as the server has it: %s", difference)
            for told in ensured.refused:
                log.warning("%s; this peer goes on without it", told)
            # Another replica with another setting made the consumers, perhaps.
            self.host.heartbeat.beat_for(topology.ack_wait_s(self.settings, ensured.tolerated))
            await self._learn()
            await stack.enter_async_context(self.host.heartbeat.running())
            pages = Pages(self.metrics.registry, self.is_healthy, self.is_ready)
            self.host.tracing = self._traced()
            stack.push_async_callback(self.host.tracing.flush)
            self.metrics_url = stack.enter_context(
                served(pages, host=self.settings.http_host, port=self.settings.http_port)
                if self.settings.http_port >= 0
                else nullcontext("")
            )
            off = self.bus.on_reconnect(self._shake)
            stack.callback(off)
            await stack.enter_async_context(self.host.services.open())
            await stack.enter_async_context(self.host.breakers.open())
            if self._drain.is_set():
                return
            self._takes_work = True
            for timekeeper in self._timekeepers:
                await stack.enter_async_context(timekeeper.open())
            for intake in self.intakes:
                await stack.enter_async_context(intake.open())
            capabilities = [intake.capability for intake in self.intakes]
            helpers = (
                self._keep_beating(),
                self._keep_recovering(),
                self.host.lag.keep(),
                Sweep(self.host).keep(capabilities, self.live_peers),
                self._cancelled.keep(capabilities),
                self._survey_of_mesh.keep(),
            )
            async with serving(*helpers):
                self.state = PeerState.READY
                log.info("%s serves %s", self.id, ", ".join(capability.name for capability in capabilities))
                await self.host.tell(EventKind.JOINED)
                self._ready.set()
                await self._drain.wait()
                await self._hand_over()
        self._drained.set()

    def _traced(self) -> Tracing:
        service = "+".join(agent.name for agent, _ in self.hosted)[:64]
        return tracing.started(self.settings, provider=self._tracer_provider, service=service, instance=self.id)

    async def _hand_over(self) -> None:
        self.state = PeerState.DRAINING
        running = sum(intake.in_flight for intake in self.intakes)
        log.info("%s drains: %d running, %g s of grace", self.id, running, self.settings.grace_s)
        await self.host.tell(EventKind.DRAINING)
        self.host.is_draining = True
        for intake in self.intakes:
            await intake.stop_bidding()
        for timekeeper in self._timekeepers:
            await timekeeper.stop()
        async with asyncio.TaskGroup() as finishing:
            for intake in self.intakes:
                finishing.create_task(intake.finish(grace_s=self.settings.grace_s))
        await self.host.tell(EventKind.LEFT)

    def _topology(self) -> list[topology.Spec]:
        specs = list(topology.of_mesh(self.settings))
        for capability in (intake.capability for intake in self.intakes):
            queue_max = capability.limits.queue_max or self.settings.queue_max
            specs += topology.of_capability(self.settings, capability.name, queue_max=queue_max)
        return specs

    async def _ensure(self) -> topology.Ensured:
        """See to the topology, for as long as it takes the server to answer."""
        while True:
            try:
                return await topology.ensure(self.bus, self._topology())
            except (BusUnavailable, PublishUnconfirmed) as error:
                await self._until_it_answers(error)
            except TopologyMissing as error:
                log.error("%s waits: %s", self.id, error)
                await asyncio.sleep(MISSING_AGAIN_S)

    async def _learn(self) -> None:
        """Know what may be trusted, what runs elsewhere, and the control records as they stand."""
        while True:
            try:
                await self.host.learn_watermark()
                await self.host.survey()
                known = self.host.controls.known()
                self.host.controls.read(await control.snapshot(self.bus), known)
                return
            except (BusUnavailable, PublishUnconfirmed) as error:
                await self._until_it_answers(error)

    async def _survey(self) -> None:
        try:
            await self.host.survey()
        except (BusUnavailable, PublishUnconfirmed) as error:
            # It is asked again when the streams answer.
            log.debug("nobody was asked what runs: %s", error)

    async def _until_it_answers(self, error: BusError) -> None:
        log.warning("%s waits for its streams: %s", self.id, error)
        await self.bus.until_connected()
        await asyncio.sleep(RECOVER_AGAIN_S)

    def _shake(self) -> None:
        self.host.distrust()
        self._shaken.set()

    def _elected(self, subject: str, _: bytes, __: Headers) -> None:
        """A consumer's new leader may have missed which messages the old one handed out last, or were acked."""
        served = {consumer_name(intake.capability.name, lane) for intake in self.intakes for lane in ORDER}
        if subject.rpartition(".")[2] in served:
            self._shake()

    async def _keep_recovering(self) -> None:
        """After a reconnection or a lost consumer: see to the topology, then trust and know again."""
        while True:
            reconnects = self.bus.reconnects
            await self._shaken.wait()
            self._shaken.clear()
            self.host.distrust()
            if self.bus.reconnects == reconnects:
                # Nobody has to come back first, and what comes again waits for what the others say.
                await self._survey()
            try:
                ensured = await self._ensure()
                if ensured.created:
                    log.warning("made anew: %s", ", ".join(ensured.created))
            except (BusError, SetupError) as error:
                # This peer goes on with what it has; one that starts anew refuses, and says the same.
                log.error("%s", error)
            await self._learn()

    async def _keep_beating(self) -> None:
        while True:
            self._ticked_at = time.monotonic()
            self._forget_silent()
            if self.bus.is_connected:
                try:
                    await self._beat_publisher.publish(self._beat())
                except Exception as error:  # noqa: BLE001  # a beat is missed, the next one comes
                    log.debug("beat not published: %s", error)
            await asyncio.sleep(self.settings.beat_s)

    # What others may ask.

    def is_ready(self) -> tuple[bool, str]:
        """Whether this peer takes work now."""
        if self.state is not PeerState.READY:
            return False, str(self.state)
        if not self.bus.is_connected:
            return False, "not connected"
        paused = [intake.capability.name for intake in self.intakes if intake.is_paused]
        return True, f"ready, paused: {', '.join(paused)}" if paused else "ready"

    def is_healthy(self) -> tuple[bool, str]:
        """Whether the event loop turns; a handler may block it for as long as its timeout allows."""
        silent_s = time.monotonic() - self._ticked_at
        longest_s = max(intake.capability.limits.timeout_s for intake in self.intakes)
        return silent_s < longest_s + ALIVE_SLACK_S, f"loop turned {silent_s:.1f} s ago"


def _security(options: dict[str, Any]) -> NatsSecurity | None:
    """The credentials among the connection's options, taken out of them, as FastStream wants them."""
    context = options.pop("tls", None)
    tls: dict[str, Any] = {"ssl_context": context, "use_ssl": True} if context is not None else {}
    user, password = options.pop("user", None), options.pop("password", None)
    token = options.pop("token", None)
    creds, seed = options.pop("user_credentials", None), options.pop("nkeys_seed", None)
    if creds is not None:
        return NatsCredentials.from_file(creds, **tls)
    if seed is not None:
        return NatsNKey.from_file(seed, **tls)
    if token is not None:
        return NatsToken(token, **tls)
    if user is not None:
        return NatsUserPassword(user, password or "", **tls)
    return NatsSecurity(**tls) if tls else None


def _declared(what: str, each: Iterable[Mapping[str, T]]) -> dict[str, T]:
    """What the agents of one peer declare by name, together.

    Raises:
        SetupError: two of them declare something else under one name.
    """
    found: dict[str, T] = {}
    for name, value in itertools.chain.from_iterable(declared.items() for declared in each):
        if found.setdefault(name, value) != value:
            raise SetupError(f"agents of one peer declare different {what} for {name!r}")
    return found


def _peer_id(settings: Settings) -> str:
    name = re.sub(r"[^A-Za-z0-9_-]", "-", settings.peer_name or socket.gethostname())[:40] or "peer"
    return f"{name}-{os.getpid()}-{secrets.token_hex(2)}"


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
