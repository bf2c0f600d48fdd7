"""Keeps the features of pictures for the next time: in memory, and on disk if a folder is named.

Within a number of bytes the most recently used features stay. No paddle here."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import threading
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from paddle_recomp.errors import ConfigError, RecompWarning

Arrays = Mapping[str, np.ndarray]

MEMORY_BYTES = 256 * 2**20
DISK_BYTES = 2**30
HALVED = ("features", "keys")
"""The arrays that a file holds in float16. Scores and patch_embeds stay in float32, because
rounding them sometimes changes the choice of patches (docs/numbers.md)."""
SUFFIX = ".features"
_DIGEST = hashlib.sha256().digest_size


class FeatureCache:
    """Arrays by key, of which the least recently used are dropped first. Several threads and models
    may share one.

    Memory keeps the arrays unchanged; a file holds the arrays that HALVED names in float16."""

    def __init__(
        self,
        max_bytes: int = MEMORY_BYTES,
        folder: str | os.PathLike[str] | None = None,
        max_disk_bytes: int = DISK_BYTES,
    ) -> None:
        """`max_bytes` bounds the memory, `max_disk_bytes` the files in `folder`, which is created
        if necessary and may be shared by processes; without a folder nothing is written.

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

    @property
    def num_bytes(self) -> int:
        """The bytes of all arrays in memory."""
        return self._num_bytes

    def get(self, key: str) -> Arrays | None:
        """The arrays of a key, read-only; None when they are not kept, or, with a warning, when
        their file is damaged."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        arrays = self._read(key)
        if arrays is not None:
            self._keep(key, arrays)
        return arrays

    def put(self, key: str, arrays: Arrays) -> None:
        """Keeps copies. `key` names a file, so it has letters and digits only. A disk that cannot
        be written is a warning."""
        copies = {name: np.array(value) for name, value in arrays.items()}
        self._keep(key, copies)
        self._write(key, copies)

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

    def _read(self, key: str) -> Arrays | None:
        if self.folder is None:
            return None
        path = self.folder / f"{key}{SUFFIX}"
        try:
            if path.stat().st_size > self.max_disk_bytes:
                raise ValueError("larger than the whole cache")
            arrays = _unpack(key, path.read_bytes())
            os.utime(path)
        except FileNotFoundError:
            return None
        # The zip reader has many kinds of errors for damaged files.
        except Exception as error:
            _warn(f"{path} is not used: {error}; it will be written again")
            return None
        return arrays

    def _write(self, key: str, arrays: Arrays) -> None:
        if self.folder is None:
            return
        content = _pack(key, arrays)
        if content is None or len(content) > self.max_disk_bytes:
            return
        try:
            # Written under another name first, so that no reader meets half a file. The part that a
            # killed process leaves is counted and removed like other files.
            handle, name = tempfile.mkstemp(dir=self.folder, prefix=".", suffix=SUFFIX)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(content)
                # Another thread or process may have removed it to make room.
                with suppress(FileNotFoundError):
                    os.replace(name, self.folder / f"{key}{SUFFIX}")
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
            self._trim(self.folder)
        except OSError as error:
            _warn(f"{self.folder} cannot be written: {error.strerror or error}")

    def _trim(self, folder: Path) -> None:
        """Removes the least recently used files until the others fit."""
        found = []
        for path in folder.glob(f"*{SUFFIX}"):
            try:
                about = path.stat()
            except FileNotFoundError:  # Another process trims, too.
                continue
            found.append((about.st_mtime_ns, about.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.max_disk_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size


def _num_bytes(arrays: Arrays) -> int:
    return sum(value.nbytes for value in arrays.values())


def _pack(key: str, arrays: Arrays) -> bytes | None:
    """A digest of the key and everything else, then numpy's archive; None for numbers that
    float16 cannot hold."""
    with np.errstate(over="ignore"):
        small = {
            name: value.astype(np.float16) if name in HALVED else value
            for name, value in arrays.items()
        }
    if not all(np.isfinite(value).all() for value in small.values()):
        return None
    file = io.BytesIO()
    np.savez(file, **small)
    content = file.getvalue()
    return _digest(key, content) + content


def _unpack(key: str, content: bytes) -> dict[str, np.ndarray]:
    """Raises: ValueError when the digest is another, or numpy cannot read it."""
    digest, archive = content[:_DIGEST], content[_DIGEST:]
    if digest != _digest(key, archive):
        raise ValueError("its checksum does not fit")
    with np.load(io.BytesIO(archive), allow_pickle=False) as arrays:
        return {name: arrays[name].astype(np.float32) for name in arrays.files}


def _digest(key: str, content: bytes) -> bytes:
    return hashlib.sha256(key.encode() + content).digest()


def _warn(message: str) -> None:
    warnings.warn(message, RecompWarning, stacklevel=5)
