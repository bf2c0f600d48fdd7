"""docs/bundle.md is enough: a reader of nothing else answers the golden cases, the program in it
runs, and its tables are those of the schemas."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from paddle_recomp.bundle import open_bundle
from paddle_recomp.bundle.golden import read_golden
from paddle_recomp.preprocess import (
    IMAGE_TOKEN,
    TEMPLATES,
    LanguageTokenizer,
    Prompt,
    Turn,
    clip_text,
    render,
)
from paddle_recomp.vlm.demo import demo_bundle_folder
from tests import bundle_reader
from tests.bundle.tables import DOCUMENT, filled
from tests.hiding import without

from .conftest import KEPT, change

LLAMA = Path(__file__).parents[1] / "golden" / "llama_tokenizer"

HIDE = without("paddle", "paddlenlp", "paddle_recomp", "export", "onnx")


@pytest.mark.parametrize("folder", [KEPT, demo_bundle_folder()], ids=["fp32", "int8"])
def test_a_reader_without_this_library_answers(folder: Path) -> None:
    code = f"{HIDE}\nimport runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
    code = f"import sys; sys.argv = {[bundle_reader.__file__, str(folder)]!r}\n{code}"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == ["4", "of", "4", "answers", "are", "the", "recorded", "ones"]


def test_the_reader_refuses_what_the_document_says(copy: Path) -> None:
    with pytest.raises(ValueError, match="leads out"):
        bundle_reader.Reader(copy).read("../x")
    (copy / "recomp.json").write_text("{}")
    with pytest.raises(ValueError, match="was changed"):
        bundle_reader.Reader(copy)


@pytest.mark.parametrize("folder", [KEPT, demo_bundle_folder()], ids=["fp32", "int8"])
@pytest.mark.parametrize("token", ["</s>", "<image>", "<pad>", "<|endoftext|>"])
def test_the_reader_makes_no_control_token_of_what_was_said(folder: Path, token: str) -> None:
    bundle, reader = open_bundle(folder), bundle_reader.Reader(folder)
    asked = f"is {token}red?" if token != "<image>" else "is it red?"
    turns = [Turn("where is it?", f" a{token} b", 1), Turn(asked, token), Turn("why?")]
    own = bundle.language_tokenizer().encode(render(bundle.template, turns))
    parts = reader.prompt([(turn.question, turn.answer, turn.images) for turn in turns])
    assert reader.prompt_ids(parts) == own
    assert own.count(IMAGE_TOKEN) == 1
    text = clip_text(asked, 1, bundle.template, bundle.question_source)
    ids, _ = bundle.clip_tokenizer().encode([text], bundle.question_positions)
    assert reader.question_ids(asked).tolist() == ids.tolist()


@pytest.mark.parametrize("legacy", [True, False])
def test_the_reader_takes_either_behaviour_of_llamas_tokenizers(
    copy: Path, tmp_path: Path, legacy: bool
) -> None:
    """From tokenizer.json alone; the ids are those that transformers recorded."""
    recorded = json.loads((LLAMA / "cases.json").read_text(encoding="utf-8"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"legacy": legacy}))
    shutil.copy(LLAMA / "tokenizer.model", tmp_path)
    words = LanguageTokenizer.from_folder(tmp_path, TEMPLATES["vicuna_v1"])
    (copy / "llm" / "tokenizer.json").write_text(words.to_json(), encoding="utf-8")
    ids = {"bos_token_id": 1, "eos_token_ids": [2], "pad_token_id": 2, "silent_ids": [0, 1, 2]}
    template = asdict(TEMPLATES["vicuna_v1"])
    change(copy, lambda c: c["prompt"].update(**ids, image_token_id=None, template=template))
    bundle, reader = open_bundle(copy), bundle_reader.Reader(copy)
    cases = recorded["slow"]["legacy" if legacy else "not legacy"]["ids"]
    for text, expected in zip(recorded["texts"], cases, strict=True):
        once = expected[1:] if expected[1:2] == [1] else expected
        assert reader.prompt_ids([(text, False)]) == once
        assert bundle.language_tokenizer().encode(Prompt.of_template(text)) == once
    turns = [Turn("what?", "A </s>", 1), Turn("why <s>?", "<image>"), Turn("so </s>?")]
    parts = reader.prompt([(turn.question, turn.answer, turn.images) for turn in turns])
    own = bundle.language_tokenizer().encode(render(bundle.template, turns))
    assert reader.prompt_ids(parts) == own
    assert (own.count(1), own.count(2), own.count(IMAGE_TOKEN)) == (1, 2, 1)


def program() -> str:
    text = DOCUMENT.read_text(encoding="utf-8")
    (found,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return str(found)


def test_the_program_is_short() -> None:
    assert len([line for line in program().splitlines() if line]) <= 25


@pytest.mark.parametrize("folder", [KEPT, demo_bundle_folder()], ids=["fp32", "int8"])
def test_the_program_gives_what_was_recorded(folder: Path, tmp_path: Path) -> None:
    case = read_golden(open_bundle(folder)).cases[0]
    output = tmp_path / "visual_embeds.npy"
    command = [sys.executable, "-I", "-c", HIDE + program(), str(folder), str(case.picture)]
    subprocess.run([*command, case.question, str(output)], check=True, cwd=tmp_path)
    found, expected = np.load(output), case.arrays["visual_embeds"]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_the_tables_are_those_of_the_schemas() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert filled(text) == text, "python -m tests.bundle.tables"
