"""CLIP and LLaVA in plain torch; module names are the key names of the published checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class TowerSize:
    """Width, depth, heads and inner width of one transformer."""

    width: int
    layers: int
    heads: int
    inner: int


VISION = TowerSize(width=128, layers=5, heads=4, inner=512)
TEXT = TowerSize(width=96, layers=2, heads=4, inner=384)
LANGUAGE = TowerSize(width=160, layers=4, heads=5, inner=448)
JOINT = 96
IMAGE_SIZE, PATCH_SIZE = 224, 14
PATCHES = (IMAGE_SIZE // PATCH_SIZE) ** 2
TEXT_POSITIONS = 77
LANGUAGE_POSITIONS = 2048
ROPE_THETA = 10000.0
NORM_EPS = 1e-5


class Attention(nn.Module):
    """CLIP self-attention."""

    def __init__(self, size: TowerSize) -> None:
        super().__init__()
        self.heads = size.heads
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            self.add_module(name, nn.Linear(size.width, size.width))

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        """[B, L, C] -> [B, L, C]."""
        batch, length, width = x.shape
        q, k, v = (
            self.get_submodule(name)(x).view(batch, length, self.heads, -1).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.get_submodule("out_proj")(mixed.transpose(1, 2).reshape(batch, length, width))


class MLP(nn.Module):
    """CLIP feed-forward with quick_gelu."""

    def __init__(self, size: TowerSize) -> None:
        super().__init__()
        self.fc1 = nn.Linear(size.width, size.inner)
        self.fc2 = nn.Linear(size.inner, size.width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, C] -> [B, L, C]."""
        hidden = self.fc1(x)
        return self.fc2(hidden * torch.sigmoid(1.702 * hidden))


class EncoderLayer(nn.Module):
    """One pre-norm transformer layer of CLIP."""

    def __init__(self, size: TowerSize) -> None:
        super().__init__()
        self.self_attn = Attention(size)
        self.layer_norm1 = nn.LayerNorm(size.width, eps=NORM_EPS)
        self.mlp = MLP(size)
        self.layer_norm2 = nn.LayerNorm(size.width, eps=NORM_EPS)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        """[B, L, C] -> [B, L, C]."""
        x = x + self.self_attn(self.layer_norm1(x), causal)
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    """A stack of layers."""

    def __init__(self, size: TowerSize) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(size) for _ in range(size.layers))


def grid_waves(side: int, width: int) -> Tensor:
    """Sines and cosines of row and column at several wavelengths, [side * side, width]."""
    speed = torch.pi / 2 * 0.03 ** (torch.arange(width // 4) / (width // 4))
    angle = torch.arange(side)[:, None] * speed
    waves = torch.cat([angle.sin(), angle.cos()], -1)
    rows = waves[:, None].expand(side, side, -1)
    columns = waves[None].expand(side, side, -1)
    return torch.cat([rows, columns], -1).reshape(side * side, width)


class VisionEmbeddings(nn.Module):
    """Patches, class token and positions."""

    def __init__(self) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(VISION.width) * 0.02)
        self.patch_embedding = nn.Conv2d(3, VISION.width, PATCH_SIZE, PATCH_SIZE, bias=False)
        self.position_embedding = nn.Embedding(PATCHES + 1, VISION.width)
        # Starting from waves, a head finds "the patch beside me" far sooner than from noise.
        with torch.no_grad():
            self.position_embedding.weight[0].zero_()
            self.position_embedding.weight[1:] = 0.5 * grid_waves(
                IMAGE_SIZE // PATCH_SIZE, VISION.width
            )

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, 1 + N, C]."""
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(pixels), 1, -1).to(patches.dtype)
        return torch.cat([first, patches], 1) + self.position_embedding.weight


class VisionModel(nn.Module):
    """CLIP's vision tower."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings()
        self.pre_layrnorm = nn.LayerNorm(VISION.width, eps=NORM_EPS)  # sic, in every checkpoint
        self.encoder = Encoder(VISION)
        self.post_layernorm = nn.LayerNorm(VISION.width, eps=NORM_EPS)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, S, S] -> hidden states -2 and -1, [B, 1 + N, C] each."""
        states = [self.pre_layrnorm(self.embeddings(pixels))]
        for layer in self.encoder.layers:
            states.append(layer(states[-1], causal=False))
        return states[-2], states[-1]

    def class_attention(self, second_last: Tensor) -> Tensor:
        """[B, 1 + N, C] -> softmax of q_cls.k / sqrt(C) with the heads concatenated, [B, N]."""
        last = self.encoder.layers[-1]
        normed = last.layer_norm1(second_last)
        query = last.self_attn.q_proj(normed[:, :1])
        keys = last.self_attn.k_proj(normed)
        logits = (query @ keys.transpose(1, 2))[:, 0] / VISION.width**0.5
        return logits.softmax(-1)[:, 1:]


class TextEmbeddings(nn.Module):
    """Tokens and positions."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, TEXT.width)
        self.position_embedding = nn.Embedding(TEXT_POSITIONS, TEXT.width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.01)


