"""The golden cases of a bundle: what its graphs gave on the machine that exported them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from paddle_recomp.bundle.bundle import Bundle
from paddle_recomp.bundle.checksums import check_name
from paddle_recomp.bundle.schema import GOLDEN, check, load_schema
from paddle_recomp.errors import BundleError
from paddle_recomp.json_files import read_json

CASES = "golden/cases.json"
"""The file that an export writes."""


@dataclass(frozen=True)
class Limits:
    """How far another machine may be from what was recorded; the schema says how each is meant."""

    difference: float
    towers_cosine: float | None
    overlap: float | None
    logits_cosine: float | None
    answers: float


@dataclass(frozen=True)
class GoldenAnswer:
    """A greedy answer."""

    max_new_tokens: int
    token_ids: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class GoldenCase:
    """A picture, a question, and what came of them."""

    name: str
    picture: Path
    question: str
    compress: str
    """The name of the compressor."""
    token_bounds: tuple[int, int]
    prompt: str
    answer: GoldenAnswer | None
    """None where there was no language model."""
    arrays: Mapping[str, np.ndarray] = field(repr=False)


@dataclass(frozen=True)
class Golden:
    """All cases of a bundle, with their limits."""

    limits: Limits
    cases: tuple[GoldenCase, ...]
    recorded_by: Mapping[str, Any]

    def exact(self) -> Golden:
        """The same with the limits of fp32, whatever the precision is: what a machine keeps to that
        has the processor and the runtime of the recording one."""
        limits = Limits(self.limits.difference, None, None, None, answers=1.0)
        return replace(self, limits=limits)


def read_golden(bundle: Bundle) -> Golden:
    """Reads the cases, all of whose files are compared with their checksums.

    Raises: BundleError for a bundle without cases, or a file that is not as it should be;
    BundleNotFoundError for one that is not there."""
    content = _content(bundle)
    return Golden(
        limits=Limits(**{name: content["limits"][name] for name in Limits.__annotations__}),
        cases=tuple(_case(bundle, about) for about in content["cases"]),
        recorded_by=content.get("recorded_by", {}),
    )


def golden_files(bundle: Bundle) -> tuple[str, ...]:
    """The files that the golden cases name; none where a bundle has no cases.

    Raises: as `read_golden`."""
    if bundle.golden is None:
        return ()
    return tuple(_named(bundle, _read(bundle)))


def _content(bundle: Bundle) -> dict[str, Any]:
    content = _read(bundle)
    _named(bundle, content)
    for about in content["cases"]:
        if about["compress"] not in bundle.compressors:
            raise BundleError(
                f"{bundle.folder}: the golden case {about['name']!r} is of the compressor "
                f"{about['compress']!r}; the bundle has: {', '.join(bundle.compressors)}"
            )
    return content


def _read(bundle: Bundle) -> dict[str, Any]:
    if bundle.golden is None:
        raise BundleError(
            f"{bundle.folder} has no golden cases to compare with: export it with --golden, or "
            "compare it with its checkpoint"
        )
    return read_json(bundle.verified(bundle.golden), BundleError)


def _named(bundle: Bundle, content: dict[str, Any]) -> list[str]:
    path = bundle.folder / str(bundle.golden)
    named = check(content, load_schema(GOLDEN), str(path))
    for name in named:
        check_name(path, name)
    return list(named)


def _case(bundle: Bundle, about: Mapping[str, Any]) -> GoldenCase:
    least, most = about["token_bounds"]
    answer = None
    if "answer" in about:
        said = about["answer"]
        answer = GoldenAnswer(said["max_new_tokens"], tuple(said["token_ids"]), said["text"])
    return GoldenCase(
        name=about["name"],
        picture=bundle.verified(about["picture"]),
        question=about["question"],
        compress=about["compress"],
        token_bounds=(least, most),
        prompt=about["prompt"],
        answer=answer,
        arrays={name: _load(bundle.verified(file)) for name, file in about["arrays"].items()},
    )


def _load(path: Path) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} is not an array in NumPy's format: {error}") from error
    return array
