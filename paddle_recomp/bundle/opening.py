"""A bundle: the folder that an export writes and everything else runs. docs/bundle.md describes it.

recomp.json says what there is, SHA256SUMS what every file must hash to. Only files that recomp.json
or the golden cases name are ever read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from paddle_recomp.bundle.checksums import Checksums, check_name
from paddle_recomp.bundle.contract import (
    FROM_THE_LANGUAGE_MODEL,
    INPUTS,
    KNOWN_INPUTS,
    OUTPUTS,
    Graph,
)
from paddle_recomp.bundle.schema import RECOMP, check, load_schema
from paddle_recomp.errors import BundleError, BundleNotFoundError
from paddle_recomp.json_files import parse_json, read_bytes, shown
from paddle_recomp.preprocess import (
    ChatTemplate,
    ClipTokenizer,
    ImageProcessor,
    LanguageTokenizer,
    load_tokenizer,
)
from paddle_recomp.types import StageInfo

MANIFEST = "recomp.json"
FORMAT = 2
"""The version of the layout; a reader refuses every other one."""
ABILITIES: frozenset[str] = frozenset()
"""Names that a bundle may have in `requires`."""
PRECISIONS = ("fp32", "int8")
"""Of the towers; the schema has them, too."""
DECODER_PRECISIONS = ("fp32", "int8", "int4")
"""The same of the language model's decoder."""
PADDLE_PRECISIONS = ("fp32", "bf16", "int8")
"""Those of Paddle Inference that this version can run; others in a bundle are passed over."""


@dataclass(frozen=True)
class GraphInfo:
    """A graph with what it takes and gives."""

    file: str
    data: str | None
    """The file of its weights, where they are not in the graph's own."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """Everything that is read when the graph is loaded."""
        return (self.file,) if self.data is None else (self.file, self.data)


@dataclass(frozen=True)
class CompressorInfo:
    """One of the graphs that choose and merge tokens."""

    graph: GraphInfo
    method: str
    options: Mapping[str, Any]
    """Of the method. They are fixed in the graph."""
    stages: tuple[StageInfo, ...]
    """Why a token is there, by the numbers in `token_stage`."""
    paddle: tuple[str, str] | None
    """Its files for Paddle Inference, as in `PaddleInfo`."""


@dataclass(frozen=True)
class DecoderInfo:
    """The language model's decoder: its files, and the sizes of its KV cache."""

    file: str
    data: str
    """The file of its weights."""
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

    @property
    def files(self) -> tuple[str, ...]:
        """Everything that is read when the decoder is loaded."""
        return (self.file, self.data, self.embed_tokens)


@dataclass(frozen=True)
class PaddleInfo:
    """The files that Paddle Inference reads."""

    graphs: Mapping[Graph, tuple[str, str]]
    """The program and the weights of each graph, for fp32 and bf16 alike."""
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
class QuestionInfo:
    """How a question becomes `question_ids`."""

    tokenizer: str
    positions: int
    start_id: int
    end_id: int
    source: Literal["question", "prompt_first_line"]
    """What CLIP reads, as in `preprocess.clip_text`."""


