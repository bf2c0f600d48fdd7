"""An opened bundle as plain data: what there is, and how to choose and to check it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from paddle_recomp.bundle.checksums import Checksums
from paddle_recomp.bundle.contract import KNOWN_INPUTS, Graph
from paddle_recomp.bundle.onnx_files import external_files
from paddle_recomp.errors import BundleError
from paddle_recomp.json_files import listed, one_line, shown
from paddle_recomp.preprocess import (
    IMAGE_PLACEHOLDER,
    ChatTemplate,
    ClipTokenizer,
    ImageProcessor,
    LanguageTokenizer,
    QuestionSource,
    ids_of,
    load_tokenizer,
)
from paddle_recomp.types import StageInfo


@dataclass(frozen=True)
class GraphInfo:
    """A graph with what it takes and gives."""

    file: str
    data: str | None
    """The file of its weights, where they are not in the graph's own."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    read: tuple[str, ...]
    """The outputs that this version knows; it asks for no other."""

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
    unknown_input: str | None = None
    """An input that this version cannot give; a bundle's default compressor has none."""


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
    source: QuestionSource
    """What CLIP reads, as in `preprocess.clip_text`."""
    begin: str = ""
    """What stands in front of a prompt's first line, as in `preprocess.clip_text`."""


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
    vision_width: int
    joint_width: int
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
        """The same bundle with another compressor. Raises: BundleError for an unknown name, or
        one whose graph reads an array that this version does not know."""
        if compressor not in self.compressors:
            raise BundleError(
                f"{self.folder} has no compressor {shown(compressor)}; it has: "
                f"{listed(self.compressors)}"
            )
        if (unknown := self.compressors[compressor].unknown_input) is not None:
            raise BundleError(
                f"{self.folder}: the compressor {shown(compressor)} reads {shown(unknown)}, which "
                f"this version does not know; known: {listed(sorted(KNOWN_INPUTS['compress']))}"
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
    def question_source(self) -> QuestionSource:
        """What CLIP reads, as in `preprocess.clip_text`."""
        return self.question.source

    def clip_tokenizer(self) -> ClipTokenizer:
        """Raises: BundleError as `verified`; CheckpointError for a file that is no tokenizer."""
        about = self.question
        tokenizer = load_tokenizer(self.verified(about.tokenizer))
        return ClipTokenizer(tokenizer, about.start_id, about.end_id)

    def language_tokenizer(self) -> LanguageTokenizer:
        """Raises: BundleError as `verified`, where it makes another id of `<image>`, or has ids
        that the decoder does not have; CheckpointError for a file that is no tokenizer."""
        about = self.prompt
        tokenizer = load_tokenizer(self.verified(about.tokenizer))
        if about.image_token_id is not None:
            ids = ids_of(tokenizer, IMAGE_PLACEHOLDER)
            if ids != [about.image_token_id]:
                raise BundleError(
                    f"{self.folder}: prompt.image_token_id is {about.image_token_id}, but "
                    f"{about.tokenizer} makes {one_line(ids)} of {IMAGE_PLACEHOLDER}"
                )
        words = LanguageTokenizer(
            tokenizer,
            about.bos_token_id,
            about.eos_token_ids,
            about.pad_token_id,
            about.image_token_id,
            about.silent_ids,
            about.template,
        )
        if self.decoder is not None and words.highest_id >= self.decoder.vocab_size:
            raise BundleError(
                f"{self.folder}: a prompt may have the id {words.highest_id} of {about.tokenizer}, "
                f"but decoder.vocab_size is {self.decoder.vocab_size}; expected an id below it"
            )
        return words

    def verified(self, name: str) -> Path:
        """The path of a file whose content is what SHA256SUMS says.

        Raises: BundleNotFoundError when it is not there; BundleError when it was changed."""
        return self.sums.verified(name)

    def verify_model(self, file: str, data: str | None) -> None:
        """Compares the files of a graph, and looks that the graph reads no other file.

        Raises: as `verified`; BundleError naming a file that the graph reads and recomp.json does
        not name, or weights that are a link out of the folder."""
        self.verify((file,) if data is None else (file, data))
        folder = PurePosixPath(file).parent
        # A link of the model is followed; for its weights the runtime does not leave the folder.
        inside = (self.folder / folder).resolve()
        if data is not None and not (self.folder / data).resolve().is_relative_to(inside):
            raise BundleError(
                f"{self.folder / data} is a link out of the bundle, as caches of downloads have "
                f"them, and ONNX Runtime does not follow it: copy the bundle with its links "
                f"followed, cp -rL {self.folder} COPY"
            )
        for name in sorted(external_files(self.folder / file)):
            if (folder / name).as_posix() != data:
                raise BundleError(
                    f"{self.folder / file} reads the file {shown(name)}, which recomp.json does "
                    "not name as its data"
                )

    def verify(self, names: Iterable[str] | None = None) -> None:
        """Compares these files, by default all that recomp.json names. Raises: as `verified`."""
        for name in self.sizes if names is None else names:
            self.verified(name)
