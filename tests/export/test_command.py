"""`recomp export` and `recomp verify`: found by entry points, loaded when they are used."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import export
import paddle_recomp
from paddle_recomp.bundle import Bundle, write_checksums
from paddle_recomp.commands import export_tools
from paddle_recomp.commands.main import main
from paddle_recomp.vlm.demo import demo_bundle_folder
from tests.hiding import without

ROOT = Path(__file__).parents[2]
NAME = "paddle_recomp_export"


def entry_points() -> list[EntryPoint]:
    """What pyproject.toml says of an installation."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (section,) = re.findall(r'\[project\.entry-points\."(.*?)"\]\n((?:.+\n)+)', text)
    lines = re.findall(r'(\w+) = "(.*)"', section[1])
    return [EntryPoint(name, value, section[0]) for name, value in lines]


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder with what an installation would put there, the tools by their own name."""
    folder = tmp_path / "installed"
    about = folder / "paddle_recomp-0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: paddle-recomp\nVersion: 0\n")
    lines = [f"{point.name} = {point.value}" for point in entry_points()]
    (about / "entry_points.txt").write_text("\n".join([f"[{export_tools.GROUP}]", *lines, ""]))
    for name, package in ((NAME, export), ("paddle_recomp", paddle_recomp)):
        assert package.__file__
        (folder / name).symlink_to(Path(package.__file__).parent)
    return folder


def recomp(
    installed: Path, *arguments: str, hidden: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Runs the command in a process that knows nothing of the checkout."""
    code = f"{without('export', *hidden)}\nsys.path.insert(0, {str(installed)!r})\n"
    code += "from paddle_recomp.commands.main import main\nsys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=installed.parent,
    )


def test_every_entry_point_leads_to_something() -> None:
    assert {point.name for point in entry_points()} == {"export", "verify"}
    for point in entry_points():
        assert point.group == export_tools.GROUP
        assert point.module.split(".")[0] == NAME
        module = import_module(point.module.replace(NAME, "export"))
        assert callable(getattr(module, point.attr))


def test_it_is_found_by_its_entry_point(installed: Path) -> None:
    shown = recomp(installed, "export", "--help")
    assert shown.returncode == 0, shown.stderr
    assert "Usage: recomp export" in shown.stdout
    assert "--target-cosine" in shown.stdout
    refused = recomp(installed, "export", "--out", "x", "--precision", "int3")
    assert (refused.returncode, refused.stdout) == (2, "")
    (line,) = refused.stderr.splitlines()
    assert line.startswith("recomp export: unknown precision 'int3'")


def test_a_bundle_is_compared_with_its_checkpoint(installed: Path, demo_bundle: Bundle) -> None:
    done = recomp(installed, "verify", str(demo_bundle.folder), "--model", "demo", "--quiet")
    assert done.returncode == 0, done.stderr
    assert re.search(r"(\d+) of \1 comparisons passed", done.stdout)


def test_the_help_of_all_commands_loads_no_tools() -> None:
    code = (
        "import sys; from paddle_recomp.commands.main import main; main(['--help'])\n"
        "print(sorted({'export', 'paddle_recomp_export', 'onnx', 'paddle'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *shown, loaded = done.stdout.splitlines()
    assert loaded == "[]"
    for name in ("export", "verify"):
        assert any(line.startswith(f"  {name} ") for line in shown)


@pytest.mark.parametrize(
    ("missing", "arguments"),
    [
        ("paddle", ["export", "--out", "x"]),
        ("paddle2onnx", ["export", "--out", "x"]),
        ("onnx", ["export", "--out", "x"]),
        ("paddle", ["verify", "x", "--model", "demo"]),
        ("onnx", ["verify", "x", "--model", "demo"]),
    ],
)
def test_without_the_extras_it_is_one_line_that_names_them(
    missing: str, arguments: list[str], installed: Path
) -> None:
    done = recomp(installed, *arguments, hidden=(missing,))
    assert done.returncode == 2, done.stdout
    (line,) = done.stderr.splitlines()
    assert "pip install 'paddle-recomp[paddle,export]'" in line
    assert missing in line


def test_without_the_tools_it_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export_tools, "entry_points", lambda **about: ())
    for arguments in (["export", "--out", "x"], ["verify", "x", "--model", "demo"]):
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "pip install 'paddle-recomp[paddle,export]'" in line


def test_golden_cases_that_cannot_be_replayed_are_found_before_the_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(demo_bundle_folder(), tmp_path / "bundle"))
    (folder / "golden" / "cases.json").write_text('{"cases": []}')
    write_checksums(folder)
    assert main(["verify", str(folder), "--model", "demo", "--quiet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cases.json" in line
