"""A bundle: what `python -m export` writes and everything else runs. No paddle here.

recomp.json is read first: it says what the graphs are and what every other file must hash to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from paddle_recomp.bundle.contract import INPUTS, OUTPUTS, PIPELINE, Graph
from paddle_recomp.compression.config import CompressionConfig
from paddle_recomp.errors import (
    BundleError,
    BundleNotFoundError,
    ConfigError,
)
from paddle_recomp.json_files import read_json
from paddle_recomp.preprocess import ImageProcessor

MANIFEST = "recomp.json"
FORMAT = 1
"""The version of the layout; a reader refuses a newer one."""
PRECISIONS = ("fp32", "int8")
"""What this version can run."""
DECODER_PRECISIONS = ("fp32", "int8", "int4")
"""The same of the language model's decoder."""
PADDLE_PRECISIONS = ("fp32", "bf16", "int8")
"""The same in Paddle Inference."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class GraphInfo:
    """A graph with what it takes and gives."""

    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class DecoderInfo:
    """The language model's decoder: its files, and the sizes of its KV cache."""

    file: str
    embed_tokens: str
    """The embedding of the vocabulary, an array in numpy's format."""
    precision: str
    context: int
    """Positions that prompt and answer may have together."""
    num_layers: int
    num_kv_heads: int
    cache_width: int
    """Of a head in the KV cache, which may be wider than the checkpoint's."""
    hidden_size: int
    vocab_size: int


@dataclass(frozen=True)
class FileInfo:
    """What a file must be."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class PaddleInfo:
    """What Paddle Inference reads."""

    graphs: Mapping[Graph, tuple[str, str]]
    """The files of each graph, its program and its weights, for fp32 and bf16 alike."""
    int8: Mapping[Graph, tuple[str, str]]
    """The same of the towers in INT8; empty where the bundle has none."""
    precisions: tuple[str, ...]
    """That a bundle may be opened in."""


@dataclass(frozen=True)
class LanguageModelSource:
    """The checkpoint whose language model answers."""

    name: str
    """`demo`, or the name that the folder had; never its path, which is another machine's."""
    projector_sha256: str
    """Of its projector, by which a checkpoint is recognised: no two fine-tunes share one."""


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. Made by `open_bundle`, which has read recomp.json and found every file;
    a file's checksum is compared when its path is asked for, so that only what is used is read."""

    folder: Path
    precision: str
    operators: str
    """`onnx`: of the standard alone; `onnxruntime`: with the runtime's own."""
    config: CompressionConfig
    image_processor: ImageProcessor
    num_patches: int
    question_positions: int
    template: str
    graphs: Mapping[Graph, GraphInfo]
    files: Mapping[str, FileInfo]
    language_model: LanguageModelSource
    decoder: DecoderInfo | None
    """None where the language model is not in the bundle."""
    paddle: PaddleInfo | None
    """None where the bundle was exported for ONNX Runtime alone."""

    @property
    def clip_dir(self) -> Path:
        """CLIP's tokenizer."""
        return self.folder / "clip"

    @property
    def llm_dir(self) -> Path:
        """The language model's tokenizer."""
        return self.folder / "llm"

    def verified(self, name: str) -> Path:
        """The path of a file whose content is what recomp.json says.

        Raises: BundleNotFoundError when it is not there; BundleError when it was changed."""
        path, expected = self.folder / name, self.files.get(name)
        if expected is None:
            raise BundleError(f"{self.folder / MANIFEST} lists no file {name}")
        found = checksum(path)
        if found != expected.sha256:
            raise BundleError(
                f"{path} was changed: its sha256 is {found[:12]}…, but {MANIFEST} says "
                f"{expected.sha256[:12]}…"
            )
        return path

    def verify(self, prefix: str = "") -> None:
        """Compares every file, or those below `prefix`. Raises: as `verified`."""
        for name in self.files:
            if name.startswith(prefix):
                self.verified(name)


