"""The rooms of DESIGN: imports go one way, and the light path stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import paddle_recomp

ROOT = Path(paddle_recomp.__file__).parent

# A room imports only from rooms that stand above it here; single files are rooms, too.
FLOORS = (
    "errors",
    "types",
    "config",
    "json_files",
    "preprocess",
    "checkpoint",
    "bundle",
    "compression",
    "towers",
    "backends",
    "llm",
    "vlm",
    "explain",
    "commands",
    "",  # the package's face
)
HEAVY = ("paddle", "paddlenlp")
HEAVY_PLACES = (
    "compression",
    "towers",
    "backends.eager",
    "backends.paddle_inference",
    "backends.devices",
    "llm.paddle_llama",
)
"""What imports paddle; nothing else does so while it is imported itself."""


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def room(module: str) -> str:
    return module.split(".")[0]


def is_heavy(module: str) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in HEAVY_PLACES)


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


MODULES = [path for path in sorted(ROOT.rglob("*.py")) if "assets" not in path.parts]


@pytest.mark.parametrize("path", MODULES, ids=module_of)
def test_imports_go_down(path: Path) -> None:
    here = room(module_of(path))
    assert here in FLOORS, f"{here} has no place in FLOORS"
    for name in imports(path):
        there = room(name.removeprefix("paddle_recomp."))
        if name.startswith("paddle_recomp.") and there in FLOORS:
            assert FLOORS.index(there) <= FLOORS.index(here), f"{here} imports {there}"


@pytest.mark.parametrize("path", MODULES, ids=module_of)
def test_paddle_stays_in_its_rooms(path: Path) -> None:
    module = module_of(path)
    if is_heavy(module):
        return
    for name in imports(path, top_level_only=True):
        assert name.split(".")[0] not in HEAVY, f"{module} imports {name}"
        if name.startswith("paddle_recomp."):
            assert not is_heavy(name.removeprefix("paddle_recomp.")), f"{module} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=module_of)
def test_the_library_knows_nothing_of_the_tools_around_it(path: Path) -> None:
    tools = {"export", "paddle_recomp_export", "training", "benchmarks", "tests"}
    assert not {name.split(".")[0] for name in imports(path)} & tools


@pytest.mark.parametrize("path", sorted((ROOT.parent / "export").rglob("*.py")), ids=str)
def test_the_export_does_not_name_itself(path: Path) -> None:
    """It is installed under another name than its folder has."""
    own = {"export", "paddle_recomp_export"}
    assert not {name.split(".")[0] for name in imports(path)} & own


@pytest.mark.parametrize(
    "module", ["paddle_recomp", "paddle_recomp.commands.main", "paddle_recomp.vlm.loading"]
)
def test_what_takes_long_is_loaded_when_it_is_needed(module: str) -> None:
    code = f"import sys, {module}; print({{'onnxruntime', 'prompt_toolkit'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    "module",
    [
        "preprocess",
        "checkpoint",
        "bundle",
        "backends.onnx",
        "llm.generation",
        "llm.onnx_decoder",
        "vlm.answering",
        "vlm.vlm",
        "vlm.loading",
        "vlm.conversation",
        "explain",
        "commands.main",
        "commands.bench",
        "commands.chat.terminal",
    ],
)
def test_light_modules_do_not_load_paddle(module: str) -> None:
    code = (
        f"import sys, paddle_recomp.{module}; "
        "print(sorted({'paddle', 'paddlenlp', 'torch', 'sklearn', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
