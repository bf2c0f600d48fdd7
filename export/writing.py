"""Files that are complete or absent, and folders that are replaced in one step."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx

from paddle_recomp.bundle import MANIFEST
from paddle_recomp.errors import RecompError

from .errors import ExportError

_SINGLE_FILE = 1_900_000_000
"""From this number of bytes on, a graph's weights go into a second file, because protobuf ends at 2
GB."""
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


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
    """A new folder beside `target` that takes its place when the block ends without an error.

    Until then the old one is untouched, even if the process is killed. The next export removes the
    new folder that a killed process left.

    Raises: ExportError when there is something at `target` that is no bundle, or when the new
    folder cannot be written."""
    target = target.absolute()
    if target.exists() and not (target / MANIFEST).is_file() and not _is_empty_folder(target):
        raise ExportError(f"{target} exists and is not a bundle; choose another place")
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target)
        partial.mkdir()
        yield partial
        _flush(partial)
        _exchange(partial, target)
    except RecompError:
        raise
    except OSError as error:
        raise ExportError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _remove_abandoned(target: Path) -> None:
    """Removes the folders of processes that no longer live."""
    for path in target.parent.glob(f".{target.name}.partial-*"):
        owner = path.name.rpartition("-")[2]
        if owner.isdigit() and not _is_alive(int(owner)):
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _flush(folder: Path) -> None:
    """Writes files to the disk before the name changes, so that a power cut leaves no empty
    files."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _exchange(new: Path, target: Path) -> None:
    """Swaps the two in one step where the system can, so that there is a bundle at every moment."""
    if not target.exists():
        new.rename(target)
        return
    if _renameat2(new, target):
        return
    old = new.with_name(f"{new.name}.old")
    target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


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
