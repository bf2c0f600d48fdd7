"""Whether a bundle says of its checkpoint what is so: everything that is copied, not computed, has
to be the same to the last bit."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np

from paddle_recomp.bundle import MANIFEST, Bundle
from paddle_recomp.bundle.comparison import Comparison
from paddle_recomp.checkpoint import Checkpoint
from paddle_recomp.compression.registry import get_method
from paddle_recomp.vlm.checkpoint_inputs import language_side, question_tokenizer

from .decoder.write import describe_decoder
from .manifest import facts_of

_OPTIONAL = {"question": ("begin",)}
"""Fields that a section has only for some checkpoints."""


def compare_facts(bundle: Bundle, checkpoint: Checkpoint) -> Iterator[Comparison]:
    """The sections of recomp.json that prepare inputs, both tokenizers, and the table of words."""
    manifest = json.loads(bundle.verified(MANIFEST).read_text(encoding="utf-8"))
    facts = facts_of(checkpoint, bundle.question_source)
    if bundle.decoder is not None:
        facts["decoder"] = describe_decoder(checkpoint, bundle.decoder.precision)
    for name, expected in facts.items():
        # A later export may have added fields to a section.
        known = {*expected, *_OPTIONAL.get(name, ())}
        found = {key: value for key, value in manifest[name].items() if key in known}
        yield _same(MANIFEST, name, found == json.loads(json.dumps(expected)))
    for name, about in manifest["compress"]["graphs"].items():
        expected_stages = [(stage.name, stage.kind) for stage in get_method(about["method"]).stages]
        stages = [(stage["name"], stage["kind"]) for stage in about["stages"]]
        yield _same(MANIFEST, f"stages of {name}", stages == expected_stages)
    clip = question_tokenizer(checkpoint).to_json()
    words = language_side(checkpoint)[0].to_json()
    for file, text in ((bundle.question.tokenizer, clip), (bundle.prompt.tokenizer, words)):
        found = json.loads(bundle.verified(file).read_text(encoding="utf-8"))
        yield _same("tokenizer", file, found == json.loads(text))
    if bundle.decoder is not None:
        path = bundle.verified(bundle.decoder.embed_tokens)
        table = np.load(path, mmap_mode="r", allow_pickle=False)
        wanted = checkpoint.parameter("language_model", "embed_tokens.weight")
        equal = table.dtype == wanted.dtype and np.array_equal(table, wanted)
        yield _same("decoder", "embed_tokens", equal)


def _same(stage: str, name: str, equal: bool) -> Comparison:
    return Comparison(1, stage, name, "agreement", float(equal), 1.0)
