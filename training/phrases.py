"""Captions and phrases that the text tower learns from; none of them is a question of the test.

The function words of the questions (what, which, is, the, where, how, many, color, ...) appear
here in other sentences, as a web-trained CLIP has seen every English word in other sentences.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.scenes import BACKGROUND, COLORS, DIGITS, EDGE, SHAPES, Scene

BY_COLOR = (
    "the {c} one", "something {c}", "{c}", "anything {c} here", "one is {c}", "it is {c}",
    "whatever is {c} in the picture", "here is a thing that is {c}", "a {c} thing",
    "this color is {c}", "the color {c}", "what looks {c}", "the part which is {c}",
    "is it {c}? yes, that one is {c}", "where the picture is {c}", "painted {c}", "{c}?",
    "the one that is {c}?", "there is a bit of {c}", "how {c} it is", "only the {c} one",
)  # fmt: skip
BY_KIND_COLOR = (
    "a {c} {k}", "the {c} {k}", "a {k} that is {c}", "the {k} which is {c}", "{c} {k}",
    "one {k} is {c}", "a {k} whose color is {c}", "this is what a {c} {k} looks like",
    "there is a {c} {k} here", "a {k} painted {c}", "{c} is the color of the {k}",
    "a photo of a {c} {k}", "here is where the {c} {k} is", "some {k} is {c}", "that {k} is {c}",
    "many things, and one {k} is {c}", "which one? the {c} {k}",
    "the {k} is {c}, not another color", "what a {c} {k}", "look at the {k}: it is {c}",
    "a {k} is {c}?", "every {k} is {c} here", "this {k} is {c}",
    "of what there is, one {k} is {c}", "the {k} is {c}", "{c}, this {k}",
    "we see what {k} it is: the {c} one",
)  # fmt: skip
BY_NAME = (
    "a {n}", "the {n}", "{n}", "one {n}", "the {n} is here", "there is a {n}", "this is a {n}",
    "here is the {n}", "a {n} of some color", "a photo of a {n}", "this is what a {n} looks like",
    "here is where the {n} stands", "the color of the {n}", "which one? the {n}", "the {n}?",
    "the {n} has a color", "is the {n} in the picture? yes, the {n}", "the place of the {n}",
    "the {k} {n}", "a {k}, it is the {n}", "what we call a {n}",
    "this color is the one of the {n}", "a {n} of whatever color", "in some place is the {n}",
    "how to draw a {n}", "many things and a {n}", "any color, but the {n}", "it is the {n}",
    "the {n} is where?", "the {n}, in color", "there it is, the {n}", "here and there is the {n}",
)  # fmt: skip
BY_NAME_COLOR = (
    "a {c} {n}", "the {c} {n}", "{c} {n}", "the {n} is {c}", "a {n} whose color is {c}",
    "the {c} {k} {n}", "a {n} painted {c}", "a photo of a {c} {n}", "here is a {n}, it is {c}",
    "this is what a {c} {n} looks like", "the color of the {n} is {c}",
    "is the {n} {c}? yes, it is", "here is where the {c} {n} is", "what is {c} is the {n}",
)  # fmt: skip
BY_KIND = (
    "a {k}", "the {k}", "any {k}", "{k}s", "many {k}s", "the {k}s of the picture",
    "some {k}s are here", "all the {k}s there are", "one {k} or two {k}s", "a photo of {k}s",
    "how many {k}s, one or more", "there are some {k}s", "what {k}s look like", "every {k}",
    "which {k} is which",
)  # fmt: skip
BY_NOTHING = (
    "the background", "an empty place", "nothing is here", "where there is nothing",
    "only background", "what is behind", "a {b} background", "the {b} texture",
    "no digit and no shape, just {b}", "how empty it is", "a plain part of the picture",
    "there are many grey dots",
)  # fmt: skip
BACKGROUND_WORDS = {
    "plain": "plain", "gradient": "shaded", "noise": "noisy", "stripes": "striped",
    "checker": "checkered", "blobs": "cloudy",
}  # fmt: skip
CAPTION_STARTS = ("", "a picture of ", "a photo of ", "here we see ", "there is ", "this is ")
CAPTIONED = 3  # a caption names the most salient objects only, as people do


@dataclass(frozen=True)
class Phrase:
    """A phrase and what it speaks of; None in a field means any. kind "" is the background."""

    text: str
    kind: str | None = None
    name: str | None = None
    color: str | None = None


def _pick(templates: tuple[str, ...], rng: np.random.Generator) -> str:
    return templates[int(rng.integers(len(templates)))]


def random_phrase(rng: np.random.Generator) -> Phrase:
    """A phrase about a random digit, shape, color or the background."""
    color = str(rng.choice(list(COLORS)))
    kind = "digit" if rng.random() < 0.55 else "shape"
    name = str(rng.choice(DIGITS if kind == "digit" else SHAPES))
    draw = rng.random()
    if draw < 0.1:
        return Phrase(_pick(BY_COLOR, rng).format(c=color), color=color)
    if draw < 0.45:
        text = _pick(BY_KIND_COLOR, rng).format(c=color, k=kind)
        return Phrase(text, kind=kind, color=color)
    if draw < 0.85:
        return Phrase(_pick(BY_NAME, rng).format(n=name, k=kind), name=name)
    if draw < 0.92:
        text = _pick(BY_NAME_COLOR, rng).format(n=name, k=kind, c=color)
        return Phrase(text, name=name, color=color)
    if draw < 0.96:
        return Phrase(_pick(BY_KIND, rng).format(k=kind), kind=kind)
    word = str(rng.choice(list(BACKGROUND_WORDS.values())))
    return Phrase(_pick(BY_NOTHING, rng).format(b=word), kind="")


def relevance(phrase: Phrase, scene: Scene) -> npt.NDArray[np.float32]:
    """Per patch 1 (the phrase speaks of it), 0 (it does not) or NaN (undecided), [256]."""
    fits = [
        phrase.kind in (None, thing.kind)
        and phrase.name in (None, thing.name)
        and phrase.color in (None, thing.color)
        for thing in scene.objects
    ]
    # The two entries at the end are reached by the negative labels EDGE and BACKGROUND.
    table = np.array([*map(float, fits), np.nan, float(phrase.kind == "")], np.float32)
    assert (EDGE, BACKGROUND) == (-2, -1)
    return table[scene.labels]


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A sentence about the most salient objects and sometimes the background."""
    order = sorted(scene.objects, key=lambda thing: -thing.salience)[:CAPTIONED]
    parts = []
    for number in rng.permutation(len(order)):
        thing = order[number]
        template = _pick(BY_NAME_COLOR[:3], rng) if rng.random() < 0.9 else "a {n}"
        parts.append(template.format(n=thing.name, c=thing.color, k=thing.kind))
    text = _pick(CAPTION_STARTS, rng) + " and ".join(parts)
    if rng.random() < 0.4:
        text += f" on a {BACKGROUND_WORDS[scene.background]} background"
    return text


def corpus() -> list[str]:
    """Every phrase there is once, for the CLIP tokenizer to learn its merges from."""
    texts = set()
    everything = BY_COLOR + BY_KIND_COLOR + BY_NAME + BY_NAME_COLOR + BY_KIND + BY_NOTHING
    for number in range(40):
        color = list(COLORS)[number % len(COLORS)]
        name = (DIGITS + SHAPES)[number % len(DIGITS + SHAPES)]
        word = list(BACKGROUND_WORDS.values())[number % len(BACKGROUND_WORDS)]
        for template in everything + CAPTION_STARTS:
            for kind in ("digit", "shape"):
                texts.add(template.format(c=color, n=name, k=kind, b=word))
    return sorted(texts)
