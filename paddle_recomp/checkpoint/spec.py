"""The plain sizes of a checkpoint's parts: frozen, validated, free of any file format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from paddle_recomp.errors import CheckpointError
from paddle_recomp.json_files import is_number, one_line
from paddle_recomp.limits import limits, the_limit

PARTS = ("vision_tower", "text_tower", "projector", "language_model")
"""The parts of a model, in the order in which data passes through them."""

LANGUAGE_MODELS = ("llama", "qwen2", "mistral")
"""The model_types of the decoders that can be read."""


def _check_one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        listing = ", ".join(str(item) for item in allowed)
        raise CheckpointError(f"{name} is {one_line(repr(value))}; supported: {listing}")


def _check_sizes(spec: Any, *, may_be_zero: tuple[str, ...] = ()) -> None:
    """Every plain integer of a spec is a size, except those named."""
    for item in fields(spec):
        value = getattr(spec, item.name)
        if type(value) is int and item.name not in may_be_zero and value < 1:
            raise CheckpointError(f"{item.name} is {value}; expected at least 1")
        # A false claim of a file must not fill the memory with names.
        if item.name == "num_layers" and value > limits().layers:
            raise CheckpointError(f"num_layers is {value}; {the_limit('layers')}")
        if item.name == "max_positions" and value > limits().positions:
            raise CheckpointError(f"max_positions is {value}; {the_limit('positions')}")


def _check_divides(spec: Any, whole: str, part: str) -> None:
    if getattr(spec, whole) % getattr(spec, part):
        raise CheckpointError(
            f"{whole} is {getattr(spec, whole)}, not a multiple of {part}, {getattr(spec, part)}"
        )


@dataclass(frozen=True)
class VisionTowerSpec:
    """A CLIP vision transformer.

    Raises: CheckpointError for sizes that do not fit together."""

    image_size: int
    patch_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    hidden_act: Literal["quick_gelu", "gelu"]
    layer_norm_eps: float
    projection_dim: int
    """Width of the joint image-text space, P."""

    def __post_init__(self) -> None:
        _check_sizes(self)
        _check_one_of("hidden_act", self.hidden_act, ("quick_gelu", "gelu"))
        _check_divides(self, "hidden_size", "num_heads")
        if self.patch_size > self.image_size:
            raise CheckpointError(
                f"patch_size is {self.patch_size}, larger than image_size, {self.image_size}"
            )

    @property
    def num_patches(self) -> int:
        """Patches of an image, N; the class token is not one of them."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class TextTowerSpec:
    """A CLIP text transformer.

    Raises: CheckpointError for sizes that do not fit together."""

    vocab_size: int
    max_positions: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    hidden_act: Literal["quick_gelu", "gelu"]
    layer_norm_eps: float
    projection_dim: int
    eos_token_id: int
    """CLIP pools at its first place in a text. OpenAI's files say 2, which is a letter: then CLIP
    pools at the first place of the text's highest id, as it did before files could say where."""

    def __post_init__(self) -> None:
        _check_sizes(self, may_be_zero=("eos_token_id",))
        _check_one_of("hidden_act", self.hidden_act, ("quick_gelu", "gelu"))
        _check_divides(self, "hidden_size", "num_heads")
        if not 0 <= self.eos_token_id < self.vocab_size:
            raise CheckpointError(
                f"eos_token_id is {self.eos_token_id}, outside the vocabulary of {self.vocab_size}"
            )

    @property
    def pools_at_highest_id(self) -> bool:
        """Else at the first `eos_token_id`."""
        return self.eos_token_id == 2


@dataclass(frozen=True)
class ProjectorSpec:
    """The projector, which brings visual tokens to the language model's width.

    Raises: CheckpointError for an unknown kind or activation."""

    kind: Literal["mlp2x_gelu", "linear"]
    in_features: int
    out_features: int
    bias: bool
    hidden_act: str
    """Between the two layers of `mlp2x_gelu`; `linear` has none and ignores it."""

    def __post_init__(self) -> None:
        _check_sizes(self)
        _check_one_of("projector type", self.kind, ("mlp2x_gelu", "linear"))
        if self.kind == "mlp2x_gelu":
            _check_one_of("projector_hidden_act", self.hidden_act, ("gelu",))


