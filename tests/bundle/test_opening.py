"""Opening a bundle: what it holds, and every damage as one clear error that names the file."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paddle_recomp.bundle import MANIFEST, SUMS, checksums, open_bundle, write_checksums
from paddle_recomp.bundle.golden import CASES, golden_files, read_golden
from paddle_recomp.commands.main import main
from paddle_recomp.errors import BundleError, BundleNotFoundError
from paddle_recomp.preprocess import TEMPLATES
from paddle_recomp.vlm.loading import load

from .conftest import KEPT, change

QUESTION = "where is the circle?"


def change_byte(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)


def edit_sums(folder: Path, edit: Callable[[str], str]) -> None:
    path = folder / SUMS
    path.write_text(edit(path.read_text()))


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def name_alike(stages: list[dict[str, Any]]) -> None:
    stages[1]["name"] = stages[0]["name"]


def name_file(folder: Path, name: str) -> None:
    """Names another file as the text graph's."""
    change(folder, lambda c: c["graphs"]["text"].update(file=name))


def drop_lines(folder: Path, part: str) -> None:
    """Takes the lines of SHA256SUMS away that have this in them."""
    edit_sums(folder, lambda t: "".join(x for x in t.splitlines(True) if part not in x))


def with_a_second(folder: Path, **fields: object) -> None:
    """Adds a second compressor, over the same graphs."""
    shutil.copyfile(folder / "compress.onnx", folder / "compress.other.onnx")

    def add(content: dict[str, Any]) -> None:
        graphs = content["compress"]["graphs"]
        own = json.loads(json.dumps(graphs["recoverable"]))
        graphs["other"] = {**own, "file": "compress.other.onnx", "method": "new", **fields}

    change(folder, add)


OTHER_STAGES = [
    {"name": name, "kind": "patch", "meaning": "are there"} for name in ("all", "b", "c", "d")
]
"""As many as the graph has."""