class TextModel(nn.Module):
    """CLIP's causal text tower."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(vocabulary)
        self.encoder = Encoder(TEXT)
        self.final_layer_norm = nn.LayerNorm(TEXT.width, eps=NORM_EPS)
        self.end_id = vocabulary - 1

    def forward(self, ids: Tensor) -> Tensor:
        """ids [B, L] padded with the end-of-text id -> state at the first end-of-text [B, C]."""
        positions = self.embeddings.position_embedding.weight[: ids.shape[1]]
        x = self.embeddings.token_embedding(ids) + positions
        for layer in self.encoder.layers:
            x = layer(x, causal=True)
        ends = (ids == self.end_id).int().argmax(1)
        return self.final_layer_norm(x[torch.arange(len(x)), ends])


class Clip(nn.Module):
    """Both towers and their projections to the joint space."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.text_model = TextModel(vocabulary)
        self.vision_model = VisionModel()
        self.visual_projection = nn.Linear(VISION.width, JOINT, bias=False)
        self.text_projection = nn.Linear(TEXT.width, JOINT, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))

    def embed_text(self, ids: Tensor) -> Tensor:
        """[B, L] -> unit vectors [B, P]."""
        return functional.normalize(self.text_projection(self.text_model(ids)).float(), dim=-1)

    def embed_states(self, last: Tensor) -> Tensor:
        """Last hidden state [..., C] -> unit vectors [..., P]."""
        projected = self.visual_projection(self.vision_model.post_layernorm(last))
        return functional.normalize(projected.float(), dim=-1)


class Projector(nn.Module):
    """LLaVA's mlp2x_gelu."""

    def __init__(self) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(VISION.width, LANGUAGE.width)
        self.linear_2 = nn.Linear(LANGUAGE.width, LANGUAGE.width)

    def forward(self, features: Tensor) -> Tensor:
        """[B, M, C] -> [B, M, D]."""
        return self.linear_2(functional.gelu(self.linear_1(features)))


def rope_tables(positions: Tensor) -> tuple[Tensor, Tensor]:
    """positions [L] -> cosines and sines, [L, head width] each."""
    head = LANGUAGE.width // LANGUAGE.heads
    speed = ROPE_THETA ** (-torch.arange(0, head, 2, dtype=torch.float32) / head)
    angle = positions.float()[:, None] * speed
    angle = torch.cat([angle, angle], -1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary position embedding of [B, H, L, head width]."""
    cos, sin = (table.to(x.dtype) for table in tables)
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


class LlamaAttention(nn.Module):
    """Llama self-attention with rotary positions."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            self.add_module(name, nn.Linear(LANGUAGE.width, LANGUAGE.width, bias=False))

    def forward(self, x: Tensor, tables: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        """x [B, L, D], mask [L, L] or [B, 1, L, L] (True = may look) -> [B, L, D]."""
        batch, length, width = x.shape
        q, k, v = (
            self.get_submodule(name)(x).view(batch, length, LANGUAGE.heads, -1).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        q, k = rotate(q, tables), rotate(k, tables)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.get_submodule("o_proj")(mixed.transpose(1, 2).reshape(batch, length, width))


class LlamaMLP(nn.Module):
    """Llama's gated feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(LANGUAGE.width, LANGUAGE.inner, bias=False)
        self.up_proj = nn.Linear(LANGUAGE.width, LANGUAGE.inner, bias=False)
        self.down_proj = nn.Linear(LANGUAGE.inner, LANGUAGE.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class LlamaLayer(nn.Module):
    """One layer of Llama."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = LlamaAttention()
        self.mlp = LlamaMLP()
        self.input_layernorm = nn.RMSNorm(LANGUAGE.width, eps=NORM_EPS)
        self.post_attention_layernorm = nn.RMSNorm(LANGUAGE.width, eps=NORM_EPS)

    def forward(self, x: Tensor, tables: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        x = x + self.self_attn(self.input_layernorm(x), tables, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class LlamaModel(nn.Module):
    """Llama without its head."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, LANGUAGE.width)
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        self.layers = nn.ModuleList(LlamaLayer() for _ in range(LANGUAGE.layers))
        self.norm = nn.RMSNorm(LANGUAGE.width, eps=NORM_EPS)

    def forward(self, embeds: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """embeds [B, L, D], positions [L] -> final states [B, L, D]."""
        tables = rope_tables(positions)
        for layer in self.layers:
            embeds = layer(embeds, tables, mask)
        return self.norm(embeds)


class Llama(nn.Module):
    """Llama with its head."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.model = LlamaModel(vocabulary)
        self.lm_head = nn.Linear(LANGUAGE.width, vocabulary, bias=False)


class Llava(nn.Module):
    """Projector and language model; the frozen vision tower is added on saving."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.multi_modal_projector = Projector()
        self.language_model = Llama(vocabulary)
        self.register_buffer("feature_mean", torch.zeros(VISION.width))
        self.register_buffer("feature_std", torch.ones(VISION.width))

    def project(self, features: Tensor) -> Tensor:
        """Hidden state -2 [B, M, C] -> visual embeddings [B, M, D]."""
        # Training sees standardised features; saving folds this into linear_1.
        return self.multi_modal_projector((features - self.feature_mean) / self.feature_std)
