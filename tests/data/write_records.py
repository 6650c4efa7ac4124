"""Writes `tests/data/records`: each kind of record as this version writes it, bare and with every field set.

    python -m tests.data.write_records

Files that exist are left as they are: they say what was stored once, and are read for ever after. A record that gets a
field, or a new kind of record, gets a new file beside them; `FULL` counts the versions of what a full record has.
"""

from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect

from contracts import wire
from mesh.catalogue import RECORDS

FOLDER = Path(__file__).parent / "records"
FULL = "full-1"
TEXT = "text"


def full(kind: type[msgspec.Struct]) -> Any:
    """A record with something in every field."""
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    return _struct(info)


def bare(kind: type[msgspec.Struct]) -> Any:
    """A record with nothing but what it must have."""
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    return kind(**{field.name: _sample(field.type, field.name) for field in info.fields if field.required})


def _struct(info: inspect.StructType) -> Any:
    given = {field.name: _sample(field.type, field.name) for field in info.fields if field.name != "v"}
    return info.cls(**given)


def _sample(of: inspect.Type, name: str) -> Any:
    match of:
        case inspect.Metadata(type=inner):
            return _sample(inner, name)
        case inspect.UnionType(types=types):
            return _sample(next(each for each in types if not isinstance(each, _EMPTY)), name)
        case inspect.StructType():
            return _struct(of)
        case inspect.EnumType(cls=cls):
            return list(cls)[-1]
        case inspect.LiteralType(values=values):
            return values[-1]
        case inspect.StrType():
            return "a" * 64 if name == "digest" else name.replace("_", "-")
        case inspect.BoolType():
            return True
        case inspect.IntType():
            return 5_000 if name == "bytes" else 3
        case inspect.FloatType():
            return 0.75
        case inspect.DictType(value_type=value):
            return {TEXT: _sample(value, name)}
        case inspect.VarTupleType(item_type=item) | inspect.ListType(item_type=item):
            return (_sample(item, name),)
        case inspect.TupleType(item_types=items):
            return tuple(_sample(item, name) for item in items)
        case inspect.RawType():
            return msgspec.Raw(b'{"any":["value",1]}')
        case inspect.AnyType():
            return {"any": ["value", 1]}
    raise TypeError(f"no sample of {of}")


_EMPTY = (inspect.NoneType, inspect.UnsetType) if hasattr(inspect, "UnsetType") else (inspect.NoneType,)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for kind in RECORDS:
        for name, record in ((FULL, full(kind)), ("bare-1", bare(kind))):
            file = FOLDER / f"{kind.__name__}.{name}.json"
            if not file.exists():
                file.write_bytes(wire.encode(record) + b"\n")


if __name__ == "__main__":
    main()