def read_also(content: dict[str, Any], name: str) -> None:
    """Lets the compressor read another array."""
    inputs = content["compress"]["graphs"]["recoverable"]["inputs"]
    inputs.append({"name": name, "dtype": "float32", "shape": ["batch", 36]})


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a changed byte": (lambda f: change_byte(f, "vision.onnx"), r"vision\.onnx was changed"),
    "a cut file": (lambda f: (f / "text.onnx").write_bytes(b"x"), r"text\.onnx was changed"),
    "a missing file": (lambda f: (f / "compress.onnx").unlink(), r"no .*compress\.onnx.*names"),
    "a changed tokenizer": (lambda f: change_byte(f, "clip/tokenizer.json"), r"tokenizer\.json"),
    "a changed picture": (lambda f: change_byte(f, "golden/tall.png"), r"tall\.png was changed"),
    "a changed array": (
        lambda f: change_byte(f, "golden/exact.logits.npy"),
        r"exact\.logits\.npy was changed",
    ),
    "no manifest": (lambda f: (f / MANIFEST).unlink(), "not a bundle"),
    "no JSON": (lambda f: (f / MANIFEST).write_text("{"), "is not JSON"),
    "a list": (lambda f: (f / MANIFEST).write_text("[]"), "expected a JSON object"),
    "a key that comes twice": (
        lambda f: (f / MANIFEST).write_text('{"format": 2, "format": 2}'),
        "'format' appears twice",
    ),
    "NaN": (lambda f: (f / MANIFEST).write_text('{"format": NaN}'), "NaN is no JSON number"),
    "format 1": (lambda f: change(f, lambda c: c.update(format=1)), "format is 1.*export.*again"),
    "no format": (lambda f: change(f, lambda c: c.pop("format")), "format is missing"),
    "a format of text": (lambda f: change(f, lambda c: c.update(format="2")), 'format is "2"'),
    "a newer format": (lambda f: change(f, lambda c: c.update(format=3)), "format 3.*update"),
    "something required": (
        lambda f: change(f, lambda c: c.update(requires=["colour"])),
        "requires colour, which",
    ),
    "an edited number": (
        lambda f: (f / MANIFEST).write_text((f / MANIFEST).read_text().replace("36", "37")),
        r"recomp\.json was changed",
    ),
    "no sums": (lambda f: (f / SUMS).unlink(), r"no .*SHA256SUMS"),
    "a cut sum": (lambda f: edit_sums(f, lambda t: t[:-5]), "is cut off|line"),
    "no sum of the manifest": (
        lambda f: drop_lines(f, MANIFEST),
        r"no sum for recomp\.json",
    ),
    "no sum of a graph": (
        lambda f: drop_lines(f, "text.onnx"),
        r"graphs\.text\.file is \"text\.onnx\", which has no sum",
    ),
    "a sum twice": (lambda f: edit_sums(f, lambda t: t + t), "two lines for"),
    "a line of nothing": (lambda f: edit_sums(f, lambda t: f"{t}\n"), "expected a sum"),
    "a sum with a star": (
        lambda f: edit_sums(f, lambda t: t.replace("  text.onnx", " *text.onnx")),
        "expected a sum, two spaces, a name",
    ),
    "sums that are no text": (
        lambda f: (f / SUMS).write_bytes(b"\xff" + (f / SUMS).read_bytes()),
        "is not UTF-8",
    ),
    "sums that are a pipe": (
        lambda f: make_pipe(f / SUMS),
        "SHA256SUMS cannot be read: it is not a regular file",
    ),
    "a picture that is a pipe": (
        lambda f: make_pipe(f / "golden/tall.png"),
        "tall.png cannot be read: it is not a regular file",
    ),
    "a sum of what is outside": (
        lambda f: edit_sums(f, lambda t: f"{t}{'0' * 64}  ../x\n"),
        r"\"\.\./x\", which is not inside",
    ),
    "a way out": (lambda f: name_file(f, "../text.onnx"), r"\.\./text\.onnx.*not inside"),
    "a way in": (lambda f: name_file(f, "clip/../../text.onnx"), "not inside"),
    "an absolute name": (lambda f: name_file(f, "/etc/passwd"), "/etc/passwd.*not inside"),
    "another drive": (lambda f: name_file(f, "C:\\x"), "not inside"),
    "two names for a place": (lambda f: name_file(f, "./text.onnx"), "not inside"),
    "a name of two lines": (lambda f: name_file(f, "a\nb"), "not inside"),
    "a folder as a file": (lambda f: name_file(f, "clip"), "has no sum"),
    "a missing graph": (
        lambda f: change(f, lambda c: c["graphs"].pop("text")),
        r"graphs\.text is missing",
    ),
    "no such default": (
        lambda f: change(f, lambda c: c["compress"].update(default="x")),
        r'compress\.default is "x"; expected one of: recoverable',
    ),
    "an unknown input": (
        lambda f: change(f, lambda c: read_also(c, "colour")),
        r'compress\.graphs\.recoverable reads "colour", which.*known: features',
    ),
    "an input that no graph gives": (
        lambda f: change(f, lambda c: read_also(c, "layer_score")),
        "reads layer_score, which no graph gives",
    ),
    "an output that is missing": (
        lambda f: change(f, lambda c: c["compress"]["graphs"]["recoverable"]["outputs"].pop()),
        "has no output token_centre",
    ),
    "an input that is missing": (
        lambda f: change(f, lambda c: c["graphs"]["text"]["inputs"][0].update(name="text")),
        'graphs.text reads "text"',
    ),
    "another grid": (
        lambda f: change(f, lambda c: c["image"].update(grid=[6, 7])),
        r"image\.patches is 36, image\.grid \[6, 7\]",
    ),
    "a grid of another form": (
        lambda f: change(f, lambda c: c["image"].update(grid=[4, 9])),
        r"image\.grid is \[4, 9\], but image\.crop 42.*expected a grid of \[6, 6\]",
    ),
    "another crop": (
        lambda f: change(f, lambda c: c["image"].update(crop=28)),
        r"image\.crop 28.*expected a grid of \[4, 4\]",
    ),
    "an id beyond the vocabulary": (
        lambda f: change(f, lambda c: c["prompt"].update(bos_token_id=704)),
        r"prompt\.bos_token_id has the id 704, but decoder\.vocab_size is 704",
    ),
    "two places in a template": (
        lambda f: change(f, lambda c: c["prompt"]["template"].update(image="<image><image>")),
        r"template\.image has <image> in it 2 times; expected 1",
    ),
    "a place in another piece": (
        lambda f: change(f, lambda c: c["prompt"]["template"].update(begin="<image>")),
        r"template\.begin has <image> in it 1 times; expected 0",
    ),
    "a mask without words": (
        lambda f: change(f, lambda c: read_also(c, "word_mask")),
        "reads one of word_embeds and word_mask",
    ),
    "two stages of one name": (
        lambda f: change(f, lambda c: name_alike(c["compress"]["graphs"]["recoverable"]["stages"])),
        'recoverable has two stages "visual"; expected a name of its own',
    ),
    "a long name": (lambda f: name_file(f, "x" * 300), "longer than names may be"),
    "another width": (
        lambda f: change(f, lambda c: c["sizes"].update(language_width=9)),
        "hidden_size is 16, but sizes.language_width 9",
    ),
    "golden cases of another compressor": (
        lambda f: change(f, lambda c: c["cases"][0].update(compress="x"), CASES),
        "golden case.*has: recoverable",
    ),
    "golden cases outside": (
        lambda f: change(f, lambda c: c["cases"][0].update(picture="../x.png"), CASES),
        r"\.\./x\.png.*not inside",
    ),
    "golden cases without a sum": (
        lambda f: change(f, lambda c: c["cases"][0].update(picture="golden/x.png"), CASES),
        r"no sum for golden/x\.png",
    ),
}


