"""From a checkpoint's folders to everything that prepares its inputs: the image processor, both
tokenizers, the chat template."""

from __future__ import annotations

from dataclasses import replace

from paddle_recomp.checkpoint import Checkpoint, prompt_format
from paddle_recomp.errors import CheckpointError
from paddle_recomp.files import is_file
from paddle_recomp.preprocess import (
    IMAGE_PLACEHOLDER,
    ChatTemplate,
    ClipTokenizer,
    ImageProcessor,
    LanguageTokenizer,
    QuestionSource,
)


def language_side(checkpoint: Checkpoint) -> tuple[LanguageTokenizer, ChatTemplate]:
    """The tokenizer of a checkpoint's language model, and its chat template.

    The token that begins a text stands in `begin` where the checkpoint's own template writes it: a
    tokenizer may treat a word behind a token otherwise than one at the start of a text. The
    tokenizer does not add a second one.

    Raises: CheckpointError, ConfigError, MissingDependencyError; as `prompt_format`."""
    wanted = prompt_format(checkpoint)
    written = replace(wanted.template, begin=wanted.beginning + wanted.template.begin)
    ends = checkpoint.spec.language.eos_token_ids
    words = LanguageTokenizer.from_folder(checkpoint.model_dir, written, ends)
    _check_vocabulary(checkpoint, words)
    return words, written


def _check_vocabulary(checkpoint: Checkpoint, words: LanguageTokenizer) -> None:
    """More rows than ids are padding. `<image>` and the padding token need no row, because they are
    never looked up.

    Raises: CheckpointError for a tokenizer that does not belong to the language model."""
    rows, place = checkpoint.spec.language.vocab_size, checkpoint.spec.image_token_id
    if words.highest_id >= rows:
        raise CheckpointError(
            f"{checkpoint.model_dir}: a prompt may have the tokenizer's id {words.highest_id}, but "
            f"the language model's vocab_size is {rows}; expected an id below it"
        )
    if None not in (place, words.image_token_id) and place != words.image_token_id:
        raise CheckpointError(
            f"{checkpoint.model_dir}: image_token_index is {place}, but the tokenizer's id of "
            f"{IMAGE_PLACEHOLDER} is {words.image_token_id}"
        )


def question_tokenizer(checkpoint: Checkpoint) -> ClipTokenizer:
    """The tokenizer of a checkpoint's text tower.

    Raises: CheckpointError, CheckpointNotFoundError; CheckpointError where it is not the tower's:
    it ends a text by another id than that at which the tower pools, or has ids without a row."""
    tokenizer, text = ClipTokenizer.from_folder(checkpoint.clip_dir), checkpoint.spec.text
    if not text.pools_at_highest_id and tokenizer.end_id != text.eos_token_id:
        raise CheckpointError(
            f"{checkpoint.clip_dir}: the tokenizer ends a text by the id {tokenizer.end_id}, but "
            f"text_config.eos_token_id, where CLIP pools, is {text.eos_token_id}"
        )
    if tokenizer.highest_id >= text.vocab_size:
        raise CheckpointError(
            f"{checkpoint.clip_dir}: the tokenizer has the id {tokenizer.highest_id}, but "
            f"text_config.vocab_size is {text.vocab_size}; expected an id below it"
        )
    return tokenizer


def question_begin(checkpoint: Checkpoint, source: QuestionSource) -> str:
    """What stands in front of a prompt's first line where CLIP reads that: see `clip_text`.

    Raises: as `language_side`."""
    return language_side(checkpoint)[0].begin if source == "prompt_first_line" else ""


def image_processor(checkpoint: Checkpoint) -> ImageProcessor:
    """The preparation of pictures that a checkpoint asks for.

    Raises: CheckpointError."""
    own = any(
        is_file(checkpoint.model_dir / name)
        for name in ("preprocessor_config.json", "processor_config.json")
    )
    # The original LLaVA layout has none of its own: it prepares pictures as CLIP does.
    folder = checkpoint.model_dir if own else checkpoint.clip_dir
    processor = ImageProcessor.from_folder(
        folder, aspect="pad" if checkpoint.spec.pad_to_square else None
    )
    if processor.crop != (side := checkpoint.spec.vision.image_size):
        raise CheckpointError(
            f"{folder}: pictures are prepared to {processor.crop} pixels a side, but the vision "
            f"tower takes {side}"
        )
    return processor
