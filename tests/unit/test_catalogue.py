"""JSON Schemas and the AsyncAPI document: whole, true to the peer, and free of secrets."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pydantic
import pytest
from faststream.specification import AsyncAPI
from typer.testing import CliRunner

from contracts.subjects import LANES
from mesh.agent import Agent
from mesh.catalogue import asyncapi, capability_schemas
from mesh.cli.contracts import contracts as commands
from mesh.errors import SetupError
from mesh.peer import Peer
from mesh.settings import Settings

COMPONENT = re.compile(r"[A-Za-z0-9._-]+")


class Author(pydantic.BaseModel):
    name: str


class Book(pydantic.BaseModel):
    authors: list[Author]


class Outcome(msgspec.Struct):
    """An author's own, named as one of ours."""

    books: list[Book]


reader = Agent("reader", version="2.1.0")
writer = Agent("writer", version="3.0.0")


@reader.handles("read")
async def read(path: str) -> Outcome:
    """Read what is there."""
    raise NotImplementedError


@writer.handles("write")
def write(book: Book) -> None:
    return None


@writer.handles("rest")
async def rest() -> None:
    return None


@pytest.fixture
def settings() -> Settings:
    return Settings(nats_url="nats://someone:hidden@broker.example:4222", prefix="acme.mesh")


@pytest.fixture
def document(settings: Settings) -> dict[str, Any]:
    return asyncapi([reader.hosted, writer.hosted], settings)


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, list):
        for item in node:
            yield from nodes(item)
    elif isinstance(node, dict):
        yield node
        for item in node.values():
            yield from nodes(item)


def resolved(document: dict[str, Any], reference: str) -> Any:
    assert reference.startswith("#/")
    found: Any = document
    for part in reference.removeprefix("#/").split("/"):
        found = found[part.replace("~1", "/").replace("~0", "~")]
    return found


def messages(document: dict[str, Any], operation: dict[str, Any]) -> list[dict[str, Any]]:
    return [resolved(document, message["$ref"]) for message in operation["messages"]]


def test_every_reference_resolves(document: dict[str, Any]) -> None:
    references = [node["$ref"] for node in nodes(document) if "$ref" in node]

    assert references
    for reference in references:
        assert isinstance(resolved(document, reference), dict)


def test_every_operation_has_a_channel_of_the_document_and_messages_of_that_channel(document: dict[str, Any]) -> None:
    for operation in document["operations"].values():
        for spoken in (operation, operation.get("reply")):
            if spoken is None:
                continue
            channel = spoken["channel"]["$ref"]
            assert channel.removeprefix("#/channels/") in document["channels"]
            assert spoken["messages"]
            assert all(message["$ref"].startswith(f"{channel}/messages/") for message in spoken["messages"])

        assert operation["action"] in ("send", "receive")
        assert operation["description"]


def test_every_message_has_a_payload_schema(document: dict[str, Any]) -> None:
    for channel in document["channels"].values():
        assert channel["messages"]
        for message in channel["messages"].values():
            assert isinstance(message["payload"], dict)
            assert message["payload"]


def test_every_channel_is_used_and_described(document: dict[str, Any]) -> None:
    used = {
        spoken["channel"]["$ref"].removeprefix("#/channels/")
        for operation in document["operations"].values()
        for spoken in (operation, operation.get("reply"))
        if spoken is not None
    }

    assert used == set(document["channels"])
    assert all(channel["description"] for channel in document["channels"].values())


def test_every_parameter_of_an_address_is_described(document: dict[str, Any]) -> None:
    for channel in document["channels"].values():
        parameters = re.findall(r"\{(\w+)\}", channel["address"] or "")

        assert list(channel.get("parameters", {})) == parameters
        assert not set(channel["address"] or "") & set("*>")


def test_names_of_components_are_such_as_asyncapi_takes(document: dict[str, Any]) -> None:
    assert all(COMPONENT.fullmatch(name) for kind in document["components"].values() for name in kind)


def test_all_planes_of_a_capability_are_told(document: dict[str, Any]) -> None:
    addresses = {channel["address"] for channel in document["channels"].values()}

    assert addresses == {
        None,
        "acme.mesh.beat.{peer}",
        "acme.mesh.control.{key}",
        "acme.mesh.ctl.all.describe",
        "acme.mesh.ctl.all.who-runs",
        "acme.mesh.event.{kind}.{capability}.{id}",
        "acme.mesh.event.decided.{capability}.{id}.{decision}",
        "acme.mesh.limit.rate.{resource}",
        "acme.mesh.limit.seats.{resource}",
    } | {
        f"acme.mesh.{address}"
        for name in ("read", "write", "rest")
        for address in (
            f"task.{name}.{{id}}",
            f"task@{{lane}}.{name}.{{id}}",
            f"result.{name}.{{id}}",
            f"done.{name}.{{id}}",
            f"part.{name}.{{id}}",
            f"step.{name}.{{id}}.{{name}}",
            f"line.{name}.{{order_key}}",
            f"dead.letter.{name}.{{id}}",
            f"ctl.{name}.distrust",
            f"ctl.{name}.who-runs",
            f"ctl.{name}.parts",
        )
    }
    lane = document["channels"]["task-lane.read"]["parameters"]["lane"]
    assert lane["enum"] == list(LANES)


