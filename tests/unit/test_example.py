"""Example payloads: what a schema's own type takes without complaint."""

from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
import pydantic
import pytest
from msgspec import Meta

from mesh.cli.example import example
from mesh.payload import Shape, encode


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Point(msgspec.Struct):
    x: int
    y: float = 0.0


class Tree(msgspec.Struct):
    name: str
    below: "list[Tree]"


class Everything(msgspec.Struct):
    text: str
    short: Annotated[str, Meta(max_length=2)]
    long: Annotated[str, Meta(min_length=9)]
    size: Annotated[int, Meta(ge=7, lt=9)]
    share: Annotated[float, Meta(gt=0, lt=1)]
    colour: Colour
    word: Literal["a", "b"]
    at: Annotated[datetime, Meta(tz=True)]
    id: UUID
    points: list[Point]
    pair: tuple[int, str]
    table: dict[str, int]
    maybe: Point | None
    left_out: int = 3


@dataclass
class Plain:
    name: str
    many: list[int]


class Model(pydantic.BaseModel):
    name: str
    points: list[int]
    inner: "Inner"


class Inner(pydantic.BaseModel):
    value: float


@pytest.mark.parametrize(
    "annotation",
    [str, int, float, bool, list[int], dict[str, int], Point, Tree, Everything, Plain, Model, Point | None],
    ids=str,
)
def test_the_example_of_a_types_schema_is_of_that_type(annotation: Any) -> None:
    shape: Shape[Any] = Shape(annotation)

    shape.decode(encode(example(shape.schema())))


def test_an_example_holds_what_is_required_and_no_more() -> None:
    assert example(Shape(Point).schema()) == {"x": 1}


def test_a_type_within_itself_is_not_entered_twice() -> None:
    assert example(Shape(Tree).schema()) == {"name": "text", "below": []}


def test_where_nothing_is_required_the_first_field_shows_the_way() -> None:
    class Options(msgspec.Struct):
        name: str = ""
        size: int = 1

    assert example(msgspec.json.schema(Options)) == {"name": "text"}


def test_no_payload_has_no_example() -> None:
    assert example(Shape(type(None)).schema()) is None


def test_a_schema_that_points_at_itself_ends() -> None:
    endless = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}
    nested = {
        "$ref": "#/$defs/a",
        "$defs": {"a": {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"]}},
    }

    assert example(endless) is None
    assert isinstance(example(nested), dict)


def test_an_example_that_its_author_gives_is_taken() -> None:
    assert example({"type": "string", "examples": ["order-42"]}) == "order-42"
