"""From the name of a model to a runner: checkpoints, bundles, and the embedded demo."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib import resources
from pathlib import Path

import platformdirs

from paddle_recomp.backends.base import Backend
from paddle_recomp.bundle import MANIFEST, Bundle, open_bundle
from paddle_recomp.bundle.contract import PIPELINE, Graph
from paddle_recomp.checkpoint import PARTS, Checkpoint, open_checkpoint
from paddle_recomp.compression.config import CompressionConfig
from paddle_recomp.errors import BundleError, ConfigError, MissingDependencyError
from paddle_recomp.llm.base import LanguageModel
from paddle_recomp.preprocess import TEMPLATES, ClipTokenizer, ImageProcessor, LanguageTokenizer
from paddle_recomp.vlm.cached_backend import CachedBackend
from paddle_recomp.vlm.feature_cache import FeatureCache
from paddle_recomp.vlm.front_end import ImageEncoder
from paddle_recomp.vlm.machine import this_machine
from paddle_recomp.vlm.runner import VLM

DEMO = "demo"
"""The embedded model: its bundle where something runs it, its checkpoint where a checkpoint is
asked for."""
DEMO_CHECKPOINT = "demo-checkpoint"
"""Its checkpoint, also where a bundle could be run."""
BACKENDS = ("onnx", "paddle")
"""What runs a bundle: ONNX Runtime, Paddle Inference."""


def demo_folder() -> Path:
    """The folder of the embedded model: `llava` and `clip` are its checkpoint."""
    return Path(str(resources.files("paddle_recomp"))) / "assets" / "demo"


def demo_bundle_folder() -> Path:
    """What `make demo-bundle` exported from it."""
    return demo_folder() / "bundle"


def find_checkpoint(model: str | Path, clip: str | Path | None = None) -> Checkpoint:
    """Opens a checkpoint folder, or that of the embedded model by either of its names.

    Raises: CheckpointNotFoundError, CheckpointError; ConfigError for a CLIP that it has itself."""
    if str(model) in (DEMO, DEMO_CHECKPOINT):
        if clip is not None:
            raise ConfigError(f"{model} has a CLIP of its own; --clip {clip} is for other folders")
        return open_checkpoint(demo_folder() / "llava", demo_folder() / "clip")
    return open_checkpoint(Path(model), None if clip is None else Path(clip))


def find(
    model: str | Path, clip: str | Path | None = None, llm: str | Path | None = None
) -> Checkpoint | Bundle:
    """Opens what the folder is: a bundle if it has a recomp.json, else a checkpoint. `demo` is the
    embedded bundle, `demo-checkpoint` what it was exported from. For a bundle, `clip` goes with
    `llm`.

    Raises: as `find_checkpoint` and `open_bundle`."""
    folder = demo_bundle_folder() if str(model) == DEMO else Path(model)
    if str(model) == DEMO_CHECKPOINT or not (str(model) == DEMO or (folder / MANIFEST).is_file()):
        return find_checkpoint(model, clip)
    if clip is not None and llm is None:
        raise ConfigError(f"{model} is a bundle and has its CLIP in it; --clip {clip} has no use")
    return open_bundle(folder)


def load_encoder(
    model: Checkpoint | Bundle,
    config: CompressionConfig | None = None,
    device: str = "cpu",
    on_tensor: Callable[[int], None] = lambda num_bytes: None,
    backend: str | None = None,
    precision: str | None = None,
    cache: FeatureCache | None = None,
) -> ImageEncoder:
    """What stands in front of the language model: a checkpoint in eager Paddle; a bundle in ONNX
    Runtime (`backend` onnx, the default), where `device` names the execution provider, or in Paddle
    Inference (`backend` paddle), where `precision` is chosen. A bundle has its configuration in it.
    With a `cache`, the vision tower runs only over pictures whose features are not in it.

    Raises: DeviceError, ConfigError, CheckpointError, BundleError, MissingDependencyError."""
    if isinstance(model, Bundle):
        encoder = _bundle_encoder(model, config, device, backend or BACKENDS[0], precision)
    elif backend is not None or precision is not None:
        raise ConfigError("a checkpoint runs in eager Paddle; backend and precision are a bundle's")
    else:
        encoder = _checkpoint_encoder(model, config or CompressionConfig(), device, on_tensor)
    if cache is not None:
        tower = f"{_tower_checksum(model)} {backend} {precision} {device}"
        encoder.backend = CachedBackend(encoder.backend, cache, tower)
    return encoder


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
) -> VLM:
    """A runner for a checkpoint, in eager Paddle, or for a bundle, in ONNX Runtime. A bundle that
    was exported without its language model takes it from the folder of the checkpoint that it was
    exported from, `llm` (with `clip` beside it, as for any checkpoint), in eager Paddle.
    `backend` and `precision` say what runs a bundle's encoder, `cache` what need not run again;
    see `load_encoder`.

    `on_progress` hears the bytes loaded so far and the bytes in all.
    Raises: as `load_encoder`."""
    found, done = find(model, clip, llm), 0

    def on_bytes(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        on_progress(done, total)

    if isinstance(found, Bundle) and found.decoder is not None and llm is None:
        encoder = load_encoder(
            found, config, device, backend=backend, precision=precision, cache=cache
        )
        total = sum(found.sizes[name] for name in found.decoder.files)
        decoder = bundle_decoder(found, device, on_bytes)
        words = found.language_tokenizer()
        return VLM(encoder, decoder, words, _latency_file(found, device, backend, precision))
    if isinstance(found, Bundle):
        parts: tuple[str, ...] = PARTS[-1:]
        checkpoint = _language_checkpoint(found, llm, clip)
        # Paddle has no word for ONNX Runtime's providers; the decoder stays where it runs anyway.
        words, llm_device = found.language_tokenizer(), "cpu"
    else:
        if llm is not None:
            raise ConfigError(f"{model} is a checkpoint and has its own language model")
        parts, checkpoint, llm_device = PARTS, found, device
        words = LanguageTokenizer.from_folder(found.model_dir)
    total = sum(checkpoint.num_bytes(part) for part in parts)
    encoder = load_encoder(found, config, device, on_bytes, backend, precision, cache)
    with _paddle_required():
        from paddle_recomp.llm.paddle_llama import PaddleLlama
    return VLM(
        encoder,
        PaddleLlama(checkpoint, llm_device, on_bytes),
        words,
        _latency_file(found, device, backend, precision),
    )


def projector_checksum(checkpoint: Checkpoint) -> str:
    """By which a bundle recognises the checkpoint that it was exported from."""
    return _part_checksum(checkpoint, "projector")


def _part_checksum(checkpoint: Checkpoint, part: str) -> str:
    digest = hashlib.sha256()
    for name in sorted(checkpoint.expected(part)):
        array = checkpoint.parameter(part, name)
        digest.update(name.encode() + array.astype("<f4").tobytes())
    return digest.hexdigest()


def _tower_checksum(model: Checkpoint | Bundle) -> str:
    """By which a cache knows whose features it holds. Of a bundle every file is named that
    stands in front of the language model: they were exported together."""
    if isinstance(model, Checkpoint):
        return _part_checksum(model, "vision_tower")
    files = [model.checksums[name] for name in model.graphs["vision"].files]
    return hashlib.sha256(repr(files).encode()).hexdigest()


def _latency_file(model: Checkpoint | Bundle, *run_by: str | None) -> Path:
    """Where it is kept what a model takes here; another machine, or whatever runs it, has a file of
    its own. Of a checkpoint only the shapes count, as they do for the time."""
    if isinstance(model, Checkpoint):
        about: object = asdict(model.spec)
    else:
        about = sorted(model.checksums.items())
    digest = hashlib.sha256(repr((about, run_by, this_machine())).encode()).hexdigest()
    return platformdirs.user_cache_path("paddle_recomp") / "latency" / f"{digest[:32]}.json"


def _language_checkpoint(
    bundle: Bundle, llm: str | Path | None, clip: str | Path | None
) -> Checkpoint:
    """The checkpoint of a bundle's language model.

    Raises: ConfigError when its folder has to be named; BundleError when it is another one."""
    source = bundle.language_model
    if llm is None and source.name != DEMO:
        raise ConfigError(
            f"{bundle.folder} has no language model in it; name the folder of the checkpoint "
            f"{source.name!r} that it was exported from (--llm DIR)"
        )
    checkpoint = find_checkpoint(llm or DEMO, clip)
    if projector_checksum(checkpoint) != source.projector_sha256:
        raise BundleError(
            f"{bundle.folder} was exported from another checkpoint than {checkpoint.model_dir}: "
            "their projectors differ; export it again, or name the right one (--llm DIR)"
        )
    return checkpoint


def _bundle_encoder(
    bundle: Bundle,
    config: CompressionConfig | None,
    device: str,
    backend: str,
    precision: str | None,
) -> ImageEncoder:
    if config is not None:
        _check_config(bundle, config)
    runs = bundle_backend(bundle, device, backend, precision)
    return ImageEncoder(
        backend=runs,
        image_processor=bundle.image_processor,
        tokenizer=bundle.clip_tokenizer(),
        question_positions=bundle.question_positions,
        template=bundle.template,
        question_source=bundle.question_source,
        stages=bundle.stages,
    )


def _check_config(bundle: Bundle, config: CompressionConfig) -> None:
    """Raises: ConfigError where a bundle was exported with another configuration. An option that is
    younger than the bundle had its default then."""
    exported = {"method": bundle.method, **bundle.towers, **bundle.options}
    usual = CompressionConfig(config.method).as_dict()
    for name, value in config.as_dict().items():
        found = exported.get(name, usual[name])
        if value == found:
            continue
        if bundle.folder == demo_bundle_folder():
            which, remedy = f"the bundle {DEMO!r}", f"--model {DEMO_CHECKPOINT} runs it in Paddle"
        else:
            which, remedy = str(bundle.folder), "export it again"
        raise ConfigError(f"{which} was exported with {name}={found}; for {name}={value}, {remedy}")


def bundle_backend(
    bundle: Bundle,
    device: str,
    name: str | None,
    precision: str | None,
    graphs: Sequence[Graph] = PIPELINE,
) -> Backend:
    """What runs the graphs in front of the language model: `name` of BACKENDS, by default the
    first. It loads `graphs` now, others when they are first run.

    Raises: DeviceError, ConfigError, BundleError."""
    name = name or BACKENDS[0]
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
    bundle: Bundle,
    device: str,
    on_file: Callable[[int], None] = lambda num_bytes: None,
) -> LanguageModel:
    """The language model that is in a bundle.

    Raises: BundleError, also for a bundle without one; DeviceError."""
    from paddle_recomp.llm.onnx_decoder import OnnxDecoder

    # Paddle's devices are no providers, and OpenVINO knows few of the decoder's operators.
    provider = "cpu" if device.startswith("gpu") or device == "openvino" else device
    return OnnxDecoder.from_bundle(bundle, [provider], on_file=on_file)


def _checkpoint_encoder(
    checkpoint: Checkpoint,
    config: CompressionConfig,
    device: str,
    on_tensor: Callable[[int], None],
) -> ImageEncoder:
    with _paddle_required():
        from paddle_recomp.backends.eager import EagerBackend
    spec = checkpoint.spec
    backend = EagerBackend(checkpoint, config, device, on_tensor)
    return ImageEncoder(
        backend=backend,
        image_processor=image_processor(checkpoint),
        tokenizer=ClipTokenizer.from_folder(checkpoint.clip_dir),
        question_positions=spec.text.max_positions,
        template=TEMPLATES[spec.chat_template],
        question_source=config.towers.question_source,
        stages=backend.stages,
    )


def image_processor(checkpoint: Checkpoint) -> ImageProcessor:
    """How a checkpoint wants its pictures prepared.

    Raises: CheckpointError."""
    own = any(
        (checkpoint.model_dir / name).is_file()
        for name in ("preprocessor_config.json", "processor_config.json")
    )
    return ImageProcessor.from_folder(
        # The original LLaVA layout has none of its own: it prepares pictures as CLIP does.
        checkpoint.model_dir if own else checkpoint.clip_dir,
        aspect="pad" if checkpoint.spec.pad_to_square else None,
    )


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
