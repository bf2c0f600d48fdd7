"""Text to ids and back: CLIP's text tower and the language model each have a tokenizer."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE

from paddle_recomp.errors import CheckpointError, CheckpointNotFoundError, ConfigError
from paddle_recomp.files import is_file
from paddle_recomp.json_files import one_line, read_bytes, read_json, shown
from paddle_recomp.preprocess import sentencepiece
from paddle_recomp.preprocess.chat_template import (
    IMAGE_PLACEHOLDER,
    ChatTemplate,
    Prompt,
    without_images,
)
from paddle_recomp.preprocess.prompt_ids import PromptEncoder
from paddle_recomp.preprocess.rust_errors import check, guarded

CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
CLIP_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
)
"""CLIP's split of a text: the two markers, English endings, words, digits, everything else."""

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class ClipTokenizer:
    """The tokenizer of CLIP's text tower."""

    def __init__(self, tokenizer: Tokenizer, start_id: int, end_id: int) -> None:
        """`start_id` and `end_id` are those of CLIP's two markers."""
        self.start_id, self.end_id = start_id, end_id
        # Truncation and padding are done here, whatever the file asks for.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        # A marker in a question is nothing but its letters.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer

    @classmethod
    @guarded
    def from_folder(cls, folder: str | os.PathLike[str]) -> ClipTokenizer:
        """Read tokenizer.json, or else vocab.json and merges.txt.

        Raises: CheckpointNotFoundError when neither is there; CheckpointError for a broken
        file."""
        path, vocabulary = Path(folder) / "tokenizer.json", Path(folder) / "vocab.json"
        merges = Path(folder) / "merges.txt"
        if is_file(path):
            tokenizer = load_tokenizer(path)
        elif is_file(vocabulary) and is_file(merges):
            path, tokenizer = vocabulary, _clip_bpe(vocabulary, merges)
        else:
            raise CheckpointNotFoundError(
                f"there is no tokenizer in {folder}: neither tokenizer.json nor vocab.json and "
                "merges.txt"
            )
        start, end = tokenizer.token_to_id(CLIP_START), tokenizer.token_to_id(CLIP_END)
        if start is None or end is None:
            raise CheckpointError(f"{path} has no {CLIP_START} or no {CLIP_END}: it is not CLIP's")
        return cls(tokenizer, start, end)

    @guarded
    def to_json(self) -> str:
        """The content of a tokenizer.json that gives the same ids, whatever was read."""
        text: str = self._tokenizer.to_str(pretty=True)
        return text

    @property
    def highest_id(self) -> int:
        """The highest id that a text can have."""
        ids: set[int] = {*self._tokenizer.get_vocab(with_added_tokens=True).values()}
        added = self._tokenizer.get_added_tokens_decoder()
        special = {number for number, token in added.items() if token.special}
        return max({*(ids - special), self.start_id, self.end_id})

    @guarded
    def encode(
        self, texts: Sequence[str], max_length: int
    ) -> tuple[npt.NDArray[np.int64], list[bool]]:
        """Ids [B, L], L = `max_length`, padded with the end marker, and whether each text had to
        be cut; a text that is cut still ends with the end marker.

        Raises: ConfigError when `max_length` has no room for the two markers."""
        if max_length < 2:
            raise ConfigError(f"max_length is {max_length}; expected at least 2")
        ids = np.full((len(texts), max_length), self.end_id, dtype=np.int64)
        truncated = []
        for row, text in zip(ids, texts, strict=True):
            words = self._tokenizer.encode(text, add_special_tokens=False).ids
            truncated.append(len(words) > max_length - 2)
            words = words[: max_length - 2]
            row[: len(words) + 1] = [self.start_id, *words]
        return ids, truncated


