"""Trains the CLIP part: patch classes (auxiliary), patches to phrases, class token to captions."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from training.clip_data import IGNORE, NAMES, PLACES, ClipBatch, ClipBatches, to_pixels
from training.model import VISION, Clip
from training.scenes import COLORS

PICTURES, PHRASES = 32, 64
PEAK_RATE, WARMUP, WEIGHT_DECAY = 1.5e-3, 150, 0.05
CAPTION_WEIGHT = 0.2
SAVE_EVERY = 100


class ClipTrainer(nn.Module):
    """The CLIP model with the heads and scales that only training needs."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.clip = Clip(vocabulary)
        self.name_head = nn.Linear(VISION.width, len(NAMES) + 1)
        self.color_head = nn.Linear(VISION.width, len(COLORS) + 1)
        self.place_head = nn.Linear(VISION.width, len(PLACES))
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
            return F.cross_entropy(flat, target.flatten(), weight, ignore_index=IGNORE)

        joint = self.clip.embed_states(last)
        phrases = self.clip.embed_text(batch.phrase_ids)
        logits = joint[:, 1:] @ phrases.T * self.patch_scale.exp() + self.patch_bias
        known = ~batch.relevance.isnan()
        wanted = batch.relevance.nan_to_num()
        pairs = F.binary_cross_entropy_with_logits(logits.float(), wanted, reduction="none")
        # Summed over all pairs and shared by the positive ones: hard negatives keep their weight.
        align = (pairs * known).sum() / wanted.sum().clamp_min(1)
        captions = self.clip.embed_text(batch.caption_ids)
        scores = joint[:, 0] @ captions.T * self.clip.logit_scale.exp().clamp_max(100)
        own = torch.arange(len(scores))
        return {
            "name": classify(self.name_head, batch.names),
            "color": classify(self.color_head, batch.colors),
            "place": classify(self.place_head, batch.places),
            "align": align,
            "caption": (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2,
        }


def rate_at(step: int, steps: int) -> float:
    """Learning rate: linear warm-up, then cosine to zero."""
    if step < WARMUP:
        return PEAK_RATE * (step + 1) / WARMUP
    return PEAK_RATE * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / max(1, steps - WARMUP)))


def _optimizer(model: nn.Module) -> torch.optim.AdamW:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY)


def train_clip(tokenizer: Tokenizer, checkpoint: Path, steps: int) -> ClipTrainer:
    """Trains up to `steps` in all, going on from the checkpoint where there is one."""
    torch.manual_seed(0)
    model = ClipTrainer(tokenizer.get_vocab_size())
    optimizer = _optimizer(model)
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    data = ClipBatches(tokenizer, start, PICTURES, PHRASES)
    batches = iter(DataLoader(data, batch_size=None, num_workers=1, prefetch_factor=3))
    progress = tqdm(range(start, steps), initial=start, total=steps, mininterval=10)
    running: dict[str, float] = {}
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, steps)
        with torch.autocast("cpu", torch.bfloat16):
            losses = model.losses(next(batches))
        total = sum(value * (CAPTION_WEIGHT if name == "caption" else 1.0)
                    for name, value in losses.items())  # fmt: skip
        assert isinstance(total, Tensor)
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        for name, value in losses.items():
            running[name] = 0.97 * running.get(name, value.item()) + 0.03 * value.item()
        progress.set_postfix({k: f"{v:.3f}" for k, v in running.items()}, refresh=False)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                     "step": step + 1}  # fmt: skip
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    return model
