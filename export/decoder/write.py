"""The decoder's files of a bundle: written, described, and compared with the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from paddle_recomp.bundle import DecoderInfo
from paddle_recomp.bundle.comparison import mean_cosine, relative_difference
from paddle_recomp.bundle.contract import CACHE_KINDS, PAST, PRESENT
from paddle_recomp.checkpoint import Checkpoint

from ..errors import ExportError
from .graph import decoder_inputs, decoder_outputs, head_width, write_graph
from .products import PRECISIONS
from .reference import reference_logits

GRAPH, EMBEDDING = "decoder.onnx", "embed_tokens.npy"
PROMPTS, _PROMPT, _DECODED = 2, 24, 8
"""The prompts of the comparison, with their positions: those read at once, and those read one by
one."""
DIFFERENCE = 1e-3
"""Largest difference of a float32 logit, relative to the largest logit."""
COSINES = {"int8": 0.995, "int4": 0.98}
"""The least mean cosine to the checkpoint's logits, for smaller weights."""


def write_decoder(
    checkpoint: Checkpoint, folder: Path, precision: str, metadata: Mapping[str, str]
) -> DecoderInfo:
    """Writes the graph with its weights, and the embedding, and returns their description.

    Raises: ExportError when the graph's logits differ from the checkpoint's."""
    write_graph(checkpoint, folder / GRAPH, PRECISIONS[precision](), metadata)
    embedding = checkpoint.parameter("language_model", "embed_tokens.weight")
    np.save(folder / EMBEDDING, embedding, allow_pickle=False)
    difference, cosine = compare_decoder(checkpoint, folder, precision)
    if precision == "fp32" and not difference <= DIFFERENCE:
        raise ExportError(
            f"decoder: logits differ by {difference:.2g} of the largest from the checkpoint's; "
            f"allowed is {DIFFERENCE:g}"
        )
    if not np.isfinite(cosine):
        raise ExportError("decoder: its logits hold NaN or infinity; the weights are broken")
    about = describe_decoder(checkpoint, precision)
    return DecoderInfo(**{item.name: about[item.name] for item in fields(DecoderInfo)})


def compare_decoder(checkpoint: Checkpoint, folder: Path, precision: str) -> tuple[float, float]:
    """Compares the logits of a folder's files with those of the checkpoint in float32, on fixed
    tokens: the largest difference relative to the largest logit, and the mean cosine."""
    spec = checkpoint.spec.language
    ids = np.random.default_rng(0).integers(0, spec.vocab_size, size=(PROMPTS, _PROMPT + _DECODED))
    embedding = checkpoint.parameter("language_model", "embed_tokens.weight")
    expected = reference_logits(checkpoint, embedding[ids].astype(np.float32))
    stored = np.load(folder / EMBEDDING, mmap_mode="r", allow_pickle=False)
    found = _run(checkpoint, folder / GRAPH, stored[ids].astype(np.float32), precision != "fp32")
    return relative_difference(expected, found), mean_cosine(expected, found)


def _run(checkpoint: Checkpoint, path: Path, embeds: np.ndarray, packed: bool) -> np.ndarray:
    """Prompts [B, T, D], the end of them step by step -> logits [B, V]. Packing weights for the
    kernels copies them in memory, but is much faster for integer weights."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not packed:
        options.add_session_config_entry("session.disable_prepacking", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    batch, length = embeds.shape[:2]
    inputs = decoder_inputs(checkpoint.spec.language)
    cache = {
        name: np.zeros([batch, int(shape[1]), length, int(shape[3])], np.float32)
        for name, (_, shape) in inputs.items()
        if len(shape) == 4
    }
    done = 0
    for end in (_PROMPT, *range(_PROMPT + 1, length + 1)):
        sizes = {"lengths": end - done, "past_lengths": done}
        lengths = {name: np.full(batch, value, np.int32) for name, value in sizes.items()}
        logits, *present = session.run(
            None, {"inputs_embeds": embeds[:, done:end], **lengths, **cache}
        )
        cache, done = dict(zip(cache, present, strict=True)), end
    return np.asarray(logits)


def describe_decoder(checkpoint: Checkpoint, precision: str) -> dict[str, Any]:
    """The section `decoder` of recomp.json."""
    spec = checkpoint.spec.language
    embedding = checkpoint.parameter("language_model", "embed_tokens.weight")
    return {
        "file": GRAPH,
        "data": f"{GRAPH}.data",
        "embed_tokens": EMBEDDING,
        "embed_tokens_dtype": str(embedding.dtype),
        "precision": precision,
        "weights": PRECISIONS[precision]().description,
        "model_type": spec.model_type,
        "context": spec.max_positions,
        "sliding_window": spec.sliding_window,
        "rope": {"base": spec.rope_theta, "scaling": spec.rope_scaling},
        "num_layers": spec.num_layers,
        "num_heads": spec.num_heads,
        "num_kv_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "cache_width": head_width(spec),
        "hidden_size": spec.hidden_size,
        "vocab_size": spec.vocab_size,
        "inputs": _values(decoder_inputs(spec), PAST),
        "outputs": _values(decoder_outputs(spec), PRESENT),
    }


def _values(values: Mapping[str, tuple[str, list[int | str]]], cache: str) -> list[dict[str, Any]]:
    """Names, types and shapes; those of the cache once for all layers, `{layer}` in the name."""
    repeated = {cache.format(layer=0, kind=kind): kind for kind in CACHE_KINDS}
    found = []
    for name, (dtype, shape) in values.items():
        if name in repeated:
            name = cache.format(layer="{layer}", kind=repeated[name])
        elif len(shape) == 4:
            continue
        found.append({"name": name, "dtype": dtype, "shape": shape})
    return found
