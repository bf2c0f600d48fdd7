"""The golden cases of a bundle: what its graphs gave on the machine that exported them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from paddle_recomp.bundle.bundle import Bundle
from paddle_recomp.bundle.checksums import check_name
from paddle_recomp.bundle.contract import ARRAYS, Array
from paddle_recomp.bundle.schema import GOLDEN, check, load_schema
from paddle_recomp.errors import BundleError
from paddle_recomp.json_files import listed, one_line, read_json, shown
from paddle_recomp.preprocess import IMAGE_PLACEHOLDER, IMAGE_TOKEN

CASES = "golden/cases.json"
"""The file that an export writes."""


_RECORDED = {
    **ARRAYS,
    "prompt_ids": Array("int64", ("T",), "the prompt, with a picture in it"),
    "logits": Array("float32", ("B", "V"), "behind the whole prompt"),
}
"""Every array that a case may have; others are passed over."""


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
    recorded_from: Mapping[str, str]
    """The sha256 of each file when the cases were recorded; empty where it was not kept."""

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
        recorded_from=content.get("recorded_from", {}),
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
                f"{bundle.folder}: the golden case {shown(about['name'])} is of the compressor "
                f"{shown(about['compress'])}; the bundle has: {listed(bundle.compressors)}"
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
    _check_case(bundle, about)
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
        arrays=_arrays(bundle, about["arrays"]),
    )


def _check_case(bundle: Bundle, about: Mapping[str, Any]) -> None:
    """Raises: BundleError where the answer or the logits are missing that a bundle with a decoder
    gives, or where a question has places for several pictures."""
    place = f"{bundle.folder}: the golden case {shown(about['name'])}"
    if (found := about["question"].count(IMAGE_PLACEHOLDER)) > 1:
        raise BundleError(
            f"{place} has {found} {IMAGE_PLACEHOLDER} in its question; expected 0 or 1"
        )
    if bundle.decoder is None:
        return
    for name, there in (("answer", "answer" in about), ("logits", "logits" in about["arrays"])):
        if not there:
            raise BundleError(f"{place} has no {name}; expected one, as the bundle has a decoder")


def _arrays(bundle: Bundle, files: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The arrays that are known, each of the type and the sizes that it must have.

    Raises: BundleError naming the file."""
    sizes = {"B": 1, "3": 3, "2": 2, "S": bundle.image_processor.crop, "N": bundle.num_patches}
    sizes["L"] = bundle.question_positions
    if bundle.decoder is not None:
        sizes |= {"D": bundle.decoder.hidden_size, "V": bundle.decoder.vocab_size}
    arrays = {}
    for name, file in files.items():
        path, about = bundle.verified(file), _RECORDED.get(name)
        if about is None:
            continue
        array = arrays[name] = _load(path)
        # A size that recomp.json does not give is that of the first array that has it.
        shape = (
            about.shape
            if array.ndim != len(about.shape)
            else [
                sizes.setdefault(letter, size)
                for letter, size in zip(about.shape, array.shape, strict=True)
            ]
        )
        if array.dtype != np.dtype(about.dtype) or list(array.shape) != list(shape):
            raise BundleError(
                f"{path} is {one_line(array.dtype)} {list(array.shape)}; expected {about.dtype} "
                f"[{', '.join(map(str, shape))}]"
            )
        if about.dtype == "float32" and not np.isfinite(array).all():
            raise BundleError(f"{path} holds NaN or infinity; expected finite numbers")
    _check_values(bundle, files, arrays)
    return arrays


def _check_values(
    bundle: Bundle, files: Mapping[str, str], arrays: Mapping[str, np.ndarray]
) -> None:
    """Raises: BundleError for a number of tokens, or an id, that cannot be."""
    count, most = int(arrays["token_count"][0]), arrays["visual_embeds"].shape[1]
    if not 1 <= count <= most:
        path = bundle.folder / files["token_count"]
        raise BundleError(f"{path} holds {count}; expected 1 to {most}")
    ids = arrays["prompt_ids"]
    path, words = bundle.folder / files["prompt_ids"], ids[ids != IMAGE_TOKEN]
    if len(ids) - len(words) != 1:
        raise BundleError(
            f"{path} has {len(ids) - len(words)} pictures ({IMAGE_TOKEN}) in it; expected 1"
        )
    last = None if bundle.decoder is None else bundle.decoder.vocab_size - 1
    for number in words.tolist():
        if number < 0 or (last is not None and number > last):
            raise BundleError(f"{path} holds the id {number}; expected 0 to {last}")


def _load(path: Path) -> np.ndarray:
    try:
        # It is mapped first: a header may declare more than the file has, and than memory.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise BundleError(f"{path} holds several arrays; expected one in NumPy's format")
        return np.array(array)
    except BundleError:
        raise
    except Exception as error:  # A broken header can fail in many ways.
        raise BundleError(
            f"{path} is not an array in NumPy's format: {one_line(error, 200)}"
        ) from error