def open_bundle(folder: Path) -> Bundle:
    """Reads recomp.json and looks for every file that it lists.

    Raises: BundleNotFoundError for the folder or a file that is not there; BundleError for a
    newer format, a precision that cannot be run here, or anything else that is not as it should
    be."""
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleNotFoundError(f"there is no {path}: not a bundle")
    manifest = read_json(path, BundleError, BundleNotFoundError)
    version = _field(path, manifest, "format", int)
    if version > FORMAT:
        raise BundleError(
            f"{path} has format {version}; this version of paddle_recomp reads up to {FORMAT}: "
            "update it, or export again"
        )
    if manifest.get("seal") != seal(manifest):
        raise BundleError(f"{path} was changed after its export: its own checksum does not fit")
    precision = _field(path, manifest, "precision", str)
    if precision not in PRECISIONS:
        raise BundleError(
            f"{path}: precision {precision!r} cannot be run here; can be: {', '.join(PRECISIONS)}"
        )
    image, text = (_field(path, manifest, key, dict) for key in ("image", "text"))
    source = _field(path, manifest, "language_model", dict)
    files = _files(path, _field(path, manifest, "files", dict))
    return Bundle(
        folder=folder,
        precision=precision,
        operators=_field(path, manifest, "operators", str),
        config=_config(path, _field(path, manifest, "compression", dict)),
        image_processor=_image_processor(path, image),
        num_patches=_field(path, image, "patches", int),
        question_positions=_field(path, text, "positions", int),
        template=_field(path, _field(path, manifest, "prompt", dict), "template", str),
        graphs=_graphs(path, _field(path, manifest, "graphs", dict), files),
        files=files,
        language_model=LanguageModelSource(
            _field(path, source, "name", str), _field(path, source, "projector_sha256", str)
        ),
        decoder=_decoder(path, manifest, files),
        paddle=_paddle(path, manifest, files),
    )


def checksum(path: Path) -> str:
    """The sha256 of a file.

    Raises: BundleNotFoundError, BundleError when it cannot be read."""
    try:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
            return digest.hexdigest()
    except FileNotFoundError:
        raise BundleNotFoundError(f"there is no {path}, which the bundle needs") from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from error


