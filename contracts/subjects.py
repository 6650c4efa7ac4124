"""The subject grammar: the only module that joins or splits dots.

A task's identity is (capability, id). It stands in the subject of every record about the task, so that
NATS permissions can be written per capability and one wildcard covers every state a task can be in.

    <prefix>.task.<capability>.<id>            a queued or running task
    <prefix>.task@<lane>.<capability>.<id>     the same identity in another queue
    <prefix>.park|wake|result.<capability>.<id>
    <prefix>.wake@again.<capability>.<id>      a wake that met another one
    <prefix>.step.<capability>.<id>.<name>     a recorded step of a task
    <prefix>.dead.letter.<capability>.<id>
    <prefix>.done.<capability>.<id>            the server's echo of a stored result
    <prefix>.part.<capability>.<id>            streamed parts, not stored
    <prefix>.beat.<peer>                       presence and load, not stored
    <prefix>.ctl.<target>.<verb>               questions and orders to live peers, not stored
    <prefix>.control.<key>                     the server's echo of a control record
    <prefix>.backup.<token>                    parts of a stream's snapshot, for who asked for it, not stored

Timers live in a stream of their own for each capability:

    <prefix>.timer.<capability>.<id>.<name>    a scheduled message, fires as `<prefix>.due.<capability>.<id>.<name>`
    <prefix>.cron.<capability>.<name>          a recurring one, fires as `<prefix>.tick.<capability>.<name>`

A dot in an id means "child of". Tokens that the mesh makes below an id begin with `~`; tokens that users
choose may not. So a step name and a child of the same task can never share a subject. What the mesh itself
records as a step begins with `~~`, or the guard of a child of that name would take it for the child.

The tasks of a line, which share an order key, are `<key>.~~1`, `<key>.~~2` and so on: ids that neither users nor
children can have, and `<prefix>.*.<capability>.<key>.*` covers the line. Its own records have a stream of their own:

    <prefix>.line.<capability>.<key>           how far the line has come
    <prefix>.place.<capability>.<key>.<digest> the place in it of an idempotency key

So has what the whole mesh shares under a limit:

    <prefix>.limit.seats|rate.<resource>       who holds seats of it, how full its buckets are
    <prefix>.limited.seats|rate.<resource>     the server's echo of that

What happened is kept in another, for a while:

    <prefix>.event.<kind>.<capability>.<id>    lifecycle; `-` and the peer's id where it is no task's
    <prefix>.event.decided.<capability>.<id>.<key>  a decision, its key made from its content

What is too large for a message is kept in chunks, in a stream of their own:

    <prefix>.object.<capability>.<id>.<name>.<n>  a part of an object of a task
"""

import base64
import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

from contracts.errors import ContractError

ID_BYTES_MAX: Final = 512
"""Of an id that a user chooses."""
CHILD_ID_BYTES_MAX: Final = 3_000
"""Of an id with its ancestors'; a NATS server takes 4,096 bytes of subjects in one command."""
CAPABILITY_LENGTH_MAX: Final = 63
STEP_BYTES_MAX: Final = 128
PREFIX_LENGTH_MAX: Final = 63
LimitKind = Literal["seats", "rate"]
LANES: Final = ("urgent", "bulk", "canary", "shadow")
AGAIN: Final = "again"
"""The lane, so to say, of a wake that met another one."""
TIMEKEEPER: Final = "timekeeper"
"""The consumer of a capability's fired timers."""
KEEPER: Final = "@keeper"
"""The consumer that keeps records from being acked away; no capability's name begins so."""
SESSION: Final = "-"
"""Stands in a lineage for a client session, which is a root without being a task."""

_CAPABILITY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_PREFIX = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
# Anything NATS lets stand in a token, less what it gives a meaning: white space and control characters
# (they end a protocol field), `.`, `*` and `>`.
_CHARACTER = r"[^\x00-\x20\x7f-\xa0.*>\u2028\u2029\ud800-\udfff]"
_TOKEN = re.compile(f"{_CHARACTER}+")
_ID = re.compile(rf"(?!~){_CHARACTER}+(\.~~[1-9][0-9]*)?(\.~(?!~){_CHARACTER}+)*")
_IN_LINE = re.compile(rf"((?!~){_CHARACTER}+)\.~~([1-9][0-9]*)")


