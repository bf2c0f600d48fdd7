"""Entry: `python -m training STAGE`, the stages in the order of the choices."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer

from training.check_clip import check_clip
from training.evaluate import evaluate, write_report
from training.export import export_clip, export_llava
from training.features import build_store
from training.model import Llava
from training.packing import language_corpus
from training.phrases import corpus
from training.pictures import write_pictures
from training.tokenizers_ import train_clip_tokenizer, train_llama_tokenizer
from training.train_clip import ClipTrainer, train_clip
from training.train_llava import train_llava
from training.train_text import train_text

ASSETS = Path("paddle_recomp/assets")
REPORT = Path("training/report.json")
STAGES = (
    "tokenizers",
    "clip",
    "text",
    "check",
    "features",
    "llava",
    "export",
    "evaluate",
    "pictures",
)


def padded(vocabulary: int) -> int:
    """The language model's vocabulary, rounded up as the published one is."""
    return -(-vocabulary // 64) * 64


class Workplace:
    """The files of a training run under one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clip_checkpoint = folder / "clip.pt"
        self.llava_checkpoint = folder / "llava.pt"

    def make_tokenizers(self) -> None:
        """Trains both; their ids must never move under a checkpoint, so only once."""
        if not (self.folder / "clip_tokenizer.json").exists():
            tokenizer = train_clip_tokenizer(corpus())
            tokenizer.save(str(self.folder / "clip_tokenizer.json"))
        if not (self.folder / "llava_tokenizer.json").exists():
            tokenizer = train_llama_tokenizer(language_corpus())
            tokenizer.save(str(self.folder / "llava_tokenizer.json"))

    def tokenizer(self, part: str) -> Tokenizer:
        """The tokenizer of "clip" or "llava"."""
        return Tokenizer.from_file(str(self.folder / f"{part}_tokenizer.json"))

    def trained_clip(self) -> ClipTrainer:
        """The CLIP part of the checkpoint, with its heads."""
        model = ClipTrainer(self.tokenizer("clip").get_vocab_size())
        model.load_state_dict(torch.load(self.clip_checkpoint)["model"])
        return model.eval()

    def trained_llava(self) -> Llava:
        """The projector and language model of the checkpoint."""
        model = Llava(padded(self.tokenizer("llava").get_vocab_size()))
        model.load_state_dict(torch.load(self.llava_checkpoint)["model"])
        return model.eval()


def run(stage: str, options: argparse.Namespace) -> None:
    """Runs one stage."""
    place = Workplace(options.work)
    place.make_tokenizers()
    if stage == "clip":
        train_clip(place.tokenizer("clip"), place.clip_checkpoint, options.clip_steps)
    elif stage == "text":
        model = place.trained_clip()
        train_text(model, place.tokenizer("clip"), place.clip_checkpoint, options.text_steps)
    elif stage == "check":
        numbers = check_clip(place.trained_clip(), place.tokenizer("clip"), options.pictures)
        write_report(REPORT, "clip", {"pictures": options.pictures, **numbers})
        print(json.dumps(numbers, indent=2))
    elif stage == "features":
        build_store(place.trained_clip().clip, options.work, options.per_count)
    elif stage == "llava":
        store = build_store(place.trained_clip().clip, options.work, options.per_count)
        tokenizer = place.tokenizer("llava")
        vocabulary = padded(tokenizer.get_vocab_size())
        train_llava(store, tokenizer, vocabulary, place.llava_checkpoint, options.llava_steps)
    elif stage == "export":
        clip = place.trained_clip().clip
        export_clip(clip, place.tokenizer("clip"), ASSETS / "demo" / "clip")
        llava = place.trained_llava()
        export_llava(llava, clip, place.tokenizer("llava"), ASSETS / "demo" / "llava")
    elif stage == "evaluate":
        for title, objects in (("usual scenes", None), ("scenes of 7 objects", 7)):
            report = evaluate(ASSETS / "demo", options.pictures, objects)
            write_report(REPORT, title, report)
            print(title, json.dumps(report, indent=2))
    elif stage == "pictures":
        print("seeds:", write_pictures(ASSETS / "demo", ASSETS / "pictures"))


def main() -> None:
    """Reads the command line and times the stage."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--work", type=Path, default=Path("build/training"))
    parser.add_argument("--clip-steps", type=int, default=2900)
    parser.add_argument("--text-steps", type=int, default=700)
    parser.add_argument("--llava-steps", type=int, default=1900)
    parser.add_argument("--per-count", type=int, default=1500, help="pictures per object count")
    parser.add_argument("--pictures", type=int, default=300, help="held-out pictures")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    run(options.stage, options)
    print(f"{options.stage}: {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
