"""A mesh behind generated permissions: its users, its agents, its server, and what the server refused."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import nats
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg
from tenacity.wait import wait_fixed

from contracts.workflow import Check, Claim
from mesh import Agent, Context, Escalate, Handoff, Ladder, Permanent, Transient, Verifiers
from mesh.auth.access import read_access
from mesh.auth.accounts import MeshRights, accounts_text
from mesh.auth.keys import new_seed, public_key
from mesh.auth.rights import inbox_prefix, rights_of
from mesh.bus import topology
from mesh.bus.connection import Bus
from mesh.cli.auth import declared
from mesh.client import Mesh
from mesh.human import agent as people
from mesh.local.server import LocalServer
from mesh.settings import Settings
from mesh.testing import hosting

HERE = "tests.security.scene"
ACCESS: dict[str, Any] = {
    "meshes": {
        "mesh": {
            "peers": {
                "desk": {"agents": [f"{HERE}:desk"], "handles": ["spare"]},
                "prices": {"agents": [f"{HERE}:prices"]},
                "vault": {"agents": [f"{HERE}:vault"]},
                "people": {"agents": ["mesh.human"]},
                "attic": {"handles": ["attic"]},
            },
            "clients": {
                "shop": {"calls": ["desk", "ladder", "verified"], "signals": {"desk": ["paid"]}},
                "guest": {"calls": ["desk"]},
                "keeper": {"calls": ["vault", "attic"]},
                "clerk": {"signals": {"human": ["answer"]}},
            },
            "operators": ["ops"],
            "monitors": ["watch"],
        }
    }
}
SHORT: dict[str, Any] = {
    "stream_bytes_max": 64 * 2**20,
    "objects_bytes_max": 64 * 2**20,
    "events_bytes_max": 16 * 2**20,
    "ack_wait_s": 2.0,
    "sweep_s": 1.0,
    "beat_s": 0.5,
    "grace_s": 5.0,
    "survey_s": 0.5,
    "hot_wait_s": 0.2,
    "inline_bytes_max": 1024,
}


class Order(msgspec.Struct, frozen=True):
    """What is asked for."""

    item: str
    how: str = "call"
    text: str = ""


prices = Agent("prices", version="1")
desk = Agent("desk", version="1", calls=["price", "expert", "flaky", "slow", "human", "desk"])
desk.limit("till", concurrent=2, requests_per_minute=6_000)
desk.breaker("bank")
vault = Agent("vault", version="1")
gate = asyncio.Event()
"""What a task of `vault` waits for that is asked for `gate`."""


@prices.handles("price", concurrency=8)
async def price(item: str, ctx: Context) -> str:
    """Tell a price, in parts and as a whole."""
    await ctx.emit("looking")
    return f"{item}: 7"


@prices.handles("slow", concurrency=4)
async def slow(item: str, ctx: Context) -> str:
    """Wait for the clock, parked."""
    await ctx.sleep(0.6)
    return f"{item} at last"


@prices.handles("flaky", concurrency=4, attempts=2, wait=wait_fixed(0.05))
async def flaky(item: str) -> str:
    """Fail once, or for good."""
    if item == "never":
        raise Permanent("never")
    raise Transient("not this time")


@prices.handles("expert", concurrency=4)
async def expert(order: Order) -> str:
    """Know better."""
    return f"expert on {order.item}"


@prices.handles("check", concurrency=4)
async def check(claim: Claim) -> Check:
    """Agree."""
    return Check(agrees=True)


@desk.handles("desk", concurrency=8, attempts=3, wait=wait_fixed(0.05))
async def order(asked: Order, ctx: Context) -> str:
    """Do all that a handler can do, one at a time."""
    match asked.how:
        case "call":
            return await ctx.call(price, asked.item)
        case "guarded":
            return await ctx.call(price, asked.item, is_guarded=True)
        case "map":
            return ", ".join(await ctx.map(price, [f"{asked.item}{number}" for number in range(5)]))
        case "parked":
            return await ctx.call(slow, asked.item)
        case "sleep":
            await ctx.sleep(0.5)
            return "slept"
        case "signal":
            return str(await ctx.signal("paid", returns=str, within_s=60))
        case "approve":
            return str((await ctx.approve(asked.item, within_s=60)).verdict)
        case "handoff":
            return Handoff(expert, asked)  # type: ignore[return-value]
        case "send":
            ctx.send(price, asked.item)
            return "sent"
        case "limit":
            async with ctx.limit("till"):
                return "within the limit"
        case "breaker":
            for _ in range(20):
                try:
                    async with ctx.breaker("bank"):
                        raise ConnectionError("down")
                except ConnectionError:
                    continue
                except Exception:  # noqa: BLE001  # it is open
                    break
            return "broken"
        case "step":
            await ctx.compensate(_nothing)
            return str(await ctx.step("charge", _nothing))
        case "large":
            return "x" * 200_000 + await ctx.call(price, "y" * 100_000)
        case "emit":
            for number in range(3):
                await ctx.emit(number)
            return "emitted"
        case "fail":
            return await ctx.call("flaky", asked.item)
        case "retry":
            raise Transient("again")
        case "block":
            await asyncio.sleep(3.0)
            return "ran long"
        case _:
            raise Permanent(f"no such way: {asked.how}")


@desk.handles("ladder", ladder=Ladder(0.9, "expert"))
async def ladder(asked: Order, ctx: Context) -> str:
    """Pass on what is unsure."""
    return Escalate("unsure", confidence=0.1)  # type: ignore[return-value]


@desk.handles("verified", verified_by=Verifiers("check", agree=1))
async def verified(asked: Order) -> str:
    """Have an answer checked."""
    return asked.item


@vault.handles("vault", concurrency=4, attempts=2, wait=wait_fixed(0.05))
async def open_vault(what: str, ctx: Context) -> str:
    """Keep a secret, in steps; `wait` parks until it is opened."""
    await ctx.step("count", lambda: _secret(what))
    if what == "wait":
        return str(await ctx.signal("open", returns=str, within_s=120))
    if what == "hold":
        await asyncio.sleep(1.5)
    if what == "gate":
        await gate.wait()
    if what == "large":
        return "secret" * 2_000
    return f"secret of {what}"


async def _nothing() -> str:
    return "nothing"


async def _secret(what: str) -> str:
    return f"inner secret of {what}"


@dataclass
class Behind:
    """A mesh behind its permissions."""

    server: LocalServer
    folder: Path
    seeds: dict[str, str]
    changes: dict[str, Any] = field(default_factory=dict)
    read_to: int = 0

    def settings(self, user: str, **more: Any) -> Settings:
        """What a process of the user is given."""
        return Settings(
            nats_url=self.server.url,
            nats_nkey_seed=self.seed_file(user),
            nats_inbox_prefix=inbox_prefix(user),
            **{**SHORT, **self.changes, **more},
        )

    def seed_file(self, user: str) -> Path:
        return self.folder / f"{user}.nk"

    def variables(self, user: str) -> dict[str, str]:
        """The same as environment variables."""
        short = {f"MESH_{name.upper()}": str(value) for name, value in {**SHORT, **self.changes}.items()}
        return short | {
            "MESH_NATS_URL": self.server.url,
            "MESH_NATS_NKEY_SEED": str(self.seed_file(user)),
            "MESH_NATS_INBOX_PREFIX": inbox_prefix(user),
        }

    def refused(self) -> list[str]:
        """What the server refused since this was asked last, in its own words."""
        text = (self.server.store / "nats.log").read_text(errors="replace")
        new, self.read_to = text[self.read_to :], len(text)
        return [line for line in new.splitlines() if "Violation" in line]

    @asynccontextmanager
    async def raw(self, user: str) -> AsyncIterator["Raw"]:
        """A bare connection with a user's key, for what no honest program does."""
        raw = Raw(user)
        raw.inbox = inbox_prefix(user)
        seed = self.seeds[user]
        raw.nc = await nats.connect(
            self.server.url,
            nkeys_seed_str=seed,
            inbox_prefix=inbox_prefix(user).encode(),
            error_cb=raw.heard,
            allow_reconnect=False,
        )
        try:
            yield raw
        finally:
            await closed(raw.nc)

    @asynccontextmanager
    async def client(self, user: str, **more: Any) -> AsyncIterator[Mesh]:
        async with Mesh.connect(settings=self.settings(user, **more), name=user) as mesh:
            yield mesh


