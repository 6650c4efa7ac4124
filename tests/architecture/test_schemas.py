"""The checked-in JSON Schemas of all records are those of the code. `mesh contracts records` refreshes them."""

import importlib
import json
import pkgutil
from pathlib import Path
from typing import Any

import pytest

import contracts
from contracts.wire import Record
from mesh.catalogue import RECORDS, record_schemas

CHECKED_IN = Path(__file__).resolve().parents[2] / "contracts" / "schemas"


def test_checked_in_schemas_are_current() -> None:
    checked_in = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in CHECKED_IN.glob("*.json")}

    assert checked_in == json.loads(json.dumps(record_schemas())), "refresh them: mesh contracts records"


def test_every_record_is_in_the_catalogue() -> None:
    for module in pkgutil.iter_modules(contracts.__path__):
        importlib.import_module(f"contracts.{module.name}")

    records = {record for record in Record.__subclasses__() if record.__module__.startswith("contracts.")}

    assert records <= set(RECORDS)
    assert [record.__name__ for record in RECORDS] == sorted(record.__name__ for record in RECORDS)


@pytest.mark.parametrize(("name", "schema"), record_schemas().items(), ids=lambda value: value if value else "")
def test_every_field_of_a_record_says_what_it_means(name: str, schema: dict[str, Any]) -> None:
    silent = [
        f"{owner}.{field}"
        for owner, definition in schema["$defs"].items()
        for field, told in definition.get("properties", {}).items()
        if not told.get("description")
    ]

    assert silent == []