@dataclass(frozen=True)
class PromptInfo:
    """How a conversation becomes ids, and ids become text."""

    tokenizer: str
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    image_token_id: int | None
    silent_ids: tuple[int, ...]
    template: ChatTemplate


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. Made by `open_bundle`, which has read recomp.json and found every file that
    it names; a file's checksum is compared when its path is asked for, so that only files that are
    used are read."""

    folder: Path
    precision: str
    operators: str
    """`onnx`: of the standard alone; `onnxruntime`: with the runtime's own."""
    image_processor: ImageProcessor
    num_patches: int
    question: QuestionInfo
    prompt: PromptInfo
    compressors: Mapping[str, CompressorInfo]
    """All graphs that compress, by name, the default first."""
    compressor: str
    """The name of the one that was chosen."""
    towers: Mapping[str, Any]
    """The switches of the towers. They are fixed in the graphs."""
    graphs: Mapping[Graph, GraphInfo]
    """`compress` is the chosen one; `encoder` is only where the bundle has one for it."""
    language_model: LanguageModelSource
    decoder: DecoderInfo | None
    """None where the language model is not in the bundle."""
    paddle: PaddleInfo | None
    """None where the bundle was exported for ONNX Runtime alone."""
    golden: str | None
    """The file of the golden cases; None where there are none."""
    scales: str | None
    """The file of the ranges that another export can take; None where there is none."""
    sizes: Mapping[str, int]
    """Bytes of every file that recomp.json names, and of recomp.json."""
    sums: Checksums

    def choose(self, compressor: str) -> Bundle:
        """The same bundle with another compressor. Raises: BundleError for an unknown name."""
        if compressor not in self.compressors:
            raise BundleError(
                f"{self.folder} has no compressor {shown(compressor)}; it has: "
                f"{', '.join(self.compressors)}"
            )
        chosen, graphs, paddle = self.compressors[compressor], dict(self.graphs), self.paddle
        graphs["compress"] = chosen.graph
        if compressor != next(iter(self.compressors)):
            # The fused graph has the default compressor in it.
            graphs.pop("encoder", None)
        if paddle is not None and chosen.paddle is not None:
            files = {name: paddle.graphs[name] for name in graphs if name in paddle.graphs}
            paddle = replace(paddle, graphs={**files, "compress": chosen.paddle})
        return replace(self, compressor=compressor, graphs=graphs, paddle=paddle)

    @property
    def method(self) -> str:
        """The name of the chosen compressor's method."""
        return self.compressors[self.compressor].method

    @property
    def options(self) -> Mapping[str, Any]:
        """The options of that method. They are fixed in the graph."""
        return self.compressors[self.compressor].options

    @property
    def stages(self) -> tuple[StageInfo, ...]:
        """Why a token is there, by the numbers in `token_stage`."""
        return self.compressors[self.compressor].stages

    @property
    def checksums(self) -> dict[str, str]:
        """The sha256 of every file that recomp.json names, and of recomp.json."""
        return {name: self.sums.expected[name] for name in self.sizes}

    @property
    def template(self) -> ChatTemplate:
        """The pieces that a prompt is put together from."""
        return self.prompt.template

    @property
    def question_positions(self) -> int:
        """The length of a question for CLIP's text tower."""
        return self.question.positions

    @property
    def question_source(self) -> Literal["question", "prompt_first_line"]:
        """What CLIP reads, as in `preprocess.clip_text`."""
        return self.question.source

    def clip_tokenizer(self) -> ClipTokenizer:
        """Raises: BundleError as `verified`; CheckpointError for a file that is no tokenizer."""
        about = self.question
        tokenizer = load_tokenizer(self.verified(about.tokenizer))
        return ClipTokenizer(tokenizer, about.start_id, about.end_id)

    def language_tokenizer(self) -> LanguageTokenizer:
        """Raises: BundleError as `verified`; CheckpointError for a file that is no tokenizer."""
        about = self.prompt
        return LanguageTokenizer(
            load_tokenizer(self.verified(about.tokenizer)),
            about.bos_token_id,
            about.eos_token_ids,
            about.pad_token_id,
            about.image_token_id,
            about.silent_ids,
        )

    def verified(self, name: str) -> Path:
        """The path of a file whose content is what SHA256SUMS says.

        Raises: BundleNotFoundError when it is not there; BundleError when it was changed."""
        return self.sums.verified(name)

    def verify(self, names: Iterable[str] | None = None) -> None:
        """Compares these files, by default all that recomp.json names. Raises: as `verified`."""
        for name in self.sizes if names is None else names:
            self.verified(name)


