"""Keeps the features of pictures for the next time: in memory, and on disk if a folder is named.

Within a number of bytes the most recently used features stay. No paddle here.

A file is MAGIC, a digest, and the numbers of the arrays in the order of their names. Whoever reads
it says which arrays it must hold, in which shapes: so its size is known before it is read, and
nothing in it is unpacked."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import re
import secrets
import stat
import threading
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from paddle_recomp.errors import ConfigError, RecompWarning

Arrays = Mapping[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]
"""The shape of each array, by its name."""

MEMORY_BYTES = 256 * 2**20
DISK_BYTES = 2**30
HALVED = ("features", "keys")
"""The arrays that a file holds in float16. Scores and patch_embeds stay in float32, because
rounding them sometimes changes the choice of patches (docs/numbers.md)."""
SUFFIX = ".features"
MAGIC = b"recomp features 2\n"
_HEAD = len(MAGIC) + hashlib.sha256().digest_size
_PART = re.compile(rf"\.[0-9A-Za-z]+\.[0-9a-f]{{16}}{re.escape(SUFFIX)}")
"""A file that is being written, or that a killed process has left."""


class FeatureCache:
    """Arrays by key, of which the least recently used are dropped first. Several threads and models
    may share one, and several processes and users a folder.

    Memory keeps the arrays unchanged; a file holds the arrays that HALVED names in float16. Only a
    file that is proven to be damaged is replaced. One that cannot be read stays as it is, and a
    folder that cannot be written is only read; each of the two is one warning."""

    def __init__(
        self,
        max_bytes: int = MEMORY_BYTES,
        folder: str | os.PathLike[str] | None = None,
        max_disk_bytes: int = DISK_BYTES,
    ) -> None:
        """`max_bytes` bounds the memory, `max_disk_bytes` the files in `folder`, which is created
        if necessary; without a folder nothing is written. The umask and the folder decide who may
        read the files.

        Raises: ConfigError for a negative bound, or a folder that cannot be made."""
        for name, value in (("max_bytes", max_bytes), ("max_disk_bytes", max_disk_bytes)):
            if value < 0:
                raise ConfigError(f"{name} is {value}; expected at least 0")
        self.max_bytes, self.max_disk_bytes = max_bytes, max_disk_bytes
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"{folder} cannot be a cache: {error.strerror}") from error
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Arrays] = OrderedDict()
        self._num_bytes = 0
        self._damaged: set[str] = set()
        """Keys whose files are proven to be damaged."""
        self._warned: set[str] = set()
        self._only_read = False

    @property
    def num_bytes(self) -> int:
        """The bytes of all arrays in memory."""
        return self._num_bytes

    def get(self, key: str, shapes: Shapes) -> Arrays | None:
        """The arrays of a key, read-only; None when none of these names and shapes are kept, or,
        with a warning, when their file is damaged or cannot be read."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None and _shapes(found) == shapes:
                self._kept.move_to_end(key)
                return found
        arrays = self._read(key, shapes)
        if arrays is not None:
            self._keep(key, arrays)
        return arrays

    def put(self, key: str, arrays: Arrays) -> None:
        """Keeps copies, in float32. `key` names a file, so it has letters and digits only. It
        stands for one content: its file is not written twice. A disk that cannot be written is a
        warning."""
        copies = {name: np.array(value, dtype=np.float32) for name, value in arrays.items()}
        self._keep(key, copies)
        if self.folder is not None and not self._only_read:
            self._write(self.folder, key, copies)

    def _keep(self, key: str, arrays: Arrays) -> None:
        for value in arrays.values():
            value.flags.writeable = False
        with self._lock:
            self._num_bytes -= _num_bytes(self._kept.pop(key, {}))
            self._kept[key] = arrays
            self._num_bytes += _num_bytes(arrays)
            while self._num_bytes > self.max_bytes:
                _, oldest = self._kept.popitem(last=False)
                self._num_bytes -= _num_bytes(oldest)

    def _read(self, key: str, shapes: Shapes) -> Arrays | None:
        if self.folder is None or key in self._damaged:
            return None
        path = self.folder / f"{key}{SUFFIX}"
        try:
            arrays = _unpack(key, _content(path, _file_size(shapes)), shapes)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self._warn_once("read", f"{path} cannot be read: {error.strerror or error}")
            return None
        except ValueError as error:
            self._damaged.add(key)
            _warn(f"{path} is not used: {error}; it will be written again")
            return None
        # It may be another user's, or on a disk that is only read.
        with suppress(OSError):
            os.utime(path)
        return arrays

    def _write(self, folder: Path, key: str, arrays: Arrays) -> None:
        path = folder / f"{key}{SUFFIX}"
        if key not in self._damaged and os.path.lexists(path):
            return
        content = _pack(key, arrays)
        if content is None or len(content) > self.max_disk_bytes:
            return
        # Written under another name first, so that no reader meets half a file. The part that a
        # killed process leaves is counted and removed like other files.
        part = folder / f".{key}.{secrets.token_hex(8)}{SUFFIX}"
        try:
            handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except OSError as error:
            self._only_read = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
            self._warn_once("write", f"{folder} cannot be written: {error.strerror or error}")
            return
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            self._rename(part, path, key)
            self._trim(folder)
        except OSError as error:
            self._warn_once("write", f"{folder} cannot be written: {error.strerror or error}")
        finally:
            with suppress(OSError):
                part.unlink()

    def _rename(self, part: Path, path: Path, key: str) -> None:
        try:
            os.replace(part, path)
        except FileNotFoundError:  # Another thread or process has removed it to make room.
            return
        except OSError:
            # Another user was faster, in a folder where only owners replace their files.
            if key in self._damaged or not os.path.lexists(path):
                raise
        self._damaged.discard(key)

    def _trim(self, folder: Path) -> None:
        """Removes the least recently used files until the others fit. A file that is not a cache's
        does not count and stays; one that may not be removed stays."""
        found = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.endswith(SUFFIX):
                    continue
                with suppress(FileNotFoundError):  # Another process trims, too.
                    about = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(about.st_mode):
                        found.append((about.st_mtime_ns, about.st_size, Path(entry.path)))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.max_disk_bytes:
                return
            try:
                if _PART.fullmatch(path.name) or _is_ours(path):
                    path.unlink(missing_ok=True)
                total -= size
            except OSError:
                continue

    def _warn_once(self, kind: str, message: str) -> None:
        with self._lock:
            if kind in self._warned:
                return
            self._warned.add(kind)
        _warn(message)


