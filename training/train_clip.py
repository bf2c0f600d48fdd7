"""Trains the CLIP part: patch classes (auxiliary), patches to phrases, class token to captions."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from tqdm import tqdm

from training.clip_data import IGNORE, NAMES, PLACES, ClipBatch, ClipBatches, to_pixels
from training.model import VISION, Clip
from training.optimizers import make_optimizers
from training.scenes import COLORS, GLYPH

PICTURES, PHRASES = 32, 64
PEAK_RATE, WARMUP, WEIGHT_DECAY = 2e-3, 150, 0.05
WEIGHTS = {"name": 1.0, "color": 1.0, "place": 1.0, "glyph": 3.0, "align": 1.0, "caption": 0.2}
SAVE_EVERY = 100


class ClipTrainer(nn.Module):
    """The CLIP model with the heads and scales that only training needs."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.clip = Clip(vocabulary)
        self.name_head = nn.Linear(VISION.width, len(NAMES) + 1)
        self.color_head = nn.Linear(VISION.width, len(COLORS) + 1)
        self.place_head = nn.Linear(VISION.width, len(PLACES))
        self.glyph_head = nn.Linear(VISION.width, GLYPH * GLYPH)
        self.patch_scale = nn.Parameter(torch.tensor(2.3))
        self.patch_bias = nn.Parameter(torch.tensor(-5.0))

    def losses(self, batch: ClipBatch) -> dict[str, Tensor]:
        """The summands of the loss by name."""
        second_last, last = self.clip.vision_model(to_pixels(batch.images))
        patches = second_last[:, 1:].float()

        def classify(head: nn.Linear, target: Tensor) -> Tensor:
            # Background is nine tenths of all patches; a tenth of it is enough.
            weight = torch.ones(head.out_features)
            if head.out_features != len(PLACES):
                weight[-1] = 0.1
            flat = head(patches).flatten(0, 1).float()
            return functional.cross_entropy(flat, target.flatten(), weight, ignore_index=IGNORE)

        # Drawing the whole object from each of its patches teaches to look at the neighbours,
        # a far denser signal than the object's name.
        drawn = ~batch.glyphs[..., 0].isnan()
        sketches = self.glyph_head(patches)[drawn].float()
        joint = self.clip.embed_states(last)
        return {
            "name": classify(self.name_head, batch.names),
            "color": classify(self.color_head, batch.colors),
            "place": classify(self.place_head, batch.places),
            "glyph": functional.binary_cross_entropy_with_logits(sketches, batch.glyphs[drawn]),
            **self.text_losses(joint, batch),
        }

    def text_losses(self, joint: Tensor, batch: ClipBatch) -> dict[str, Tensor]:
        """Losses between the joint embeddings [B, 1 + N, P] and the texts of the batch."""
        phrases = self.clip.embed_text(batch.phrase_ids)
        logits = joint[:, 1:] @ phrases.T * self.patch_scale.exp() + self.patch_bias
        known = ~batch.relevance.isnan()
        wanted = batch.relevance.nan_to_num()
        pairs = functional.binary_cross_entropy_with_logits(
            logits.float(), wanted, reduction="none"
        )
        # Summed over all pairs and shared by the positive ones: hard negatives keep their weight.
        align = (pairs * known).sum() / wanted.sum().clamp_min(1)
        captions = self.clip.embed_text(batch.caption_ids)
        scores = joint[:, 0] @ captions.T * self.clip.logit_scale.exp().clamp_max(100)
        own = torch.arange(len(scores))
        picks = functional.cross_entropy(scores, own) + functional.cross_entropy(scores.T, own)
        return {"align": align, "caption": picks / 2}


def rate_at(step: int, steps: int) -> float:
    """Learning rate: linear warm-up, then cosine to zero."""
    if step < WARMUP:
        return PEAK_RATE * (step + 1) / WARMUP
    return PEAK_RATE * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / max(1, steps - WARMUP)))


def train_clip(tokenizer: Tokenizer, checkpoint: Path, steps: int) -> ClipTrainer:
    """Trains up to `steps` in all, going on from the checkpoint where there is one."""
    torch.manual_seed(0)
    model = ClipTrainer(tokenizer.get_vocab_size())
    optimizers = make_optimizers(model, PEAK_RATE, WEIGHT_DECAY)
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        start = state["step"]
    data = ClipBatches(tokenizer, start, PICTURES, PHRASES)
    batches = iter(DataLoader(data, batch_size=None, num_workers=1, prefetch_factor=3))
    progress = tqdm(range(start, steps), initial=start, total=steps, mininterval=10)
    running: dict[str, float] = {}
    for step in progress:
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step, steps)
        with torch.autocast("cpu", torch.bfloat16):
            losses = model.losses(next(batches))
        total = torch.stack([WEIGHTS[name] * value for name, value in losses.items()]).sum()
        for optimizer in optimizers:
            optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        for name, value in losses.items():
            running[name] = 0.97 * running.get(name, value.item()) + 0.03 * value.item()
        progress.set_postfix({k: f"{v:.3f}" for k, v in running.items()}, refresh=False)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            state = {
                "model": model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "step": step + 1,
            }
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    return model
