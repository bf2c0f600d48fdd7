"""The tokenizers against transformers' ids, SentencePiece itself, and broken folders."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from paddle_recomp.errors import CheckpointError, CheckpointNotFoundError, ConfigError
from paddle_recomp.preprocess import (
    IMAGE_TOKEN,
    ClipTokenizer,
    LanguageTokenizer,
    Prompt,
    load_tokenizer,
)
from paddle_recomp.preprocess import sentencepiece as ours
from tests.preprocess.small_tokenizers import SENTENCES, train

of_template = Prompt.of_template
CLIP: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "golden" / "clip_tokenizer.json").read_text(encoding="utf-8")
)
ALPHABET = st.sampled_from(list("abnthe cat\n \t.?:USER▁é日本語語😀\u0301\u2028"))
TEXT = st.one_of(st.text(ALPHABET, max_size=40), st.text(max_size=20))


MODEL = train()
REFERENCE = sentencepiece.SentencePieceProcessor(model_proto=MODEL)


def language(folder: Path, **files: Any) -> LanguageTokenizer:
    (folder / "tokenizer.model").write_bytes(MODEL)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return LanguageTokenizer.from_folder(folder)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> LanguageTokenizer:
    return language(tmp_path_factory.mktemp("llama"))


def byte_level() -> LanguageTokenizer:
    """A vocabulary of single bytes, as GPT-2's begins."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    return LanguageTokenizer(tokenizer, None, [256])


