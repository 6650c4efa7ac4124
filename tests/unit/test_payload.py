"""Payload types: builtins, structs, dataclasses, pydantic models, alone and inside each other."""

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Literal, NamedTuple, TypedDict
from uuid import UUID

import msgspec
import pydantic
import pytest

from contracts import wire
from contracts.errors import ContractError
from contracts.wire import ContentType
from mesh import payload as payloads
from mesh.payload import ANYTHING, Shape

CONTENT_TYPES: list[ContentType] = ["application/json", "application/msgpack"]


class Colour(StrEnum):
    RED = "red"


class Point(msgspec.Struct, frozen=True):
    x: int
    y: Annotated[int, msgspec.Meta(ge=0)] = 0


@dataclass(frozen=True)
class Size:
    width: int
    unit: str = "px"


class Pair(NamedTuple):
    left: int
    right: str


class Options(TypedDict, total=False):
    deep: bool


class Author(pydantic.BaseModel):
    name: str
    born: datetime | None = None


class Book(pydantic.BaseModel):
    title: str
    authors: list[Author] = []
    isbn: str = pydantic.Field(default="", alias="ISBN")


class Shelf(msgspec.Struct):
    books: list[Book]
    by_room: dict[str, Author] = {}


class Node(pydantic.BaseModel):
    name: str
    children: "list[Node]" = []


BORN = datetime(1947, 4, 4, tzinfo=UTC)
BOOK = Book(title="Ill Wind", authors=[Author(name="Ann", born=BORN)], ISBN="123")

VALUES: list[tuple[Any, Any]] = [
    (int, 3),
    (str, "ü🐦"),
    (bool, True),
    (type(None), None),
    (float, 0.5),
    (bytes, b"\x00\xff"),
    (list[int], [1, 2]),
    (dict[str, float], {"a": 1.5}),
    (set[int], {1, 2}),
    (tuple[int, str], (1, "a")),
    (int | None, None),
    (Literal["a", "b"], "b"),
    (Colour, Colour.RED),
    (datetime, BORN),
    (UUID, UUID(int=7)),
    (Decimal, Decimal("1.10")),
    (Point, Point(1, 2)),
    (list[Point], [Point(1), Point(2)]),
    (Size, Size(3, "em")),
    (Pair, Pair(1, "b")),
    (Options, {"deep": True}),
    (Author, Author(name="Ann", born=BORN)),
    (Book, BOOK),
    (Shelf, Shelf([BOOK], {"attic": Author(name="Bo")})),
    (dict[str, list[Book]], {"a": [BOOK]}),
    (Book | None, BOOK),
    (Node, Node(name="a", children=[Node(name="b")])),
]


@pytest.mark.parametrize("as_type", CONTENT_TYPES)
@pytest.mark.parametrize(("annotation", "value"), VALUES, ids=str)
def test_a_value_survives_the_wire(annotation: Any, value: Any, as_type: ContentType) -> None:
    shape = Shape[Any](annotation)

    decoded = shape.decode(payloads.encode(value, as_type), as_type)

    assert decoded == value
    assert type(decoded) is type(value)


@pytest.mark.parametrize("as_type", CONTENT_TYPES)
@pytest.mark.parametrize(("annotation", "value"), VALUES, ids=str)
def test_a_value_of_its_type_is_encoded_as_any_other(annotation: Any, value: Any, as_type: ContentType) -> None:
    assert Shape[Any](annotation).encode(value, as_type) == payloads.encode(value, as_type)


@pytest.mark.parametrize(("annotation", "value"), VALUES, ids=str)
def test_a_schema_holds_everything_that_it_refers_to(annotation: Any, value: Any) -> None:
    schema = Shape[Any](annotation).schema()

    assert list(dangling(schema)) == []


def dangling(schema: dict[str, Any]) -> Any:
    def references(node: Any) -> Any:
        if isinstance(node, list):
            for item in node:
                yield from references(item)
        elif isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                yield node["$ref"]
            for item in node.values():
                yield from references(item)

    known = {f"#/$defs/{name}" for name in schema.get("$defs", {})}
    return (reference for reference in references(schema) if reference not in known)


def test_the_schema_of_a_model_inside_a_struct_describes_it() -> None:
    schema = Shape(Shelf).schema()

    shelf = schema["$defs"]["Shelf"]["properties"]["books"]["items"]
    author = shelf["properties"]["authors"]["items"]["$ref"].removeprefix("#/$defs/")
    assert set(shelf["properties"]) == {"title", "authors", "ISBN"}
    assert set(schema["$defs"][author]["properties"]) == {"name", "born"}


