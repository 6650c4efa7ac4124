"""An example of what a JSON Schema describes, to be typed after `mesh submit`."""

from collections.abc import Mapping
from typing import Any, Final

_STRINGS: Final = {
    "date-time": "2026-01-31T12:00:00Z",
    "date": "2026-01-31",
    "time": "12:00:00Z",
    "duration": "PT1H",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "email": "someone@example.org",
    "uri": "https://example.org",
}


def example(schema: Mapping[str, Any]) -> Any:
    """A small value that fits a schema: required fields, first alternatives, shortest lists.

    It knows what JSON Schemas of Python types hold; patterns and cross-field rules it does not.
    """
    return _example(schema, schema, frozenset())


def _example(schema: Mapping[str, Any], root: Mapping[str, Any], inside: frozenset[str]) -> Any:
    """`inside` are the references that this value lies within: none is entered twice."""
    if (reference := schema.get("$ref")) is not None:
        if reference in inside:
            return None
        return _example(_at(root, reference), root, inside | {reference})
    if "const" in schema:
        return schema["const"]
    for field in ("examples", "enum"):
        if schema.get(field):
            return schema[field][0]
    if (alternatives := schema.get("anyOf") or schema.get("oneOf")) is not None:
        return _example(_simplest(alternatives, inside), root, inside)
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((one for one in kind if one != "null"), "null")
    match kind:
        case "object":
            return _object(schema, root, inside)
        case "array":
            return _array(schema, root, inside)
        case "string":
            text = _STRINGS.get(schema.get("format", ""), "text")
            return text.ljust(schema.get("minLength", 0), ".")[: schema.get("maxLength")]
        case "integer" | "number":
            return _number(schema)
        case "boolean":
            return True
        case _:
            return None


def _object(schema: Mapping[str, Any], root: Mapping[str, Any], inside: frozenset[str]) -> dict[str, Any]:
    properties: Mapping[str, Any] = schema.get("properties", {})
    # Where nothing is required, the first field shows what a payload looks like.
    wanted = schema.get("required") or list(properties)[:1]
    return {name: _example(properties[name], root, inside) for name in wanted if name in properties}


def _array(schema: Mapping[str, Any], root: Mapping[str, Any], inside: frozenset[str]) -> list[Any]:
    if "prefixItems" in schema:
        return [_example(item, root, inside) for item in schema["prefixItems"]]
    items = schema.get("items")
    if not isinstance(items, Mapping) or items.get("$ref") in inside:
        return []
    return [_example(items, root, inside)] * max(1, schema.get("minItems", 0))


def _number(schema: Mapping[str, Any]) -> float:
    is_whole = schema.get("type") == "integer"
    step = 1 if is_whole else 0.5
    number: float = 1 if is_whole else 1.0
    if "minimum" in schema:
        number = max(number, schema["minimum"])
    if "exclusiveMinimum" in schema:
        number = max(number, schema["exclusiveMinimum"] + step)
    if "maximum" in schema:
        number = min(number, schema["maximum"])
    if "exclusiveMaximum" in schema:
        number = min(number, schema["exclusiveMaximum"] - step)
    return number


def _simplest(alternatives: list[Mapping[str, Any]], inside: frozenset[str]) -> Mapping[str, Any]:
    open_ones = [one for one in alternatives if one.get("$ref") not in inside]
    return next((one for one in open_ones if one.get("type") != "null"), (open_ones or alternatives)[0])


def _at(root: Mapping[str, Any], reference: str) -> Mapping[str, Any]:
    found: Any = root
    for token in reference.removeprefix("#/").split("/"):
        found = found.get(token.replace("~1", "/").replace("~0", "~"), {})
    return found if isinstance(found, Mapping) else {}
