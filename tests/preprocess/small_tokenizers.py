"""Small tokenizers of the kinds that language models have."""

from __future__ import annotations

import io
import string
from typing import Any

import sentencepiece
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from paddle_recomp.preprocess import load_tokenizer
from paddle_recomp.preprocess import sentencepiece as ours
from paddle_recomp.vlm.demo import demo_folder

CLIP_MARKERS = ("<|startoftext|>", "<|endoftext|>")
SPACE = ours.SPACE
SENTENCES = [
    "the cat sat on the mat and looked at the other cat  twice",
    "aaaa aaaaa aaaaaaa abab ababab banana bananas",
    "What is this? USER: what\nASSISTANT: this is\n\na cat.",
    "naïve café, größer: 日本 日本語",
]
WORDS = (
    r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Their split of a text into words."""


def train(**options: Any) -> bytes:
    """A small SentencePiece model with the settings of Llama's."""
    model = io.BytesIO()
    settings: dict[str, Any] = {
        "model_type": "bpe",
        "vocab_size": 380,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "hard_vocab_limit": False,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 3), model_writer=model, **{**settings, **options}
    )
    return model.getvalue()


def llama() -> Tokenizer:
    """Llama's: a space in front of every stretch between control tokens."""
    return ours.build(ours.parse(train(), "model"))


def first_prefix() -> Tokenizer:
    """One whose space stands only in front of the text."""
    tokenizer = llama()
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return tokenizer


def byte_level() -> Tokenizer:
    """One of bytes, as Qwen2's and Llama 3's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    return tokenizer


def demo() -> Tokenizer:
    """That of the packaged model."""
    return load_tokenizer(demo_folder() / "llava" / "tokenizer.json")


KINDS = {"llama": llama, "first prefix": first_prefix, "byte level": byte_level, "demo": demo}
CONTROL = [
    AddedToken("<s>", special=True, normalized=False),
    AddedToken("</s>", special=True, normalized=False),
    AddedToken("<|im_start|>", special=False, normalized=False),
    AddedToken("<|im_end|>", special=True, normalized=False),
    AddedToken("<|left|>", special=True, normalized=False, lstrip=True),
    AddedToken("<|right|>", special=True, normalized=False, rstrip=True),
    AddedToken("<|word|>", special=True, normalized=False, single_word=True),
    AddedToken("<image>", special=False, normalized=False),
]
NORMALISED = AddedToken("<|normal|>", special=True, normalized=True)
"""Found behind a text's normalisation, which puts a space in front of it where Llama's does."""
ORDINARY = [
    AddedToken("\0\0", special=False, normalized=False),
    AddedToken("cat", special=False, normalized=False, single_word=True),
    AddedToken("<tool>", special=False, normalized=False),
]


def with_added(tokenizer: Tokenizer) -> Tokenizer:
    """With control tokens of all kinds, and some tokens that are no control."""
    for token in [*CONTROL, NORMALISED, *ORDINARY]:
        tokenizer.add_special_tokens([token]) if token.special else tokenizer.add_tokens([token])
    return tokenizer


def letters_of_clip(size: int) -> Tokenizer:
    """CLIP's, for a table of `size` rows: single letters, and the markers at the end."""
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    words = [*letters[: size - 2], *(f"{letter}</w>" for letter in letters)][: size - 2]
    vocabulary = {text: number for number, text in enumerate((*words, *CLIP_MARKERS))}
    bpe = models.BPE(vocabulary, [], unk_token=CLIP_MARKERS[1], end_of_word_suffix="</w>")
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in CLIP_MARKERS]
    )
    return tokenizer


def letters_of_llama(size: int, image: int) -> Tokenizer:
    """Llama's, for a table of at least `size` rows: single letters, and `<image>` at its id."""
    letters = [SPACE, "\n", *string.ascii_letters, *string.digits, *string.punctuation]
    words = ["<unk>", "<s>", "</s>", *letters]
    words.insert(image, "<image>")
    vocabulary = {text: number for number, text in enumerate(words[:size])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.Fuse()])
    special = ("<unk>", "<s>", "</s>", "<image>")
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in special]
    )
    return tokenizer