@dataclass
class Raw:
    """A connection of somebody who means harm."""

    user: str
    nc: NatsClient = field(init=False)
    inbox: str = field(init=False)
    errors: list[str] = field(default_factory=list)

    async def heard(self, error: Exception) -> None:
        self.errors.append(str(error))

    @property
    def is_denied(self) -> bool:
        """Whether the server said that something is not permitted."""
        return any("permissions violation" in error for error in self.errors)

    async def publish(self, subject: str, data: bytes = b"", *, reply: str = "", headers: Any = None) -> None:
        await self.nc.publish(subject, data, reply=reply, headers=headers)
        await self.nc.flush()

    async def request(self, subject: str, data: bytes = b"", *, headers: Any = None) -> Msg | None:
        """The answer, or None where none comes."""
        try:
            return await self.nc.request(subject, data, timeout=0.5, headers=headers)
        except (TimeoutError, nats.errors.NoRespondersError):
            return None

    async def api(self, endpoint: str, body: Any = None) -> dict[str, Any] | None:
        answer = await self.request(f"$JS.API.{endpoint}", b"" if body is None else json.dumps(body).encode())
        return None if answer is None or not answer.data else json.loads(answer.data)

    async def listen(self, subject: str) -> list[Msg]:
        """What comes on a subject from now on; the list grows."""
        found: list[Msg] = []

        async def came(message: Msg) -> None:
            found.append(message)

        await self.nc.subscribe(subject, cb=came)
        await self.nc.flush()
        return found


