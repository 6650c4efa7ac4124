"""Where a game day plays: a mesh of its own on this machine, or one that others use."""

import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mesh.bus import topology
from mesh.client import Mesh
from mesh.errors import SetupError
from mesh.local.server import LocalServer, local_server
from mesh.settings import Settings
from mesh.testing.chaos.peer import Briefing
from mesh.testing.cluster import Route, free_ports, local_cluster
from mesh.testing.faults import Need, Scene, Server
from mesh.testing.fleet import Fleet
from mesh.testing.history import History, What
from mesh.testing.hosting import eventually
from mesh.testing.network import Between, Line, between, lines
from mesh.testing.witness import listening

READY_WITHIN_S = 60.0
PREFIX = "chaos"
HOT_WAIT_S = 0.5
"""Unless set: waits park so soon, so that the built-in workload parks at all."""
LAST_LINES = 3

OWN_MESH = frozenset({Need.PEERS, Need.ORDERS, Need.SERVER, Need.LINES, Need.OWN_LINE})


def means(nodes: int) -> frozenset[Need]:
    """What faults find on a stage of their own with one node, or several."""
    return OWN_MESH | {Need.CLUSTER, Need.ROUTES} if nodes > 1 else OWN_MESH


def own_settings(settings: Settings, *, url: str, replicas: int) -> Settings:
    """Settings for a mesh that is made for the day: what is set stays, but where it is and how one enters.

    `prefix` is its own, so that a mistaken address hurts nobody.
    """
    kept = settings.model_dump(include=settings.model_fields_set)
    kept = {name: value for name, value in kept.items() if not name.startswith("nats_")}
    fixed = {"nats_url": url, "prefix": PREFIX, "replicas": replicas, "http_port": 0, "peer_name": None}
    return Settings.model_construct(**{"hot_wait_s": HOT_WAIT_S, **kept, **fixed})


@asynccontextmanager
async def local_stage(
    folder: Path,
    *,
    nodes: int,
    peers: int,
    seed: int,
    settings: Settings,
    targets: Sequence[str],
    command: Callable[[str], Sequence[str]],
    env: Mapping[str, str],
    cwd: Path | None = None,
) -> AsyncIterator[Scene]:
    """A mesh of its own in `folder`, with all peers ready, until left: nothing of it goes on then.

    Each peer, and the submitter, has a line of its own to every node. `command` makes what starts a peer of a
    briefing as JSON; peers run in `cwd` and inherit `env`, but no settings.

    Raises:
        SetupError: the peers do not get ready; the message has the last lines of their log.
    """
    orders, log = folder / "orders", folder / "peers.log"
    orders.mkdir(parents=True)
    briefing = Briefing(str(folder / "history.jsonl"), str(orders), seed, tuple(targets))
    async with AsyncExitStack() as stack:
        server: Server
        routes: tuple[Line, ...] = ()
        if nodes > 1:
            ports = free_ports(nodes)
            network = await stack.enter_async_context(between(ports, seed=seed))
            wired = [_route(network, node, port) for node, port in enumerate(ports)]
            server = cluster = stack.enter_context(local_cluster(folder / "store", nodes=nodes, routes=wired))
            routes = tuple(map(network.around, range(nodes)))
            await cluster.ready()
        else:
            server = stack.enter_context(local_server(folder / "store"))
        history = stack.enter_context(History(Path(briefing.history)))
        *theirs, ours = await stack.enter_async_context(lines(server.url, peers + 1, seed=seed))
        plain = own_settings(settings, url=ours.url, replicas=nodes)
        fleet = Fleet(
            command(_encoded(briefing)),
            size=peers,
            env=_environment(env, plain),
            envs=[{"MESH_NATS_URL": line.url} for line in theirs],
            cwd=cwd or Path.cwd(),
            history=history,
            log=log,
        )
        client = await stack.enter_async_context(Mesh.connect(settings=plain, name="chaos"))
        await topology.ensure(client.bus, topology.of_mesh(plain))
        await stack.enter_async_context(listening(client.bus, history))
        await stack.enter_async_context(fleet.running())
        try:
            await eventually(
                lambda: len(history.read(What.READY)) >= peers or history.read(What.ENDED), within_s=READY_WITHIN_S
            )
        except AssertionError:
            raise SetupError(f"the peers were not ready within {READY_WITHIN_S:g} s: {_last_words(log)}") from None
        if ended := history.read(What.ENDED):
            raise SetupError(f"a peer ended with {ended[0].detail} at its start: {_last_words(log)}")
        yield Scene(
            fleet,
            server,
            client,
            history,
            _dice(seed),
            lines=tuple(theirs),
            own_line=ours,
            routes=routes,
            orders=orders,
        )


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A server that is not ours: no fault gets at it."""

    url: str
    nodes: tuple[LocalServer, ...] = ()

    def kill(self) -> None:
        raise AssertionError("this server is not ours")

    def restart(self) -> None:
        raise AssertionError("this server is not ours")


@asynccontextmanager
async def shared_stage(folder: Path, *, seed: int, settings: Settings, key_prefix: str) -> AsyncIterator[Scene]:
    """A mesh that others use, with nothing but a client: only safe faults find what they need.

    Where the address is a plain one, the client has a line of its own.

    Raises:
        BusUnavailable: no server answers.
    """
    url = settings.nats_url or ""
    async with AsyncExitStack() as stack:
        own_line: Line | None = None
        used = settings
        if has_line(settings):
            (own_line,) = await stack.enter_async_context(lines(url, 1, seed=seed))
            used = settings.model_copy(update={"nats_url": own_line.url})
        history = stack.enter_context(History(folder / "history.jsonl"))
        client = await stack.enter_async_context(Mesh.connect(settings=used, name="chaos"))
        await stack.enter_async_context(listening(client.bus, history, key_prefix=key_prefix))
        nobody = Fleet((), size=0, env={}, cwd=folder, history=history)
        yield Scene(nobody, Elsewhere(url), client, history, _dice(seed), own_line=own_line)


def has_line(settings: Settings) -> bool:
    """Whether bytes on the way to the server can be relayed: a certificate would not fit the relay's address."""
    is_plain = all(part.strip().startswith("nats://") for part in (settings.nats_url or "").split(","))
    return is_plain and settings.nats_tls_ca is None and "@" not in (settings.nats_url or "")


def _route(network: Between, node: int, port: int) -> Route:
    others = tuple(link.url for link in network.others_of(node))
    # Clients that are told of other nodes would go round their lines.
    return Route(port, others, advertise=f"127.0.0.1:{network.advertised[node].port}", is_advertised=False)


def _environment(inherited: Mapping[str, str], settings: Settings) -> dict[str, str]:
    told = settings.model_dump(mode="json", exclude_none=True)
    kept = {name: value for name, value in inherited.items() if not name.startswith("MESH_")}
    return {**kept, **{f"MESH_{name.upper()}": str(value) for name, value in told.items()}}


def _encoded(briefing: Briefing) -> str:
    return msgspec.json.encode(briefing).decode()


def _dice(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311  # a seed that repeats a run, no secret


def _last_words(log: Path) -> str:
    lines_ = log.read_text(errors="replace").strip().splitlines()[-LAST_LINES:]
    return " | ".join(lines_) or "they said nothing"
