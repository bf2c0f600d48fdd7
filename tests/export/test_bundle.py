"""A fresh bundle: it answers as its checkpoint does, and the light install runs it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from export.build import export_bundle
from paddle_recomp.bundle import SUMS, Bundle, open_bundle
from paddle_recomp.bundle.golden import golden_files
from paddle_recomp.commands.main import main
from paddle_recomp.compression.config import CompressionConfig
from paddle_recomp.config import GenerationConfig, TokenBudget
from paddle_recomp.errors import BundleError, ConfigError
from paddle_recomp.vlm.demo import demo_bundle_folder, demo_folder, demo_pictures
from paddle_recomp.vlm.loading import find, find_checkpoint, load, load_front_end
from paddle_recomp.vlm.vlm import VLM
from tests.hiding import recomp_without

from .conftest import edit
from .exports import graphs_of

QUESTION = "what digit is red?"


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_only_files_that_a_reader_reads_are_in_it(demo_bundle: Bundle) -> None:
    assert files(demo_bundle.folder) == {*demo_bundle.sizes, SUMS}
    packaged = open_bundle(demo_bundle_folder())
    assert files(packaged.folder) == {*packaged.sizes, *golden_files(packaged), SUMS}


def test_golden_cases_and_tokenizers_are_written_whatever_the_checkpoint_has(
    demo_bundle: Bundle, tmp_path: Path
) -> None:
    """CLIP's tokenizer comes from vocab.json and merges.txt here."""
    shutil.copytree(demo_folder() / "llava", tmp_path / "llava")
    shutil.copytree(demo_folder() / "clip", tmp_path / "clip")
    (tmp_path / "clip" / "tokenizer.json").unlink()
    with graphs_of(demo_bundle):
        bundle = export_bundle(
            tmp_path / "llava", tmp_path / "bundle", tmp_path / "clip", golden=True
        )
    assert files(bundle.folder) == {*bundle.sizes, *golden_files(bundle), SUMS}
    for mine, theirs in (
        (bundle.clip_tokenizer(), demo_bundle.clip_tokenizer()),
        (bundle.language_tokenizer(), demo_bundle.language_tokenizer()),
    ):
        assert mine.to_json().count("added_tokens") == 1
        assert type(mine) is type(theirs)
    asked = ["What is this?", "naïve café  CIRCLE's 12", ""]
    ours, expected = (b.clip_tokenizer().encode(asked, 20)[0] for b in (bundle, demo_bundle))
    np.testing.assert_array_equal(ours, expected)
    assert main(["verify", str(bundle.folder), "--quiet"]) == 0


def test_a_folder_is_known_by_what_is_in_it(demo_bundle: Bundle) -> None:
    assert isinstance(find(demo_bundle.folder), Bundle)
    assert not isinstance(find(demo_folder() / "llava", demo_folder() / "clip"), Bundle)


def test_the_configuration_of_a_bundle_is_fixed(demo_bundle: Bundle) -> None:
    load_front_end(demo_bundle, CompressionConfig())
    with pytest.raises(ConfigError, match=r"members=32.*9"):
        load_front_end(demo_bundle, CompressionConfig(members=9))


def test_the_language_model_has_to_be_the_right_one(demo_bundle: Bundle, copy: Path) -> None:
    edit(copy, decoder=None, language_model={"name": "llava", "projector_sha256": "0" * 64})
    with pytest.raises(ConfigError, match=r'"llava".*--llm'):
        load(copy)
    edit(copy, language_model={"name": "demo", "projector_sha256": "0" * 64})
    with pytest.raises(BundleError, match="another checkpoint"):
        load(copy)
    with pytest.raises(ConfigError, match="its own language model"):
        load("demo-checkpoint", llm=demo_bundle.folder)


def test_a_bundle_answers_as_its_checkpoint_does(
    demo_bundle: Bundle, vlm: VLM, picture: Path
) -> None:
    bundle = load(demo_bundle.folder)
    for budget in (TokenBudget(), TokenBudget(tokens=24), TokenBudget(full=True)):
        for question in (QUESTION, "where is the circle?"):
            found = bundle.ask(
                picture, question, budget, generation=GenerationConfig(max_new_tokens=4)
            )
            expected = vlm.ask(
                picture, question, budget, generation=GenerationConfig(max_new_tokens=4)
            )
            assert found.token_ids == expected.token_ids
            assert found.stage_counts == expected.stage_counts


def test_the_demos_questions_get_the_same_answers(demo_bundle: Bundle, vlm: VLM) -> None:
    bundle = load(demo_bundle.folder)
    asked = [question for questions in demo_pictures().values() for question in questions]
    questions = [item.question for item in asked]
    for budget in (TokenBudget(), TokenBudget(tokens=32)):
        answers = []
        for one in (bundle, vlm):
            seen = {path: one.see(path) for path in demo_pictures()}
            answers.append(one.ask_batch([seen[item.picture] for item in asked], questions, budget))
        found, expected = ([answer.text for answer in some] for some in answers)
        assert found == expected


def test_the_light_install_runs_a_bundle(
    demo_bundle: Bundle, copy: Path, vlm: VLM, picture: Path, tmp_path: Path
) -> None:
    """paddle is hidden from the process."""
    hidden = ("paddle", "paddlenlp", "onnx")

    def recomp(*arguments: str) -> subprocess.CompletedProcess[str]:
        return recomp_without(hidden, *arguments)

    model = ("--model", str(demo_bundle.folder))
    overlay = tmp_path / "overlay.png"
    done = recomp("explain", str(picture), QUESTION, *model, "--output", str(overlay))
    assert done.returncode == 0, done.stderr
    assert overlay.is_file()
    assert recomp("info", str(demo_bundle.folder)).returncode == 0
    asked = recomp("ask", str(picture), QUESTION, *model, "--json")
    assert asked.returncode == 0, asked.stderr
    assert json.loads(asked.stdout)["answer"] == vlm.ask(picture, QUESTION).text
    bench = ("bench", str(demo_bundle.folder), "--repeats", "1", "--new-tokens", "2", "--json")
    measured = recomp(*bench)
    assert measured.returncode == 0, measured.stderr
    assert set(json.loads(measured.stdout)["machine"]["versions"]) == {"python", "onnxruntime"}
    edit(copy, decoder=None)
    refused = recomp("ask", str(picture), QUESTION, "--model", str(copy))
    assert refused.returncode == 2
    assert "paddle-recomp[paddle]" in refused.stderr


def test_without_onnxruntime_it_is_named(demo_bundle: Bundle, picture: Path) -> None:
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from paddle_recomp.commands.main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "explain", str(picture), QUESTION, "--model"]
    done = subprocess.run(
        [*command, str(demo_bundle.folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "pip install onnxruntime" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_device_names_the_provider(
    demo_bundle: Bundle, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["explain", str(picture), QUESTION, "--model", str(demo_bundle.folder)]
    assert main([*arguments, "--device", "tpu"]) == 2
    assert "installed: cpu" in capsys.readouterr().err
    assert find_checkpoint("demo").spec.vision.num_patches == demo_bundle.num_patches