class LanguageTokenizer:
    """The tokenizer of the language model."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        bos_token_id: int | None,
        eos_token_ids: Sequence[int],
        pad_token_id: int | None = None,
        image_token_id: int | None = None,
        silent_ids: Collection[int] = (),
        template: ChatTemplate | None = None,
    ) -> None:
        """`bos_token_id` begins every prompt; None where the model wants none. Padding falls
        back to the first end id. `image_token_id` is what the tokenizer makes of `<image>`; None
        where it has no such token. `silent_ids` are left out of a text, as are all of these. They
        are control in the template's text only, as are the added tokens that `template` writes.

        Raises: CheckpointError when nothing ends an answer, or the tokenizer is not BPE."""
        if not eos_token_ids:
            raise CheckpointError("the tokenizer has no end-of-text token: no answer would end")
        self.bos_token_id = bos_token_id
        self.eos_token_ids = tuple(eos_token_ids)
        self.pad_token_id = self.eos_token_ids[0] if pad_token_id is None else pad_token_id
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.image_token_id = image_token_id
        own = {bos_token_id, self.pad_token_id, *self.eos_token_ids, image_token_id}
        self.silent_ids = tuple(sorted({*silent_ids, *(n for n in own if n is not None)}))
        texts = () if template is None else template.texts
        self._prompt_ids = PromptEncoder(tokenizer, image_token_id, self.silent_ids, texts)
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        self._text_ids = frozenset(vocabulary.values()) - {*self.silent_ids}
        self._byte_ids = frozenset(n for text, n in vocabulary.items() if _BYTE.fullmatch(text))

    @classmethod
    @guarded
    def from_folder(
        cls,
        folder: str | os.PathLike[str],
        template: ChatTemplate | None = None,
        ends: Collection[int] = (),
    ) -> LanguageTokenizer:
        """Read tokenizer.json, or else tokenizer.model (SentencePiece BPE); which tokens begin,
        end and pad comes from tokenizer_config.json where it exists. `ends` are further ids that
        end an answer.

        Raises: CheckpointNotFoundError when neither is there; CheckpointError for a broken
        file."""
        folder = Path(folder)
        fast, slow = folder / "tokenizer.json", folder / "tokenizer.model"
        config = _optional_json(folder / "tokenizer_config.json")
        if is_file(fast):
            tokenizer = load_tokenizer(fast)
        elif is_file(slow):
            # A folder that does not say it means the older behaviour.
            legacy = _switch(folder, config, "legacy", True)
            prefix = _switch(folder, config, "add_prefix_space", "add_prefix_space" not in config)
            tokenizer = sentencepiece.load(slow, legacy=legacy, prefix=prefix)
        else:
            raise CheckpointNotFoundError(
                f"there is no tokenizer in {folder}: neither tokenizer.json nor tokenizer.model"
            )
        bos = _token_id(tokenizer, config, "bos_token", "<s>")
        # A tokenizer.json can also add a token at the end.
        adds_bos = not is_file(fast) or tokenizer.encode("").ids[:1] == [bos]
        eos = _token_id(tokenizer, config, "eos_token", "</s>")
        added = tokenizer.get_added_tokens_decoder()
        places = [n for n, token in added.items() if token.content == IMAGE_PLACEHOLDER]
        return cls(
            tokenizer,
            bos if config.get("add_bos_token", adds_bos) else None,
            list(dict.fromkeys([*([] if eos is None else [eos]), *ends])),
            _token_id(tokenizer, config, "pad_token", "<pad>"),
            image_token_id=places[0] if places else None,
            silent_ids=[number for number, token in added.items() if token.special],
            template=template,
        )

    @guarded
    def to_json(self) -> str:
        """The content of a tokenizer.json that gives the same ids, whatever was read."""
        text: str = self._tokenizer.to_str(pretty=True)
        return text

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        return size

    @property
    def highest_id(self) -> int:
        """The highest id that a prompt can have, or that ends an answer."""
        begin = () if self.bos_token_id is None else (self.bos_token_id,)
        return max(self._prompt_ids.highest_id, *begin, *self.eos_token_ids)

    @property
    def begin(self) -> str:
        """The text of the token that begins every prompt; empty where none does."""
        return "" if self.bos_token_id is None else self._tokenizer.id_to_token(self.bos_token_id)

    @guarded
    def encode(self, prompt: Prompt) -> list[int]:
        """The ids of a prompt, one beginning-of-text id in front, which the template may have
        written itself, and IMAGE_TOKEN for each picture. What was said is never control."""
        ids = self._prompt_ids(prompt)
        if self.bos_token_id is None or ids[:1] == [self.bos_token_id]:
            return ids
        return [self.bos_token_id, *ids]

    @guarded
    def encode_words(self, text: str) -> list[int]:
        """The ids of the words of a text by themselves: no beginning of text, no places of
        pictures."""
        return self._prompt_ids(Prompt.said(without_images(text)))

    @guarded
    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special or unknown tokens and places of pictures."""
        text: str = self._tokenizer.decode([number for number in ids if number in self._text_ids])
        return text

    def stream(self) -> StreamDecoder:
        """A decoder for one answer that is still being generated."""
        return StreamDecoder(self)


