"""The table of contents of a file that torch.save wrote, read without torch.

Such a file is a zip archive: `data.pkl` describes the tensors, `data/<key>` holds each storage as
plain bytes. The pickle may only name things that describe tensors. Any other name is refused before
it is looked up, so no code of the file runs."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from paddle_recomp.checkpoint.tensors import ITEM_SIZES, StoredTensor, extent
from paddle_recomp.errors import CheckpointError

_MAX_PICKLE = 64 * 2**20
_ZIP_START = b"PK\x03\x04"
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}


class _Storage(NamedTuple):
    key: str
    dtype: str
    length: int


class _View(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of the file by its key; reads the description only.

    Raises: CheckpointError for another format, a damaged archive, a pickle that names anything
    but tensors, or a tensor that reaches outside its storage."""
    with path.open("rb") as file:
        if file.read(4) != _ZIP_START:
            raise CheckpointError(
                f"{path} is not in the zip format of torch.save; files from before torch 1.6 must "
                "be saved again with a newer torch, or as safetensors"
            )
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_archive(path, archive)
    except CheckpointError:
        raise
    except Exception as error:  # zipfile raises nearly anything for damaged bytes
        raise CheckpointError(f"{path} is a truncated or damaged zip file: {error}") from error


def _read_archive(path: Path, archive: zipfile.ZipFile) -> dict[str, StoredTensor]:
    entries = {entry.filename: entry for entry in archive.infolist()}
    pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise CheckpointError(f"{path} holds {len(pickles)} files data.pkl; torch.save writes one")
    root = pickles[0].removesuffix("data.pkl")
    for name in (f"{root}data.pkl", f"{root}byteorder"):
        if name in entries:
            _check_plain(path, entries[name])
    if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
        raise CheckpointError(f"{path} was written by a big-endian machine")
    views = _unpickle(path, archive.read(f"{root}data.pkl"))
    tensors: dict[str, StoredTensor] = {}
    with path.open("rb") as file:
        for key, view in views.items():
            entry = entries.get(f"{root}data/{view.storage.key}")
            if entry is None:
                raise CheckpointError(
                    f"{path}: {key} lies in storage {view.storage.key}, which is not there"
                )
            tensors[key] = _place(path, key, view, entry, _data_offset(path, file, entry))
    return tensors


def _check_plain(path: Path, entry: zipfile.ZipInfo) -> None:
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        raise CheckpointError(
            f"{path}: {entry.filename} is compressed or encrypted; torch.save stores it plainly"
        )
    if entry.filename.endswith(".pkl") and entry.file_size > _MAX_PICKLE:
        raise CheckpointError(
            f"{path}: {entry.filename} has {entry.file_size} bytes, too many for a description"
        )


def _data_offset(path: Path, file: io.BufferedReader, entry: zipfile.ZipInfo) -> int:
    """Where the bytes of a stored entry begin: behind its local header, name and padding."""
    _check_plain(path, entry)
    file.seek(entry.header_offset)
    header = file.read(30)
    if len(header) != 30 or header[:4] != _ZIP_START:
        raise CheckpointError(f"{path}: no zip entry where {entry.filename} should be; damaged")
    name_length = int.from_bytes(header[26:28], "little")
    padding = int.from_bytes(header[28:30], "little")
    begin = entry.header_offset + 30 + name_length + padding
    if begin + entry.file_size > path.stat().st_size:
        raise CheckpointError(f"{path}: {entry.filename} ends outside the file; truncated")
    return begin


def _place(path: Path, key: str, view: _View, entry: zipfile.ZipInfo, begin: int) -> StoredTensor:
    storage = view.storage
    item = ITEM_SIZES[storage.dtype]
    if storage.length * item != entry.file_size:
        raise CheckpointError(
            f"{path}: storage {storage.key} of {key} has {entry.file_size} bytes, but "
            f"{storage.length} items of {storage.dtype} need {storage.length * item}"
        )
    if view.offset + extent(view.shape, view.strides) > storage.length:
        raise CheckpointError(
            f"{path}: {key} reaches outside storage {storage.key} of {storage.length} items"
        )
    return StoredTensor(
        file=path,
        key=key,
        dtype=storage.dtype,
        shape=view.shape,
        offset=begin + view.offset * item,
        strides=view.strides,
    )


def _unpickle(path: Path, data: bytes) -> dict[str, _View]:
    try:
        content = _Unpickler(io.BytesIO(data)).load()
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle raises nearly anything
        raise CheckpointError(
            f"{path}: its description cannot be read: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected a dict")
    # The file may have put attributes on an OrderedDict, so its methods are not called.
    for key, value in dict.items(content):
        if not isinstance(key, str) or not isinstance(value, _View):
            name = key if isinstance(key, str) else type(key).__name__
            raise CheckpointError(f"{path}: {name} is a {type(value).__name__}, not a tensor")
    return dict(dict.items(content))


class _Unpickler(pickle.Unpickler):
    """Builds views, and nothing but views, out of a pickle."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        """The stand-in for one of the few names that describe tensors.

        Raises: CheckpointError for any other name, which is not even imported."""
        # A new lambda each time: a file can change only the object that it gets, no shared one.
        allowed: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): lambda *args: _view(*args),
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
        }
        if module_name == "torch" and global_name in _STORAGES:
            return _STORAGES[global_name]
        if (module_name, global_name) not in allowed:
            raise CheckpointError(
                f"its pickle names {module_name}.{global_name}, which no tensor needs; refused"
            )
        return allowed[module_name, global_name]

    def persistent_load(self, pid: Any) -> _Storage:
        """The storage that `pid`, ("storage", type, key, device, count), describes.

        Raises: CheckpointError for anything else."""
        if isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage":
            _, dtype, key, _, count = pid
            if dtype in ITEM_SIZES and isinstance(key, str) and type(count) is int and count >= 0:
                return _Storage(key, dtype, count)
        raise CheckpointError("its pickle describes no valid storage")


def _view(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _View:
    """Checks the file's description of a tensor, and its bounds against its storage."""
    sizes = (shape, strides)
    if (
        not isinstance(storage, _Storage)
        or any(not isinstance(value, tuple) for value in sizes)
        or len(shape) != len(strides)
        or any(type(item) is not int or item < 0 for item in (offset, *shape, *strides))
    ):
        raise CheckpointError("its pickle describes no valid tensor")
    return _View(storage, offset, shape, strides)
