"""CLIP's two towers in Paddle, which compute all inputs of the compressor in one pass.

Parameter names follow transformers' CLIP, so that a checkpoint's keys are the names here.
B images or texts, N patches, L text positions, C width, P joint width.
"""

from __future__ import annotations

import paddle
import paddle.nn.functional as F  # noqa: N812
from paddle import nn

from paddle_recomp.checkpoint import TextTowerSpec, VisionTowerSpec
from paddle_recomp.compression import ops
from paddle_recomp.config import TowerOptions
from paddle_recomp.errors import ConfigError
from paddle_recomp.types import Tensor, VisionFeatures


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI CLIP's approximation of GELU."""
    return x * F.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class SelfAttention(nn.Layer):
    """Multi-head attention that also returns its query and key projections."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, N, C], mask [N, N] added to the logits -> output, query, key [B, N, C] each."""
        query, key, value = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        width = x.shape[-1] // self.num_heads

        def heads(y: Tensor) -> Tensor:
            return y.reshape([0, 0, self.num_heads, width]).transpose([0, 2, 1, 3])

        logits = paddle.matmul(heads(query) * width**-0.5, heads(key), transpose_y=True)
        if mask is not None:
            logits = logits + mask
        mixed = paddle.matmul(F.softmax(logits, axis=-1), heads(value))
        mixed = mixed.transpose([0, 2, 1, 3]).reshape([0, 0, x.shape[-1]])
        return self.out_proj(mixed), query, key


class Mlp(nn.Layer):
    """Two linear layers with CLIP's activation between them."""

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, C]."""
        return self.fc2(self.activation(self.fc1(x)))


class EncoderLayer(nn.Layer):
    """A pre-norm transformer block."""

    def __init__(self, spec: VisionTowerSpec | TextTowerSpec) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(spec.hidden_size, spec.layer_norm_eps)
        self.self_attn = SelfAttention(spec.hidden_size, spec.num_heads)
        self.layer_norm2 = nn.LayerNorm(spec.hidden_size, spec.layer_norm_eps)
        self.mlp = Mlp(spec.hidden_size, spec.intermediate_size, spec.hidden_act)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, N, C] -> hidden state, query and key of this layer, [B, N, C] each."""
        attended, query, key = self.self_attn(self.layer_norm1(x), mask)
        x = x + attended
        return x + self.mlp(self.layer_norm2(x)), query, key


class TransformerStack(nn.Layer):
    """The blocks of a tower, one behind the other. A tower calls it `encoder`, as CLIP does."""

    def __init__(self, spec: VisionTowerSpec | TextTowerSpec) -> None:
        super().__init__()
        self.layers = nn.LayerList([EncoderLayer(spec) for _ in range(spec.num_layers)])

    def forward(
        self, x: Tensor, mask: Tensor | None = None
    ) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
        """x [B, N, C] -> hidden states (the input first), and query and key of each layer."""
        states, projections = [x], []
        for layer in self.layers:
            x, query, key = layer(x, mask)
            states.append(x)
            projections.append((query, key))
        return states, projections


