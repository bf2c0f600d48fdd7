"""The chat template of a checkpoint, a program in Jinja, as pieces of fixed text.

A bundle carries pieces, because a reader in any language can put them together. They are found by
experiment: the template renders a few conversations of known words, the pieces are the text between
these, and then other conversations have to come out equal, letter by letter."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from paddle_recomp.errors import CheckpointError, MissingDependencyError
from paddle_recomp.json_files import one_line, shown
from paddle_recomp.preprocess import jinja_child
from paddle_recomp.preprocess.chat_template import (
    IMAGE_PLACEHOLDER,
    ChatTemplate,
    Turn,
    render,
)

_LONGEST_TEMPLATE, _LONGEST_PROMPT = 200_000, 100_000
"""Characters; the longest published templates have about 20,000."""
_CPU_SECONDS, _WALL_SECONDS, _MEMORY = 5, 60, 1 << 30
"""What rendering may take. The wall clock is wide, because a machine can be busy with others."""
_IMAGE = f"{IMAGE_PLACEHOLDER}\n"
"""A picture in front of a question that is a text: so the public code writes it."""

_QUESTIONS = ("questionAlpha", "questionBeta", "questionGamma")
_ANSWERS = ("answerDelta", "answerEpsilon")
_ONE, _TWO, _THREE = _QUESTIONS
_LIST = re.compile(r"\btype\b.{0,20}\btext\b.{0,20}\btext\b")
"""A list of parts that was written as if it were a text, perhaps with its quotes escaped."""
_ODD = "Is \"it\" {{ 7 * 7 }} {% x %} <b>&amp;</b> 'a'\\n?\n\n- é 猫 🐈 </s>"
"""A template that counts, escapes, cuts or repeats texts shows it here."""


@dataclass(frozen=True)
class _Probe:
    """A conversation to render; `name` says in messages what it is."""

    name: str
    turns: tuple[Turn, ...]

    def variables(self, as_parts: bool) -> dict[str, Any]:
        """The variables of the template: messages whose content is a list of parts, or a text."""
        messages = []
        for turn in self.turns:
            asked: Any = _IMAGE * turn.images + turn.question
            if as_parts:
                asked = [{"type": "image"}] * turn.images + _text(turn.question)
            messages.append({"role": "user", "content": asked})
            if turn.answer is not None:
                said: Any = _text(turn.answer) if as_parts else turn.answer
                messages.append({"role": "assistant", "content": said})
        awaited = self.turns[-1].answer is None
        return {"messages": messages, "add_generation_prompt": awaited}


def _text(words: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": words}]


_FIRST, _SECOND = (Turn(_ONE, _ANSWERS[0]), Turn(_TWO, _ANSWERS[1]))
_PLAIN = _Probe("a question", (Turn(_ONE),))
_PICTURE = _Probe("a question with a picture", (Turn(_ONE, images=1),))
_PICTURES = _Probe("a question with two pictures", (Turn(_ONE, images=2),))
_DIALOGUE = _Probe("two questions", (_FIRST, Turn(_TWO)))
_CLOSED = _Probe("an answered question", (_FIRST,))
_SEEN, _BOTH = (Turn(_ONE, _ANSWERS[0], images=count) for count in (1, 2))
_CHECKS = (
    _PLAIN,
    _PICTURE,
    _PICTURES,
    _DIALOGUE,
    _Probe("three questions", (_FIRST, _SECOND, Turn(_THREE))),
    _Probe("two questions about a picture", (_SEEN, Turn(_TWO))),
    _Probe("three questions about two pictures", (_BOTH, _SECOND, Turn(_THREE))),
    _Probe("a second question with a picture", (_FIRST, Turn(_TWO, images=1))),
    _Probe("a question with marks and line breaks", (Turn(_ODD, _ODD, images=1), Turn(_ODD))),
    _Probe("long texts", (Turn("many words " * 800 + ".", "and more " * 800 + "."), Turn(_ONE))),
    _Probe("short texts", (Turn("?", "1"), Turn("a", "0"), Turn("b"))),
)
_PROBES = (*_CHECKS, _CLOSED)


@dataclass(frozen=True)
class JinjaTemplate:
    """What a template in Jinja says."""

    pieces: ChatTemplate
    """Without the token that begins a text, which stands in front of a prompt just once: the
    tokenizer writes it."""
    begins: bool
    """Whether the template writes that token, so that prompts have it in any case."""


class _RefusalError(Exception):
    """Why pieces cannot say what a template does."""


@lru_cache(maxsize=8)
def read_jinja(source: str, name: str, tokens: tuple[tuple[str, str], ...]) -> JinjaTemplate:
    """The pieces of a template. `name` says in messages where it stands, `tokens` are the special
    tokens of the checkpoint's tokenizer as the template's variables: `("bos_token", "<s>")`.

    Raises: CheckpointError when it is no template, takes too long, or is not made of pieces;
    MissingDependencyError without jinja2."""
    if len(source) > _LONGEST_TEMPLATE:
        raise CheckpointError(
            f"{name} has {len(source)} characters; expected at most {_LONGEST_TEMPLATE}"
        )
    try:
        texts = _rendered(source, dict(tokens))
        found = _by_form(texts, dict(tokens).get("bos_token", ""))
    except _RefusalError as refusal:
        raise CheckpointError(f"{name} cannot be used as a chat template: {refusal}") from None
    return found


Texts = Mapping[_Probe, Mapping[str, str]]
"""Each probe with its `text`, or with the `error` in its place."""


def _by_form(texts: tuple[Texts, Texts], bos: str) -> JinjaTemplate:
    """From the prompts of messages in parts, and of messages that are texts. The former count,
    unless the template does not know parts: then pictures stand as a text in front of the
    question. Raises: _RefusalError."""
    parts, plain = texts
    without, with_one = parts[_PLAIN].get("text"), parts[_PICTURE].get("text")
    if without is None or _ONE not in without or _LIST.search(without):
        refusal = _first_error(parts)
        if "text" not in plain[_PLAIN] or _ONE not in plain[_PLAIN]["text"]:
            raise _RefusalError(_first_error(plain) or refusal or "it does not write the question")
        return _pieces(plain, bos, as_parts=False)
    if with_one == without:
        if _ONE not in plain[_PLAIN].get("text", ""):
            raise _RefusalError("it writes nothing for a picture")
        return _pieces(plain, bos, as_parts=False)
    return _pieces(parts, bos, as_parts=True)


def _first_error(texts: Texts) -> str | None:
    return next((one_line(one["error"], 200) for one in texts.values() if "error" in one), None)


def _pieces(texts: Texts, bos: str, as_parts: bool) -> JinjaTemplate:
    """Raises: _RefusalError, also when the pieces do not give what the template gives."""
    found = {}
    for probe, one in texts.items():
        if "text" in one:
            found[probe] = one["text"]
        elif probe is not _CLOSED:  # Which nobody prompts with.
            raise _RefusalError(f"for {probe.name} it says: {one_line(one['error'], 200)}")
    begins = bool(bos) and found[_PLAIN].startswith(bos)
    if begins:
        found = {probe: text.removeprefix(bos) for probe, text in found.items()}
    pieces = _split(found, as_parts)
    if any(IMAGE_PLACEHOLDER in text for key, text in asdict(pieces).items() if key != "image"):
        raise _RefusalError(f"it writes {IMAGE_PLACEHOLDER} where there is no picture")
    for probe in _CHECKS:
        given = render(pieces, probe.turns).text
        if given != found[probe]:
            raise _RefusalError(f"for {probe.name} {_difference(found[probe], given)}")
    return JinjaTemplate(pieces, begins)


def _split(found: Mapping[_Probe, str], as_parts: bool) -> ChatTemplate:
    """The text between the words of the probes. Raises: _RefusalError."""
    head, after_question = _around(found[_PLAIN], _PLAIN, [_ONE])
    _, answered, again, _ = _around(found[_DIALOGUE], _DIALOGUE, [_ONE, _ANSWERS[0], _TWO])
    place, image = len(head), _IMAGE
    if as_parts:
        one, _ = _around(found[_PICTURE], _PICTURE, [_ONE])
        two, _ = _around(found[_PICTURES], _PICTURES, [_ONE])
        place, image = _picture(head, one, two)
    before_words = head[place:]
    if not answered.startswith(after_question):
        raise _RefusalError(
            f"an answer that was given stands behind {shown(answered)}, and one that is awaited "
            f"behind {shown(after_question)}; expected the same beginning"
        )
    if not again.endswith(before_words):
        raise _RefusalError(
            f"the first question stands behind {shown(head)}, a later one behind {shown(again)}; "
            "expected the same end"
        )
    between = again.removesuffix(before_words)
    before_question = _shared(head[:place], between, _end_of(found))
    return ChatTemplate(
        begin=head[:place].removesuffix(before_question),
        before_question=before_question,
        after_question=after_question,
        before_answer=answered.removeprefix(after_question),
        after_answer=between.removesuffix(before_question),
        image=image,
        before_words=before_words,
    )


def _around(text: str, probe: _Probe, words: Sequence[str]) -> list[str]:
    """The text in front of, between and behind words that stand in it once each.

    Raises: _RefusalError."""
    pieces = []
    for word in words:
        if text.count(word) != 1:
            kind = "question" if word in _QUESTIONS else "answer"
            raise _RefusalError(
                f"for {probe.name} it writes the {kind} {text.count(word)} times; expected once, "
                "in its turn"
            )
        before, text = text.split(word)
        pieces.append(before)
    return [*pieces, text]


def _picture(none: str, one: str, two: str) -> tuple[int, str]:
    """Where pictures stand in the text in front of a question, and what stands for each, from that
    text with no picture, one and two. Raises: _RefusalError."""
    size = len(one) - len(none)
    for place in range(len(none), -1, -1):
        image = one[place : place + size]
        written = image.count(IMAGE_PLACEHOLDER) == 1
        if written and all(
            none[:place] + image * count + none[place:] == text
            for count, text in ((1, one), (2, two))
        ):
            return place, image
    raise _RefusalError(
        f"in front of a question it writes {shown(none)}, with a picture {shown(one)}, with two "
        f"{shown(two)}; expected one {IMAGE_PLACEHOLDER} more for each"
    )


def _end_of(found: Mapping[_Probe, str]) -> str | None:
    """The text behind the last answer, where a conversation ends with it."""
    text = found.get(_CLOSED, "")
    return text.split(_ANSWERS[0])[1] if text.count(_ANSWERS[0]) == 1 else None


def _shared(head: str, between: str, end: str | None) -> str:
    """The text in front of each question, from that in front of the first and that between an
    answer and the next question. What ends an answer is no part of it, where that can be told; the
    prompts are the same in any case."""
    if end is not None and between.startswith(end) and head.endswith(between[len(end) :]):
        return between[len(end) :]
    size = 0
    while size < min(len(head), len(between)) and head[-size - 1] == between[-size - 1]:
        size += 1
    return head[len(head) - size :]


def _difference(found: str, given: str) -> str:
    """Where a prompt is not what pieces give, for a message."""
    same = 0
    while same < min(len(found), len(given)) and found[same] == given[same]:
        same += 1
    start = max(same - 10, 0)
    return (
        f"it writes {shown(found[start : same + 30])} where fixed pieces of text give "
        f"{shown(given[start : same + 30])}"
    )


def _rendered(source: str, tokens: dict[str, str]) -> tuple[Texts, Texts]:
    """The prompts of all probes, with messages in parts and with messages that are texts.

    Raises: _RefusalError; MissingDependencyError."""
    probes = [(probe, as_parts) for as_parts in (True, False) for probe in _PROBES]
    asked = {
        "path": sys.path,
        "seconds": _CPU_SECONDS,
        "memory": _MEMORY,
        "longest": _LONGEST_PROMPT,
        "template": source,
        "prompts": [{**tokens, **probe.variables(as_parts)} for probe, as_parts in probes],
    }
    answer = _ask_child(json.dumps(asked))
    if "missing" in answer:
        raise MissingDependencyError(
            f"the chat template of a checkpoint needs {answer['missing']}, which is not "
            "installed: pip install 'paddle-recomp[paddle]'"
        )
    if "broken" in answer:
        raise _RefusalError(f"it is not Jinja: {one_line(answer['broken'], 200)}")
    if answer["dated"]:
        raise _RefusalError("it writes the date of today, which is no fixed text")
    made = dict(zip(probes, answer["prompts"], strict=True))
    parts, plain = ({probe: made[probe, form] for probe in _PROBES} for form in (True, False))
    return parts, plain


def _ask_child(request: str) -> dict[str, Any]:
    """Raises: _RefusalError when the process was ended before it answered."""
    # Isolated: nothing of the user's environment or of this folder is imported by accident.
    command = [sys.executable, "-I", "-S", str(Path(jinja_child.__file__))]
    try:
        done = subprocess.run(
            command, input=request.encode(), capture_output=True, timeout=_WALL_SECONDS
        )
    except OSError as error:
        raise _RefusalError(f"no process can be started for it: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise _RefusalError(f"rendering it did not end within {_WALL_SECONDS} seconds") from None
    if done.returncode < 0:  # Ended by a signal.
        raise _RefusalError(
            f"rendering it takes more than {_CPU_SECONDS} seconds of computing, or more than "
            f"{_MEMORY >> 20} MiB"
        )
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise _RefusalError(f"the process that renders it failed: {one_line(last, 200)}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
