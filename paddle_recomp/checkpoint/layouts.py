"""Stored keys -> parts and canonical names, for each layout, and the strict comparison."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from paddle_recomp.checkpoint.names import Shapes
from paddle_recomp.checkpoint.spec import ModelSpec
from paddle_recomp.checkpoint.tensors import PARAMETER_DTYPES, StoredTensor
from paddle_recomp.errors import CheckpointError
from paddle_recomp.json_files import one_line

Rules = tuple[tuple[str, str, str], ...]
"""(stored prefix, part, canonical prefix); the first that fits decides."""

Parts = dict[str, dict[str, StoredTensor]]
"""Part -> canonical name -> where it is stored."""

_LLAVA_HF: Rules = (
    ("language_model.model.", "language_model", ""),
    ("language_model.lm_head.", "language_model", "lm_head."),
    ("vision_tower.vision_model.", "vision_tower", ""),
    ("vision_tower.", "vision_tower", ""),
    ("multi_modal_projector.", "projector", ""),
    # transformers from 4.52 on
    ("model.language_model.", "language_model", ""),
    ("lm_head.", "language_model", "lm_head."),
    ("model.vision_tower.vision_model.", "vision_tower", ""),
    ("model.vision_tower.", "vision_tower", ""),
    ("model.multi_modal_projector.", "projector", ""),
)
_ORIGINAL: Rules = (
    ("model.vision_tower.vision_tower.vision_model.", "vision_tower", ""),
    ("model.vision_tower.vision_tower.", "vision_tower", ""),
)
_ORIGINAL_PROJECTOR: dict[str, Rules] = {
    "linear": (("model.mm_projector.", "projector", "linear."),),
    "mlp2x_gelu": (
        ("model.mm_projector.0.", "projector", "linear_1."),
        ("model.mm_projector.2.", "projector", "linear_2."),
    ),
}
_ORIGINAL_LANGUAGE: Rules = (
    ("model.", "language_model", ""),
    ("lm_head.", "language_model", "lm_head."),
)
CLIP_RULES: Rules = (
    ("vision_model.", "vision_tower", ""),
    ("visual_projection.", "vision_tower", "visual_projection."),
    ("text_model.", "text_tower", ""),
    ("text_projection.", "text_tower", "text_projection."),
)

# Buffers that are recomputed, and the scale of CLIP's training loss.
_IGNORED_ENDS = ("rotary_emb.inv_freq", "embeddings.position_ids")
_IGNORED_KEYS = ("logit_scale",)

_SHOWN = 3


def model_rules(spec: ModelSpec) -> Rules:
    """The rules for the keys of a LLaVA folder."""
    if spec.layout == "llava_hf":
        return _LLAVA_HF
    return _ORIGINAL + _ORIGINAL_PROJECTOR[spec.projector.kind] + _ORIGINAL_LANGUAGE


def sort_into_parts(folder: Path, tensors: Mapping[str, StoredTensor], rules: Rules) -> Parts:
    """Every tensor under its part and canonical name.

    Raises: CheckpointError for keys that no rule knows, or two keys for one parameter."""
    parts: Parts = {}
    strangers: list[str] = []
    for key, tensor in tensors.items():
        if key.endswith(_IGNORED_ENDS) or key in _IGNORED_KEYS:
            continue
        for prefix, part, canonical in rules:
            if key.startswith(prefix):
                name = canonical + key.removeprefix(prefix)
                found = parts.setdefault(part, {})
                if name in found:
                    raise CheckpointError(
                        f"{folder}: {one_line(found[name].key)} and {one_line(key)} are the same "
                        "parameter"
                    )
                found[name] = tensor
                break
        else:
            strangers.append(one_line(key))
    if strangers:
        raise CheckpointError(f"{folder}: unexpected {_listing(strangers)}")
    return parts


def check_part(
    folder: Path, part: str, found: Mapping[str, StoredTensor], expected: Shapes
) -> None:
    """Compares names, shapes and types.

    Raises: CheckpointError that names what is missing, unexpected or different."""
    faults: list[str] = []
    if missing := [name for name in expected if name not in found]:
        faults.append(f"missing {_listing(missing)}")
    if extra := [one_line(tensor.key) for name, tensor in found.items() if name not in expected]:
        faults.append(f"unexpected {_listing(extra)}")
    common = [(found[name], shape) for name, shape in expected.items() if name in found]
    misshapen = [
        f"{one_line(tensor.key)} is {one_line(list(tensor.shape))} in "
        f"{tensor.file.name}, expected {list(shape)}"
        for tensor, shape in common
        if tensor.shape != shape
    ]
    if misshapen:
        faults.append(_listing(misshapen))
    mistyped = [
        f"{one_line(tensor.key)} is {tensor.dtype} in {tensor.file.name}, "
        f"expected {' or '.join(PARAMETER_DTYPES)}"
        for tensor, _ in common
        if tensor.dtype not in PARAMETER_DTYPES
    ]
    if mistyped:
        faults.append(_listing(mistyped))
    if faults:
        raise CheckpointError(f"{folder}: {part}: {'; '.join(faults)}")


def _listing(items: Iterable[str]) -> str:
    items = list(items)
    rest = f" (and {len(items) - _SHOWN} more)" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + rest
