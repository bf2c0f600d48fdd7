"""Answers of every language model: greedy, drawn, ended, and the same alone and in a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from paddle_recomp.config import GenerationConfig
from paddle_recomp.errors import ConfigError
from paddle_recomp.llm.base import LanguageModel
from paddle_recomp.llm.sampling import log_probabilities
from tests.golden.record_cases import PENALTY

from .conftest import GOLDEN, answers

DRAWN = GenerationConfig(max_new_tokens=16, temperature=1.5, top_k=40, top_p=0.95, seed=5)


def prompts(model: LanguageModel, *lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    return [model.embed(rng.integers(8, 60, size=length)) for length in lengths]


def tokens(model: LanguageModel, asked: list[np.ndarray], **options: Any) -> list[list[int]]:
    drafts = answers(model, asked, GenerationConfig(**{"max_new_tokens": 16, **options}))
    return [draft.token_ids for draft in drafts]


def test_a_penalty_gives_the_tokens_of_transformers(model: LanguageModel) -> None:
    recorded = np.load(GOLDEN / "sampling.npz")
    asked = [model.embed(ids) for ids in recorded["prompt"]]
    expected = recorded["greedy"].tolist()
    longest = len(expected[0])
    found = tokens(model, asked, max_new_tokens=longest, repetition_penalty=PENALTY)
    assert found == expected
    assert tokens(model, asked, max_new_tokens=longest) != expected


def test_one_token_to_draw_from_is_greedy(model: LanguageModel) -> None:
    asked = prompts(model, 7, 12)
    greedy = tokens(model, asked)
    assert tokens(model, asked, temperature=3.0, top_k=1, seed=1) == greedy
    assert tokens(model, asked, temperature=3.0, top_p=1e-6, seed=1) == greedy
    assert tokens(model, asked, temperature=1e-5, seed=1) == greedy
    assert tokens(model, asked, temperature=3.0, seed=1) != greedy


def test_a_seed_draws_the_same_answer_again(model: LanguageModel) -> None:
    asked = prompts(model, 9)
    first, again = (tokens(model, asked, temperature=2.0, seed=3) for _ in range(2))
    assert first == again
    assert tokens(model, asked, temperature=2.0, seed=4) != first
    assert tokens(model, asked, temperature=2.0) != tokens(model, asked, temperature=2.0)


@pytest.mark.parametrize(
    "config", [DRAWN, GenerationConfig(max_new_tokens=16, repetition_penalty=1.2)]
)
def test_a_batch_equals_its_singles(model: LanguageModel, config: GenerationConfig) -> None:
    """Also where some end before others."""
    asked = prompts(model, 4, 11, 7)
    ends = [answers(model, asked, config)[1].token_ids[3]]
    together = answers(model, asked, config, ends)
    assert together[1].finish_reason == "stop"
    assert len({len(draft.token_ids) for draft in together}) > 1
    for one, draft in zip(asked, together, strict=True):
        (alone,) = answers(model, [one], config, ends)
        assert draft.token_ids == alone.token_ids
        assert (draft.text, draft.finish_reason) == (alone.text, alone.finish_reason)
        np.testing.assert_allclose(draft.logprobs, alone.logprobs, rtol=0, atol=1e-4)


def test_log_probabilities_are_those_of_the_model(model: LanguageModel) -> None:
    """Of its own distribution, found again without a cache; nothing of the sampling is in them."""
    (asked,) = prompts(model, 8)
    (draft,) = answers(model, [asked], DRAWN)
    assert len(draft.logprobs) == len(draft.token_ids) == 16
    for i, token in enumerate(draft.token_ids):
        whole = np.concatenate([asked, model.embed(np.array(draft.token_ids[:i], dtype=np.int64))])
        logits, _ = model.prefill(whole[None], np.array([len(whole)]))
        expected = log_probabilities(logits, np.array([token]))[0]
        assert draft.logprobs[i] == pytest.approx(expected, abs=1e-4)


def test_the_longest_answer_is_kept(model: LanguageModel) -> None:
    """Its last token needs no step of its own, so that the context is used up to its end."""
    (asked,) = prompts(model, 125)
    (draft,) = answers(model, [asked], GenerationConfig(max_new_tokens=4))
    assert (len(draft.token_ids), draft.finish_reason) == (4, "length")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; expected an integer of at least 1"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5"),
        ({"max_new_tokens": True}, "max_new_tokens is True"),
        ({"temperature": -0.1}, "temperature is -0.1; expected a number of at least 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"temperature": 1.0, "top_k": 0}, "top_k is 0"),
        ({"temperature": 1.0, "top_p": 0}, "top_p is 0; expected more"),
        ({"temperature": 1.0, "top_p": 1.1}, "top_p is 1.1; expected a number from 0 to 1"),
        ({"top_p": 0.9}, "top_p is 0.9, but nothing is drawn at temperature 0"),
        ({"top_k": 5}, "top_k is 5, but nothing is drawn at temperature 0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0"),
        ({"repetition_penalty": -1}, "repetition_penalty is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"stop": "ab"}, "stop is 'ab'; expected a tuple of str"),
        ({"stop": (1,)}, "stop is"),
        ({"stop": ("a", "")}, "empty text"),
        ({"eos_token_ids": ("</s>",)}, "eos_token_ids is"),
    ],
)
def test_bad_options_are_one_clear_error(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as found:
        GenerationConfig(**options)
    assert str(found.value).startswith(says) or says in str(found.value)
    assert "\n" not in str(found.value)
