"""What a hostile peer and a hostile client try, each with valid credentials, and what comes of it.

The peer handles `desk` and calls `price` and others; the client submits to `desk`. Neither has to do with `vault`,
whose peer is at work, nor with `attic`, whose tasks wait. Each attempt says by what it is closed, or that it remains.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec
import pytest
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg

from contracts import headers as names
from contracts import wire
from contracts.card import Beat, Described, Load, PeerState
from contracts.control import Cancel, Pause, Running, Runs, WhoRuns
from contracts.subjects import Identity, Subjects, key_cancel
from contracts.task import Sender, Task
from mesh.auth.keys import new_seed
from mesh.cli.fleet import describe
from mesh.errors import DeadlineExceeded, ObjectGone, Overloaded, TaskCancelled
from mesh.testing import eventually, hosting
from mesh.whereabouts import Where
from tests.security.scene import Behind, Order, Raw, behind_permissions, closed, gate, open_vault, order, vault

By = Literal["peer", "client", "monitor", "nobody"]
ClosedBy = Literal["permission", "account", "server rule", "mesh's check", "remains"]
USERS: Final[dict[By, str]] = {"peer": "desk", "client": "shop", "monitor": "watch"}
SUBJECTS: Final = Subjects("mesh")
FORGED: Final = b'{"status":"done","value":"forged"}'
PROBE: Final = "probe-"
"""Ids of tasks that the victim submits during an attempt begin so."""


@dataclass
class Stage:
    """One attempt's view: the attacker's connection, the mesh, and what it holds."""

    behind: Behind
    raw: Raw
    victim: Any
    """The client `keeper`, whose tasks are attacked."""
    taken: str
    """The ack subject of a task of `attic` that somebody has in hand."""

    async def publish(self, subject: str, data: bytes = b"x", *, reply: str = "", headers: Any = None) -> None:
        await self.raw.publish(subject, data, reply=reply, headers=headers)

    async def inject(self, target: str) -> None:
        """Have the answer to a permitted direct get of a record of one's own sent to a subject."""
        subject = "mesh.step.spare.own.~~forged"
        await self.raw.request(subject, FORGED)
        await self.publish(f"$JS.API.DIRECT.GET.MESH.{subject}", b"", reply=target)
        await self.settled()

    async def still_answered(self, key: str) -> None:
        """A task that the victim submits now is done by its own peer."""
        handle = await self.victim.submit(open_vault, "silver", key=f"{PROBE}{key}")
        assert await handle.result(within_s=20) == "secret of silver"

    async def settled(self) -> None:
        """Wait until the server has done what was asked before."""
        await self.raw.request("$JS.API.STREAM.INFO.MESH", b"")

    def denied(self) -> None:
        """The server refused, and named the violation."""
        assert self.raw.is_denied, "the server refused nothing"

    async def eventually_denied(self) -> None:
        await eventually(lambda: self.raw.is_denied, within_s=3.0)

    async def each_denied(self, *subjects: str) -> None:
        """Every one of these publishes is refused."""
        for subject in subjects:
            self.raw.errors.clear()
            await self.publish(subject, b"{}")
            await self.eventually_denied()

    async def pulled(self) -> Msg:
        """A task of a capability of the attacker's own, which no peer serves, taken by hand."""
        inbox = self.raw.nc.new_inbox()
        came = await self.raw.listen(inbox)
        await self.raw.request(f"mesh.task.spare.{inbox.rpartition('.')[2]}", b'"mine"')
        body = json.dumps({"batch": 1, "expires": 5_000_000_000, "group": "slots"}).encode()
        await self.publish("$JS.API.CONSUMER.MSG.NEXT.MESH.spare", body, reply=inbox)

        def taken() -> Msg | None:
            return next((message for message in came if message.reply.startswith("$JS.ACK.")), None)

        return await eventually(taken, within_s=5.0)  # type: ignore[return-value]


@dataclass(frozen=True)
class Attempt:
    """A line of the table."""

    what: str
    by: By
    closed_by: ClosedBy
    happens: str
    run: Callable[[Stage], Awaitable[None]]

    @property
    def name(self) -> str:
        return f"{self.by}: {self.what}"


ATTEMPTS: list[Attempt] = []


def attempt(
    what: str, by: By, closed_by: ClosedBy, happens: str
) -> Callable[[Callable[[Stage], Awaitable[None]]], None]:
    def listed(run: Callable[[Stage], Awaitable[None]]) -> None:
        ATTEMPTS.append(Attempt(what, by, closed_by, happens, run))

    return listed


def refused(what: str, by: By, *subjects: str, happens: str = "refused, and in the server's log") -> None:
    """An attempt that is one or more publishes, each against the permissions."""

    async def run(stage: Stage) -> None:
        await stage.each_denied(*subjects)

    ATTEMPTS.append(Attempt(what, by, "permission", happens, run))