class Kind(StrEnum):
    """What a subject holds."""

    TASK = "task"
    PARK = "park"
    WAKE = "wake"
    TIMER = "timer"
    DUE = "due"
    RESULT = "result"
    STEP = "step"
    DEAD_LETTER = "dead.letter"
    DONE = "done"
    PART = "part"


@dataclass(frozen=True, slots=True)
class Identity:
    """Which task: what it asks for, and its idempotency key."""

    capability: str
    id: str

    def __str__(self) -> str:
        return f"{self.capability}/{self.id}"


@dataclass(frozen=True, slots=True)
class Line:
    """Tasks of one capability that share an order key: one runs at a time, in the order of their positions."""

    capability: str
    key: str

    def at(self, position: int) -> Identity:
        """The task at a position, from 1."""
        return Identity(self.capability, f"{self.key}.~~{position}")


@dataclass(frozen=True, slots=True)
class Address:
    """A subject taken apart. `lane` is empty for the default queue, `name` is a step's or a timer's."""

    kind: Kind
    capability: str
    id: str
    lane: str = ""
    name: str = ""

    @property
    def identity(self) -> Identity:
        return Identity(self.capability, self.id)


def check_capability(name: str) -> str:
    """`name` itself, if it may name a capability.

    Raises:
        ContractError: it is empty, too long, or has a character outside letters, digits, `-`, `_`.
    """
    return _check_name("capability", name)


def is_capability(name: str) -> bool:
    """Whether `name` may name a capability."""
    return len(name) <= CAPABILITY_LENGTH_MAX and _CAPABILITY.fullmatch(name) is not None


def check_key(key: str) -> str:
    """`key` itself, if a user may choose it as a task's id: one token, at most 512 bytes.

    Raises:
        ContractError: it is empty, too long, has white space or one of `. * >`, or begins with `~`.
    """
    _check_token("key", key, ID_BYTES_MAX)
    return key


def check_order_key(key: str) -> str:
    """`key` itself, if a user may choose it as the key of a line: one token, at most 512 bytes."""
    _check_token("order_key", key, ID_BYTES_MAX)
    return key


def check_step_name(name: str) -> str:
    """`name` itself, if a user may give it to a step: one token, at most 128 bytes."""
    _check_token("step name", name, STEP_BYTES_MAX)
    return name


def check_resource(name: str) -> str:
    """`name` itself, if it may name a resource with a limit: letters, digits, '-' and '_', at most 63 characters."""
    return _check_name("resource", name)


def check_object_name(name: str) -> str:
    """`name` itself, if an object may have it: one token, at most 128 bytes."""
    _check_token("object name", name, STEP_BYTES_MAX)
    return name


def is_legal_id(task_id: str) -> bool:
    """Whether the id is one token a user may choose, followed by a position and by `~` tokens the mesh made."""
    if _ID.fullmatch(task_id) is None:
        return False
    if len(task_id) <= ID_BYTES_MAX // 4:
        return True
    return len(root_of(task_id).encode()) <= ID_BYTES_MAX and len(task_id.encode()) <= CHILD_ID_BYTES_MAX


def stand_in(task_id: str) -> str:
    """The legal id under which a task with an illegal one is recorded; the same for the same id."""
    return f"x-{_short(task_id)}"


def child_id(parent_id: str, token: str) -> str:
    """The id of a child that the mesh names below `parent_id`.

    Raises:
        ContractError: the token is illegal, or the id would exceed 3,000 bytes.
    """
    _check_token("child name", token, ID_BYTES_MAX)
    child = f"{parent_id}.~{token}"
    if (length := len(child.encode())) > CHILD_ID_BYTES_MAX:
        raise ContractError(f"child id of {length} bytes exceeds {CHILD_ID_BYTES_MAX}: nested too deep")
    return child


def session_child(session: str, number: int) -> str:
    """The id of a task without a key: the next child of a client's session."""
    return f"{session}.~{number}"


def in_line(task: Identity) -> tuple[Line, int] | None:
    """The line that a task stands in by its id, and its position; None for all other tasks."""
    if ".~~" not in task.id or (found := _IN_LINE.fullmatch(task.id)) is None:
        return None
    return Line(task.capability, found[1]), int(found[2])


