"""A graph that is not what recomp.json says of it, or does not run: one line that names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from paddle_recomp.bundle import open_bundle, write_checksums
from paddle_recomp.commands.main import main
from paddle_recomp.vlm.loading import load

from .conftest import KEPT, change

QUESTION = "where is the circle?"


def compressor(content: Any) -> Any:
    return content["compress"]["graphs"]["recoverable"]


def drop_input(content: Any, name: str) -> None:
    about = compressor(content)
    about["inputs"] = [item for item in about["inputs"] if item["name"] != name]


def add(items: Any, name: str, dtype: str = "float32") -> None:
    items.append({"name": name, "dtype": dtype, "shape": ["batch", 36]})


CHANGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "another graph": (
        lambda c: c["graphs"]["vision"].update(file="text.onnx"),
        'text.onnx, the graph vision, takes "question_ids", which is not among its inputs',
    ),
    "an input that is not listed": (
        lambda c: drop_input(c, "keys"),
        'compress.onnx, the graph compress, takes "keys"',
    ),
    "an input that the graph lacks": (
        lambda c: [add(compressor(c)["inputs"], f"word_{name}") for name in ("embeds", "mask")],
        'has no input "word_embeds"',
    ),
    "an output that the graph lacks": (
        lambda c: add(c["graphs"]["vision"]["outputs"], "layer_score"),
        'has no output "layer_score"',
    ),
    "a short question": (
        lambda c: c["question"].update(positions=10),
        "text.onnx does not run on these inputs: ",
    ),
    "a token beyond CLIP's": (
        lambda c: c["question"].update(start_id=1_000_000),
        "text.onnx does not run on these inputs: ",
    ),
    "fewer layers": (lambda c: c["decoder"].update(num_layers=1), "1 layers in recomp.json, takes"),
    "more layers": (lambda c: c["decoder"].update(num_layers=99), "has no input"),
    "other heads": (lambda c: c["decoder"].update(num_kv_heads=3), "says 3 in place of"),
    "another vocabulary": (lambda c: c["decoder"].update(vocab_size=703), "says 703 in place of"),
    "another cache": (lambda c: c["decoder"].update(cache_width=5), "says 5 in place of"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_graph_that_does_not_fit_is_one_line(
    name: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit, says = CHANGES[name]
    change(copy, edit)
    assert main(["ask", str(copy / "golden/scene.png"), QUESTION, "--model", str(copy)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert len(line) < 600


@pytest.mark.parametrize("in_graph", [True, False])
def test_an_output_that_nobody_knows_is_never_asked_for(in_graph: bool, copy: Path) -> None:
    """Of whatever type it is, and whether the graph gives it or not."""
    if in_graph:
        model = onnx.load(copy / "text.onnx")
        value = helper.make_tensor("colour", TensorProto.FLOAT16, [1], [1.0])
        model.graph.node.append(helper.make_node("Constant", [], ["colour"], value=value))
        info = helper.make_tensor_value_info("colour", TensorProto.FLOAT16, [1])
        model.graph.output.insert(0, info)
        onnx.save_model(model, copy / "text.onnx")
        write_checksums(copy)
    change(copy, lambda c: add(c["graphs"]["text"]["outputs"], "colour", "float16"))
    bundle = open_bundle(copy)
    assert bundle.graphs["text"].outputs == ("text_embeds", "colour")
    assert bundle.graphs["text"].read == ("text_embeds",)
    answer = load(copy).ask(copy / "golden" / "scene.png", QUESTION)
    assert answer.text == load(KEPT).ask(KEPT / "golden" / "scene.png", QUESTION).text