GET: Final = "$JS.API.DIRECT.GET.MESH"
API: Final = "$JS.API"

# Writing for others.

refused("forge a result of another capability", "peer", "mesh.result.vault.waiting", "mesh.result.price.x")
refused("forge a park of another capability", "peer", "mesh.park.vault.done", "mesh.park.price.x")
refused("forge a step, or the signal that a task waits for", "peer", "mesh.step.vault.waiting.~~signal-open")
refused("forge a dead letter of another capability", "peer", "mesh.dead.letter.vault.done")
refused("submit to a capability that it does not call", "peer", "mesh.task.vault.x", "mesh.task@urgent.vault.x")
refused("wake tasks of a capability that it has nothing to do with", "peer", "mesh.wake.vault.waiting")
refused("set, fire or replace timers of another capability", "peer", "mesh.timer.vault.waiting.x", "mesh.due.vault.x.y")
refused("set a schedule for another capability, or its own", "peer", "mesh.cron.vault.x", "mesh.cron.desk.x")
refused("overwrite another capability's large values", "peer", "mesh.object.vault.large.x.0")
refused("move another capability's lines", "peer", "mesh.line.vault.x", "mesh.place.vault.x.y")
refused("tell events in another capability's name", "peer", "mesh.event.ended.vault.done")
refused("commit the result of its own task", "client", "mesh.result.desk.x", "mesh.park.desk.x")
refused(
    "write steps of its own task, or a signal it may not send",
    "client",
    "mesh.step.desk.x.charge",
    "mesh.step.desk.x.~~signal-open",
)
refused("submit to a capability that it does not call", "client", "mesh.task.vault.x", "mesh.task.price.x")

# Reading what is others'.

refused("read results of another capability", "peer", f"{GET}.mesh.result.vault.done")
refused(
    "read steps, parks and tasks of another capability",
    "peer",
    f"{GET}.mesh.step.vault.done.count",
    f"{GET}.mesh.park.vault.waiting",
    f"{GET}.mesh.task.attic.queued",
)
refused("read steps of a capability that it calls", "peer", f"{GET}.mesh.step.price.x.y")
refused("read steps of a capability that it calls", "client", f"{GET}.mesh.step.desk.x.y")
refused("read large values of another capability", "peer", f"{API}.DIRECT.GET.MESH_OBJECTS.mesh.object.vault.large.x.0")
refused(
    "read with the bare direct get, which knows no subject",
    "peer",
    GET,
    f"{API}.DIRECT.GET.MESH_OBJECTS",
    f"{API}.DIRECT.GET.MESH_EVENTS",
)
refused("read with STREAM.MSG.GET", "peer", f"{API}.STREAM.MSG.GET.MESH", f"{API}.STREAM.MSG.GET.MESH_OBJECTS")
refused(
    "read through a consumer of its own making",
    "peer",
    f"{API}.CONSUMER.CREATE.MESH",
    f"{API}.CONSUMER.CREATE.MESH.mine",
    f"{API}.CONSUMER.DURABLE.CREATE.MESH.mine",
    f"{API}.CONSUMER.CREATE.MESH_EVENTS.mine",
)
refused(
    "read payloads, values and steps",
    "monitor",
    GET,
    f"{GET}.mesh.result.vault.done",
    f"{GET}.mesh.step.vault.done.count",
    f"{API}.STREAM.MSG.GET.MESH",
)

# The server's own doors.

