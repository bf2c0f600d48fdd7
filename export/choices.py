"""Which patches are kept, compared between two that compute them a little differently."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paddle_recomp.bundle.comparison import mean_cosine
from paddle_recomp.config import TokenBudget

from .calibration import Arrays, Samples

_TOKENS = ("token_count", "token_index")


def budgets(batch: int, size: int) -> np.ndarray:
    """Bounds [B, 2], in turn: the filter's own number, a cap, an exact number, everything."""
    choices = [
        TokenBudget(),
        TokenBudget(max_tokens=max(size // 8, 1)),
        TokenBudget(tokens=max(size // 4, 1)),
        TokenBudget(full=True),
    ]
    bounds = [choices[i % len(choices)].bounds(size)[0] for i in range(batch)]
    return np.array(bounds, dtype=np.int64)


def compare_kept(expected: Arrays, found: Arrays) -> tuple[float, float]:
    """Mean overlap of the single patches that each image keeps, and mean cosine of the embeddings
    of patches that both keep; 0 where they share none."""
    ours, theirs = [], []
    for image in range(len(expected["token_count"])):
        first, second = (_kept(array, image) for array in (expected, found))
        both = sorted(first.keys() & second.keys())
        ours += [expected["visual_embeds"][image, first[patch]] for patch in both]
        theirs += [found["visual_embeds"][image, second[patch]] for patch in both]
    cosine = mean_cosine(np.stack(ours), np.stack(theirs)) if ours else 0.0
    return overlap(expected, found), cosine


def overlap(expected: Arrays, found: Arrays) -> float:
    """Mean intersection over union of the single patches that each image keeps."""
    shares = []
    for image in range(len(expected["token_count"])):
        first, second = (_kept(array, image).keys() for array in (expected, found))
        shares.append(len(first & second) / max(len(first | second), 1))
    return float(np.mean(shares))


def _kept(arrays: Arrays, image: int) -> dict[int, int]:
    """Patch -> row, of the tokens that are one patch."""
    rows = np.flatnonzero(arrays["token_index"][image] >= 0)
    return {int(arrays["token_index"][image, row]): int(row) for row in rows}


class Chooser:
    """The compressor of an export behind its towers, on the samples of the export: each picture
    meets questions in turn, with each budget that leaves patches out."""

    def __init__(
        self, path: Path, samples: Samples, outputs: Mapping[str, Sequence[Arrays]]
    ) -> None:
        """`path` is the compress graph, `outputs` has those of both towers in float, by their
        names: what they lead to is the choice to keep."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session: Any = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self._inputs = {item.name for item in self._session.get_inputs()}
        self._samples = samples
        self._expected = self._choices(outputs)

    def overlap(self, outputs: Mapping[str, Sequence[Arrays]]) -> float:
        """The mean overlap with the choice that the float towers lead to."""
        pairs = zip(self._expected, self._choices(outputs), strict=True)
        return float(np.mean([overlap(ours, theirs) for ours, theirs in pairs]))

    def _choices(self, outputs: Mapping[str, Sequence[Arrays]]) -> list[Arrays]:
        vision, text, words = outputs["vision"], outputs["text"], self._samples.words
        size = vision[0]["features"].shape[1]
        chosen = []
        for pair in range(max(len(vision), len(text))):
            given = {**vision[pair % len(vision)], **text[pair % len(text)]}
            given |= words[pair % len(words)] if words else {}
            for bounds in budgets(3, size):
                feed = {**given, "token_bounds": bounds[None]}
                wanted = {name: feed[name] for name in self._inputs}
                values = self._session.run(list(_TOKENS), wanted)
                chosen.append(dict(zip(_TOKENS, values, strict=True)))
        return chosen
