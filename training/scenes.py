"""Seeded scenes of coloured digits and shapes, with questions; NumPy, Pillow, scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

SIDE = 224
PATCH = 14
GRID = SIDE // PATCH
GLYPH = 8
BACKGROUND = -1  # patch label: nothing here
EDGE = -2  # patch label: an object touches this patch, but too little of it to name it

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (215, 30, 35),
    "orange": (245, 135, 20),
    "yellow": (245, 225, 45),
    "green": (35, 150, 50),
    "cyan": (50, 215, 225),
    "blue": (35, 65, 215),
    "purple": (125, 45, 175),
    "pink": (245, 125, 190),
}
DIGITS = tuple("0123456789")
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
BACKGROUNDS = ("plain", "gradient", "noise", "stripes", "checker", "blobs")
ROWS = ("top", "", "bottom")
COLUMNS = ("left", "", "right")
HELD_OUT_EVERY = 5  # every fifth handwritten digit is seen by evaluation only
NAMED_COVERAGE = 0.25  # a box of at most 48 px then names at most 4 x 4 patches
TOUCHED_COVERAGE = 0.04
PLACE_MARGIN = 6  # pixels: no question about the place of an object this close to a border

FloatImage = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SceneObject:
    """One object; box is (left, top, right, bottom) in pixels, right and bottom excluded."""

    kind: str
    name: str
    color: str
    box: tuple[int, int, int, int]
    salience: float

    @property
    def center(self) -> tuple[float, float]:
        """(x, y) in pixels."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2

    @property
    def place(self) -> str:
        """Where the centre lies in a 3 x 3 grid, such as "top left" or "center"."""
        x, y = self.center
        words = (ROWS[int(y * 3 // SIDE)], COLUMNS[int(x * 3 // SIDE)])
        return " ".join(word for word in words if word) or "center"

    @property
    def place_is_clear(self) -> bool:
        """Whether the centre is far enough from every border of the 3 x 3 grid."""
        borders = (SIDE / 3, SIDE * 2 / 3)
        return all(abs(v - border) >= PLACE_MARGIN for v in self.center for border in borders)


@dataclass(frozen=True)
class Scene:
    """image [224, 224, 3] uint8; labels [256]: object number, BACKGROUND or EDGE.

    glyphs [objects, 8, 8]: coarse opacity of every object within its own square, 0..1.
    """

    image: npt.NDArray[np.uint8]
    objects: tuple[SceneObject, ...]
    labels: npt.NDArray[np.int8]
    background: str
    glyphs: FloatImage

    def patches(self, target: int) -> npt.NDArray[np.int64]:
        """Ascending numbers of the patches that show one object, [n]."""
        return np.flatnonzero(self.labels == target)


@dataclass(frozen=True)
class Question:
    """target is the number of the object that is asked about; None for "how many"."""

    question: str
    answer: str
    target: int | None
    kind: str


@cache
def _digit_images(held_out: bool) -> dict[str, npt.NDArray[np.uint8]]:
    """Handwritten digits by value, each [n, 8, 8]; the two halves share no image."""
    data = load_digits()
    index = np.arange(len(data.target))
    mine = (index % HELD_OUT_EVERY == 0) == held_out
    images = np.round(data.images * (255 / 16)).astype(np.uint8)
    return {name: images[mine & (data.target == int(name))] for name in DIGITS}


def _background(kind: str, rng: np.random.Generator) -> FloatImage:
    """A greyish textured background, [224, 224, 3] in 0..255."""
    base = rng.uniform(45, 185)
    swing = rng.uniform(12, 40)
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) / SIDE
    angle = rng.uniform(0, 2 * np.pi)
    slope = np.cos(angle) * x + np.sin(angle) * y
    if kind == "gradient":
        tone = slope
    elif kind == "stripes":
        tone = np.sin(slope * rng.uniform(20, 70))
    elif kind == "checker":
        cells = rng.integers(6, 14)
        tone = ((np.floor(x * cells) + np.floor(y * cells)) % 2) * 2 - 1
    elif kind == "blobs":
        coarse = rng.uniform(-1, 1, (7, 7)).astype(np.float32)
        resized = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        tone = np.asarray(resized)
    else:
        tone = np.zeros_like(slope)
    grain = rng.uniform(18, 30) if kind == "noise" else rng.uniform(3, 12)
    tone = base + swing * tone + grain * rng.standard_normal((SIDE, SIDE), dtype=np.float32)
    tint = rng.uniform(-14, 14, 3).astype(np.float32)
    return (tone[..., None] + tint).astype(np.float32)


def _digit_mask(name: str, size: int, held_out: bool, rng: np.random.Generator) -> FloatImage:
    """A handwritten digit, slightly turned and sheared, as opacity [size, size]."""
    choices = _digit_images(held_out)[name]
    small = Image.fromarray(choices[rng.integers(len(choices))])
    # Few handwritten digits are at hand, so training distorts them more than evaluation does.
    wobble = 0.8 if held_out else 1.3
    angle, shear = np.deg2rad(rng.uniform(-12, 12)) * wobble, rng.uniform(-0.15, 0.15) * wobble
    wide, high = (8.8 + rng.uniform(-0.6, 0.6, 2) * wobble) / size
    cos, sin = np.cos(angle), np.sin(angle)
    a, b, d, e = cos * wide, (shear - sin) * wide, sin * high, cos * high
    middle = size / 2
    matrix = (a, b, 4 - a * middle - b * middle, d, e, 4 - d * middle - e * middle)
    turned = small.transform(
        (size, size), Image.Transform.AFFINE, matrix, resample=Image.Resampling.BICUBIC
    )
    ink = np.asarray(turned, dtype=np.float32) / 255
    return np.clip((ink - 0.33) / 0.3, 0, 1)


def _outline(name: str) -> npt.NDArray[np.float64]:
    """Corner points of a shape in the unit disc, [n, 2]."""
    turn = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    if name == "circle":
        return np.stack([np.cos(turn), np.sin(turn)], 1) * 0.92
    if name == "square":
        return np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.8
    if name == "triangle":
        return np.array([(0, -0.95), (0.98, 0.85), (-0.98, 0.85)])
    if name == "star":
        spokes = -np.pi / 2 + np.arange(10) * np.pi / 5
        reach = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)
        return np.stack([np.cos(spokes), np.sin(spokes)], 1) * reach[:, None]
    if name == "heart":
        x = 16 * np.sin(turn) ** 3
        y = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
        return np.stack([x, -y - 2.5], 1) / 17
    arm = 0.32
    quarter = [(-arm, -0.95), (arm, -0.95), (arm, -arm), (0.95, -arm), (0.95, arm), (arm, arm)]
    return np.array(quarter + [(-px, -py) for px, py in quarter])


def _shape_mask(name: str, size: int, rng: np.random.Generator) -> FloatImage:
    """A filled shape, slightly turned, as opacity [size, size]."""
    angle = np.deg2rad(rng.uniform(-10, 10))
    turn = np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])
    fine = 3 * size
    points = (_outline(name) @ turn.T * 0.98 + 1) * fine / 2
    canvas = Image.new("L", (fine, fine))
    ImageDraw.Draw(canvas).polygon([(float(px), float(py)) for px, py in points], fill=255)
    return np.asarray(canvas.resize((size, size), Image.Resampling.BOX), dtype=np.float32) / 255


