"""Record how transformers and the original LLaVA write prompts: chat_templates.json.

    python -m tests.golden.record_templates CONVERSATION

Needs transformers and Pillow, which the tests that read the file do not, and the original code's
llava/conversation.py as a file."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import tempfile
from itertools import combinations
from pathlib import Path
from typing import Any

import transformers

from .template_cases import CONVERSATIONS, DIALOGUES, FILES, TEMPLATES, Dialogue, messages

HERE = Path(__file__).parent
DEMO = HERE.parents[1] / "paddle_recomp" / "assets" / "demo" / "llava"


def by_transformers(processor: Any, case: dict[str, Any]) -> dict[str, str]:
    """The prompt of each dialogue, as its text."""
    for role in ("bos_token", "eos_token", "pad_token", "unk_token"):
        setattr(processor.tokenizer, role, case["tokens"].get(role))
    # A processor takes parts, and a tokenizer texts.
    writer = processor if case["parts"] else processor.tokenizer
    return {
        name: writer.apply_chat_template(
            messages(dialogue, case["parts"]),
            chat_template=case["template"],
            add_generation_prompt=True,
            tokenize=False,
        )
        for name, dialogue in DIALOGUES.items()
    }


def by_the_original(conversation: Any, dialogue: Dialogue) -> str:
    """The prompt of a dialogue."""
    chat = conversation.copy()
    for question, answer, images in dialogue:
        chat.append_message(chat.roles[0], "<image>\n" * images + question)
        chat.append_message(chat.roles[1], answer)
    return str(chat.get_prompt())


def winners() -> dict[str, str]:
    """The file whose template counts, for each set of files: `none` where there is no template,
    `error` where transformers refuses."""
    found = {}
    for size in range(len(FILES) + 1):
        for names in combinations(FILES, size):
            with tempfile.TemporaryDirectory() as folder:
                found[" ".join(names)] = winner(Path(folder), names)
    return found


def winner(folder: Path, names: tuple[str, ...]) -> str:
    """Which of these files counts; the processor's template comes before the tokenizer's own."""
    shutil.copytree(
        DEMO, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors")
    )
    (folder / "chat_template.json").unlink()
    for name in names:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if path.suffix == ".jinja":
            path.write_text(name)
        else:
            fields = json.loads(path.read_text()) if path.exists() else {}
            path.write_text(json.dumps({**fields, "chat_template": name}))
    try:
        processor = transformers.LlavaProcessor.from_pretrained(folder)
        writer = processor.tokenizer if processor.chat_template is None else processor
        if writer.chat_template is None:
            return "none"
        chat = [{"role": "user", "content": "?"}]
        return str(writer.apply_chat_template(chat, tokenize=False))
    except ValueError:
        return "error"


def main(path: str) -> None:
    spec = importlib.util.spec_from_file_location("conversation", path)
    assert spec is not None
    assert spec.loader is not None
    original = importlib.util.module_from_spec(spec)
    sys.modules["conversation"] = original
    spec.loader.exec_module(original)
    processor = transformers.LlavaProcessor.from_pretrained(DEMO)
    record = {
        "transformers": {
            name: by_transformers(processor, case) for name, case in TEMPLATES.items()
        },
        "original": {
            name: {
                key: by_the_original(original.conv_templates[name], dialogue)
                for key, dialogue in DIALOGUES.items()
            }
            for name in CONVERSATIONS
        },
        "winners": winners(),
    }
    text = json.dumps(record, indent=1, ensure_ascii=False)
    (HERE / "chat_templates.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