def test_types_of_the_same_name_are_described_apart() -> None:
    def other() -> Any:
        class Point(msgspec.Struct):
            name: str

        return Point

    described, definitions = payloads.schemas([Point, other()])

    first, second = (definitions[schema["$ref"].removeprefix("#/$defs/")] for schema in described)
    assert set(first["properties"]) == {"x", "y"}
    assert set(second["properties"]) == {"name"}


@pytest.mark.parametrize(
    ("annotation", "data", "path"),
    [
        (Point, b'{"x":"1"}', "$.x"),
        (list[Point], b'[{"x":1},{"x":1,"y":-1}]', "$[1].y"),
        (Size, b'{"width":null}', "$.width"),
        (Book, b'{"title":1}', "$.title"),
        (Book, b'{"title":"a","authors":[{"name":"x"},{}]}', "$.authors[1].name"),
        (Shelf, b'{"books":[{"title":"a"},{"title":"b","authors":[{"name":4}]}]}', "$.books[1].authors[0].name"),
        (dict[str, list[Book]], b'{"a":[{}]}', "$[...][0].title"),
    ],
)
def test_an_error_names_the_path_of_what_is_wrong(annotation: Any, data: bytes, path: str) -> None:
    shape = Shape[Any](annotation)

    for as_type in CONTENT_TYPES:
        encoded = wire.encode(wire.decode(object, data), as_type)
        with pytest.raises(ContractError) as caught:
            shape.decode(encoded, as_type)

        assert caught.value.path == path
        assert str(caught.value).endswith(f"at `{path}`")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("annotation", "value", "path"),
    [
        (Point, Point("1"), "$.x"),  # type: ignore[arg-type]  # wrong on purpose
        (list[Point], [Point(1), {"y": 1}], "$[1]"),
        (list[int], [1, "2"], "$[1]"),
        (Shelf, {"books": [{"title": 3}]}, "$.books[0].title"),
    ],
)
def test_a_value_of_another_type_is_refused_before_it_is_sent(annotation: Any, value: Any, path: str) -> None:
    with pytest.raises(ContractError) as caught:
        Shape[Any](annotation).encode(value)

    assert caught.value.path == path


@pytest.mark.parametrize("annotation", [object(), asyncio_like := type("Socket", (), {}), complex, list[asyncio_like]])
def test_a_type_that_cannot_be_described_cannot_travel(annotation: Any) -> None:
    with pytest.raises(ContractError, match="cannot travel as a payload"):
        Shape(annotation)


UNCARRIED: list[Any] = [object(), [object()], {"a": print}, 1j]


@pytest.mark.parametrize(
    ("value", "as_type"),
    # JSON has no largest integer, MessagePack has.
    [*((value, as_type) for value in UNCARRIED for as_type in CONTENT_TYPES), (2**70, wire.MSGPACK)],
    ids=lambda part: part if isinstance(part, str) else type(part).__name__,
)
def test_a_value_that_cannot_be_encoded_is_a_contract_error(value: Any, as_type: ContentType) -> None:
    with pytest.raises(ContractError, match="cannot travel"):
        payloads.encode(value, as_type)


def test_a_value_that_holds_itself_is_a_contract_error() -> None:
    ring: list[Any] = []
    ring.append(ring)

    with pytest.raises(ContractError, match="cannot travel"):
        payloads.encode(ring)


@pytest.mark.parametrize("as_type", CONTENT_TYPES)
def test_equal_values_give_equal_bytes(as_type: ContentType) -> None:
    forwards = {"a": Book(title="x", ISBN="1"), "b": {3, 1, 2}, "c": {"x": 1, "y": 2}}
    backwards = {"c": {"y": 2, "x": 1}, "b": {2, 1, 3}, "a": Book(ISBN="1", title="x")}

    assert payloads.encode(forwards, as_type) == payloads.encode(backwards, as_type)


def test_a_model_travels_under_the_names_that_it_reads() -> None:
    encoded = payloads.encode(BOOK)

    assert b'"ISBN":"123"' in encoded
    assert Shape(Book).decode(encoded) == BOOK


def test_what_is_not_typed_comes_back_as_plain_values() -> None:
    assert ANYTHING.decode(payloads.encode(Shelf([BOOK]))) == {
        "books": [{"title": "Ill Wind", "authors": [{"name": "Ann", "born": "1947-04-04T00:00:00Z"}], "ISBN": "123"}],
        "by_room": {},
    }


@pytest.mark.parametrize("as_type", CONTENT_TYPES)
def test_a_deeply_nested_payload_is_a_contract_error(as_type: ContentType) -> None:
    opening = b"[" if as_type == wire.JSON else b"\x91"

    with pytest.raises(ContractError):
        ANYTHING.decode(opening * 100_000, as_type)
