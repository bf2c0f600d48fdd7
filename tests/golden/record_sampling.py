"""Records how transformers changes distributions before it draws: sampling.npz.

Run in an environment of its own, with torch and transformers:
    python -m tests.golden.record_sampling"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import (
    LlavaForConditionalGeneration,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tests.golden.record_cases import PENALTY, WARPERS

HERE = Path(__file__).parent
PROCESSORS = {
    "repetition_penalty": RepetitionPenaltyLogitsProcessor,
    "temperature": TemperatureLogitsWarper,
    "top_k": TopKLogitsWarper,
    "top_p": TopPLogitsWarper,
}
"""In the order in which `generate` has them."""
NEW_TOKENS = 40


def record_warpers() -> dict[str, np.ndarray]:
    """logits [B, V], the tokens before them [B, T], and probabilities [B, V] of each case."""
    rng = np.random.default_rng(7)
    logits = rng.normal(0, 3, size=(6, 48)).astype(np.float32)
    past = rng.integers(0, 48, size=(6, 9))
    past[:, 0] = logits.argmax(axis=-1)
    arrays: dict[str, np.ndarray] = {"logits": logits, "past": past}
    for name, options in WARPERS.items():
        warp = LogitsProcessorList(
            [kind(options[key]) for key, kind in PROCESSORS.items() if key in options]
        )
        scores = warp(torch.from_numpy(past), torch.from_numpy(logits.copy()))
        arrays[name] = scores.double().softmax(-1).numpy()
    return arrays


def record_greedy() -> dict[str, np.ndarray]:
    """Tokens [B, T] behind the embeddings of `prompt`, greedy with a repetition penalty."""
    folder = HERE / "hf_llava_variants" / "grouped" / "llava"
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    prompt = np.random.default_rng(11).integers(8, 60, size=(3, 12))
    with torch.no_grad():
        tokens = model.generate(
            inputs_embeds=model.get_input_embeddings()(torch.from_numpy(prompt)),
            attention_mask=torch.ones(prompt.shape, dtype=torch.long),
            do_sample=False,
            repetition_penalty=PENALTY,
            max_new_tokens=NEW_TOKENS,
        )
    return {"prompt": prompt, "greedy": tokens.numpy()}


if __name__ == "__main__":
    np.savez_compressed(HERE / "sampling.npz", **record_warpers(), **record_greedy())