def read_all(folder: Path) -> None:
    """Reads and compares everything that a bundle names."""
    bundle = open_bundle(folder)
    bundle.verify()
    read_golden(bundle)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_bundle_is_one_clear_error(
    name: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, says = DAMAGES[name]
    damage(copy)
    with pytest.raises(BundleError, match=says) as raised:
        read_all(copy)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600
    if (copy / MANIFEST).is_file() and "golden cases of" not in name:
        assert main(["info", str(copy)]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_not_found_is_also_file_not_found(copy: Path, tmp_path: Path) -> None:
    for error in (BundleNotFoundError, FileNotFoundError):
        with pytest.raises(error):
            open_bundle(tmp_path / "nothing")
    (copy / "text.onnx").unlink()
    with pytest.raises(BundleNotFoundError, match=r"text\.onnx"):
        open_bundle(copy)


def test_the_kept_bundle_opens_and_answers() -> None:
    """It stands for the bundles that people have: whatever is added later, it goes on opening."""
    bundle, vlm = open_bundle(KEPT), load(KEPT)
    bundle.verify()
    assert (bundle.precision, bundle.method, bundle.num_patches) == ("fp32", "recoverable", 36)
    assert bundle.template == TEMPLATES["llava_hf"]
    assert [stage.name for stage in bundle.stages] == ["visual", "text", "merged", "rest"]
    assert bundle.question_source == "question"
    golden = read_golden(bundle)
    assert [case.name for case in golden.cases] == ["dynamic", "capped", "exact", "full"]
    case = golden.cases[0]
    seen = vlm.see(case.picture)
    for name in ("features", "keys", "visual_score", "patch_embeds"):
        assert abs(seen.features[name] - case.arrays[name]).max() < 1e-4
    assert vlm.ask(seen, case.question).compressed[0].index.tolist() == (
        case.arrays["token_index"].tolist()
    )


def test_unknown_fields_are_ignored_at_any_depth(copy: Path) -> None:
    before = open_bundle(copy)

    def add(content: Any) -> None:
        for part in (content, content["image"], content["question"], content["prompt"]):
            part["later"] = {"x": [1]}
        template, decoder = content["prompt"]["template"], content["decoder"]
        for part in (template, decoder, content["language_model"], content["golden"]):
            part["later"] = None
        compressor = content["compress"]["graphs"]["recoverable"]
        for part in (content["compress"], compressor, compressor["stages"][0]):
            part["later"] = True
        compressor["options"]["colour"] = "an option that nobody knew"
        content["graphs"]["later"] = {"file": "later.onnx"}
        for graph in (*content["graphs"].values(), compressor):
            if "outputs" in graph:
                graph["outputs"][0]["later"] = 1
        content["towers"]["later"] = 1
        # Also what a later version of a method declares, and an output that nobody reads.
        content["graphs"]["vision"]["outputs"].append(
            {"name": "depth", "dtype": "float32", "shape": ["batch", 36]}
        )

    change(copy, add)
    change(copy, lambda c: c["cases"][0].update(later=1), CASES)
    after = open_bundle(copy)
    read_golden(after)
    assert after.question == before.question
    assert after.prompt == before.prompt
    assert after.decoder == before.decoder
    assert after.options["colour"] == "an option that nobody knew"
    assert after.graphs["vision"].outputs[-1] == "depth"
    change(copy, lambda c: c["graphs"]["vision"]["outputs"].pop())
    assert load(copy).ask(copy / "golden" / "tall.png", QUESTION).text == (
        load(KEPT).ask(copy / "golden" / "tall.png", QUESTION).text
    )


def test_sums_are_those_of_sha256sum(copy: Path) -> None:
    bundle = open_bundle(copy)
    lines = (copy / SUMS).read_text().splitlines()
    files = {p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file()} - {SUMS}
    assert [line[66:] for line in lines] == sorted(files)
    for name, digest in bundle.checksums.items():
        assert digest == hashlib.sha256((copy / name).read_bytes()).hexdigest()
        assert bundle.sizes[name] == (copy / name).stat().st_size
    if shutil.which("sha256sum"):
        done = subprocess.run(["sha256sum", "-c", "--quiet", SUMS], cwd=copy, check=False)
        assert done.returncode == 0


def test_files_that_are_not_named_are_never_read(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even compared, nor listed: a signature may lie there, or anything."""
    for name in ("SHA256SUMS.minisig", "clip/vocab.json", "golden/notes.txt"):
        (copy / name).mkdir()  # It cannot be read as a file.
    bundle = open_bundle(copy)
    bundle.verify()
    bundle.verify(golden_files(bundle))
    assert main(["info", str(copy)]) == 0


def test_a_file_is_compared_once_and_only_when_it_is_used(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    original = checksums.checksum

    def counting(path: Path) -> str:
        read.append(path.relative_to(copy).as_posix())
        return original(path)

    monkeypatch.setattr(checksums, "checksum", counting)
    bundle = open_bundle(copy)
    assert read == []
    bundle.clip_tokenizer()
    bundle.clip_tokenizer()
    assert read == ["clip/tokenizer.json"]
    bundle.verify()
    bundle.choose("recoverable").verify()
    assert sorted(read) == sorted(set(bundle.sizes))


def test_several_compressors_are_chosen_by_name(copy: Path) -> None:
    with_a_second(copy, stages=OTHER_STAGES, options={"colour": "red"})
    first, second = open_bundle(copy), open_bundle(copy, "other")
    assert tuple(first.compressors) == ("recoverable", "other")
    assert (first.compressor, first.method) == ("recoverable", "recoverable")
    assert (second.compressor, second.method) == ("other", "new")
    assert second.options == {"colour": "red"}
    assert [stage.name for stage in second.stages] == ["all", "b", "c", "d"]
    assert second.graphs["compress"].file == "compress.other.onnx"
    assert second.graphs["vision"] == first.graphs["vision"]
    with pytest.raises(BundleError, match='no compressor "third"; it has: recoverable, other'):
        open_bundle(copy, "third")
    change(copy, lambda c: c["compress"].update(default="other"))
    assert open_bundle(copy).compressor == "other"
    # Methods that this version does not have are run all the same.
    answer = load(copy, compress="other").ask(copy / "golden" / "scene.png", QUESTION)
    assert answer.stage_counts.keys() == {"all", "b", "c", "d"}
    other = load(copy, compress="recoverable").ask(copy / "golden" / "scene.png", QUESTION)
    assert other.stage_counts.keys() == {"visual", "text", "merged", "rest"}
    assert answer.token_ids == other.token_ids


def test_a_stage_that_is_not_declared_is_refused(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its tokens would be in no count."""
    change(
        copy, lambda c: c["compress"]["graphs"]["recoverable"]["stages"].__delitem__(slice(1, 4))
    )
    assert main(["ask", str(copy / "golden/scene.png"), QUESTION, "--model", str(copy)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "token_stage holds 3; expected 0, as the compressor has 1 stage: visual" in line
    assert main(["verify", str(copy)]) == 2
    assert "token_stage holds 3" in capsys.readouterr().err


def test_another_compressor_is_refused_only_when_it_is_chosen(copy: Path) -> None:
    """It may need a later version."""
    own = json.loads((copy / MANIFEST).read_text())["compress"]["graphs"]["recoverable"]["inputs"]
    later = {"name": "colour", "dtype": "float16", "shape": ["batch", 36]}
    with_a_second(copy, inputs=[*own, later])
    assert open_bundle(copy).compressor == "recoverable"
    assert main(["info", str(copy)]) == 0
    with pytest.raises(BundleError, match='the compressor "other" reads "colour", which this'):
        open_bundle(copy, "other")
    change(copy, lambda c: c["compress"].update(default="other"))
    with pytest.raises(BundleError, match='other reads "colour", which this'):
        open_bundle(copy)


def test_a_stage_of_a_later_kind_opens(copy: Path) -> None:
    stages = json.loads((copy / MANIFEST).read_text())["compress"]["graphs"]["recoverable"][
        "stages"
    ]
    stages[3]["kind"] = "summary"
    change(copy, lambda c: c["compress"]["graphs"]["recoverable"].update(stages=stages))
    assert [stage.kind for stage in open_bundle(copy).stages] == [
        *("patch", "patch", "merged", "merged")
    ]
    page = copy / "page.png"
    asked = [str(copy / "golden" / "scene.png"), QUESTION, "--model", str(copy)]
    assert main(["explain", *asked, "--output", str(page)]) == 0
    assert page.stat().st_size > 0


def test_names_in_a_listing_are_short_and_plain(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "\x1b[31m" + "x" * 5000
    with_a_second(copy)

    def rename(content: Any) -> None:
        graphs = content["compress"]["graphs"]
        graphs[name] = graphs.pop("other")
        graphs[name]["inputs"].pop()
        content["language_model"]["name"] = name

    change(copy, rename)
    assert main(["info", str(copy)]) == 2
    assert len(capsys.readouterr().err) < 500
    change(copy, lambda c: c["compress"]["graphs"].pop(name))
    assert main(["info", str(copy)]) == 0
    change(copy, lambda c: c.update(format=int("9" * 4200)))
    assert main(["info", str(copy)]) == 2
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err
    assert len(shown.out + shown.err) < 2500


def test_the_command_chooses_a_compressor(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_a_second(copy, stages=OTHER_STAGES)
    asked = ["ask", str(copy / "golden" / "scene.png"), QUESTION, "--model", str(copy), "--json"]
    assert main([*asked, "--compress", "other"]) == 0
    assert "all" in json.loads(capsys.readouterr().out)["visual_tokens"]["stages"]
    assert main([*asked, "--compress", "third"]) == 2
    assert "no compressor" in capsys.readouterr().err
    assert main(["info", str(copy)]) == 0
    assert "recoverable, other" in capsys.readouterr().out


def test_several_compressors_may_read_different_features(copy: Path) -> None:
    """Vision gives what all of them read; each is given its own."""
    with_a_second(copy)

    def read_less(content: Any) -> None:
        about = content["compress"]["graphs"]["other"]
        about["inputs"] = [i for i in about["inputs"] if i["name"] != "keys"]

    change(copy, read_less)
    bundle = open_bundle(copy, "other")
    assert "keys" not in bundle.graphs["compress"].inputs
    assert "keys" in bundle.graphs["vision"].outputs


def test_a_pad_colour_is_the_bundles(copy: Path) -> None:
    change(copy, lambda c: c["image"].update(aspect="pad", pad_colour=[1, 2, 3]))
    assert open_bundle(copy).image_processor.background == (1, 2, 3)


def test_a_tokenizer_with_ids_that_the_decoder_does_not_have(copy: Path) -> None:
    assert open_bundle(copy).language_tokenizer().highest_id == 654
    change(copy, lambda c: c["decoder"].update(vocab_size=655))
    # `<image>` and `<pad>` come behind, and are never looked up.
    open_bundle(copy).language_tokenizer()
    change(copy, lambda c: c["decoder"].update(vocab_size=654))
    with pytest.raises(BundleError, match=r"the id 654 of llm/tokenizer\.json, but .* is 654;"):
        open_bundle(copy).language_tokenizer()


def test_another_image_token_is_refused(copy: Path) -> None:
    change(copy, lambda c: c["prompt"].update(image_token_id=5))
    with pytest.raises(
        BundleError, match=r"image_token_id is 5, but llm/tokenizer.json makes \[655"
    ):
        open_bundle(copy).language_tokenizer()


def test_writing_sums_refuses_a_name_of_two_lines(copy: Path) -> None:
    (copy / "a\nb").write_text("")
    with pytest.raises(BundleError, match="not inside"):
        write_checksums(copy)
