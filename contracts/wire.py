"""How records become bytes and back, across format versions.

Every record carries `v`, its format version. Within a version fields are only added, each with a default:
an older reader ignores what it does not know, a newer one fills in what is absent. A change that an older
reader would misread raises the version, one more value of an enumeration among them, and the older reader refuses the
record instead of guessing: it hands the task back, for a newer peer (docs/upgrades.md). A record that holds others has
the highest version of them.

A record that is stored again is copied as bytes, or changed through `amend`, so that a field this process
does not know survives the passage through it. Those that whoever comes next replaces as a whole (a line's mark, seats,
buckets, breakers) may within a version only get fields whose loss does no harm.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec

from contracts.errors import ContractError, NewerFormat

FORMAT: Final = 2
"""The newest record format this code reads."""
PLAIN: Final = 1
"""The format that is written, but for what refers to an object in the place of a payload or value: that is of 2."""

JSON: Final = "application/json"
MSGPACK: Final = "application/msgpack"
ContentType = Literal["application/json", "application/msgpack"]

RECORD_NAME: Final = "x-record"
"""Says in a record's JSON Schema which record it is."""

T = TypeVar("T")


class _Version(msgspec.Struct):
    v: int = PLAIN


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The base of what is stored or travels in a header."""

    # A factory, so that `omit_defaults` never leaves the version out.
    v: Annotated[int, msgspec.Meta(description="Version of the record's format.")] = msgspec.field(
        default_factory=lambda: PLAIN
    )

    def __post_init__(self) -> None:
        if self.v > FORMAT:
            raise NewerFormat(_newer(self.v))

    # FastStream's AsyncAPI generator asks pydantic to describe what a subscriber takes, and pydantic asks this.

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> dict[str, Any]:
        return {"type": "is-instance", "cls": cls}

    @classmethod
    def __get_pydantic_json_schema__(cls, _core_schema: Any, _handler: Any) -> dict[str, Any]:
        (reference,), definitions = msgspec.json.schema_components([cls])
        return {RECORD_NAME: cls.__name__, **_inlined(reference, definitions)}


# At the end only: what comes before may quote what the bytes say.
_PATH = re.compile(r" - at `(?:key` in `)?([^`]*)`$")
_json_encoder = msgspec.json.Encoder(order="deterministic")
_msgpack_encoder = msgspec.msgpack.Encoder(order="deterministic")
_json_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}
_msgpack_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}


def content_type(header: str | None) -> ContentType:
    """The content type that a header names; JSON where there is none.

    Raises:
        ContractError: it is neither JSON nor MessagePack.
    """
    if header is None:
        return "application/json"
    media = header.partition(";")[0].strip().lower()
    if media in ("application/json", ""):
        return "application/json"
    if media in ("application/msgpack", "application/x-msgpack", "application/vnd.msgpack"):
        return "application/msgpack"
    raise ContractError(f"content type {header[:80]!r} is neither {JSON} nor {MSGPACK}")


def encode(value: Any, as_type: ContentType = "application/json") -> bytes:
    """The value as bytes; mappings sorted by key, so that equal values give equal bytes."""
    return _msgpack_encoder.encode(value) if as_type == MSGPACK else _json_encoder.encode(value)


def decode(shape: type[T], data: bytes, as_type: ContentType = "application/json") -> T:
    """The bytes as a `shape`.

    Raises:
        ContractError: they are malformed, or something in them is not as the shape says; `path` names it.
    """
    decoder: msgspec.json.Decoder[Any] | msgspec.msgpack.Decoder[Any]
    if as_type == MSGPACK:
        decoder = _msgpack_decoders.get(shape) or _msgpack_decoders.setdefault(shape, msgspec.msgpack.Decoder(shape))
    else:
        decoder = _json_decoders.get(shape) or _json_decoders.setdefault(shape, msgspec.json.Decoder(shape))
    try:
        decoded: T = decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if isinstance(shape, type) and issubclass(shape, Record) and (version := _version(data, as_type)) > FORMAT:
            # Which of its fields reads wrongly here says nothing.
            raise NewerFormat(_newer(version)) from error
        raise contract_error(error) from error
    return decoded


def _version(data: bytes, as_type: ContentType) -> int:
    """The version that a record says it has, where the rest cannot be read."""
    decoder = msgspec.msgpack.decode if as_type == MSGPACK else msgspec.json.decode
    try:
        return decoder(data, type=_Version).v
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return PLAIN


def _newer(version: int) -> str:
    return f"format {version} is newer than {FORMAT}, the newest this process reads"


def readable(shape: type[T], many: Iterable[bytes]) -> Iterator[T]:
    """Those of many JSON answers that are as the shape says; one peer's nonsense must not silence the others."""
    for data in many:
        try:
            yield decode(shape, data)
        except ContractError:
            continue


def contract_error(error: Exception) -> ContractError:
    """What a decoder said, with the field's path apart: `$.lines[3]`."""
    found = _PATH.search(str(error))
    kind = NewerFormat if isinstance(error.__cause__, NewerFormat) else ContractError
    return kind(str(error), path=found[1] if found else "")


def amend(data: bytes, changes: dict[str, Any], as_type: ContentType = "application/json") -> bytes:
    """A stored record with some top-level fields replaced and every other one kept, known or not.

    Raises:
        ContractError: the data is not an object.
    """
    fields = decode(dict[str, msgspec.Raw], data, as_type)
    return encode({**fields, **changes}, as_type)


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    # Pydantic takes no reference but its own.
    if isinstance(schema, list):
        return [_inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {key: _inlined(value, definitions) for key, value in schema.items()}
