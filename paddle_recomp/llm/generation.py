"""From the embeddings of prompts to answers: the decoding loop, and the answers that it writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from paddle_recomp.config import GenerationConfig
from paddle_recomp.llm.base import LanguageModel, State
from paddle_recomp.llm.sampling import choose, log_probabilities
from paddle_recomp.preprocess import StreamDecoder
from paddle_recomp.types import FinishReason


class Generation:
    """The answers to prompts [T_i, D], each written into its draft. Iterating over it, once, gives
    the new text of each answer after each token, until all have ended.

    With a `state` the prompts continue that KV cache; without one they begin a new cache. `state`
    is always the latest one, also after an error or when nobody iterates further; it is spent where
    the language model failed."""

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[np.ndarray],
        drafts: Sequence[Draft],
        config: GenerationConfig,
        state: State | None = None,
    ) -> None:
        self.model, self.prompts, self.drafts = model, prompts, drafts
        self.config, self.state = config, state

    def __iter__(self) -> Iterator[list[str]]:
        # All have the same seed, so an answer does not depend on its place in a batch.
        streams = [np.random.default_rng(self.config.seed) for _ in self.prompts]
        logits, self.state = self._read_prompts()
        while True:
            past = [draft.token_ids for draft in self.drafts]
            tokens = choose(logits, past, self.config, streams)
            logprobs = log_probabilities(logits, tokens)
            steps = zip(self.drafts, tokens.tolist(), logprobs.tolist(), strict=True)
            yield [draft.add(token, logprob) for draft, token, logprob in steps]
            if all(draft.finish_reason for draft in self.drafts):
                return
            logits, self.state = self.model.decode(tokens, self.state)

    def _read_prompts(self) -> tuple[np.ndarray, State]:
        embeds, lengths = pad_right(self.prompts)
        if self.state is not None:
            return self.model.extend(embeds, lengths, self.state)
        room = int(lengths.max()) + self.config.max_new_tokens
        return self.model.prefill(embeds, lengths, room)


def pad_right(prompts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Prompts [T_i, D] -> embeds [B, T, D], lengths [B] int64."""
    lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
    shape = (len(prompts), int(lengths.max()), prompts[0].shape[1])
    embeds = np.zeros(shape, dtype=np.float32)
    for row, prompt in zip(embeds, prompts, strict=True):
        row[: len(prompt)] = prompt
    return embeds, lengths


class Draft:
    """The answer to one prompt, token by token. `text` grows by the pieces that `add` returns."""

    def __init__(
        self, decoder: StreamDecoder, eos_token_ids: Sequence[int], config: GenerationConfig
    ) -> None:
        """`eos_token_ids` are the tokenizer's; the configuration may have more."""
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.text = ""
        self.finish_reason: FinishReason | None = None
        self._decoder = decoder
        self._stop = StopStrings(config.stop)
        self._ends = {*eos_token_ids, *config.eos_token_ids}
        self._longest = config.max_new_tokens

    def add(self, token: int, logprob: float) -> str:
        """The text that is certain after this token, which may be none. An answer that has ended
        stays unchanged."""
        if self.finish_reason is not None:
            return ""
        if token in self._ends:
            self.finish_reason = "stop"
            piece = ""
        else:
            self.token_ids.append(token)
            self.logprobs.append(logprob)
            if len(self.token_ids) == self._longest:
                self.finish_reason = "length"
            piece = self._stop.feed(self._decoder.feed(token))
        if self.finish_reason is not None:
            piece += self._stop.feed(self._decoder.flush()) + self._stop.flush()
        if self._stop.found:
            self.finish_reason = "stop_string"
        self.text += piece
        return piece


class StopStrings:
    """Cuts a text in front of the first complete stop string, in whatever pieces the text comes.
    Text that may be the beginning of a stop string is held back."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(strings)
        self._held = ""
        self.found = False

    def feed(self, piece: str) -> str:
        """The text that can be shown now; none after a stop string was found."""
        if self.found:
            return ""
        text = self._held + piece
        matches = [
            (start + len(string), start)
            for string in self._strings
            if (start := text.find(string)) >= 0
        ]
        if matches:
            self.found = True
            # This is the cut that the text would have letter by letter.
            _, end = min(matches)
        else:
            end = len(text) - self._beginning(text)
        self._held = text[end:]
        return text[:end]

    def flush(self) -> str:
        """The text that was held back, at the end of the answer."""
        rest, self._held = ("" if self.found else self._held), ""
        return rest

    def _beginning(self, text: str) -> int:
        """The length of the longest end of the text with which a stop string begins."""
        longest = max(map(len, self._strings), default=0)
        for length in range(min(longest - 1, len(text)), 0, -1):
            if any(string.startswith(text[-length:]) for string in self._strings):
                return length
        return 0
