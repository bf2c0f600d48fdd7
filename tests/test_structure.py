"""The rooms of DESIGN: imports go one way, and the light path stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import paddle_recomp

ROOT = Path(paddle_recomp.__file__).parent

# Higher rooms import lower ones; rooms on one line do not know each other.
LAYERS: list[set[str]] = [
    {""},  # the package's face
    {"cli"},
    {"demo", "chat", "bench"},
    {"options", "console"},
    {"explain", "reports", "loading"},
    {"runner"},
    {"conversation"},
    {"latency"},
    {"encoder"},
    {"llm", "backends.eager", "backends.onnx", "backends.paddle_inference", "backends.cached"},
    {"bundle"},
    {"backends.devices", "backends.sessions", "weights", "model", "backends.base"},
    {"clip"},
    {"methods"},
    {"ops", "checkpoint", "preprocess"},
    {"config", "types", "cache", "machine"},
    {"errors"},
]
HEAVY = ("paddle", "paddlenlp")
HEAVY_ROOMS = {
    "ops",
    "methods",
    "clip",
    "model",
    "weights",
    "backends.eager",
    "backends.paddle_inference",
    "backends.devices",
}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def room(module: str) -> str:
    """`backends` is a folder of rooms; every other folder is one."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "backends" else parts[0]


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


MODULES = [path for path in sorted(ROOT.rglob("*.py")) if "assets" not in path.parts]


def height(name: str) -> int | None:
    return next((i for i, layer in enumerate(LAYERS) if name in layer), None)


@pytest.mark.parametrize("path", MODULES, ids=module_of)
def test_imports_go_down(path: Path) -> None:
    here = room(module_of(path))
    if here == "backends":
        return
    assert height(here) is not None, f"{here} has no place in LAYERS"
    for name in imports(path):
        if not name.startswith("paddle_recomp."):
            continue
        there = room(name.removeprefix("paddle_recomp."))
        level, below = height(here), height(there)
        if there == here or below is None:
            continue
        assert level is not None
        assert below > level, f"{here} imports {there}, which is not below it"


@pytest.mark.parametrize("path", MODULES, ids=module_of)
def test_paddle_stays_in_its_rooms(path: Path) -> None:
    module = module_of(path)
    if room(module) in HEAVY_ROOMS or module == "llm.paddle_llama":
        return
    for name in imports(path, top_level_only=True):
        assert name.split(".")[0] not in HEAVY, f"{module} imports {name}"
        if name.startswith("paddle_recomp."):
            assert room(name.removeprefix("paddle_recomp.")) not in HEAVY_ROOMS


@pytest.mark.parametrize("path", MODULES, ids=module_of)
def test_the_library_knows_nothing_of_the_tools_around_it(path: Path) -> None:
    tools = {"export", "training", "benchmarks", "tests"}
    assert not {name.split(".")[0] for name in imports(path)} & tools


@pytest.mark.parametrize("module", ["paddle_recomp", "paddle_recomp.cli", "paddle_recomp.loading"])
def test_what_takes_long_is_loaded_when_it_is_needed(module: str) -> None:
    code = f"import sys, {module}; print({{'onnxruntime', 'prompt_toolkit'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    "module",
    [
        "runner",
        "encoder",
        "explain",
        "loading",
        "cli",
        "preprocess",
        "conversation",
        "bench",
        "chat.terminal",
        "cache",
        "llm.generation",
        "llm.onnx_decoder",
        "bundle",
        "backends.onnx",
    ],
)
def test_light_modules_do_not_load_paddle(module: str) -> None:
    code = (
        f"import sys, paddle_recomp.{module}; "
        "print(sorted({'paddle', 'paddlenlp', 'torch', 'sklearn', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
