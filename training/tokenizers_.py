"""The two tokenizers, in the published file layouts: CLIP's BPE and a Llama-style BPE."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
CLIP_MAX_LENGTH = 77
LLAMA_MAX_LENGTH = 2048
IMAGE, PAD = "<image>", "<pad>"
# Published llava-hf template: no end-of-sequence between turns; it is only ever generated.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
CLIP_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _byte_characters() -> list[str]:
    """The printable stand-ins of all bytes, in the order of CLIP's vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(hidden))]


def _learned_merges(trained: Tokenizer) -> list[tuple[str, str]]:
    merges = json.loads(trained.to_str())["model"]["merges"]
    return [(left, right) for left, right in merges]


def train_clip_tokenizer(texts: list[str]) -> Tokenizer:
    """A lower-casing byte-level BPE; the end-of-text token has the highest id."""

    def dress(tokenizer: Tokenizer) -> Tokenizer:
        tokenizer.normalizer = normalizers.Sequence(
            [
                normalizers.NFC(),
                normalizers.Replace(Regex(r"\s+"), " "),
                normalizers.Lowercase(),
            ]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(CLIP_SPLIT), "removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer

    learner = dress(Tokenizer(models.BPE(end_of_word_suffix="</w>")))
    trainer = trainers.BpeTrainer(
        vocab_size=4000, min_frequency=2, end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    merges = _learned_merges(learner)
    letters = _byte_characters()
    tokens = letters + [letter + "</w>" for letter in letters]
    tokens += [left + right for left, right in merges]
    tokens += [CLIP_START, CLIP_END]
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = dress(
        Tokenizer(
            models.BPE(
                vocab=vocab,
                merges=merges,
                unk_token=CLIP_END,
                end_of_word_suffix="</w>",
                continuing_subword_prefix="",
            )
        )
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in (CLIP_START, CLIP_END)]
    )
    start, end = vocab[CLIP_START], vocab[CLIP_END]
    tokenizer.post_processor = processors.RobertaProcessing(
        (CLIP_END, end), (CLIP_START, start), trim_offsets=False, add_prefix_space=False
    )
    return tokenizer


def train_llama_tokenizer(texts: list[str]) -> Tokenizer:
    """A BPE over text with spaces as "▁" and byte fallback; <image> and <pad> come last."""
    spaces = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    learner = Tokenizer(models.BPE())
    # Merges learned inside words only: the finished tokenizer then needs no splitting of its own.
    word = Regex(r"▁?[A-Za-z]+|▁?[0-9]|▁?[^A-Za-z0-9▁]")
    learner.pre_tokenizer = pre_tokenizers.Split(word, "isolated")
    printable = [chr(code) for code in range(33, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=2000, min_frequency=2, initial_alphabet=["▁", *printable], show_progress=False
    )
    # A word right after a line break has no space before it: learn it bare too.
    spaced = ["▁" + text.replace(" ", "▁") for text in texts]
    bare = [text.split(" ")[0] for text in texts]
    learner.train_from_iterator(spaced + bare, trainer)
    trained = sorted(learner.get_vocab().items(), key=lambda item: item[1])
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    tokens += [token for token, _ in trained]
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=_learned_merges(learner),
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = spaces
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token in ("<unk>", "<s>", "</s>", IMAGE, PAD)
        ]
    )
    return tokenizer


def save_clip_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the five tokenizer files of a published CLIP."""
    content = json.loads(tokenizer.to_str())
    _write(folder / "tokenizer.json", content)
    _write(folder / "vocab.json", content["model"]["vocab"])
    merges = [" ".join(pair) for pair in content["model"]["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    specials = {
        "bos_token": CLIP_START,
        "eos_token": CLIP_END,
        "pad_token": CLIP_END,
        "unk_token": CLIP_END,
    }
    _write(folder / "special_tokens_map.json", specials)
    _write(
        folder / "tokenizer_config.json",
        {
            **specials,
            "add_prefix_space": False,
            "do_lower_case": True,
            "errors": "replace",
            "model_max_length": CLIP_MAX_LENGTH,
            "tokenizer_class": "CLIPTokenizer",
        },
    )


def save_llama_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the tokenizer files of a published LLaVA, the chat template among them."""
    _write(folder / "tokenizer.json", json.loads(tokenizer.to_str()))
    specials = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": PAD, "unk_token": "<unk>"}
    _write(folder / "special_tokens_map.json", specials)
    _write(
        folder / "tokenizer_config.json",
        {
            **specials,
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "legacy": True,
            "model_max_length": LLAMA_MAX_LENGTH,
            "padding_side": "left",
            "processor_class": "LlavaProcessor",
            "tokenizer_class": "LlamaTokenizer",
        },
    )
    _write(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
