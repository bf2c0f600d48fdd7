"""The command `demo`: the embedded model answers questions about the pictures that ship with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from paddle_recomp.commands.console import quiet_paddle, warnings_as_lines
from paddle_recomp.commands.options import (
    BudgetOptions,
    DeviceOption,
    LlmOption,
    ModelOption,
    loading_bar,
    with_options,
)
from paddle_recomp.commands.printing import PlainConsole
from paddle_recomp.commands.reports import STEPS, working
from paddle_recomp.config import GenerationConfig, TokenBudget
from paddle_recomp.errors import ConfigError
from paddle_recomp.explain import draw_answer, save
from paddle_recomp.types import Answer
from paddle_recomp.vlm.demo import DemoQuestion, demo_pictures
from paddle_recomp.vlm.front_end import SeenImage
from paddle_recomp.vlm.vlm import VLM

PICTURES = 3
"""How many of the shipped pictures are shown; each is asked two questions."""


@with_options
def demo(
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A folder for the overlays.")
    ] = Path("build/overlays"),
    model: ModelOption = "demo",
    llm: LlmOption = None,
    budget: BudgetOptions,
    device: DeviceOption = "cpu",
) -> None:
    """Ask the embedded model questions about the pictures that ship with it."""
    from paddle_recomp.vlm.loading import load

    wanted, console = budget.build(), PlainConsole()
    make_folder(output)
    with quiet_paddle(), warnings_as_lines():
        with loading_bar(PlainConsole(stderr=True), model) as on_progress:
            vlm = load(model, None, None, device, on_progress, llm)
        run_demo(vlm, wanted, output, console)


def make_folder(path: Path) -> None:
    """Raises: ConfigError when there cannot be a folder at this path."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be a folder: {error}") from error


def run_demo(vlm: VLM, budget: TokenBudget, output: Path, console: PlainConsole) -> None:
    """Asks two questions about each of several pictures, seen once; prints a table of what was
    kept and how long it took, and writes an overlay for each question into the folder `output`.

    Raises: ConfigError when an overlay cannot be written."""
    # The first run of a kernel includes its set-up, which a demonstration should not show.
    first = next(iter(demo_pictures()))
    vlm.ask(first, "what is it?", budget, GenerationConfig(max_new_tokens=2))
    with working(console, "seeing and answering"):
        answers = list(_ask_all(vlm, budget))
    console.print(_answer_table(answers))
    console.print()
    console.print(_timing_table(answers))
    console.print()
    console.say(_saving(answers))
    for number, (asked, answer, seen) in enumerate(answers, start=1):
        path = output / f"{number}-{asked.picture.stem}.png"
        processor = vlm.front_end.image_processor
        drawn = draw_answer(
            [seen.picture], answer.compressed, answer.stages, processor, asked.question, answer.text
        )
        save(drawn, path)
        console.say(f"overlay: {path}")


def _ask_all(vlm: VLM, budget: TokenBudget) -> Iterator[tuple[DemoQuestion, Answer, SeenImage]]:
    for picture, questions in list(demo_pictures().items())[:PICTURES]:
        seen = vlm.see(picture)
        for asked in questions[:2]:
            yield asked, vlm.ask(seen, asked.question, budget), seen


def _answer_table(answers: list[tuple[DemoQuestion, Answer, SeenImage]]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("#")
    for title in ("picture", "question", "answer"):
        table.add_column(title, no_wrap=True)
    for title in ("tokens", *answers[0][1].stage_counts):
        table.add_column(title, justify="right", no_wrap=True)
    for number, (asked, answer, _) in enumerate(answers, start=1):
        right = answer.text == asked.expected
        table.add_row(
            str(number),
            asked.picture.stem,
            asked.question,
            answer.text if right else f"{answer.text} (wrong: {asked.expected})",
            f"{answer.num_visual_tokens}/{answer.num_patches}",
            *(str(count) for count in answer.stage_counts.values()),
        )
    return table


def _saving(answers: list[tuple[DemoQuestion, Answer, SeenImage]]) -> str:
    """The time of the second questions about a picture beside that of the first ones, over all
    pictures."""
    first = sum(answer.timing.first_token + seen.seconds for _, answer, seen in answers[::2])
    second = sum(answer.timing.first_token for _, answer, _ in answers[1::2])
    return (
        f"Time to first token: {first / PICTURES * 1e3:.1f} ms for the first question about a "
        f"picture, {second / PICTURES * 1e3:.1f} ms ({second / first:.0%}) for the second, which "
        "compresses the same features again."
    )


def _timing_table(answers: list[tuple[DemoQuestion, Answer, SeenImage]]) -> Table:
    """Milliseconds; the vision tower runs once for a picture, so only its first question pays."""
    table = Table("time in ms", box=None, padding=(0, 2, 0, 0))
    for number in range(1, len(answers) + 1):
        table.add_column(f"#{number}", justify="right")
    for key, name in STEPS.items():
        cells, paid = [], set()
        for asked, answer, seen in answers:
            value = getattr(answer.timing, key)
            first = asked.picture not in paid
            paid.add(asked.picture)
            if first and key in ("vision", "first_token"):
                value += seen.seconds
            cells.append(f"{value * 1e3:.1f}" if value else "seen")
        table.add_row(name, *cells)
    return table
