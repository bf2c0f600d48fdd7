"""The rooms of DESIGN: imports go one way, and the light path stays light."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import paddle_recomp
from paddle_recomp.vlm.demo import demo_pictures

ROOT = Path(paddle_recomp.__file__).parent

# A room imports only from rooms that stand above it here; single files are rooms, too.
FLOORS = (
    "errors",
    "types",
    "config",
    "limits",
    "files",
    "json_files",
    "protobuf",
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


@pytest.mark.parametrize("path", MODULES, ids=module_of)
def test_paths_of_people_are_looked_at_by_files(path: Path) -> None:
    """`Path.is_file` and its kin fail for a name of 300 characters; those of `files` do not."""
    asked = {"is_file", "is_dir", "exists"}
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    found = {call.func.attr for call in calls if isinstance(call.func, ast.Attribute)}
    assert path.name == "files.py" or not found & asked


WAY = {
    "commands/ask.py",
    "commands/options.py",
    "vlm/loading.py",
    "bundle/opening.py",
    "vlm/vlm.py",
    "vlm/front_end.py",
    "preprocess/images.py",
    "preprocess/image_processor.py",
    "preprocess/tokenizers.py",
    "preprocess/chat_template.py",
    "backends/onnx.py",
    "vlm/answering.py",
    "llm/generation.py",
    "llm/onnx_decoder.py",
    "commands/reports.py",
}
"""Whoever follows a picture and a question from `recomp ask` to the answer reads these."""
BESIDE = {
    "types.py": "plain data",
    "config.py": "plain data",
    "commands/main.py": "the names of the commands",
    "commands/console.py": "errors, warnings and progress on a terminal",
    "commands/printing.py": "writes text without changing it",
    "json_files.py": "reads JSON",
    "files.py": "opens files",
    "limits.py": "the bounds on what a file may ask for",
    "preprocess/rust_errors.py": "errors of the library behind the tokenizers",
    "preprocess/picture_files.py": "the bounds on a picture's file",
    "preprocess/prompt_ids.py": "control tokens that were said; other prompts are encoded whole",
    "bundle/bundle.py": "plain data; checksums are compared through it",
    "bundle/onnx_files.py": "names the files that a graph reads besides itself",
    "protobuf.py": "the wire format of that graph",
    "bundle/checksums.py": "compares files with SHA256SUMS",
    "bundle/schema.py": "compares recomp.json with its schema",
    "vlm/demo.py": "the folders of the embedded model",
    "vlm/fingerprints.py": "the name of the file with the latency profile",
    "vlm/machine.py": "as vlm/fingerprints.py",
    "vlm/runtimes.py": "names the runtimes, for reports and fingerprints",
    "vlm/latency.py": "budgets that are a time; others pass through unchanged",
    "backends/base.py": "checks for NaN",
    "backends/sessions.py": "the options of ONNX Runtime",
    "llm/base.py": "checks of lengths and states",
    "llm/sampling.py": "from logits to a token: called once, in Generation",
}
"""Files that run, too, with the reason why the way can be understood without them."""
TRACE = """
import json, sys
from pathlib import Path
from paddle_recomp.commands.main import main
import paddle_recomp
root, files = str(Path(paddle_recomp.__file__).parent), set()

def imported(frame):
    while frame is not None and not (
        frame.f_code.co_name == "<module>" and frame.f_code.co_filename.startswith(root)
    ):
        frame = frame.f_back
    return frame is not None

def note(frame, event, argument):
    file = frame.f_code.co_filename
    if event == "call" and file.startswith(root) and file not in files and not imported(frame):
        files.add(file)

sys.setprofile(note)
code = main(["ask", sys.argv[1], sys.argv[2]])
sys.setprofile(None)
print(json.dumps([Path(file).relative_to(root).as_posix() for file in files]))
sys.exit(code)
"""


def test_a_question_can_be_followed_through_few_files() -> None:
    """The files with functions that run for one question to the embedded bundle."""
    picture = str(next(iter(demo_pictures())))
    done = subprocess.run(
        [sys.executable, "-c", TRACE, picture, "what digit is red?"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = set(json.loads(done.stdout.splitlines()[-1]))
    assert found <= WAY | set(BESIDE), "a file on the way, or beside it, that no one has named"
    assert found >= WAY, "no longer on the way"
    assert found >= set(BESIDE), "no longer beside the way"
    assert len(WAY) <= 15


@pytest.mark.parametrize(
    "module",
    [
        "preprocess",
        "checkpoint",
        "bundle",
        "compression.registry",
        "compression.config",
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
