"""A SentencePiece BPE model (`tokenizer.model`) read without its library.

The file is a protocol buffer; the few fields that matter are taken from its wire format:
ModelProto.pieces (1: text 1, score 2, type 3), ModelProto.trainer_spec (2: model_type 3) and
ModelProto.normalizer_spec (3: name 1, add_dummy_prefix 3, remove_extra_whitespaces 4)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from paddle_recomp.errors import CheckpointError, CheckpointNotFoundError
from paddle_recomp.files import read_file
from paddle_recomp.json_files import one_line
from paddle_recomp.limits import limits, the_limit
from paddle_recomp.protobuf import fields

SPACE = "\u2581"
"""SentencePiece writes this for a space."""


class PieceType(IntEnum):
    """ModelProto.SentencePiece.Type."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Piece(NamedTuple):
    """A vocabulary entry; its id is its place in the model."""

    text: str
    score: float
    type: PieceType


@dataclass(frozen=True)
class SentencePieceModel:
    """The content of a BPE model: how text becomes ids."""

    pieces: tuple[Piece, ...]
    add_dummy_prefix: bool = True

    def ids_of(self, kind: PieceType) -> list[int]:
        """Ids of all pieces of a type, ascending."""
        return [number for number, piece in enumerate(self.pieces) if piece.type is kind]


def load(path: Path, *, legacy: bool = True, prefix: bool = True) -> Tokenizer:
    """The tokenizer of a `tokenizer.model` file; see `build`.

    Raises: CheckpointError as `parse`, or when the file cannot be read."""
    data = read_file(path, CheckpointError, CheckpointNotFoundError, "sentencepiece_bytes")
    return build(parse(data, str(path)), legacy=legacy, prefix=prefix)


def parse(data: bytes, name: str) -> SentencePieceModel:
    """The model in the bytes of a file; `name` is for messages.

    Raises: CheckpointError when the file is damaged, is not a BPE model, or normalises text in
    a way that is not supported."""
    pieces: list[Piece] = []
    model_type, rule, dummy_prefix, collapse = 1, "", True, True
    try:
        for field, value in fields(memoryview(data)):
            if field == 1:
                pieces.append(_piece(_bytes(value)))
            elif field == 2:
                model_type = _last_int(_bytes(value), 3, model_type)
            elif field == 3:
                spec = _bytes(value)
                rule = "".join(_bytes(v).decode() for f, v in fields(memoryview(spec)) if f == 1)
                dummy_prefix = bool(_last_int(spec, 3, True))
                collapse = bool(_last_int(spec, 4, True))
        texts = {piece.text for piece in pieces}
        if (letters := max(map(len, texts), default=0)) > limits().piece_letters:
            raise ValueError(f"a piece has {letters} letters; {the_limit('piece_letters')}")
        if not pieces or len(texts) < len(pieces):
            raise ValueError("no pieces, or a piece twice")
    except ValueError as error:  # UnicodeDecodeError is one, too.
        raise CheckpointError(f"{name} is not a SentencePiece model: {error}") from error
    if model_type != 2:
        kind = {1: "unigram", 3: "word", 4: "char"}.get(model_type, str(model_type))
        raise CheckpointError(f"{name} is a SentencePiece {kind} model; only BPE is supported")
    if rule not in ("", "identity") or collapse:
        raise CheckpointError(
            f"{name} normalises text ({one_line(rule) or 'no rule'}, "
            f"remove_extra_whitespaces={collapse}); only identity normalisation that keeps white "
            "space, as Llama's, is supported"
        )
    return SentencePieceModel(tuple(pieces), dummy_prefix)


def merges(pieces: tuple[Piece, ...]) -> list[tuple[str, str]]:
    """The merges of a BPE model, first to last: each piece from every pair of pieces that spell
    it, in the order of the scores, which is the order in which training found the pieces."""
    ids = {piece.text: i for i, piece in enumerate(pieces) if piece.type is PieceType.NORMAL}
    ranked: list[tuple[float, int, int, int, tuple[str, str]]] = []
    for text, number in ids.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in ids and right in ids:
                order = (-pieces[number].score, number, ids[left], ids[right])
                ranked.append((*order, (left, right)))
    return [entry[-1] for entry in sorted(ranked)]


def build(model: SentencePieceModel, *, legacy: bool = True, prefix: bool = True) -> Tokenizer:
    """The model as a `tokenizers` BPE with byte fallback. In Llama's `legacy` behaviour each
    stretch of text between special tokens gets a space in front, where the model says so. In the
    other behaviour the beginning of a text does, unless a special token stands there, and where
    `prefix` says so."""
    vocabulary = {piece.text: number for number, piece in enumerate(model.pieces)}
    unknown = model.ids_of(PieceType.UNKNOWN)
    tokenizer = Tokenizer(
        BPE(
            vocab=vocabulary,
            merges=merges(model.pieces),
            unk_token=model.pieces[unknown[0]].text if unknown else None,
            fuse_unk=True,
            byte_fallback=bool(model.ids_of(PieceType.BYTE)),
        )
    )
    prefix = model.add_dummy_prefix if legacy else prefix
    prepend = [normalizers.Prepend(SPACE)] if prefix and legacy else []
    tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", SPACE)])
    if prefix and not legacy:
        # One Metaspace alone adds no space to a text that begins with one. This one does not know
        # the model's space for a space, and the other writes it so.
        first = pre_tokenizers.Metaspace(" ", prepend_scheme="first", split=False)
        rewrite = pre_tokenizers.Metaspace(SPACE, prepend_scheme="never", split=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, rewrite])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    for kind in (PieceType.CONTROL, PieceType.UNKNOWN, PieceType.USER_DEFINED):
        special = kind is not PieceType.USER_DEFINED
        tokens = [
            AddedToken(model.pieces[number].text, special=special, normalized=False)
            for number in model.ids_of(kind)
        ]
        tokenizer.add_special_tokens(tokens) if special else tokenizer.add_tokens(tokens)
    return tokenizer


def _piece(data: bytes) -> Piece:
    text, score, kind = "", 0.0, int(PieceType.NORMAL)
    for field, value in fields(memoryview(data)):
        if field == 1:
            text = _bytes(value).decode()
        elif field == 2:
            (score,) = struct.unpack("<f", _bytes(value, 4))
        elif field == 3 and isinstance(value, int):
            kind = value
    if not text or score != score:
        raise ValueError("a piece without text or score")
    return Piece(text, score, PieceType(kind))


def _bytes(value: int | bytes | memoryview, length: int | None = None) -> bytes:
    if isinstance(value, int) or (length is not None and len(value) != length):
        raise ValueError("a field of the wrong type")
    return bytes(value)


def _last_int(data: bytes, field: int, default: int) -> int:
    """An optional scalar: the last one counts, as in every protocol buffer."""
    for number, value in fields(memoryview(data)):
        if number == field and isinstance(value, int):
            default = value
    return default
