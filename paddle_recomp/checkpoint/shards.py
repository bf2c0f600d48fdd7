"""A folder's weight files -> one table of all its tensors."""

from __future__ import annotations

from pathlib import Path

from paddle_recomp.checkpoint.safetensors_file import read_safetensors
from paddle_recomp.checkpoint.tensors import StoredTensor
from paddle_recomp.checkpoint.torch_file import read_torch
from paddle_recomp.errors import CheckpointError, CheckpointNotFoundError
from paddle_recomp.files import is_file
from paddle_recomp.json_files import one_line, read_json, shown
from paddle_recomp.limits import limits, the_limit

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Where a folder may keep its weights; the first that exists is read."""


def read_weights(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the folder by the key under which it is stored.

    Raises: CheckpointNotFoundError without weights, or without a file that the index names;
    CheckpointError for damaged files, or files that contradict the index or each other."""
    for name in WEIGHT_FILES:
        path = folder / name
        if is_file(path):
            return _read_index(path) if path.suffix == ".json" else _read_file(path)
    raise CheckpointNotFoundError(
        f"{folder} holds no weights; expected {' or '.join(WEIGHT_FILES)}"
    )


def _read_file(path: Path) -> dict[str, StoredTensor]:
    try:
        with path.open("rb") as file:
            if file.read(19) == b"version https://git":
                raise CheckpointError(
                    f"{path} is a pointer of git-lfs, not the weights; fetch them with git lfs pull"
                )
        return read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)
    except OSError as error:
        # CheckpointNotFoundError is one too, but no reader raises it.
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def _read_index(index: Path) -> dict[str, StoredTensor]:
    expected: dict[str, list[str]] = {}
    for key, name in _weight_map(index).items():
        expected.setdefault(name, []).append(key)
    tensors: dict[str, StoredTensor] = {}
    for name in sorted(expected):
        path = index.parent / name
        if not is_file(path):
            raise CheckpointNotFoundError(
                f"{path} does not exist; {index.name} expects {one_line(expected[name][0])} there"
            )
        shard = _read_file(path)
        for key in expected[name]:
            if key not in shard:
                raise CheckpointError(
                    f"{path} lacks {one_line(key)}, which {index.name} expects there"
                )
        for key, tensor in shard.items():
            if key in tensors:
                raise CheckpointError(f"{one_line(key)} is in both {tensors[key].file} and {path}")
            tensors[key] = tensor
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    """Key -> file name, from an index file."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index}: field 'weight_map' is missing or no object")
    if len(places) > limits().tensors:
        raise CheckpointError(f"{index} has {len(places)} tensors; {the_limit('tensors')}")
    for key, name in places.items():
        if (
            not isinstance(name, str)
            or Path(name).name != name
            or not name.isprintable()
            or len(name.encode()) > 255
            or "\\" in name
            or not name.endswith((".safetensors", ".bin"))
        ):
            raise CheckpointError(
                f"{index}: {one_line(key)} is said to lie in {shown(name)}; expected the plain "
                "name of a .safetensors or .bin file"
            )
    return places
