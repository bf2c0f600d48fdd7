"""Which chat template a checkpoint gets."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from paddle_recomp.checkpoint import (
    Checkpoint,
    PromptFormat,
    open_checkpoint,
    prompt_format,
    templates,
)
from paddle_recomp.checkpoint.templates import special_tokens
from paddle_recomp.errors import CheckpointError, ConfigError
from paddle_recomp.preprocess import TEMPLATES, ChatTemplate, Turn, render
from paddle_recomp.preprocess.jinja_template import JinjaTemplate
from paddle_recomp.vlm.checkpoint_inputs import language_side
from paddle_recomp.vlm.demo import demo_folder
from paddle_recomp.vlm.loading import find
from tests.golden import template_cases as cases
from tests.preprocess.small_tokenizers import first_prefix

from .conftest import Folder, Rewrite
from .writers import write_json

GOLDEN = Path(cases.__file__).parent
RECORD = json.loads((GOLDEN / "chat_templates.json").read_text("utf-8"))
VARIANTS = GOLDEN / "hf_llava_variants"
CHAT = [Turn("Why?", "So.", images=1), Turn("Who?")]


def saying(words: str) -> str:
    """A template that writes some words first."""
    return f"{words}:{{% for message in messages %}}|{{{{ message.content }}}}{{% endfor %}}"


def as_begin(text: str) -> ChatTemplate:
    """What stands in for a template where nothing has to be rendered."""
    return ChatTemplate(text, "", "", "", "")


def folder_with(target: Path, names: tuple[str, ...]) -> Path:
    """A folder in which each of these files has a template that writes its own name."""
    for name in names:
        path = target / name
        path.parent.mkdir(exist_ok=True, parents=True)
        if path.suffix == ".jinja":
            path.write_text(saying(name))
        else:
            write_json(path, {"chat_template": saying(name)})
    return target


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    """The small model of the demo, whose files of the tokenizer are gone."""
    folder = tmp_path / "llava"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(demo_folder() / "llava" / name, folder / name)
    return open_checkpoint(folder, demo_folder() / "clip")


def test_the_file_that_counts_is_that_of_transformers(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every set of files that can hold a template."""
    monkeypatch.setattr(
        templates, "read_jinja", lambda text, *_: JinjaTemplate(as_begin(text), False)
    )
    folder = checkpoint.model_dir
    kept = {path.name for path in folder.iterdir()}
    for names, winner in RECORD["winners"].items():
        folder_with(folder, tuple(names.split()))
        if winner == "error":
            with pytest.raises(CheckpointError, match=r"does not say which|but no default"):
                prompt_format(checkpoint)
        else:
            found = prompt_format(checkpoint)
            expected = "llava_hf" if winner == "none" else Path(winner).name
            assert found.source == expected
            if winner != "none":
                assert found.template.begin == saying(winner)
        for path in folder.iterdir():
            if path.name not in kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    "value",
    [
        [{"name": "tool_use", "template": "x"}, {"name": "default", "template": saying("a")}],
        {"tool_use": "x", "default": saying("a")},
    ],
    ids=["list", "object"],
)
def test_of_templates_with_names_the_default_counts(checkpoint: Checkpoint, value: Any) -> None:
    write_json(checkpoint.model_dir / "tokenizer_config.json", {"chat_template": value})
    assert prompt_format(checkpoint).template.begin == "a:"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (7, "chat_template is 7; expected a text, or several with names"),
        (["x"], "chat_template is a list; expected a text"),
        ({"default": 7}, "expected a text, or several with names"),
        ([{"name": "default"}], "expected a text, or several with names"),
        ([{"name": "a\nb", "template": "x"}], "has the chat templates a b, but no default"),
        ({}, "but no default"),
        ("{% for", "it is not Jinja: line 1: unexpected 'end of template'"),
        ("", "it does not write the question"),
    ],
)
def test_what_is_no_template_is_refused(checkpoint: Checkpoint, value: Any, reason: str) -> None:
    for name in ("tokenizer_config.json", "chat_template.json", "processor_config.json"):
        path = checkpoint.model_dir / name
        write_json(path, {"chat_template": value})
        with pytest.raises(CheckpointError, match=reason) as caught:
            prompt_format(checkpoint)
        assert str(path) in str(caught.value)
        assert str(caught.value).isprintable()


def test_files_that_cannot_be_read(checkpoint: Checkpoint) -> None:
    path = checkpoint.model_dir / "chat_template.jinja"
    path.write_bytes(b"\xff{{ messages[0].content }}")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja is no UTF-8 text"):
        prompt_format(checkpoint)
    path.write_text("x" * 10_000_000)
    with pytest.raises(CheckpointError, match=r"has 10000000 characters.*--chat-template"):
        prompt_format(checkpoint)
    write_json(checkpoint.model_dir / "chat_template.json", {"template": "x"})
    with pytest.raises(CheckpointError, match=r"chat_template\.json has no chat_template"):
        prompt_format(checkpoint)


@pytest.mark.parametrize("name", ["qwen2", "mistral"])
def test_a_model_without_a_template_is_refused_by_its_name(name: str) -> None:
    """No Vicuna's prompt for it."""
    folder, clip = VARIANTS / name / "llava", VARIANTS / name / "clip"
    checkpoint = open_checkpoint(folder, clip)
    with pytest.raises(CheckpointError, match=f"none is known for a {name} with .* name one: --ch"):
        prompt_format(checkpoint)
    named = open_checkpoint(folder, clip, "qwen_2")
    assert prompt_format(named) == PromptFormat(TEMPLATES["qwen_2"], "qwen_2")


