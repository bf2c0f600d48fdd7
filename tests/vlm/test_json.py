"""`--json`: exactly these fields, of a bundle and of a checkpoint; docs/output.md has them all."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import paddle_recomp
from paddle_recomp import TokenBudget, load
from paddle_recomp.commands.main import main
from paddle_recomp.vlm.demo import DEMO, DEMO_CHECKPOINT, demo_bundle_folder, demo_folder
from paddle_recomp.vlm.loading import find_checkpoint

QUESTION = "what digit is red?"
ANSWER = [
    "images",
    "stages",
    "question",
    "answer",
    "finish_reason",
    "token_ids",
    "logprobs",
    "visual_tokens",
    "prefilled",
    "timing_ms",
    "model",
    "backend",
    "versions",
    "warnings",
]
BELOW = {
    "images[]": ["file", "kept", "of", "stages", "box", "grid", "tokens", "owner"],
    "images[].tokens": ["index", "stage", "centre"],
    "stages[]": ["name", "kind", "meaning"],
    "visual_tokens": ["kept", "of", "stages"],
    "timing_ms": ["vision", "text", "compress", "prefill", "decode", "first_token"],
    "model": ["name", "kind", "sha256", "projector_sha256", "method", "options", "precision"],
    "backend": ["encoder", "language_model"],
    "backend.encoder": ["name", "device", "precision"],
    "backend.language_model": ["name", "device", "precision"],
}
RUNTIMES = {
    DEMO: [("ONNX Runtime", "cpu", "int8"), ("ONNX Runtime", "cpu", "int8")],
    DEMO_CHECKPOINT: [("eager Paddle", "cpu", "fp32"), ("PaddleNLP", "cpu", "fp32")],
}
VERSIONS = {
    DEMO: {"paddle_recomp", "python", "numpy", "onnxruntime"},
    DEMO_CHECKPOINT: {"paddle_recomp", "python", "numpy", "paddle", "paddlenlp"},
}


def part(content: Any, path: str) -> Any:
    for name in path.split("."):
        content = content[name.removesuffix("[]")]
        content = content[0] if name.endswith("[]") else content
    return content


@pytest.mark.parametrize("model", [DEMO, DEMO_CHECKPOINT])
def test_an_answer(model: str, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [str(picture), str(picture), QUESTION, "--tokens", "24", "--model", model]
    assert main(["ask", *given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ANSWER
    for path, names in BELOW.items():
        assert list(part(found, path)) == names, path
    assert set(found["versions"]) == VERSIONS[model]
    assert found["versions"]["paddle_recomp"] == paddle_recomp.__version__
    assert found["versions"]["numpy"] == np.__version__
    runtimes = [tuple(one.values()) for one in found["backend"].values()]
    assert runtimes == RUNTIMES[model]
    about = found["model"]
    assert (about["name"], about["method"]) == (model, "recoverable")
    assert about["kind"] == ("bundle" if model == DEMO else "checkpoint")
    assert about["options"]["members"] == 32
    assert about["options"]["text_pooling"] == "end_of_text"

    vlm = load(model)
    answer = vlm.ask([picture, picture], QUESTION, TokenBudget(tokens=24))
    assert found["answer"] == answer.text
    assert found["prefilled"] == answer.prefilled > 24
    for one, kept in zip(found["images"], answer.compressed, strict=True):
        tokens = one["tokens"]
        assert tokens["index"] == kept.index[0].tolist()
        assert tokens["centre"] == kept.centre[0].tolist()
        assert one["owner"] == kept.owner[0].tolist()
        names = [stage["name"] for stage in found["stages"]]
        assert [names.index(name) for name in tokens["stage"]] == kept.stage[0].tolist()
        assert len(tokens["stage"]) == one["kept"] == 12
        assert one["grid"] == [16, 16]
        assert len(one["owner"]) == one["of"] == 256
        # The middle of 320×240 pixels.
        assert one["box"] == pytest.approx([40, 0, 280, 240], abs=1)


def test_an_answer_without_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", QUESTION, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ANSWER
    assert (found["images"], found["visual_tokens"]["of"]) == ([], 0)


def test_models_are_told_apart(tmp_path: Path) -> None:
    bundle, checkpoint = (load(name).info for name in (DEMO, DEMO_CHECKPOINT))
    assert bundle is not None
    assert checkpoint is not None
    sums = (demo_bundle_folder() / "SHA256SUMS").read_bytes()
    assert bundle.model()["sha256"] == hashlib.sha256(sums).hexdigest()
    assert bundle.model()["projector_sha256"] == checkpoint.model()["projector_sha256"]
    assert checkpoint.model()["sha256"] == find_checkpoint(DEMO_CHECKPOINT).fingerprint()

    shutil.copytree(demo_folder() / "llava", tmp_path / "llava")
    same = find_checkpoint(tmp_path / "llava", demo_folder() / "clip").fingerprint()
    assert same == checkpoint.model()["sha256"]
    # One number of the last norm of the language model.
    weights = tmp_path / "llava" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    fields = json.loads(content[8:header])
    content[header + fields["language_model.model.norm.weight"]["data_offsets"][0]] ^= 1
    weights.write_bytes(content)
    changed = find_checkpoint(tmp_path / "llava", demo_folder() / "clip")
    assert changed.fingerprint() != same


def test_a_measurement(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--json", "--new-tokens", "2", "--repeats", "1", "--tokens", "8"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == DEMO
    assert list(found["loaded"]) == ["model", "backend", "versions"]
    assert list(found["loaded"]["model"]) == BELOW["model"]
    assert {"patches", "rows", "gains", "peak_memory", "peaks_apart", "machine"} <= set(found)


def test_the_document_has_every_field() -> None:
    document = (Path(__file__).parents[2] / "docs" / "output.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`[^|]+`) \|", document, re.MULTILINE)
    named = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    below = [f"{path}.{name}" for path, names in BELOW.items() for name in names]
    assert sorted(named) == sorted([*ANSWER, *below])