def root_of(task_id: str) -> str:
    """The first token: the id of the workflow, or of the client session, that a task belongs to."""
    return task_id.partition(".")[0]


def parent_of(task_id: str) -> str:
    """The id one level up, empty for a root."""
    return task_id.rpartition(".")[0]


def ancestry(identity: Identity, lineage: tuple[str, ...]) -> tuple[Identity, ...]:
    """The task and its ancestors, root first. `lineage` names the ancestors' capabilities, root first."""
    tokens = identity.id.split(".")
    if len(lineage) != len(tokens) - 1:
        return (identity,)
    ids = [".".join(tokens[: depth + 1]) for depth in range(len(lineage))]
    return (*map(Identity, lineage, ids), identity)


class Subjects:
    """Builds and parses the subjects of one mesh.

    Raises:
        ContractError: the prefix is not made of plain tokens.
    """

    def __init__(self, prefix: str = "mesh") -> None:
        if not _PREFIX.fullmatch(prefix) or len(prefix) > PREFIX_LENGTH_MAX:
            raise ContractError(
                f"prefix {_shown(prefix)} must be letters, digits, '-', '_' and single dots,"
                f" at most {PREFIX_LENGTH_MAX} characters"
            )
        self.prefix = prefix
        self._head = prefix + "."
        self.stream = prefix.upper().replace(".", "_")
        self.control_bucket = f"{self.stream}_CONTROL"
        self.control_stream = f"KV_{self.control_bucket}"
        self.timer_streams = f"{self.stream}_TIMERS@"
        """What the names of all timer streams begin with; no other stream's does."""
        self.shared_timer_stream = f"{self.stream}_TIMERS"
        """Of versions in which all capabilities had one."""
        self.line_stream = f"{self.stream}_LINES"
        self.limit_stream = f"{self.stream}_LIMITS"
        self.object_stream = f"{self.stream}_OBJECTS"
        self.event_stream = f"{self.stream}_EVENTS"

    # One task's subjects.

    def task(self, task: Identity, lane: str = "") -> str:
        word = f"task@{lane}" if lane else "task"
        return f"{self._head}{word}.{task.capability}.{task.id}"

    def park(self, task: Identity) -> str:
        return f"{self._head}park.{task.capability}.{task.id}"

    def wake(self, task: Identity, *, is_again: bool = False) -> str:
        word = "wake@again" if is_again else "wake"
        return f"{self._head}{word}.{task.capability}.{task.id}"

    def result(self, task: Identity) -> str:
        return f"{self._head}result.{task.capability}.{task.id}"

    def step(self, task: Identity, name: str) -> str:
        return f"{self._head}step.{task.capability}.{task.id}.{name}"

    def own_step(self, task: Identity, name: str) -> str:
        """A record that the mesh itself makes as a step of the task."""
        return self.step(task, f"~~{name}")

    def attempt(self, task: Identity, number: int, word: str) -> str:
        """A record about an attempt of the task: that it `began`, or `ended` without a result."""
        return self.own_step(task, f"{word}-{number}")

    def dead_letter(self, task: Identity) -> str:
        return f"{self._head}dead.letter.{task.capability}.{task.id}"

    def done(self, task: Identity) -> str:
        return f"{self._head}done.{task.capability}.{task.id}"

    def part(self, task: Identity) -> str:
        return f"{self._head}part.{task.capability}.{task.id}"

    def any_state(self, task: Identity) -> str:
        """The wildcard over every state the task can be in, in every lane: the submit guard."""
        return f"{self._head}*.{task.capability}.{task.id}"

    def queued(self, task: Identity) -> tuple[str, ...]:
        """Where a task may be queued or running, likeliest first."""
        return (self.task(task), *(self.task(task, lane) for lane in LANES))

    def unsettled(self, task: Identity) -> tuple[str, ...]:
        """Where a task without a result may stand, likeliest first."""
        default, *lanes = self.queued(task)
        return (default, self.park(task), *lanes)

    # Wildcards and the planes that are not stored.

    def tasks_of(self, capability: str = "*", lane: str = "") -> str:
        """Every task of a capability in one lane; of all capabilities by default."""
        word = f"task@{lane}" if lane else "task"
        return f"{self._head}{word}.{capability}.>"

    def queue(self, capability: str, lane: str = "") -> str:
        """What the tasks of a capability in one lane have in common: their subjects without the id."""
        return self.tasks_of(capability, lane).removesuffix(".>")

    def capability_of(self, task_subject: str) -> str:
        """The capability of a task subject, however illegal the rest."""
        return task_subject[len(self._head) :].split(".", 2)[1]

    def wakes_of(self, capability: str) -> tuple[str, str]:
        """Every wake of a capability, and every one that met another."""
        return f"{self._head}wake.{capability}.>", f"{self._head}wake@again.{capability}.>"

    def parks_of(self, capability: str = "*") -> str:
        return f"{self._head}park.{capability}.>"

    def parks_below(self, root: str) -> str:
        return f"{self._head}park.*.{root}.>"

    def below(self, root: str) -> str:
        """Every record of every task and step below a root, in any state."""
        return f"{self._head}*.*.{root}.>"

    def results_of(self, capability: str = "*") -> str:
        return f"{self._head}result.{capability}.>"

    def steps_of(self, capability: str = "*") -> str:
        return f"{self._head}step.{capability}.>"

    def dead_letters_of(self, capability: str = "*") -> str:
        return f"{self._head}dead.letter.{capability}.>"

    def done_below(self, capability: str, parent: str) -> str:
        """The echoes of a task's or a session's children of one capability."""
        return f"{self._head}done.{capability}.{parent}.*"

    def event(self, kind: str, task: Identity) -> str:
        return f"{self._head}event.{kind}.{task.capability}.{task.id}"

    def decided(self, task: Identity, key: str) -> str:
        """The event of one decision of a task: it can be stored once."""
        return f"{self._head}event.decided.{task.capability}.{task.id}.{key}"

    def events_of(self, kind: str = "*", capability: str = "*", task_id: str = "") -> tuple[str, ...]:
        """Every event of a kind and a capability; with an id, those of the task and of everything below it."""
        head = f"{self._head}event.{kind}.{capability}"
        return (f"{head}.{task_id}", f"{head}.{task_id}.>") if task_id else (f"{head}.>",)

    @property
    def events(self) -> str:
        return f"{self._head}event.>"

    def beat(self, peer: str) -> str:
        return f"{self._head}beat.{peer}"

    @property
    def beats(self) -> str:
        return f"{self._head}beat.*"

    def ctl(self, target: str, verb: str) -> str:
        """A question or order: `target` is a peer's id, a capability, or `all`."""
        return f"{self._head}ctl.{target}.{verb}"

    def under(self, *tokens: str) -> str:
        """Every subject that begins with these tokens, as permissions name them."""
        return f"{self._head}{'.'.join(tokens)}.>"

    # What the streams store.

    def is_own_stream(self, name: str) -> bool:
        """Whether a stream of that name is one of this mesh."""
        return name.startswith(self.timer_streams) or name in (
            self.stream,
            self.control_stream,
            self.shared_timer_stream,
            self.line_stream,
            self.limit_stream,
            self.object_stream,
            self.event_stream,
        )

    @property
    def stored(self) -> list[str]:
        words = ["task", *(f"task@{lane}" for lane in LANES), "wake", "wake@again"]
        return [*(f"{self._head}{word}.>" for word in words), *self.records]

    @property
    def records(self) -> list[str]:
        """What the stream of tasks keeps that no peer pulls."""
        return [f"{self._head}{word}.>" for word in ("park", "result", "step", "dead.letter")]

    # Timers.

    def timer(self, task: Identity, name: str) -> str:
        return f"{self._head}timer.{task.capability}.{task.id}.{name}"

    def due(self, task: Identity, name: str) -> str:
        return f"{self._head}due.{task.capability}.{task.id}.{name}"

    def cron(self, capability: str, name: str) -> str:
        return f"{self._head}cron.{capability}.{name}"

    def tick(self, capability: str, name: str) -> str:
        return f"{self._head}tick.{capability}.{name}"

    @property
    def crons(self) -> str:
        return f"{self._head}cron.>"

    def timer_stream(self, capability: str) -> str:
        return f"{self.timer_streams}{capability}"

    def timers_stored(self, capability: str) -> list[str]:
        return [f"{self._head}{word}.{capability}.>" for word in ("timer", "due", "cron", "tick")]

    def fired(self, capability: str) -> list[str]:
        """What fired timers and schedules of a capability leave for its peers to act on."""
        return [f"{self._head}due.{capability}.>", f"{self._head}tick.{capability}.>"]

    def schedule_name(self, subject: str) -> str:
        """The name of the schedule whose cron or tick subject this is; empty if it is neither."""
        word, _, rest = subject[len(self._head) :].partition(".")
        return rest.partition(".")[2] if word in ("cron", "tick") else ""

    @property
    def result_echo(self) -> tuple[str, str]:
        """Source and destination of the republish rule that echoes stored results."""
        return f"{self._head}result.>", f"{self._head}done.>"

    # Lines.

    def any_position(self, line: Line) -> str:
        """The wildcard over every task of a line in every state, and over what stands one level below its key."""
        return f"{self._head}*.{line.capability}.{line.key}.*"

    def line(self, line: Line) -> str:
        return f"{self._head}line.{line.capability}.{line.key}"

    def place(self, line: Line, key: str) -> str:
        """The record of where in a line a task stands that was submitted under an idempotency key."""
        return f"{self._head}place.{line.capability}.{line.key}.{_short(key)}"

    def is_line_mark(self, subject: str) -> bool:
        """Whether a subject is of the record of how far a line has come."""
        return subject.startswith(f"{self._head}line.")

    @property
    def lines_stored(self) -> list[str]:
        return [f"{self._head}{word}.>" for word in ("line", "place")]

    # Limits.

    def limit(self, what: LimitKind, resource: str) -> str:
        """The record of what is in use of a resource."""
        return f"{self._head}limit.{what}.{resource}"

    def limit_echo(self, what: LimitKind, resource: str) -> str:
        return f"{self._head}limited.{what}.{resource}"

    @property
    def limits_stored(self) -> str:
        return f"{self._head}limit.>"

    @property
    def limit_echoes(self) -> tuple[str, str]:
        """Source and destination of the republish rule that echoes what is in use."""
        return self.limits_stored, f"{self._head}limited.>"

    def parse_limit(self, subject: str) -> tuple[str, str]:
        """What of a resource a limit's record tells, and the resource."""
        what, _, resource = subject.removeprefix(f"{self._head}limit.").partition(".")
        return what, resource

    # Objects.

    def chunk(self, task: Identity, name: str, number: int) -> str:
        """A part of an object of the task; parts are numbered from 0."""
        return f"{self._head}object.{task.capability}.{task.id}.{name}.{number}"

    @property
    def objects_stored(self) -> list[str]:
        return [f"{self._head}object.>"]

    # Control records: keys of a key-value bucket, echoed as `<prefix>.control.<key>`.

    @property
    def control_stored(self) -> str:
        return f"$KV.{self.control_bucket}.>"

    @property
    def control_echo(self) -> tuple[str, str]:
        return self.control_stored, f"{self._head}control.>"

    @property
    def control_echoes(self) -> str:
        return f"{self._head}control.>"

    def control_record(self, key: str) -> str:
        return f"$KV.{self.control_bucket}.{key}"

    def control_key(self, subject: str) -> str:
        """The key that a control record's subject, or its echo's, stands for."""
        for head in (f"{self._head}control.", f"$KV.{self.control_bucket}."):
            if subject.startswith(head):
                return subject[len(head) :]
        raise ContractError(f"subject {_shown(subject)} is not a control record")

    def parse(self, subject: str) -> Address:
        """Take apart the subject of a task, a record, an echo or a part.

        The id is taken as it stands; see `is_legal_id`.

        Raises:
            ContractError: the subject is none of these, or its capability is illegal.
        """
        if not subject.startswith(self._head):
            raise ContractError(f"subject {_shown(subject)} is not below {self.prefix!r}")
        word, _, rest = subject[len(self._head) :].partition(".")
        if word == "dead":
            letter, _, rest = rest.partition(".")
            word = f"dead.{letter}"
        word, _, lane = word.partition("@")
        if word not in _KINDS or (lane and not (word == "task" and lane in LANES) and (word, lane) != ("wake", AGAIN)):
            raise ContractError(f"subject {_shown(subject)} is of no known kind")
        capability, _, task_id = rest.partition(".")
        check_capability(capability)
        name = ""
        if word in _NAMED:
            task_id, _, name = task_id.rpartition(".")
        if not task_id or (word in _NAMED and not name):
            raise ContractError(f"subject {_shown(subject)} ends before its id")
        return Address(Kind(word), capability, task_id, lane, name)


