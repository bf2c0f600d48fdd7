"""The bundle that ships with the library: it is the embedded checkpoint's, and answers as it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from export.verify import verify_bundle
from paddle_recomp.bundle import Bundle, LanguageModelSource
from paddle_recomp.checkpoint import Checkpoint
from paddle_recomp.commands.main import main
from paddle_recomp.compression.config import CompressionConfig, preset
from paddle_recomp.config import TokenBudget
from paddle_recomp.errors import BundleNotFoundError, ConfigError
from paddle_recomp.llm.onnx_decoder import OnnxDecoder
from paddle_recomp.llm.paddle_llama import PaddleLlama
from paddle_recomp.vlm.demo import (
    DEMO,
    DEMO_CHECKPOINT,
    demo_bundle_folder,
    demo_folder,
    demo_pictures,
)
from paddle_recomp.vlm.fingerprints import projector_checksum
from paddle_recomp.vlm.loading import config_of, find, find_checkpoint, load
from tests.hiding import recomp_without

QUESTION = "what digit is red?"


def test_it_is_of_the_embedded_checkpoint() -> None:
    bundle = find(DEMO)
    assert isinstance(bundle, Bundle)
    bundle.verify()
    assert (bundle.precision, config_of(bundle)) == ("int8", CompressionConfig())
    assert bundle.decoder is not None
    assert bundle.decoder.precision == "int8"
    checkpoint = find_checkpoint(DEMO_CHECKPOINT)
    source = LanguageModelSource(DEMO, projector_checksum(checkpoint))
    assert bundle.language_model == source
    stored = np.load(bundle.verified(bundle.decoder.embed_tokens))
    wanted = checkpoint.parameter("language_model", "embed_tokens.weight")
    np.testing.assert_array_equal(stored, wanted)


def test_it_computes_what_the_checkpoint_does() -> None:
    rows = verify_bundle(demo_bundle_folder(), DEMO_CHECKPOINT)
    assert {"vision", "text", "compress", "decoder"} <= {row.stage for row in rows}
    assert [row for row in rows if not row.passed] == []


def test_it_answers_the_shipped_questions() -> None:
    vlm = load(DEMO)
    asked = [question for questions in demo_pictures().values() for question in questions]
    seen = {path: vlm.see(path) for path in demo_pictures()}
    answers = [vlm.ask(seen[one.picture], one.question, TokenBudget(full=True)) for one in asked]
    assert [answer.text for answer in answers] == [one.expected for one in asked]


def test_a_name_means_one_thing() -> None:
    """`demo` is the bundle where something runs it, the checkpoint where only that will do."""
    assert isinstance(find(DEMO), Bundle)
    assert isinstance(find(DEMO_CHECKPOINT), Checkpoint)
    assert find_checkpoint(DEMO).model_dir == find_checkpoint(DEMO_CHECKPOINT).model_dir
    assert isinstance(load(DEMO).answerer.model, OnnxDecoder)
    assert isinstance(load(DEMO_CHECKPOINT).answerer.model, PaddleLlama)
    # Its towers in front of the checkpoint's language model, by either name.
    for name in (DEMO, DEMO_CHECKPOINT):
        assert isinstance(load(DEMO, llm=name).answerer.model, PaddleLlama)
    folder = demo_folder()
    model = load(DEMO, clip=folder / "clip", llm=folder / "llava").answerer.model
    assert isinstance(model, PaddleLlama), "a CLIP goes with the language model's folder"


def test_what_was_exported_otherwise_is_the_checkpoints(
    picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=r"'demo' was exported with .*demo-checkpoint"):
        load(DEMO, config=preset("faithful"))
    asked = ["ask", str(picture), QUESTION, "--json"]
    assert main([*asked, "--preset", "faithful"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--model demo-checkpoint" in line
    answers = []
    for question in (QUESTION, "where is the circle?"):
        arguments = [*asked[:2], question, "--json", "--preset", "faithful"]
        assert main([*arguments, "--model", DEMO_CHECKPOINT]) == 0
        answers.append(json.loads(capsys.readouterr().out)["visual_tokens"])
    # The public code does not read the question when it chooses.
    assert answers[0] == answers[1]


def test_a_lost_bundle_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Never the checkpoint in its place."""
    monkeypatch.setattr("paddle_recomp.vlm.demo.demo_folder", lambda: tmp_path)
    with pytest.raises(BundleNotFoundError, match=r"recomp\.json"):
        find(DEMO)


def test_the_light_install_runs_all_of_it(picture: Path, tmp_path: Path) -> None:
    """paddle is hidden from the process."""
    hidden = ("paddle", "paddlenlp", "onnx")
    asked = recomp_without(hidden, "ask", str(picture), QUESTION, "--json")
    assert asked.returncode == 0, asked.stderr
    assert json.loads(asked.stdout)["answer"] == load(DEMO).ask(picture, QUESTION).text
    for arguments in (("info", DEMO_CHECKPOINT), ("demo", "-o", str(tmp_path))):
        done = recomp_without(hidden, *arguments)
        assert done.returncode == 0, done.stderr
    refused = recomp_without(hidden, "ask", str(picture), QUESTION, "--model", DEMO_CHECKPOINT)
    assert refused.returncode == 2
    assert "paddle-recomp[paddle]" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
