"""Record what transformers makes of questions: clip_tokenizer.json.

    python -m tests.golden.record_tokenizer

Needs transformers, which the tests that read the file do not. Two runs may learn two vocabularies:
pairs of letters that are as frequent as each other are merged in an order left to chance."""

from __future__ import annotations

import json
from pathlib import Path

import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

HERE = Path(__file__).parent
TEXTS = [
    "A photo of a cat.",
    "What  colour is the\tcup,\n and who's holding it?",
    "WHAT DIGIT IS RED?",
    "I'm sure they'll say it's 42, we've seen 1,234 of 'em",
    "naïve café — übergrößen",
    "cafe\u0301 decomposed",
    "日本語 emoji 😀 mixed",
    "a!!??b ... c-d_e",
    "",
    "   ",
    "the cat " * 12,
]
CORPUS = [
    "a photo of a cat and a photo of a dog . the cat is holding the cup , the dog is not",
    "what colour is the cup ? what digit is red ? who is holding it ? what is it ?",
    "the photo is of a naive cafe , they say it is sure we have seen the red cup",
]


def record_tokenizer() -> None:
    """A small CLIP vocabulary, its tokenizer.json, and the ids of TEXTS."""
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=120, end_of_word_suffix="</w>", show_progress=False)
    learner.train_from_iterator(CORPUS, trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = letters + [letter + "</w>" for letter in letters] + ["".join(m) for m in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = transformers.CLIPTokenizer(vocab=vocab, merges=merges)
    cases = [
        {
            "text": text,
            "ids": tokenizer(text, max_length=16, truncation=True, padding="max_length")[
                "input_ids"
            ],
        }
        for text in TEXTS
    ]
    record = {
        "recorded_with": f"transformers {transformers.__version__}",
        "vocab": vocab,
        "merges": [" ".join(pair) for pair in merges],
        "tokenizer": json.loads(tokenizer.backend_tokenizer.to_str()),
        "max_length": 16,
        "cases": cases,
    }
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
    (HERE / "clip_tokenizer.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    record_tokenizer()
