"""Typed payloads: a Python type that knows its bytes, its JSON Schema and its errors.

msgspec structs, builtins and dataclasses go through msgspec as they are; pydantic models, at any depth,
through their own validation.
"""

import inspect
import re
from collections.abc import Iterable
from typing import Any, Final, Generic, TypeVar

import msgspec
import pydantic

from contracts import wire
from contracts.errors import ContractError
from contracts.wire import ContentType

T = TypeVar("T")


class Shape(Generic[T]):
    """One type that payloads or values have.

    Raises:
        ContractError: the type cannot be carried (it has no schema).
    """

    def __init__(self, annotation: Any) -> None:
        self.annotation = annotation
        try:
            self._json = msgspec.json.Decoder(annotation, dec_hook=_decode_foreign)
            self._msgpack = msgspec.msgpack.Decoder(annotation, dec_hook=_decode_foreign)
            if annotation is not Any:
                self.schema()
        except (TypeError, NotImplementedError, pydantic.errors.PydanticUserError) as error:
            raise ContractError(f"{_name(annotation)} cannot travel as a payload: {error}") from error

    def decode(self, data: bytes, as_type: ContentType = "application/json") -> T:
        """The bytes as this type.

        Raises:
            ContractError: they are not; the message names the field's path.
        """
        try:
            decoded: T = self._msgpack.decode(data) if as_type == wire.MSGPACK else self._json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _contract_error(error) from error
        return decoded

    def encode(self, value: Any, as_type: ContentType = "application/json") -> bytes:
        """The value as bytes that decode to this type again; equal values give equal bytes.

        Raises:
            ContractError: the value is not of this type, or holds something that cannot travel.
        """
        encoded = encode(value, as_type)
        if self.annotation is not Any:
            self.decode(encoded, as_type)
        return encoded

    def schema(self) -> dict[str, Any]:
        """JSON Schema of the type, self-contained."""
        (schema,), definitions = schemas([self.annotation])
        return {**schema, "$defs": definitions} if definitions else schema

    def __repr__(self) -> str:
        return f"Shape({_name(self.annotation)})"


def encode(value: Any, as_type: ContentType = "application/json") -> bytes:
    """Any carried value as bytes; equal values give equal bytes.

    Raises:
        ContractError: the value holds something that cannot travel.
    """
    try:
        return _msgpack_encoder.encode(value) if as_type == wire.MSGPACK else _json_encoder.encode(value)
    except (TypeError, ValueError, NotImplementedError, RecursionError, OverflowError) as error:
        raise ContractError(f"{type(value).__name__} cannot travel: {error}") from error


def schemas(
    annotations: Iterable[Any], ref_template: str = "#/$defs/{name}"
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """JSON Schemas of several types in their order, and the definitions that they refer to, by name."""
    definitions: dict[str, dict[str, Any]] = {}

    def foreign(annotation: type[Any]) -> dict[str, Any]:
        if not (isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel)):
            raise NotImplementedError(f"{_name(annotation)} has no JSON Schema")
        # Under the model's full name: pydantic names what is nested only apart from its own.
        owner = re.sub(r"[^\w.-]", "_", f"{annotation.__module__}.{annotation.__name__}")
        schema = annotation.model_json_schema(ref_template=ref_template.replace("{name}", f"{owner}.{{model}}"))
        nested = schema.pop("$defs", {})
        definitions.update({f"{owner}.{name}": definition for name, definition in nested.items()})
        return schema

    described, components = msgspec.json.schema_components(annotations, schema_hook=foreign, ref_template=ref_template)
    for component in components.values():
        if "description" in component:
            component["description"] = inspect.cleandoc(component["description"])
    return list(described), {**components, **definitions}


def _encode_foreign(value: Any) -> Any:
    if isinstance(value, pydantic.BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    raise NotImplementedError(f"objects of type {type(value).__name__} cannot be encoded")


def _decode_foreign(annotation: type[Any], value: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return annotation.model_validate(value)
    raise NotImplementedError(f"{_name(annotation)} cannot be decoded")


def _contract_error(error: Exception) -> ContractError:
    told = wire.contract_error(error)
    cause = error.__cause__
    if not isinstance(cause, pydantic.ValidationError):
        return told
    first = cause.errors(include_url=False, include_input=False)[0]
    path = (told.path or "$") + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
    return ContractError(f"{first['msg']} - at `{path}`", path=path)


_json_encoder = msgspec.json.Encoder(enc_hook=_encode_foreign, order="deterministic")
_msgpack_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_foreign, order="deterministic")


def _name(annotation: Any) -> str:
    return getattr(annotation, "__name__", None) or str(annotation)


ANYTHING: Final[Shape[Any]] = Shape(Any)
"""What is not typed by the caller: JSON-like builtins."""

_shapes: dict[Any, Shape[Any]] = {Any: ANYTHING}


def shape_of(annotation: Any) -> Shape[Any]:
    """The shape of a type, made once where the type can be remembered.

    Raises:
        ContractError: the type cannot travel.
    """
    try:
        shape = _shapes.get(annotation)
    except TypeError:
        return Shape(annotation)
    if shape is None:
        shape = _shapes[annotation] = Shape(annotation)
    return shape
