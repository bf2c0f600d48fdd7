"""From the name of a model to a runner: how a VLM is built from a checkpoint or from a bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from paddle_recomp.backends.base import Backend
from paddle_recomp.bundle import MANIFEST, SUMS, Bundle, open_bundle
from paddle_recomp.bundle.contract import PIPELINE, VISION_OUTPUTS, Graph
from paddle_recomp.checkpoint import PARTS, Checkpoint, open_checkpoint
from paddle_recomp.compression.config import CompressionConfig
from paddle_recomp.compression.registry import METHODS
from paddle_recomp.errors import BundleError, ConfigError, MissingDependencyError
from paddle_recomp.files import is_file
from paddle_recomp.json_files import shown
from paddle_recomp.llm.base import LanguageModel
from paddle_recomp.preprocess import ChatTemplate
from paddle_recomp.vlm.answering import Answerer
from paddle_recomp.vlm.cached_backend import CachedBackend
from paddle_recomp.vlm.checkpoint_inputs import (
    image_processor,
    language_side,
    question_begin,
    question_tokenizer,
)
from paddle_recomp.vlm.demo import DEMO, DEMO_CHECKPOINT, demo_bundle_folder, demo_folder
from paddle_recomp.vlm.feature_cache import FeatureCache
from paddle_recomp.vlm.fingerprints import (
    feature_shapes,
    latency_file,
    projector_checksum,
    tower_key,
)
from paddle_recomp.vlm.front_end import VisualFrontEnd
from paddle_recomp.vlm.model_info import ModelInfo
from paddle_recomp.vlm.runtimes import BACKENDS, decoder_provider, runtimes
from paddle_recomp.vlm.vlm import VLM

OnBytes = Callable[[int], None]
"""Hears the bytes of each piece that was loaded."""


def find_checkpoint(
    model: str | Path, clip: str | Path | None = None, template: str | None = None
) -> Checkpoint:
    """Opens a checkpoint folder, or that of the embedded model by either of its names. `template`
    is the name or the file of the chat template to use in place of its own.

    Raises: CheckpointNotFoundError, CheckpointError; ConfigError for a CLIP that it has itself."""
    if str(model) in (DEMO, DEMO_CHECKPOINT):
        if clip is not None:
            raise ConfigError(f"{model} has a CLIP of its own; --clip {clip} is for other folders")
        return open_checkpoint(demo_folder() / "llava", demo_folder() / "clip", template)
    return open_checkpoint(Path(model), None if clip is None else Path(clip), template)


def find(
    model: str | Path,
    clip: str | Path | None = None,
    llm: str | Path | None = None,
    compress: str | None = None,
    template: str | None = None,
) -> Checkpoint | Bundle:
    """Opens a folder: as a bundle if it has a recomp.json, else as a checkpoint. `demo` is the
    embedded bundle, `demo-checkpoint` the checkpoint of that bundle. For a bundle, `clip` goes with
    `llm`, and `compress` names one of its compressors; for a checkpoint, `template` is as for
    `find_checkpoint`.

    Raises: as `find_checkpoint` and `open_bundle`."""
    folder = demo_bundle_folder() if str(model) == DEMO else Path(model)
    # A bundle without its recomp.json is told apart from a checkpoint by its checksums.
    bundle = str(model) == DEMO or any(is_file(folder / name) for name in (MANIFEST, SUMS))
    if str(model) == DEMO_CHECKPOINT or not bundle:
        if compress is not None:
            raise ConfigError(
                f"{model} is a checkpoint; a compressor {compress!r} is chosen for a bundle"
            )
        return find_checkpoint(model, clip, template)
    if template is not None:
        raise ConfigError(
            f"{model} is a bundle and has its chat template in it; --chat-template "
            f"{shown(template)} is for checkpoints"
        )
    if clip is not None and llm is None:
        raise ConfigError(f"{model} is a bundle and has its CLIP in it; --clip {clip} has no use")
    return open_bundle(folder, compress)


def load(
    model: str | Path = DEMO,
    clip: str | Path | None = None,
    config: CompressionConfig | None = None,
    device: str = "cpu",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    llm: str | Path | None = None,
    backend: str | None = None,
    precision: str | None = None,
    cache: FeatureCache | None = None,
    compress: str | None = None,
    template: str | None = None,
) -> VLM:
    """A runner for a checkpoint, in eager Paddle, or for a bundle, in ONNX Runtime. If a bundle was
    exported without its language model, `llm` is the folder of its checkpoint (with `clip`, as for
    any checkpoint), whose language model runs in eager Paddle. `backend` and `precision` choose the
    runtime of a bundle's visual encoder, and `cache` remembers seen pictures; see `load_front_end`.
    `compress` chooses among the compressors of a bundle. `template` is the chat template of a
    checkpoint in place of its own: a name of `preprocess.TEMPLATES`, or a file.

    `on_progress` hears the bytes loaded so far and the bytes in all.
    Raises: as `load_front_end`."""
    found = find(model, clip, llm, compress, template)
    language = None
    if isinstance(found, Bundle):
        if found.decoder is None or llm is not None:
            language = _language_checkpoint(found, llm, clip)
        front_end, answerer = _load_bundle(
            found, language, config, device, on_progress, backend, precision, cache
        )
    elif llm is not None:
        raise ConfigError(f"{model} is a checkpoint and has its own language model")
    else:
        front_end, answerer = _load_checkpoint(
            found, config, device, on_progress, backend, precision, cache
        )
    run_by = runtimes(found, device, backend, precision, language is None)
    file = latency_file(found, config, run_by, None if language is None else language.spec)
    return VLM(front_end, answerer, file, ModelInfo(str(model), found, config, *run_by))


def _load_checkpoint(
    checkpoint: Checkpoint,
    config: CompressionConfig | None,
    device: str,
    on_progress: Callable[[int, int], None],
    backend: str | None,
    precision: str | None,
    cache: FeatureCache | None,
) -> tuple[VisualFrontEnd, Answerer]:
    """All of it runs in eager Paddle."""
    on_bytes = _counter(sum(checkpoint.num_bytes(part) for part in PARTS), on_progress)
    front_end = load_front_end(checkpoint, config, device, on_bytes, backend, precision, cache)
    model = _paddle_llama(checkpoint, device, on_bytes)
    return front_end, Answerer(model, *language_side(checkpoint))


def _load_bundle(
    bundle: Bundle,
    language: Checkpoint | None,
    config: CompressionConfig | None,
    device: str,
    on_progress: Callable[[int, int], None],
    backend: str | None,
    precision: str | None,
    cache: FeatureCache | None,
) -> tuple[VisualFrontEnd, Answerer]:
    """The front end runs by its backend; the language model is that of a checkpoint, or else the
    bundle's own decoder."""
    model: LanguageModel
    if bundle.decoder is not None and language is None:
        front_end = load_front_end(
            bundle, config, device, backend=backend, precision=precision, cache=cache
        )
        total = sum(bundle.sizes[name] for name in bundle.decoder.files)
        model = bundle_decoder(bundle, device, _counter(total, on_progress))
    else:
        assert language is not None
        on_bytes = _counter(language.num_bytes("language_model"), on_progress)
        front_end = load_front_end(bundle, config, device, on_bytes, backend, precision, cache)
        # Paddle's devices are no providers of ONNX Runtime, so the decoder runs on the CPU.
        model = _paddle_llama(language, "cpu", on_bytes)
    return front_end, Answerer(model, bundle.language_tokenizer(), bundle.template)