def _grow(mask: FloatImage, steps: int) -> FloatImage:
    """The mask widened by `steps` pixels to every side, same shape."""
    for _ in range(steps):
        padded = np.pad(mask, 1)
        rows = np.maximum(np.maximum(padded[:-2], padded[1:-1]), padded[2:])
        mask = np.maximum(np.maximum(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:])
    return mask


def _free_place(
    size: int, taken: list[tuple[int, int, int]], rng: np.random.Generator
) -> tuple[int, int] | None:
    """A corner (left, top) whose square touches none of the taken ones, or None."""
    for _ in range(60):
        left, top = (int(v) for v in rng.integers(3, SIDE - size - 3, 2))
        if all(
            left >= x + s + 3 or x >= left + size + 3 or top >= y + s + 3 or y >= top + size + 3
            for x, y, s in taken
        ):
            return left, top
    return None


def _things(count: int, rng: np.random.Generator) -> list[tuple[str, str, str]]:
    """(kind, name, color) of each object: no name and no color twice."""
    digits = list(rng.permutation(DIGITS))
    shapes = list(rng.permutation(SHAPES))
    things = []
    for color in rng.permutation(list(COLORS))[:count]:
        is_digit = rng.random() < 0.6 or not shapes
        kind, name = ("digit", digits.pop()) if is_digit else ("shape", shapes.pop())
        things.append((kind, str(name), str(color)))
    return things


