"""PruMerge once more: NumPy's percentiles, and loops over centres and patches."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tests.golden.methods.record import Expected, Picture

MEMBERS = 5


def prumerge(given: Mapping[str, np.ndarray], bounds: tuple[int, int]) -> Picture:
    """Outliers of the class attention are centres; each absorbs its nearest pruned patches."""
    features, keys, score = given["features"], given["keys"], given["visual_score"]
    size = len(score)
    first, third = np.percentile(score, [25, 75])
    found = int((score > third + 1.5 * (third - first)).sum()) + 1
    target = int(np.clip(found, *bounds))
    if target == size:
        nothing = [-1] * size
        return Picture(list(features), list(range(size)), [0] * size, list(range(size)), nothing)
    ranked = sorted(range(size), key=lambda patch: (-score[patch], patch))
    centres, pruned = sorted(ranked[: target - 1]), sorted(ranked[target - 1 :])
    cosine = keys @ keys.T / np.linalg.norm(keys, axis=1) / np.linalg.norm(keys, axis=1)[:, None]

    tokens, owner, best = [], [len(centres)] * size, dict.fromkeys(pruned, -2.0)
    for row, centre in enumerate(centres):
        nearest = sorted(pruned, key=lambda patch: -cosine[centre, patch])[:MEMBERS]
        total, weight = features[centre].copy(), 1.0
        for patch in nearest:
            total, weight = total + score[patch] * features[patch], weight + score[patch]
            if cosine[centre, patch] > best[patch]:
                best[patch], owner[patch] = cosine[centre, patch], row
        tokens.append(total / weight)
        owner[centre] = row
    rest = sum(score[patch] * features[patch] for patch in pruned)
    tokens.append(rest / score[pruned].sum())
    stage = [1] * len(centres) + [2]
    return Picture(tokens, [-1] * len(tokens), stage, owner, [*centres, -1])


EXPECTED = {
    "prumerge": Expected(
        prumerge,
        {"members": MEMBERS},
        "Shang et al., LLaVA-PruMerge (ICCV 2025): outliers of the class attention beyond 1.5 "
        "interquartile ranges, each absorbing its nearest by key, weighted by attention, and one "
        "token for the rest",
    )
}
