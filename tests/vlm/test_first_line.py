"""The preset `faithful` from the text on: what CLIP reads, and what it makes of that, are what the
public code's way from a prompt to the scores of its patches gave (tests/golden/first_line.npz)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

import paddle_recomp
from export.manifest import facts_of
from paddle_recomp.bundle import open_bundle
from paddle_recomp.checkpoint import Checkpoint
from paddle_recomp.compression import ops
from paddle_recomp.compression.config import preset
from paddle_recomp.preprocess import TEMPLATES, ChatTemplate
from paddle_recomp.vlm.demo import DEMO_CHECKPOINT, demo_bundle_folder
from paddle_recomp.vlm.front_end import VisualFrontEnd
from paddle_recomp.vlm.loading import find, load, load_front_end
from paddle_recomp.vlm.vlm import VLM
from tests.bundle.conftest import change
from tests.bundle_reader import Reader

GOLDEN = dict(np.load(Path(__file__).parents[1] / "golden" / "first_line.npz"))
PICTURE = Path(paddle_recomp.__file__).parent / "assets" / "pictures" / "scene_5.png"
LINES: dict[str, str] = json.loads(str(GOLDEN["about"]))["lines"]
ASKED = "where is the star?"
BRACKETS = ChatTemplate("", "[INST] ", " [/INST]", " ", "</s>")
PROMPTS: dict[str, tuple[str, ChatTemplate]] = {
    "vicuna": (ASKED, TEMPLATES["vicuna_v1"]),
    # The first line is that of the first question.
    "vicuna, second turn": ("where?", TEMPLATES["vicuna_v1"]),
    "no system": (ASKED, TEMPLATES["llava_hf"]),
    "picture behind": (f"{ASKED} <image>", TEMPLATES["llava_hf"]),
    "brackets": (ASKED, BRACKETS),
}


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    found = find(DEMO_CHECKPOINT)
    assert isinstance(found, Checkpoint)
    return found


@pytest.fixture(scope="module")
def front_end(checkpoint: Checkpoint) -> VisualFrontEnd:
    return load_front_end(checkpoint, preset("faithful"))


def test_every_recorded_prompt_is_compared() -> None:
    assert set(PROMPTS) == set(LINES)


@pytest.mark.parametrize("name", PROMPTS)
def test_clip_reads_the_public_codes_text(name: str, front_end: VisualFrontEnd) -> None:
    question, template = PROMPTS[name]
    text = front_end.text_of(question, 1, template)
    # CLIP reads every stretch of white space as one.
    assert text.split() == LINES[name].split()
    ids, _ = front_end.tokenizer.encode([text], front_end.question_positions)
    np.testing.assert_array_equal(ids[0], GOLDEN[f"{name}.ids"])
    features = front_end.backend.run("text", {"question_ids": ids})["text_embeds"]
    np.testing.assert_allclose(features[0], GOLDEN[f"{name}.feature"], atol=2e-5)
    (seen,) = front_end.see([PICTURE])
    patches = paddle.to_tensor(seen.features["patch_embeds"]).reshape([1, 256, -1])
    score = ops.cosine_scores(paddle.to_tensor(features), patches).numpy()
    np.testing.assert_allclose(score[0], GOLDEN[f"{name}.score"], atol=2e-6)


def test_a_question_is_read_as_it_is(checkpoint: Checkpoint) -> None:
    front_end = load_front_end(checkpoint, preset("corrected"))
    assert front_end.text_of(ASKED, 1, TEMPLATES["vicuna_v1"]) == ASKED


def test_a_model_and_its_conversation_read_the_same(
    front_end: VisualFrontEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = list[str]()
    encode = front_end.tokenizer.encode

    def note(texts: Sequence[str], length: int) -> tuple[np.ndarray, list[bool]]:
        read.extend(texts)
        return encode(texts, length)

    monkeypatch.setattr(front_end.tokenizer, "encode", note)
    faithful = VLM(front_end, load(DEMO_CHECKPOINT).answerer)
    faithful.ask(PICTURE, ASKED)
    chat = faithful.chat(PICTURE)
    chat.ask(ASKED)
    assert read == ["<s>USER:", "<s>USER:"]


def copy_with(folder: Path, question: dict[str, Any]) -> Path:
    """The demo's bundle with another section `question`."""
    copy = Path(shutil.copytree(demo_bundle_folder(), folder / "copy"))
    change(copy, lambda content: content.update(question=question))
    return copy


def test_a_bundle_says_what_stands_in_front(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """In recomp.json, for the library and for the reader of docs/bundle.md."""
    said = facts_of(checkpoint, "prompt_first_line")["question"]
    assert said["begin"] == "<s>"
    assert "begin" not in facts_of(checkpoint, "question")["question"]
    copy = copy_with(tmp_path, said)
    bundle = open_bundle(copy)
    front_end = load_front_end(bundle)
    text = front_end.text_of(ASKED, 1, bundle.template)
    assert text == "<s>USER:"
    ids, _ = front_end.tokenizer.encode([text], front_end.question_positions)
    np.testing.assert_array_equal(Reader(copy).question_ids(ASKED), ids)
    np.testing.assert_array_equal(ids[0], GOLDEN["no system.ids"])


def test_an_older_bundle_reads_as_it_did(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Its golden cases were recorded without what stands in front."""
    said = facts_of(checkpoint, "prompt_first_line")["question"]
    del said["begin"]
    bundle = open_bundle(copy_with(tmp_path, said))
    assert load_front_end(bundle).text_of(ASKED, 1, bundle.template) == "USER:"
