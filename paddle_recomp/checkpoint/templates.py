"""The chat template of a checkpoint: which of its files says it, and what is known where none does.

Files count in the order in which transformers' processors read them; the folders of the original
code have none that it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddle_recomp.checkpoint.checkpoint import Checkpoint
from paddle_recomp.errors import CheckpointError, CheckpointNotFoundError, ConfigError
from paddle_recomp.files import is_file
from paddle_recomp.json_files import listed, read_bytes, read_json, shown
from paddle_recomp.preprocess import TEMPLATES, ChatTemplate
from paddle_recomp.preprocess.jinja_template import read_jinja

LLAMA_VOCABULARY = 33_000
"""The tokens of Llama 1 and 2 are 32,000, and checkpoints add some of their own. Llama 3 has four
times as many, and other models of Llama's architecture have twice as many."""
_JINJA, _LEGACY, _OTHERS = "chat_template.jinja", "chat_template.json", "additional_chat_templates"
_REMEDY = f"name one: --chat-template {'|'.join(TEMPLATES)}, or a file with a Jinja template"


@dataclass(frozen=True)
class PromptFormat:
    """How a checkpoint wants to be prompted."""

    template: ChatTemplate
    """Without the token that begins a text."""
    source: str
    """The file that says so, or the name of a known template."""
    beginning: str = ""
    """The token that begins a text, where the template writes it; it counts once, also where the
    tokenizer adds it by itself."""


def prompt_format(checkpoint: Checkpoint) -> PromptFormat:
    """What was asked for when the checkpoint was opened; else what its files say; else what is
    known of models like it.

    Raises: CheckpointError for a template that cannot be used, or where none is known;
    ConfigError for an unknown name; MissingDependencyError without jinja2."""
    folder, wanted = checkpoint.model_dir, checkpoint.chat_template
    if wanted is not None:
        if wanted in TEMPLATES:
            return PromptFormat(TEMPLATES[wanted], wanted)
        path = Path(wanted)
        if not is_file(path):
            raise ConfigError(f"there is no chat template {shown(wanted)}; {_REMEDY}")
        text = _field(path) if path.suffix == ".json" else _text(path)
        if text is None:
            raise CheckpointError(f"{path} has no chat_template")
        return _read(folder, path, text)
    if checkpoint.spec.layout == "llava_original":
        name = _original_name(checkpoint)
        return PromptFormat(TEMPLATES[name], name)
    if (found := _own(folder)) is not None:
        return _read(folder, *found)
    language = checkpoint.spec.language
    if language.model_type == "llama" and language.vocab_size <= LLAMA_VOCABULARY:
        return PromptFormat(TEMPLATES["llava_hf"], "llava_hf")
    raise CheckpointError(
        f"{folder} has no chat template, and none is known for a {language.model_type} with "
        f"{language.vocab_size} tokens; {_REMEDY}"
    )


def _original_name(checkpoint: Checkpoint) -> str:
    """The original code goes by the name of the folder. Raises: CheckpointError."""
    language, folder = checkpoint.spec.language, checkpoint.model_dir
    if language.vocab_size > LLAMA_VOCABULARY:
        raise CheckpointError(
            f"{folder} has {language.vocab_size} tokens, so it is no Vicuna, and this layout does "
            f"not say how to prompt it; {_REMEDY}"
        )
    return "llava_llama_2" if "llama-2" in folder.resolve().name.lower() else "vicuna_v1"


def _own(folder: Path) -> tuple[Path, str] | None:
    """The file that decides, with its template. Raises: CheckpointError."""
    processor, others = folder / "processor_config.json", sorted((folder / _OTHERS).glob("*.jinja"))
    if is_file(folder / _LEGACY) and others:
        raise CheckpointError(
            f"{folder} has both {_LEGACY} and {_OTHERS}, which transformers refuses, too: it does "
            f"not say which counts; {_REMEDY}"
        )
    if is_file(processor) and (text := _field(processor)) is not None:
        return processor, text
    if is_file(folder / _LEGACY):
        if (text := _field(folder / _LEGACY)) is None:
            raise CheckpointError(f"{folder / _LEGACY} has no chat_template")
        return folder / _LEGACY, text
    if is_file(folder / _JINJA):
        return folder / _JINJA, _text(folder / _JINJA)
    if others:
        named = {path.stem: path for path in others}
        if "default" not in named:
            raise _no_default(folder / _OTHERS, named)
        return named["default"], _text(named["default"])
    tokenizer = folder / "tokenizer_config.json"
    if is_file(tokenizer) and (text := _field(tokenizer)) is not None:
        return tokenizer, text
    return None


def _field(path: Path) -> str | None:
    """The template in a JSON file; of several, with names, the one called `default`.

    Raises: CheckpointError."""
    value = read_json(path).get("chat_template")
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        value = {item.get("name"): item.get("template") for item in value}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise CheckpointError(
            f"{path}: chat_template is {shown(value)}; expected a text, or several with names"
        )
    if "default" not in value:
        raise _no_default(path, value)
    text: str = value["default"]
    return text


def _no_default(path: Path, named: Mapping[Any, object]) -> CheckpointError:
    names = listed(sorted(map(str, named))) or "[]"
    return CheckpointError(f"{path} has the chat templates {names}, but no default; {_REMEDY}")


def _text(path: Path) -> str:
    """Raises: CheckpointError."""
    try:
        return read_bytes(path, CheckpointError, CheckpointNotFoundError).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is no UTF-8 text: {error.reason}") from None


def _read(folder: Path, path: Path, text: str) -> PromptFormat:
    """Raises: CheckpointError that names the remedy; MissingDependencyError."""
    tokens = special_tokens(folder)
    try:
        found = read_jinja(text, str(path), tuple(sorted(tokens.items())))
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {_REMEDY}") from None
    return PromptFormat(found.pieces, path.name, tokens["bos_token"] if found.begins else "")


def special_tokens(folder: Path) -> dict[str, str]:
    """The special tokens of a tokenizer by their roles, such as `bos_token`: those that
    tokenizer_config.json names, those that special_tokens_map.json names beside it, and Llama's
    two where neither has a word about them.

    Raises: CheckpointError for a broken file."""
    given: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>"}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if is_file(folder / name):
            fields = read_json(folder / name)
            given.update({key: fields[key] for key in fields if key.endswith("_token")})
    named = {
        role: token.get("content") if isinstance(token, dict) else token
        for role, token in given.items()
    }
    return {role: token for role, token in named.items() if isinstance(token, str)}
