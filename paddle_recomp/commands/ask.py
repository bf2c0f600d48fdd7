"""The command `ask`: one question, one answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image

from paddle_recomp.commands.console import progress_bar, quiet_paddle, warnings_as_lines
from paddle_recomp.commands.options import (
    AnswerOptions,
    ImagesArgument,
    JsonOption,
    QuestionArgument,
    with_options,
)
from paddle_recomp.commands.printing import PlainConsole, write_json
from paddle_recomp.commands.reports import answer_dict, print_answer, working
from paddle_recomp.errors import ConfigError
from paddle_recomp.explain import check_output, save_answer
from paddle_recomp.files import is_file
from paddle_recomp.preprocess import check_question, crop_box, load_images
from paddle_recomp.vlm.feature_cache import FeatureCache


@with_options
def ask(
    images: ImagesArgument,
    question: QuestionArgument,
    options: AnswerOptions,
    overlay: Annotated[
        Path | None, typer.Option("--overlay", help="Draw what was kept into this PNG file.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Answer QUESTION about one IMAGE, several, or none."""
    budget, generation = options.budget.build(), options.generation.build()
    pictures = check_inputs(images, question, overlay)
    console = PlainConsole(stderr=True)
    features = None if options.cache is None else FeatureCache(folder=options.cache)
    with quiet_paddle(), warnings_as_lines() as seen_warnings:
        vlm = options.load(console, features)
        if budget.ttft_ms is not None:
            with progress_bar(console, "measuring") as on_step:
                vlm.latency(on_step)
        with working(console, "answering"):
            # A file is read again, because reading it is part of the time to the first token. A
            # pipe can be read only once.
            given = [
                file if is_file(file) else picture
                for file, picture in zip(images, pictures, strict=True)
            ]
            answer = vlm.ask(given, question, budget, generation)
    if as_json:
        boxes = [crop_box(picture.size, vlm.front_end.image_processor) for picture in pictures]
        found = answer_dict(images, boxes, question, answer, vlm)
        write_json({**found, "warnings": seen_warnings})
    else:
        print_answer(answer)
    if overlay is not None:
        processor = vlm.front_end.image_processor
        kept = answer.compressed, answer.stages
        save_answer(overlay, pictures, *kept, processor, question, answer.text)


def check_inputs(images: Sequence[Path], question: str, output: Path | None) -> list[Image.Image]:
    """The pictures. Input is checked here as far as that is possible before a model is loaded.

    Raises: ConfigError; ImageError."""
    if not images and is_file(question):
        raise ConfigError(f"there is no question, only the file {question}")
    if not images and output is not None:
        raise ConfigError(f"{output}: there is no picture to draw on")
    check_question(question, len(images))
    pictures = load_images(images)
    if output is not None:
        check_output(output)
    return pictures
