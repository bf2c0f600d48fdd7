"""From the name of a model to a runner: checkpoints, bundles, and the embedded demo."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib import resources
from pathlib import Path

import platformdirs

from paddle_recomp.backends.base import Backend
from paddle_recomp.bundle import MANIFEST, Bundle, open_bundle
from paddle_recomp.bundle.contract import PIPELINE
from paddle_recomp.checkpoint import PARTS, Checkpoint, open_checkpoint
from paddle_recomp.compression.config import CompressionConfig
from paddle_recomp.compression.registry import get_method
from paddle_recomp.errors import BundleError, ConfigError, MissingDependencyError
from paddle_recomp.preprocess import ClipTokenizer, ImageProcessor, LanguageTokenizer
from paddle_recomp.vlm.cached_backend import CachedBackend
from paddle_recomp.vlm.feature_cache import FeatureCache
from paddle_recomp.vlm.front_end import VisualFrontEnd
from paddle_recomp.vlm.machine import this_machine
from paddle_recomp.vlm.vlm import VLM

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


def load_front_end(
    model: Checkpoint | Bundle,
    config: CompressionConfig | None = None,
    device: str = "cpu",
    on_tensor: Callable[[int], None] = lambda num_bytes: None,
    backend: str | None = None,
    precision: str | None = None,
    cache: FeatureCache | None = None,
) -> VisualFrontEnd:
    """What stands in front of the language model: a checkpoint in eager Paddle; a bundle in ONNX
    Runtime (`backend` onnx, the default), where `device` names the execution provider, or in Paddle
    Inference (`backend` paddle), where `precision` is chosen. A bundle has its configuration in it.
    With a `cache`, the vision tower runs only over pictures whose features are not in it.

    Raises: DeviceError, ConfigError, CheckpointError, BundleError, MissingDependencyError."""
    if isinstance(model, Bundle):
        front_end = _bundle_front_end(model, config, device, backend or BACKENDS[0], precision)
    elif backend is not None or precision is not None:
        raise ConfigError("a checkpoint runs in eager Paddle; backend and precision are a bundle's")
    else:
        front_end = _checkpoint_front_end(model, config or CompressionConfig(), device, on_tensor)
    if cache is not None:
        tower = f"{_tower_checksum(model)} {backend} {precision} {device}"
        front_end.backend = CachedBackend(front_end.backend, cache, tower)
    return front_end


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
    `backend` and `precision` say what runs a bundle's visual encoder, `cache` what need not run again;
    see `load_front_end`.

    `on_progress` hears the bytes loaded so far and the bytes in all.
    Raises: as `load_front_end`."""
    found, done = find(model, clip, llm), 0

    def on_bytes(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        on_progress(done, total)

    if isinstance(found, Bundle) and found.decoder is not None and llm is None:
        front_end = load_front_end(
            found, config, device, backend=backend, precision=precision, cache=cache
        )
        from paddle_recomp.llm.onnx_decoder import OnnxDecoder, decoder_files

        total = sum(found.files[name].num_bytes for name in decoder_files(found))
        # Paddle's devices are no providers, and OpenVINO knows few of the decoder's operators.
        provider = "cpu" if backend == "paddle" or device == "openvino" else device
        decoder = OnnxDecoder.from_bundle(found, [provider], on_file=on_bytes)
        words = LanguageTokenizer.from_folder(found.llm_dir)
        return VLM(front_end, decoder, words, _latency_file(found, device, backend, precision))
    if isinstance(found, Bundle):
        parts: tuple[str, ...] = PARTS[-1:]
        checkpoint = _language_checkpoint(found, llm, clip)
        # Paddle has no word for ONNX Runtime's providers; the decoder stays where it runs anyway.
        llm_dir, llm_device = found.llm_dir, "cpu"
    else:
        if llm is not None:
            raise ConfigError(f"{model} is a checkpoint and has its own language model")
        parts, checkpoint, llm_dir, llm_device = PARTS, found, found.model_dir, device
    total = sum(checkpoint.num_bytes(part) for part in parts)
    front_end = load_front_end(found, config, device, on_bytes, backend, precision, cache)
    with _paddle_required():
        from paddle_recomp.llm.paddle_llama import PaddleLlama
    return VLM(
        front_end,
        PaddleLlama(checkpoint, llm_device, on_bytes),
        LanguageTokenizer.from_folder(llm_dir),
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
    decoder = () if model.decoder is None else (model.decoder.file, model.decoder.embed_tokens)
    files = sorted((n, i.sha256) for n, i in model.files.items() if not n.startswith(decoder))
    return hashlib.sha256(repr(files).encode()).hexdigest()


def _latency_file(model: Checkpoint | Bundle, *run_by: str | None) -> Path:
    """Where it is kept what a model takes here; another machine, or whatever runs it, has a file of
    its own. Of a checkpoint only the shapes count, as they do for the time."""
    if isinstance(model, Checkpoint):
        about: object = asdict(model.spec)
    else:
        about = sorted((name, info.sha256) for name, info in model.files.items())
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


def _bundle_front_end(
    bundle: Bundle,
    config: CompressionConfig | None,
    device: str,
    backend: str,
    precision: str | None,
) -> VisualFrontEnd:
    if config is not None and config != bundle.config:
        exported, asked = bundle.config.as_dict(), config.as_dict()
        name = next(name for name in asked if asked[name] != exported.get(name))
        if bundle.folder == demo_bundle_folder():
            which, remedy = f"the bundle {DEMO!r}", f"--model {DEMO_CHECKPOINT} runs it in Paddle"
        else:
            which, remedy = str(bundle.folder), "export it again"
        raise ConfigError(
            f"{which} was exported with {name}={exported[name]}; for {name}={asked[name]}, {remedy}"
        )
    runs = _bundle_backend(bundle, device, backend, precision)
    for folder in ("clip/", "llm/"):
        bundle.verify(folder)
    return VisualFrontEnd(
        backend=runs,
        image_processor=bundle.image_processor,
        tokenizer=ClipTokenizer.from_folder(bundle.clip_dir),
        question_positions=bundle.question_positions,
        template=bundle.template,
        config=bundle.config,
        stages=get_method(bundle.config.method).stages,
    )


def _bundle_backend(bundle: Bundle, device: str, name: str, precision: str | None) -> Backend:
    """With the graphs loaded that stand in front of the language model."""
    if name not in BACKENDS:
        raise ConfigError(f"unknown backend {name!r}; known: {', '.join(BACKENDS)}")
    if name == "paddle":
        from paddle_recomp.backends.paddle_inference import PaddleInferenceBackend

        predictors = PaddleInferenceBackend(bundle, precision or "fp32", device)
        predictors.open(PIPELINE)
        return predictors
    from paddle_recomp.backends.onnx import OnnxBackend

    sessions = OnnxBackend(bundle, [device], precision=precision)
    sessions.open(PIPELINE)
    return sessions


def _checkpoint_front_end(
    checkpoint: Checkpoint,
    config: CompressionConfig,
    device: str,
    on_tensor: Callable[[int], None],
) -> VisualFrontEnd:
    with _paddle_required():
        from paddle_recomp.backends.eager import EagerBackend
    spec = checkpoint.spec
    backend = EagerBackend(checkpoint, config, device, on_tensor)
    return VisualFrontEnd(
        backend=backend,
        image_processor=image_processor(checkpoint),
        tokenizer=ClipTokenizer.from_folder(checkpoint.clip_dir),
        question_positions=spec.text.max_positions,
        template=spec.chat_template,
        config=config,
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
