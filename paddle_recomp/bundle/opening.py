"""From a folder to a `Bundle`: reads recomp.json and finds every file that it names. Only these,
and files that the golden cases name, are ever read. docs/bundle.md describes them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from paddle_recomp.bundle.bundle import (
    Bundle,
    CompressorInfo,
    DecoderInfo,
    GraphInfo,
    LanguageModelSource,
    PaddleInfo,
    PromptInfo,
    QuestionInfo,
)
from paddle_recomp.bundle.checksums import Checksums, check_name
from paddle_recomp.bundle.contract import (
    FROM_THE_LANGUAGE_MODEL,
    INPUTS,
    KNOWN_INPUTS,
    KNOWN_OUTPUTS,
    OUTPUTS,
    Graph,
)
from paddle_recomp.bundle.schema import RECOMP, check, load_schema
from paddle_recomp.errors import BundleError, BundleNotFoundError
from paddle_recomp.files import is_file
from paddle_recomp.json_files import listed, one_line, parse_json, read_bytes, shown
from paddle_recomp.preprocess import IMAGE_PLACEHOLDER, ChatTemplate, ImageProcessor
from paddle_recomp.types import StageInfo, StageKind

MANIFEST = "recomp.json"
FORMAT = 2
"""The version of the layout; a reader refuses every other one."""
ABILITIES = frozenset({"before_words", "question_begin"})
"""Names that a bundle may have in `requires`."""
PRECISIONS = ("fp32", "int8")
"""Of the towers; the schema has them, too."""
DECODER_PRECISIONS = ("fp32", "int8", "int4")
"""The same of the language model's decoder."""
PADDLE_PRECISIONS = ("fp32", "bf16", "int8")
"""Those of Paddle Inference that this version can run; others in a bundle are passed over."""


