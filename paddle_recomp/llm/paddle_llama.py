"""Llama through paddlenlp."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import paddle

from paddle_recomp.backends.devices import place
from paddle_recomp.checkpoint import Checkpoint, LanguageModelSpec
from paddle_recomp.errors import CheckpointError
from paddle_recomp.llm.base import State, check_lengths, check_numbers, check_rewind
from paddle_recomp.towers.weights import load_part
from paddle_recomp.types import Tensor


class Cache(NamedTuple):
    """Keys and values of each layer, with the mask [B, T] of the real positions. It is needed
    because the padding of one call stands in front of the positions of the next."""

    layers: tuple[tuple[Tensor, Tensor], ...] | None
    mask: Tensor


class PaddleLlama:
    """A `LanguageModel` in eager Paddle: float32 on a CPU, float16 on a GPU."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: str = "cpu",
        on_tensor: Callable[[int], None] = lambda num_bytes: None,
    ) -> None:
        """Raises: DeviceError, CheckpointError for a shape that paddlenlp's Llama cannot take."""
        from paddlenlp.transformers import LlamaForCausalLM
        from paddlenlp.transformers.model_utils import no_init_weights

        self.spec = checkpoint.spec.language
        self.place = place(device)
        before = paddle.get_default_dtype()
        paddle.set_default_dtype("float32" if device == "cpu" else "float16")
        head = frozenset() if self.spec.tie_word_embeddings else frozenset({"lm_head.weight"})
        with paddle.device.device_guard(device):
            try:
                # Keeps paddle and paddlenlp from drawing random weights that are replaced at once.
                with paddle.LazyGuard(), no_init_weights():
                    self.model = LlamaForCausalLM(_paddlenlp_config(self.spec))
            finally:
                paddle.set_default_dtype(before)
            load_part(checkpoint, "language_model", self.model, _paddlenlp_name, head, on_tensor)
        self.model.eval()

    def embed(self, ids: np.ndarray) -> np.ndarray:
        """See `LanguageModel.embed`."""
        with paddle.no_grad():
            embeds = self.model.llama.embed_tokens(paddle.to_tensor(ids, place=self.place))
            return np.asarray(embeds.astype("float32").numpy())

    @property
    def context(self) -> int:
        """See `LanguageModel.context`."""
        return self.spec.max_positions

    def prefill(
        self, embeds: np.ndarray, lengths: np.ndarray, capacity: int | None = None
    ) -> tuple[np.ndarray, State]:
        """See `LanguageModel.prefill`; each step copies the cache, so `capacity` has no effect."""
        empty = Cache(None, paddle.zeros([len(embeds), 0], dtype="int64"))
        return self.extend(embeds, lengths, State(np.zeros_like(lengths), self, empty))

    def extend(
        self, embeds: np.ndarray, lengths: np.ndarray, state: State
    ) -> tuple[np.ndarray, State]:
        """See `LanguageModel.extend`."""
        check_lengths(embeds, lengths, state.lengths, self.context)
        past: Cache = state.spend(self)
        steps = np.arange(embeds.shape[1])
        positions = state.lengths[:, None] + np.minimum(steps, lengths[:, None] - 1)
        real = paddle.to_tensor(steps < lengths[:, None], dtype="int64", place=self.place)
        mask = paddle.concat([past.mask, real], axis=1)
        dtype = self.model.llama.embed_tokens.weight.dtype
        # Without position_ids a cached step is silently wrong; without a 2-D mask it fails.
        with paddle.no_grad():
            hidden, layers = self.model.llama(
                inputs_embeds=paddle.to_tensor(embeds, place=self.place).astype(dtype),
                position_ids=paddle.to_tensor(positions, place=self.place),
                attention_mask=mask,
                past_key_values=past.layers,
                use_cache=True,
            )[:2]
            rows = paddle.arange(len(embeds))
            last = hidden[rows, paddle.to_tensor(lengths - 1, place=self.place)]
            logits = np.asarray(self.model.lm_head(last).astype("float32").numpy())
            # On a CPU Paddle's softmax treats NaN as a very small number, so it may not reach the
            # logits.
            keys = sum(float(keys.sum(dtype="float32")) for keys, _ in layers)
        check_numbers(logits=logits, keys=np.array(keys))
        return logits, State(state.lengths + lengths, self, Cache(layers, mask))

    def decode(self, ids: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        """See `LanguageModel.decode`."""
        return self.extend(self.embed(ids)[:, None], np.ones(len(ids), dtype=np.int64), state)

    def rewind(self, state: State, lengths: np.ndarray) -> State:
        """See `LanguageModel.rewind`."""
        check_rewind(lengths, state.lengths)
        layers, mask = state.spend(self)
        limit = paddle.to_tensor(lengths[:, None], place=self.place)
        mask = mask * (mask.cumsum(axis=1) <= limit).astype(mask.dtype)
        width = int(mask.any(axis=0).nonzero().max()) + 1
        kept = tuple((keys[:, :width], values[:, :width]) for keys, values in layers)
        return State(lengths, self, Cache(kept, mask[:, :width]))


def _paddlenlp_name(name: str) -> str:
    return name if name.startswith("lm_head.") else f"llama.{name}"


def _paddlenlp_config(spec: LanguageModelSpec) -> Tensor:
    """The sizes as paddlenlp's configuration.

    Raises: CheckpointError for an architecture that its Llama does not implement."""
    from paddlenlp.transformers import LlamaConfig

    if spec.head_dim * spec.num_heads != spec.hidden_size:
        raise CheckpointError(
            f"head_dim is {spec.head_dim}; paddlenlp's Llama needs hidden_size / "
            f"num_attention_heads = {spec.hidden_size / spec.num_heads:g}"
        )
    for name in ("qkv_bias", "output_bias", "mlp_bias", "sliding_window"):
        if getattr(spec, name):
            raise CheckpointError(
                f"{name} is {getattr(spec, name)}, which paddlenlp's Llama does not have; a bundle "
                "runs it: recomp export"
            )
    scaling: dict[str, object] = {}
    if spec.rope_scaling is not None:
        kind = spec.rope_scaling["rope_type"]
        if kind == "llama3":
            scaling = {"rope_scaling": dict(spec.rope_scaling)}
        else:
            scaling = {
                "rope_scaling_type": {"linear": "linear", "dynamic": "dynamic_ntk"}[kind],
                "rope_scaling_factor": spec.rope_scaling["factor"],
            }
    return LlamaConfig(
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.num_heads,
        num_key_value_heads=spec.num_kv_heads,
        max_position_embeddings=spec.max_positions,
        rms_norm_eps=spec.rms_norm_eps,
        rope_theta=spec.rope_theta,
        tie_word_embeddings=spec.tie_word_embeddings,
        use_flash_attention=False,
        **scaling,
    )