def _num_bytes(arrays: Arrays) -> int:
    return sum(value.nbytes for value in arrays.values())


def _shapes(arrays: Arrays) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in arrays.items()}


def _type(name: str) -> np.dtype:
    return np.dtype("<f2" if name in HALVED else "<f4")


def _file_size(shapes: Shapes) -> int:
    return _HEAD + sum(math.prod(shape) * _type(name).itemsize for name, shape in shapes.items())


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _content(path: Path, size: int) -> bytes:
    """Raises: OSError, also for what is not a regular file, which could block or never end;
    ValueError for a file of another size."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        content = file.read(size) if about.st_size == size else b""
    if len(content) != size:
        raise ValueError(f"it has {about.st_size:,} bytes, expected {size:,}")
    return content


def _pack(key: str, arrays: Arrays) -> bytes | None:
    """None for numbers that float16 cannot hold."""
    with np.errstate(over="ignore"):
        small = {name: arrays[name].astype(_type(name)) for name in sorted(arrays)}
    if not all(np.isfinite(value).all() for value in small.values()):
        return None
    numbers = b"".join(value.tobytes() for value in small.values())
    return MAGIC + _digest(key, _shapes(arrays), numbers) + numbers


def _unpack(key: str, content: bytes, shapes: Shapes) -> dict[str, np.ndarray]:
    """Raises: ValueError when it is no such file, its digest is another, or a number is not
    finite."""
    digest, numbers = content[len(MAGIC) : _HEAD], content[_HEAD:]
    if not content.startswith(MAGIC):
        raise ValueError("it is not a file of this cache")
    if digest != _digest(key, shapes, numbers):
        raise ValueError("its checksum does not fit")
    arrays, begin = {}, 0
    for name in sorted(shapes):
        count = math.prod(shapes[name])
        values = np.frombuffer(numbers, _type(name), count, begin)
        arrays[name] = values.astype(np.float32).reshape(shapes[name])
        begin += values.nbytes
        if not np.isfinite(values).all():
            raise ValueError(f"{name} holds NaN or infinity")
    return arrays


def _digest(key: str, shapes: Shapes, numbers: bytes) -> bytes:
    about = sorted((name, tuple(shape)) for name, shape in shapes.items())
    return hashlib.sha256(repr((key, about)).encode() + numbers).digest()


def _warn(message: str) -> None:
    warnings.warn(message, RecompWarning, stacklevel=5)