def load_front_end(
    model: Checkpoint | Bundle,
    config: CompressionConfig | None = None,
    device: str = "cpu",
    on_tensor: OnBytes = lambda num_bytes: None,
    backend: str | None = None,
    precision: str | None = None,
    cache: FeatureCache | None = None,
) -> VisualFrontEnd:
    """The part in front of the language model: a checkpoint in eager Paddle; a bundle in ONNX
    Runtime (`backend` onnx, the default), where `device` names the execution provider, or in Paddle
    Inference (`backend` paddle), where `precision` is chosen. A bundle has its configuration in it.
    With a `cache`, the vision tower runs only over pictures whose features are not in it.

    Raises: DeviceError, ConfigError, CheckpointError, BundleError, MissingDependencyError."""
    if not isinstance(config, CompressionConfig | None):
        raise ConfigError(
            f"config is of type {type(config).__name__}; expected a CompressionConfig, for example "
            "preset('faithful')"
        )
    if isinstance(model, Bundle):
        front_end = _bundle_front_end(model, config, device, backend, precision)
    elif backend is not None or precision is not None:
        raise ConfigError("a checkpoint runs in eager Paddle; backend and precision are a bundle's")
    else:
        front_end = _checkpoint_front_end(model, config or CompressionConfig(), device, on_tensor)
    if cache is None:
        return front_end
    encoder, _ = runtimes(model, device, backend, precision)
    reads = front_end.backend.inputs("compress")
    if isinstance(model, Bundle):
        # Several compressors of a bundle share one graph, which gives what all of them read.
        reads = model.graphs["vision"].read
    outputs = [name for name in VISION_OUTPUTS if name in reads]
    tower = tower_key(model, config, encoder, outputs)
    shapes = feature_shapes(model, outputs)
    # The ranges of dynamic INT8 span a batch.
    alone = encoder.precision == "int8"
    cached = CachedBackend(front_end.backend, cache, tower, shapes, one_by_one=alone)
    return replace(front_end, backend=cached)


