"""A mesh's users and rights as configuration of a nats-server.

Each mesh has two accounts. The first, named after its streams, has JetStream and holds them; nobody connects to it but
who puts a backup in place. The second, `…_AGENTS`, has all other users, and imports from the first what they publish to
and hear. A reply that comes back across the accounts is delivered to whoever asked, and enters no stream, whatever
subject it was asked to be sent to (docs/adr/0020).

The exports do not overlap: a request that two of them match is sent twice. What may have many answers is kept by the
server for two minutes, about 0.9 kB a request (measured on 2.15.1), so nothing frequent is exported so.
"""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from contracts.subjects import Subjects
from mesh.auth.access import JetStreamLimits
from mesh.auth.rights import Rights, inbox_prefix

_MANY_ANSWERS: Final = (
    "$JS.API.CONSUMER.MSG.NEXT.>",
    # The bare one, which reads many records; those by subject have one answer each.
    "$JS.API.DIRECT.GET.*",
    "$JS.API.STREAM.SNAPSHOT.>",
)
_STREAM_VERBS: Final = [
    *("CREATE", "UPDATE", "INFO", "NAMES", "LIST", "DELETE", "PURGE", "MSG", "LEADER", "PEER", "MOVE", "RESTORE"),
]
_CONSUMER_VERBS: Final = ["CREATE", "DURABLE", "INFO", "NAMES", "LIST", "DELETE", "PAUSE", "RESET", "UNPIN", "LEADER"]
_BARE: Final = ["INFO", "STREAM.NAMES", "STREAM.LIST"]
PORT: Final = 4222
MONITOR_PORT: Final = 8222
CLUSTER_PORT: Final = 6222


@dataclass(frozen=True, slots=True)
class MeshRights:
    """One mesh as the server is to know it. `keys` are the public NKEYs of each user; all are valid."""

    prefix: str
    rights: tuple[Rights, ...]
    keys: Mapping[str, Sequence[str]]
    limits: JetStreamLimits


def account_of(prefix: str) -> str:
    """The account that holds the streams of a mesh."""
    return Subjects(prefix).stream


def agents_account_of(prefix: str) -> str:
    """The account of a mesh's users."""
    return f"{account_of(prefix)}_AGENTS"


def accounts_text(meshes: Iterable[MeshRights]) -> str:
    """The block `accounts {…}` of a server's configuration, to be included in it. The same text for the same input."""
    blocks = [block for mesh in meshes for block in (_streams_account(mesh), _users_account(mesh))]
    return (
        "# Written by `mesh auth generate`: the accounts, users and permissions of a mesh.\n"
        "# Include it in the configuration of every server, and have the servers reload it when it changes.\n"
        "accounts {\n" + "\n".join(blocks) + "}\n"
    )


def services_of(subjects: Subjects) -> tuple[tuple[str, bool], ...]:
    """What users publish to across the accounts, each with whether one request may have many answers."""
    words = [
        *subjects.stored,
        *(subjects.under(word) for word in ("timer", "cron")),
        *subjects.lines_stored,
        subjects.limits_stored,
        *subjects.objects_stored,
        subjects.events,
        subjects.control_stored,
    ]
    api = [
        *(f"$JS.API.{verb}" for verb in _BARE),
        *(f"$JS.API.STREAM.{verb}.>" for verb in _STREAM_VERBS),
        *(f"$JS.API.CONSUMER.{verb}.>" for verb in _CONSUMER_VERBS),
        "$JS.API.DIRECT.GET.*.>",
        "$JS.API.META.>",
        "$JS.ACK.>",
        "$JS.SNAPSHOT.>",
    ]
    return (*((subject, False) for subject in (*words, *api)), *((subject, True) for subject in _MANY_ANSWERS))


def streams_of(subjects: Subjects, operators: Iterable[str]) -> tuple[str, ...]:
    """What users hear across the accounts; a snapshot's parts come to an operator's inbox."""
    echoes = [subjects.result_echo[1], subjects.control_echoes, subjects.limit_echoes[1]]
    return (*echoes, "$JS.EVENT.ADVISORY.>", *(f"{inbox_prefix(user)}.>" for user in operators))


def server_text(*, name: str = "mesh", store: str = "/data/jetstream", tls: str = "/etc/nats/tls") -> str:
    """The configuration of a single server, with TLS for its clients."""
    return (
        _HEAD.format(name=name, port=PORT, monitor=MONITOR_PORT)
        + _tls("tls", tls)
        + _jetstream(store, sync_interval="always")
        + _INCLUDE
    )


def cluster_text(
    number: int,
    *,
    hosts: Sequence[str],
    cluster: str = "mesh",
    store: str = "/data/jetstream",
    tls: str = "/etc/nats/tls",
) -> str:
    """The configuration of one node of a cluster, numbered from 1, with TLS for its clients and its routes.

    Routes show each other certificates and check them, so nobody else can join.
    """
    routes = ", ".join(json.dumps(f"nats-route://{host}:{CLUSTER_PORT}") for host in hosts)
    return (
        _HEAD.format(name=f"{cluster}-{number}", port=PORT, monitor=MONITOR_PORT)
        + _tls("tls", tls)
        + _jetstream(store, sync_interval="always")
        + f"cluster {{\n  name: {json.dumps(cluster)}\n  port: {CLUSTER_PORT}\n  routes: [{routes}]\n"
        + "".join(f"  {line}\n" for line in _tls("tls", tls, verify=True).splitlines())
        + "}\n"
        + _INCLUDE
    )


