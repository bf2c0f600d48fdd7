"""From a checkpoint's tensors to the parameters of Paddle layers, one at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import paddle
from paddle import nn

from paddle_recomp.checkpoint import Checkpoint
from paddle_recomp.errors import CheckpointError
from paddle_recomp.types import Tensor


def load_part(
    checkpoint: Checkpoint,
    part: str,
    layer: nn.Layer,
    rename: Callable[[str], str] = lambda name: name,
    also_transposed: frozenset[str] = frozenset(),
    on_tensor: Callable[[int], None] = lambda num_bytes: None,
) -> None:
    """Copies a part of the checkpoint into the layer on the current device, casting to the layer's
    dtype. The layer may be one that was made lazily, with parameters that do not exist yet.

    `rename` maps a checkpoint's name to the layer's, `also_transposed` names matrices outside
    `nn.Linear` that are kept as [in, out], `on_tensor` is given the bytes of each tensor for a
    progress bar. Only one tensor at a time exists twice, never a whole shard.

    Raises: CheckpointError naming parameters that did not fit or were missing."""
    parameters: dict[str, Tensor] = dict(layer.named_parameters())
    transposed = linear_weights(layer) | also_transposed
    missing = set(parameters)
    for name, array in checkpoint.parameters(part):
        target = rename(name)
        if target not in parameters:
            raise CheckpointError(f"{part}: {name} has no place in the model")
        value = np.ascontiguousarray(array.T) if target in transposed else array
        parameter = parameters[target]
        if list(value.shape) != list(parameter.shape):
            raise CheckpointError(
                f"{part}: {name} has shape {list(array.shape)}; the model expects "
                f"{list(parameter.shape)}"
            )
        parameter.set_value(paddle.to_tensor(value).astype(parameter.dtype))
        missing.discard(target)
        on_tensor(array.nbytes)
    if missing:
        raise CheckpointError(f"{part}: the checkpoint has no {', '.join(sorted(missing)[:3])}")


def linear_weights(layer: nn.Layer) -> set[str]:
    """Names of the matrices that Paddle keeps as [in, out] and checkpoints as [out, in]."""
    return {
        f"{name}.weight".removeprefix(".")
        for name, part in layer.named_sublayers(include_self=True)
        if isinstance(part, nn.Linear)
    }
