"""No file is read that was not compared with its checksum, nor one that only a graph names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from paddle_recomp.backends.onnx import OnnxBackend
from paddle_recomp.bundle import open_bundle, write_checksums
from paddle_recomp.bundle.onnx_files import external_files
from paddle_recomp.errors import BundleError
from paddle_recomp.vlm.demo import demo_bundle_folder
from paddle_recomp.vlm.loading import bundle_decoder


def test_graphs_of_the_demo() -> None:
    assert external_files(demo_bundle_folder() / "vision.onnx") == set()
    assert external_files(demo_bundle_folder() / "decoder.onnx") == {"decoder.onnx.data"}


def outside(name: str, location: str) -> TensorProto:
    """A tensor whose numbers are in another file."""
    tensor = numpy_helper.from_array(np.ones(3, np.float32), name)
    onnx.external_data_helper.set_external_data(tensor, location)
    tensor.ClearField("raw_data")
    return tensor


def test_every_place_of_a_tensor_is_looked_at(tmp_path: Path) -> None:
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["y"], value=outside("c", "constant.bin"))],
        "inner",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])],
        [outside("i", "inner.bin")],
    )
    choice = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    graph = helper.make_graph(
        [choice],
        "outer",
        [helper.make_tensor_value_info("x", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])],
        [outside("o", "outer.bin")],
    )
    path = tmp_path / "model.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    assert external_files(path) == {"constant.bin", "inner.bin", "outer.bin"}


def test_a_file_that_only_the_graph_names_is_refused(copy: Path) -> None:
    model = onnx.load(copy / "vision.onnx")
    onnx.save_model(model, copy / "vision.onnx", save_as_external_data=True, location="secret.bin")
    write_checksums(copy)
    bundle = open_bundle(copy)
    with pytest.raises(BundleError, match=r"vision.onnx reads the file .*secret.bin"):
        OnnxBackend(bundle).open(["vision"])


def test_the_decoder_reads_the_data_that_recomp_json_names(copy: Path) -> None:
    manifest = copy / "recomp.json"
    text = manifest.read_text(encoding="utf-8")
    manifest.write_text(text.replace('"decoder.onnx.data"', '"embed_tokens.npy"'), encoding="utf-8")
    write_checksums(copy)
    with pytest.raises(BundleError, match=r"decoder.onnx reads the file .*decoder.onnx.data"):
        bundle_decoder(open_bundle(copy), "cpu")


@pytest.mark.parametrize("content", [b"", b"location\xff\xff\xff", b"\x3a\x7flocation"])
def test_a_file_that_is_no_model_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"model.onnx is not an ONNX model"):
        external_files(path)
