"""Loading into Paddle: the model and at most one shard beside it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.checkpoint.sparse import write_sparse_model

PROGRAM = """
import re, sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
import paddlenlp.transformers
from paddle_recomp.checkpoint import open_checkpoint
from paddle_recomp.llm.paddle_llama import PaddleLlama

def peak():
    # Not getrusage, whose peak a process inherits from the one that started it.
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

checkpoint = open_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]))
tiny = open_checkpoint(Path(sys.argv[2]).parent / "llava", Path(sys.argv[2]))
PaddleLlama(tiny)
before = peak()
PaddleLlama(checkpoint)
print(peak() - before, checkpoint.num_parameters("language_model") * 4)
"""


def test_loading_takes_the_model_and_at_most_one_shard(tmp_path: Path) -> None:
    clip = Path(__file__).parents[1] / "golden" / "hf_llava_tiny" / "clip"
    shards = write_sparse_model(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), str(clip)],
        capture_output=True,
        text=True,
        check=True,
    )
    growth, model = map(int, done.stdout.split()[-2:])
    assert model > 300e6
    assert model < growth < model + max(shards)