@asynccontextmanager
async def behind_permissions(folder: Path, **changes: Any) -> AsyncIterator[Behind]:
    """A server with the generated accounts, on which an operator has made the streams of the mesh.

    `changes` are settings of all its processes.
    """
    read = read_access(ACCESS)
    seeds = {user: new_seed() for mesh in read.meshes.values() for user, _ in mesh.users()}
    _write(folder, seeds)
    meshes = [
        MeshRights(
            each.prefix, rights_of(each), {user: [public_key(seed)] for user, seed in seeds.items()}, mesh.jetstream
        )
        for each, mesh in zip(declared(read), read.meshes.values(), strict=True)
    ]
    server = LocalServer.start(folder / "store", more=accounts_text(meshes))
    try:
        behind = Behind(server, folder, seeds, changes)
        settings = behind.settings("ops")
        async with Bus.connect(settings, "ops") as bus:
            specs = list(topology.of_mesh(settings))
            for agent in (desk, prices, vault, people):
                for name in (*agent.capabilities, "attic", "spare"):
                    specs += topology.of_capability(settings, name, queue_max=settings.queue_max)
            await topology.ensure(bus, specs)
        yield behind
    finally:
        server.stop()


async def closed(nc: NatsClient) -> None:
    """Close a connection that the server ended, its socket included, which nats-py leaves open."""
    with suppress(nats.errors.Error, OSError):
        await nc.close()
    if nc._transport is not None:
        nc._transport.close()
        with suppress(nats.errors.Error, OSError):
            await nc._transport.wait_closed()


def _write(folder: Path, seeds: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for user, seed in seeds.items():
        (folder / f"{user}.nk").write_text(seed)


@asynccontextmanager
async def at_work(behind: Behind) -> AsyncIterator[None]:
    """Peers of every user, each with exactly its rights."""
    async with AsyncExitStack() as stack:
        for user, agent in (("prices", prices), ("desk", desk), ("vault", vault), ("people", people)):
            await stack.enter_async_context(hosting(agent, settings=behind.settings(user)))
        yield


def subject_of(violation: str) -> str:
    """The subject that a line of the server's log says was refused."""
    found = re.search(r'Subject "?([^"]+)"?', violation)
    return found[1] if found else violation
