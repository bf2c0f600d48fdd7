"""The folder of a cache: shared, closed, on a disk that is only read, gone; and files in it that
are damaged, forged, or not the cache's."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import subprocess
import sys
import tempfile
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from paddle_recomp.errors import RecompWarning
from paddle_recomp.vlm import feature_cache
from paddle_recomp.vlm.cached_backend import CachedBackend
from paddle_recomp.vlm.demo import demo_pictures
from paddle_recomp.vlm.feature_cache import MAGIC, SUFFIX, Arrays, FeatureCache
from paddle_recomp.vlm.loading import find, load_front_end

SHAPES = {"features": (1, 6, 4), "visual_score": (1, 6)}


def entry(number: float) -> dict[str, np.ndarray]:
    return {name: np.full(shape, number, np.float32) for name, shape in SHAPES.items()}


def find_entry(folder: Path, key: str = "a") -> Arrays | None:
    """What a new process would find, and say nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return FeatureCache(folder=folder).get(key, SHAPES)


@contextmanager
def heard() -> Iterator[list[str]]:
    """The warnings, when they have been given."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield said
    said += [str(one.message) for one in caught]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cache with one entry."""
    FeatureCache(folder=tmp_path / "cache").put("a", entry(1))
    return tmp_path / "cache"


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refuse(patch: pytest.MonkeyPatch, error: type[OSError], *names: str) -> None:
    """Lets the system refuse these calls, as it does for others' files and for discs that are only
    read."""

    def refused(path: object, *_: object, **__: object) -> None:
        raise error(13, "refused", str(path))

    real = os.open

    def opened(path: str, flags: int, *mode: int) -> int:
        if ("write" in names and flags & os.O_CREAT) or (
            "read" in names and not flags & os.O_CREAT
        ):
            refused(path)
        return real(path, flags, *mode)

    patch.setattr(os, "open", opened)
    for name in {*names} - {"read", "write"}:
        patch.setattr(os, name, refused)


def test_a_folder_that_is_only_read_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content_of(folder)
    refuse(monkeypatch, PermissionError, "write", "utime", "replace", "unlink")
    found = find_entry(folder)
    assert found is not None
    assert found["features"].max() == 1
    cache = FeatureCache(folder=folder)
    with heard() as said:
        for number, key in enumerate("abcdef"):
            cache.put(key, entry(number))
            assert cache.get(key, SHAPES) is not None
    assert said == [f"{folder} cannot be written: refused"]
    monkeypatch.undo()
    assert content_of(folder) == before


def test_a_file_that_may_not_be_read_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content_of(folder)
    refuse(monkeypatch, PermissionError, "read")
    cache = FeatureCache(folder=folder)
    with heard() as said:
        for key in "aaba":
            assert cache.get(key, SHAPES) is None
        cache.put("a", entry(2))
        assert cache.get("a", SHAPES) is not None, "in memory"
    assert said == [f"{folder / f'a{SUFFIX}'} cannot be read: refused"]
    monkeypatch.undo()
    assert content_of(folder) == before


@pytest.mark.parametrize(
    "closed", ["a folder", "a pipe", "a link to nothing", "a link in a circle"]
)
def test_what_is_no_file_stays(closed: str, folder: Path) -> None:
    """And it does not block."""
    path = folder / f"a{SUFFIX}"
    path.unlink()
    if closed == "a folder":
        path.mkdir()
    elif closed == "a pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("nowhere" if closed == "a link to nothing" else path)
    before = os.lstat(path)
    cache = FeatureCache(folder=folder)
    with heard() as said:
        for _ in range(2):
            assert cache.get("a", SHAPES) is None
        cache.put("a", entry(2))
    assert len(said) == (closed != "a link to nothing")
    assert os.lstat(path) == before
    assert [one.name for one in folder.iterdir()] == [path.name]
    assert cache.get("a", SHAPES) is not None


