"""Records as earlier versions stored them are read for ever after; `tests/data/write_records.py` wrote the files."""

from pathlib import Path

import msgspec
import pytest

from contracts import wire
from contracts.errors import NewerFormat
from mesh.catalogue import RECORDS
from tests.data.write_records import FOLDER, FULL, bare, full

FILES = sorted(FOLDER.glob("*.json"))
KINDS = {kind.__name__: kind for kind in RECORDS}


def kind_of(file: Path) -> type[msgspec.Struct]:
    return KINDS[file.name.partition(".")[0]]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_record_that_was_stored_once_is_read_and_written_as_it_was(file: Path) -> None:
    stored = file.read_bytes().strip()

    assert wire.encode(wire.decode(kind_of(file), stored)) == stored


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_every_kind_of_record_is_kept_as_it_is_written_today(kind: type[msgspec.Struct]) -> None:
    kept = [file.read_bytes().strip() for file in FILES if kind_of(file) is kind]

    assert wire.encode(full(kind)) in kept, f"raise {FULL!r}, and run python -m tests.data.write_records"
    assert wire.encode(bare(kind)) in kept


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_field_that_is_not_known_is_ignored(file: Path) -> None:
    stored = file.read_bytes().strip()
    newer = wire.amend(stored, {"since_then": {"colour": "blue"}})

    assert wire.decode(kind_of(file), newer) == wire.decode(kind_of(file), stored)


@pytest.mark.parametrize("as_type", ["application/json", "application/msgpack"])
@pytest.mark.parametrize("file", [file for file in FILES if FULL in file.name], ids=lambda file: file.stem)
def test_a_newer_format_is_told_as_such_whatever_became_of_its_fields(file: Path, as_type: wire.ContentType) -> None:
    kind = kind_of(file)
    if not issubclass(kind, wire.Record):
        return
    fields = msgspec.json.decode(file.read_bytes(), type=dict[str, object])
    changed = {name: {"is": "something else"} for name in fields if name != "v"}

    with pytest.raises(NewerFormat, match=f"format {wire.FORMAT + 1} is newer"):
        wire.decode(kind, wire.encode({**changed, "v": wire.FORMAT + 1}, as_type), as_type)
