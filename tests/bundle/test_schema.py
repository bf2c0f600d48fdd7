"""The schemas: every field that they require is required, by name, and nothing else is."""

from __future__ import annotations

import copy as copying
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fastjsonschema
import pytest

from paddle_recomp.bundle import DECODER_PRECISIONS, MANIFEST, PRECISIONS, open_bundle
from paddle_recomp.bundle.golden import CASES, read_golden
from paddle_recomp.bundle.schema import GOLDEN, KEYWORDS, RECOMP, Schema, check, load_schema
from paddle_recomp.errors import BundleError
from paddle_recomp.vlm.demo import demo_bundle_folder

from .conftest import change
from .tables import resolve

FILES = {
    "program": "vision.onnx",
    "params": "text.onnx",
}


def example(schema: str) -> dict[str, Any]:
    """A file with every section in it that the schema has."""
    name = MANIFEST if schema == RECOMP else CASES
    content = json.loads((demo_bundle_folder() / name).read_text(encoding="utf-8"))
    if schema == RECOMP:
        towers = {"vision": FILES, "text": FILES}
        content["graphs"]["encoder"] = {
            **content["compress"]["graphs"]["recoverable"],
            "inputs": [
                {"name": name, "dtype": "int64", "shape": ["batch"]}
                for name in ("pixel_values", "question_ids", "token_bounds")
            ],
        }
        content["paddle"] = {
            "precisions": ["fp32", "int8"],
            "graphs": {**towers, "encoder": FILES},
            "compress": {"recoverable": FILES},
            "int8": {"graphs": towers},
        }
    found: dict[str, Any] = json.loads(json.dumps(content))  # So that no two sections are one.
    return found


def places(
    node: Schema, value: Any, path: tuple[str | int, ...], defs: Schema
) -> Iterator[tuple[tuple[str | int, ...], Schema, bool]]:
    """Where the fields of a schema stand in a value, and whether each is required."""
    children: list[tuple[str | int, Schema, bool]] = []
    if isinstance(value, dict):
        for key, child in node.get("properties", {}).items():
            children.append((key, child, key in node.get("required", ())))
        if "additionalProperties" in node:
            needed = node.get("required", ())
            children += [(key, node["additionalProperties"], key in needed) for key in value]
    if isinstance(value, list) and "items" in node:
        children += [(number, node["items"], False) for number in range(min(len(value), 2))]
    for key, child, required in children:
        if isinstance(value, dict) and key not in value:
            continue
        found = resolve(child, defs)
        yield (*path, key), found, required
        yield from places(found, value[key], (*path, key), defs)


def all_places(schema: str) -> list[tuple[tuple[str | int, ...], Schema, bool]]:
    content = load_schema(schema)
    return list(places(content, example(schema), (), content["$defs"]))


def shown(path: tuple[str | int, ...]) -> str:
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in path]
    return "".join(parts).removeprefix(".")


def parent(content: Any, path: tuple[str | int, ...]) -> Any:
    for part in path[:-1]:
        content = content[part]
    return content


def retyped(node: Schema) -> list[Any]:
    """Values of every kind that a field must not have."""
    kinds = {"object": {}, "array": [], "string": "?", "number": 0.5, "boolean": True, "null": None}
    types = node.get("type", ())
    types = [types] if isinstance(types, str) else types
    wrong = [value for kind, value in kinds.items() if kind not in types]
    return [value for value in wrong if not ("const" in node and node["const"] == value)]


def reference_of(schema: str) -> Callable[[object], object]:
    """Another validator, which changes the schema that it is given."""
    compiled: Callable[[object], object] = fastjsonschema.compile(
        copying.deepcopy(dict(load_schema(schema)))
    )
    return compiled


@pytest.mark.parametrize("schema", [RECOMP, GOLDEN])
def test_every_field_that_is_deleted_or_retyped_is_refused_by_name(schema: str) -> None:
    content, reference = load_schema(schema), reference_of(schema)
    check(example(schema), content, "it")
    reference(example(schema))
    required = 0
    for path, node, is_required in all_places(schema):
        if is_required:
            required += 1
            broken = example(schema)
            del parent(broken, path)[path[-1]]
            with pytest.raises(BundleError) as raised:
                check(broken, content, "it")
            assert str(raised.value) == f"it: {shown(path)} is missing"
            with pytest.raises(fastjsonschema.JsonSchemaValueException):
                reference(broken)
        for value in retyped(node):
            broken = example(schema)
            parent(broken, path)[path[-1]] = value
            with pytest.raises(BundleError) as raised:
                check(broken, content, "it")
            assert str(raised.value).startswith(f"it: {shown(path)} is "), value
            assert "; expected " in str(raised.value)
            with pytest.raises(fastjsonschema.JsonSchemaValueException):
                reference(broken)
    assert required > (100 if schema == RECOMP else 40)


def test_opening_asks_the_schema(copy: Path) -> None:
    """Field by field in the test above; here one of each kind, through the front door."""
    for edit, says in (
        (lambda c: c["image"].pop("size"), r"image\.size is missing"),
        (lambda c: c["image"].update(size="x"), 'image\\.size is "x"; expected an integer'),
        (lambda c: c["sizes"].pop("joint_width"), r"sizes\.joint_width is missing"),
        (lambda c: c.pop("question"), "question is missing"),
        (lambda c: c.update(precision="int3"), 'precision is "int3"; expected "fp32" or "int8"'),
    ):
        original = (copy / MANIFEST).read_text()
        change(copy, edit)
        with pytest.raises(BundleError, match=says):
            open_bundle(copy)
        (copy / MANIFEST).write_text(original)