def kubernetes_text(release: str, accounts: str, seeds: Mapping[str, str]) -> str:
    """Secrets for a cluster: the accounts, and the seed of each user. Keep it as you keep the seeds."""
    secrets = [(f"{release}-nats-accounts", "accounts.conf", accounts)]
    secrets += [(f"{release}-user-{user}", "seed", seed) for user, seed in sorted(seeds.items())]
    return "---\n".join(_secret(release, name, key, value) for name, key, value in secrets)


def _secret(release: str, name: str, key: str, value: str) -> str:
    encoded = base64.b64encode(value.encode()).decode()
    return (
        "apiVersion: v1\n"
        "kind: Secret\n"
        "metadata:\n"
        f"  name: {name}\n"
        "  labels:\n"
        "    app.kubernetes.io/name: starling\n"
        f"    app.kubernetes.io/instance: {release}\n"
        "    app.kubernetes.io/managed-by: mesh-auth\n"
        "type: Opaque\n"
        "data:\n"
        f"  {key}: {encoded}\n"
    )


def _streams_account(mesh: MeshRights) -> str:
    subjects = Subjects(mesh.prefix)
    account = account_of(mesh.prefix)
    limits = [f"{name}: {value}" for name, value in mesh.limits.model_dump(exclude_none=True).items()]
    jetstream = f"{{ {', '.join(limits)} }}" if limits else "enabled"
    lines = [f"    {_service(subject, is_many)}" for subject, is_many in services_of(subjects)]
    lines += [f"    {{ stream: {json.dumps(subject)} }}" for subject in streams_of(subjects, _operators(mesh))]
    users = _users(mesh, holding=True)
    told = f"  # The streams of the mesh {mesh.prefix!r}. Nobody connects to this account but to restore a backup.\n"
    return (
        f"{told}  {account} {{\n    jetstream: {jetstream}\n    exports: [\n{_joined(lines)}    ]\n"
        f"    users: [\n{users}    ]\n  }}\n"
    )


def _users_account(mesh: MeshRights) -> str:
    subjects = Subjects(mesh.prefix)
    account = account_of(mesh.prefix)

    def imported(kind: str, subject: str) -> str:
        return f"    {{ {kind}: {{ account: {account}, subject: {json.dumps(subject)} }} }}"

    imports = [imported("service", subject) for subject, _ in services_of(subjects)]
    imports += [imported("stream", subject) for subject in streams_of(subjects, _operators(mesh))]
    return (
        f"  {agents_account_of(mesh.prefix)} {{\n"
        f"    imports: [\n{_joined(imports)}    ]\n"
        f"    users: [\n{_users(mesh, holding=False)}    ]\n  }}\n"
    )


def _users(mesh: MeshRights, *, holding: bool) -> str:
    """The users of the account that holds the streams, or those of the other."""
    rights = [each for each in mesh.rights if (each.role == "restorer") == holding]
    return "".join(_user(each, key) for each in rights for key in mesh.keys[each.user])


def _user(rights: Rights, key: str) -> str:
    return (
        f"      # {rights.role} {rights.user}\n"
        f"      {{ nkey: {key}\n"
        f"        permissions: {{\n"
        f"          publish: {{ allow: [\n{_listed(rights.publish)}          ] }}\n"
        f"          subscribe: {{ allow: [\n{_listed(rights.subscribe)}          ] }}\n"
        f"        }}\n      }}\n"
    )


def _operators(mesh: MeshRights) -> list[str]:
    return [rights.user for rights in mesh.rights if rights.role == "operator"]


def _service(subject: str, is_many: bool) -> str:
    return f"{{ service: {json.dumps(subject)}{', response: stream' if is_many else ''} }}"


def _joined(lines: Iterable[str]) -> str:
    return "".join(f"  {line}\n" for line in lines)


def _listed(subjects: Iterable[str]) -> str:
    return "".join(f"            {json.dumps(subject)}\n" for subject in subjects)


def _tls(word: str, folder: str, *, verify: bool = False) -> str:
    text = (
        f"{word} {{\n"
        f"  cert_file: {json.dumps(f'{folder}/tls.crt')}\n"
        f"  key_file: {json.dumps(f'{folder}/tls.key')}\n"
        f"  ca_file: {json.dumps(f'{folder}/ca.crt')}\n"
    )
    return f"{text}  verify: true\n}}\n" if verify else f"{text}}}\n"


def _jetstream(store: str, *, sync_interval: str) -> str:
    return (
        f"jetstream {{\n  store_dir: {json.dumps(store)}\n"
        "  # Without it a power cut loses what was acknowledged in the last two minutes.\n"
        f"  sync_interval: {sync_interval}\n}}\n"
    )


_HEAD = """\
# Written by `mesh auth generate`. Adapt addresses and paths; the accounts are in the file it includes.
server_name: {name}
port: {port}
http: "127.0.0.1:{monitor}"
max_payload: 1MB
"""
_INCLUDE = 'include "accounts.conf"\n'