refused(
    "delete, purge, change or make streams",
    "peer",
    f"{API}.STREAM.DELETE.MESH",
    f"{API}.STREAM.PURGE.MESH",
    f"{API}.STREAM.UPDATE.MESH",
    f"{API}.STREAM.CREATE.MINE",
)
refused(
    "purge or delete the stream of its own timers",
    "peer",
    f"{API}.STREAM.PURGE.MESH_TIMERS@desk",
    f"{API}.STREAM.DELETE.MESH_TIMERS@desk",
)
refused("delete single messages", "peer", f"{API}.STREAM.MSG.DELETE.MESH", f"{API}.STREAM.MSG.DELETE.KV_MESH_CONTROL")
refused("take a snapshot, or restore one", "peer", f"{API}.STREAM.SNAPSHOT.MESH", f"{API}.STREAM.RESTORE.MESH")
refused(
    "have leaders step down, or peers removed",
    "peer",
    f"{API}.STREAM.LEADER.STEPDOWN.MESH",
    f"{API}.CONSUMER.LEADER.STEPDOWN.MESH.vault",
    f"{API}.META.LEADER.STEPDOWN",
    f"{API}.STREAM.PEER.REMOVE.MESH",
)
refused(
    "turn its own consumer to others' subjects",
    "peer",
    f"{API}.CONSUMER.CREATE.MESH.desk",
    f"{API}.CONSUMER.DURABLE.CREATE.MESH.desk",
)
refused(
    "delete, pause, unpin or reset others' consumers",
    "peer",
    f"{API}.CONSUMER.DELETE.MESH.vault",
    f"{API}.CONSUMER.PAUSE.MESH.vault",
    f"{API}.CONSUMER.UNPIN.MESH.vault",
    f"{API}.CONSUMER.RESET.MESH.vault",
    f"{API}.CONSUMER.DELETE.MESH.@keeper",
    f"{API}.CONSUMER.RESET.MESH.@keeper",
)
refused(
    "delete or pause its own consumer", "peer", f"{API}.CONSUMER.DELETE.MESH.desk", f"{API}.CONSUMER.PAUSE.MESH.desk"
)
refused(
    "pull others' tasks",
    "peer",
    f"{API}.CONSUMER.MSG.NEXT.MESH.vault",
    f"{API}.CONSUMER.MSG.NEXT.MESH.attic@bulk",
    f"{API}.CONSUMER.MSG.NEXT.MESH.@keeper",
)
refused("pull tasks", "client", f"{API}.CONSUMER.MSG.NEXT.MESH.desk")
refused("pull others' fired timers", "peer", f"{API}.CONSUMER.MSG.NEXT.MESH_TIMERS@vault.timekeeper")
refused("ask the system account", "peer", "$SYS.REQ.SERVER.PING", "$SYS.REQ.ACCOUNT.MESH.CONNZ", "$SYS.REQ.USER.INFO")


@attempt(
    "ack, nak or term others' tasks over their consumer",
    "peer",
    "permission",
    "refused; the task stays in the hands it is in",
)
async def _(stage: Stage) -> None:
    for verdict in (b"+ACK", b"+TERM", b"-NAK", b"+WPI", b"+NXT"):
        stage.raw.errors.clear()
        await stage.publish(stage.taken, verdict)
        await stage.eventually_denied()


@attempt(
    "ack and term every sequence of the stream over its own consumer",
    "peer",
    "server rule",
    "without effect: what another consumer wants stays, and `@keeper` wants results, parks, steps and dead letters",
)
async def _(stage: Stage) -> None:
    mine = await stage.pulled()
    tokens = mine.reply.split(".")
    info = await stage.raw.api("STREAM.INFO.MESH")
    assert info is not None
    for sequence in range(1, info["state"]["last_seq"] + 1):
        if str(sequence) == tokens[5]:
            continue
        for delivered in ("1", tokens[6], str(sequence)):
            forged = ".".join([*tokens[:5], str(sequence), delivered, *tokens[7:]])
            for verdict in (b"+ACK", b"+TERM", b"-NAK"):
                await stage.raw.nc.publish(forged, verdict)
    await stage.settled()
    await stage.publish(mine.reply, b"-NAK")


# Answers as a way to write.


def injected(what: str, target: str) -> None:
    @attempt(
        f"have an answer of the server sent to {what}",
        "peer",
        "account",
        "the answer stays in the users' account; nothing is stored",
    )
    async def _(stage: Stage) -> None:
        await stage.inject(target)


injected("a result of another capability", "mesh.result.vault.injected")
injected("a task, a step and a park of another capability", "mesh.task.vault.injected")
injected("a timer of another capability", "mesh.timer.vault.injected.x")
injected("a control record", f"$KV.MESH_CONTROL.{'pause.vault'}")


@attempt(
    "the same with the answers to a publish, a stream's info, a pull, an ack with `+NXT`, and an ack",
    "peer",
    "account",
    "the answers stay in the users' account; nothing is stored",
)
async def _(stage: Stage) -> None:
    mine = await stage.pulled()
    body = b'{"batch":1,"no_wait":true,"group":"slots"}'
    for number, (subject, data) in enumerate(
        (
            ("mesh.step.spare.own.~~again", FORGED),
            ("$JS.API.STREAM.INFO.MESH", b""),
            ("$JS.API.CONSUMER.MSG.NEXT.MESH.spare", body),
            (mine.reply, b"+NXT"),
            (mine.reply, b"+ACK"),
        )
    ):
        await stage.publish(subject, data, reply=f"mesh.result.vault.injected{number}")
    await stage.settled()


@attempt(
    "give itself a right to answer, with a question to itself whose reply is a record of others'",
    "peer",
    "permission",
    "refused: no user has `allow_responses`",
)
async def _(stage: Stage) -> None:
    heard = await stage.raw.listen("mesh.ctl.desk.who-runs")
    await stage.publish("mesh.ctl.desk.who-runs", b"{}", reply="mesh.result.vault.answered")
    await eventually(lambda: bool(heard), within_s=3.0)
    await stage.each_denied("mesh.result.vault.answered")


