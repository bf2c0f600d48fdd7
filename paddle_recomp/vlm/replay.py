"""The golden cases of a bundle, recorded on one machine and replayed on another: does that compute
what the exporter's computed? No paddle here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from paddle_recomp.backends.base import Backend
from paddle_recomp.bundle import Bundle
from paddle_recomp.bundle.comparison import (
    Comparison,
    length_difference,
    mean_cosine,
    relative_difference,
)
from paddle_recomp.bundle.contract import FROM_THE_LANGUAGE_MODEL, SCORES
from paddle_recomp.bundle.golden import Golden, GoldenAnswer, GoldenCase, Limits
from paddle_recomp.config import GenerationConfig
from paddle_recomp.errors import BundleError
from paddle_recomp.llm.base import LanguageModel
from paddle_recomp.preprocess import Turn, clip_text, load_image, render
from paddle_recomp.vlm.answering import Answerer
from paddle_recomp.vlm.front_end import check_stages, pad_words

Arrays = Mapping[str, np.ndarray]
WHOLE = "pipeline"
"""The stage of a comparison that goes the whole way on what this machine gave."""


@dataclass(frozen=True)
class Played:
    """What came of one case."""

    arrays: dict[str, np.ndarray]
    fused: dict[str, np.ndarray]
    """What the graph `encoder` gave; empty where the bundle has none for the compressor."""
    prompt: str
    answer: GoldenAnswer | None


class Player:
    """A bundle, and whatever runs it, step by step."""

    def __init__(
        self,
        bundle: Bundle,
        backend_of: Callable[[Bundle], Backend],
        model: LanguageModel | None,
    ) -> None:
        """`backend_of` loads the graphs of a bundle with one of its compressors; `model` is None
        where there is no language model."""
        self.bundle, self.model = bundle, model
        self.clip, self.words = bundle.clip_tokenizer(), bundle.language_tokenizer()
        self._backend = cache(lambda name: backend_of(bundle.choose(name)))

    def play(
        self,
        picture: Path,
        question: str,
        compressor: str,
        token_bounds: tuple[int, int],
        max_new_tokens: int,
        given: Arrays | None = None,
    ) -> Played:
        """Everything from the picture to the answer. Each step reads what `given` has in place of
        what the step before it gave, so that a difference shows in the step that makes it.

        Raises: ImageError, FeatureError; BundleError for a compressor that reads words where there
        is no language model to embed them."""
        bundle, own, given = self.bundle, dict[str, np.ndarray](), dict(given or {})
        towers = self._backend(bundle.compressor)
        prompt = render(bundle.template, [Turn(question, images=1)])
        about = bundle.question
        text = clip_text(question, 1, bundle.template, about.source, about.begin)
        own["pixel_values"] = bundle.image_processor([load_image(picture)])
        own["question_ids"] = self.clip.encode([text], bundle.question_positions)[0]
        own["token_bounds"] = np.array([token_bounds], dtype=np.int64)
        own["prompt_ids"] = np.array(self.words.encode(prompt), dtype=np.int64)
        own |= towers.run("vision", {"pixel_values": (own | given)["pixel_values"]})
        own |= towers.run("text", {"question_ids": (own | given)["question_ids"]})
        inputs = bundle.compressors[compressor].graph.inputs
        if set(inputs) & {*FROM_THE_LANGUAGE_MODEL}:
            own["word_embeds"], own["word_mask"] = self._words(question, compressor)
        wanted = {name: (own | given)[name] for name in inputs}
        own |= self._backend(compressor).run("compress", wanted)
        chosen = bundle.choose(compressor)
        check_stages(own, chosen.stages)
        fused = dict[str, np.ndarray]()
        if "encoder" in chosen.graphs:
            wanted = {name: (own | given)[name] for name in chosen.graphs["encoder"].inputs}
            fused = self._backend(compressor).run("encoder", wanted)
        answer = None
        if self.model is not None:
            tokens = own | given
            own["logits"], answer = self._answer(
                self.model,
                tokens["prompt_ids"],
                tokens["visual_embeds"][0, : int(tokens["token_count"][0])],
                max_new_tokens,
            )
        return Played(own, fused, prompt.text, answer)

    def _words(self, question: str, compressor: str) -> tuple[np.ndarray, np.ndarray]:
        """word_embeds [1, W, D] and word_mask [1, W] of a question."""
        if self.model is None:
            raise BundleError(
                f"{self.bundle.folder}: the compressor {compressor!r} reads words that a language "
                "model embeds, which the bundle does not have"
            )
        answerer = Answerer(self.model, self.words, self.bundle.template)
        return pad_words([answerer.embed_words(question)])

    def _answer(
        self, model: LanguageModel, ids: np.ndarray, tokens: np.ndarray, max_new_tokens: int
    ) -> tuple[np.ndarray, GoldenAnswer]:
        """The logits [1, V] behind a prompt, and the greedy answer to it."""
        answerer = Answerer(model, self.words, self.bundle.template)
        embeds = answerer.embed(ids.tolist(), [tokens], max_new_tokens)
        logits, _ = model.prefill(embeds[None], np.array([len(embeds)], dtype=np.int64))
        generation = answerer.generate([embeds], GenerationConfig(max_new_tokens=max_new_tokens))
        for _ in generation:
            pass
        (draft,) = generation.drafts
        answer = GoldenAnswer(max_new_tokens, tuple(draft.token_ids), draft.text.strip())
        return logits, answer


def replay_cases(player: Player, golden: Golden) -> Iterator[Comparison]:
    """Each case twice: step by step on what was recorded, and the whole way from the picture.

    Raises: as `Player.play`."""
    yield from _compare_files(player.bundle, golden.recorded_from)
    limits = golden.limits
    overlaps = {WHOLE: list[float](), "encoder": list[float]()}
    right = {"answer": list[bool](), WHOLE: list[bool]()}
    for case in golden.cases:
        longest = 1 if case.answer is None else case.answer.max_new_tokens
        asked = (case.picture, case.question, case.compress, case.token_bounds, longest)
        steps, whole = player.play(*asked, given=case.arrays), player.play(*asked)
        yield from _compare_steps(case, steps, player.bundle, limits)
        for step, found in ((WHOLE, whole.arrays), ("encoder", steps.fused)):
            if not found:
                continue
            if limits.overlap is None:
                yield from _compare_whole(case, step, found, limits)
            elif int(case.arrays["token_count"][0]) < player.bundle.num_patches:
                overlaps[step].append(_overlap(case, found, player.bundle))
        for step, played in (("answer", steps), (WHOLE, whole)):
            if case.answer is not None and played.answer is not None:
                expected, said = case.answer, played.answer
                same = (expected.text, expected.token_ids) == (said.text, said.token_ids)
                right[step].append(same)
    for step, shares in overlaps.items():
        if limits.overlap is not None and shares:
            mean = float(np.mean(shares))
            yield Comparison(1, step, "token_index", "overlap", mean, limits.overlap)
    for step, texts in right.items():
        if texts:
            share = sum(texts) / len(texts)
            yield Comparison(len(texts), step, "text", "answers", share, limits.answers)


def _compare_files(bundle: Bundle, recorded: Mapping[str, str]) -> Iterator[Comparison]:
    """Whether the bundle is the one that was recorded: rows of a table that no case reads, and what
    INT8 rounds away, show nowhere else."""
    for name, digest in recorded.items():
        same = bundle.sums.expected.get(name) == digest
        if same:
            bundle.verified(name)
        yield Comparison(1, "files", name, "agreement", float(same), 1.0)


def _compare_steps(
    case: GoldenCase, played: Played, bundle: Bundle, limits: Limits
) -> Iterator[Comparison]:
    outputs = {name: graph for graph in ("vision", "text") for name in bundle.graphs[graph].outputs}
    for name, expected in case.arrays.items():
        if name not in played.arrays:
            continue
        found, least = played.arrays[name], None
        step = {"pixel_values": "picture", "question_ids": "question", "prompt_ids": "prompt"}.get(
            name, outputs.get(name, "compress")
        )
        if name in outputs:
            least = limits.towers_cosine
        if name == "logits":
            step, least = "decoder", limits.logits_cosine
        yield _compare(case.name, step, name, expected, found, limits.difference, least)
        if least is not None and name in outputs and name not in SCORES:
            # What two processors round differently lies across a vector as much as along it.
            most = (2 * (1 - least)) ** 0.5
            value = length_difference(expected, found) if expected.shape == found.shape else np.inf
            yield Comparison(1, step, name, "length", value, most, case.name)
    if case.prompt != played.prompt:
        yield Comparison(1, "prompt", "text", "agreement", 0.0, 1.0, case.name)


def _compare_whole(
    case: GoldenCase, step: str, found: Arrays, limits: Limits
) -> Iterator[Comparison]:
    for name, expected in case.arrays.items():
        if name.startswith("token_") or name == "visual_embeds":
            yield _compare(case.name, step, name, expected, found[name], limits.difference, None)


def _compare(
    case: str,
    step: str,
    name: str,
    expected: np.ndarray,
    found: np.ndarray,
    difference: float,
    cosine: float | None,
) -> Comparison:
    same_shape = expected.shape == found.shape
    if expected.dtype.kind != "f":
        value = float((expected == found).mean()) if same_shape and expected.size else 0.0
        return Comparison(1, step, name, "agreement", value, 1.0, case)
    if cosine is not None:
        value = mean_cosine(expected, found) if same_shape else 0.0
        return Comparison(1, step, name, "cosine", value, cosine, case)
    value = relative_difference(expected, found) if same_shape else np.inf
    return Comparison(1, step, name, "difference", value, difference, case)


def _overlap(case: GoldenCase, found: Arrays, bundle: Bundle) -> float:
    """The patches that both keep as they are, divided by those that either does."""
    stages = bundle.compressors[case.compress].stages
    whole = [number for number, stage in enumerate(stages) if stage.kind == "patch"]
    ours, theirs = (
        {*arrays["token_index"][np.isin(arrays["token_stage"], whole)].tolist()}
        for arrays in (case.arrays, found)
    )
    return len(ours & theirs) / max(len(ours | theirs), 1)
