"""Results for people (tables) and for programs (JSON)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from paddle_recomp import __version__
from paddle_recomp.bundle import Bundle
from paddle_recomp.bundle.golden import golden_files
from paddle_recomp.checkpoint import PARTS, Checkpoint, prompt_format
from paddle_recomp.commands.printing import PlainConsole, escaped, write_json, write_text
from paddle_recomp.errors import RecompError
from paddle_recomp.json_files import listed, one_line
from paddle_recomp.preprocess import Box, Turn, render
from paddle_recomp.types import Answer, StageInfo, Timing, VisualTokens, num_patches, stage_counts

if TYPE_CHECKING:
    from paddle_recomp.vlm.vlm import VLM

STEPS = {
    "vision": "vision tower",
    "text": "text tower",
    "compress": "compressor",
    "prefill": "prefill",
    "decode": "decode",
    "first_token": "time to first token",
}


@contextmanager
def working(console: Console, what: str) -> Iterator[None]:
    """Shows on a terminal that work goes on. Elsewhere it shows nothing, because an animation would
    leave an empty line."""
    with console.status(Text(escaped(what))) if console.is_terminal else nullcontext():
        yield


def token_line(answer: Answer) -> str:
    """Visual tokens by stage, as one line."""
    if not answer.compressed:
        return "no picture"
    stages = ", ".join(f"{count} {one_line(stage)}" for stage, count in answer.stage_counts.items())
    if answer.num_visual_tokens == answer.num_patches:
        stages = "no compression"
    return f"{answer.num_visual_tokens} of {answer.num_patches} visual tokens: {stages}"


def timing_line(timing: Timing) -> str:
    """The time of each step, as one line."""
    return ", ".join(f"{name} {getattr(timing, key) * 1e3:.1f} ms" for key, name in STEPS.items())


def cost_lines(answer: Answer) -> list[str]:
    """The lines below an answer: whether it was cut, its tokens and its times."""
    lines = [token_line(answer), timing_line(answer.timing)]
    if answer.finish_reason == "length":
        lines.insert(0, f"cut at the longest answer: --max-new-tokens {len(answer.token_ids)}")
    return lines


def print_answer(answer: Answer) -> None:
    """Prints the answer, alone on standard output, and the lines below it on stderr."""
    write_text(answer.text)
    below = PlainConsole(stderr=True)
    for line in cost_lines(answer):
        below.say(line, "dim")


def answer_dict(
    images: Sequence[Path], boxes: Sequence[Box], question: str, answer: Answer, vlm: VLM
) -> dict[str, Any]:
    """An answer as plain data; times in milliseconds. `boxes` are the parts of the pictures that
    their patches cover. docs/output.md explains the fields."""
    return {
        "images": [
            {
                "file": str(image),
                **_visual_tokens(answer.stages, one),
                "box": [round(edge, 3) for edge in box],
                "grid": [isqrt(num_patches(one))] * 2,
                "tokens": _tokens(answer.stages, one),
                "owner": one.owner[0].tolist(),
            }
            for image, box, one in zip(images, boxes, answer.compressed, strict=True)
        ],
        "stages": [asdict(stage) for stage in answer.stages],
        "question": question,
        "answer": answer.text,
        "finish_reason": answer.finish_reason,
        "token_ids": list(answer.token_ids),
        "logprobs": [round(logprob, 6) for logprob in answer.logprobs],
        "visual_tokens": _visual_tokens(answer.stages, *answer.compressed),
        "prefilled": answer.prefilled,
        "timing_ms": {
            key: round(seconds * 1e3, 3) for key, seconds in asdict(answer.timing).items()
        },
        **loaded_dict(vlm),
    }


def loaded_dict(vlm: VLM) -> dict[str, Any]:
    """A loaded model as plain data: what it is, where it runs, and the versions of what runs it."""
    info, own = vlm.info, {"paddle_recomp": __version__}
    if info is None:
        return {"model": None, "backend": None, "versions": own}
    return {
        "model": info.model(),
        "backend": info.backend(),
        "versions": {**own, **info.versions()},
    }


def _tokens(stages: Sequence[StageInfo], picture: VisualTokens) -> dict[str, Any]:
    """The visual tokens of a picture in their order, as lists of one length."""
    return {
        "index": picture.index[0].tolist(),
        "stage": [stages[number].name for number in picture.stage[0]],
        "centre": picture.centre[0].tolist(),
    }


def _visual_tokens(stages: Sequence[StageInfo], *pictures: VisualTokens) -> dict[str, Any]:
    counts = stage_counts(stages, *pictures)
    # The stages stand apart: a method may call one `kept` or `of`.
    return {"kept": sum(counts.values()), "of": num_patches(*pictures), "stages": counts}


def print_bundle(console: PlainConsole, bundle: Bundle, as_json: bool) -> None:
    """Prints the content of a bundle."""
    summary = {
        "bundle": str(bundle.folder),
        "precision": bundle.precision,
        "method": one_line(bundle.method),
        "compressors": listed(bundle.compressors),
        "patches": bundle.num_patches,
        "prompt": json.dumps(
            render(bundle.template, [Turn("…", images=1)]).text, ensure_ascii=False
        ),
        "language_model": one_line(bundle.language_model.name),
        "decoder": "none" if bundle.decoder is None else bundle.decoder.precision,
    }
    if bundle.paddle is not None:
        summary["paddle_inference"] = ", ".join(bundle.paddle.precisions)
    summary["golden_cases"] = bundle.golden or "none"
    golden = sum((bundle.folder / name).stat().st_size for name in golden_files(bundle))
    sizes = dict(bundle.sizes)
    if golden:
        sizes["what the golden cases name"] = golden
    if as_json:
        details = {
            "files": sizes,
            "towers": dict(bundle.towers),
            "options": dict(bundle.options),
            "stages": [asdict(stage) for stage in bundle.stages],
        }
        write_json({**summary, **details})
        return
    for name, value in summary.items():
        console.say(f"{name}: {value}")
    table = Table("file", "MB", box=None, pad_edge=False)
    for name, size in sizes.items():
        table.add_row(name, f"{size / 1e6:.1f}")
    console.print(table)


def print_checkpoint(console: PlainConsole, checkpoint: Checkpoint, as_json: bool) -> None:
    """Prints the content of a checkpoint."""
    spec = checkpoint.spec
    parts = {
        part: {
            "parameters": checkpoint.num_parameters(part),
            "bytes": checkpoint.num_bytes(part),
            "dtypes": list(checkpoint.dtypes(part)),
            **asdict(getattr(spec, name)),
        }
        for part, name in zip(PARTS, ("vision", "text", "projector", "language"), strict=True)
    }
    summary = {
        "layout": spec.layout,
        "model": str(checkpoint.model_dir),
        "clip": str(checkpoint.clip_dir),
        "patches": spec.vision.num_patches,
        "chat_template": _chat_template(checkpoint),
    }
    if as_json:
        write_json({**summary, "parts": parts})
        return
    for name, value in summary.items():
        console.say(f"{name}: {value}")
    table = Table(
        "part", "parameters", "MB", "layers", "width", "details", box=None, pad_edge=False
    )
    for part, sizes in parts.items():
        table.add_row(
            part.replace("_", " "),
            f"{sizes['parameters']:,}",
            f"{sizes['bytes'] / 1e6:.1f}",
            str(sizes.get("num_layers", "")),
            str(sizes.get("hidden_size", sizes.get("out_features"))),
            _details(part, sizes),
        )
    console.print(table)


def _chat_template(checkpoint: Checkpoint) -> str:
    """Where the chat template is from, and its prompt; or why there is none, which is no reason to
    hide the rest."""
    try:
        found = prompt_format(checkpoint)
    except RecompError as error:
        return f"none: {error}"
    prompt = render(found.template, [Turn("…", images=1)]).text
    return f"{found.source}: {json.dumps(prompt, ensure_ascii=False)}"


def _details(part: str, sizes: dict[str, Any]) -> str:
    if part == "vision_tower":
        return f"{sizes['image_size']} px in patches of {sizes['patch_size']}"
    if part == "text_tower":
        return f"{sizes['max_positions']} positions, vocabulary {sizes['vocab_size']}"
    if part == "projector":
        return str(sizes["kind"])
    return (
        f"{sizes['num_heads']} heads ({sizes['num_kv_heads']} for keys), vocabulary "
        f"{sizes['vocab_size']}, context {sizes['max_positions']}"
    )
