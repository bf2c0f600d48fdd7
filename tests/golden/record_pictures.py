"""Record what transformers makes of pictures: preprocess.npz, prepared_pixels.json.

    python -m tests.golden.record_pictures PICTURES

PICTURES is the folder `skimage/data` of an installed scikit-image. Needs transformers and
Pillow 12.1 or older in an environment of their own; the tests that read the files need neither."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
import transformers
from PIL import Image

from tests.golden.record_cases import (
    GENERATED,
    PICTURES,
    PREPARATIONS,
    SPARSE,
    digest,
    generate,
)

HERE = Path(__file__).parent
SIZES = [(42, 42), (49, 42), (30, 41)]


def processor_of(size: int, crop: int, aspect: str) -> Any:
    """What CLIP's checkpoints are prepared with, or LLaVA's where pictures are padded."""
    fields = {"size": {"shortest_edge": size}, "crop_size": {"height": crop, "width": crop}}
    if aspect == "pad":
        return transformers.LlavaImageProcessorPil(**fields, do_pad=True)
    return transformers.CLIPImageProcessorPil(**fields)


def prepare(processor: Any, image: Image.Image) -> npt.NDArray[np.float32]:
    """[3, S, S]"""
    pixels: npt.NDArray[np.float32] = processor(image, return_tensors="np")["pixel_values"][0]
    return pixels.astype(np.float32)


def record_pictures(folder: Path) -> None:
    """One array [3, S, S] per picture, size, crop and mode."""
    arrays: dict[str, npt.NDArray[np.float32]] = {}
    for name, (file, box) in PICTURES.items():
        image = Image.open(folder / file).convert("RGB")
        image = image.crop(box) if box else image
        for size, crop in SIZES:
            for mode in ("crop", "pad"):
                pixels = prepare(processor_of(size, crop, mode), image)
                arrays[f"{name}-{size}-{crop}-{mode}"] = pixels
    for name in ("square", "landscape", "odd"):
        image = Image.open(folder / PICTURES[name][0]).convert("RGB")
        pixels = prepare(processor_of(336, 336, "crop"), image)
        arrays[f"{name}-336-336-sparse"] = pixels[:, ::SPARSE, ::SPARSE]
    np.savez_compressed(HERE / "preprocess.npz", **arrays)


def record_generated() -> None:
    """The digest of each generated picture under each preparation."""
    record = {
        "recorded_with": f"transformers {transformers.__version__}, Pillow {PIL.__version__}",
        "sha256": {
            f"{name}-{size}-{crop}-{aspect}": digest(
                prepare(processor_of(size, crop, aspect), generate(*sides))
            )
            for name, sides in GENERATED.items()
            for size, crop, aspect in PREPARATIONS
        },
    }
    (HERE / "prepared_pixels.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    if [int(number) for number in PIL.__version__.split(".")[:2]] > [12, 1]:
        sys.exit(f"Pillow {PIL.__version__} resizes some tall pictures in another order; use 12.1")
    record_pictures(Path(sys.argv[1]))
    record_generated()