def key_cancel(task: Identity) -> str:
    """The control key that cancels a task and everything below it."""
    return f"cancel.{task.capability}.{_packed(task.id)}"


def key_pause(capability: str) -> str:
    """The control key that stops peers from taking work of a capability."""
    return f"pause.{capability}"


def check_breaker_name(name: str) -> str:
    """`name` itself, if it may name a circuit breaker: letters, digits, '-' and '_', at most 63 characters."""
    return _check_name("breaker", name)


def key_breaker(name: str) -> str:
    """The control key of a circuit breaker's state."""
    return f"breaker.{name}"


def parse_breaker(key: str) -> str | None:
    """The circuit breaker whose state a control key holds, if it is such a key."""
    word, _, name = key.partition(".")
    return name if word == "breaker" and _CAPABILITY.fullmatch(name) else None


def key_limit(resource: str) -> str:
    """The control key that says how much of a resource may be used."""
    return f"limit.{resource}"


def parse_cancel(key: str) -> Identity | None:
    """The task that a control key cancels, if it is such a key."""
    parts = key.split(".")
    if len(parts) != 3 or parts[0] != "cancel":
        return None
    try:
        return Identity(parts[1], _unpacked(parts[2]))
    except ValueError:
        return None


def parse_pause(key: str) -> str | None:
    """The capability that a control key pauses, if it is such a key."""
    word, _, capability = key.partition(".")
    return capability if word == "pause" and _CAPABILITY.fullmatch(capability) else None