def chat_template(model: Checkpoint | Bundle) -> ChatTemplate:
    """The template that a model was trained on."""
    if isinstance(model, Bundle):
        return model.template
    return language_side(model)[1]


def _language_checkpoint(
    bundle: Bundle, llm: str | Path | None, clip: str | Path | None
) -> Checkpoint:
    """The checkpoint of a bundle's language model.

    Raises: ConfigError when its folder has to be named; BundleError when it is another model's."""
    source = bundle.language_model
    if llm is None and source.name != DEMO:
        raise ConfigError(
            f"{bundle.folder} has no language model in it; name the folder of the checkpoint "
            f"{shown(source.name)} that it was exported from (--llm DIR)"
        )
    checkpoint = find_checkpoint(llm or DEMO, clip)
    if projector_checksum(checkpoint) != source.projector_sha256:
        raise BundleError(
            f"{bundle.folder} was exported from another checkpoint than {checkpoint.model_dir}: "
            "their projectors differ; export it again, or name the right one (--llm DIR)"
        )
    return checkpoint


def _bundle_front_end(
    bundle: Bundle,
    config: CompressionConfig | None,
    device: str,
    backend: str | None,
    precision: str | None,
) -> VisualFrontEnd:
    if config is not None:
        _check_config(bundle, config)
    return VisualFrontEnd(
        backend=bundle_backend(bundle, device, backend, precision),
        image_processor=bundle.image_processor,
        tokenizer=bundle.clip_tokenizer(),
        question_positions=bundle.question_positions,
        question_source=bundle.question_source,
        question_begin=bundle.question.begin,
        stages=bundle.stages,
    )


def config_of(bundle: Bundle) -> CompressionConfig:
    """The configuration that a bundle was exported with, with its chosen compressor. An option that
    is younger than the bundle had its default then.

    Raises: ConfigError for a method or an option that this version does not have."""
    return CompressionConfig(bundle.method, **bundle.towers, **bundle.options)


def _is_exported_with(bundle: Bundle, config: CompressionConfig) -> bool:
    """Whether the chosen compressor is that of a configuration; one of a method that this version
    does not have is not."""
    return bundle.method in METHODS and config_of(bundle) == config


