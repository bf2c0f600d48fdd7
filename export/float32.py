"""What stays in float32 when Paddle Inference runs a tower in bfloat16.

Which patches are kept depends on small differences between scores. Bfloat16 has 8 binary digits,
and a tower that adds up its layers in them changes one kept patch in seven. So the sums between the
layers, all of the last two layers, and the scores and embeddings that are made of them stay in
float32; the products of the other layers, where the time goes, are in bfloat16.

Paddle Inference cannot be told so: for this format it ignores `set_bfloat16_op`. But it leaves an
operation in float32 if it has the attribute `use_quantizer`, if oneDNN has it in no other type, if
its new shape is unknown, or if it stands between two operations that stay in float32. So the saved
program gets such attributes, and a few operations that compute the same in another way. Its values
in float32 do not change."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

KEPT_LAYERS = 2
"""The last one makes the scores, and the one before it the features."""
_MARKED = (
    "conv2d",
    "matmul",
    "multiply",
    "sigmoid",
    "slice",
    "softmax",
    "sum",
    "transpose",
)
_PLACE = re.compile(r"/(VisionTower|TextTower)/(?:TransformerStack/EncoderLayer(?:_(\d+))?/(.*))?")
Operation = dict[str, Any]
"""In Paddle's JSON: its kind under `#`, attributes `A`, inputs `I` and outputs `O`, each with a
number under `%`; outputs have a type `TT`. Kinds begin with the number of their dialect."""


class _Place(NamedTuple):
    """Where in a model an operation was created."""

    tower: str
    layer: int | None
    """None in front of the layers and behind them."""
    part: str
    """Of the layer; empty for the sums between layers."""


def keep_float32(text: str) -> str:
    """The text of a saved program -> of one whose towers keep that in float32."""
    program = json.loads(text)
    block = program["program"]["regions"][0]["blocks"][0]
    block["ops"] = list(_Rewriting(block["ops"]).operations())
    return json.dumps(program, separators=(",", ":"), ensure_ascii=False)


class _Rewriting:
    """One program on its way."""

    def __init__(self, operations: list[Operation]) -> None:
        self._given = operations
        results = [result for one in operations for result in _results(one)]
        self._types = {result["%"]: result["TT"] for result in results}
        self._parameters = {one["O"]["%"] for one in operations if one["#"] == "p"}
        self._next = max(self._types) + 1
        self._depth: dict[str, int] = {}
        for place in map(_place, operations):
            if place is not None and place.layer is not None:
                depth = max(self._depth.get(place.tower, 0), place.layer + 1)
                self._depth[place.tower] = depth

    def operations(self) -> Iterator[Operation]:
        """The operations of the new program, in order."""
        for operation in self._given:
            place = _place(operation)
            if place is None:
                yield operation
            elif self._is_kept(place):
                yield from self._kept(operation, place)
            else:
                yield _between_bfloat16(operation, place)

    def _is_kept(self, place: _Place) -> bool:
        return place.layer is None or place.layer >= self._depth[place.tower] - KEPT_LAYERS

    def _kept(self, operation: Operation, place: _Place) -> Iterator[Operation]:
        """An operation of a layer that stays in float32 as a whole, or in front of the layers or
        behind them."""
        kind = operation["#"].partition(".")[2]
        if kind == "layer_norm" or kind in _MARKED:
            yield _marked(operation)
        elif kind == "scale" and _value(operation, "bias") == 0 and self._is_float(operation):
            # Paddle would make one operation of it and a product, and lose the product's mark.
            yield _marked({**operation, "#": "1.multiply", "A": _names(operation)})
        elif kind == "reshape":
            # A shape that was assigned is unknown to Paddle when it chooses types.
            data, shape = operation["I"]
            assigned = self._operation("1.assign", operation, [shape], self._types[shape["%"]])
            yield assigned
            yield {**operation, "I": [data, _number(assigned)]}
        elif kind == "add" and place.layer is not None and not place.part:
            pair = {"#": "0.t_vec", "D": [self._types[one["%"]] for one in operation["I"]]}
            combined = self._operation("0.combine", operation, operation["I"], pair)
            yield combined
            yield {**operation, "#": "1.add_n", "I": [_number(combined)]}
        elif kind == "concat":
            # Behind it come the positions: two operations that would round, side by side.
            (result,) = operation["O"]
            joined = {**operation, "O": [{**result, "%": self._number()}]}
            yield joined
            yield {**self._in_order(joined), "O": [result]}
        elif kind == "gelu":
            # Paddle would make one operation of it and the product in front of it.
            same = self._in_order(operation, operation["I"][0])
            yield same
            yield _marked({**operation, "I": [_number(same)]})
        else:
            yield operation

    def _in_order(self, like: Operation, given: Operation | None = None) -> Operation:
        """A transposition that leaves all axes of a value where they are; by default of the value
        that an operation makes."""
        value = given or _number(like)
        kind = self._types[value["%"]] if given else like["O"][0]["TT"]
        axes = [{"#": "0.a_i32", "D": axis} for axis in range(len(kind["D"][1]))]
        same = self._operation("1.transpose", like, [value], kind)
        perm = {"AT": {"#": "0.a_array", "D": axes}, "N": "perm"}
        return _marked({**same, "A": [perm, *same["A"]]})

    def _is_float(self, operation: Operation) -> bool:
        """Positions in a text are whole numbers."""
        element = self._types[operation["I"][0]["%"]]["D"][0]["#"]
        return bool(element == "0.t_f32")

    def _operation(self, kind: str, like: Operation, inputs: list[Any], type_: Any) -> Operation:
        """A new operation without attributes of its own, created where another was."""
        result = {"%": self._number(), "TT": type_}
        return {"#": kind, "A": _names(like), "I": inputs, "O": [result], "OA": like["OA"][:1]}

    def _number(self) -> int:
        self._next += 1
        return self._next


def _between_bfloat16(operation: Operation, place: _Place) -> Operation:
    """An operation of a layer whose products are in bfloat16. The sums stay in float32 because all
    that reads them does so."""
    kind = operation["#"].partition(".")[2]
    if kind == "layer_norm":
        return _marked(operation)
    if kind == "scale" and place.part.startswith("Mlp"):
        # Paddle takes a scale for float32 whose bias, here 0, comes last, and then the product in
        # front of it as well.
        return _with(operation, "bias_after_scale", False)
    return operation


def _place(operation: Operation) -> _Place | None:
    found = _PLACE.search(_value(operation, "struct_name") or "")
    if found is None:
        return None
    tower, number, part = found.groups()
    return _Place(tower, None if part is None else int(number or 0), part or "")


def _names(operation: Operation) -> list[Operation]:
    """Of its attributes the one that says where it was created."""
    return [one for one in operation["A"] if one["N"] == "struct_name"]


def _value(operation: Operation, name: str) -> Any:
    """Of an attribute; None where there is none, as for all parameters."""
    attributes = operation["A"] if operation["#"] != "p" else []
    return next((one["AT"]["D"] for one in attributes if one["N"] == name), None)


def _results(operation: Operation) -> list[Operation]:
    found = operation["O"]
    return found if isinstance(found, list) else [found]


def _number(operation: Operation) -> Operation:
    (result,) = operation["O"]
    return {"%": result["%"]}


def _marked(operation: Operation) -> Operation:
    return _with(operation, "use_quantizer", True)


def _with(operation: Operation, name: str, value: bool) -> Operation:
    """The operation with an attribute that is true or false."""
    others = [one for one in operation["A"] if one["N"] != name]
    attribute = {"AT": {"#": "0.a_bool", "D": value}, "N": name}
    return {**operation, "A": [*others, attribute]}