def test_golden_cases_ask_their_schema(copy: Path) -> None:
    change(copy, lambda c: c["cases"][1].pop("token_bounds"), CASES)
    with pytest.raises(BundleError, match=r"cases\[1\]\.token_bounds is missing"):
        read_golden(open_bundle(copy))


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("image", "size"), 0, "at least 1"),
        (("image", "pad_colour", 1), 256, "at most 255"),
        (("image", "std", 0), 1e-7, "at least 1e-06"),
        (("image", "mean", 0), 1e39, "at most 1000000"),
        (("image", "mean", 0), 10**400, "at most 1000000"),
        (("image", "rescale"), 10**400, "at most 1000"),
        (("image", "crop"), 100_000, "at most 8192"),
        (("question", "positions"), 10**12, "at most 65536"),
        (("question", "end_id"), 10**30, "at most 9999999"),
        (("prompt", "bos_token_id"), 10**30, "at most 9999999"),
        (("decoder", "cache_width"), 10**12, "at most 8192"),
        (("decoder", "num_layers"), 10**12, "at most 1024"),
        (("image", "mean"), [0, 0], "has 2 entries; expected 3"),
        (("image", "mean", 0), float("inf"), "a finite number"),
        (("image", "size"), 224.0, "an integer"),
        (("image", "size"), True, "an integer"),
        (("image", "passes"), ["vertical", "horizontal"], r'\["horizontal", "vertical"\]'),
        (("prompt", "eos_token_ids"), [], "has 0 entries; expected at least 1"),
        (("prompt", "template", "image"), "picture", "a text like <image>"),
        (("compress", "graphs"), {}, "not empty"),
        (("compress", "graphs", "recoverable", "stages", 0, "kind"), "other", '"patch" or'),
        (("question", "tokenizer"), "", "not empty"),
        (("language_model", "projector_sha256"), "0" * 63, "a text like"),
        (("format",), True, "expected 2"),
    ],
)
def test_values_out_of_range(path: tuple[str | int, ...], value: object, says: str) -> None:
    broken = example(RECOMP)
    parent(broken, path)[path[-1]] = value
    with pytest.raises(BundleError, match=says):
        check(broken, load_schema(RECOMP), "it")


def test_a_message_is_one_short_line() -> None:
    broken = example(RECOMP)
    broken["compress"]["graphs"]["x\n" * 5000] = {"file": "y" * 10_000}
    with pytest.raises(BundleError) as raised:
        check(broken, load_schema(RECOMP), "it")
    assert len(str(raised.value)) < 400
    assert "\n" not in str(raised.value)
    broken = example(RECOMP)
    broken["operators"] = "o\n" * 5000
    with pytest.raises(BundleError) as raised:
        check(broken, load_schema(RECOMP), "it")
    assert len(str(raised.value)) < 200
    assert "\n" not in str(raised.value)


def nodes(node: Any) -> Iterator[Schema]:
    """Every schema in a schema."""
    yield node
    for key in ("properties", "$defs"):
        for child in node.get(key, {}).values():
            yield from nodes(child)
    for key in ("items", "additionalProperties"):
        if key in node:
            yield from nodes(node[key])


@pytest.mark.parametrize("schema", [RECOMP, GOLDEN])
def test_every_number_has_a_least_and_a_most(schema: str) -> None:
    """So that no reader has to think of memory, or of integers that a type cannot hold."""
    for node in nodes(load_schema(schema)):
        types = node.get("type", ())
        if {"integer", "number"} & {*([types] if isinstance(types, str) else types)}:
            assert "maximum" in node, node
            assert "minimum" in node or "exclusiveMinimum" in node, node


@pytest.mark.parametrize("schema", [RECOMP, GOLDEN])
def test_no_keyword_is_passed_over(schema: str) -> None:
    content = load_schema(schema)
    for node in nodes(content):
        assert node.keys() <= KEYWORDS
        assert set(node.get("required", ())) <= {*node.get("properties", ()), *example_keys(node)}
    for path, node, _ in all_places(schema):
        if isinstance(path[-1], str) and "NAME" not in path:
            described = "description" in node or path[-2:-1] in (("arrays",), ("graphs",))
            assert described or "compress" in path, shown(path)


def example_keys(node: Schema) -> set[str]:
    """Fields that only `additionalProperties` describes."""
    return set(node.get("required", ())) if "additionalProperties" in node else set()


def test_the_precisions_are_those_of_the_schema() -> None:
    fields = load_schema(RECOMP)["properties"]
    assert fields["precision"]["enum"] == list(PRECISIONS)
    decoder = fields["decoder"]["properties"]
    assert decoder["precision"]["enum"] == list(DECODER_PRECISIONS)


def test_the_files_of_a_bundle_are_found_by_the_schema() -> None:
    found = check(example(RECOMP), load_schema(RECOMP), "it")
    assert found["compress.onnx"] == "compress.graphs.recoverable.file"
    assert found["decoder.onnx.data"] == "decoder.data"
    assert found["golden/cases.json"] == "golden.cases"
    assert found["clip/tokenizer.json"] == "question.tokenizer"
    names = {"vision.onnx", "text.onnx", "compress.onnx", "decoder.onnx", "decoder.onnx.data"}
    names |= {"embed_tokens.npy", "clip/tokenizer.json", "llm/tokenizer.json", "scales.json"}
    assert set(found) == names | {"golden/cases.json"}