@dataclass(frozen=True)
class LanguageModelSpec:
    """A decoder of Llama's kind: Llama itself, Qwen2 or Mistral.

    Raises: CheckpointError for another architecture or sizes that do not fit together."""

    vocab_size: int
    """Rows of the embedding, which may be padded beyond the tokenizer's vocabulary."""
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: Mapping[str, Any] | None = field(hash=False)
    """None, or `rope_type` (linear, dynamic, llama3) with `factor` and the type's own fields."""
    tie_word_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    """Of attention's output projection."""
    mlp_bias: bool
    eos_token_ids: tuple[int, ...]
    """The end tokens that the checkpoint names besides its tokenizer's own."""
    model_type: str = "llama"
    sliding_window: int | None = None
    """Positions that a token attends to, its own included; None: all before it."""

    def __post_init__(self) -> None:
        _check_one_of("the language model's model_type", self.model_type, LANGUAGE_MODELS)
        _check_sizes(self)
        _check_divides(self, "num_heads", "num_kv_heads")
        if self.head_dim % 2:
            raise CheckpointError(f"head_dim is {self.head_dim}; rotary positions need it even")
        if self.rope_scaling is not None:
            _check_rope_scaling(self.rope_scaling)
        for token_id in self.eos_token_ids:
            if not 0 <= token_id < self.vocab_size:
                raise CheckpointError(
                    f"eos_token_id is {token_id}, outside the vocabulary of {self.vocab_size}"
                )


def _check_rope_scaling(scaling: Mapping[str, Any]) -> None:
    _check_one_of("rope_type", scaling.get("rope_type"), ("linear", "dynamic", "llama3"))
    needed = ["factor"]
    if scaling["rope_type"] == "llama3":
        needed += ["low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]
    for name in needed:
        value = scaling.get(name)
        if not is_number(value) or value <= 0:
            raise CheckpointError(
                f"rope_scaling.{name} is {one_line(repr(value))}; expected a positive number"
            )


@dataclass(frozen=True)
class ModelSpec:
    """All parts of a LLaVA model with the CLIP text tower beside it.

    Raises: CheckpointError when the parts do not fit each other."""

    vision: VisionTowerSpec
    text: TextTowerSpec
    projector: ProjectorSpec
    language: LanguageModelSpec
    image_token_id: int | None
    """The id that stands for an image in a prompt; None where the layout has no such token."""
    vision_feature_layer: int
    """Which hidden state of the vision tower the projector reads, counted from the end."""
    select: Literal["default", "patch"]
    """As the layout spells it; both mean that the class token is dropped."""
    layout: Literal["llava_original", "llava_hf"]
    pad_to_square: bool = False
    """Whether the model was trained on images padded, not cropped, to a square."""
    trained_vision_tower: bool = False
    """Whether the vision tower was trained with the model, and so is no longer CLIP's."""

    def __post_init__(self) -> None:
        _check_one_of("vision feature selection", self.select, ("default", "patch"))
        if not -self.vision.num_layers - 1 <= self.vision_feature_layer < 0:
            raise CheckpointError(
                f"vision_feature_layer is {self.vision_feature_layer}; expected one of "
                f"{-self.vision.num_layers - 1} to -1, counted from the end"
            )
        for name, found, expected in (
            ("projector input", self.projector.in_features, self.vision.hidden_size),
            ("projector output", self.projector.out_features, self.language.hidden_size),
            ("text projection_dim", self.text.projection_dim, self.vision.projection_dim),
        ):
            if found != expected:
                raise CheckpointError(f"{name} is {found} wide, but what it meets is {expected}")
