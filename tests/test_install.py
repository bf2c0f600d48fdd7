"""What a user of the light path gets from `pip install .`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from paddle_recomp.bundle import open_bundle
from paddle_recomp.vlm.demo import demo_bundle_folder, demo_folder, demo_pictures

ROOT = Path(__file__).parents[1]
HEAVY = ("paddle", "paddlenlp", "torch", "transformers", "onnx", "paddle2onnx")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources alone: a `build` folder of an older version would lend its files."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("paddle_recomp", "export"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    return folder


def environment(folder: Path, *what: str) -> Path:
    """The programs of a new environment with something installed in it."""
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    tools = folder / "venv" / "bin"
    subprocess.run([tools / "pip", "install", "-q", *what], check=True)
    return tools


def importable(tools: Path, folder: Path) -> list[str]:
    """Those of HEAVY that the environment has."""
    code = f"import importlib.util as u; print(*(n for n in {HEAVY} if u.find_spec(n)))"
    done = subprocess.run(
        [tools / "python", "-c", code], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.split()


@pytest.mark.slow
def test_the_light_install_answers_without_paddle(source: Path, tmp_path: Path) -> None:
    tools = environment(tmp_path, str(source))
    assert importable(tools, tmp_path) == []

    def recomp(*arguments: str | Path) -> str:
        # From another folder, so that no checkout can stand in for what was installed.
        done = subprocess.run(
            [tools / "recomp", *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    (asked, *_), *_ = demo_pictures().values()
    answered = recomp("ask", asked.picture, asked.question, "--json")
    assert json.loads(answered)["answer"] == asked.expected
    recomp("explain", asked.picture, asked.question)
    assert (tmp_path / "explain.png").is_file()
    assert "int8" in recomp("info")
    assert "vision tower" in recomp("info", "demo-checkpoint")


@pytest.mark.slow
def test_a_wheel_with_its_extras_exports_verifies_and_answers(source: Path, tmp_path: Path) -> None:
    """From nothing to an answer, where no checkout is near."""
    constraints = ["-c", str(ROOT / "constraints.txt")]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(source)],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    tools = environment(tmp_path, f"{wheel}[paddle,export]", *constraints)
    code = "import importlib.util as u; print(u.find_spec('export'))"
    found = subprocess.check_output([tools / "python", "-c", code], cwd=tmp_path, text=True)
    assert found.strip() == "None"

    def recomp(*arguments: str | Path) -> str:
        done = subprocess.run(
            [tools / "recomp", *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    checkpoint: list[str | Path] = [
        "--model",
        demo_folder() / "llava",
        "--clip",
        demo_folder() / "clip",
    ]
    assert "int8" in recomp("export", *checkpoint, "--precision", "int8", "--out", "bundle")
    assert "comparisons passed" in recomp("verify", "bundle", *checkpoint)
    (asked, *_), *_ = demo_pictures().values()
    answered = recomp("ask", asked.picture, asked.question, "--model", "bundle", "--json")
    assert json.loads(answered)["answer"] == asked.expected


@pytest.mark.slow
def test_the_demo_is_in_the_sdist_and_in_the_wheel_made_of_it(source: Path, tmp_path: Path) -> None:
    tools = environment(tmp_path, "setuptools>=77")
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    subprocess.run([tools / "python", "-c", code], cwd=source, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    options = ["-q", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    subprocess.run([tools / "pip", "wheel", *options, archive], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(tmp_path / "unpacked")
    folders = {path.name for path in (tmp_path / "unpacked").iterdir() if path.suffix == ""}
    assert folders == {"paddle_recomp", "paddle_recomp_export"}
    files = {
        path.relative_to(source / "export").as_posix()
        for path in (source / "export").rglob("*")
        if path.is_file()
    }
    tools = tmp_path / "unpacked" / "paddle_recomp_export"
    assert {p.relative_to(tools).as_posix() for p in tools.rglob("*") if p.is_file()} == files
    assets = tmp_path / "unpacked" / "paddle_recomp" / "assets" / "demo"
    open_bundle(assets / demo_bundle_folder().name).verify()
    for path in demo_folder().rglob("*"):
        assert (assets / path.relative_to(demo_folder())).exists(), path
