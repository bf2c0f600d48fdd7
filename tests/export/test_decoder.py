"""The decoder in a bundle: described, found again, refused when it is damaged or another's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from export.build import export_bundle
from export.decoder.products import Blocks
from export.decoder.reference import reference_logits
from export.decoder.write import compare_decoder, write_decoder
from export.errors import ExportError
from export.verify import verify_bundle
from paddle_recomp.bundle import MANIFEST, Bundle, open_bundle, write_checksums
from paddle_recomp.checkpoint import Checkpoint
from paddle_recomp.errors import BundleError, ConfigError
from paddle_recomp.llm.onnx_decoder import OnnxDecoder, decoder_files
from paddle_recomp.vlm.loading import find_checkpoint, load
from tests.checkpoint.sparse import write_sparse_model

from .conftest import GOLDEN, edit


def manifest(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / MANIFEST).read_text()))


def test_it_says_what_it_is(demo_bundle: Bundle) -> None:
    path = demo_bundle.folder / "decoder.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert {opset.domain: opset.version for opset in model.opset_import} == {
        "": 17,
        "com.microsoft": 1,
    }
    about = manifest(demo_bundle.folder)
    metadata = {item.key: item.value for item in model.metadata_props}
    assert metadata["recomp.graph"] == "decoder"
    assert json.loads(metadata["recomp.language_model"]) == about["language_model"]
    described = about["decoder"]
    assert isinstance(described, dict)
    assert json.loads(metadata["recomp.decoder"]) == described
    for side, values in (("inputs", model.graph.input), ("outputs", model.graph.output)):
        expected = {}
        for entry in described[side]:
            for layer in range(described["num_layers"]):
                expected[entry["name"].format(layer=layer)] = entry["shape"]
        found = {
            value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            for value in values
        }
        assert found == expected
    assert (described["precision"], described["context"]) == ("fp32", 2048)


def test_the_largest_weights_are_beside_the_graph(demo_bundle: Bundle) -> None:
    sizes = {name: demo_bundle.sizes[name] for name in decoder_files(demo_bundle)}
    assert sizes["decoder.onnx"] < 30_000
    assert sizes["decoder.onnx.data"] > 5_000_000
    embedding = np.load(demo_bundle.folder / "embed_tokens.npy", mmap_mode="r")
    stored = find_checkpoint("demo").parameter("language_model", "embed_tokens.weight")
    assert embedding.dtype == stored.dtype
    np.testing.assert_array_equal(embedding, stored)


@pytest.mark.parametrize("name", ["decoder.onnx", "decoder.onnx.data", "embed_tokens.npy"])
def test_a_damaged_file_is_one_clear_error(name: str, copy: Path) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name} was changed"):
        load(copy)
    (copy / name).unlink()
    with pytest.raises(BundleError, match=name):
        open_bundle(copy)


def another_graph(folder: Path) -> None:
    """The decoder of a model with the same shapes and other weights, as a careless copy gives."""
    path = folder / "decoder.onnx"
    model = onnx.load(path, load_external_data=False)
    for item in model.metadata_props:
        if item.key == "recomp.language_model":
            item.value = json.dumps({"name": "other", "projector_sha256": "0" * 64})
    path.write_bytes(model.SerializeToString())


def unnamed_graph(folder: Path) -> None:
    path = folder / "decoder.onnx"
    model = onnx.load(path, load_external_data=False)
    del model.metadata_props[:]
    path.write_bytes(model.SerializeToString())


FOREIGN: dict[str, tuple[Callable[[Path], object], str]] = {
    "another model's": (another_graph, r"decoder\.onnx is the decoder of another model"),
    "nobody's": (unnamed_graph, r"decoder\.onnx is the decoder of another model"),
    "no graph": (lambda f: (f / "decoder.onnx").write_bytes(b"graph"), "cannot be loaded"),
    "other embedding": (
        lambda f: np.save(f / "embed_tokens.npy", np.zeros((3, 4), np.float32)),
        r"embed_tokens\.npy is float32 \[3, 4\]",
    ),
    "no embedding": (lambda f: (f / "embed_tokens.npy").write_bytes(b"x"), "numpy's format"),
    "objects": (
        lambda f: np.save(f / "embed_tokens.npy", np.array([{}], dtype=object)),
        "numpy's format",
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_belongs_to_another_model_is_refused(name: str, copy: Path) -> None:
    change, says = FOREIGN[name]
    change(copy)
    write_checksums(copy)  # Only the content can tell.
    with pytest.raises(BundleError, match=says):
        load(copy)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"precision": "int3"}, r"int3.*fp32"),
        ({"context": "long"}, "context"),
        ({"num_layers": None}, "num_layers"),
        ({"file": "../decoder.onnx"}, r"\.\./decoder\.onnx.*not inside"),
        ({"embed_tokens": "other.npy"}, r"decoder\.embed_tokens.*other\.npy.*no sum"),
        ({"hidden_size": 7}, r"hidden_size is 7.*language_width"),
    ],
)
def test_a_wrong_description_is_refused(change: dict[str, object], says: str, copy: Path) -> None:
    described = manifest(copy)["decoder"]
    assert isinstance(described, dict)
    edit(copy, decoder={**described, **change})
    with pytest.raises(BundleError, match=says):
        open_bundle(copy)


def test_without_a_decoder_there_is_none(copy: Path) -> None:
    edit(copy, decoder=None)
    bundle = open_bundle(copy)
    assert bundle.decoder is None
    assert decoder_files(bundle) == []
    with pytest.raises(BundleError, match="no language model"):
        OnnxDecoder.from_bundle(bundle)


def test_an_unknown_precision_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"int3.*fp32, int8, int4, none"):
        export_bundle("demo", tmp_path / "x", decoder="int3")
    assert not list(tmp_path.iterdir())


def test_a_graph_that_computes_something_else_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "export.decoder.write.reference_logits",
        lambda *arguments: reference_logits(*arguments) * np.float32(1.01),
    )
    with pytest.raises(ExportError, match=r"decoder: logits differ by 0\.0"):
        write_decoder(find_checkpoint("demo"), tmp_path, "fp32", {})


def test_verify_sees_one_changed_weight(copy: Path) -> None:
    path = copy / "decoder.onnx.data"
    data = np.fromfile(path, dtype=np.float32)
    data[len(data) // 2 :][:2000] *= -1
    data.tofile(path)
    write_checksums(copy)
    rows = {row.name: row for row in verify_bundle(copy, "demo") if row.stage == "decoder"}
    assert not rows["logits"].passed
    assert rows["embed_tokens"].passed


@pytest.mark.parametrize(("bits", "size"), [(4, 32), (4, 128), (8, 32)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_block_is_within_a_step_of_what_it_was(bits: int, size: int, symmetric: bool) -> None:
    rows = np.random.default_rng(0).normal(size=(6, 3 * size - 5)).astype(np.float32)
    rows[2] = 0
    packed, scale, zero = Blocks(bits, symmetric, size).encode(rows)
    levels = packed if bits == 8 else np.stack([packed & 15, packed >> 4], -1).reshape(6, 3, size)
    middle = np.full(scale.shape, 2 ** (bits - 1))
    if zero is not None:
        middle = zero if bits == 8 else np.stack([zero & 15, zero >> 4], -1).reshape(6, -1)[:, :3]
    found = (levels.astype(np.float32) - middle[..., None]) * scale[..., None]
    found = found.reshape(6, -1)[:, : rows.shape[1]]
    error = np.abs(found - rows).reshape(6, -1)
    assert (error <= np.repeat(np.abs(scale), size, axis=1)[:, : rows.shape[1]]).all()
    assert not found[2].any()


def test_a_few_large_activations_do_not_cost_all_others_their_levels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One channel of an MLP a thousand times larger, and its weight behind as much smaller: the
    same function, with the activations that trained models of this kind have."""
    original = Checkpoint.parameter

    def spiked(self: Checkpoint, part: str, name: str) -> np.ndarray:
        array = original(self, part, name)
        if name == "layers.1.mlp.up_proj.weight":
            array = array.astype(np.float32)
            array[7] *= 1000
        elif name == "layers.1.mlp.down_proj.weight":
            array = array.astype(np.float32)
            array[:, 7] /= 1000
        return array

    checkpoint = find_checkpoint("demo")
    lost = {}
    for name, parameter in (("as trained", original), ("spiked", spiked)):
        monkeypatch.setattr(Checkpoint, "parameter", parameter)
        for precision in ("int8", "int4"):
            write_decoder(checkpoint, tmp_path, precision, {})
            lost[name, precision] = 1 - compare_decoder(checkpoint, tmp_path, precision)[1]
    for precision in ("int8", "int4"):
        assert lost["spiked", precision] < 2 * lost["as trained", precision]


MEMORY = """
import re, sys
from pathlib import Path
from export.decoder.graph import write_graph
from export.decoder.products import PRECISIONS
from paddle_recomp.checkpoint import open_checkpoint

def peak():
    # Not getrusage, whose peak a process inherits from the one that started it.
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

before = peak()
checkpoint = open_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]))
write_graph(checkpoint, Path(sys.argv[3]), PRECISIONS[sys.argv[4]](), {})
print(peak() - before, checkpoint.num_bytes("language_model"))
"""


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_an_export_holds_one_weight_at_a_time(precision: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    write_sparse_model(tmp_path / "model")
    output = tmp_path / "decoder.onnx"
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path / "model", GOLDEN / "clip", output, precision],
        capture_output=True,
        text=True,
        check=True,
    )
    growth, total = map(int, done.stdout.split()[-2:])
    assert total > 250e6
    assert growth < total / 4, growth