def open_bundle(folder: Path, compress: str | None = None) -> Bundle:
    """Reads recomp.json and looks for every file that it names. `compress` chooses among the
    graphs that compress; None: the bundle's default.

    Raises: BundleNotFoundError for the folder or a file that is not there; BundleError for another
    format, a field or a file that is not as it should be, anything that this version cannot run,
    or a name that `compress` has and the bundle has not."""
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleNotFoundError(f"there is no {path}: not a bundle")
    content = read_bytes(path, BundleError, BundleNotFoundError)
    manifest = parse_json(content, str(path), BundleError)
    _check_format(path, manifest)
    sums = Checksums.read(folder)
    sums.compare(MANIFEST, hashlib.sha256(content).hexdigest())
    named = check(manifest, load_schema(RECOMP), str(path))
    if unknown := set(manifest["requires"]) - ABILITIES:
        raise BundleError(
            f"{path} requires {', '.join(map(shown, sorted(unknown)))}, which this version of "
            "paddle_recomp cannot do: update it"
        )
    sizes = _find_files(path, named, sums)
    question, compressors = manifest["question"], _compressors(path, manifest)
    graphs = _graphs(path, manifest, compressors)
    default = next(iter(compressors))
    bundle = Bundle(
        folder=folder,
        precision=manifest["precision"],
        operators=manifest["operators"],
        image_processor=_image_processor(manifest["image"]),
        num_patches=_patches(path, manifest),
        question=QuestionInfo(**_known(QuestionInfo, question)),
        prompt=_prompt(manifest["prompt"]),
        compressors=compressors,
        compressor=default,
        towers={**manifest.get("towers", {}), "question_source": question["source"]},
        graphs=graphs,
        language_model=LanguageModelSource(
            **_known(LanguageModelSource, manifest["language_model"])
        ),
        decoder=_decoder(path, manifest),
        paddle=_paddle(path, manifest, compressors[default]),
        golden=manifest["golden"]["cases"] if "golden" in manifest else None,
        scales=manifest.get("scales"),
        sizes=sizes,
        sums=sums,
    )
    return bundle if compress is None else bundle.choose(compress)


def _check_format(path: Path, manifest: Mapping[str, Any]) -> None:
    version = manifest.get("format")
    if version == FORMAT and type(version) is int:
        return
    if type(version) is int and version > FORMAT:
        raise BundleError(
            f"{path} has format {version}; this version of paddle_recomp reads format {FORMAT}: "
            "update it, or export again"
        )
    raise BundleError(
        f"{path}: format is {'missing' if version is None else shown(version)}; this version of "
        f"paddle_recomp reads format {FORMAT}: export the bundle again"
    )


def _find_files(path: Path, named: Mapping[str, str], sums: Checksums) -> dict[str, int]:
    """The size of each file; nothing of it is read.

    Raises: BundleError for a name that leads out of the folder or has no checksum;
    BundleNotFoundError."""
    sizes = {MANIFEST: path.stat().st_size}
    for name, field in named.items():
        check_name(path, name)
        target = path.parent / name
        if name not in sums.expected:
            raise BundleError(f"{path}: {field} is {shown(name)}, which has no sum in SHA256SUMS")
        if not target.is_file():
            raise BundleNotFoundError(f"there is no {target}, which {MANIFEST} names")
        sizes[name] = target.stat().st_size
    return sizes


def _compressors(path: Path, manifest: Mapping[str, Any]) -> dict[str, CompressorInfo]:
    """The default first. Raises: BundleError."""
    about, paddle = manifest["compress"], manifest.get("paddle")
    default, graphs = about["default"], about["graphs"]
    if default not in graphs:
        raise BundleError(
            f"{path}: compress.default is {shown(default)}; expected one of: {', '.join(graphs)}"
        )
    found = {}
    for name in dict.fromkeys([default, *graphs]):
        files = None
        if paddle is not None:
            if name not in paddle["compress"]:
                raise BundleError(f"{path}: paddle.compress.{name} is missing")
            files = (paddle["compress"][name]["program"], paddle["compress"][name]["params"])
        found[name] = CompressorInfo(
            graph=_graph(path, f"compress.graphs.{name}", "compress", graphs[name]),
            method=graphs[name]["method"],
            options=graphs[name]["options"],
            stages=tuple(StageInfo(**_known(StageInfo, one)) for one in graphs[name]["stages"]),
            paddle=files,
        )
    return found


def _image_processor(about: Mapping[str, Any]) -> ImageProcessor:
    mean, std, colour = about["mean"], about["std"], about["pad_colour"]
    return ImageProcessor(
        size=about["size"],
        crop=about["crop"],
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        aspect=about["aspect"],
        rescale=about["rescale"],
        pad_colour=(colour[0], colour[1], colour[2]),
    )


def _patches(path: Path, manifest: Mapping[str, Any]) -> int:
    image = manifest["image"]
    patches: int = image["patches"]
    if image["grid"][0] * image["grid"][1] != patches or manifest["sizes"]["max_tokens"] != patches:
        raise BundleError(
            f"{path}: image.patches is {patches}, image.grid {image['grid']}, sizes.max_tokens "
            f"{manifest['sizes']['max_tokens']}; expected the same number of patches in all"
        )
    return patches


