"""Record what transformers' Llama tokenizers make of prompts: llama_tokenizer/.

    python -m tests.golden.record_llama_tokenizer

Needs transformers before version 5, whose LlamaTokenizer runs SentencePiece itself, and
sentencepiece. The vocabulary is learnt here, from a few sentences."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
import transformers

FOLDER = Path(__file__).parent / "llama_tokenizer"
CORPUS = [
    "A chat between a user and an assistant. USER: what is it? ASSISTANT: it is a cup.",
    "USER: and its colour? ASSISTANT: the cup is red, and the cup is on the table.",
    "naïve café, größer: 日本 日本語\n\nthe  end",
]
FIRST = "A chat. USER: "
SECOND = "\nwhat is it? ASSISTANT: A cup."
TEXTS = [
    f"{FIRST}what is it? ASSISTANT:",
    f"{FIRST}what is it? ASSISTANT: A cup.</s>USER: and its colour? ASSISTANT:",
    f"{FIRST}what? ASSISTANT: A cup.</s>USER: the colour? ASSISTANT: red</s>USER: why? ASSISTANT:",
    # The pieces of a prompt that is cut at its picture.
    FIRST,
    SECOND,
    f"{SECOND}</s>USER: and its colour? ASSISTANT:",
    f"{SECOND}</s>USER: its colour? ASSISTANT: red</s>USER: why? ASSISTANT:",
    " like ",
    "  two  spaces  ",
    "USER",
    " USER",
    "</s>USER",
    "</s> USER",
    "</s>  USER</s>\n",
    "<s>USER: what</s></s>it",
    "a▁b ▁c",
    "▁the cup",
    "naïve 日本語 😀",
    "",
    " ",
    "\n",
]


def learn() -> bytes:
    """A small model with the settings of Llama's."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 4),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return model.getvalue()


def record() -> None:
    """The model, the ids of TEXTS, and the tokenizer.json of each behaviour with its ids."""
    FOLDER.mkdir(exist_ok=True)
    model = FOLDER / "tokenizer.model"
    model.write_bytes(learn())
    options: dict[str, dict[str, Any]] = {
        "absent": {},
        "legacy": {"legacy": True},
        "not legacy": {"legacy": False},
        "no prefix": {"legacy": False, "add_prefix_space": False},
        "null prefix": {"legacy": False, "add_prefix_space": None},
    }
    slow, fast = dict[str, Any](), dict[str, Any]()
    for name, given in options.items():
        tokenizer = transformers.LlamaTokenizer(str(model), **given)
        slow[name] = {"config": given, "ids": [tokenizer.encode(text) for text in TEXTS]}
    for name in ("legacy", "not legacy"):
        given = {"add_prefix_space": True, **options[name]}
        tokenizer = transformers.LlamaTokenizerFast(str(model), from_slow=True, **given)
        about = json.loads(tokenizer.backend_tokenizer.to_str())
        kept = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
        fast[name] = {
            "steps": {key: about[key] for key in kept},
            "ids": [tokenizer.encode(text) for text in TEXTS],
        }
        model_of, added = about["model"], about["added_tokens"]
    version = f"transformers {transformers.__version__}, sentencepiece {sentencepiece.__version__}"
    cases = {"recorded_with": version, "texts": TEXTS, "slow": slow, "fast": fast}
    cases |= {"model": model_of, "added_tokens": added}
    text = json.dumps(cases, ensure_ascii=False, separators=(",", ":"))
    (FOLDER / "cases.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    record()