@attempt(
    "ask a peer something, to be answered to a record of that peer's",
    "peer",
    "mesh's check",
    "peers answer to inboxes only",
)
async def _(stage: Stage) -> None:
    await stage.publish("mesh.ctl.all.describe", b"", reply="mesh.result.vault.described")
    await stage.publish("mesh.ctl.all.who-runs", b'{"id":""}', reply="mesh.step.vault.waiting.~~signal-open")
    # Another question after these, which they answer in order.
    found = await stage.raw.listen(f"{stage.raw.inbox}.marker")
    await stage.publish("mesh.ctl.all.describe", b"", reply=f"{stage.raw.inbox}.marker")
    await eventually(lambda: len(found) >= 4, within_s=3.0)
    await stage.settled()


# Echoes, parts and answers that nobody stores.

refused("forge the echo of a result", "peer", "mesh.done.vault.waiting", "mesh.done.price.x")
refused(
    "forge the echo of a control record, or of a limit", "peer", "mesh.control.pause.vault", "mesh.limited.seats.till"
)
refused("stream parts of another capability's tasks", "peer", "mesh.part.vault.waiting")
refused("give orders to another capability's peers", "peer", "mesh.ctl.vault.distrust", "mesh.ctl.all.distrust")
refused("write into the inbox of somebody who may not ask it", "peer", "_INBOX_keeper.x", "_INBOX.x")
refused("write into the server's own reply subjects", "peer", "_R_.x.y", "$JSC.R.x")


@attempt(
    "have an answer sent to the echo of a result that a client waits for",
    "peer",
    "mesh's check",
    "not believed: the echo of a record names its stream and subject",
)
async def _(stage: Stage) -> None:
    handle = stage.victim.handle("vault", "waiting")
    async with asyncio.TaskGroup() as waiting:
        result = waiting.create_task(handle.outcome(), name="waits")
        # The first round trip lets it subscribe, the second comes after that.
        for _ in range(2):
            await stage.victim.bus.nc.flush()
        for _ in range(3):
            await stage.inject("mesh.done.vault.waiting")
        # What the server sent before this answer is there when the client's own round trip ends.
        await stage.raw.request(f"{GET}.mesh.step.spare.own.~~forged", b"")
        await stage.victim.bus.nc.flush()
        await asyncio.wait([result], timeout=0)
        assert not result.done(), "a forged echo was believed"
        result.cancel()


@attempt(
    "have an answer sent to the echo of a pause",
    "peer",
    "mesh's check",
    "not believed: the peer goes on taking work, and answers",
)
async def _(stage: Stage) -> None:
    subject = "mesh.step.spare.own.~~pause"
    await stage.raw.request(subject, wire.encode(Pause(at=1.0, by="nobody")))
    await stage.publish(f"{GET}.{subject}", b"", reply="mesh.control.pause.vault")
    await stage.settled()
    await stage.still_answered("paused")


@attempt(
    "have an answer sent to the parts of a task",
    "peer",
    "remains",
    "whoever streams sees a part more; the recorded result is authoritative",
)
async def _(stage: Stage) -> None:
    await stage.inject("mesh.part.vault.waiting")


@attempt(
    "beat in another peer's name, and in those of peers that are not there and much faster",
    "peer",
    "remains",
    "heard: bids and `mesh top` go by it. `mesh agents` asks the peer itself; tasks are still answered",
)
async def _(stage: Stage) -> None:
    async with stage.behind.client("ops") as ops:

        async def of_vault() -> Described | None:
            found = await describe(ops.bus, within_s=0.5)
            return next((peer for peer in found if "vault" in peer.beat.load), None)

        peer = (await eventually(of_vault)).beat.peer  # type: ignore[union-attr]
        heard: list[str] = []
        async with ops.bus.listening(SUBJECTS.beats, lambda _, data, __: heard.append(data.decode())):
            await ops.bus.nc.flush()
            for name, state in ((peer, PeerState.DRAINING), *((f"ghost-{n}", PeerState.READY) for n in range(20))):
                load = {"vault": Load(slots=1_000, service_s=0.001, delay_s=0.001)}
                beat = Beat(peer=name, at=time.time(), state=state, host="forged", load=load)
                await stage.publish(SUBJECTS.beat(name), wire.encode(beat))
            await eventually(lambda: sum("forged" in each for each in heard) == 21)
        told = await eventually(of_vault)

        assert told is not None
        assert (told.beat.peer, told.beat.state) == (peer, PeerState.READY)
    await stage.still_answered("outbid")


