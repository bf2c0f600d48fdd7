"""The part of a saved program that Paddle Inference leaves in float32."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from export.float32 import KEPT_LAYERS, keep_float32
from paddle_recomp.bundle import Bundle

from .test_paddle import has_bf16

ROOT = Path(__file__).parents[2]


def operations(text: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(text)["program"]["regions"][0]["blocks"][0]["ops"]
    return found


def attribute(operation: dict[str, Any], name: str) -> Any:
    pairs = operation["A"] if operation["#"] != "p" else []
    return next((one["AT"]["D"] for one in pairs if one["N"] == name), None)


def read(bundle: Bundle, graph: str) -> str:
    return (bundle.folder / "paddle" / f"{graph}.json").read_text(encoding="utf-8")


def linear(layer: int, number: int, kind: str, inputs: list[int]) -> dict[str, Any]:
    """An operation of a layer's MLP in Paddle's JSON."""
    suffix = f"_{layer}" if layer else ""
    place = f"/VisionTower/TransformerStack/EncoderLayer{suffix}/Mlp/"
    return {
        "#": f"1.{kind}",
        "A": [{"AT": {"#": "0.a_str", "D": place}, "N": "struct_name"}],
        "I": [{"%": one} for one in inputs],
        "O": [
            {"%": number, "TT": {"#": "0.t_dtensor", "D": [{"#": "0.t_f32"}, [-1, 4], "", [], 0]}}
        ],
        "OA": [{"AT": {"#": "0.a_array", "D": []}, "N": "stop_gradient"}],
    }


def program(layers: int) -> str:
    kinds = [linear(layer, 1 + layer, "sigmoid", [layer]) for layer in range(layers)]
    block = {"ops": kinds}
    return json.dumps({"program": {"regions": [{"blocks": [block]}]}}, separators=(",", ":"))


@has_bf16
@pytest.mark.parametrize(
    ("layers", "activation", "attention"), [(2, "gelu", "heads"), (3, "quick_gelu", "concat")]
)
def test_two_layers_run_in_float32_to_the_last_digit(
    layers: int, activation: str, attention: str, tmp_path: Path
) -> None:
    """In a process of its own, because a test may have imported paddlenlp. With a layer in front of
    the two there is something in bfloat16."""
    module = f"{__package__}.small_towers"
    given = [str(layers), activation, attention, str(tmp_path)]
    command = [sys.executable, "-m", module, *given]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == {"features", "keys", "visual_score", "patch_embeds", "text_embeds"}
    if layers == KEPT_LAYERS:
        assert max(found.values()) == 0
    else:
        assert all(1e-4 < value < 0.02 for value in found.values())


@pytest.mark.parametrize("layers", [1, 2, 5, 12])
def test_the_last_layers_are_marked(layers: int) -> None:
    marked = [attribute(one, "use_quantizer") for one in operations(keep_float32(program(layers)))]
    rest = max(layers - KEPT_LAYERS, 0)
    assert marked == [None] * rest + [True] * (layers - rest)


def test_a_program_without_towers_stays_as_it_is(paddle_bundle: Bundle) -> None:
    text = read(paddle_bundle, "compress")
    assert keep_float32(text) == text


@pytest.mark.parametrize("graph", ["vision", "encoder"])
def test_every_normalisation_of_a_tower_is_marked(graph: str, paddle_bundle: Bundle) -> None:
    found = [
        one
        for one in operations(read(paddle_bundle, graph))
        if one["#"] == "1.layer_norm" and "Tower" in attribute(one, "struct_name")
    ]
    # Two in each of five layers, one in front of them and one behind.
    assert len(found) >= 12
    assert all(attribute(one, "use_quantizer") for one in found)


def test_the_last_layers_have_nothing_that_paddle_would_round(paddle_bundle: Bundle) -> None:
    last = re.compile(r"/VisionTower/(TransformerStack/EncoderLayer_[34]/.*)?$")
    kinds: Counter[tuple[str, bool]] = Counter()
    made = operations(read(paddle_bundle, "vision"))
    assigned = {one["O"][0]["%"] for one in made if one["#"] == "1.assign"}
    for one in made:
        place = attribute(one, "struct_name") or ""
        if not last.match(place):
            continue
        kind = one["#"].partition(".")[2]
        if kind == "reshape":
            assert one["I"][1]["%"] in assigned
        if kind == "add":
            assert place.endswith(("/SelfAttention/", "Linear/")) or "Linear_" in place
        kinds[kind, bool(attribute(one, "use_quantizer"))] += 1
    assert kinds["add_n", False] == 2 * KEPT_LAYERS
    for kind in ("matmul", "softmax", "sigmoid", "multiply", "transpose", "slice", "layer_norm"):
        assert kinds[kind, True] > 0
        assert kinds[kind, False] == 0
    numbers = [result["%"] for one in made if one["#"] != "p" for result in one["O"]]
    assert len(numbers) == len(set(numbers))
