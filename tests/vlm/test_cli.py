"""The command: answers, and one clear line with exit code 2 for bad input."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from paddle_recomp.commands.main import main
from paddle_recomp.vlm.demo import DEMO, DEMO_CHECKPOINT, demo_folder

QUESTION = "what digit is red?"
CHECKPOINT = ("--model", DEMO_CHECKPOINT)


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """A folder of files that are no pictures, or no usable ones."""
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.effect_noise((400, 400), 90).convert("RGB").save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    # A header that claims 200 megapixels, with nothing behind it: it must not be decoded.
    header = struct.pack(">IIBBBBB", 20_000, 10_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    (tmp_path / "bomb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", len(header))
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + b"\x00\x00\x00\x00IEND\xaeB`\x82"
    )
    (tmp_path / "folder").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ask", "{bad}/missing.png", QUESTION], "missing.png"),
        (["ask", "{bad}/text.png", QUESTION], "text.png"),
        (["ask", "{bad}/empty.png", QUESTION], "empty.png"),
        (["ask", "{bad}/cut.jpg", QUESTION], "cut.jpg"),
        (["ask", "{bad}/bomb.png", QUESTION], "20000"),
        (["ask", "{bad}/folder", QUESTION], "folder"),
        (["ask", "{ok}", "  "], "empty"),
        (["ask", "{ok}", QUESTION, "--method", "magic"], "recoverable"),
        (["ask", "{ok}", QUESTION, *CHECKPOINT, "--method", "magic"], "uniform"),
        (["ask", "{ok}", QUESTION, "--preset", "paper"], "faithful"),
        (["ask", "{ok}", QUESTION, "--frobnicate"], "--frobnicate"),
        (["ask", "{ok}", QUESTION, "--set", "attention=sideways"], "concat"),
        (["ask", "{ok}", QUESTION, "--set", "colour=red"], "colour"),
        (["ask", "{ok}", QUESTION, "--set", "members=many"], "members"),
        (["ask", "{ok}", QUESTION, "--set", "members"], "NAME=VALUE"),
        (["ask", "{ok}", QUESTION, "--tokens", "0"], "tokens"),
        (["ask", "{ok}", QUESTION, "--tokens", "999"], "256"),
        (["ask", "{ok}", QUESTION, "--tokens", "5", "--full"], "exclude"),
        (["ask", "{ok}", QUESTION, "--max-new-tokens", "0"], "max_new_tokens"),
        (["ask", "{ok}", QUESTION, "--temperature", "-1"], "temperature"),
        (["ask", "{ok}", QUESTION, "--top-p", "0.9"], "temperature 0"),
        (["ask", "{ok}", QUESTION, "--stop", ""], "stop"),
        (["ask", "{ok}", QUESTION, "--device", "gpu:9"], "installed: cpu"),
        (["ask", "{ok}", QUESTION, *CHECKPOINT, "--device", "gpu:9"], "available: cpu"),
        (["ask", "{ok}", QUESTION, "--backend", "paddle"], "--paddle"),
        (["ask", "{ok}", QUESTION, *CHECKPOINT, "--backend", "onnx"], "eager Paddle"),
        (["ask", "{ok}", QUESTION, "--model", "{bad}/nothing"], "nothing"),
        (["ask", "{ok}", QUESTION, "--model", "{bad}/folder"], "config.json"),
        (["ask", "{ok}", QUESTION, "--overlay", "{bad}/no/where.png"], "no folder"),
        (["ask", "{ok}", QUESTION, "--overlay", "{bad}/where.xyz"], "where.xyz"),
        (["ask"], "QUESTION"),
        (["ask", "{ok}", QUESTION, "--clip", "{bad}"], "demo is a bundle and has its CLIP"),
        (["ask", "{ok}", QUESTION, *CHECKPOINT, "--clip", "{bad}"], "demo-checkpoint has a CLIP"),
        (["info", "--clip", "{bad}"], "demo is a bundle and has its CLIP"),
        (["ask", "{ok}", QUESTION, "--chat-template", "qwen_2"], "has its chat template in it"),
        (["ask", "{ok}", QUESTION, *CHECKPOINT, "--chat-template", "x"], "name one: --chat-templ"),
        (["verify", "{bad}/folder", "--chat-template", "x"], "go with a checkpoint: add --model"),
        (["ask", "{ok}", QUESTION, "--ttft-ms", "0"], "ttft_ms is 0"),
        (["ask", "{ok}", QUESTION, "--ttft-ms", "9", "--full"], "exclude"),
        (["ask", "{ok}", QUESTION, "--ttft-ms", "9", "--tokens", "9"], "exclude"),
        (["ask", "{ok}", "{ok}", QUESTION, "--ttft-ms", "9e9", "--max-tokens", "1"], "share"),
        (["ask", "{ok}"], "no question, only the file"),
        (["ask", "{ok}", "{bad}/text.png", QUESTION], "text.png"),
        (["ask", "{ok}", "is <image> like <image>?"], "2, its pictures: 1"),
        (["ask", "{ok}", "{ok}", QUESTION, "--tokens", "1"], "2 images cannot share"),
        (["ask", QUESTION, "--overlay", "{bad}/where.png"], "no picture to draw"),
        (["explain", QUESTION], "no picture to explain"),
        (["info", "{bad}/folder"], "config.json"),
        (["explain", "{bad}/text.png", QUESTION], "text.png"),
        (["bench", "--image", "{bad}/text.png"], "text.png"),
        (["bench", "--tokens", "999"], "256"),
        (["bench", "--tokens", "0"], "tokens"),
        (["bench", "--new-tokens", "1"], "at least 2"),
        (["bench", "--repeats", "0"], "repeats"),
        (["bench", "--question", " "], "empty"),
        (["bench", *["--question", QUESTION] * 3], "second"),
        (["bench", "{bad}/folder"], "config.json"),
        (["nonsense"], "nonsense"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    says: str,
    bad: Path,
    picture: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    filled = [text.format(bad=bad, ok=picture) for text in arguments]
    assert main(filled) == 2
    captured = capsys.readouterr()
    assert captured.out == "" or "--overlay" in arguments
    lines = [line for line in captured.err.splitlines() if line.strip()]
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("recomp: ")
    assert says in lines[0]


@pytest.mark.parametrize("model", [DEMO, DEMO_CHECKPOINT])
def test_ask_prints_answer_tokens_and_times(
    model: str, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overlay = tmp_path / "overlay.png"
    arguments = ["ask", str(picture), QUESTION, "--tokens", "20", "--overlay", str(overlay)]
    assert main([*arguments, "--model", model]) == 0
    printed = capsys.readouterr()
    (answer,), (tokens, times) = printed.out.splitlines(), printed.err.splitlines()
    assert answer.strip()
    assert tokens.startswith("20 of 256 visual tokens: ")
    for step in ("vision tower", "text tower", "compressor", "prefill", "decode", "first token"):
        assert step in times
    with Image.open(overlay) as drawn:
        assert drawn.width >= 800


def test_ask_says_when_the_answer_was_cut(
    picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ask", str(picture), QUESTION, "--max-new-tokens", "1"]) == 0
    cut, tokens, _ = capsys.readouterr().err.splitlines()
    assert cut == "cut at the longest answer: --max-new-tokens 1"
    assert "of 256 visual tokens" in tokens


def test_ask_json(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", str(picture), QUESTION, "--json", "--max-tokens", "30"]) == 0
    result = json.loads(capsys.readouterr().out)
    tokens = result["visual_tokens"]
    assert tokens["of"] == 256
    assert list(tokens["stages"]) == ["visual", "text", "merged", "rest"]
    assert tokens["kept"] == sum(tokens["stages"].values()) <= 30
    assert result["timing_ms"]["first_token"] > 0
    assert result["answer"]


def test_ask_draws_and_stops(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def asked(*options: str) -> dict[str, Any]:
        drawn = ["--temperature", "5", "--top-k", "300", "--top-p", "0.99", "--seed", "1"]
        length = ["--max-new-tokens", "12", "--repetition-penalty", "1.1"]
        assert main(["ask", str(picture), QUESTION, "--json", *drawn, *length, *options]) == 0
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    first, again = asked(), asked()
    assert first["answer"] == again["answer"]
    assert first["token_ids"] == again["token_ids"]
    assert len(first["logprobs"]) == len(first["token_ids"]) > 4
    stopped = asked("--stop", "not in it", "--stop", first["answer"][3:5])
    assert stopped["finish_reason"] == "stop_string"
    assert first["answer"].startswith(stopped["answer"])
    assert len(stopped["answer"]) <= 3


def test_a_long_question_is_a_warning_not_an_error(
    picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ask", str(picture), "red " * 120, "--max-new-tokens", "1", "--json"]) == 0
    captured = capsys.readouterr()
    assert "77" in captured.err
    assert len(json.loads(captured.out)["warnings"]) == 1


@pytest.mark.parametrize("model", [DEMO, DEMO_CHECKPOINT])
def test_explain_writes_the_overlay_alone(model: str, picture: Path, tmp_path: Path) -> None:
    output = tmp_path / "explained.png"
    arguments = ["explain", str(picture), QUESTION, "--output", str(output)]
    assert main([*arguments, "--model", model]) == 0
    assert output.stat().st_size > 1000


def test_demo_shows_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--output", str(tmp_path / "demo")]) == 0
    out = capsys.readouterr().out
    assert "time to first token" in out
    assert len(list((tmp_path / "demo").glob("*.png"))) >= 3


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA", "I;16"])
def test_every_mode_of_picture_is_answered(
    mode: str, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Image.open(picture) as image:
        converted = image.convert("L").convert(mode) if mode == "I;16" else image.convert(mode)
    path = tmp_path / ("converted.tif" if mode == "CMYK" else "converted.png")
    converted.save(path)
    assert main(["ask", str(path), QUESTION, "--max-new-tokens", "1"]) == 0


def test_info_needs_no_paddle(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", DEMO]) == 0
    assert "vision.onnx" in capsys.readouterr().out
    assert main(["info", DEMO_CHECKPOINT]) == 0
    out = capsys.readouterr().out
    assert "256" in out
    assert "vision tower" in out
    assert r'chat_template: chat_template.json: "USER: <image>\n… ASSISTANT:"' in out
    assert main(["info", DEMO_CHECKPOINT, "--chat-template", "mistral_instruct"]) == 0
    assert (
        r'chat_template: mistral_instruct: "[INST] <image>\n… [/INST]"' in capsys.readouterr().out
    )
    assert main(["info", DEMO_CHECKPOINT, "--chat-template", "nothing"]) == 0
    assert 'chat_template: none: there is no chat template "nothing"' in capsys.readouterr().out
    assert main(["info", DEMO_CHECKPOINT, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parts"]["vision_tower"]["num_layers"] > 0


def test_a_checkpoint_with_a_missing_key_is_named(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(demo_folder() / "llava", model)
    shutil.copytree(demo_folder() / "clip", model / "clip")
    weights = model / "model.safetensors"
    content = weights.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    key = "language_model.model.norm.weight"
    # Renamed, not removed, so that the file itself stays whole.
    header["language_model.model.abnorm.weight"] = header.pop(key)
    text = json.dumps(header).encode()
    weights.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    assert main(["ask", str(picture), QUESTION, "--model", str(model)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "norm.weight" in line


def test_a_picture_may_come_through_a_pipe(picture: Path, tmp_path: Path) -> None:
    """It can be read only once."""
    overlay = tmp_path / "why.png"
    command = f"{sys.executable} -m paddle_recomp.commands.main"
    asked = f"{command} ask <(cat '{picture}') '{QUESTION}' --json --overlay '{overlay}'"
    piped = subprocess.run(["bash", "-c", asked], capture_output=True, check=True)
    plain = [*command.split(), "ask", str(picture), QUESTION, "--json"]
    file = subprocess.run(plain, capture_output=True, check=True)
    first, second = (json.loads(done.stdout) for done in (piped, file))
    for name in ("answer", "token_ids", "visual_tokens"):
        assert first[name] == second[name]
    assert overlay.stat().st_size > 1000
