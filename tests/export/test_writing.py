"""A folder that is replaced in one step: by one export or by several at once, over what a user put
there, and after a process that was killed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from export import writing
from export.build import export_bundle
from export.errors import ExportError
from export.writing import replaced_folder
from paddle_recomp.bundle import MANIFEST, SUMS, Bundle, open_bundle, write_checksums
from tests.threads import at_once

from .exports import graphs_of
from .test_export import content


def write_bundle(folder: Path, text: str) -> None:
    """Two files and their checksums, which is all that counts here."""
    folder.mkdir(exist_ok=True)
    (folder / MANIFEST).write_text(text)
    (folder / "vision.onnx").write_text(text)
    write_checksums(folder)


def replace(
    target: Path, text: str, meanwhile: Callable[[Path], object] = lambda target: None
) -> None:
    """`meanwhile` happens to the target before the export ends."""
    with replaced_folder(target) as folder:
        write_bundle(folder, text)
        meanwhile(target)


def is_whole(target: Path, *texts: str) -> bool:
    """Whether a bundle of one of these texts is all that lies in the folder."""
    found = content(target)
    one = (target / MANIFEST).read_text()
    return found.keys() == {MANIFEST, SUMS, "vision.onnx"} and (
        one in texts and found["vision.onnx"] == one.encode()
    )


@pytest.fixture(params=[True, False], ids=["renameat2", "two renames"])
def exchange(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """With the system's call for exchanging two folders, and without."""
    if not request.param:
        monkeypatch.setattr(writing, "_renameat2", lambda first, second: False)
    return bool(request.param)