def parse_limit_key(key: str) -> str | None:
    """The resource that a control key limits, if it is such a key."""
    word, _, resource = key.partition(".")
    return resource if word == "limit" and _CAPABILITY.fullmatch(resource) else None


def consumer_name(capability: str, lane: str = "") -> str:
    """The durable consumer that all peers of a capability share, one a lane."""
    return f"{capability}@{lane}" if lane else capability


def served_by(consumer: str) -> str:
    """The capability whose consumer it is, by its name; empty for somebody's own."""
    capability, _, lane = consumer.partition("@")
    return capability if is_capability(capability) and (not lane or lane in LANES) else ""


_KINDS = {str(kind) for kind in Kind}
_NAMED = ("step", "timer", "due")


def _check_name(what: str, name: str) -> str:
    if not isinstance(name, str) or not _CAPABILITY.fullmatch(name):
        raise ContractError(
            f"{what} {_shown(name)} must be letters, digits, '-' and '_', and begin with a letter or digit"
        )
    if len(name) > CAPABILITY_LENGTH_MAX:
        raise ContractError(f"{what} of {len(name)} characters exceeds {CAPABILITY_LENGTH_MAX}")
    return name


def _check_token(what: str, token: str, bytes_max: int) -> None:
    if not isinstance(token, str) or not token:
        raise ContractError(f"{what} {_shown(token)} must be a non-empty string")
    if not _TOKEN.fullmatch(token):
        raise ContractError(f"{what} {_shown(token)} has white space, a control character, or one of '.', '*', '>'")
    if token.startswith("~"):
        raise ContractError(f"{what} {_shown(token)} begins with '~', which marks what the mesh names itself")
    if (length := len(token.encode())) > bytes_max:
        raise ContractError(f"{what} of {length} bytes exceeds {bytes_max}")


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _short(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _packed(task_id: str) -> str:
    # Keys of a NATS bucket know fewer characters than subjects do.
    return base64.urlsafe_b64encode(task_id.encode()).decode().rstrip("=")


def _unpacked(token: str) -> str:
    return base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode()