def open_bundle(folder: Path, compress: str | None = None) -> Bundle:
    """Reads recomp.json and looks for every file that it names. `compress` chooses among the
    graphs that compress; None: the bundle's default.

    Raises: BundleNotFoundError for the folder or a file that is not there; BundleError for another
    format, a field or a file that is not as it should be, anything that this version cannot run,
    or a name that `compress` has and the bundle has not."""
    path = folder / MANIFEST
    try:
        content = read_bytes(path, BundleError, BundleNotFoundError)
    except BundleNotFoundError as error:
        raise BundleNotFoundError(f"{error}: not a bundle") from None
    manifest = parse_json(content, str(path), BundleError)
    _check_format(path, manifest)
    sums = Checksums.read(folder)
    sums.compare(MANIFEST, hashlib.sha256(content).hexdigest())
    named = check(manifest, load_schema(RECOMP), str(path))
    if unknown := set(manifest["requires"]) - ABILITIES:
        raise BundleError(
            f"{path} requires {listed(sorted(unknown))}, which this version of "
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
        vision_width=manifest["sizes"]["vision_width"],
        joint_width=manifest["sizes"]["joint_width"],
        question=QuestionInfo(**_known(QuestionInfo, question)),
        prompt=_prompt(path, manifest),
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
            f"{path} has format {shown(version)}; this version of paddle_recomp reads format "
            f"{FORMAT}: update it, or export again"
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
        if not is_file(target):
            raise BundleNotFoundError(f"there is no {target}, which {MANIFEST} names")
        sizes[name] = target.stat().st_size
    return sizes


def _compressors(path: Path, manifest: Mapping[str, Any]) -> dict[str, CompressorInfo]:
    """The default first. Raises: BundleError."""
    about, paddle = manifest["compress"], manifest.get("paddle")
    default, graphs = about["default"], about["graphs"]
    if default not in graphs:
        raise BundleError(
            f"{path}: compress.default is {shown(default)}; expected one of: {listed(graphs)}"
        )
    found = {}
    for name in dict.fromkeys([default, *graphs]):
        files = None
        if paddle is not None:
            if name not in paddle["compress"]:
                raise BundleError(f"{path}: paddle.compress.{one_line(name)} is missing")
            files = (paddle["compress"][name]["program"], paddle["compress"][name]["params"])
        # Another compressor may need a later version; it is refused when it is chosen.
        inputs = [item["name"] for item in graphs[name]["inputs"]]
        unknown = next((one for one in inputs if one not in KNOWN_INPUTS["compress"]), None)
        if name == default:
            unknown = None
        place = f"compress.graphs.{one_line(name)}"
        found[name] = CompressorInfo(
            graph=_graph(path, place, "compress", graphs[name], lenient=unknown is not None),
            method=graphs[name]["method"],
            options=graphs[name]["options"],
            stages=_stages(path, name, graphs[name]["stages"]),
            paddle=files,
            unknown_input=unknown,
        )
    return found


def _stages(path: Path, name: str, about: Sequence[Mapping[str, Any]]) -> tuple[StageInfo, ...]:
    """Raises: BundleError for two stages of one name, which could not be counted apart."""
    stages = list[StageInfo]()
    for one in about:
        if any(one["name"] == other.name for other in stages):
            raise BundleError(
                f"{path}: compress.graphs.{one_line(name)} has two stages {shown(one['name'])}; "
                "expected a name of its own for each"
            )
        # A kind of a later version is drawn as tokens that stand for several patches.
        kind: StageKind = one["kind"] if one["kind"] in get_args(StageKind) else "merged"
        stages.append(StageInfo(one["name"], kind, one["meaning"]))
    return tuple(stages)


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
    side = image["crop"] // image["patch_size"]
    if image["grid"] != [side, side]:
        raise BundleError(
            f"{path}: image.grid is {image['grid']}, but image.crop {image['crop']} and "
            f"image.patch_size {image['patch_size']}; expected a grid of [{side}, {side}]"
        )
    return patches


def _prompt(path: Path, manifest: Mapping[str, Any]) -> PromptInfo:
    """Raises: BundleError for an id that the decoder does not have, or `<image>` in a wrong
    place."""
    about = manifest["prompt"]
    if "decoder" in manifest:
        size = manifest["decoder"]["vocab_size"]
        # image_token_id is never looked up, so a vocabulary may end in front of it.
        # A padding id is never looked up, and some vocabularies end in front of it.
        for field in ("bos_token_id", "eos_token_ids"):
            ids = about[field] if isinstance(about[field], list) else [about[field]]
            for number in ids:
                if number is not None and number >= size:
                    raise BundleError(
                        f"{path}: prompt.{field} has the id {number}, but decoder.vocab_size is "
                        f"{size}; expected an id below it"
                    )
    template = _known(ChatTemplate, about["template"])
    for piece, text in template.items():
        expected = 1 if piece == "image" else 0
        if (found := text.count(IMAGE_PLACEHOLDER)) != expected:
            raise BundleError(
                f"{path}: prompt.template.{piece} has {IMAGE_PLACEHOLDER} in it {found} times; "
                f"expected {expected}"
            )
    return PromptInfo(
        tokenizer=about["tokenizer"],
        bos_token_id=about["bos_token_id"],
        eos_token_ids=tuple(about["eos_token_ids"]),
        pad_token_id=about["pad_token_id"],
        image_token_id=about["image_token_id"],
        silent_ids=tuple(about["silent_ids"]),
        template=ChatTemplate(**template),
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
        missing = [key for key in compressor.graph.inputs if key not in given]
        if missing and compressor.unknown_input is None:
            raise BundleError(
                f"{path}: compress.graphs.{one_line(name)} reads {', '.join(missing)}, which no "
                "graph gives"
            )
    return {**graphs, "compress": next(iter(compressors.values())).graph}


def _graph(
    path: Path, place: str, graph: Graph, about: Mapping[str, Any], lenient: bool = False
) -> GraphInfo:
    """Raises: BundleError naming an input that this version does not know, unless `lenient`,
    or an output that is missing."""
    inputs, outputs = (tuple(item["name"] for item in about[key]) for key in ("inputs", "outputs"))
    for name in inputs:
        if name not in KNOWN_INPUTS[graph] and not lenient:
            raise BundleError(
                f"{path}: {place} reads {shown(name)}, which this version does not know; known: "
                f"{', '.join(sorted(KNOWN_INPUTS[graph]))}"
            )
    if ("word_embeds" in inputs) != ("word_mask" in inputs):
        raise BundleError(f"{path}: {place} reads one of word_embeds and word_mask; expected both")
    # A compressor reads some of what there is, and the vision graph gives what compressors read.
    needed = INPUTS[graph] if graph in ("vision", "text") else ["token_bounds"]
    promised = ["features"] if graph == "vision" else OUTPUTS[graph]
    for kind, wanted, found in (("input", needed, inputs), ("output", promised, outputs)):
        if missing := [name for name in wanted if name not in found]:
            raise BundleError(f"{path}: {place} has no {kind} {', '.join(missing)}")
    read = tuple(name for name in outputs if name in KNOWN_OUTPUTS[graph])
    return GraphInfo(about["file"], about["data"], inputs, outputs, read)


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
    """The fields of a dataclass among those of an object, which may have others, and may lack those
    that the schema lets it lack."""
    return {field.name: about[field.name] for field in fields(kind) if field.name in about}
