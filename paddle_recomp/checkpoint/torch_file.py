"""The table of contents of a file that torch.save wrote, read without torch.

Such a file is a zip archive: `data.pkl` describes the tensors, `data/<key>` holds each storage as
plain bytes. The pickle may only name things that describe tensors. Any other name is refused before
it is looked up, so no code of the file runs."""

from __future__ import annotations

import io
import math
import zipfile
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from paddle_recomp.checkpoint.pickles import Name, read_pickle
from paddle_recomp.checkpoint.tensors import ITEM_SIZES, StoredTensor, extent
from paddle_recomp.errors import CheckpointError
from paddle_recomp.json_files import one_line
from paddle_recomp.limits import limits, the_limit

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


_ORDERED_DICT = Name("collections", "OrderedDict")
_TENSOR = Name("torch._utils", "_rebuild_tensor_v2")
_PARAMETER = Name("torch._utils", "_rebuild_parameter")
_TYPES = {Name("torch", name): dtype for name, dtype in _STORAGES.items()}
_KNOWN = {_ORDERED_DICT, _TENSOR, _PARAMETER, *_TYPES}


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
        with _Directory(path) as directory, zipfile.ZipFile(directory) as archive:
            return _read_archive(path, archive)
    except CheckpointError:
        raise
    except Exception as error:  # zipfile raises nearly anything for damaged bytes
        raise CheckpointError(
            f"{path} is a truncated or damaged zip file: {one_line(error, 200)}"
        ) from error


class _Directory(io.FileIO):
    """A file of which zipfile reads the directory, and little else, in one piece."""

    def read(self, size: int | None = -1, /) -> bytes:
        """As `io.FileIO.read`. Raises: CheckpointError for a piece beyond the bound."""
        size = -1 if size is None else size
        if size > limits().header_bytes:
            raise CheckpointError(
                f"{self.name}: a part of it has {size} bytes; {the_limit('header_bytes')}"
            )
        return super().read(size)


def _read_archive(path: Path, archive: zipfile.ZipFile) -> dict[str, StoredTensor]:
    entries = {entry.filename: entry for entry in archive.infolist()}
    pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise CheckpointError(f"{path} holds {len(pickles)} files data.pkl; torch.save writes one")
    root = pickles[0].removesuffix("data.pkl")
    for name in (f"{root}data.pkl", f"{root}byteorder"):
        if name in entries:
            _check_plain(path, entries[name])
            if entries[name].file_size > limits().header_bytes:
                raise CheckpointError(
                    f"{path}: {one_line(name)} has {entries[name].file_size} bytes; "
                    f"{the_limit('header_bytes')}"
                )
    if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
        raise CheckpointError(f"{path} was written by a big-endian machine")
    views = _unpickle(path, archive.read(f"{root}data.pkl"))
    tensors: dict[str, StoredTensor] = {}
    with path.open("rb") as file:
        for key, view in views.items():
            entry = entries.get(f"{root}data/{view.storage.key}")
            if entry is None:
                raise CheckpointError(
                    f"{path}: {one_line(key)} lies in storage {one_line(view.storage.key)}, which "
                    "is not there"
                )
            tensors[key] = _place(path, key, view, entry, _data_offset(path, file, entry))
    return tensors


def _check_plain(path: Path, entry: zipfile.ZipInfo) -> None:
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        raise CheckpointError(
            f"{path}: {one_line(entry.filename)} is compressed or encrypted; torch.save stores it "
            "plainly"
        )


def _data_offset(path: Path, file: io.BufferedReader, entry: zipfile.ZipInfo) -> int:
    """Where the bytes of a stored entry begin: behind its local header, name and padding."""
    _check_plain(path, entry)
    file.seek(entry.header_offset)
    header = file.read(30)
    if len(header) != 30 or header[:4] != _ZIP_START:
        raise CheckpointError(
            f"{path}: no zip entry where {one_line(entry.filename)} should be; damaged"
        )
    name_length = int.from_bytes(header[26:28], "little")
    padding = int.from_bytes(header[28:30], "little")
    begin = entry.header_offset + 30 + name_length + padding
    if begin + entry.file_size > path.stat().st_size:
        raise CheckpointError(
            f"{path}: {one_line(entry.filename)} ends outside the file; truncated"
        )
    return begin


def _place(path: Path, key: str, view: _View, entry: zipfile.ZipInfo, begin: int) -> StoredTensor:
    storage = view.storage
    item = ITEM_SIZES[storage.dtype]
    place = f"{path}: {one_line(key)}"
    if storage.length * item != entry.file_size:
        raise CheckpointError(
            f"{path}: storage {one_line(storage.key)} of {one_line(key)} has {entry.file_size} "
            f"bytes, but {storage.length} items of {storage.dtype} need {storage.length * item}"
        )
    if view.offset + extent(view.shape, view.strides) > storage.length:
        raise CheckpointError(
            f"{place} reaches outside storage {one_line(storage.key)} of {storage.length} items"
        )
    # Strides of zero repeat items: four bytes could be a tensor larger than the memory.
    if math.prod(view.shape) > storage.length:
        raise CheckpointError(
            f"{place} has {math.prod(view.shape)} items in a storage of {storage.length}; expected "
            "each item once"
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
        content = read_pickle(data, _KNOWN, partial(_call, limits().axes), _load)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected a dict")
    if len(content) > limits().tensors:
        raise CheckpointError(f"{path} has {len(content)} tensors; {the_limit('tensors')}")
    for key, value in content.items():
        if not isinstance(value, _View):
            raise CheckpointError(
                f"{path}: {one_line(key)} is a {type(value).__name__}, not a tensor"
            )
    return content


def _call(most_axes: int, name: Name, arguments: tuple[Any, ...]) -> Any:
    """What one of the names that describe tensors gives.

    Raises: CheckpointError for arguments that it does not take."""
    if name == _ORDERED_DICT and not arguments:
        return {}
    if name == _TENSOR and len(arguments) >= 4:
        return _view(most_axes, *arguments[:4])
    if name == _PARAMETER and arguments:
        return arguments[0]
    raise CheckpointError(f"its pickle calls {name.name} with {len(arguments)} values")


def _load(pid: Any) -> _Storage:
    """The storage that `pid`, ("storage", type, key, device, count), describes.

    Raises: CheckpointError for anything else."""
    if type(pid) is tuple and len(pid) == 5 and pid[0] == "storage":
        _, kind, key, _, count = pid
        known = isinstance(kind, Name) and kind in _TYPES
        if known and isinstance(key, str) and type(count) is int and count >= 0:
            return _Storage(key, _TYPES[kind], count)
    raise CheckpointError("its pickle describes no valid storage")


def _view(most_axes: int, storage: Any, offset: Any, shape: Any, strides: Any) -> _View:
    """Checks the file's description of a tensor, and its bounds against its storage."""
    sizes = (shape, strides)
    for value in sizes:
        if type(value) is tuple and len(value) > most_axes:
            raise CheckpointError(f"it has a tensor of {len(value)} axes; {the_limit('axes')}")
    if (
        not isinstance(storage, _Storage)
        or any(type(value) is not tuple for value in sizes)
        or len(shape) != len(strides)
        or any(type(item) is not int or item < 0 for item in (offset, *shape, *strides))
    ):
        raise CheckpointError("its pickle describes no valid tensor")
    return _View(storage, offset, shape, strides)