@attempt(
    "answer the question to all peers who runs what, with a task of others' that nobody runs",
    "peer",
    "remains",
    "believed where a peer has just lost touch: the task is put off once, by `ack_wait`, and then done",
)
async def _(stage: Stage) -> None:
    lied, put_off = f"{PROBE}put-off", list[bytes]()
    false = Runs(peer="liar", running=(Running(capability="vault", id=lied, since=time.time(), attempt=1),))

    async def lie(question: Msg) -> None:
        await stage.raw.nc.publish(question.reply, wire.encode(false))

    await stage.raw.nc.subscribe(SUBJECTS.ctl("all", "who-runs"), cb=lie)
    await stage.raw.nc.flush()
    async with stage.behind.client("ops") as ops:
        naks = "$JS.EVENT.ADVISORY.CONSUMER.MSG_NAKED.MESH.vault"
        async with ops.bus.listening(naks, lambda _, data, __: put_off.append(data)):
            # What a lost connection or consumer comes to as well.
            await ops.bus.gather(SUBJECTS.ctl("vault", "distrust"), wire.encode(WhoRuns()), within_s=2, enough=1)
            await stage.still_answered("put-off")
            await eventually(lambda: bool(put_off))

    assert len(put_off) == 1


# Control records.

refused("pause a capability, its own or others'", "peer", "$KV.MESH_CONTROL.pause.vault", "$KV.MESH_CONTROL.pause.desk")
refused("open or close a breaker that it does not use", "peer", "$KV.MESH_CONTROL.breaker.other")
refused("raise a limit", "peer", "$KV.MESH_CONTROL.limit.till")
refused("take seats of a resource that it does not use", "peer", "mesh.limit.seats.other", "mesh.limit.rate.other")
refused(
    "cancel tasks of a capability that it does not call",
    "peer",
    f"$KV.MESH_CONTROL.{key_cancel(Identity('vault', 'waiting'))}",
)
refused(
    "cancel tasks of a capability that it does not call",
    "client",
    f"$KV.MESH_CONTROL.{key_cancel(Identity('vault', 'waiting'))}",
)
refused(
    "pause, break or limit anything",
    "client",
    "$KV.MESH_CONTROL.pause.desk",
    "$KV.MESH_CONTROL.breaker.bank",
    "$KV.MESH_CONTROL.limit.till",
    "mesh.limit.seats.till",
)

# Listening.


def snooped(what: str, by: By, *subjects: str) -> None:
    @attempt(what, by, "permission", "refused, and in the server's log")
    async def _(stage: Stage) -> None:
        for subject in subjects:
            stage.raw.errors.clear()
            await stage.raw.listen(subject)
            await stage.eventually_denied()


snooped("listen to others' inboxes", "peer", "_INBOX.>", "_INBOX_keeper.>", "_INBOX_keeper.*", "*.>")
snooped("listen to everything", "peer", ">", "mesh.>", "mesh.*.vault.>", "$JS.>", "$JS.API.>", "$SYS.>", "$KV.>")
snooped("listen to tasks as they are submitted", "peer", "mesh.task.>", "mesh.task.price.>")
snooped(
    "listen to others' results, parts and orders",
    "peer",
    "mesh.done.vault.>",
    "mesh.part.vault.>",
    "mesh.ctl.vault.who-runs",
)
snooped("answer what is asked of others", "peer", "mesh.ctl.vault.*", "mesh.ctl.*.who-runs", "mesh.ctl.>")
snooped(
    "listen to others' results and tasks",
    "client",
    "mesh.done.>",
    "mesh.done.vault.>",
    "mesh.task.desk.>",
    "mesh.control.>",
    "mesh.beat.>",
)


@attempt(
    "wait in the same queue group for what others hear",
    "peer",
    "permission",
    "refused: a queue's name changes no right",
)
async def _(stage: Stage) -> None:
    await stage.raw.nc.subscribe("_INBOX_keeper.>", queue="x")
    await stage.eventually_denied()


# Headers.


async def refused_by_server(stage: Stage, subject: str, headers: dict[str, str], *, data: bytes = FORGED) -> str:
    answer = await stage.raw.request(subject, data, headers=headers)
    assert answer is not None
    error = json.loads(answer.data).get("error")
    assert error, "the server took it"
    return str(error["description"])


@attempt("wipe the stream with a rollup header", "peer", "server rule", "refused: the streams allow no rollups")
async def _(stage: Stage) -> None:
    for rollup in ("all", "sub"):
        await refused_by_server(stage, "mesh.result.desk.rolled", {"Nats-Rollup": rollup})
        await refused_by_server(stage, "mesh.object.desk.x.y.0", {"Nats-Rollup": rollup})
        await refused_by_server(stage, "$KV.MESH_CONTROL.breaker.bank", {"Nats-Rollup": rollup})
        await refused_by_server(stage, "mesh.limit.seats.till", {"Nats-Rollup": rollup})
        await refused_by_server(stage, "mesh.line.desk.x", {"Nats-Rollup": rollup})
        await refused_by_server(stage, "mesh.event.ended.desk.x", {"Nats-Rollup": rollup})