class VisionEmbeddings(nn.Layer):
    """Patches, the class token in front, and their positions."""

    def __init__(self, spec: VisionTowerSpec) -> None:
        super().__init__()
        self.class_embedding = self.create_parameter([spec.hidden_size])
        self.patch_embedding = nn.Conv2D(
            3, spec.hidden_size, spec.patch_size, stride=spec.patch_size, bias_attr=False
        )
        self.position_embedding = nn.Embedding(spec.num_patches + 1, spec.hidden_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, 1 + N, C]."""
        patches = self.patch_embedding(pixel_values).flatten(2).transpose([0, 2, 1])
        # Expanding a constant to a dynamic batch breaks the exported graph; adding does not.
        first = patches[:, :1] * 0 + self.class_embedding
        return paddle.concat([first, patches], axis=1) + self.position_embedding.weight


class VisionTower(nn.Layer):
    """CLIP's vision tower with its projection: an image is seen once, for all questions."""

    def __init__(
        self,
        spec: VisionTowerSpec,
        feature_layer: int = -2,
        options: TowerOptions | None = None,
    ) -> None:
        """Raises: ConfigError for a `score_layer` that the tower does not have."""
        super().__init__()
        self.spec, self.feature_layer = spec, feature_layer
        self.options = options or TowerOptions()
        layer = self.options.score_layer
        if not -spec.num_layers <= layer < 0:
            raise ConfigError(
                f"score_layer is {layer}; the vision tower has the layers -{spec.num_layers} to -1"
            )
        self.embeddings = VisionEmbeddings(spec)
        # The misspelling is CLIP's own key name.
        self.pre_layrnorm = nn.LayerNorm(spec.hidden_size, spec.layer_norm_eps)
        self.encoder = TransformerStack(spec)
        self.post_layernorm = nn.LayerNorm(spec.hidden_size, spec.layer_norm_eps)
        self.visual_projection = nn.Linear(spec.hidden_size, spec.projection_dim, bias_attr=False)

    def hidden_states(
        self, pixel_values: Tensor
    ) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
        """pixel_values [B, 3, S, S] -> all hidden states, and query and key of each layer,
        [B, 1 + N, C] each, class token first."""
        states, projections = self.encoder(self.pre_layrnorm(self.embeddings(pixel_values)))
        return states, projections

    def project(self, hidden: Tensor) -> Tensor:
        """Last hidden state [B, n, C] -> joint space [B, n, P]."""
        return self.visual_projection(
            self.post_layernorm(hidden) if self.options.patch_layernorm else hidden
        )

    def forward(self, pixel_values: Tensor) -> VisionFeatures:
        """pixel_values [B, 3, S, S], normalised -> see `VisionFeatures`."""
        states, projections = self.hidden_states(pixel_values)
        return VisionFeatures(
            features=states[self.feature_layer][:, 1:],
            keys=projections[-1][1][:, 1:],
            visual_score=self._score(*projections[-1]),
            patch_embeds=self.project(states[-1][:, 1:]),
            layer_score=self._score(*projections[self.options.score_layer]),
        )

    def _score(self, query: Tensor, key: Tensor) -> Tensor:
        """Attention of the class token to each patch in a layer -> [B, N]."""
        heads = self.spec.num_heads
        return ops.class_attention(query[:, 0], key, heads, self.options.attention)


class TextEmbeddings(nn.Layer):
    """Tokens and their positions."""

    def __init__(self, spec: TextTowerSpec) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.position_embedding = nn.Embedding(spec.max_positions, spec.hidden_size)

    def forward(self, ids: Tensor) -> Tensor:
        """[B, L] -> [B, L, C]."""
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]


class TextTower(nn.Layer):
    """CLIP's text tower with its projection."""

    def __init__(self, spec: TextTowerSpec, options: TowerOptions | None = None) -> None:
        super().__init__()
        self.spec, self.pooling = spec, (options or TowerOptions()).text_pooling
        self.embeddings = TextEmbeddings(spec)
        self.encoder = TransformerStack(spec)
        self.final_layer_norm = nn.LayerNorm(spec.hidden_size, spec.layer_norm_eps)
        self.text_projection = nn.Linear(spec.hidden_size, spec.projection_dim, bias_attr=False)

    def forward(self, question_ids: Tensor) -> Tensor:
        """question_ids [B, L] int64, padded with the end-of-text id -> text_embeds [B, P].

        The causal mask keeps the padding out of everything up to the first end of text."""
        length = question_ids.shape[1]
        blocked = paddle.full([length, length], float("-inf"), dtype=paddle.get_default_dtype())
        states, _ = self.encoder(self.embeddings(question_ids), paddle.triu(blocked, 1))
        hidden = self.final_layer_norm(states[-1])
        if self.pooling == "last_position":
            pooled = hidden[:, -1]
        else:
            ends = question_ids
            if not self.spec.pools_at_highest_id:
                ends = (question_ids == self.spec.eos_token_id).astype("int64")
            place = ends.argmax(axis=1, keepdim=True)
            pooled = ops.take_rows(hidden, place).squeeze(1)
        return self.text_projection(pooled)
