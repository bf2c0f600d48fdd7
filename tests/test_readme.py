"""The README as a new user reads it: the commands that it tells you to type are typed here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from paddle_recomp.vlm.demo import demo_bundle_folder
from tests.test_structure import FLOORS, WAY

ROOT = Path(__file__).parents[1]
TOOLS = Path(sys.executable).parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Documents each of whose python blocks can be pasted alone.
GUIDES = ("README.md", "docs/budgets.md", "docs/conversations.md", "docs/generation.md")
MARK = "<!-- not run:"
"""In front of a block that needs a checkpoint which only its reader has."""
ELSEWHERE = {
    "pip install": "downloads packages; tests/test_install.py installs the wheel",
    "make demo": "creates an environment; its three commands are tested one by one",
    "make test": "runs this test",
    "recomp export": "takes a minute; tests/export/ runs it. A copy of the packaged bundle follows",
    "recomp verify build/bundle --model": "takes a minute; tests/export/test_verify.py runs it",
}
"""Commands that are not run here, by how they begin, and why not."""


class Block(NamedTuple):
    """A fenced block of a document."""

    language: str
    text: str
    before: str
    """The last line of text in front of it."""


def blocks(document: str) -> list[Block]:
    found, before = [], ""
    for text, language, code in re.findall(
        r"(.*?)^```(\w*)\n(.*?)^```", document, re.DOTALL | re.MULTILINE
    ):
        before = text.strip().rsplit("\n", 1)[-1]
        found.append(Block(language, code, before))
    return found


def commands(block: Block) -> list[str]:
    """One for each line, or for several that a `|` or a backslash joins; no comments."""
    joined = re.sub(r"(\\|(?<=\|))\n\s*", " ", re.sub(r"\s+# .*", "", block.text))
    return [line for line in joined.splitlines() if line.strip()]


RUN = [
    command
    for block in blocks(README)
    if block.language == "bash" and not block.before.startswith(MARK)
    for command in commands(block)
]
PRINTED = {
    commands(block)[-1]: printed.text
    for block, printed in pairwise(blocks(README))
    if printed.language == "text"
}
"""What the last command of a block prints, where a block of text follows."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Looks like a checkout that was exported, so that nothing is written into the real one."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "paddle_recomp").symlink_to(ROOT / "paddle_recomp")
    shutil.copytree(demo_bundle_folder(), folder / "build" / "bundle")
    return folder


def run(command: str, folder: Path) -> str:
    """What a command of this environment prints. A cache of its own keeps the user's clean."""
    environment = {
        **os.environ,
        "PATH": f"{TOOLS}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "200",
    }
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,  # As on a terminal, which shows both.
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("command", [one for one in RUN if not one.startswith(tuple(ELSEWHERE))])
def test_a_command_of_the_readme_runs(command: str, folder: Path) -> None:
    found, expected = run(command, folder), PRINTED.get(command)
    if expected is not None:
        answer, *numbers = found.splitlines()
        assert answer == expected.splitlines()[0]
        # Times vary; which patches are kept may vary with the processor, in INT8.
        shown = re.sub(r"[\d.]+", "N", expected).splitlines()[1:]
        assert [re.sub(r"[\d.]+", "N", line) for line in numbers] == shown


def test_every_exemption_is_needed() -> None:
    for beginning in ELSEWHERE:
        assert any(command.startswith(beginning) for command in RUN), beginning


def test_the_first_command_is_followed_by_what_it_prints() -> None:
    first = next(command for command in RUN if command.startswith("recomp"))
    assert first.startswith("recomp ask")
    assert first in PRINTED


@pytest.mark.parametrize("name", GUIDES)
def test_python_blocks_run_as_pasted(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In this process, since most of a new one's time would be spent on imports."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pasted = [
        block.text
        for block in blocks((ROOT / name).read_text(encoding="utf-8"))
        if block.language == "python"
    ]
    assert pasted
    for code in pasted:
        exec(compile(code, name, "exec"), {})


def test_the_map_has_every_room() -> None:
    (drawn,) = [block.text for block in blocks(README) if "paddle_recomp/\n" in block.text]
    rooms = [path for line in drawn.splitlines() for path in line[:33].split()]
    inside = [path for path in rooms if (ROOT / "paddle_recomp" / path).exists()]
    floors = [path.rstrip("/") for path in inside if path.rstrip("/") in FLOORS and "/" in path]
    assert floors == sorted(floors, key=FLOORS.index)
    there = {
        path.name + "/" * path.is_dir()
        for path in (ROOT / "paddle_recomp").iterdir()
        if not path.name.startswith("__")
    }
    assert set(inside) == there
    for path in set(rooms) - set(inside):
        assert (ROOT / path).is_dir(), path


def test_the_map_names_the_way_of_a_question() -> None:
    """The structure's tests trace it."""
    named = re.findall(r"`([a-z_]+/[a-z_]+\.py)`", README.partition("## Find your way")[2])
    assert sorted(named) == sorted(WAY)
