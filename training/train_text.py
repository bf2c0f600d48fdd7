"""Trains a fresh text tower against the finished vision tower; cheap after a change of phrases."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from training.clip_data import ClipBatches, to_pixels
from training.model import Clip
from training.optimizers import make_optimizers
from training.train_clip import PEAK_RATE, PHRASES, WEIGHT_DECAY, WEIGHTS, ClipTrainer, rate_at

PICTURES = 16
FIRST_STEP = 100_000  # scenes and phrases that the vision tower was not trained on


@torch.no_grad()
def joint_embeddings(clip: Clip, images: Tensor) -> Tensor:
    """[B, S, S, 3] uint8 -> class token and patches in the joint space, [B, 1 + N, P]."""
    with torch.autocast("cpu", torch.bfloat16):
        return clip.embed_states(clip.vision_model(to_pixels(images))[1])


def train_text(model: ClipTrainer, tokenizer: Tokenizer, checkpoint: Path, steps: int) -> None:
    """Replaces text tower and text projection in the checkpoint; the vision side stays."""
    torch.manual_seed(2)
    fresh = Clip(tokenizer.get_vocab_size())
    clip = model.clip
    clip.text_model.load_state_dict(fresh.text_model.state_dict())
    clip.text_projection.load_state_dict(fresh.text_projection.state_dict())
    text_side = nn.ModuleDict({"tower": clip.text_model, "projection": clip.text_projection})
    optimizers = make_optimizers(text_side, PEAK_RATE, WEIGHT_DECAY)
    data = ClipBatches(tokenizer, FIRST_STEP, PICTURES, PHRASES)
    batches = iter(DataLoader(data, batch_size=None, num_workers=1, prefetch_factor=3))
    running = 0.0
    progress = tqdm(range(steps), mininterval=10)
    for step in progress:
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step, steps)
        batch = next(batches)
        losses = model.text_losses(joint_embeddings(clip, batch.images), batch)
        total = torch.stack([WEIGHTS[name] * value for name, value in losses.items()]).sum()
        for optimizer in optimizers:
            optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(text_side.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        running = 0.97 * running + 0.03 * losses["align"].item()
        progress.set_postfix(align=f"{running:.3f}", refresh=False)
    state = torch.load(checkpoint)
    state["model"] = model.state_dict()
    torch.save(state, checkpoint)
