"""A bundle: what an export writes and everything else runs. No paddle here."""

from paddle_recomp.bundle.opening import (
    DECODER_PRECISIONS,
    FORMAT,
    MANIFEST,
    PADDLE_PRECISIONS,
    PRECISIONS,
    Bundle,
    DecoderInfo,
    FileInfo,
    LanguageModelSource,
    PaddleInfo,
    checksum,
    open_bundle,
    seal,
)

__all__ = [
    "DECODER_PRECISIONS",
    "FORMAT",
    "MANIFEST",
    "PADDLE_PRECISIONS",
    "PRECISIONS",
    "Bundle",
    "DecoderInfo",
    "FileInfo",
    "LanguageModelSource",
    "PaddleInfo",
    "checksum",
    "open_bundle",
    "seal",
]
