"""The command `explain`: which patches are kept for a question."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paddle_recomp.commands.ask import check_inputs
from paddle_recomp.commands.console import quiet_paddle, warnings_as_lines
from paddle_recomp.commands.options import (
    BudgetOptions,
    ChosenRuntimeOptions,
    ClipOption,
    CompressionOptions,
    ImagesArgument,
    ModelOption,
    QuestionArgument,
    TemplateOption,
    with_options,
)
from paddle_recomp.commands.printing import PlainConsole, write_text
from paddle_recomp.commands.reports import working
from paddle_recomp.errors import ConfigError
from paddle_recomp.explain import save_answer
from paddle_recomp.preprocess import check_question


@with_options
def explain(
    images: ImagesArgument,
    question: QuestionArgument,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The PNG file to write.")] = Path(
        "explain.png"
    ),
    model: ModelOption = "demo",
    clip: ClipOption = None,
    chat_template: TemplateOption = None,
    compression: CompressionOptions,
    budget: BudgetOptions,
    runtime: ChosenRuntimeOptions,
) -> None:
    """Draw which patches of each IMAGE are kept for QUESTION, without the language model."""
    from paddle_recomp.vlm.loading import chat_template as template_of
    from paddle_recomp.vlm.loading import find, load_front_end

    config, wanted = compression.build(), budget.build()
    if not images:
        raise ConfigError("there is no picture to explain; expected IMAGE and QUESTION")
    pictures = check_inputs(images, question, output)
    console = PlainConsole(stderr=True)
    with quiet_paddle(), warnings_as_lines():
        with working(console, f"loading {model}"):
            found = find(model, clip, compress=runtime.compress, template=chat_template)
            front_end = load_front_end(
                found,
                config,
                runtime.device,
                backend=runtime.backend,
                precision=runtime.precision,
            )
        with working(console, "compressing"):
            asked = check_question(question, len(images))
            text = front_end.text_of(asked, len(images), template_of(found))
            (chosen,) = front_end.compress([front_end.see(pictures)], [text], wanted)
    processor = front_end.image_processor
    save_answer(output, pictures, chosen.compressed, front_end.stages, processor, question)
    write_text(str(output))
