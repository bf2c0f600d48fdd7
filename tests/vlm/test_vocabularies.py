"""Tokenizers, tables of words and configurations that do not have the same ids."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_recomp.checkpoint import Checkpoint
from paddle_recomp.config import GenerationConfig, TokenBudget
from paddle_recomp.errors import CheckpointError
from paddle_recomp.preprocess import IMAGE_TOKEN, Prompt
from paddle_recomp.vlm.checkpoint_inputs import language_side, question_tokenizer
from paddle_recomp.vlm.conversation import Mode
from paddle_recomp.vlm.demo import demo_folder
from paddle_recomp.vlm.loading import find_checkpoint, load
from paddle_recomp.vlm.vlm import VLM
from tests.vlm.test_conversation import Scripted, answer_ids

BUDGET = TokenBudget(tokens=20)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """The demo's checkpoint, to change."""
    return Path(shutil.copytree(demo_folder(), tmp_path / "demo"))


def change(path: Path, edit: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def opened(folders: Path, vocab_size: int = 704) -> Checkpoint:
    """As if the language model, whose weights nothing here reads, had so many rows."""
    checkpoint = find_checkpoint(folders / "llava", folders / "clip")
    language = replace(checkpoint.spec.language, vocab_size=vocab_size)
    return replace(checkpoint, spec=replace(checkpoint.spec, language=language))


def add_token(path: Path, content: str, number: int, *, special: bool) -> None:
    token = {"id": number, "content": content, "special": special}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    change(path, lambda c: c["added_tokens"].append({**token, **flags}))


def test_clips_tokenizer_ends_where_clip_pools(folders: Path) -> None:
    config = folders / "clip" / "config.json"
    assert question_tokenizer(opened(folders)).end_id == 719
    change(config, lambda c: c["text_config"].update(eos_token_id=2))
    assert question_tokenizer(opened(folders)).end_id == 719
    change(config, lambda c: c["text_config"].update(eos_token_id=718))
    with pytest.raises(CheckpointError, match=r"ends a text by the id 719, but .* pools, is 718$"):
        question_tokenizer(opened(folders))
    with pytest.raises(CheckpointError, match="is 718"):
        load(folders / "llava", folders / "clip")


def test_clips_tokenizer_has_no_id_without_a_row(folders: Path) -> None:
    tokenizer = folders / "clip" / "tokenizer.json"
    add_token(tokenizer, "<photo>", 720, special=True)  # Nobody can say it.
    question_tokenizer(opened(folders))
    add_token(tokenizer, "photograph", 721, special=False)
    with pytest.raises(
        CheckpointError, match=r"has the id 721, but text_config.vocab_size is 720;"
    ):
        question_tokenizer(opened(folders))


def test_the_language_models_tokenizer_has_no_id_without_a_row(folders: Path) -> None:
    words, _ = language_side(opened(folders, vocab_size=655))
    assert (words.highest_id, words.image_token_id, words.pad_token_id) == (654, 655, 656)
    with pytest.raises(CheckpointError, match=r"the tokenizer's id 654, but .* vocab_size is 654;"):
        language_side(opened(folders, vocab_size=654))
    tokenizer = folders / "llava" / "tokenizer.json"
    add_token(tokenizer, "<tool>", 657, special=True)
    language_side(opened(folders, vocab_size=655))
    add_token(tokenizer, "colour", 658, special=False)
    with pytest.raises(CheckpointError, match="the tokenizer's id 658"):
        language_side(opened(folders, vocab_size=658))
    assert language_side(opened(folders, vocab_size=659))[0].highest_id == 658


def test_a_token_of_the_template_has_a_row(folders: Path) -> None:
    add_token(folders / "llava" / "tokenizer.json", "<turn>", 657, special=True)
    words, pieces = language_side(opened(folders, vocab_size=655))
    turned = replace(pieces, before_question=f"<turn>{pieces.before_question}")
    own = type(words).from_folder(folders / "llava", turned)
    assert (words.highest_id, own.highest_id) == (654, 657)


def test_image_token_index(folders: Path) -> None:
    """It is never looked up, so it may lie behind the table; but it is the tokenizer's."""
    config = folders / "llava" / "config.json"
    assert opened(folders, vocab_size=655).spec.image_token_id == 655
    words, _ = language_side(opened(folders, vocab_size=655))
    assert words.encode(Prompt.of_template("<image>")) == [1, IMAGE_TOKEN]
    change(config, lambda c: c.update(image_token_index=32000))
    with pytest.raises(CheckpointError, match=r"image_token_index is 32000, but .* is 655$"):
        language_side(opened(folders))
    # A tokenizer without the token cuts prompts at pictures.
    path = folders / "llava" / "tokenizer.json"
    about = json.loads(path.read_text(encoding="utf-8"))
    kept = [token for token in about["added_tokens"] if token["content"] == "<image>"]
    about["added_tokens"] = [one for one in about["added_tokens"] if one not in kept]
    path.write_text(json.dumps(about), encoding="utf-8")
    words, _ = language_side(opened(folders))
    assert words.image_token_id is None
    assert words.encode(Prompt.of_template("<image>")) == [1, IMAGE_TOKEN]


def test_end_tokens_of_config_json_end_answers(folders: Path) -> None:
    (folders / "llava" / "generation_config.json").unlink()
    config = folders / "llava" / "config.json"
    change(config, lambda c: c["text_config"].update(eos_token_id=[2, 5]))
    assert language_side(opened(folders))[0].eos_token_ids == (2, 5)
    change(config, lambda c: c.update(eos_token_id=6))
    assert language_side(opened(folders))[0].eos_token_ids == (2, 6)
    change(config, lambda c: (c.pop("eos_token_id"), c["text_config"].pop("eos_token_id")))
    assert language_side(opened(folders))[0].eos_token_ids == (2,)


@pytest.mark.parametrize("mode", ["recompress", "append", "keep"])
def test_an_id_of_a_padding_row_is_left_out_of_the_text(mode: Mode, picture: Path) -> None:
    """The language model goes on behind it, and so does the conversation."""
    vlm = load()
    words, rows = vlm.answerer.tokenizer, 704
    assert words.vocab_size < rows
    red = answer_ids(words, "red")
    script = Scripted([[700, *red, 703], red], words.eos_token_ids[0], 160, rows)
    front_end = vlm.front_end
    chat = VLM(front_end, replace(vlm.answerer, model=script)).chat(
        front_end.see([picture])[0], mode
    )
    settings = GenerationConfig(max_new_tokens=8)
    first = chat.ask("what digit is red?", BUDGET, settings)
    assert (first.text, first.token_ids) == ("red", (700, *red, 703))
    assert chat.ask("where is it?", BUDGET, settings).text == "red"
    assert (700 in chat._past.ids) == (mode != "recompress")
    # The embedded model has such rows, and looks them up.
    assert vlm.answerer.model.embed(np.array([700, 703])).shape[0] == 2