@pytest.mark.parametrize(("size", "known"), [(32000, True), (32064, True), (128257, False)])
@pytest.mark.parametrize("layout", ["llava_hf", "original"])
def test_a_llama_without_a_template_is_known_by_its_vocabulary(
    checkpoint: Checkpoint, layout: str, size: int, known: bool
) -> None:
    """A Llama-3 has four times as many tokens."""
    spec = checkpoint.spec
    spec = replace(spec, language=replace(spec.language, vocab_size=size))
    name = "llava_hf"
    if layout == "original":
        spec, name = replace(spec, layout="llava_original"), "vicuna_v1"
    asked = replace(checkpoint, spec=spec)
    if known:
        assert prompt_format(asked) == PromptFormat(TEMPLATES[name], name)
        return
    with pytest.raises(CheckpointError, match=rf"{size} tokens.*; name one: --chat-template"):
        prompt_format(asked)
    found = prompt_format(replace(asked, chat_template="llama_3"))
    assert found == PromptFormat(TEMPLATES["llama_3"], "llama_3")


def test_the_original_code_goes_by_the_name_of_the_folder(
    original_folder: Folder, clip: Path, rewrite: Rewrite
) -> None:
    """And reads no template from files."""
    folder, _, arrays = original_folder
    rewrite(folder, arrays=arrays)
    folder_with(folder, ("chat_template.jinja",))
    assert prompt_format(open_checkpoint(folder, clip)).source == "vicuna_v1"
    chat = folder.rename(folder.parent / "LLaVA-Llama-2-13b-Chat")
    assert prompt_format(open_checkpoint(chat, clip)).source == "llava_llama_2"


def test_a_template_can_be_asked_for(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = folder_with(checkpoint.model_dir, ("chat_template.jinja",))
    plain, fields = tmp_path / "mine.jinja", tmp_path / "mine.json"
    plain.write_text(saying("mine"))
    write_json(fields, {"chat_template": saying("json")})
    clip = demo_folder() / "clip"
    for wanted, begin in ((str(plain), "mine:"), (str(fields), "json:"), ("llama_3", "")):
        found = prompt_format(open_checkpoint(folder, clip, wanted))
        assert found.source == Path(wanted).name
        assert found.template.begin == begin
    write_json(fields, {})
    with pytest.raises(CheckpointError, match=r"mine\.json has no chat_template"):
        prompt_format(open_checkpoint(folder, clip, str(fields)))
    with pytest.raises(ConfigError, match=r'no chat template "qwen"; name one: .*qwen_2.*a file'):
        prompt_format(open_checkpoint(folder, clip, "qwen"))
    with pytest.raises(ConfigError, match="is a bundle and has its chat template in it"):
        find("demo", template="qwen_2")


def test_special_tokens(tmp_path: Path) -> None:
    assert special_tokens(tmp_path) == {"bos_token": "<s>", "eos_token": "</s>"}
    write_json(tmp_path / "special_tokens_map.json", {"eos_token": {"content": "<e>"}})
    write_json(
        tmp_path / "tokenizer_config.json",
        {"bos_token": None, "add_bos_token": True, "image_token": "<image>", "pad_token": [1]},
    )
    assert special_tokens(tmp_path) == {"eos_token": "<e>", "image_token": "<image>"}


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("writes", [True, False])
def test_a_prompt_begins_once(checkpoint: Checkpoint, adds: bool, writes: bool) -> None:
    """Template and tokenizer may both write the token that begins a text, or one of them."""
    folder = checkpoint.model_dir
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(demo_folder() / "llava" / name, folder / name)
    fields = json.loads((folder / "tokenizer_config.json").read_text())
    write_json(folder / "tokenizer_config.json", {**fields, "add_bos_token": adds})
    (folder / "chat_template.jinja").write_text(
        ("{{ bos_token }}" if writes else "") + saying("USER")
    )
    words, template = language_side(checkpoint)
    ids = words.encode(render(template, CHAT))
    assert ids.count(1) == int(adds or writes)
    assert (ids[0] == 1) == (adds or writes)
    assert template.begin == ("<s>" if writes else "") + "USER:"


def test_a_word_behind_the_template_s_own_beginning_is_not_at_the_start(
    checkpoint: Checkpoint,
) -> None:
    """Llama's newer behaviour puts a space in front of the first word of a text, and `<s>` is in
    front of it where the template writes that."""
    folder = checkpoint.model_dir
    text = first_prefix().to_str()
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    fields = {"add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>"}
    write_json(folder / "tokenizer_config.json", fields)
    found = {}
    for begin in ("", "{{ bos_token }}"):
        (folder / "chat_template.jinja").write_text(begin + saying("USER"))
        words, template = language_side(checkpoint)
        found[begin] = words.encode(render(template, CHAT))
    space = Tokenizer.from_str(text).token_to_id("\u2581USER")
    assert [ids[0] for ids in found.values()] == [1, 1]
    assert found[""][1] == space != found["{{ bos_token }}"][1]
