"""What the protocol promises, of every language model: the same conversation through each."""

from __future__ import annotations

import numpy as np
import pytest

from paddle_recomp.errors import ContextLengthError, FeatureError, StateError
from paddle_recomp.llm.base import LanguageModel, State
from paddle_recomp.llm.generation import pad_right

from .conftest import poison


def prompt(model: LanguageModel, length: int, seed: int = 0) -> np.ndarray:
    ids = np.random.default_rng(seed).integers(8, 60, size=length)
    return model.embed(ids)


def start(model: LanguageModel, *prompts: np.ndarray, room: int = 0) -> tuple[np.ndarray, State]:
    embeds, lengths = pad_right(prompts)
    return model.prefill(embeds, lengths, embeds.shape[1] + room)


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_cache_equals_no_cache(model: LanguageModel) -> None:
    ids = np.random.default_rng(0).integers(8, 60, size=12)
    whole, _ = start(model, model.embed(ids))
    logits, state = start(model, model.embed(ids[:7]))
    for token in ids[7:]:
        logits, state = model.decode(np.array([token]), state)
    close(logits, whole)
    assert state.lengths.tolist() == [12]


def test_a_batch_of_different_lengths_equals_its_singles(model: LanguageModel) -> None:
    prompts = [prompt(model, length, length) for length in (9, 14, 1)]
    later = [prompt(model, length, 20 + length) for length in (3, 1, 6)]
    together, state = start(model, *prompts)
    embeds, lengths = pad_right(later)
    extended, state = model.extend(embeds, lengths, state)
    tokens = extended.argmax(axis=-1)
    decoded, state = model.decode(tokens, state)
    assert state.lengths.tolist() == [13, 16, 8]
    for i, (first, second) in enumerate(zip(prompts, later, strict=True)):
        logits, alone = start(model, first)
        close(together[i : i + 1], logits)
        logits, alone = model.extend(second[None], np.array([len(second)]), alone)
        close(extended[i : i + 1], logits)
        logits, alone = model.decode(tokens[i : i + 1], alone)
        close(decoded[i : i + 1], logits)


def test_padding_changes_nothing(model: LanguageModel) -> None:
    """Also where it is not zero, and with a cache that was written over it."""
    words, lengths = prompt(model, 11)[None], np.array([6])
    expected, plain = start(model, words[0, :6])
    logits, state = model.prefill(words, lengths)
    close(logits, expected)
    for _ in range(6):
        token = logits.argmax(axis=-1)
        expected, plain = model.decode(token, plain)
        logits, state = model.decode(token, state)
        close(logits, expected)


@pytest.mark.parametrize("room", [0, 3, 40])
def test_a_conversation_equals_one_prompt(model: LanguageModel, room: int) -> None:
    """Turns behind a cache that is too small, just large enough for some, or for all of them."""
    turns = [prompt(model, length, length) for length in (8, 5, 7)]
    logits, state = start(model, turns[0], room=room)
    for turn in turns[1:]:
        logits, state = model.extend(turn[None], np.array([len(turn)]), state)
    whole, _ = start(model, np.concatenate(turns))
    close(logits, whole)


def test_a_state_is_continued_once(model: LanguageModel) -> None:
    _, state = start(model, prompt(model, 5))
    _, after = model.decode(np.array([9]), state)
    with pytest.raises(StateError, match="continued before"):
        model.decode(np.array([9]), state)
    model.decode(np.array([9]), after)


def test_a_state_of_another_model_is_refused(model: LanguageModel) -> None:
    with pytest.raises(StateError, match="another"):
        model.decode(np.array([9]), State(np.array([5]), object(), None))


@pytest.mark.parametrize(
    ("embeds", "lengths"), [((2, 3), [3, 4]), ((2, 3), [3, 0]), ((2, 3), [3]), ((1, 3), [3])]
)
def test_lengths_that_do_not_fit_are_refused(
    model: LanguageModel, embeds: tuple[int, int], lengths: list[int]
) -> None:
    _, state = start(model, prompt(model, 4), prompt(model, 2))
    more = np.zeros((*embeds, 32), dtype=np.float32)
    with pytest.raises(StateError):
        model.extend(more, np.array(lengths), state)


def test_the_context_is_kept(model: LanguageModel) -> None:
    assert model.context == 128
    logits, state = start(model, prompt(model, 128))
    with pytest.raises(ContextLengthError, match=r"129.*128"):
        model.decode(logits.argmax(axis=-1), state)
    with pytest.raises(ContextLengthError, match=r"129.*128"):
        start(model, prompt(model, 129))
    _, state = start(model, prompt(model, 127))
    with pytest.raises(ContextLengthError):
        model.extend(prompt(model, 2)[None], np.array([2]), state)
    _, state = model.decode(np.array([9]), state)
    assert state.lengths.tolist() == [128], "an error spends nothing"


@pytest.mark.parametrize("back", [(9, 4), (12, 3), (5, 1), (13, 10)])
def test_going_back_is_never_having_gone_ahead(model: LanguageModel, back: tuple[int, int]) -> None:
    """Into the first prompts, to their ends, and where padding stands between the turns."""
    first, second = [prompt(model, n, n) for n in (9, 4)], [prompt(model, n, 7 * n) for n in (3, 5)]
    dialogues = [np.concatenate(turns) for turns in zip(first, second, strict=True)]
    dialogues[0] = np.concatenate([dialogues[0], model.embed(np.array([11]))])
    dialogues[1] = np.concatenate([dialogues[1], model.embed(np.array([12]))])
    _, state = start(model, *first, room=2)
    embeds, lengths = pad_right(second)
    _, state = model.extend(embeds, lengths, state)
    _, state = model.decode(np.array([11, 12]), state)
    state = model.rewind(state, np.array(back))
    later = [prompt(model, n, 30 + n) for n in (2, 6)]
    logits, after = model.extend(*pad_right(later), state)
    begun = [one[:length] for one, length in zip(dialogues, back, strict=True)]
    whole = [np.concatenate(turns) for turns in zip(begun, later, strict=True)]
    close(logits, start(model, *whole)[0])
    assert after.lengths.tolist() == [len(one) for one in whole]


@pytest.mark.parametrize("lengths", [[6, 2], [5, 0], [1], [5, 3]])
def test_a_cache_goes_back_only(model: LanguageModel, lengths: list[int]) -> None:
    _, state = start(model, prompt(model, 5), prompt(model, 2))
    with pytest.raises(StateError, match="cannot go back"):
        model.rewind(state, np.array(lengths))
    _, after = model.decode(np.array([9, 9]), state)
    with pytest.raises(StateError, match="continued before"):
        model.rewind(state, np.array([4, 2]))
    model.rewind(after, np.array([4, 2]))
    with pytest.raises(StateError, match="continued before"):
        model.decode(np.array([9, 9]), after)


@pytest.mark.parametrize("position", [0, 1, 17, 39])
@pytest.mark.parametrize("kind", ["keys", "values"])
def test_nan_in_the_cache_is_one_clear_error(
    kind: str, position: int, model: LanguageModel
) -> None:
    _, state = start(model, prompt(model, 40))
    poison(state, kind, position)
    with pytest.raises(FeatureError, match=r"holds NaN.*the weights or the KV cache are broken"):
        model.decode(np.array([9]), state)
    logits, _ = start(model, prompt(model, 5))
    assert np.isfinite(logits).all()
