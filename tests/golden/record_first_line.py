"""Record what the public code gives CLIP to read, and what CLIP makes of it: first_line.npz.

    python -m tests.golden.record_first_line

Needs transformers 4.31, which the public code asks for, sentencepiece and torch. It goes the public
code's way to the scores of patches (`llava/mm_utils.py`, `llava/model/llava_arch.py`,
`llava/model/multimodal_encoder/clip_encoder.py`), with the CLIP of the demo, and the small
tokenizer.model of llama_tokenizer/ in place of Vicuna's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image

FOLDER = Path(__file__).parent
ASSETS = FOLDER.parents[1] / "paddle_recomp" / "assets"
CLIP = ASSETS / "demo" / "clip"
PICTURE = ASSETS / "pictures" / "scene_5.png"
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
PLACE = "<image>"
PROMPTS = {
    "vicuna": f"{SYSTEM} USER: {PLACE}\nwhere is the star? ASSISTANT:",
    "vicuna, second turn": f"{SYSTEM} USER: {PLACE}\nwhere? ASSISTANT: up</s>USER: why? ASSISTANT:",
    "no system": f"USER: {PLACE}\nwhere is the star? ASSISTANT:",
    "picture behind": f"USER: where is the star? {PLACE} ASSISTANT:",
    "brackets": f"[INST] {PLACE}\nwhere is the star? [/INST]",
}


def first_line(prompt: str) -> str:
    """The stretches around the picture become ids, with the beginning of text once; without a place
    for the picture they become a text again, whose line 0 is kept."""
    path = FOLDER / "llama_tokenizer" / "tokenizer.model"
    # Vicuna's tokenizer_config.json has these two settings.
    options = {"legacy": True, "clean_up_tokenization_spaces": False}
    tokenizer = transformers.LlamaTokenizer(str(path), **options)
    stretches = [tokenizer(piece).input_ids for piece in prompt.split(PLACE)]
    ids = stretches[0] + [number for piece in stretches[1:] for number in piece[1:]]
    line: str = tokenizer.decode(ids).split("\n")[0]
    return line


@torch.no_grad()
def record() -> None:
    """For each prompt: line 0, its ids, its feature, its score of each patch of a picture."""
    words = transformers.CLIPTokenizer.from_pretrained(CLIP)
    text_tower = transformers.CLIPTextModelWithProjection.from_pretrained(CLIP)
    vision = transformers.CLIPVisionModelWithProjection.from_pretrained(CLIP)
    processor = transformers.CLIPImageProcessor.from_pretrained(CLIP)
    pixels = processor(Image.open(PICTURE).convert("RGB"), return_tensors="pt")["pixel_values"]
    patches = vision.visual_projection(vision(pixels).last_hidden_state)[0, 1:]
    patches = torch.nn.functional.normalize(patches, dim=-1)
    lines = {name: first_line(prompt) for name, prompt in PROMPTS.items()}
    arrays = dict[str, np.ndarray]()
    for name, line in lines.items():
        read = words(line, max_length=77, truncation=True, padding="max_length")["input_ids"]
        # The last position, behind all padding.
        pooled = text_tower(torch.tensor([read])).last_hidden_state[:, -1]
        feature = text_tower.text_projection(pooled)[0]
        score = patches @ torch.nn.functional.normalize(feature, dim=-1) * len(feature) ** -0.5
        arrays |= {
            f"{name}.ids": np.array(read),
            f"{name}.feature": feature.numpy(),
            f"{name}.score": score.numpy(),
        }
    about = {"lines": lines, "recorded_with": f"transformers {transformers.__version__}"}
    np.savez_compressed(FOLDER / "first_line.npz", about=np.array(json.dumps(about)), **arrays)


if __name__ == "__main__":
    record()
