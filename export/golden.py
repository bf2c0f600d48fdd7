"""Golden cases: a bundle's own graphs run on this machine, and all that they give is written down.

One picture has the size that the demo sees, so that no pixel of it is resampled; the other is tall,
and of another size than any tower's. Both are PNG: every decoder gives the same pixels."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from paddle_recomp.backends.onnx import OnnxBackend
from paddle_recomp.bundle import MANIFEST, Bundle
from paddle_recomp.bundle.contract import SCORES, VISION_OUTPUTS
from paddle_recomp.bundle.golden import CASES, Limits
from paddle_recomp.config import TokenBudget
from paddle_recomp.files import is_file
from paddle_recomp.llm.onnx_decoder import OnnxDecoder
from paddle_recomp.vlm.replay import Played, Player

from .samples import shipped_picture
from .versions import version_of

_NEW_TOKENS = 16
_TALL = (300, 640)
_ASKED = (
    ("scene", "where is the circle?", "dynamic"),
    ("scene", "how many digits are there?", "capped"),
    ("tall", "what color is the largest object?", "exact"),
    ("tall", "what shape is on the left?", "full"),
)


def record(bundle: Bundle, cosine: float | None) -> dict[str, str]:
    """Writes the cases into a bundle's folder; gives the section `golden` of recomp.json. `cosine`
    is the least that INT8 towers keep to float.

    Raises: BundleError, FeatureError."""
    # recomp.json is written once more, with the name of the cases in it.
    recorded_from = {k: v for k, v in bundle.sums.expected.items() if k != MANIFEST}
    folder = bundle.folder / Path(CASES).parent
    folder.mkdir()
    pictures = {name: folder / f"{name}.png" for name in ("scene", "tall")}
    shutil.copyfile(shipped_picture(), pictures["scene"])
    _tall_picture().save(pictures["tall"])
    model = None if bundle.decoder is None else OnnxDecoder.from_bundle(bundle)
    player = Player(bundle, OnnxBackend, model)
    eighth = max(bundle.num_patches // 8, 1)
    budgets = {
        "dynamic": TokenBudget(),
        "capped": TokenBudget(max_tokens=eighth),
        "exact": TokenBudget(tokens=eighth),
        "full": TokenBudget(full=True),
    }
    cases = []
    for compressor in bundle.compressors:
        for picture, question, kind in _ASKED:
            (bounds,) = budgets[kind].bounds(bundle.num_patches)
            played = player.play(pictures[picture], question, compressor, bounds, _NEW_TOKENS)
            name = kind if len(bundle.compressors) == 1 else f"{compressor}-{kind}"
            case = {
                "name": name,
                "picture": f"golden/{pictures[picture].name}",
                "question": question,
                "compress": compressor,
                "token_bounds": list(bounds),
                "prompt": played.prompt,
                "arrays": _write_arrays(bundle.folder, picture, name, played),
            }
            if played.answer is not None:
                case["answer"] = asdict(played.answer)
            cases.append(case)
    content = {
        "recorded_by": {
            "onnxruntime": version_of("onnxruntime"),
            "machine": platform.machine(),
        },
        "recorded_from": recorded_from,
        "limits": asdict(limits_of(bundle, cosine)),
        "cases": cases,
    }
    text = json.dumps(content, indent=1, ensure_ascii=False)
    (bundle.folder / CASES).write_text(text + "\n", encoding="utf-8", newline="\n")
    return {"cases": CASES}


def least_cosine(kept: Mapping[str, float]) -> float:
    """Of what INT8 towers keep to float, the least. Scores are one vector for a picture, which
    scatters more than the mean of many."""
    return min(value for name, value in kept.items() if name not in SCORES)


def limits_of(bundle: Bundle, cosine: float | None) -> Limits:
    """In float32 other processors gave the same choices wherever that was tried. INT8 rounds at
    other places on another processor or version of the runtime, each of which is as far from float
    as the other: two of them may be twice as far from each other."""
    decoder = None if bundle.decoder is None else bundle.decoder.precision
    in_float = cosine is None and decoder in (None, "fp32")
    return Limits(
        difference=1e-4,
        towers_cosine=None if cosine is None else round(1 - 2 * (1 - cosine), 6),
        overlap=None if cosine is None else 0.65,
        logits_cosine=None if decoder in (None, "fp32") else 0.999,
        answers=1.0 if in_float else 0.75,
    )


def _write_arrays(folder: Path, picture: str, case: str, played: Played) -> dict[str, str]:
    """Arrays of the picture alone are the same in all its cases, and are one file."""
    names = {}
    for name, array in played.arrays.items():
        if name == "token_bounds":
            continue
        shared = name == "pixel_values" or name in VISION_OUTPUTS
        names[name] = f"golden/{picture if shared else case}.{name}.npy"
        if not is_file(folder / names[name]):
            np.save(folder / names[name], array, allow_pickle=False)
    return names


def _tall_picture() -> Image.Image:
    """A shaded ground with a red disc and a blue bar."""
    width, height = _TALL
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 160 // width + 40, y * 160 // height + 40, (x + y) % 160 + 40], axis=-1)
    pixels[(x - 190) ** 2 + (y - 250) ** 2 < 70**2] = (220, 30, 40)
    pixels[(x > 30) & (x < 110) & (y > 330) & (y < 500)] = (30, 60, 220)
    return Image.fromarray(pixels.astype(np.uint8))
