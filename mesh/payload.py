"""Typed payloads: a Python type that knows its bytes, its JSON Schema and its errors.

msgspec structs, builtins and dataclasses go through msgspec as they are; pydantic models, at any depth,
through their own validation.
"""

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
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            path = "$" + "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in first["loc"])
            raise ContractError(f"{first['msg']} - at `{path}`", path=path) from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise wire.contract_error(error) from error
        return decoded

    def check(self, value: Any) -> None:
        """Refuse a value that is not of this type.

        Raises:
            ContractError: it is not; the message names the field's path.
        """
        if self.annotation is Any:
            return
        try:
            msgspec.convert(
                msgspec.to_builtins(value, enc_hook=_encode_foreign), self.annotation, dec_hook=_decode_foreign
            )
        except pydantic.ValidationError as error:
            raise ContractError(str(error)) from error
        except msgspec.ValidationError as error:
            raise wire.contract_error(error) from error

    def schema(self) -> dict[str, Any]:
        """JSON Schema of the type, self-contained."""
        return msgspec.json.schema(self.annotation, schema_hook=_foreign_schema)

    def __repr__(self) -> str:
        return f"Shape({_name(self.annotation)})"


def encode(value: Any, as_type: ContentType = "application/json") -> bytes:
    """Any carried value as bytes; equal values give equal bytes.

    Raises:
        ContractError: the value holds something that cannot travel.
    """
    try:
        return _msgpack_encoder.encode(value) if as_type == wire.MSGPACK else _json_encoder.encode(value)
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        raise ContractError(f"{type(value).__name__} cannot travel: {error}") from error


def _encode_foreign(value: Any) -> Any:
    if isinstance(value, pydantic.BaseModel):
        return value.model_dump(mode="json")
    raise NotImplementedError(f"objects of type {type(value).__name__} cannot be encoded")


def _decode_foreign(annotation: type[Any], value: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return annotation.model_validate(value)
    raise NotImplementedError(f"{_name(annotation)} cannot be decoded")


def _foreign_schema(annotation: type[Any]) -> dict[str, Any]:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return annotation.model_json_schema()
    raise NotImplementedError(f"{_name(annotation)} has no JSON Schema")


_json_encoder = msgspec.json.Encoder(enc_hook=_encode_foreign, order="deterministic")
_msgpack_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_foreign, order="deterministic")


def _name(annotation: Any) -> str:
    return getattr(annotation, "__name__", None) or str(annotation)


ANYTHING: Final[Shape[Any]] = Shape(Any)
"""What is not typed by the caller: JSON-like builtins."""
