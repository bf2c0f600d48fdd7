"""Records what transformers computes from small random LLaVA models of other shapes and decoders.

Run in an environment of its own, with torch and transformers:
    python tests/golden/record_llava.py tests/golden/hf_llava_variants
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    Qwen2Config,
)

IMAGE_TOKEN = 5
PROMPT = [1, 11, 12, *[IMAGE_TOKEN] * 9, 21, 22, 23]
NEW_TOKENS = 12

VARIANTS: dict[str, dict[str, Any]] = {
    "grouped": {"num_key_value_heads": 2, "rope_theta": 500000.0},
    "linear_rope": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "llama3_rope": {
        "num_key_value_heads": 1,
        "rope_theta": 50000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "tied": {"tie_word_embeddings": True, "rms_norm_eps": 1e-5},
    "biased": {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2, "rope_theta": 1e6, "tie_word_embeddings": True},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 8, "head_dim": 16},
}
DECODERS = {"qwen2": Qwen2Config, "mistral": MistralConfig}
"""Of the variants that are no Llama."""


def record(name: str, options: dict[str, Any], folder: Path, seed: int) -> None:
    """Saves the two checkpoints of one variant and the results."""
    torch.manual_seed(seed)
    act = "gelu" if name == "tied" else "quick_gelu"
    sizes = {"num_attention_heads": 2, "intermediate_size": 48, "hidden_act": act}
    vision = CLIPVisionConfig(
        image_size=42,
        patch_size=14,
        hidden_size=24,
        num_hidden_layers=3,
        projection_dim=20,
        **sizes,
    )
    clip = CLIPModel(
        CLIPConfig(
            text_config={
                "vocab_size": 40,
                "hidden_size": 16,
                "num_hidden_layers": 2,
                "max_position_embeddings": 16,
                "projection_dim": 20,
                "bos_token_id": 38,
                "eos_token_id": 39,
                "pad_token_id": 39,
                **sizes,
            },
            vision_config=vision.to_dict(),
            projection_dim=20,
        )
    ).eval()
    tied = options.get("tie_word_embeddings", False)
    text = DECODERS.get(name, LlamaConfig)(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=56,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        **options,
    )
    llava = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision.to_dict(),
            text_config=text.to_dict(),
            image_token_index=IMAGE_TOKEN,
            image_seq_length=9,
            tie_word_embeddings=tied,
        )
    ).eval()
    with torch.no_grad():
        for key, parameter in llava.model.language_model.named_parameters():
            if parameter.dim() > 1 or key.endswith("bias"):
                parameter.normal_(0, 0.15)
        tower = llava.model.vision_tower
        tower.load_state_dict(
            {
                key: clip.vision_model.state_dict()[key.removeprefix("vision_model.")]
                for key in tower.state_dict()
            }
        )
        pixels = torch.randn(2, 3, 42, 42)
        prompt = torch.tensor([PROMPT, [*PROMPT[:-1], 30]])
        ids = torch.full((2, 16), 39)
        ids[:, 0] = 38
        ids[0, 1:6] = torch.randint(0, 38, (5,))
        ids[1, 1:11] = torch.randint(0, 38, (10,))
        outputs = clip.vision_model(pixels, output_hidden_states=True)
        embeds = llava.model.multi_modal_projector(outputs.hidden_states[-2][:, 1:])
        inputs = llava.get_input_embeddings()(prompt)
        inputs[prompt == IMAGE_TOKEN] = embeds.reshape(-1, 32)
        generated = []
        decoder = llava.model.language_model
        logits_last = None
        for _ in range(NEW_TOKENS):
            hidden = decoder(inputs_embeds=inputs).last_hidden_state[:, -1]
            logits = llava.lm_head(hidden)
            logits_last = logits if logits_last is None else logits_last
            generated.append(logits.argmax(-1))
            step = llava.get_input_embeddings()(generated[-1])[:, None]
            inputs = torch.cat([inputs, step], dim=1)
        text_out = clip.text_model(ids)
        arrays = {
            "pixels": pixels,
            "prompt": prompt,
            "text_ids": ids,
            "hidden_m2": outputs.hidden_states[-2],
            "last_hidden": outputs.last_hidden_state,
            "text_embed": clip.text_projection(text_out.pooler_output),
            "patch_proj_raw": clip.visual_projection(outputs.last_hidden_state),
            "patch_proj_ln": clip.visual_projection(
                clip.vision_model.post_layernorm(outputs.last_hidden_state)
            ),
            "image_embeds": embeds,
            "logits_last": logits_last,
            "generated": torch.stack(generated, 1),
        }
    clip.save_pretrained(folder / name / "clip")
    llava.save_pretrained(folder / name / "llava")
    np.savez_compressed(
        folder / name / "expected.npz", **{key: value.numpy() for key, value in arrays.items()}
    )


if __name__ == "__main__":
    for number, (variant, settings) in enumerate(VARIANTS.items()):
        record(variant, settings, Path(sys.argv[1]), number)
