"""Files that are complete or absent, and folders that are replaced in one step."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import onnx

from paddle_recomp.bundle import MANIFEST, SUMS, Checksums
from paddle_recomp.errors import BundleError, RecompError
from paddle_recomp.json_files import listed

from .errors import ExportError

_SINGLE_FILE = 1_900_000_000
"""From this number of bytes on, a graph's weights go into a second file, because protobuf ends at 2
GB."""
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_LOCK, _NEW, _OLD = "lock", "new", "old"
"""In the folder of an export under way: the file that it keeps locked, the bundle to be, and for a
moment the one before it."""


def write_model(model: onnx.ModelProto, path: Path) -> None:
    """Writes a graph; one that is too large for a single file gets NAME.data beside it."""
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) > _SINGLE_FILE:
        onnx.save_model(
            model,
            path,
            save_as_external_data=True,
            location=f"{path.name}.data",
            size_threshold=1024,
        )
    else:
        path.write_bytes(model.SerializeToString(deterministic=True))


@contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target` that takes its place when the block ends without an error. Of a
    link, the folder to which it leads is replaced.

    Until then the old one is untouched, even if the process is killed. The next export removes the
    new folder that a killed process left. Exports that run at once do not meet: of two at the same
    target, the one that ends last replaces the whole bundle of the other.

    Raises: ExportError when there is something at `target` that is no bundle, or a bundle with
    files of somebody else's, at the beginning or at the end; when the new folder cannot be
    written."""
    try:
        target = Path(os.path.realpath(target))
        if Path.cwd().is_relative_to(target):
            raise ExportError(
                f"{target} is the folder that you are in, which an export replaces; choose another"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target.parent):
            _check_replaceable(target, target)
            _remove_abandoned(target)
        with _own_folder(target) as own:
            new = own / _NEW
            new.mkdir()
            yield new
            _flush(new)
            with _alone(target.parent):
                _exchange(own, target)
    except RecompError:
        raise
    except OSError as error:
        raise ExportError(f"{target} cannot be written: {error.strerror or error}") from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lets no other export change the names in a folder, for the moment that this one looks or
    exchanges. A file system without locks lets everybody."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _check_replaceable(folder: Path, target: Path) -> None:
    """Raises: ExportError, which speaks of `target`, when replacing the folder would lose anything
    but a bundle."""
    if not os.path.lexists(folder) or _is_empty_folder(folder):
        return
    if folder.is_symlink() or not (folder / MANIFEST).is_file():
        raise ExportError(f"{target} exists and is not a bundle; choose another place")
    try:
        own = {*Checksums.read(folder).expected, SUMS}
    except BundleError:
        own = {SUMS}
    files = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    names = {path.relative_to(folder).as_posix() for path in files}
    strange = sorted(names - own - {MANIFEST})
    if strange:
        raise ExportError(
            f"{target} holds files that are not the bundle's: {listed(strange)}; move them away, "
            "or choose another place"
        )


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


@contextmanager
def _own_folder(target: Path) -> Iterator[Path]:
    """A folder beside `target` that no other export has, with a file that is locked as long as this
    process lives. The lock comes before the file's name, so that whoever finds the file unlocked
    knows that its owner is dead. Process numbers would not tell: they repeat in other containers,
    and threads share one."""
    own = Path(tempfile.mkdtemp(prefix=_prefix(target), dir=target.parent))
    try:
        with (own / f"{_LOCK}.tmp").open("w") as lock:
            # A file system without locks refuses: then the folder is never taken for abandoned.
            if _locks(lock.fileno()):
                (own / f"{_LOCK}.tmp").rename(own / _LOCK)
            yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _prefix(target: Path) -> str:
    return f".{target.name}.partial-"


def _locks(descriptor: int) -> bool:
    """Whether the file is now locked by this process; False as well where locks do not exist."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove_abandoned(target: Path) -> None:
    """Removes the folders of processes that no longer live: those whose lock is free. If one died
    between its two renames, its old bundle goes back to its place first."""
    prefix = _prefix(target)
    for path in target.parent.iterdir():
        if not path.name.startswith(prefix):
            continue
        try:
            lock = (path / _LOCK).open("r+")
        except OSError:  # It has none: it may be another's, or is being made just now.
            continue
        with lock:
            if not _locks(lock.fileno()):
                continue
            if (path / _OLD).exists() and not target.exists():
                (path / _OLD).rename(target)
            shutil.rmtree(path, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Writes files to the disk before the name changes, so that a power cut leaves no empty
    files."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _exchange(own: Path, target: Path) -> None:
    """Swaps the new folder and `target`, in one step where the system can, so that there is a
    bundle at every moment. Whatever came to `target` in the meantime is looked at once it is out of
    everybody's reach, and goes back if it is not to be lost.

    Raises: ExportError when something came; OSError."""
    new, old = own / _NEW, own / _OLD
    while not _put(new, target):
        _check_replaceable(target, target)
        if _renameat2(new, target):
            try:
                _check_replaceable(new, target)
            except ExportError:
                _renameat2(new, target)
                raise
            return
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        try:
            _check_replaceable(old, target)
        except ExportError:
            old.rename(target)
            raise


def _put(new: Path, target: Path) -> bool:
    """Renames a folder; False when there is something already, be it only since a moment ago. An
    empty folder counts as nothing."""
    try:
        new.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            return False
        raise
    return True


def _renameat2(first: Path, second: Path) -> bool:
    """Whether the two paths were exchanged; False where the system has no such call."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    names = (os.fsencode(first), os.fsencode(second))
    if call(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS):  # The file system or the kernel does not know it.
        return False
    raise OSError(number, os.strerror(number), str(second))
