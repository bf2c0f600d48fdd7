"""The command `chat`: questions and commands, line by line."""

from __future__ import annotations

from typing import Annotated

import typer

from paddle_recomp.commands.console import quiet_paddle, warnings_as_lines
from paddle_recomp.commands.options import AnswerOptions, ImagesArgument, with_options
from paddle_recomp.commands.printing import PlainConsole
from paddle_recomp.errors import ConfigError
from paddle_recomp.preprocess import load_images
from paddle_recomp.vlm.conversation import DEFAULT_MODE, check_mode
from paddle_recomp.vlm.feature_cache import FeatureCache


@with_options
def chat(
    images: ImagesArgument,
    options: AnswerOptions,
    mode: Annotated[str, typer.Option("--mode", help="append, recompress or keep.")] = DEFAULT_MODE,
) -> None:
    """Talk about one IMAGE, several, or none: questions and commands, line by line (`/help`)."""
    from paddle_recomp.commands.chat.session import ChatSession
    from paddle_recomp.commands.chat.terminal import is_standard_input, run

    budget, generation = options.budget.build(), options.generation.build()
    check_mode(mode)
    for image in images:
        if is_standard_input(image):
            raise ConfigError(f"{image} is the standard input, from which chat reads the questions")
    pictures = load_images(images)
    features = FeatureCache(folder=options.cache)
    with quiet_paddle(), warnings_as_lines():
        vlm = options.load(PlainConsole(stderr=True), features)
        run(ChatSession(vlm, PlainConsole(), pictures, mode, budget, generation))