def seal(manifest: Mapping[str, Any]) -> str:
    """The checksum of all other fields of recomp.json, which it carries in its field `seal`."""
    fields = {key: value for key, value in manifest.items() if key != "seal"}
    text = json.dumps(fields, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def check_name(path: Path, name: str) -> None:
    """Refuses a file name that leads out of the folder.

    Raises: BundleError."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or ":" in name:
        raise BundleError(f"{path} names the file {name!r}, which is not inside the bundle")


def _field(path: Path, fields: Mapping[str, Any], key: str, kind: type[_T]) -> _T:
    value = fields.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BundleError(f"{path}: {key} is {value!r}; expected a value of type {kind.__name__}")
    return value


def _config(path: Path, fields: Mapping[str, Any]) -> CompressionConfig:
    try:
        return CompressionConfig(**fields)
    except ConfigError as error:
        raise BundleError(f"{path}: compression: {error}") from error


def _image_processor(path: Path, fields: Mapping[str, Any]) -> ImageProcessor:
    mean, std = (_field(path, fields, key, list) for key in ("mean", "std"))
    numbers = [*mean, *std, fields.get("rescale")]
    if len(mean) != 3 or len(std) != 3 or not all(isinstance(n, (int, float)) for n in numbers):
        raise BundleError(f"{path}: image.mean, image.std and image.rescale must be numbers")
    aspect = fields.get("aspect")
    if aspect not in ("crop", "pad"):
        raise BundleError(f"{path}: image.aspect is {aspect!r}; expected crop or pad")
    return ImageProcessor(
        size=_field(path, fields, "size", int),
        crop=_field(path, fields, "crop", int),
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        aspect=aspect,
        rescale=fields["rescale"],
    )


def _files(path: Path, fields: Mapping[str, Any]) -> dict[str, FileInfo]:
    files = {}
    for name, about in fields.items():
        check_name(path, name)
        if not isinstance(about, dict):
            raise BundleError(f"{path}: files.{name} is {about!r}; expected an object")
        expected = FileInfo(_field(path, about, "bytes", int), _field(path, about, "sha256", str))
        target = path.parent / name
        if not target.is_file():
            raise BundleNotFoundError(f"there is no {target}, which {MANIFEST} lists")
        size = target.stat().st_size
        if size != expected.num_bytes:
            raise BundleError(
                f"{target} was changed: it has {size} bytes, but {MANIFEST} says "
                f"{expected.num_bytes}"
            )
        files[name] = expected
    return files


def _graphs(
    path: Path, fields: Mapping[str, Any], files: Mapping[str, FileInfo]
) -> dict[Graph, GraphInfo]:
    graphs: dict[Graph, GraphInfo] = {}
    for name in _present(fields):
        about = _field(path, fields, name, dict)
        file = _field(path, about, "file", str)
        if file not in files:
            raise BundleError(f"{path}: the graph {name} is in {file!r}, which is not listed")
        found: dict[str, tuple[str, ...]] = {}
        for side, expected in (("inputs", INPUTS[name]), ("outputs", OUTPUTS[name])):
            entries = _field(path, about, side, list)
            found[side] = tuple(str(e.get("name")) for e in entries if isinstance(e, dict))
            if found[side] != expected:
                raise BundleError(
                    f"{path}: the {side} of {name} are {', '.join(found[side])}; "
                    f"expected {', '.join(expected)}"
                )
        graphs[name] = GraphInfo(file, found["inputs"], found["outputs"])
    return graphs


def _present(fields: Any) -> tuple[Graph, ...]:
    """The graphs that have to be there, and the fused one where it is."""
    fused = isinstance(fields, dict) and "encoder" in fields
    return tuple(INPUTS) if fused else PIPELINE


def _decoder(
    path: Path, manifest: Mapping[str, Any], files: Mapping[str, FileInfo]
) -> DecoderInfo | None:
    if manifest.get("decoder") is None:
        return None
    about = _field(path, manifest, "decoder", dict)
    numbers = {
        name: _field(path, about, name, int)
        for name in (
            "context",
            "num_layers",
            "num_kv_heads",
            "cache_width",
            "hidden_size",
            "vocab_size",
        )
    }
    info = DecoderInfo(
        file=_field(path, about, "file", str),
        embed_tokens=_field(path, about, "embed_tokens", str),
        precision=_field(path, about, "precision", str),
        **numbers,
    )
    if info.precision not in DECODER_PRECISIONS:
        raise BundleError(
            f"{path}: the decoder's precision {info.precision!r} cannot be run here; can be: "
            f"{', '.join(DECODER_PRECISIONS)}"
        )
    for name in (info.file, f"{info.file}.data", info.embed_tokens):
        if name not in files:
            raise BundleError(f"{path}: the decoder needs {name!r}, which is not listed")
    return info


def _paddle(
    path: Path, manifest: Mapping[str, Any], files: Mapping[str, FileInfo]
) -> PaddleInfo | None:
    if manifest.get("paddle") is None:
        return None
    about = _field(path, manifest, "paddle", dict)
    precisions = _field(path, about, "precisions", list)
    int8: Mapping[Graph, tuple[str, str]] = {}
    if "int8" in precisions:
        section = _field(path, about, "int8", dict)
        int8 = _paddle_graphs(path, section, ("vision", "text"), files)
    return PaddleInfo(
        graphs=_paddle_graphs(path, about, _present(about.get("graphs")), files),
        int8=int8,
        precisions=tuple(name for name in PADDLE_PRECISIONS if name in precisions),
    )


def _paddle_graphs(
    path: Path, about: Mapping[str, Any], names: tuple[Graph, ...], files: Mapping[str, FileInfo]
) -> dict[Graph, tuple[str, str]]:
    fields = _field(path, about, "graphs", dict)
    graphs: dict[Graph, tuple[str, str]] = {}
    for name in names:
        graph = _field(path, fields, name, dict)
        program, params = (_field(path, graph, key, str) for key in ("program", "params"))
        for file in (program, params):
            if file not in files:
                raise BundleError(f"{path}: Paddle's {name} is in {file!r}, which is not listed")
        graphs[name] = (program, params)
    return graphs