def test_every_subject_that_the_peer_subscribes_to_is_told(document: dict[str, Any], settings: Settings) -> None:
    peer = Peer(reader.hosted, writer.hosted, settings=settings)
    received = {
        re.sub(r"\{\w+\}", "*", resolved(document, operation["channel"]["$ref"])["address"])
        for operation in document["operations"].values()
        if operation["action"] == "receive"
    }

    subscribed = {subscriber.subject.broker_address.replace(">", "*") for subscriber in peer.broker.subscribers}

    assert subscribed
    assert subscribed <= received


def test_every_question_has_an_answer(document: dict[str, Any]) -> None:
    answers = {
        name.removeprefix("receive.ctl."): [message["name"] for message in messages(document, operation["reply"])]
        for name, operation in document["operations"].items()
        if name.startswith("receive.ctl.")
    }

    assert answers == {
        "all.describe": ["Described"],
        "all.who-runs": ["Runs"],
        **{f"{name}.who-runs": ["Runs"] for name in ("read", "write", "rest")},
        **{f"{name}.distrust": ["Runs"] for name in ("read", "write", "rest")},
        **{f"{name}.parts": ["PartsKept"] for name in ("read", "write", "rest")},
    }


def test_a_task_is_what_its_capability_takes_and_is_answered_with_what_it_returns(document: dict[str, Any]) -> None:
    operation = document["operations"]["receive.task.read"]
    (task,) = messages(document, operation)
    (outcome,) = messages(document, operation["reply"])

    record, typed = outcome["payload"]["allOf"]
    value = resolved(document, typed["properties"]["value"]["$ref"])
    envelope = resolved(document, task["headers"]["properties"]["Mesh-Task"]["contentSchema"]["$ref"])

    assert operation["description"] == "Read what is there."
    assert operation["reply"]["channel"]["$ref"] == "#/channels/done.read"
    assert task["payload"] == {"type": "string"}
    assert "sends" in resolved(document, record["$ref"])["properties"]
    assert set(value["properties"]) == {"books"}
    assert "deadline" in envelope["properties"]


def test_a_beat_is_both_sent_and_heard_on_one_channel(document: dict[str, Any]) -> None:
    sent, heard = document["operations"]["send.beat"], document["operations"]["receive.beat"]

    assert sent["channel"] == heard["channel"]
    assert messages(document, sent)[0]["payload"] == {"$ref": "#/components/schemas/Beat"}


def test_the_document_keeps_the_credentials_of_the_server_to_itself(document: dict[str, Any]) -> None:
    assert [server["host"] for server in document["servers"].values()] == ["broker.example:4222"]
    assert "hidden" not in json.dumps(document)


def test_the_document_is_the_same_every_time(document: dict[str, Any], settings: Settings) -> None:
    again = asyncapi([writer.hosted, reader.hosted], settings)

    assert json.dumps(again["channels"]) == json.dumps(document["channels"])
    assert json.dumps(again["operations"]) == json.dumps(document["operations"])


def test_one_agent_alone_gives_the_document_its_name_and_version(settings: Settings) -> None:
    info = asyncapi([reader.hosted], settings)["info"]

    assert (info["title"], info["version"]) == ("reader", "2.1.0")


def test_no_server_is_needed() -> None:
    document = asyncapi([reader.hosted], Settings(nats_url=None))

    assert [server["host"] for server in document["servers"].values()] == ["localhost:4222"]


def test_faststreams_own_generator_describes_the_broker_of_a_peer(settings: Settings) -> None:
    peer = Peer(reader.hosted, settings=settings)

    generated = json.loads(AsyncAPI(peer.broker, schema_version="3.0.0").to_specification().to_json())

    beat = generated["components"]["schemas"]["BeatHeard:Message:Payload"]
    assert set(beat["properties"]) >= {"peer", "state", "load"}
    assert beat["properties"]["state"]["enum"] == ["draining", "ready", "starting"]


def test_schemas_of_a_capability_stand_alone() -> None:
    taken, returned = capability_schemas(read)

    assert taken == {"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "string"}
    assert set(resolved(returned, returned["$ref"])["properties"]) == {"books"}
    for node in nodes(returned):
        if "$ref" in node:
            assert isinstance(resolved(returned, node["$ref"]), dict)


AGENT_FILE = """
from mesh import Agent

agent = Agent("counter", version="1.0.0")

@agent.handles("count")
async def count(words: list[str]) -> int:
    return len(words)
"""


def test_the_command_writes_everything_into_a_folder(tmp_path: Path) -> None:
    source, out = tmp_path / "counting_agent.py", tmp_path / "out"
    source.write_text(AGENT_FILE)

    done = CliRunner().invoke(commands, ["export", str(source), "--out", str(out), "--json"])

    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["capabilities"] == ["count"]
    assert told["files"] == sorted(str(path.relative_to(out)) for path in out.rglob("*.json"))
    assert {"asyncapi.json", "capabilities/count.input.json", "records/Task.json"} <= set(told["files"])
    assert json.loads((out / "asyncapi.json").read_text())["asyncapi"] == "3.0.0"
    assert json.loads((out / "capabilities/count.output.json").read_text())["type"] == "integer"


def test_the_command_says_where_it_cannot_write(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file")

    done = CliRunner().invoke(commands, ["records", "--out", str(taken)])

    assert isinstance(done.exception, SetupError)
    assert f"cannot write to {taken}" in str(done.exception)
