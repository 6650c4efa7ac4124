"""`mesh auth`: who may do what, as a server's configuration with a key for each user."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from mesh.cli import console

if TYPE_CHECKING:
    from mesh.auth.access import Access, MeshAccess, PeerAccess
    from mesh.auth.rights import Declared, Peer, Rights

auth = typer.Typer(
    name="auth",
    help="Who may do what: users with keys, the least permissions each needs, and a server's configuration.",
    no_args_is_help=True,
)

AccessFile = Annotated[Path, typer.Argument(metavar="ACCESS.yaml", help="Who there is: see docs/security.md.")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write to; made if missing.")]
Release = Annotated[str, typer.Option(help="What the Kubernetes Secrets' names begin with.")]
Hosts = Annotated[
    str, typer.Option(metavar="A,B,C", help="Names of the cluster's three nodes, as they find each other.")
]

HOSTS: Final = "nats-0.nats,nats-1.nats,nats-2.nats"
OLD: Final = ".old"
SHOWN_WITHIN: Final = 100


@auth.command()
def generate(
    access_file: AccessFile,
    out: Out,
    release: Release = "starling",
    hosts: Hosts = HOSTS,
    as_json: console.AsJson = False,
) -> None:
    """Write what a server needs to know, and a seed for each user that has none yet.

    DIR/accounts.conf: accounts, users and permissions; DIR/server.conf and DIR/cluster-<n>.conf include it.
    DIR/users/<user>.nk: a user's seed, for MESH_NATS_NKEY_SEED. DIR/kubernetes.yaml: all of it as Secrets,
    but for the seeds of restorers.
    Run again it keeps the seeds it finds, and writes the rest anew. Seeds are never printed.
    """
    access, nodes = _read(access_file), _hosts(hosts)
    declared(access)  # an agent that cannot be loaded leaves nothing half made
    made = [user for mesh in access.meshes.values() for user, _ in mesh.users() if _make_seed(out, user)]
    written = [*_write_servers(out, nodes), *_write_users(access, out, release=release)]
    if as_json:
        console.print_json({"written": [str(path) for path in written], "new_users": made})
        return
    for path in written:
        print(path)
    print(f"{len(made)} new seeds in {out / 'users'}: {', '.join(made)}" if made else "every user had its seed")


@auth.command()
def show(
    access_file: AccessFile,
    user: Annotated[str, typer.Argument(help="One user; without it, all.")] = "",
    as_json: console.AsJson = False,
) -> None:
    """Show what each user may do, why, and as which permissions."""
    access = _read(access_file)
    found = [rights for mesh in declared(access) for rights in _rights(mesh) if user in ("", rights.user)]
    if not found:
        raise _no_user(user, access)
    if as_json:
        console.print_json([_as_data(rights) for rights in found])
        return
    for rights in found:
        print(f"{rights.user}, {rights.role}: {len(rights.publish)} to publish, {len(rights.subscribe)} to subscribe")
        for grant in rights.grants:
            print(f"  may {grant.why}")
            for word, subjects in (("publish  ", grant.publish), ("subscribe", grant.subscribe)):
                for subject in subjects:
                    print(f"    {word} {subject}")


@auth.command()
def rotate(
    access_file: AccessFile,
    user: Annotated[str, typer.Argument(help="Who gets a new key.")],
    out: Out,
    release: Release = "starling",
) -> None:
    """Give a user a new seed. The old one stays valid until `mesh auth retire`.

    Writes accounts.conf and kubernetes.yaml anew. Have the servers reload the first, then start the user's processes
    anew with the new seed, then retire.
    """
    access = _known(_read(access_file), user)
    seed, old = _seed_file(out, user), _seed_file(out, user, OLD)
    if not seed.is_file():
        raise console.Failed(f"{user} has no seed in {out / 'users'}: `mesh auth generate` makes one")
    if old.is_file():
        raise console.Failed(f"{user} has two keys already: `mesh auth retire {access_file} {user} --out {out}`")
    seed.rename(old)
    _make_seed(out, user)
    _write_users(access, out, release=release)
    print(f"{user} has two keys now, both valid; the new seed is {seed}")
    print(f"reload the servers, restart what runs as {user}, then: mesh auth retire {access_file} {user} --out {out}")


@auth.command()
def retire(
    access_file: AccessFile,
    user: Annotated[str, typer.Argument(help="Whose old key goes.")],
    out: Out,
    release: Release = "starling",
) -> None:
    """Take away the key that a user had before `mesh auth rotate`. Safe to repeat."""
    access = _known(_read(access_file), user)
    old = _seed_file(out, user, OLD)
    had_old = old.is_file()
    old.unlink(missing_ok=True)
    _write_users(access, out, release=release)
    print(f"{user} has one key; have the servers reload {out / 'accounts.conf'}" if had_old else f"{user} had one key")


# From an access file to rights.


def declared(access: "Access") -> "list[Declared]":
    """What the users of each mesh declare; agents are loaded to be asked.

    Raises:
        SetupError: an agent cannot be loaded.
    """
    return [_declared(prefix, mesh) for prefix, mesh in access.meshes.items()]


def _declared(prefix: str, mesh: "MeshAccess") -> "Declared":
    from mesh.auth.rights import Client, Declared

    return Declared(
        prefix,
        peers=tuple(_peer(user, peer) for user, peer in mesh.peers.items()),
        clients=tuple(Client(user, client.calls, client.signals) for user, client in mesh.clients.items()),
        operators=mesh.operators,
        restorers=mesh.restorers,
        monitors=mesh.monitors,
    )


def _peer(user: str, access: "PeerAccess") -> "Peer":
    from mesh.auth.rights import Peer
    from mesh.cli.loading import load_agents

    agents = load_agents(access.agents)
    return Peer(
        user,
        handles=_once(access.handles, *(agent.capabilities for agent in agents)),
        calls=_once(access.calls, *(agent.calls for agent in agents)),
        limits=_once(access.limits, *(agent.info.limits for agent in agents)),
        breakers=_once(access.breakers, *(agent.info.breakers for agent in agents)),
    )


def _once(*each: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({name for names in each for name in names}))


def _rights(mesh: "Declared") -> "tuple[Rights, ...]":
    from mesh.auth.rights import rights_of, unserved

    for capability, users in unserved(mesh).items():
        console.note(f"mesh: {', '.join(users)} call {capability!r}, which no peer of {mesh.prefix!r} handles")
    return rights_of(mesh)


def _as_data(rights: "Rights") -> dict[str, Any]:
    return {
        "user": rights.user,
        "role": rights.role,
        "publish": list(rights.publish),
        "subscribe": list(rights.subscribe),
        "grants": [
            {"why": grant.why, "publish": list(grant.publish), "subscribe": list(grant.subscribe)}
            for grant in rights.grants
        ],
    }


# Files.


def _read(path: Path) -> "Access":
    from mesh.auth.access import read_access
    from mesh.errors import SetupError

    try:
        import yaml  # type: ignore[import-untyped]  # its stubs are a package of their own
    except ImportError:
        raise SetupError("`mesh auth` needs more: pip install 'starling-mesh[auth]'") from None
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SetupError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SetupError(f"{path} is no YAML: {error}") from error
    try:
        return read_access(document)
    except SetupError as error:
        raise SetupError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from error


def _hosts(text: str) -> list[str]:
    hosts = [host.strip() for host in text.split(",")]
    if not all(hosts):
        raise typer.BadParameter(f"{text!r} has an empty name", param_hint="--hosts")
    return hosts


def _write_servers(out: Path, hosts: list[str]) -> list[Path]:
    from mesh.auth import accounts

    files = {"server.conf": accounts.server_text()}
    for number in range(1, len(hosts) + 1):
        files[f"cluster-{number}.conf"] = accounts.cluster_text(number, hosts=hosts)
    for name, content in files.items():
        _replace(out / name, content, mode=0o644)
    return [out / name for name in files]


def _write_users(access: "Access", out: Path, *, release: str) -> list[Path]:
    """Write what follows from who there is; a server's own configuration, which people adapt, stays as it is."""
    from mesh.auth import accounts
    from mesh.auth.keys import public_key

    meshes: list[accounts.MeshRights] = []
    seeds: dict[str, str] = {}
    for mesh, limits in zip(declared(access), access.meshes.values(), strict=True):
        rights = _rights(mesh)
        keys: dict[str, list[str]] = {}
        for one in rights:
            seeds[one.user] = _seed_file(out, one.user).read_text(encoding="ascii").strip()
            old = _seed_file(out, one.user, OLD)
            both = [seeds[one.user], *([old.read_text(encoding="ascii")] if old.is_file() else [])]
            keys[one.user] = [public_key(seed) for seed in both]
        meshes.append(accounts.MeshRights(mesh.prefix, rights, keys, limits.jetstream))
    text = accounts.accounts_text(meshes)
    # Nothing in a cluster restores, and a restorer's seed undoes all the rest.
    kept = {user for limits in access.meshes.values() for user in limits.restorers}
    mounted = {user: seed for user, seed in seeds.items() if user not in kept}
    _replace(out / "accounts.conf", text, mode=0o644)
    _replace(out / "kubernetes.yaml", accounts.kubernetes_text(release, text, mounted), mode=0o600)
    return [out / "accounts.conf", out / "kubernetes.yaml"]


def _make_seed(out: Path, user: str) -> bool:
    """Make a user's seed unless there is one. False: there is."""
    from mesh.auth.keys import new_seed, public_key

    path = _seed_file(out, user)
    if path.is_file():
        public_key(path.read_text(encoding="ascii"))
        return False
    _replace(path, f"{new_seed()}\n", mode=0o600)
    return True


def _seed_file(out: Path, user: str, which: str = "") -> Path:
    return out / "users" / f"{user}{which}.nk"


def _replace(path: Path, content: str, *, mode: int) -> None:
    """Write a file as a whole, never to be read by others while it is written."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.parent.name == "users":
        path.parent.chmod(0o700)
    scratch = path.with_name(f".{path.name}.new")
    scratch.unlink(missing_ok=True)
    with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
        file.write(content)
    scratch.replace(path)


def _known(access: "Access", user: str) -> "Access":
    if all(user != name for mesh in access.meshes.values() for name, _ in mesh.users()):
        raise _no_user(user, access)
    return access


def _no_user(user: str, access: "Access") -> Exception:
    names = [name for mesh in access.meshes.values() for name, _ in mesh.users()]
    return console.Failed(f"no user {user!r}; there are {', '.join(names)}")
