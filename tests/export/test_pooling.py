"""Where CLIP pools a text, in eager Paddle and in exported graphs, as transformers recorded it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from export.convert import Job, convert
from paddle_recomp.backends.eager import EagerBackend
from paddle_recomp.checkpoint import Checkpoint, open_checkpoint
from paddle_recomp.compression.config import CompressionConfig, preset
from tests.checkpoint.writers import read_safetensors_plainly, write_json, write_safetensors
from tests.golden.clip_pooling_cases import END, EOS_TOKEN_IDS, IDS, ROWS, more_rows

GOLDEN = Path(__file__).parents[1] / "golden"
TABLE = "text_model.embeddings.token_embedding.weight"
RECORDED = dict(np.load(GOLDEN / "clip_pooling.npz"))


def with_more_rows(folder: Path, eos_token_id: int) -> Checkpoint:
    """The golden model with a larger vocabulary of CLIP's."""
    shutil.copytree(GOLDEN / "hf_llava_tiny" / "clip", folder / "clip")
    arrays = read_safetensors_plainly(folder / "clip" / "model.safetensors")
    arrays[TABLE] = more_rows(arrays[TABLE])
    write_safetensors(folder / "clip" / "model.safetensors", arrays)
    config = json.loads((folder / "clip" / "config.json").read_text())
    config["text_config"] |= {"vocab_size": ROWS, "eos_token_id": eos_token_id}
    write_json(folder / "clip" / "config.json", config)
    return open_checkpoint(GOLDEN / "hf_llava_tiny" / "llava", folder / "clip")


def test_questions_have_embeddings_of_their_own() -> None:
    """Or nothing would be tested here."""
    for eos in EOS_TOKEN_IDS[:2]:
        found = RECORDED[f"eos_{eos}"]
        assert len(np.unique(found.round(4), axis=0)) == len(found)
    assert not np.allclose(RECORDED["eos_2"][-1], RECORDED[f"eos_{END}"][-1], atol=1e-2)


@pytest.mark.parametrize("eos", EOS_TOKEN_IDS)
def test_pooling_of_larger_vocabularies(eos: int, tmp_path: Path) -> None:
    checkpoint, expected = with_more_rows(tmp_path, eos), RECORDED[f"eos_{eos}"]
    backend = EagerBackend(checkpoint, CompressionConfig())
    found = backend.run("text", {"question_ids": IDS})["text_embeds"]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_graph_that_pools_at_the_highest_id(tmp_path: Path) -> None:
    """The golden bundle's pools at an id."""
    checkpoint, expected = with_more_rows(tmp_path, 2), RECORDED["eos_2"]
    output = tmp_path / "text.onnx"
    job = Job(
        graph="text",
        model_dir=str(checkpoint.model_dir),
        clip_dir=str(checkpoint.clip_dir),
        config=CompressionConfig().as_dict(),
        reads=(),
        operators="onnx",
        metadata={},
        output=str(output),
    )
    convert(job)
    session = onnxruntime.InferenceSession(str(output))
    # One by one, and all at once.
    rows = [session.run(None, {"question_ids": row[None]})[0][0] for row in IDS]
    np.testing.assert_allclose(rows, expected, atol=1e-4)
    (found,) = session.run(None, {"question_ids": IDS})
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_last_position_is_the_same_whatever_ends_a_text(tmp_path: Path) -> None:
    """The public code's pooling asks for no id."""
    found = []
    for eos in EOS_TOKEN_IDS:
        checkpoint = with_more_rows(tmp_path / str(eos), eos)
        backend = EagerBackend(checkpoint, preset("faithful"))
        found.append(backend.run("text", {"question_ids": IDS})["text_embeds"])
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    # At the end of the padding, and so of a text that fills all positions.
    full = RECORDED[f"eos_{END}"][1]
    np.testing.assert_allclose(found[0][1], full, atol=1e-4)
    assert np.abs(found[0][0] - RECORDED[f"eos_{END}"][0]).max() > 1e-2
