"""From the name of a model to a runner: checkpoint folders, and the embedded demo."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from paddle_recomp.checkpoint import PARTS, Checkpoint, open_checkpoint
from paddle_recomp.config import CompressionConfig
from paddle_recomp.encoder import ImageEncoder
from paddle_recomp.errors import MissingDependencyError
from paddle_recomp.preprocess import ClipTokenizer, ImageProcessor, LanguageTokenizer
from paddle_recomp.runner import VLM

DEMO = "demo"


def demo_folder() -> Path:
    """The folder of the embedded demo model."""
    return Path(str(resources.files("paddle_recomp"))) / "assets" / "demo"


def find_checkpoint(model: str | Path, clip: str | Path | None = None) -> Checkpoint:
    """Opens a checkpoint folder, or the embedded model when `model` is `demo`.

    Raises: CheckpointNotFoundError, CheckpointError."""
    if str(model) == DEMO:
        return open_checkpoint(demo_folder() / "llava", demo_folder() / "clip")
    return open_checkpoint(Path(model), None if clip is None else Path(clip))


def load_encoder(
    checkpoint: Checkpoint,
    config: CompressionConfig,
    device: str = "cpu",
    on_tensor: Callable[[int], None] = lambda num_bytes: None,
) -> ImageEncoder:
    """What stands in front of the language model, in eager Paddle.

    Raises: DeviceError, ConfigError, CheckpointError, MissingDependencyError without paddle."""
    with _paddle_required():
        from paddle_recomp.backends.eager import EagerBackend
    spec = checkpoint.spec
    own_processor = any(
        (checkpoint.model_dir / name).is_file()
        for name in ("preprocessor_config.json", "processor_config.json")
    )
    return ImageEncoder(
        backend=EagerBackend(checkpoint, config, device, on_tensor),
        # The original LLaVA layout has none of its own: it prepares pictures as CLIP does.
        image_processor=ImageProcessor.from_folder(
            checkpoint.model_dir if own_processor else checkpoint.clip_dir,
            aspect="pad" if spec.pad_to_square else None,
        ),
        tokenizer=ClipTokenizer.from_folder(checkpoint.clip_dir),
        question_positions=spec.text.max_positions,
        template=spec.chat_template,
        config=config,
    )


def load(
    model: str | Path = DEMO,
    clip: str | Path | None = None,
    config: CompressionConfig | None = None,
    device: str = "cpu",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> VLM:
    """A runner for a checkpoint in eager Paddle.

    `on_progress` hears the bytes loaded so far and the bytes in all.
    Raises: as `load_encoder`."""
    checkpoint = find_checkpoint(model, clip)
    total, done = sum(checkpoint.num_bytes(part) for part in PARTS), 0

    def on_tensor(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        on_progress(done, total)

    encoder = load_encoder(checkpoint, config or CompressionConfig(), device, on_tensor)
    with _paddle_required():
        from paddle_recomp.llm.paddle_llama import PaddleLlama
    return VLM(
        encoder,
        PaddleLlama(checkpoint, device, on_tensor),
        LanguageTokenizer.from_folder(checkpoint.model_dir),
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