def with_image_token(folder: Path) -> LanguageTokenizer:
    """The same vocabulary as a tokenizer.json that has `<image>`, as llava-hf's."""
    tokenizer = ours.build(ours.parse(MODEL, "model"))
    tokenizer.add_special_tokens([AddedToken("<image>", special=True, normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"add_bos_token": true}')
    return LanguageTokenizer.from_folder(folder)


def test_a_tokenizer_that_only_ends_a_text_does_not_begin_it(tmp_path: Path) -> None:
    tokenizer = ours.build(ours.parse(MODEL, "model"))
    for template, begins in (("$A </s>", False), ("<s> $A </s>", True)):
        ids = [("<s>", 1), ("</s>", 2)]
        tokenizer.post_processor = processors.TemplateProcessing(template, None, ids)
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        assert (LanguageTokenizer.from_folder(tmp_path).bos_token_id == 1) == begins


def clip_folder(folder: Path, fast: bool) -> Path:
    if fast:
        (folder / "tokenizer.json").write_text(json.dumps(CLIP["tokenizer"]))
    else:
        (folder / "vocab.json").write_text(json.dumps(CLIP["vocab"]), encoding="utf-8")
        lines = ["#version: 0.2", *CLIP["merges"], ""]
        (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.mark.parametrize("fast", [True, False])
def test_clip_parity_with_transformers(tmp_path: Path, fast: bool) -> None:
    tokenizer = ClipTokenizer.from_folder(clip_folder(tmp_path, fast))
    texts = [case["text"] for case in CLIP["cases"]]
    ids, truncated = tokenizer.encode(texts, CLIP["max_length"])
    assert ids.dtype == np.int64
    for row, case in zip(ids.tolist(), CLIP["cases"], strict=True):
        assert row == case["ids"], case["text"]
    assert [truncated[place] for place in (3, 8, 9, 10)] == [True, False, False, True]


def test_clip_two_layouts_agree(tmp_path: Path) -> None:
    (tmp_path / "fast").mkdir()
    (tmp_path / "slow").mkdir()
    fast = ClipTokenizer.from_folder(clip_folder(tmp_path / "fast", True))
    slow = ClipTokenizer.from_folder(clip_folder(tmp_path / "slow", False))

    @given(TEXT)
    @settings(max_examples=300, deadline=None)
    def check(text: str) -> None:
        np.testing.assert_array_equal(fast.encode([text], 40)[0], slow.encode([text], 40)[0])

    check()


def test_clip_truncation_and_padding(tmp_path: Path) -> None:
    tokenizer = ClipTokenizer.from_folder(clip_folder(tmp_path, True))
    full, cut = tokenizer.encode(["a cat", "a cat " * 9], 12)
    assert cut == [False, True]
    assert full[:, 0].tolist() == [tokenizer.start_id] * 2
    assert full[:, -1].tolist() == [tokenizer.end_id] * 2
    words = len(tokenizer.encode(["a cat"], 12)[0][0].tolist()) - full[0].tolist().count(
        tokenizer.end_id
    )
    exact, cut = tokenizer.encode(["a cat"], words + 1)
    assert cut == [False]
    assert exact[0].tolist() == full[0, : words + 1].tolist()
    assert tokenizer.encode(["a cat"], words)[1] == [True]
    assert tokenizer.encode([], 12)[0].shape == (0, 12)
    with pytest.raises(ConfigError, match="max_length is 1"):
        tokenizer.encode(["a"], 1)


@pytest.mark.parametrize("fast", [True, False])
def test_clips_markers_in_a_question_are_letters(tmp_path: Path, fast: bool) -> None:
    """CLIP would pool at the first end, and so read nothing behind it."""
    tokenizer = ClipTokenizer.from_folder(clip_folder(tmp_path, fast))
    markers = {tokenizer.start_id, tokenizer.end_id}
    for text in ("a <|endoftext|> cat", "<|startoftext|>", "<|endoftext|>", "cat<|endoftext|>"):
        ids, cut = tokenizer.encode([text], 40)
        first = ids[0].tolist().index(tokenizer.end_id)
        assert cut == [False]
        assert first > 3
        assert not markers & {*ids[0, 1:first].tolist()}
        assert {*ids[0, first:].tolist()} == {tokenizer.end_id}


def test_clip_broken_folders(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"neither tokenizer\.json nor vocab\.json"):
        ClipTokenizer.from_folder(tmp_path)
    clip_folder(tmp_path, False)
    (tmp_path / "merges.txt").write_text("no such\nmerge")
    with pytest.raises(CheckpointError, match=r"merges\.txt are broken"):
        ClipTokenizer.from_folder(tmp_path)
    (tmp_path / "vocab.json").write_text('{"a": "b"}')
    with pytest.raises(CheckpointError, match="are broken"):
        ClipTokenizer.from_folder(tmp_path)
    (tmp_path / "vocab.json").write_text('{"a": 0, "<|endoftext|>": 1}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a usable tokenizer"):
        ClipTokenizer.from_folder(tmp_path)
    ours.build(ours.parse(MODEL, "model")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="it is not CLIP's"):
        ClipTokenizer.from_folder(tmp_path)


@given(TEXT)
@settings(max_examples=1500, deadline=None)
def test_sentencepiece_parity(llama: LanguageTokenizer, text: str) -> None:
    for special in ("<s>", "</s>", "<unk>", "<image>", "\0"):
        text = text.replace(special, "")
    ids = REFERENCE.encode(text)
    assert llama.encode(of_template(text)) == [1, *ids]
    assert llama.decode(ids) == REFERENCE.decode(ids)


def test_sentencepiece_without_prefix_and_bytes() -> None:
    model = train(add_dummy_prefix=False, byte_fallback=False)
    reference = sentencepiece.SentencePieceProcessor(model_proto=model)
    tokenizer = LanguageTokenizer(ours.build(ours.parse(model, "model")), 1, [2])
    for text in [*SENTENCES, " two  spaces ", "", "the unknown ü here"]:
        assert tokenizer.encode(of_template(text))[1:] == reference.encode(text)
    assert tokenizer.decode(reference.encode("the cat")) == "the cat"


def test_user_defined_pieces() -> None:
    model = train(user_defined_symbols=["<sep>"])
    reference = sentencepiece.SentencePieceProcessor(model_proto=model)
    tokenizer = LanguageTokenizer(ours.build(ours.parse(model, "model")), 1, [2])
    number = reference.piece_to_id("<sep>")
    assert number in tokenizer.encode(of_template("the<sep>cat"))
    assert "<sep>" in tokenizer.decode(tokenizer.encode(of_template("the<sep>cat")))


@pytest.mark.parametrize("cut", [0, 1, 7, 100, len(MODEL) // 2, len(MODEL) - 3])
def test_truncated_model(cut: int) -> None:
    with pytest.raises(CheckpointError, match=r"model\.bin is not a SentencePiece model"):
        ours.parse(MODEL[:cut], "model.bin")


@given(st.binary(max_size=200))
def test_random_bytes_are_no_model(data: bytes) -> None:
    with pytest.raises(CheckpointError):
        ours.parse(data, "model.bin")


@given(st.integers(0, len(MODEL) - 1), st.integers(0, 255))
@settings(deadline=None)
def test_a_wrong_byte_never_escapes_as_another_error(place: int, value: int) -> None:
    data = bytearray(MODEL)
    data[place] = value
    with contextlib.suppress(CheckpointError):
        ours.build(ours.parse(bytes(data), "model.bin"))


def test_models_that_are_not_supported() -> None:
    with pytest.raises(CheckpointError, match="unigram model; only BPE"):
        ours.parse(train(model_type="unigram", vocab_size=330), "m")
    with pytest.raises(CheckpointError, match="nmt_nfkc, remove_extra_whitespaces=False"):
        ours.parse(train(normalization_rule_name="nmt_nfkc"), "m")
    with pytest.raises(CheckpointError, match="remove_extra_whitespaces=True"):
        ours.parse(train(remove_extra_whitespaces=True), "m")


def test_language_folders(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointNotFoundError, match=r"neither tokenizer\.json nor tokenizer\.model"
    ):
        LanguageTokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match=r"tokenizer\.model is not a SentencePiece model"):
        LanguageTokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("not json")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a usable tokenizer"):
        LanguageTokenizer.from_folder(tmp_path)


def test_which_tokens_begin_end_and_pad(tmp_path: Path, llama: LanguageTokenizer) -> None:
    assert (llama.bos_token_id, llama.eos_token_ids, llama.pad_token_id) == (1, (2,), 2)
    assert llama.vocab_size == REFERENCE.vocab_size()
    language(
        tmp_path,
        tokenizer_config={
            "add_bos_token": False,
            "eos_token": {"content": "</s>"},
            "pad_token": "<unk>",
        },
    )
    other = LanguageTokenizer.from_folder(tmp_path, ends=(7, 2))
    assert (other.bos_token_id, other.eos_token_ids, other.pad_token_id) == (None, (2, 7), 0)
    assert other.encode(of_template("the cat")) == llama.encode(of_template("the cat"))[1:]
    with pytest.raises(CheckpointError, match="no end-of-text token"):
        language(tmp_path, tokenizer_config={"eos_token": None})
    assert LanguageTokenizer.from_folder(tmp_path, ends=[7]).eos_token_ids == (7,)


def test_places_of_pictures(tmp_path: Path, llama: LanguageTokenizer) -> None:
    prompt = "USER: <image>\nWhat is this? ASSISTANT: a cat</s>USER: <image> <image>"
    ids = llama.encode(of_template(prompt))
    assert ids.count(IMAGE_TOKEN) == 3
    assert ids.count(1) == 1
    chunks = [REFERENCE.encode(text) for text in ("USER: ", "\nWhat is this? ASSISTANT: a cat")]
    assert ids[: 3 + sum(map(len, chunks))] == [1, *chunks[0], IMAGE_TOKEN, *chunks[1], 2]
    with_token = with_image_token(tmp_path)
    assert with_token.encode(of_template(prompt)) == ids
    assert with_token.decode(ids) == llama.decode(ids)
    assert llama.encode(of_template("<image>")) == [1, IMAGE_TOKEN]


@given(st.lists(st.integers(-1, 400), max_size=40), st.booleans())
@settings(max_examples=500, deadline=None)
def test_streamed_pieces_are_the_text(
    llama: LanguageTokenizer, ids: list[int], bytes_only: bool
) -> None:
    for tokenizer in (llama, byte_level()):
        numbers = [number % 256 for number in ids] if bytes_only else [*ids, IMAGE_TOKEN]
        stream = tokenizer.stream()
        pieces = [stream.feed(number) for number in numbers]
        assert not any(piece.endswith("\ufffd") for piece in pieces)
        assert "".join(pieces) + stream.flush() == tokenizer.decode(numbers)
        assert stream.flush() == ""


@given(st.text(max_size=20))
@settings(max_examples=300, deadline=None)
def test_streamed_text_has_no_half_characters(llama: LanguageTokenizer, text: str) -> None:
    text = text.replace("\ufffd", "").replace("\0", "")
    for tokenizer in (llama, byte_level()):
        stream = tokenizer.stream()
        pieces = [stream.feed(number) for number in tokenizer.encode(of_template(text))]
        assert not any("\ufffd" in piece for piece in pieces)
        assert "".join(pieces) + stream.flush() == tokenizer.decode(
            tokenizer.encode(of_template(text))
        )


def test_a_streamed_answer_comes_word_by_word(llama: LanguageTokenizer) -> None:
    stream = llama.stream()
    pieces = [stream.feed(number) for number in llama.encode(of_template("the cat 😀 sat"))]
    assert pieces[0] == ""
    assert "".join(pieces) == "the cat 😀 sat"
    assert sum(bool(piece) for piece in pieces) >= 4


def test_a_tokenizer_json_of_what_was_read_gives_the_same_ids(
    tmp_path: Path, llama: LanguageTokenizer
) -> None:
    """A bundle always has one, of whatever the checkpoint has."""
    slow = ClipTokenizer.from_folder(clip_folder(tmp_path, False))
    path = tmp_path / "again.json"
    path.write_text(slow.to_json(), encoding="utf-8")
    clip = ClipTokenizer(load_tokenizer(path), slow.start_id, slow.end_id)
    path.write_text(llama.to_json(), encoding="utf-8")
    words = LanguageTokenizer(
        load_tokenizer(path),
        llama.bos_token_id,
        llama.eos_token_ids,
        llama.pad_token_id,
        llama.image_token_id,
        llama.silent_ids,
    )
    assert "truncation" in json.loads(llama.to_json())

    @given(TEXT)
    @settings(max_examples=300, deadline=None)
    def check(text: str) -> None:
        np.testing.assert_array_equal(clip.encode([text], 40)[0], slow.encode([text], 40)[0])
        ids = llama.encode(of_template(text))
        assert words.encode(of_template(text)) == ids
        assert words.decode(ids) == llama.decode(ids)

    check()


def test_silent_ids_are_left_out_of_a_text(llama: LanguageTokenizer) -> None:
    assert llama.silent_ids == (0, 1, 2)
    ids = llama.encode(of_template("the cat"))
    quiet = LanguageTokenizer(ours.build(ours.parse(MODEL, "m")), 1, [2], silent_ids=ids[1:2])
    assert quiet.decode(ids) == llama.decode(ids[2:])
