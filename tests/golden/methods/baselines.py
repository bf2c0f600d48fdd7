"""The baselines once more: the filter's count by scikit-learn, the choice by plain loops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.neighbors import LocalOutlierFactor

from tests.golden.methods.record import Expected, Picture

SEED = 5


def count(score: np.ndarray, bounds: tuple[int, int]) -> int:
    """Outliers above the median of the local outlier factor, within the bounds."""
    found = LocalOutlierFactor(n_neighbors=20).fit_predict(score[:, None]) == -1
    return int(np.clip((found & (score > np.median(score))).sum(), *bounds))


def keep(chosen: Sequence[int], features: np.ndarray) -> Picture:
    """Patches as they are, in ascending order."""
    kept = sorted(chosen)
    owner = [kept.index(patch) if patch in kept else -1 for patch in range(len(features))]
    nothing = [-1] * len(kept)
    return Picture([features[patch] for patch in kept], kept, [0] * len(kept), owner, nothing)


def visual(given: Mapping[str, np.ndarray], bounds: tuple[int, int]) -> Picture:
    """The highest scores."""
    score = given["visual_score"]
    ranked = sorted(range(len(score)), key=lambda patch: (-score[patch], patch))
    return keep(ranked[: count(score, bounds)], given["features"])


def scrambled(number: int) -> int:
    """Squared four times modulo a prime."""
    for _ in range(4):
        number = (number**2 + 12345) % (2**31 - 1)
    return number


def random(given: Mapping[str, np.ndarray], bounds: tuple[int, int]) -> Picture:
    """The patches whose number, scrambled with one that stands for the question and the picture,
    comes out highest. That one adds up scrambled numbers: those of the places at which the
    question's embedding rises, and those of the four strongest patches, times the patch."""
    score, text = given["visual_score"], given["text_embeds"]
    strongest = sorted(range(len(score)), key=lambda patch: (-score[patch], patch))[:4]
    facts = [int(text[i + 1] > text[i]) for i in range(len(text) - 1)] + strongest

    def number(place: int, seed: int) -> int:
        return scrambled(((place + 1) * 48271 + seed * 69621) % (2**31 - 1))

    key = sum(fact * number(place, 2 * SEED) for place, fact in enumerate(facts))
    drawn = [
        scrambled((key + number(patch, 2 * SEED + 1)) % (2**31 - 1)) for patch in range(len(score))
    ]
    ranked = sorted(range(len(score)), key=lambda patch: -drawn[patch])
    return keep(ranked[: count(score, bounds)], given["features"])


def uniform(given: Mapping[str, np.ndarray], bounds: tuple[int, int]) -> Picture:
    """The first patches of an ordered-dither matrix, which is built here by its recursion."""
    score = given["visual_score"]
    side = int(len(score) ** 0.5)
    matrix = np.zeros((1, 1), int)
    while len(matrix) < side:
        matrix = np.block([[4 * matrix, 4 * matrix + 2], [4 * matrix + 3, 4 * matrix + 1]])
    ranked = sorted(range(len(score)), key=lambda patch: matrix[divmod(patch, side)])
    return keep(ranked[: count(score, bounds)], given["features"])


_SOURCE = "docs/algorithm.md, baselines"
EXPECTED = {
    "visual": Expected(visual, {}, _SOURCE),
    "random": Expected(random, {"seed": SEED}, _SOURCE),
    "uniform": Expected(uniform, {}, _SOURCE),
}
