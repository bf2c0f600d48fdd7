"""The JSON files of a bundle against their JSON Schemas, which lie beside this module.

A validator of its own, for the few keywords that they use (`KEYWORDS`; tests compare its verdicts
with those of fastjsonschema): it names a field as people write it, a message is one line of bounded
length, and it starts at once, where compiling a schema takes longer than opening a bundle."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from paddle_recomp.errors import BundleError
from paddle_recomp.json_files import one_line, shown

RECOMP, GOLDEN = "recomp.schema.json", "golden.schema.json"
FILE = "bundle-file"
"""The `format` of strings that name a file of the bundle."""
KEYWORDS = {
    *("type", "enum", "const", "properties", "required", "additionalProperties", "items"),
    *("minimum", "maximum", "exclusiveMinimum", "minLength", "pattern", "format"),
    *("minItems", "maxItems", "minProperties"),
    *("$ref", "$defs", "$schema", "$id", "title", "description"),
}
"""What a schema may say."""

_TYPES = {
    "object": "an object",
    "array": "a list",
    "string": "a text",
    "integer": "an integer",
    "number": "a finite number",
    "boolean": "true or false",
    "null": "null",
}
_LONGEST = 200
"""Characters of the path of a field in a message; names in it may be the file's own."""

Schema = Mapping[str, Any]


@cache
def load_schema(name: str) -> Schema:
    """One of the schemas by its file name."""
    schema: Schema = json.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))
    return schema


def check(value: object, schema: Schema, name: str) -> dict[str, str]:
    """The files that a JSON value names, with the path of the field that does: `graphs.text.file`.
    Fields that the schema does not know are ignored.

    Raises: BundleError naming the first field that is missing or not as the schema says; `name`
    says in which file."""
    try:
        visited = list(_visit(value, schema, "", schema.get("$defs", {})))
    except _RefusalError as refusal:
        raise BundleError(f"{name}: {refusal}") from None
    return {
        item: path
        for path, node, item in visited
        if node.get("format") == FILE and isinstance(item, str)
    }


class _RefusalError(Exception):
    """What is wrong with which field."""


def _visit(
    value: object, node: Schema, path: str, defs: Schema
) -> Iterator[tuple[str, Schema, object]]:
    """Every field that the schema knows: its path, its schema, its value."""
    if "$ref" in node:
        node = {**defs[node["$ref"].removeprefix("#/$defs/")], **node}
    if reason := _expected(value, node):
        raise _refusal(path, f"is {shown(value)}; expected {reason}")
    if isinstance(value, list) and (reason := _length(value, node)):
        entries = "entry" if len(value) == 1 else "entries"
        raise _refusal(path, f"has {len(value)} {entries}; expected {reason}")
    yield path, node, value
    if isinstance(value, dict):
        yield from _visit_object(value, node, path, defs)
    elif isinstance(value, list) and "items" in node:
        for number, item in enumerate(value):
            yield from _visit(item, node["items"], f"{path}[{number}]", defs)


def _visit_object(
    value: dict[str, Any], node: Schema, path: str, defs: Schema
) -> Iterator[tuple[str, Schema, object]]:
    for key in node.get("required", ()):
        if key not in value:
            raise _refusal(_join(path, key), "is missing")
    known, others = node.get("properties", {}), node.get("additionalProperties")
    for key, item in value.items():
        if key in known:
            yield from _visit(item, known[key], _join(path, key), defs)
        elif others is not None:
            yield from _visit(item, others, _join(path, key), defs)


def _expected(value: object, node: Schema) -> str | None:
    """What the schema wants in place of a value, of which only the fields are not looked at; None
    where it is as it should be."""
    types = node.get("type", ())
    types = [types] if isinstance(types, str) else types
    if types and not any(_is(value, kind) for kind in types):
        return " or ".join(_TYPES[kind] for kind in types)
    if "const" in node and not _same(value, node["const"]):
        return json.dumps(node["const"], ensure_ascii=False)
    if "enum" in node and not any(_same(value, allowed) for allowed in node["enum"]):
        return " or ".join(json.dumps(allowed, ensure_ascii=False) for allowed in node["enum"])
    if isinstance(value, str):
        if len(value) < node.get("minLength", 0):
            return "a text that is not empty"
        if "pattern" in node and not re.search(node["pattern"], value):
            return f"a text like {node['pattern']}"
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        if value < node.get("minimum", -math.inf):
            return f"at least {node['minimum']}"
        if value > node.get("maximum", math.inf):
            return f"at most {node['maximum']}"
        if value <= node.get("exclusiveMinimum", -math.inf):
            return f"more than {node['exclusiveMinimum']}"
    elif isinstance(value, dict) and len(value) < node.get("minProperties", 0):
        return "an object that is not empty"
    return None


def _length(value: list[Any], node: Schema) -> str | None:
    """How many entries the schema wants, where a list has others."""
    least, most = node.get("minItems", 0), node.get("maxItems", math.inf)
    if least <= len(value) <= most:
        return None
    if least == most:
        return f"{least}"
    return f"at least {least}" if len(value) < least else f"at most {most}"


def _is(value: object, kind: str) -> bool:
    if kind == "integer":
        return type(value) is int
    if kind == "number":
        return type(value) is int or (type(value) is float and math.isfinite(value))
    classes = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    return isinstance(value, classes[kind])


def _same(value: object, other: object) -> bool:
    """Equality of JSON, in which true is not 1."""
    return json.dumps(value, sort_keys=True) == json.dumps(other, sort_keys=True)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _refusal(path: str, reason: str) -> _RefusalError:
    return _RefusalError(f"{one_line(path, _LONGEST) or 'it'} {reason}")
