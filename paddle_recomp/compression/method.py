"""The declaration of a compression method, which is the only place that says anything about it.

Help texts, `recomp methods`, the table of docs/methods.md, the counts of an answer, the legend of
an overlay and the inputs of the exported graphs all follow from it. No paddle here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple

from paddle_recomp.config import TowerOptions
from paddle_recomp.types import Compressed, StageInfo, Tensor

Place = Literal["after_tower", "between_layers", "in_language_model"]
"""Where a method acts. This version runs those that act after the vision tower."""


class MethodInputs(NamedTuple):
    """The closed list of all inputs that a method may read. An input that a method does not declare
    is None. B images, N patches, C vision width, P joint width, D language-model width, W words."""

    features: Tensor
    """[B, N, C] float: the hidden state of each patch that the projector reads."""
    keys: Tensor = None
    """[B, N, C] float: key projections of the vision tower's last layer."""
    visual_score: Tensor = None
    """[B, N] float: attention of the class token to each patch in the last layer."""
    patch_embeds: Tensor = None
    """[B, N, P] float: each patch in the joint image-text space."""
    layer_score: Tensor = None
    """[B, N] float: attention of the class token in another layer, which `score_layer` names."""
    text_embeds: Tensor = None
    """[B, P] float: the question in the joint image-text space."""
    word_embeds: Tensor = None
    """[B, W, D] float: the question's words as the language model embeds them."""
    word_mask: Tensor = None
    """[B, W] bool: which of the W are words; it comes with `word_embeds`."""
    projected_patches: Tensor = None
    """[B, N, D] float: every patch behind the projector, in the language model's space."""
    grid: tuple[int, int] | None = None
    """Rows and columns of the patches, with rows · columns = N."""


INPUTS: dict[str, str] = {
    "features": "the hidden state of each patch that the projector reads",
    "keys": "key projections of the vision tower's last layer",
    "visual_score": "attention of the class token to each patch in the last layer",
    "patch_embeds": "each patch in the joint image-text space",
    "layer_score": "attention of the class token in another layer (`score_layer`)",
    "text_embeds": "the question in the joint image-text space",
    "word_embeds": "the question's words as the language model embeds them",
    "projected_patches": "every patch behind the projector",
    "grid": "rows and columns of the patches",
}
"""The inputs that a method may declare. `word_embeds` brings `word_mask` with it."""

_GRAPH_INPUTS: Mapping[str, tuple[str, ...]] = {
    "word_embeds": ("word_embeds", "word_mask"),
    # The projector is inside the graph, and the grid is a constant of the model.
    "projected_patches": (),
    "grid": (),
}

Compress = Callable[[MethodInputs, Tensor, Any], Compressed]
"""`(inputs, bounds, options) -> Compressed`; bounds [B, 2] int64 are the least and most tokens."""


@dataclass(frozen=True)
class Method:
    """A compression method."""

    name: str
    summary: str
    """One sentence for a person who chooses."""
    source: str
    """The publication or code that it was built from."""
    compress: Compress = field(repr=False)
    """A pure function in Paddle operations: batched, without a branch on data."""
    options: type[Any]
    """A frozen dataclass of the method's own options; see `config.option`."""
    inputs: tuple[str, ...]
    """Names in INPUTS. `features` is always read: it becomes the tokens."""
    stages: tuple[StageInfo, ...]
    """The stages that the numbers in `Compressed.stage` stand for, from 0 on."""
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Named sets of its own options and of those of the towers."""
    acts: Place = "after_tower"

    def __post_init__(self) -> None:
        """Raises: ValueError for a declaration that contradicts itself."""
        if unknown := set(self.inputs) - INPUTS.keys():
            raise ValueError(f"method {self.name!r} reads unknown inputs: {sorted(unknown)}")
        if "features" not in self.inputs or not self.stages:
            raise ValueError(f"method {self.name!r} reads no features, or has no stages")
        if len({stage.name for stage in self.stages}) < len(self.stages):
            raise ValueError(f"method {self.name!r} has two stages of one name")
        towers = {one.name for one in fields(TowerOptions)}
        for one in fields(self.options):
            if "doc" not in one.metadata:
                raise ValueError(
                    f"option {one.name!r} of method {self.name!r} has no sentence about itself: "
                    "declare it by `config.option`"
                )
            if one.name in towers:
                raise ValueError(
                    f"option {one.name!r} of method {self.name!r} has the name of a tower's option"
                )

    @property
    def option_names(self) -> tuple[str, ...]:
        """Names of the method's own options."""
        return tuple(one.name for one in fields(self.options))

    @property
    def graph_inputs(self) -> tuple[str, ...]:
        """Names of the inputs of an exported compress graph, `token_bounds` last."""
        names = [name for name in INPUTS if name in self.inputs]
        given = [one for name in names for one in _GRAPH_INPUTS.get(name, (name,))]
        return (*given, "token_bounds")