def make_scene(seed: int, objects: int | None = None, held_out: bool = False) -> Scene:
    """The scene of a seed; two to six objects, now and then up to eight, unless told how many."""
    rng = np.random.default_rng([seed, int(held_out)])
    usual = int(rng.choice([2, 3, 4, 5, 6, 7, 8], p=[0.12, 0.2, 0.22, 0.22, 0.16, 0.04, 0.04]))
    background = str(rng.choice(BACKGROUNDS))
    image = _background(background, rng)
    coverage: list[FloatImage] = []
    placed: list[SceneObject] = []
    taken: list[tuple[int, int, int]] = []
    glyphs: list[FloatImage] = []
    for kind, name, color in _things(usual if objects is None else objects, rng):
        # Salience varies on purpose: a caption, and so the class token, favours the bold ones.
        bold = rng.random()
        size = round(35 + 8 * bold + rng.uniform(0, 5))
        opacity = 0.7 + 0.3 * bold
        place = _free_place(size, taken, rng)
        if place is None:
            continue
        left, top = place
        taken.append((left, top, size))
        if kind == "digit":
            mask = _digit_mask(name, size, held_out, rng)
        else:
            mask = _shape_mask(name, size, rng)
        coarse = Image.fromarray(mask).resize((GLYPH, GLYPH), Image.Resampling.BOX)
        glyphs.append(np.asarray(coarse))
        window = image[top : top + size, left : left + size]
        if bold > 0.65:
            rim = _grow(mask, 1)[..., None] * 0.9
            window[:] = window * (1 - rim) + 250 * rim
        paint = np.array(COLORS[color], np.float32) + rng.uniform(-12, 12, 3).astype(np.float32)
        window[:] = window * (1 - mask[..., None] * opacity) + paint * mask[..., None] * opacity
        ys, xs = np.nonzero(mask > 0.3)
        box = (left + xs.min(), top + ys.min(), left + xs.max() + 1, top + ys.max() + 1)
        corners = (int(box[0]), int(box[1]), int(box[2]), int(box[3]))
        placed.append(SceneObject(kind, name, color, corners, round(bold, 3)))
        full = np.zeros((SIDE, SIDE), np.float32)
        full[top : top + size, left : left + size] = _grow(mask, 1) > 0.3
        coverage.append(full.reshape(GRID, PATCH, GRID, PATCH).mean((1, 3)).ravel())
    share = np.stack(coverage)
    best = share.argmax(0)
    most = share.max(0)
    labels = np.where(
        most >= NAMED_COVERAGE, best, np.where(most >= TOUCHED_COVERAGE, EDGE, BACKGROUND)
    )
    pixels = np.clip(np.round(image), 0, 255).astype(np.uint8)
    return Scene(pixels, tuple(placed), labels.astype(np.int8), background, np.stack(glyphs))


def questions(scene: Scene) -> list[Question]:
    """Every question that the scene answers, in the order of its objects, counts last."""
    asked: list[Question] = []
    for number, thing in enumerate(scene.objects):
        what = f"what {thing.kind} is {thing.color}?"
        asked.append(Question(what, thing.name, number, f"{thing.kind}_of_color"))
        color = f"what color is the {thing.name}?"
        asked.append(Question(color, thing.color, number, f"color_of_{thing.kind}"))
        if thing.place_is_clear:
            asked.append(Question(f"where is the {thing.name}?", thing.place, number, "where"))
    for kind in ("digit", "shape"):
        count = sum(thing.kind == kind for thing in scene.objects)
        asked.append(Question(f"how many {kind}s are there?", str(count), None, "how_many"))
    return asked
