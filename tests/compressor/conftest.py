"""Inputs for the compressor: recorded runs of the public code, and random tower outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle

from paddle_recomp.types import VisionFeatures

REFERENCE = Path(__file__).parents[1] / "golden" / "reference"
CASES = sorted(path.stem for path in REFERENCE.glob("*.npz"))


def random_vision(
    seed: int, batch: int = 1, patches: int = 64, width: int = 32, joint: int = 16
) -> tuple[VisionFeatures, paddle.Tensor]:
    """Tower outputs with a few patches that stand out, differently in each image."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(batch, patches, width))
    keys = rng.normal(size=(batch, patches, width))
    logits = rng.normal(size=(batch, patches)) * rng.uniform(0.1, 3.0, size=(batch, 1))
    score = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    text = rng.normal(size=(batch, joint))
    patch_embeds = rng.normal(size=(batch, patches, joint))
    related = rng.random((batch, patches, 1)) < 0.1
    patch_embeds = patch_embeds + related * text[:, None] * 2
    vision = VisionFeatures(
        *(paddle.to_tensor(x.astype("float32")) for x in (features, keys, score, patch_embeds))
    )
    return vision, paddle.to_tensor(text.astype("float32"))