@attempt(
    "write a record of others' with a schedule in the stream of tasks",
    "peer",
    "server rule",
    "refused: that stream has no schedules",
)
async def _(stage: Stage) -> None:
    headers = {names.SCHEDULE: "@at 2020-01-01T00:00:00Z", names.SCHEDULE_TARGET: "mesh.result.vault.scheduled"}
    await refused_by_server(stage, "mesh.step.spare.own.scheduled", headers)


@attempt(
    "aim a schedule of its own timers at others'",
    "peer",
    "server rule",
    "refused: a schedule's target is in its own stream, and each capability has its own",
)
async def _(stage: Stage) -> None:
    for target in (
        "mesh.due.vault.waiting.x",
        "mesh.timer.vault.waiting.x",
        "mesh.result.vault.x",
        "$KV.MESH_CONTROL.pause.vault",
    ):
        headers = {names.SCHEDULE: "@at 2020-01-01T00:00:00Z", names.SCHEDULE_TARGET: target}
        await refused_by_server(stage, "mesh.timer.desk.own.aimed", headers, data=b"")


@attempt(
    "wipe timers with a rollup",
    "peer",
    "remains",
    "its own capability's timers go, nobody else's; what is parked waits until it is woken otherwise",
)
async def _(stage: Stage) -> None:
    answer = await stage.raw.request("mesh.timer.spare.own.x", b"", headers={"Nats-Rollup": "all"})
    assert answer is not None
    assert "error" not in json.loads(answer.data)


@attempt("publish an atomic batch", "peer", "server rule", "refused: no stream takes batches")
async def _(stage: Stage) -> None:
    headers = {"Nats-Batch-Id": "b", "Nats-Batch-Sequence": "1", "Nats-Batch-Commit": "1"}
    await refused_by_server(stage, "mesh.step.spare.own.batch", headers)


@attempt(
    "write twice where a record may be written once",
    "peer",
    "server rule",
    "refused: one message a subject, whatever sequence is expected",
)
async def _(stage: Stage) -> None:
    first = await stage.raw.request("mesh.step.spare.own.twice", FORGED)
    assert first is not None
    sequence = json.loads(first.data)["seq"]
    for headers in (
        {},
        {names.EXPECTED_SUBJECT_SEQUENCE: str(sequence)},
        {"Nats-Expected-Last-Sequence": "1"},
        {"Nats-Msg-Id": "x"},
    ):
        await refused_by_server(stage, "mesh.step.spare.own.twice", headers, data=b"other")


@attempt(
    "ask with expected sequences what stands of others'",
    "peer",
    "remains",
    "told whether a subject holds something, and its sequence; not what",
)
async def _(stage: Stage) -> None:
    headers = {names.EXPECTED_SUBJECT_SEQUENCE: str(2**62), names.EXPECTED_SUBJECT: "mesh.result.vault.done"}
    assert "wrong last sequence" in await refused_by_server(stage, "mesh.step.spare.own.oracle", headers)


@attempt(
    "list subjects with a stream's info",
    "peer",
    "remains",
    "ids are no secret: whoever may submit can list them, payloads and values it cannot read",
)
async def _(stage: Stage) -> None:
    info = await stage.raw.api("STREAM.INFO.MESH", {"subjects_filter": "mesh.result.vault.>"})
    assert info is not None
    assert "mesh.result.vault.done" in info["state"]["subjects"]


# What is sent to those whom it may ask.


@attempt("a payload above the server's limit", "peer", "server rule", "the connection is closed; nothing is stored")
async def _(stage: Stage) -> None:
    await stage.raw.nc._send_command(b"PUB mesh.task.price.big 9000000\r\n")
    await stage.raw.nc._flush_pending()
    await eventually(lambda: stage.raw.nc.is_closed or bool(stage.raw.errors), within_s=5.0)
    await closed(stage.raw.nc)


async def answered(stage: Stage, task: Identity) -> dict[str, Any]:
    """The result record of a task, which the victim wrote, as the attacker may read it."""

    async def read() -> dict[str, Any] | None:
        found = await stage.raw.request(f"{GET}.{SUBJECTS.result(task)}")
        if found is None or not found.data:
            return None
        is_json = found.data[:1] == b"{"
        return (msgspec.json if is_json else msgspec.msgpack).decode(found.data, type=dict[str, Any])

    return await eventually(read, within_s=10.0)


