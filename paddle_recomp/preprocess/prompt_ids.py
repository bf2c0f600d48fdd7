"""From a prompt to ids, so that nothing that was said is control: a token such as `</s>` counts
only where the template's own text has it.

A text is encoded whole where what was said spells no control token, because pieces merge across
the border between the template's text and what was said. Otherwise it is cut at the template's own
control tokens, and the stretches between them are encoded by a tokenizer without such tokens."""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Collection, Iterator
from functools import cache
from itertools import accumulate
from typing import Any, Literal, NamedTuple

from tokenizers import Encoding, Tokenizer
from tokenizers.models import BPE

from paddle_recomp.errors import CheckpointError
from paddle_recomp.preprocess.chat_template import IMAGE_PLACEHOLDER, Prompt

IMAGE_TOKEN = -200
"""Stands among the ids where the visual tokens go (LLaVA's IMAGE_TOKEN_INDEX)."""

_Where = Literal["start", "behind", "behind normalised"]
"""Where a stretch stands: at the start of a text, or behind a control token that the tokenizer
finds before it normalises a text, or after. It decides about the space in front of a word."""


class _Mark(NamedTuple):
    """A control token, or a picture, in a text."""

    number: int
    begin: int
    end: int
    """With the white space that the token takes for itself."""
    letters: tuple[int, int]
    """Without that white space."""