def _prompt(about: Mapping[str, Any]) -> PromptInfo:
    return PromptInfo(
        tokenizer=about["tokenizer"],
        bos_token_id=about["bos_token_id"],
        eos_token_ids=tuple(about["eos_token_ids"]),
        pad_token_id=about["pad_token_id"],
        image_token_id=about["image_token_id"],
        silent_ids=tuple(about["silent_ids"]),
        template=ChatTemplate(**_known(ChatTemplate, about["template"])),
    )


def _graphs(
    path: Path, manifest: Mapping[str, Any], compressors: Mapping[str, CompressorInfo]
) -> dict[Graph, GraphInfo]:
    """With the default compressor. Raises: BundleError."""
    about = manifest["graphs"]
    names: tuple[Graph, ...] = ("vision", "text", "encoder")
    graphs: dict[Graph, GraphInfo] = {
        name: _graph(path, f"graphs.{name}", name, about[name]) for name in names if name in about
    }
    given = {"token_bounds", *FROM_THE_LANGUAGE_MODEL}
    given.update(graphs["vision"].outputs, graphs["text"].outputs)
    for name, compressor in compressors.items():
        if missing := [key for key in compressor.graph.inputs if key not in given]:
            raise BundleError(
                f"{path}: compress.graphs.{name} reads {', '.join(missing)}, which no graph gives"
            )
    return {**graphs, "compress": next(iter(compressors.values())).graph}


def _graph(path: Path, place: str, graph: Graph, about: Mapping[str, Any]) -> GraphInfo:
    """Raises: BundleError naming an input that this version does not know, or an output that is
    missing."""
    inputs, outputs = (tuple(item["name"] for item in about[key]) for key in ("inputs", "outputs"))
    for name in inputs:
        if name not in KNOWN_INPUTS[graph]:
            raise BundleError(
                f"{path}: {place} reads {shown(name)}, which this version does not know; known: "
                f"{', '.join(sorted(KNOWN_INPUTS[graph]))}"
            )
    # A compressor reads some of what there is, and the vision graph gives what compressors read.
    needed = INPUTS[graph] if graph in ("vision", "text") else ["token_bounds"]
    promised = ["features"] if graph == "vision" else OUTPUTS[graph]
    for kind, wanted, found in (("input", needed, inputs), ("output", promised, outputs)):
        if missing := [name for name in wanted if name not in found]:
            raise BundleError(f"{path}: {place} has no {kind} {', '.join(missing)}")
    return GraphInfo(about["file"], about["data"], inputs, outputs)


def _decoder(path: Path, manifest: Mapping[str, Any]) -> DecoderInfo | None:
    if "decoder" not in manifest:
        return None
    info = DecoderInfo(**_known(DecoderInfo, manifest["decoder"]))
    width = manifest["sizes"]["language_width"]
    if info.hidden_size != width:
        raise BundleError(
            f"{path}: decoder.hidden_size is {info.hidden_size}, but sizes.language_width {width}"
        )
    return info


def _paddle(path: Path, manifest: Mapping[str, Any], default: CompressorInfo) -> PaddleInfo | None:
    if "paddle" not in manifest or default.paddle is None:
        return None
    about = manifest["paddle"]
    precisions = about["precisions"]
    if "int8" in precisions and "int8" not in about:
        raise BundleError(f"{path}: paddle.int8 is missing, which paddle.precisions has")
    return PaddleInfo(
        graphs={**_paddle_files(about["graphs"]), "compress": default.paddle},
        int8=_paddle_files(about["int8"]["graphs"]) if "int8" in precisions else {},
        precisions=tuple(name for name in PADDLE_PRECISIONS if name in precisions),
    )


def _paddle_files(graphs: Mapping[str, Any]) -> dict[Graph, tuple[str, str]]:
    known: tuple[Graph, ...] = ("vision", "text", "encoder")
    return {
        name: (graphs[name]["program"], graphs[name]["params"]) for name in known if name in graphs
    }


def _known(kind: Any, about: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a dataclass among those of an object, which may have others."""
    return {field.name: about[field.name] for field in fields(kind)}