@attempt(
    "deeply nested JSON and MessagePack as a payload",
    "peer",
    "mesh's check",
    "answered as a failure of the contract; the peer goes on",
)
async def _(stage: Stage) -> None:
    for name, body, kind in (
        ("nested-json", b"[" * 200_000 + b"]" * 200_000, "application/json"),
        ("nested-msgpack", b"\x91" * 200_000 + b"\xc0", "application/msgpack"),
    ):
        await stage.raw.request(f"mesh.task.price.{name}", body, headers={names.CONTENT_TYPE: kind})
        assert (await answered(stage, Identity("price", name)))["status"] == "failed"


@attempt(
    "an envelope that is huge, nested or no JSON",
    "peer",
    "mesh's check",
    "answered as a failure of the contract; the peer goes on",
)
async def _(stage: Stage) -> None:
    for name, envelope in (("nested", "[" * 30_000), ("garbage", "\x7f" * 30_000), ("wrong", '{"lineage": 7}')):
        await stage.raw.request(f"mesh.task.price.envelope-{name}", b'"x"', headers={names.TASK: envelope})
        assert (await answered(stage, Identity("price", f"envelope-{name}")))["status"] == "failed"


@attempt("two thousand headers", "peer", "mesh's check", "the task is done as any other")
async def _(stage: Stage) -> None:
    await stage.raw.request("mesh.task.price.headers", b'"x"', headers={f"X-{number}": "y" for number in range(2_000)})
    assert (await answered(stage, Identity("price", "headers")))["status"] == "done"


@attempt(
    "ids that imitate what the mesh names itself",
    "peer",
    "mesh's check",
    "dead-lettered under a hash; no record of the imitated task is touched",
)
async def _(stage: Stage) -> None:
    for task_id in ("x.~~began-1", "~~x", "x.~~signal-open", "x.~~0"):
        await stage.raw.request(f"mesh.task.price.{task_id}", b'"x"')

    async def gone() -> bool:
        info = await stage.raw.api("STREAM.INFO.MESH", {"subjects_filter": "mesh.task.price.>"})
        return info is not None and not info["state"].get("subjects")

    await eventually(gone, within_s=10.0)


@attempt(
    "claim a parent that it does not have, to have it woken",
    "client",
    "permission",
    "the task is done; the peer that did it may not wake the claimed parent, which calls nobody it serves",
)
async def _(stage: Stage) -> None:
    envelope = Task(lineage=("vault",), is_awaited=True, sender=Sender(agent="vault"))
    headers = {names.TASK: msgspec.json.encode(envelope).decode()}
    task = Identity("desk", "waiting.~claimed")
    await stage.raw.request(SUBJECTS.task(task), b'{"item":"pear"}', headers=headers)
    assert (await answered(stage, task))["status"] == "done"

    async def is_settled() -> bool:
        info = await stage.raw.api("STREAM.INFO.MESH", {"subjects_filter": SUBJECTS.task(task)})
        return info is not None and not info["state"].get("subjects")

    await eventually(is_settled, within_s=10.0)


@attempt(
    "name another sender than itself",
    "client",
    "remains",
    "believed: a sender is what the submitter says, and nothing is decided by it",
)
async def _(stage: Stage) -> None:
    headers = {names.TASK: msgspec.json.encode(Task(sender=Sender(agent="ops", role="operator"))).decode()}
    task = Identity("desk", "sent-by-ops")
    await stage.raw.request(SUBJECTS.task(task), b'{"item":"pear"}', headers=headers)
    assert (await answered(stage, task))["status"] == "done"


@attempt(
    "squat an id at a capability that it may call",
    "client",
    "remains",
    "who submits under that key is told `IdempotencyConflict`, or gets the squatter's result",
)
async def _(stage: Stage) -> None:
    task = Identity("desk", "order-of-somebody-else")
    await stage.raw.request(SUBJECTS.task(task), b'{"item":"squatted"}')
    assert (await answered(stage, task))["status"] == "done"


@attempt(
    "read the result of another client's task at a capability that it may call",
    "client",
    "remains",
    "read: whoever may submit to a capability may read the results of its tasks, by id",
)
async def _(stage: Stage) -> None:
    async with stage.behind.client("guest") as guest:
        await (await guest.submit(order, Order("pear"), key="of-a-guest")).result(within_s=20)
        found = await stage.raw.request(f"{GET}.mesh.result.desk.of-a-guest")

    assert found is not None
    assert b"pear: 7" in found.data