def _check_config(bundle: Bundle, config: CompressionConfig) -> None:
    """Raises: ConfigError where a bundle was exported with another configuration."""
    others = [one for one in bundle.compressors if _is_exported_with(bundle.choose(one), config)]
    if bundle.compressor in others:
        return
    exported = {"method": bundle.method, **bundle.towers, **bundle.options}
    if bundle.method in METHODS:
        exported = config_of(bundle).as_dict()
    asked = config.as_dict()
    name = next(name for name in asked if asked[name] != exported.get(name))
    if others:
        raise ConfigError(
            f"{bundle.folder} compresses by {bundle.compressor!r} unless it is told otherwise; its "
            f"compressor {others[0]!r} is the one asked for: --compress {others[0]}"
        )
    if bundle.folder == demo_bundle_folder():
        which, remedy = f"the bundle {DEMO!r}", f"--model {DEMO_CHECKPOINT} runs it in Paddle"
    else:
        which, remedy = str(bundle.folder), "export it again"
    raise ConfigError(
        f"{which} was exported with {name}={exported.get(name)}; for {name}={asked[name]}, {remedy}"
    )


def bundle_backend(
    bundle: Bundle,
    device: str,
    name: str | None,
    precision: str | None,
    graphs: Sequence[Graph] = PIPELINE,
) -> Backend:
    """The backend `name` of BACKENDS, by default the first, for the graphs in front of the language
    model. It loads `graphs` now, and other graphs when they are first run.

    Raises: DeviceError, ConfigError, BundleError."""
    name = name or next(iter(BACKENDS))
    if name not in BACKENDS:
        raise ConfigError(f"unknown backend {name!r}; known: {', '.join(BACKENDS)}")
    if name == "paddle":
        from paddle_recomp.backends.paddle_inference import PaddleInferenceBackend

        predictors = PaddleInferenceBackend(bundle, precision or "fp32", device)
        predictors.open(graphs)
        return predictors
    from paddle_recomp.backends.onnx import OnnxBackend

    sessions = OnnxBackend(bundle, [device], precision=precision)
    sessions.open(graphs)
    return sessions


def bundle_decoder(
    bundle: Bundle, device: str, on_file: OnBytes = lambda num_bytes: None
) -> LanguageModel:
    """The language model that is in a bundle.

    Raises: BundleError, also for a bundle without one; DeviceError."""
    from paddle_recomp.llm.onnx_decoder import OnnxDecoder

    return OnnxDecoder.from_bundle(bundle, [decoder_provider(device)], on_file=on_file)


def _checkpoint_front_end(
    checkpoint: Checkpoint, config: CompressionConfig, device: str, on_tensor: OnBytes
) -> VisualFrontEnd:
    with _paddle_required():
        from paddle_recomp.backends.eager import EagerBackend
    backend = EagerBackend(checkpoint, config, device, on_tensor)
    return VisualFrontEnd(
        backend=backend,
        image_processor=image_processor(checkpoint),
        tokenizer=question_tokenizer(checkpoint),
        question_positions=checkpoint.spec.text.max_positions,
        question_source=config.towers.question_source,
        question_begin=question_begin(checkpoint, config.towers.question_source),
        stages=backend.stages,
    )


def _paddle_llama(checkpoint: Checkpoint, device: str, on_tensor: OnBytes) -> LanguageModel:
    with _paddle_required():
        from paddle_recomp.llm.paddle_llama import PaddleLlama
    return PaddleLlama(checkpoint, device, on_tensor)


def _counter(total: int, on_progress: Callable[[int, int], None]) -> OnBytes:
    """Adds up the bytes that it is given, and reports the sum with the total."""
    done = 0

    def on_bytes(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        on_progress(done, total)

    return on_bytes


@contextmanager
def _paddle_required() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in ("paddle", "paddlenlp"):
            raise
        raise MissingDependencyError(
            f"a checkpoint needs {error.name}, which is not installed: "
            "pip install 'paddle-recomp[paddle]'"
        ) from error