class StreamDecoder:
    """Turns ids into text as they come. The pieces and the flush together are `decode(ids)`."""

    def __init__(self, tokenizer: LanguageTokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._sent = 0

    def feed(self, number: int) -> str:
        """What can be shown now that this id is known: maybe nothing, never half a character."""
        if number not in self._tokenizer._text_ids:
            return ""
        self._ids.append(number)
        # A later byte can still spoil the whole run of bytes, also what reads well so far.
        if number in self._tokenizer._byte_ids:
            return ""
        text = self._tokenizer.decode(self._ids)
        # Byte-level vocabularies show an unfinished character as U+FFFD at the end.
        return self._send(text, len(text.rstrip("\ufffd")))

    def flush(self) -> str:
        """What is left when no more ids come; bytes that are no character come as U+FFFD."""
        text = self._tokenizer.decode(self._ids)
        return self._send(text, len(text))

    def _send(self, text: str, end: int) -> str:
        piece = text[self._sent : end]
        self._sent = max(self._sent, end)
        return piece


def load_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer.json of Hugging Face's tokenizers.

    Raises: CheckpointError when it cannot be read or is not one."""
    content = read_bytes(path, CheckpointError, CheckpointNotFoundError)
    try:
        tokenizer = guarded(Tokenizer.from_buffer)(content)
        check(tokenizer)
    except Exception as error:  # The library has no class of its own for what it cannot read.
        raise CheckpointError(f"{path} is not a usable tokenizer: {one_line(error, 300)}") from None
    return tokenizer


@guarded
def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text without anything around them.

    Raises: CheckpointError where the tokenizer fails."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def _clip_bpe(vocabulary: Path, merges: Path) -> Tokenizer:
    """CLIP's byte-level BPE with `</w>` at the end of words, from its two files."""
    try:
        text = read_bytes(merges, CheckpointError, CheckpointNotFoundError).decode("utf-8")
        lines = text.split("\n")
        pairs = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
        model = BPE(
            vocab=read_json(vocabulary),
            merges=pairs,
            unk_token=CLIP_END,
            end_of_word_suffix="</w>",
        )
    except CheckpointError:
        raise
    except Exception as error:  # The library raises plain Exception for everything.
        raise CheckpointError(
            f"{vocabulary} and {merges.name} are broken: {one_line(error, 200)}"
        ) from error
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    markers = [AddedToken(text, special=True, normalized=False) for text in (CLIP_START, CLIP_END)]
    tokenizer.add_special_tokens(markers)
    return tokenizer


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if is_file(path) else {}


def _switch(folder: Path, config: dict[str, Any], key: str, default: bool) -> bool:
    """Raises: CheckpointError for a field that is neither true nor false."""
    value = config.get(key)
    if value is not None and type(value) is not bool:
        raise CheckpointError(
            f"{folder / 'tokenizer_config.json'}: {key} is {shown(value)}; expected true or false"
        )
    return default if value is None else value


def _token_id(tokenizer: Tokenizer, config: dict[str, Any], key: str, default: str) -> int | None:
    """The id of a token by its role: a name, or an object with its `content`."""
    name = config.get(key, default)
    if isinstance(name, dict):
        name = name.get("content")
    number: int | None = tokenizer.token_to_id(name) if isinstance(name, str) else None
    return number
