"""What a mesh says, for people and tools: JSON Schemas, and one AsyncAPI 3 document of all subjects.

The planes that FastStream serves are described by FastStream's own generator, which asks pydantic for every
schema; records answer it with msgspec's (see `contracts.wire.Record`). The task plane is not FastStream, so it
is described here, from the same subject grammar that builds its subjects. Both become rows of one kind.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal
from urllib.parse import quote, unquote

from faststream.specification import AsyncAPI

from contracts import headers as names
from contracts import wire
from contracts.card import AgentCard, Beat, Described
from contracts.control import BreakerChange, Cancel, PartsKept, PartsWanted, Pause, Runs, WhoRuns
from contracts.event import Event
from contracts.limit import Limit, Rate, Seats
from contracts.line import LineMark, LinePlace
from contracts.objects import KeptPayload
from contracts.outcome import AttemptBegan, AttemptEnded, Failure, Outcome
from contracts.subjects import LANES, Identity, LimitKind, Line, Subjects
from contracts.task import Task
from contracts.workflow import Answer, Check, Claim, Closing, Proposal, Recurring, Signal, Step
from mesh import payload as payloads
from mesh.capability import Capability
from mesh.peer import Hosted, Peer
from mesh.settings import Settings

Schema = dict[str, Any]

JSON_SCHEMA: Final = "https://json-schema.org/draft/2020-12/schema"
ASYNCAPI: Final = "3.0.0"
NOWHERE: Final = "nats://localhost:4222"
"""Stands in a document for the server, where the settings name none."""

RECORDS: Final[tuple[type[Any], ...]] = (
    AgentCard,
    Answer,
    AttemptBegan,
    AttemptEnded,
    Beat,
    BreakerChange,
    Cancel,
    Check,
    Claim,
    Closing,
    Described,
    Event,
    Failure,
    KeptPayload,
    Limit,
    LineMark,
    LinePlace,
    Outcome,
    PartsKept,
    PartsWanted,
    Pause,
    Proposal,
    Rate,
    Recurring,
    Runs,
    Seats,
    Signal,
    Step,
    Task,
    WhoRuns,
)
"""Everything that is stored, echoed, asked or travels in a header, besides payloads and values."""

_ANSWERS: Final[dict[str, type[Any]]] = {"PartsWanted": PartsKept, "WhoRuns": Runs}

_PARAMETERS: Final[dict[str, Schema]] = {
    "capability": {"description": "A capability's name."},
    "decision": {"description": "A digest of what was decided, and of how often before."},
    "id": {"description": "The task's id: its idempotency key, or what the mesh made below another id."},
    "key": {"description": "`cancel.<capability>.<id in base64url>`, `pause.<capability>` or `limit.<resource>`."},
    "kind": {"description": "What happened."},
    "lane": {"description": "Another queue for the same identity.", "enum": list(LANES)},
    "name": {"description": "The step's name."},
    "order_key": {"description": "The key of a line: its tasks run one at a time, in order."},
    "peer": {"description": "The peer's id."},
    "resource": {"description": "What the mesh shares under a limit."},
}


@dataclass(frozen=True, slots=True)
class _Plane:
    """What a peer says or hears on one subject. A subject that is not fixed (a reply inbox) has no address."""

    action: Literal["send", "receive"]
    address: str | None
    key: str
    description: str
    message: str
    payload: Schema
    headers: Schema | None = None
    answer: "_Plane | None" = None


def record_schemas() -> dict[str, Schema]:
    """A self-contained JSON Schema of every record, by its name."""
    return {record.__name__: _whole(record) for record in RECORDS}


def capability_schemas(capability: Capability[Any, Any, Any]) -> tuple[Schema, Schema]:
    """Self-contained JSON Schemas of what a capability takes and of what it returns."""
    return _whole(capability.input.annotation), _whole(capability.output.annotation)


def asyncapi(hosted: Sequence[Hosted], settings: Settings) -> Schema:
    """The AsyncAPI 3 document of a peer that hosts these agents: everything it says and hears.

    Connects to nothing.

    Raises:
        SetupError: the agents cannot be hosted together, or a credentials file is missing.
    """
    settings = settings.model_copy(update={"nats_url": settings.nats_url or NOWHERE})
    peer = Peer(*hosted, settings=settings)
    agents = [agent for agent, _ in hosted]
    version = agents[0].version if len(agents) == 1 else str(wire.PLAIN)
    generated = json.loads(
        AsyncAPI(
            peer.broker,
            title=", ".join(agent.name for agent in agents),
            version=version or "0",
            description=f"A Starling peer of the mesh {settings.prefix!r}.",
            schema_version=ASYNCAPI,
        )
        .to_specification()
        .to_json()
    )
    capabilities = sorted((capability for _, offered in hosted for capability in offered), key=lambda one: one.name)
    annotations = [side.annotation for one in capabilities for side in (one.input, one.output)]
    described, components = payloads.schemas([*annotations, *RECORDS], _ref("components", "schemas", "{name}"))
    # By reference: a record whose name an agent uses too has another one among the components.
    records = dict(zip((record.__name__ for record in RECORDS), described[len(annotations) :], strict=True))
    planes = list(_broker_planes(generated, peer.id, settings.subjects, records))
    for index, capability in enumerate(capabilities):
        taken, returned = described[2 * index : 2 * index + 2]
        planes += _task_planes(settings.subjects, capability, taken, returned, records)
    planes += [*_events(settings.subjects, records), *_limits(settings.subjects, records)]
    channels, operations = _assembled(planes)
    security = generated["components"].get("securitySchemes")
    return {
        "asyncapi": ASYNCAPI,
        "info": generated["info"],
        "defaultContentType": wire.JSON,
        "servers": generated["servers"],
        "channels": channels,
        "operations": operations,
        "components": {"schemas": components, **({"securitySchemes": security} if security else {})},
    }


def _whole(annotation: Any) -> Schema:
    (schema,), definitions = payloads.schemas([annotation])
    return {"$schema": JSON_SCHEMA, **schema, **({"$defs": definitions} if definitions else {})}


# The planes that FastStream serves.


def _broker_planes(generated: Schema, peer: str, subjects: Subjects, records: dict[str, Schema]) -> Iterable[_Plane]:
    every_beat, every_control = subjects.beat("{peer}"), subjects.control_echoes.replace(">", "{key}")
    templates = {subjects.beats: every_beat, subjects.beat(peer): every_beat, subjects.control_echoes: every_control}
    for operation in generated["operations"].values():
        channel = _resolved(generated, operation["channel"])
        (reference,) = channel["messages"].values()
        payload = _resolved(generated, _resolved(generated, reference)["payload"])
        record = payload.get(wire.RECORD_NAME)
        address: str = channel["address"]
        address = templates.get(address, address)
        plane = _Plane(
            operation["action"],
            address,
            _key(subjects, address),
            channel["description"],
            record or "Empty",
            records[record] if record else payload,
        )
        if address == every_control:
            # Taken as raw bytes, which say nothing of their type.
            either = {
                "oneOf": [
                    records["Cancel"],
                    records["Pause"],
                    records["Limit"],
                    {"type": "null", "title": "Taken back"},
                ]
            }
            plane = replace(plane, message="Control", payload=either)
        asked = Described if address == subjects.ctl("all", "describe") else _ANSWERS.get(record or "")
        if asked is not None:
            answer = _Plane(
                "send",
                None,
                f"{plane.key}.answer",
                "The answer, on the question's reply subject.",
                asked.__name__,
                records[asked.__name__],
            )
            plane = replace(plane, answer=answer)
        yield plane


# The planes that are ours.


def _task_planes(
    subjects: Subjects,
    capability: Capability[Any, Any, Any],
    taken: Schema,
    returned: Schema,
    records: dict[str, Schema],
) -> list[_Plane]:
    name, task = capability.name, Identity(capability.name, "{id}")
    outcome = {"allOf": [records["Outcome"], {"type": "object", "properties": {"value": returned}}]}

    def plane(
        action: Literal["send", "receive"],
        address: str,
        description: str,
        message: str,
        payload: Schema,
        headers: Schema | None = None,
        answer: _Plane | None = None,
    ) -> _Plane:
        return _Plane(action, address, _key(subjects, address), description, message, payload, headers, answer)

    headers = _task_headers(records)
    done = plane("send", subjects.done(task), f"The server's echo of a stored result of {name}.", "Outcome", outcome)
    asked = capability.description or f"A task for {name}."
    return [
        plane("receive", subjects.task(task), asked, "Task", taken, headers, done),
        plane(
            "receive",
            subjects.task(task, "{lane}"),
            f"The same in another queue: {asked}",
            "Task",
            taken,
            headers,
            done,
        ),
        plane("send", subjects.result(task), f"What a task for {name} came to, written once.", "Outcome", outcome),
        plane(
            "send",
            subjects.part(task),
            f"What {name} emits while it runs; not stored.",
            "Part",
            {"description": "Whatever the handler emits."},
            _headers({names.PART: {"type": "string", "description": "`<attempt>.<sequence>`"}, **_CONTENT_TYPE}),
        ),
        plane(
            "send",
            subjects.step(task, "{name}"),
            f"Attempts at a task for {name} that began, and that ended without a result.",
            "Step",
            {"oneOf": [records["AttemptBegan"], records["AttemptEnded"]]},
        ),
        plane(
            "send",
            subjects.line(Line(name, "{order_key}")),
            f"How far a line of tasks for {name} has come; in a stream of its own.",
            "LineMark",
            records["LineMark"],
        ),
        plane(
            "send",
            subjects.dead_letter(task),
            f"A task for {name} that was given up, as it was.",
            "DeadLetter",
            taken,
            _headers({**headers["properties"], names.DEAD: _inside(records["Failure"])}),
        ),
    ]


def _events(subjects: Subjects, records: dict[str, Schema]) -> Iterable[_Plane]:
    task = Identity("{capability}", "{id}")
    told = (
        (
            subjects.event("{kind}", task),
            "What happened to a peer or a task; `-` and the peer's id where it is no task's. In a stream of its own.",
        ),
        (subjects.decided(task, "{decision}"), "What a task decided, once for each decision; in the stream of events."),
    )
    for address, description in told:
        yield _Plane("send", address, _key(subjects, address), description, "Event", records["Event"])


def _limits(subjects: Subjects, records: dict[str, Schema]) -> Iterable[_Plane]:
    told: tuple[tuple[LimitKind, str, str], ...] = (
        ("seats", "Seats", "Who holds seats"),
        ("rate", "Rate", "How full the buckets are"),
    )
    for kind, record, what in told:
        address = subjects.limit(kind, "{resource}")
        description = f"{what} of a resource with a limit; in a stream of its own."
        yield _Plane("send", address, _key(subjects, address), description, record, records[record])


_CONTENT_TYPE: Final[Schema] = {
    names.CONTENT_TYPE: {
        "type": "string",
        "enum": [wire.JSON, wire.MSGPACK],
        "default": wire.JSON,
        "description": "How the body is encoded.",
    }
}


def _task_headers(records: dict[str, Schema]) -> Schema:
    trace = {"type": "string", "description": "W3C Trace Context."}
    traced: Schema = {
        names.TRACEPARENT: trace,
        names.TRACESTATE: trace,
        names.BAGGAGE: {"type": "string", "description": "W3C Baggage."},
    }
    return _headers({names.TASK: _inside(records["Task"]), **_CONTENT_TYPE, **traced})


def _headers(properties: Schema) -> Schema:
    return {"type": "object", "properties": properties}


def _inside(record: Schema) -> Schema:
    return {"type": "string", "contentMediaType": wire.JSON, "contentSchema": record}


# The document.


def _assembled(planes: Iterable[_Plane]) -> tuple[Schema, Schema]:
    channels: Schema = {}
    operations: Schema = {}
    for plane in sorted(planes, key=lambda plane: (plane.key, plane.action)):
        operation = {"action": plane.action, "description": plane.description, **_spoken(channels, plane)}
        if plane.answer is not None:
            operation["reply"] = _spoken(channels, plane.answer)
        operations[f"{plane.action}.{plane.key}"] = operation
    return channels, operations


def _spoken(channels: Schema, plane: _Plane) -> Schema:
    """References to the plane's channel and message, which are added where they are missing."""
    channel = channels.setdefault(plane.key, {"address": plane.address, "messages": {}})
    if parameters := re.findall(r"\{(\w+)\}", plane.address or ""):
        channel["parameters"] = {name: _PARAMETERS[name] for name in parameters}
    channel.setdefault("description", plane.description)
    channel["messages"][plane.message] = {
        "name": plane.message,
        **({"headers": plane.headers} if plane.headers is not None else {}),
        "payload": plane.payload,
    }
    return {
        "channel": {"$ref": _ref("channels", plane.key)},
        "messages": [{"$ref": _ref("channels", plane.key, "messages", plane.message)}],
    }


def _key(subjects: Subjects, address: str) -> str:
    """A channel's name: its address without the prefix and the tokens that vary."""
    fixed = re.sub(r"\.\{\w+\}", "", address.removeprefix(f"{subjects.prefix}."))
    return re.sub(r"@\{(\w+)\}", r"-\1", fixed)


def _ref(*parts: str) -> str:
    return "#/" + "/".join(quote(part.replace("~", "~0").replace("/", "~1"), safe="~._-{}") for part in parts)


def _resolved(document: Schema, reference: Schema) -> Schema:
    found: Any = document
    for part in reference["$ref"].removeprefix("#/").split("/"):
        found = found[unquote(part).replace("~1", "/").replace("~0", "~")]
    assert isinstance(found, dict)
    return found