def test_a_folder_is_replaced(exchange: bool, tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    for text in ("first", "second"):
        replace(target, text)
        assert is_whole(target, text)
        assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_an_export_of_one_thread_leaves_that_of_another_alone(
    paddle_bundle: Bundle, tmp_path: Path
) -> None:
    """Two targets whose names begin alike, in one parent: threads have one process number."""
    names = ["demo", "demo.partial-1"]
    with graphs_of(paddle_bundle):
        made = at_once(2, lambda i: export_bundle("demo", tmp_path / names[i], paddle=True))
    for bundle in made:
        bundle.verify()
        assert content(bundle.folder) == content(made[0].folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_of_two_exports_at_one_target_the_last_wins_whole(exchange: bool, tmp_path: Path) -> None:
    target, texts = tmp_path / "bundle", [str(number) for number in range(4)]
    for _ in range(3):
        at_once(len(texts), lambda i: replace(target, texts[i]))
        assert is_whole(target, *texts)
        assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_the_export_that_ends_last_wins(tmp_path: Path) -> None:
    target, begun, go_on = tmp_path / "bundle", threading.Event(), threading.Event()

    def slow() -> None:
        with replaced_folder(target) as folder:
            write_bundle(folder, "begun first")
            begun.set()
            go_on.wait(20)

    thread = threading.Thread(target=slow)
    thread.start()
    assert begun.wait(20)
    replace(target, "begun second")
    assert is_whole(target, "begun second")
    go_on.set()
    thread.join()
    assert is_whole(target, "begun first")


SAME_NUMBER = """
import os, sys
from pathlib import Path
os.getpid = lambda: 7
from export.writing import replaced_folder
with replaced_folder(Path(sys.argv[1])) as folder:
    (folder / "recomp.json").write_text(sys.argv[2])
    print("begun", flush=True)
    sys.stdin.readline()
    assert (folder / "recomp.json").read_text() == sys.argv[2]
"""


def begin(target: Path, text: str) -> subprocess.Popen[str]:
    """A process with the number 7, as containers have it, in the middle of its export."""
    command = [sys.executable, "-c", SAME_NUMBER, str(target), text]
    root, pipe = Path(__file__).parents[2], subprocess.PIPE
    process = subprocess.Popen(command, cwd=root, stdin=pipe, stdout=pipe, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def test_processes_of_one_number_leave_each_other_alone(tmp_path: Path) -> None:
    processes = [begin(tmp_path / "bundle", text) for text in ("first", "second")]
    for process, text in zip(processes, ("first", "second"), strict=True):
        process.communicate("\n", timeout=60)
        assert process.returncode == 0
        assert content(tmp_path / "bundle") == {MANIFEST: text.encode()}
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_the_folder_of_a_living_process_stays_and_that_of_a_dead_one_goes(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    living, dead = begin(target, "living"), begin(target, "dead")
    dead.kill()
    dead.communicate()
    assert len(list(tmp_path.iterdir())) == 2
    replace(target, "next")
    left = [path for path in tmp_path.iterdir() if path != target]
    assert [path.read_text() for path in left[0].glob(f"new/{MANIFEST}")] == ["living"]
    assert len(left) == 1
    living.communicate("\n", timeout=60)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_what_is_not_proven_dead_and_ours_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder without a lock; a file of such a name; any folder, where files cannot be locked."""
    (tmp_path / ".bundle.partial-mine").mkdir()
    (tmp_path / ".bundle.partial-mine" / "letter.txt").write_text("…")
    (tmp_path / ".bundle.partial-note").write_text("…")
    (tmp_path / ".bundle.partial-x").mkdir()
    (tmp_path / ".bundle.partial-x" / "lock").write_text("")

    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    before = {path.name for path in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr("fcntl.flock", no_locks)
        replace(tmp_path / "bundle", "first")
    assert {path.name for path in tmp_path.iterdir()} == before | {"bundle"}
    replace(tmp_path / "bundle", "second")
    left = before - {".bundle.partial-x"} | {"bundle"}
    assert {path.name for path in tmp_path.iterdir()} == left


def test_a_bundle_that_was_moved_away_by_a_dead_process_comes_back(tmp_path: Path) -> None:
    """Without the system's call there are two renames; the process died between them."""
    own = tmp_path / ".bundle.partial-x"
    own.mkdir()
    (own / "lock").write_text("")
    write_bundle(own / "old", "old")
    with pytest.raises(KeyError), replaced_folder(tmp_path / "bundle"):
        raise KeyError
    assert is_whole(tmp_path / "bundle", "old")


def add_file(target: Path) -> None:
    (target / "notes").mkdir()
    (target / "notes" / "mine.txt").write_text("mine")


def add_link(target: Path) -> None:
    (target / "mine.txt").symlink_to("elsewhere")


@pytest.mark.parametrize("add", [add_file, add_link])
def test_files_of_a_user_are_not_lost(add: Callable[[Path], None], tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    replace(target, "first")
    add(target)
    with pytest.raises(ExportError, match=r"not the bundle's: .*mine\.txt; move") as error:
        export_bundle("demo", target)
    assert "\n" not in str(error.value)
    assert (target / MANIFEST).read_text() == "first"
    assert any(os.path.lexists(target / name) for name in ("mine.txt", "notes/mine.txt"))
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_bundle_without_readable_checksums_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    replace(target, "first")
    (target / SUMS).write_text("nonsense")
    with pytest.raises(ExportError, match=r"not the bundle's: vision\.onnx"):
        replace(target, "second")


def appear_as_a_folder(target: Path) -> None:
    target.mkdir()
    (target / "letter.txt").write_text("…")


def appear_as_a_file(target: Path) -> None:
    target.write_text("…")


def appear_as_a_link(target: Path) -> None:
    write_bundle(target.with_name("other"), "other")
    target.symlink_to("other")


def appear_in_a_bundle(target: Path) -> None:
    write_bundle(target, "other")
    (target / "letter.txt").write_text("…")


@pytest.mark.parametrize(
    "appear", [appear_as_a_folder, appear_as_a_file, appear_as_a_link, appear_in_a_bundle]
)
def test_what_appears_during_an_export_is_not_lost(
    appear: Callable[[Path], None], exchange: bool, tmp_path: Path
) -> None:
    target, expected = tmp_path / "bundle", tmp_path / "expected" / "bundle"
    expected.parent.mkdir()
    appear(expected)
    with pytest.raises(ExportError, match=r"bundle (exists and is not a bundle|holds files)"):
        replace(target, "new", appear)
    for path in (target, expected):
        assert path.is_symlink() == expected.is_symlink()
        assert path.is_file() == expected.is_file()
    assert content(target) == content(expected)
    assert not list(tmp_path.glob(".bundle.*"))


def test_what_appears_in_the_last_moment_goes_back(
    exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last look and the renaming."""
    target, original = tmp_path / "bundle", writing._check_replaceable
    replace(target, "first")

    def late(folder: Path, shown: Path) -> None:
        original(folder, shown)
        if folder == target and (tmp_path / "armed").exists():
            (target / "letter.txt").write_text("…")

    monkeypatch.setattr(writing, "_check_replaceable", late)
    with pytest.raises(ExportError, match=r"not the bundle's: letter\.txt"):
        replace(target, "second", lambda target: (tmp_path / "armed").write_text(""))
    assert (target / "letter.txt").read_text() == "…"
    assert (target / MANIFEST).read_text() == "first"


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_is_followed(exists: bool, tmp_path: Path) -> None:
    """Also one that leads to nothing yet."""
    (tmp_path / "disk").mkdir()
    link = tmp_path / "bundle"
    link.symlink_to(Path("disk") / "real")
    if exists:
        replace(link, "first")
    replace(link, "second")
    assert link.is_symlink()
    assert is_whole(tmp_path / "disk" / "real", "second")
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["real"]


def test_the_folder_that_one_is_in_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shell would stand in a folder that is gone."""
    replace(tmp_path / "bundle", "first")
    monkeypatch.chdir(tmp_path / "bundle")
    with pytest.raises(ExportError, match="is the folder that you are in"):
        export_bundle("demo", Path("."))
    assert (tmp_path / "bundle" / MANIFEST).read_text() == "first"


def test_the_demo_replaces_its_own_bundle(paddle_bundle: Bundle, tmp_path: Path) -> None:
    """Every file that an export writes is listed in its checksums."""
    with graphs_of(paddle_bundle):
        for _ in range(2):
            export_bundle("demo", tmp_path / "bundle", paddle=True)
    open_bundle(tmp_path / "bundle").verify()
