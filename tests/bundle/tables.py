"""The tables of docs/bundle.md that are made from the schemas and from the list of arrays.

python -m tests.bundle.tables    # writes them again
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from paddle_recomp.bundle.contract import ARRAYS, KNOWN_INPUTS, OUTPUTS, VISION_OUTPUTS
from paddle_recomp.bundle.schema import GOLDEN, RECOMP, Schema, load_schema

DOCUMENT = Path(__file__).parents[2] / "docs" / "bundle.md"


def arrays() -> str:
    """Every array with the graphs that take and give it."""
    given = {**OUTPUTS, "vision": VISION_OUTPUTS}
    rows = ["| array | type | shape | | of | into |", "|---|---|---|---|---|---|"]
    for name, about in ARRAYS.items():
        sources = ", ".join(f"`{graph}`" for graph, names in given.items() if name in names)
        targets = ", ".join(f"`{graph}`" for graph, names in KNOWN_INPUTS.items() if name in names)
        shape = f"[{', '.join(about.shape)}]"
        rows.append(
            f"| `{name}` | {about.dtype} | {shape} | {about.meaning} | {sources} | {targets} |"
        )
    return "\n".join(rows)


def fields(schema: str) -> str:
    """Every field of a schema, with its kind and whether it has to be there. Fields that several
    objects share stand under the first of them."""
    content = load_schema(schema)
    rows = ["| field | kind | |", "|---|---|---|"]
    for path, node, required, home in walk(content, "", content["$defs"], {}):
        words = node.get("description", "")
        words += "" if home == path else f" Its fields are those of `{home}`."
        rows.append(f"| `{path}` | {kind(node)}{'' if required else ', optional'} | {words} |")
    return "\n".join(rows)


def walk(
    node: Schema, path: str, defs: Schema, homes: dict[str, str]
) -> Iterator[tuple[str, Schema, bool, str]]:
    """Every field below a node: its path, its schema, whether it is required, and the path under
    which its own fields stand."""
    children = {key: (child, key in node.get("required", ())) for key, child in fields_of(node)}
    for key, (child, required) in children.items():
        found, place = resolve(child, defs), f"{path}.{key}" if path else key
        place = place.replace(".[]", "[]")
        shared = "$ref" in child and "properties" in found
        home = homes.setdefault(child["$ref"], place) if shared else place
        if key != "[]" and key != "NAME":
            yield place, found, required, home
        if home == place:
            yield from walk(found, place, defs, homes)


def fields_of(node: Schema) -> Iterator[tuple[str, Schema]]:
    """What stands in a value, by its name; `[]` is each item of a list, NAME any other field."""
    yield from node.get("properties", {}).items()
    if "additionalProperties" in node:
        yield "NAME", node["additionalProperties"]
    if "items" in node:
        yield "[]", node["items"]


def resolve(node: Schema, defs: Schema) -> Schema:
    """A node with what it refers to."""
    if "$ref" not in node:
        return node
    return {**defs[node["$ref"].removeprefix("#/$defs/")], **node}


def kind(node: Schema) -> str:
    """What a value may be, in a few words."""
    if "const" in node:
        return f"`{json.dumps(node['const'], ensure_ascii=False)}`"
    if "enum" in node:
        return " or ".join(f"`{json.dumps(value)}`" for value in node["enum"])
    names = [node["type"]] if isinstance(node["type"], str) else node["type"]
    words = " or ".join("file" if _is_file(node, name) else name for name in names)
    if "items" in node and "type" in node["items"]:
        inner = node["items"]["type"]
        words += f" of {inner if isinstance(inner, str) else ' or '.join(inner)}"
        node = node["items"]
    return words + span(node)


def span(node: Schema) -> str:
    """The numbers that a value may be."""
    if "maximum" not in node:
        return ""
    more = node.get("exclusiveMinimum")
    least = f"more than {more}" if more is not None else f"{node['minimum']}"
    return f", {least} to {node['maximum']}"


def _is_file(node: Schema, name: str) -> bool:
    return name == "string" and "format" in node


def filled(text: str) -> str:
    """The document with its tables."""
    parts = {"arrays": arrays(), "golden": fields(GOLDEN), "fields": fields(RECOMP)}
    for name, table in parts.items():
        pattern = rf"<!-- {name} -->\n.*?<!-- end -->"
        new = f"<!-- {name} -->\n{table}\n<!-- end -->"
        text, count = re.subn(pattern, new.replace("\\", r"\\"), text, count=1, flags=re.DOTALL)
        assert count == 1, f"docs/bundle.md has no place for the table {name!r}"
    return text


if __name__ == "__main__":
    DOCUMENT.write_text(filled(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
