"""A bundle: what an export writes and everything else runs. No paddle here."""

from paddle_recomp.bundle.bundle import (
    Bundle,
    DecoderInfo,
    GraphInfo,
    LanguageModelSource,
    PaddleInfo,
)
from paddle_recomp.bundle.checksums import SUMS, Checksums, checksum, write_checksums
from paddle_recomp.bundle.opening import (
    DECODER_PRECISIONS,
    FORMAT,
    MANIFEST,
    PADDLE_PRECISIONS,
    PRECISIONS,
    open_bundle,
)

__all__ = [
    "DECODER_PRECISIONS",
    "FORMAT",
    "MANIFEST",
    "PADDLE_PRECISIONS",
    "PRECISIONS",
    "SUMS",
    "Bundle",
    "Checksums",
    "DecoderInfo",
    "GraphInfo",
    "LanguageModelSource",
    "PaddleInfo",
    "checksum",
    "open_bundle",
    "write_checksums",
]
