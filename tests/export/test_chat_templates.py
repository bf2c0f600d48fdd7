"""A bundle prompts as its checkpoint does, whatever template that has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from export.manifest import describe
from export.plan import ExportPlan
from paddle_recomp.bundle import open_bundle
from paddle_recomp.errors import BundleError
from paddle_recomp.preprocess import Turn, render
from paddle_recomp.vlm.checkpoint_inputs import language_side
from paddle_recomp.vlm.demo import demo_bundle_folder, demo_folder
from paddle_recomp.vlm.loading import find_checkpoint
from tests.bundle.conftest import change
from tests.bundle_reader import Reader
from tests.golden import template_cases as cases

RECORD = json.loads((Path(cases.__file__).parent / "chat_templates.json").read_text("utf-8"))


@pytest.fixture
def demo_copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_bundle_folder(), tmp_path / "copy"))


@pytest.mark.parametrize("adds", [True, False], ids=["bos", "no_bos"])
@pytest.mark.parametrize("name", cases.TEMPLATES)
def test_a_bundle_prompts_as_transformers_does(
    name: str, adds: bool, demo_copy: Path, tmp_path: Path
) -> None:
    """The pieces in recomp.json, read by the library and by the reader of docs/bundle.md."""
    case = cases.TEMPLATES[name]
    folder = Path(shutil.copytree(demo_folder() / "llava", tmp_path / "llava"))
    (folder / "chat_template.json").unlink()
    (folder / "chat_template.jinja").write_text(case["template"], encoding="utf-8")
    path = folder / "tokenizer_config.json"
    fields = {**json.loads(path.read_text()), "bos_token": None, **case["tokens"]}
    path.write_text(json.dumps({**fields, "add_bos_token": adds}))
    checkpoint = find_checkpoint(folder, demo_folder() / "clip")
    manifest = describe(checkpoint, "x", ExportPlan())
    before = {"before_words"} & set(manifest["prompt"]["template"])
    assert manifest["requires"] == sorted(before)
    assert bool(before) == (name == "pictures_by_lines")
    change(
        demo_copy,
        lambda c: c.update(prompt=manifest["prompt"], requires=manifest["requires"]),
    )
    bundle, reader = open_bundle(demo_copy), Reader(demo_copy)
    words, template = language_side(checkpoint)
    assert bundle.template == template
    tokenizer = bundle.language_tokenizer()
    for key, dialogue in cases.DIALOGUES.items():
        prompt = render(bundle.template, [Turn(*turn) for turn in dialogue])
        expected = RECORD["transformers"][name][key]
        assert prompt.text == expected
        ids = tokenizer.encode(prompt)
        assert ids == words.encode(prompt)
        assert ids == reader.prompt_ids(reader.prompt(dialogue))
        assert ids.count(1) == max(expected.count("<s>"), int(tokenizer.bos_token_id == 1))


def test_a_reader_that_does_not_know_the_piece_refuses_it(demo_copy: Path) -> None:
    change(demo_copy, lambda c: c["prompt"]["template"].update(before_words="\n"))
    assert open_bundle(demo_copy).template.before_words == "\n"
    change(demo_copy, lambda c: c["prompt"]["template"].update(before_words="<image>"))
    with pytest.raises(BundleError, match=r"before_words has <image> in it 1 times; expected 0"):
        open_bundle(demo_copy)
    change(demo_copy, lambda c: c["prompt"]["template"].update(before_words=None))
    with pytest.raises(BundleError, match=r"template\.before_words is null; expected a text"):
        open_bundle(demo_copy)