@attempt(
    "cancel another client's task at a capability that it may call",
    "client",
    "remains",
    "cancelled: its client is told `TaskCancelled`. Whoever may submit to a capability may cancel its tasks, by id",
)
async def _(stage: Stage) -> None:
    async with stage.behind.client("guest") as guest:
        waiting = await guest.submit(order, Order("pear", "signal"), key="of-a-guest-too")

        async def is_parked() -> bool:
            return (await waiting.status()).where is Where.PARKED

        await eventually(is_parked)
        record = f"$KV.MESH_CONTROL.{key_cancel(waiting.task)}"
        await stage.raw.request(record, wire.encode(Cancel(at=time.time(), by="a friend")))
        await stage.publish(SUBJECTS.wake(waiting.task))

        with pytest.raises(TaskCancelled):
            await waiting.result(within_s=20)
    assert not stage.raw.is_denied


@attempt(
    "overwrite large payloads or values at a capability that it may call",
    "client",
    "remains",
    "overwritten, and noticed: its digest is another, so whoever reads it is told `ObjectGone`, never another value",
)
async def _(stage: Stage) -> None:
    async with stage.behind.client("guest") as guest:
        large = await guest.submit(order, Order("pear", "large"), key="large-of-a-guest")
        await large.result(within_s=20)
        info = await stage.raw.api(
            "STREAM.INFO.MESH_OBJECTS", {"subjects_filter": "mesh.object.desk.large-of-a-guest.>"}
        )
        assert info is not None
        for chunk in info["state"]["subjects"]:
            answer = await stage.raw.request(chunk, b"forged")
            assert answer is not None
            assert "error" not in json.loads(answer.data)

        again = guest.handle(order, large.task.id)
        with pytest.raises(ObjectGone, match="has another digest"):
            await again.result(within_s=20)


@attempt(
    "fill the stream, past the bounds that honest clients keep",
    "client",
    "remains",
    "submissions are refused, and results wait, in the whole mesh, until an operator makes room; nothing is lost",
)
async def _(stage: Stage) -> None:
    async with (
        behind_permissions(stage.behind.folder / "full", stream_bytes_max=2**20) as full,
        hosting(vault, settings=full.settings("vault")),
        full.client("keeper") as keeper,
        full.client("ops") as ops,
        full.raw("shop") as raw,
    ):
        begun = await keeper.submit(open_vault, "gate", key="begun")

        async def is_running() -> bool:
            return (await begun.status()).where is Where.RUNNING

        await eventually(is_running)
        for size in (10_000, 1):
            await flood(raw, size)
        gate.set()

        with pytest.raises(Overloaded):
            await keeper.submit(open_vault, "silver", key="late")
        with pytest.raises(DeadlineExceeded):
            await begun.result(within_s=1)

        config = (await ops.bus.api("STREAM.INFO.MESH"))["config"]
        await ops.bus.api("STREAM.UPDATE.MESH", {**config, "max_bytes": 4 * config["max_bytes"]})
        assert await begun.result(within_s=20) == "secret of gate"
        late = await keeper.submit(open_vault, "silver", key="late")
        assert await late.result(within_s=20) == "secret of silver"


async def flood(raw: Raw, size: int) -> None:
    """Submit tasks of a size to a capability of which no peer is there, until the stream takes none."""
    for number in range(20_000):
        answer = await raw.request(f"mesh.task.desk.flood-{size}-{number}", b"x" * size)
        if answer is not None and "error" in json.loads(answer.data):
            return
    raise AssertionError("the stream takes whatever comes")


@attempt(
    "wake tasks that do not exist",
    "peer",
    "mesh's check",
    "each is looked at, found to be nothing, and dropped or put off; other work goes on",
)
async def _(stage: Stage) -> None:
    for number in range(200):
        await stage.publish(f"mesh.wake.price.ghost-{number}", b"")
    task = Identity("price", "after-the-ghosts")
    await stage.raw.request(SUBJECTS.task(task), b'"pear"')
    assert (await answered(stage, task))["status"] == "done"


@attempt(
    "ack, nak or term tasks of its own capability that another peer of it runs",
    "peer",
    "remains",
    "an ack carries no identity: peers of one capability trust each other",
)
async def _(stage: Stage) -> None:
    mine = await stage.pulled()
    stage.raw.errors.clear()
    await stage.publish(mine.reply, b"-NAK")
    assert not stage.raw.is_denied


@attempt(
    "connect without a key, or with one that the server does not know",
    "nobody",
    "server rule",
    "refused; the account that holds the streams has no users but those named as `restorers`",
)
async def _(stage: Stage) -> None:
    seed = new_seed()
    every: tuple[dict[str, Any], ...] = ({}, {"nkeys_seed_str": seed}, {"user": "MESH", "password": ""})
    for credentials in every:
        stranger = NatsClient()
        try:
            await stranger.connect(stage.behind.server.url, allow_reconnect=False, connect_timeout=2, **credentials)
        except Exception as error:  # noqa: BLE001  # nats-py raises several kinds
            assert "authorization" in str(error).lower(), error  # noqa: PT017
        else:
            raise AssertionError("the server let it in")
        finally:
            await closed(stranger)
