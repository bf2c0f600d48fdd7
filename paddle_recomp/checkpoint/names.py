"""The canonical parameter names of each part with their shapes, all as torch stores them:
[out, in] for matrices."""

from __future__ import annotations

from paddle_recomp.checkpoint.spec import (
    LanguageModelSpec,
    ModelSpec,
    ProjectorSpec,
    TextTowerSpec,
    VisionTowerSpec,
)

Shapes = dict[str, tuple[int, ...]]

VISUAL_PROJECTION = "visual_projection.weight"
"""The one parameter of the vision tower that only a CLIP folder has."""


def _linear(name: str, out_features: int, in_features: int, *, bias: bool = True) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (out_features, in_features)}
    if bias:
        shapes[f"{name}.bias"] = (out_features,)
    return shapes


def _layer_norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _clip_layers(spec: VisionTowerSpec | TextTowerSpec) -> Shapes:
    shapes: Shapes = {}
    width, inner = spec.hidden_size, spec.intermediate_size
    for number in range(spec.num_layers):
        layer = f"encoder.layers.{number}"
        shapes |= _layer_norm(f"{layer}.layer_norm1", width)
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear(f"{layer}.self_attn.{projection}", width, width)
        shapes |= _layer_norm(f"{layer}.layer_norm2", width)
        shapes |= _linear(f"{layer}.mlp.fc1", inner, width)
        shapes |= _linear(f"{layer}.mlp.fc2", width, inner)
    return shapes


def vision_tower(spec: VisionTowerSpec) -> Shapes:
    """Names as in transformers, whose `pre_layrnorm` is misspelt."""
    width, patch = spec.hidden_size, spec.patch_size
    return {
        "embeddings.class_embedding": (width,),
        "embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "embeddings.position_embedding.weight": (spec.num_patches + 1, width),
        **_layer_norm("pre_layrnorm", width),
        **_clip_layers(spec),
        **_layer_norm("post_layernorm", width),
        VISUAL_PROJECTION: (spec.projection_dim, width),
    }


def text_tower(spec: TextTowerSpec) -> Shapes:
    """Names as in transformers."""
    width = spec.hidden_size
    return {
        "embeddings.token_embedding.weight": (spec.vocab_size, width),
        "embeddings.position_embedding.weight": (spec.max_positions, width),
        **_clip_layers(spec),
        **_layer_norm("final_layer_norm", width),
        "text_projection.weight": (spec.projection_dim, width),
    }


def projector(spec: ProjectorSpec) -> Shapes:
    """`linear` alone, or `linear_1` and `linear_2` around the activation."""
    width, out, bias = spec.in_features, spec.out_features, spec.bias
    if spec.kind == "linear":
        return _linear("linear", out, width, bias=bias)
    return {
        **_linear("linear_1", out, width, bias=bias),
        **_linear("linear_2", out, out, bias=bias),
    }


def language_model(spec: LanguageModelSpec) -> Shapes:
    """Names as in transformers' Llama, without `model.`."""
    width, inner = spec.hidden_size, spec.intermediate_size
    queries, values = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    shapes: Shapes = {"embed_tokens.weight": (spec.vocab_size, width)}
    for number in range(spec.num_layers):
        layer = f"layers.{number}"
        shapes[f"{layer}.input_layernorm.weight"] = (width,)
        for name, out, inp, bias in (
            ("q_proj", queries, width, spec.qkv_bias),
            ("k_proj", values, width, spec.qkv_bias),
            ("v_proj", values, width, spec.qkv_bias),
            ("o_proj", width, queries, spec.output_bias),
        ):
            shapes |= _linear(f"{layer}.self_attn.{name}", out, inp, bias=bias)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (width,)
        for name, out, inp in (
            ("gate_proj", inner, width),
            ("up_proj", inner, width),
            ("down_proj", width, inner),
        ):
            shapes |= _linear(f"{layer}.mlp.{name}", out, inp, bias=spec.mlp_bias)
    shapes["norm.weight"] = (width,)
    if not spec.tie_word_embeddings:
        shapes["lm_head.weight"] = (spec.vocab_size, width)
    return shapes


def expected_shapes(spec: ModelSpec) -> dict[str, Shapes]:
    """For every part, its canonical names and shapes."""
    return {
        "vision_tower": vision_tower(spec.vision),
        "text_tower": text_tower(spec.text),
        "projector": projector(spec.projector),
        "language_model": language_model(spec.language),
    }
