"""Record what transformers makes of pictures: preprocess.npz.

    python -m tests.golden.record_pictures PICTURES

PICTURES is the folder `skimage/data` of an installed scikit-image. Needs transformers, which the
tests that read the file do not."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import transformers
from PIL import Image

from tests.golden.record_cases import PICTURES, SPARSE

HERE = Path(__file__).parent
SIZES = [(42, 42), (49, 42), (30, 41)]


def record_pictures(folder: Path) -> None:
    """One array [3, S, S] per picture, size, crop and mode."""
    arrays: dict[str, npt.NDArray[np.float32]] = {}
    for name, (file, box) in PICTURES.items():
        image = Image.open(folder / file).convert("RGB")
        image = image.crop(box) if box else image
        for size, crop in SIZES:
            sides = {"height": crop, "width": crop}
            clip = transformers.CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=sides)
            pad = transformers.LlavaImageProcessorPil(
                size={"shortest_edge": size}, crop_size=sides, do_pad=True
            )
            for mode, processor in (("crop", clip), ("pad", pad)):
                pixels = processor(image, return_tensors="np")["pixel_values"][0]
                arrays[f"{name}-{size}-{crop}-{mode}"] = pixels.astype(np.float32)
    full = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
    )
    for name in ("square", "landscape", "odd"):
        image = Image.open(folder / PICTURES[name][0]).convert("RGB")
        pixels = full(image, return_tensors="np")["pixel_values"][0]
        arrays[f"{name}-336-336-sparse"] = pixels[:, ::SPARSE, ::SPARSE].astype(np.float32)
    np.savez_compressed(HERE / "preprocess.npz", **arrays)


if __name__ == "__main__":
    record_pictures(Path(sys.argv[1]))
