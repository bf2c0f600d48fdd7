"""Pixel values: equal to what transformers makes of the same pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image

from paddle_recomp.errors import CheckpointError, CheckpointNotFoundError, ImageError
from paddle_recomp.preprocess import ImageProcessor, crop_box, load_image
from tests.golden.record_cases import PICTURES, SPARSE

GOLDEN = Path(__file__).parents[1] / "golden" / "preprocess.npz"
OLD_STYLE = {
    "crop_size": 336,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 336,
}
NEW_STYLE = {
    **OLD_STYLE,
    "crop_size": {"height": 336, "width": 336},
    "do_convert_rgb": True,
    "do_rescale": True,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 336},
}


def picture(name: str) -> Image.Image:
    file, box = PICTURES[name]
    image = load_image(Path(skimage.__file__).parent / "data" / file)
    return image.crop(box) if box else image


@pytest.mark.parametrize("case", sorted(np.load(GOLDEN)))
def test_parity_with_transformers(case: str) -> None:
    name, size, crop, mode = case.split("-")
    aspect = "pad" if mode == "pad" else "crop"
    processor = ImageProcessor(int(size), int(crop), aspect=aspect)  # type: ignore[arg-type]
    pixels = processor([picture(name)])
    assert pixels.shape == (1, 3, int(crop), int(crop))
    assert pixels.dtype == np.float32
    step = SPARSE if mode == "sparse" else 1
    np.testing.assert_allclose(pixels[0, :, ::step, ::step], np.load(GOLDEN)[case], atol=1e-5)


def test_a_batch_is_its_pictures() -> None:
    processor = ImageProcessor(42, 42)
    images = [picture("landscape"), picture("portrait")]
    both = processor(images)
    for row, image in zip(both, images, strict=True):
        np.testing.assert_array_equal(row, processor([image])[0])


def test_no_pictures() -> None:
    with pytest.raises(ImageError, match="no picture"):
        ImageProcessor(42, 42)([])


@pytest.mark.parametrize("aspect", ["crop", "pad"])
def test_elongated(aspect: str) -> None:
    processor = ImageProcessor(336, 336, aspect=aspect)  # type: ignore[arg-type]
    assert processor([Image.new("RGB", (10, 2000))]).shape == (1, 3, 336, 336)
    with pytest.raises(ImageError, match="1×50000 pixels is too elongated"):
        processor([Image.new("RGB", (1, 50_000))])


def write(folder: Path, fields: object, name: str = "preprocessor_config.json") -> Path:
    (folder / name).write_text(json.dumps(fields))
    return folder


@pytest.mark.parametrize("fields", [OLD_STYLE, NEW_STYLE])
def test_both_styles_of_file(tmp_path: Path, fields: dict[str, object]) -> None:
    processor = ImageProcessor.from_folder(write(tmp_path, fields))
    assert (processor.size, processor.crop, processor.aspect) == (336, 336, "crop")
    assert processor.mean == (0.48145466, 0.4578275, 0.40821073)
    assert processor.rescale == pytest.approx(1 / 255)


def test_fields_inside_processor_config(tmp_path: Path) -> None:
    fields = {"image_processor": {**NEW_STYLE, "do_pad": True}, "processor_class": "Llava"}
    processor = ImageProcessor.from_folder(write(tmp_path, fields, "processor_config.json"))
    assert processor.aspect == "pad"


def test_flags(tmp_path: Path) -> None:
    fields = {**NEW_STYLE, "do_normalize": False, "do_rescale": False}
    processor = ImageProcessor.from_folder(write(tmp_path, fields), aspect="pad")
    assert processor.aspect == "pad"
    pixels = ImageProcessor.from_folder(write(tmp_path, fields))([Image.new("RGB", (9, 9), 77)])
    assert pixels.max() == 77


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("do_resize", False),
        ("do_center_crop", False),
        ("resample", 2),
        ("size", None),
        ("size", 0),
        ("size", True),
        ("size", {"height": 336, "width": 336}),
        ("crop_size", {"height": 336, "width": 300}),
        ("image_mean", [0.5, 0.5]),
        ("image_std", "clip"),
        ("image_mean", [0.5, 0.5, "x"]),
        ("image_std", [0.5, 0.0, 0.5]),
        ("rescale_factor", None),
    ],
)
def test_unsupported_fields_are_named(tmp_path: Path, key: str, value: object) -> None:
    folder = write(tmp_path, {**NEW_STYLE, key: value})
    with pytest.raises(CheckpointError, match=rf"preprocessor_config\.json: {key} is"):
        ImageProcessor.from_folder(folder)


def test_missing_or_broken_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"preprocessor_config\.json"):
        ImageProcessor.from_folder(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="expected a JSON object"):
        ImageProcessor.from_folder(write(tmp_path, [1]))
    (tmp_path / "preprocessor_config.json").write_bytes(b"\xff{")
    with pytest.raises(CheckpointError, match="is not JSON"):
        ImageProcessor.from_folder(tmp_path)


def test_crop_box_covers_the_centre() -> None:
    processor = ImageProcessor(336, 336)
    assert crop_box((600, 400), processor) == pytest.approx((100, 0, 500, 400))
    assert crop_box((400, 600), processor) == pytest.approx((0, 100, 400, 500))
    assert crop_box((50, 50), processor) == pytest.approx((0, 0, 50, 50))


def test_crop_box_with_padding_reaches_beyond_the_picture() -> None:
    processor = ImageProcessor(336, 336, aspect="pad")
    assert crop_box((600, 400), processor) == pytest.approx((0, -100, 600, 500))
    assert crop_box((400, 600), processor) == pytest.approx((-100, 0, 500, 600))


@pytest.mark.parametrize("aspect", ["crop", "pad"])
@pytest.mark.parametrize("size", [(120, 80), (80, 120), (96, 96)])
def test_crop_box_is_where_the_pixels_come_from(aspect: str, size: tuple[int, int]) -> None:
    """A bright square in one patch of the picture lights up that patch of the pixel values."""
    processor = ImageProcessor(48, 48, aspect=aspect)  # type: ignore[arg-type]
    left, top, right, _bottom = crop_box(size, processor)
    side = (right - left) / 4
    image = Image.new("RGB", size)
    place = [left + 2 * side, top + side, left + 3 * side, top + 2 * side]
    image.paste((255, 255, 255), [round(edge) for edge in place])  # type: ignore[arg-type]
    pixels = processor([image])[0, 0]
    blocks = pixels.reshape(4, 12, 4, 12).mean(axis=(1, 3))
    assert blocks.argmax() == 1 * 4 + 2
