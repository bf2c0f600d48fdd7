"""Where an answer's text ends, however it comes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from paddle_recomp.config import GenerationConfig
from paddle_recomp.llm.generation import Draft, StopStrings
from paddle_recomp.preprocess import Prompt

from .conftest import tokenizer

END = 2
TEXT = st.text("ab", max_size=12)


def cut(text: str, strings: list[str], pieces: list[int]) -> tuple[list[str], bool]:
    """What is shown of a text that comes in pieces of these sizes, and whether it was cut."""
    stop, shown, start = StopStrings(strings), [], 0
    for size in [*pieces, len(text)]:
        shown.append(stop.feed(text[start : start + size]))
        start += size
    return [*shown, stop.flush()], stop.found


@given(TEXT, st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.data())
@example("xabcd", ["abcd", "bc"], None)
def test_pieces_do_not_matter(text: str, strings: list[str], data: st.DataObject | None) -> None:
    """The cut is in front of the string that is complete first, the longest of those."""
    sizes = data.draw(st.lists(st.integers(0, 3), max_size=12)) if data else []
    ends = [i for i in range(len(text) + 1) if text[:i].endswith(tuple(strings))]
    expected = text
    if ends:
        whole = text[: ends[0]]
        longest = max(len(string) for string in strings if whole.endswith(string))
        expected = whole[: len(whole) - longest]
    shown, found = cut(text, strings, sizes)
    assert "".join(shown) == expected
    assert found == bool(ends)


def test_only_a_possible_beginning_is_held_back() -> None:
    shown, found = cut("one, two. tw", ["two!"], [5, 2, 1, 1, 1])
    assert shown == ["one, ", "", "", "two.", " ", "", "tw"]
    assert not found


def draft(**options: Any) -> Draft:
    return Draft(tokenizer().stream(), [END], GenerationConfig(**options))


def ids(text: str) -> list[int]:
    bos = tokenizer().bos_token_id
    return [number for number in tokenizer().encode(Prompt.said(text)) if number != bos]


def test_a_stop_text_may_span_tokens() -> None:
    tokens = ids("the red circle is left of the blue square")
    texts = [tokenizer().decode(tokens[: i + 1]) for i in range(len(tokens))]
    middle = texts.index("the red circle")
    stop = texts[middle + 2][len(texts[middle]) - 3 : -1]
    assert len(stop) > 4
    assert stop not in [tokenizer().decode([token]) for token in tokens]
    one, pieces = draft(stop=("never", stop)), []
    for token in tokens:
        pieces.append(one.add(token, -1.0))
    assert one.finish_reason == "stop_string"
    assert "".join(pieces) == one.text == "the red cir"
    assert one.token_ids == tokens[: middle + 3]
    assert len(one.logprobs) == len(one.token_ids)


def test_a_text_that_was_held_back_comes_at_the_end() -> None:
    tokens = ids("the red circle")
    for end, reason in ((END, "stop"), (None, "length")):
        one = draft(stop=("circle!",), max_new_tokens=len(tokens) + (end is not None))
        pieces = [one.add(token, 0.0) for token in tokens]
        if end is not None:
            assert "circle" not in "".join(pieces)
            pieces.append(one.add(end, 0.0))
        assert "".join(pieces) == one.text == "the red circle"
        assert one.finish_reason == reason
        assert one.token_ids == tokens


def test_a_stop_text_wins_over_the_length() -> None:
    tokens = ids("the red circle")
    one = draft(stop=("circle",), max_new_tokens=len(tokens))
    for token in tokens:
        one.add(token, 0.0)
    assert (one.text, one.finish_reason) == ("the red ", "stop_string")


@pytest.mark.parametrize("end", [END, 40])
def test_every_end_ends(end: int) -> None:
    one = draft(eos_token_ids=(40,))
    one.add(ids("red")[0], -0.5)
    one.add(end, -0.1)
    assert one.add(ids("blue")[0], -0.2) == ""
    assert (one.text, one.finish_reason, one.logprobs) == ("red", "stop", [-0.5])
