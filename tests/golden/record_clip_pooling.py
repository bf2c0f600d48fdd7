"""Record where transformers' CLIP pools a text: clip_pooling.npz.

    python -m tests.golden.record_clip_pooling

Needs torch and transformers. The text tower is that of hf_llava_tiny/clip with more rows in its
table of words than its tokenizer has ids: padding, or tokens of an extended vocabulary."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import CLIPTextModelWithProjection

from tests.golden.clip_pooling_cases import END, EOS_TOKEN_IDS, IDS, ROWS, more_rows

HERE = Path(__file__).parent


def record() -> None:
    """The embeddings of IDS for each eos_token_id in a configuration."""
    found = {}
    for eos in EOS_TOKEN_IDS:
        model = CLIPTextModelWithProjection.from_pretrained(
            HERE / "hf_llava_tiny" / "clip", eos_token_id=eos, attn_implementation="eager"
        )
        table = model.get_input_embeddings().weight.detach().numpy()
        model.set_input_embeddings(
            torch.nn.Embedding.from_pretrained(torch.tensor(more_rows(table)))
        )
        model.config.vocab_size = ROWS
        with torch.no_grad():
            found[f"eos_{eos}"] = model(input_ids=torch.tensor(IDS)).text_embeds.numpy()
    found["recorded_with"] = np.array(
        f"transformers {transformers.__version__}, torch {torch.__version__}, end {END}"
    )
    np.savez(HERE / "clip_pooling.npz", **found)


if __name__ == "__main__":
    record()