AS_ANOTHER = """
import os, sys, warnings
from pathlib import Path
import numpy as np
from paddle_recomp.errors import RecompWarning
from paddle_recomp.vlm.feature_cache import FeatureCache
shapes = {{"features": (1, 6, 4), "visual_score": (1, 6)}}
def entry(number):
    return {{name: np.full(shape, number, np.float32) for name, shape in shapes.items()}}
folder = Path(sys.argv[1])
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
caught = []
warnings.showwarning = lambda message, *rest: caught.append(str(message))
warnings.simplefilter("always")
cache = FeatureCache(folder=folder, max_disk_bytes=int(sys.argv[2]))
{do}
for one in caught:
    print(one)
"""


def as_another(folder: Path, do: str, max_disk_bytes: int = 2**20) -> list[str]:
    """Does it in a process of another user, where the tests are run by root; else in one of the
    same user. Its warnings and what it printed."""
    code = AS_ANOTHER.format(do=do)
    command = [sys.executable, "-c", code, str(folder), str(max_disk_bytes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A cache with one entry, in a place that every user reaches."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        FeatureCache(folder=Path(place) / "cache").put("a", entry(1))
        yield Path(place) / "cache"
        os.chmod(Path(place) / "cache", 0o755)


READ = 'found = cache.get("a", shapes); print(None if found is None else found["features"].max())'
WRITE = 'cache.put("b", entry(2)); cache.put("c", entry(3)); cache.get("b", shapes)["features"]'


def test_another_user_reads_and_writes_what_all_may(open_folder: Path) -> None:
    open_folder.chmod(0o777)
    assert as_another(open_folder, f"{READ}; {WRITE}") == ["1.0"]
    assert {path.name for path in open_folder.iterdir()} == {f"{key}{SUFFIX}" for key in "abc"}
    assert find_entry(open_folder, "b") is not None


@pytest.mark.parametrize("mode", [0o555, 0o755])
def test_another_users_folder_is_only_read(mode: int, open_folder: Path) -> None:
    if os.getuid() != 0:
        mode = 0o555  # The same user may write in the other one.
    open_folder.chmod(mode)
    before = content_of(open_folder)
    first, *said = as_another(open_folder, f"{READ}; {WRITE}")
    assert first == "1.0"
    assert said == [f"{open_folder} cannot be written: Permission denied"]
    assert content_of(open_folder) == before


def test_a_closed_file_of_another_user_stays(open_folder: Path) -> None:
    open_folder.chmod(0o777)
    path = open_folder / f"a{SUFFIX}"
    path.chmod(0)
    do = f'{READ}; cache.put("a", entry(5)); cache.put("b", entry(2)); {READ}'
    assert as_another(open_folder, do) == [
        "None",
        "5.0",
        f"{path} cannot be read: Permission denied",
    ]
    path.chmod(0o644)
    found = find_entry(open_folder)
    assert found is not None
    assert found["features"].max() == 1


def test_in_a_sticky_folder_everyone_keeps_their_own(open_folder: Path) -> None:
    """A damaged file of another user cannot be replaced there, and an old one not removed."""
    open_folder.chmod(0o1777)
    path = open_folder / f"a{SUFFIX}"
    path.write_bytes(bytes(len(path.read_bytes())))
    path.chmod(0o644)
    first, *said = as_another(open_folder, f'{READ}; cache.put("a", entry(5)); {READ}; {WRITE}')
    assert (first, said[0]) == ("None", "5.0")
    assert "is not used: it is not a file of this cache" in said[1]
    if os.getuid() == 0:
        assert said[2:] == [f"{open_folder} cannot be written: Operation not permitted"]
        assert path.read_bytes() == bytes(path.stat().st_size)
    assert {one.name for one in open_folder.iterdir()} == {f"{key}{SUFFIX}" for key in "abc"}
    size = (open_folder / f"b{SUFFIX}").stat().st_size
    path.unlink()
    FeatureCache(folder=open_folder).put("a", entry(1))
    os.utime(path, (1, 1))
    assert as_another(open_folder, 'cache.put("d", entry(4))', max_disk_bytes=2 * size) == []
    left = "ad" if os.getuid() == 0 else "cd"
    assert {one.name for one in open_folder.iterdir()} == {f"{key}{SUFFIX}" for key in left}


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_the_umask_decides_who_reads_a_file(mask: int, mode: int, tmp_path: Path) -> None:
    code = "import os; os.umask({mask}); cache.put('a', entry(1))"
    as_other = AS_ANOTHER.replace("if os.getuid() == 0:", "if False:")
    command = [sys.executable, "-c", as_other.format(do=code.format(mask=mask))]
    subprocess.run([*command, str(tmp_path), "99999"], check=True)
    (path,) = tmp_path.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_folder_that_vanishes(folder: Path) -> None:
    cache = FeatureCache(folder=folder)
    (folder / f"a{SUFFIX}").unlink()
    folder.rmdir()
    with heard() as said:
        for key in "abc":
            assert cache.get(key, SHAPES) is None
            cache.put(key, entry(1))
    assert said == [f"{folder} cannot be written: No such file or directory"]
    folder.write_text("no folder")
    assert cache.get("d", SHAPES) is None
    cache.put("d", entry(1))
    folder.unlink()
    folder.mkdir()
    cache.put("e", entry(1))
    assert find_entry(folder, "e") is not None, "it is there again"


def test_a_folder_that_vanishes_while_a_file_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, real = FeatureCache(folder=folder), os.replace

    def replace(source: Path, target: Path) -> None:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RecompWarning)
        cache.put("b", entry(1))
    assert cache.get("b", SHAPES) is not None


def test_two_users_write_one_key_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only owners replace their files, the slower one gives way, and says nothing."""
    cache = FeatureCache(folder=folder)

    def replace(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes())
        raise PermissionError(1, "not yours")

    monkeypatch.setattr(os, "replace", replace)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.put("b", entry(2))
    monkeypatch.undo()
    found = find_entry(folder, "b")
    assert found is not None
    assert found["features"].max() == 2
    assert len(list(folder.iterdir())) == 2


def test_several_processes_share_a_folder(tmp_path: Path) -> None:
    do = """
for number in np.random.default_rng(os.getpid()).integers(0, 9, size=150):
    found = cache.get(f"k{number}", shapes)
    if found is None:
        cache.put(f"k{number}", entry(number))
    else:
        assert (found["features"] == number).all()
    cache._keep(f"k{number}", {})
"""
    code = AS_ANOTHER.format(do=do).replace("if os.getuid() == 0:", "if False:")
    size = 4 * 300
    command = [sys.executable, "-c", code, str(tmp_path), str(size)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [one.communicate()[0] for one in running]
    assert [one.returncode for one in running] == [0, 0, 0]
    assert said == ["", "", ""], "no warning"
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= size
    assert all(path.name.startswith("k") for path in tmp_path.iterdir())


def test_what_is_not_the_caches_is_not_removed(tmp_path: Path) -> None:
    foreign = {
        f"holidays{SUFFIX}": b"mine" * 999,
        f"my.notes{SUFFIX}": b"mine" * 999,
        "letter.txt": b"mine" * 999,
        f".hidden{SUFFIX}": b"mine" * 999,
    }
    for name, content in foreign.items():
        (tmp_path / name).write_bytes(content)
        os.utime(tmp_path / name, (1, 1))
    (tmp_path / f"link{SUFFIX}").symlink_to("letter.txt")
    (tmp_path / f"below{SUFFIX}").mkdir()
    cache = FeatureCache(folder=tmp_path, max_disk_bytes=300)
    for number in range(9):
        cache.put(f"k{number}", entry(number))
    assert {name: (tmp_path / name).read_bytes() for name in foreign} == foreign
    assert (tmp_path / f"link{SUFFIX}").is_symlink()
    assert (tmp_path / f"below{SUFFIX}").is_dir()
    assert len(list(tmp_path.glob("k*"))) == 2


# What somebody could write who knows the format.


def forged(arrays: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]]) -> bytes:
    """The file of a key with these arrays, with the digest of these names and shapes."""
    kinds = {name: "<f2" if name in feature_cache.HALVED else "<f4" for name in arrays}
    numbers = b"".join(arrays[name].astype(kinds[name]).tobytes() for name in sorted(arrays))
    about = repr(("a", sorted(shapes.items()))).encode()
    return MAGIC + hashlib.sha256(about + numbers).digest() + numbers


def zipped(name: str, size: int) -> bytes:
    """A file of an older version: numpy's archive, here of many zeros in few bytes."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open(name, "w") as one,
    ):
        np.lib.format.write_array_header_1_0(  # type: ignore[no-untyped-call]
            one, {"descr": "<f4", "fortran_order": False, "shape": (size,)}
        )
        for _ in range(size // 2**18):
            one.write(bytes(2**20))
    content = file.getvalue()
    return hashlib.sha256(b"a" + content).digest() + content


def without(name: str) -> dict[str, np.ndarray]:
    return {other: value for other, value in entry(1).items() if other != name}


FORGERIES: dict[str, Callable[[], bytes]] = {
    "NaN": lambda: forged(entry(np.nan), SHAPES),
    "infinity": lambda: forged(entry(np.inf), SHAPES),
    "other names": lambda: forged(
        {"features": entry(1)["features"], "keys": entry(1)["visual_score"]},
        {"features": (1, 6, 4), "keys": (1, 6)},
    ),
    "other shapes": lambda: forged(
        {"features": np.ones((1, 4, 6), np.float32), **without("features")},
        {**SHAPES, "features": (1, 4, 6)},
    ),
    "fewer arrays": lambda: forged(without("features"), {"visual_score": (1, 6)}),
    "a digest of other shapes": lambda: forged(entry(1), {**SHAPES, "features": (1, 4, 6)}),
    "a zip bomb": lambda: zipped("features.npy", 2**26),
    "a pickle": lambda: b"cos\nsystem\n(S'false'\ntR.",
    "a sparse gigabyte": lambda: b"",
}


@pytest.mark.parametrize("what", FORGERIES)
def test_other_contents_are_written_again(what: str, folder: Path) -> None:
    """And nothing is unpacked, or read beyond the size that it must have."""
    path = folder / f"a{SUFFIX}"
    path.write_bytes(FORGERIES[what]())
    if what == "a sparse gigabyte":
        os.truncate(path, 2**30)
    cache = FeatureCache(folder=folder, max_disk_bytes=2**31)
    tracemalloc.start()
    with pytest.warns(RecompWarning, match=rf"a{SUFFIX} is not used") as caught:
        assert cache.get("a", SHAPES) is None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(caught) == 1
    assert peak < 2**20
    cache.put("a", entry(3))
    found = find_entry(folder)
    assert found is not None
    assert found["features"].max() == 3


def test_the_same_numbers_in_other_shapes_are_another_content(folder: Path) -> None:
    for shapes in (
        {"features": (1, 4, 6), "visual_score": (1, 6)},
        {"keys": (1, 6, 4), "visual_score": (1, 6)},
    ):
        with pytest.warns(RecompWarning, match="its checksum does not fit"):
            assert FeatureCache(folder=folder).get("a", shapes) is None
    assert find_entry(folder) is not None


def test_a_forged_file_is_no_error_of_a_model(tmp_path: Path) -> None:
    """The tower runs again, whatever lies in the folder."""
    picture, model = next(iter(demo_pictures())), find("demo")
    first = load_front_end(model, cache=FeatureCache(folder=tmp_path))
    assert isinstance(first.backend, CachedBackend)
    (expected,) = first.see([picture])
    (path,) = tmp_path.iterdir()
    shapes = {name: value.shape for name, value in expected.features.items()}
    for width in (7, 128):
        arrays = {name: np.full(shape, np.nan) for name, shape in shapes.items()}
        arrays["features"] = np.zeros((1, 256, width))
        about = repr((path.stem, sorted({n: a.shape for n, a in arrays.items()}.items()))).encode()
        numbers = b"".join(
            arrays[name].astype("<f2" if name in feature_cache.HALVED else "<f4").tobytes()
            for name in sorted(arrays)
        )
        path.write_bytes(MAGIC + hashlib.sha256(about + numbers).digest() + numbers)
        again = load_front_end(model, cache=FeatureCache(folder=tmp_path))
        with pytest.warns(RecompWarning, match="is not used"):
            (seen,) = again.see([picture])
        for name, value in expected.features.items():
            np.testing.assert_array_equal(seen.features[name], value)
