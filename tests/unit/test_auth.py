"""From what the users of a mesh declare to what each may do: no more than its own."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.subjects import Identity, Line, Subjects, consumer_name
from mesh.auth.access import JetStreamLimits, read_access
from mesh.auth.accounts import MeshRights, accounts_text, kubernetes_text, services_of
from mesh.auth.keys import new_seed, public_key
from mesh.auth.rights import Client, Declared, Peer, Rights, rights_of, unserved
from mesh.errors import SetupError

SUBJECTS = Subjects("mesh")
NAMES = ["a", "b", "c", "d", "letter", "all", "task", "cancel"]
some = st.lists(st.sampled_from(NAMES), max_size=4).map(tuple)
meshes = st.builds(
    lambda peers, clients: Declared(
        "mesh",
        peers=tuple(Peer(f"p{number}", handles, calls) for number, (handles, calls) in enumerate(peers)),
        clients=tuple(Client(f"c{number}", calls) for number, calls in enumerate(clients)),
        operators=("ops",),
        monitors=("watch",),
    ),
    st.lists(st.tuples(some.filter(bool), some), min_size=1, max_size=4),
    st.lists(some.filter(bool), max_size=2),
)


def matches(pattern: str, subject: str) -> bool:
    """Whether a NATS pattern covers a subject."""
    wanted, found = pattern.split("."), subject.split(".")
    for number, token in enumerate(wanted):
        if token == ">":
            return len(found) > number
        if number >= len(found) or (token != "*" and token != found[number]):
            return False
    return len(wanted) == len(found)


def may(rights: Rights, subject: str) -> bool:
    return any(matches(pattern, subject) for pattern in rights.publish)


def records(capability: str) -> list[str]:
    """What only peers of a capability write."""
    task = Identity(capability, "x.~0")
    return [
        *(SUBJECTS.result(task), SUBJECTS.park(task), SUBJECTS.step(task, "s"), SUBJECTS.dead_letter(task)),
        *(
            SUBJECTS.timer(task, "t"),
            SUBJECTS.due(task, "t"),
            SUBJECTS.part(task),
            SUBJECTS.line(Line(capability, "k")),
        ),
        f"$KV.MESH_CONTROL.pause.{capability}",
        f"$JS.API.CONSUMER.MSG.NEXT.MESH.{capability}",
        f"$JS.API.CONSUMER.RESET.MESH.{consumer_name(capability, 'bulk')}",
        f"$JS.ACK.MESH.{capability}.1.2.3.4.5",
        f"$JS.API.CONSUMER.MSG.NEXT.MESH_TIMERS@{capability}.timekeeper",
        f"$JS.API.DIRECT.GET.MESH.{SUBJECTS.step(task, 's')}",
        f"$JS.API.DIRECT.GET.MESH.{SUBJECTS.dead_letter(task)}",
    ]


@given(meshes)
def test_nobody_but_its_peers_and_operators_touches_what_is_a_capabilitys(mesh: Declared) -> None:
    handled = {peer.user: set(peer.handles) for peer in mesh.peers}
    for rights in rights_of(mesh):
        if rights.role == "operator":
            continue
        for capability in set(NAMES) - handled.get(rights.user, set()):
            assert [subject for subject in records(capability) if may(rights, subject)] == [], rights.user


@given(meshes)
def test_tasks_are_submitted_and_results_read_only_where_that_is_declared(mesh: Declared) -> None:
    calls = {user.user: set(user.calls) for user in (*mesh.peers, *mesh.clients)}
    handled = {peer.user: set(peer.handles) for peer in mesh.peers}
    for rights in rights_of(mesh):
        if rights.role == "operator":
            continue
        known = calls.get(rights.user, set()) | handled.get(rights.user, set())
        for capability in set(NAMES) - known:
            task = Identity(capability, "x")
            touched = [
                SUBJECTS.task(task),
                SUBJECTS.task(task, "urgent"),
                f"$JS.API.DIRECT.GET.MESH.{SUBJECTS.result(task)}",
            ]
            touched += [SUBJECTS.chunk(task, "n", 0), f"$KV.MESH_CONTROL.cancel.{capability}.eA"]
            assert [subject for subject in touched if may(rights, subject)] == []
            assert not any(matches(pattern, SUBJECTS.done(task)) for pattern in rights.subscribe)


@given(meshes)
def test_nobody_but_operators_may_do_what_cannot_be_scoped(mesh: Declared) -> None:
    unscoped = [
        *("STREAM.CREATE.X", "STREAM.UPDATE.MESH", "STREAM.DELETE.MESH", "STREAM.PURGE.MESH", "STREAM.MSG.GET.MESH"),
        *("STREAM.MSG.DELETE.MESH", "STREAM.SNAPSHOT.MESH", "DIRECT.GET.MESH", "CONSUMER.CREATE.MESH.a"),
        *("CONSUMER.CREATE.MESH_EVENTS.x", "CONSUMER.DELETE.MESH.a", "CONSUMER.PAUSE.MESH.a"),
    ]
    for rights in rights_of(mesh):
        if rights.role != "operator":
            assert [verb for verb in unscoped if may(rights, f"$JS.API.{verb}")] == []
            assert not any(pattern in (">", "mesh.>", "_INBOX.>") for pattern in rights.subscribe)


@given(meshes)
def test_the_same_declarations_make_the_same_configuration(mesh: Declared) -> None:
    def text(declared: Declared) -> str:
        rights = rights_of(declared)
        keys = {one.user: [f"U{one.user}"] for one in rights}
        return accounts_text([MeshRights("mesh", rights, keys, JetStreamLimits())])

    assert text(mesh) == text(mesh)


def test_exports_do_not_overlap_since_a_request_that_matches_two_is_sent_twice() -> None:
    exported = [subject for subject, _ in services_of(SUBJECTS)]

    for one in exported:
        concrete = one.replace(">", "x")
        assert [other for other in exported if matches(other, concrete)] == [one]


def test_a_cancel_reaches_what_is_asked_for_in_turn() -> None:
    mesh = Declared(
        "mesh",
        peers=(Peer("p", ("a",), ("b",)), Peer("q", ("b",), ("c",)), Peer("r", ("c",))),
        clients=(Client("shop", ("a",)),),
    )
    rights = {one.user: one for one in rights_of(mesh)}

    for user, woken in (("shop", "abc"), ("p", "abc"), ("q", "abc"), ("r", "bc")):
        assert [name for name in "abc" if may(rights[user], f"mesh.wake.{name}.x")] == list(woken), user


def test_a_signal_is_granted_by_its_name_alone() -> None:
    mesh = Declared("mesh", clients=(Client("clerk", signals={"human": ("answer",)}),))
    (rights,) = rights_of(mesh)

    assert may(rights, "mesh.step.human.x.~~signal-answer")
    assert may(rights, "mesh.step.human.s-1.~0.~abc.~~signal-answer")
    assert not may(rights, "mesh.step.human.x.~~signal-other")
    assert not may(rights, "mesh.step.human.x.charge")
    assert not may(rights, "mesh.step.human.x.~~signal-answer.more")


def test_what_is_called_and_handled_by_nobody_is_told() -> None:
    mesh = Declared("mesh", peers=(Peer("p", ("a",), ("b", "c")), Peer("q", ("c",))), clients=(Client("x", ("b",)),))

    assert unserved(mesh) == {"b": ("p", "x")}


@pytest.mark.parametrize(
    ("document", "told"),
    [
        (None, "it begins with `meshes:`"),
        ({"meshes": {}}, "meshes: "),
        ({"meshes": {"mesh": {}}}, "nobody is in it"),
        ({"meshes": {"mesh": {"operator": ["ops"]}}}, "meshes.mesh.operator: no such field"),
        ({"meshes": {"a b": {"operators": ["ops"]}}}, "prefix 'a b' must be letters"),
        ({"meshes": {"mesh": {"operators": ["Ops"]}}}, "meshes.mesh.operators.0: user 'Ops' must be small letters"),
        ({"meshes": {"mesh": {"peers": {"p": {}}}}}, "meshes.mesh.peers.p: a peer needs `agents` or `handles`"),
        (
            {"meshes": {"mesh": {"peers": {"p": {"handles": ["a.b"]}}}}},
            "meshes.mesh.peers.p.handles.0: capability 'a.b'",
        ),
        ({"meshes": {"mesh": {"clients": {"c": {}}}}}, "meshes.mesh.clients.c: a client needs `calls` or `signals`"),
        ({"meshes": {"mesh": {"operators": ["x"], "monitors": ["x"]}}}, "user 'x' is there twice"),
        ({"meshes": {"a.b": {"operators": ["x"]}, "a_b": {"operators": ["y"]}}}, "would both have the account A_B"),
        (
            {"meshes": {"mesh": {"operators": ["x"], "jetstream": {"max_file": "lots"}}}},
            "meshes.mesh.jetstream.max_file: 'lots' is no size",
        ),
    ],
)
def test_an_access_file_that_cannot_be_names_the_field(document: Any, told: str) -> None:
    with pytest.raises(SetupError) as caught:
        read_access(document)

    assert told in str(caught.value)


def test_keys_are_fresh_and_what_is_no_seed_is_refused_without_showing_it() -> None:
    first, second = new_seed(), new_seed()

    assert first != second
    assert public_key(first).startswith("U")
    assert public_key(f"{first}\n") == public_key(first)
    with pytest.raises(SetupError) as caught:
        public_key("SUAsecret")
    assert "SUAsecret" not in str(caught.value)


def test_secrets_for_kubernetes_hold_the_accounts_and_each_seed() -> None:
    text = kubernetes_text("starling", "accounts {}\n", {"ops": "SUX", "desk": "SUY"})

    assert text.count("kind: Secret") == 3
    assert [line for line in text.splitlines() if "  name: " in line] == [
        "  name: starling-nats-accounts",
        "  name: starling-user-desk",
        "  name: starling-user-ops",
    ]
    assert "SUX" not in text