class PromptEncoder:
    """Prompts to ids, with a tokenizer of Hugging Face's tokenizers."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        image_token_id: int | None,
        silent_ids: Collection[int],
        template_texts: Collection[str],
    ) -> None:
        """Control are `<image>` and those added tokens that are special, among `silent_ids`, or in
        one of a template's texts. `image_token_id` is what the tokenizer makes of `<image>`; with
        None a prompt is cut at its pictures, and each stretch is encoded by itself.

        Raises: CheckpointError for a tokenizer that is not BPE."""
        if not isinstance(tokenizer.model, BPE):
            kind = type(tokenizer.model).__name__
            raise CheckpointError(f"the tokenizer is a {kind} model; only BPE is supported")
        self._tokenizer, self._image = tokenizer, image_token_id
        texts = (IMAGE_PLACEHOLDER, *template_texts)
        self._control = {
            number: token
            for number, token in tokenizer.get_added_tokens_decoder().items()
            if token.special or number in silent_ids or any(token.content in text for text in texts)
        }
        self._written = "\n".join(template_texts)
        self._unknown = tokenizer.model.unk_token
        letters = {letter for token in self._control.values() for letter in token.content}
        self._filler = next(c for c in (*string.punctuation, "\ufffd") if c not in letters)
        self._without_control = cache(self._make_without_control)

    @property
    def highest_id(self) -> int:
        """No prompt has a higher one: what was said spells no control token, and the template only
        those that it has."""
        hidden = {n for n, token in self._control.items() if token.content not in self._written}
        hidden |= {n for n, token in self._control.items() if token.content == IMAGE_PLACEHOLDER}
        ids: set[int] = {*self._tokenizer.get_vocab(with_added_tokens=True).values()}
        return max(ids - hidden, default=0)

    def __call__(self, prompt: Prompt) -> list[int]:
        """The ids of a prompt, IMAGE_TOKEN for each picture."""
        if self._image is not None:
            return self._encode(prompt)
        ids: list[int] = []
        for number, piece in enumerate(prompt.pieces()):
            ids += [IMAGE_TOKEN] if number else []
            ids += self._encode(piece)
        return ids

    def _encode(self, prompt: Prompt) -> list[int]:
        text = prompt.text
        encoding, seen = self._look(prompt)
        marks = list(self._marks(encoding, seen))
        known = {mark.letters for mark in marks}
        missed = [place for place in _pictures(prompt) if place not in known]
        if seen == text and not missed:
            return [IMAGE_TOKEN if number == self._image else number for number in encoding.ids]
        marks += [_Mark(IMAGE_TOKEN, *place, place) for place in missed]
        ids, at = list[int](), 0
        where: _Where = "start"
        for mark in sorted(marks, key=lambda mark: mark.begin):
            ids += self._stretch(text[at : mark.begin], where)
            ids.append(IMAGE_TOKEN if mark.number == self._image else mark.number)
            token = self._control.get(mark.number)
            at = mark.end
            where = "behind normalised" if token is not None and token.normalized else "behind"
        return ids + self._stretch(text[at:], where)

    def _look(self, prompt: Prompt) -> tuple[Encoding, str]:
        """A prompt's encoding, and the text that was encoded: the prompt's, or one of the same
        length, where other letters stand for control tokens that were said."""
        text = prompt.text
        said = [part.kind == "said" for part in prompt.parts for _ in part.text]
        while True:
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
            letters = list(text)
            for mark in self._marks(encoding, text):
                for place in range(*mark.letters):
                    if said[place]:
                        letters[place] = self._filler
            covered = "".join(letters)
            if covered == text:
                return encoding, text
            text = covered

    def _marks(self, encoding: Encoding, text: str) -> Iterator[_Mark]:
        """The control tokens in an encoding."""
        for number, (begin, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if number not in self._control:
                continue
            letters = text[begin:end].strip() or text[begin:end]
            content = self._control[number].content
            # The unknown token also stands for letters that the vocabulary does not have.
            if content == letters or content != self._unknown:
                first = text.index(letters, begin)
                yield _Mark(number, begin, end, (first, first + len(letters)))

    def _stretch(self, text: str, where: _Where) -> list[int]:
        """The ids of a text without control tokens."""
        if not text:
            return []
        ids: list[int] = self._without_control(where).encode(text, add_special_tokens=False).ids
        return ids

    def _make_without_control(self, where: _Where) -> Tokenizer:
        """The tokenizer as it would be if its control tokens did not exist."""
        about = json.loads(self._tokenizer.to_str())
        names = {token.content for token in self._control.values()}
        gone = names - {self._unknown}
        added = [token for token in about["added_tokens"] if token["content"] not in names]
        about |= {"added_tokens": added, "post_processor": None}
        model = about["model"]
        model["vocab"] = {
            **{text: n for text, n in model["vocab"].items() if text not in gone},
            # An added token that is not in here would get another id.
            **{token["content"]: token["id"] for token in added},
        }
        model["merges"] = [
            (left, right)
            for left, right in model["merges"]
            if not names & {left, right, left + right}
        ]
        steps = about["pre_tokenizer"], about["normalizer"]
        if where != "start":
            about["pre_tokenizer"] = _mapped(about["pre_tokenizer"], _prefix_nothing)
        if where == "behind normalised":
            about["normalizer"] = _mapped(about["normalizer"], _prepend_nothing)
        if where != "start" and steps == (about["pre_tokenizer"], about["normalizer"]):
            return self._without_control("start")
        return Tokenizer.from_str(json.dumps(about))


def _pictures(prompt: Prompt) -> list[tuple[int, int]]:
    """Where the pictures' places begin and end in a prompt's text."""
    ends = list(accumulate(len(part.text) for part in prompt.parts))
    return [
        (end - len(part.text), end)
        for part, end in zip(prompt.parts, ends, strict=True)
        if part.kind == "picture"
    ]


def _mapped(step: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """A step of a tokenizer.json with a change in it, also where it is a sequence of steps."""
    if step is None:
        return None
    inner = {name: step[name] for name in ("normalizers", "pretokenizers") if name in step}
    changed = {name: [_mapped(one, change) for one in steps] for name, steps in inner.items()}
    return change({**step, **changed})


def _prefix_nothing(step: dict[str, Any]) -> dict[str, Any]:
    """Only the first words of a text get this prefix."""
    return {**step, "prepend_scheme": "never"} if step.get("prepend_scheme") == "first" else step


def _prepend_nothing(step: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": []} if step["type"] == "Prepend" else step
