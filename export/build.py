"""A bundle from a checkpoint: runs all steps of a plan, and writes the whole bundle or nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from paddle_recomp.bundle import Bundle, open_bundle
from paddle_recomp.vlm.checkpoint_inputs import language_side, question_tokenizer
from paddle_recomp.vlm.demo import DEMO, DEMO_CHECKPOINT
from paddle_recomp.vlm.loading import find_checkpoint

from .accuracy import Outcome
from .manifest import describe
from .paddle_int8 import check_interpreter
from .plan import ExportPlan
from .steps import Work, steps_of
from .writing import replaced_folder

OnStep = Callable[[int, int, str], None]
"""Is given the number of steps done, the number of all steps, and the name of the next one."""


@dataclass(frozen=True)
class Exported:
    """The result of an export."""

    bundle: Bundle
    outcome: Outcome | None
    """The report on INT8 towers; None where there are none."""


def export(
    plan: ExportPlan, output: Path, on_step: OnStep = lambda done, total, name: None
) -> Exported:
    """Writes the bundle of a plan into a folder, all of it or nothing, and opens it.

    Raises: ExportError, CheckpointError; ConfigError and ImageError for pictures and questions to
    calibrate on; ModuleNotFoundError."""
    # Conversions are processes of their own. A package that they lack is found here, before any
    # work.
    for package in ("paddle", "paddle2onnx"):
        if find_spec(package) is None:
            raise ModuleNotFoundError(f"there is no module {package!r}", name=package)
    if plan.paddle_int8 is not None:
        check_interpreter(plan.paddle_int8)
    checkpoint = find_checkpoint(plan.model, plan.clip, plan.template)
    # The small files come first, so that a fault in them is found before minutes of work.
    question_tokenizer(checkpoint)
    language_side(checkpoint)
    embedded = str(plan.model) in (DEMO, DEMO_CHECKPOINT)
    name = DEMO if embedded else checkpoint.model_dir.resolve().name
    steps = steps_of(plan)
    with replaced_folder(output) as folder:
        work = Work(plan, checkpoint, folder, describe(checkpoint, name, plan))
        for done, step in enumerate(steps):
            on_step(done, len(steps), step.name)
            step.run(work)
        open_bundle(folder)
    return Exported(open_bundle(output), work.outcome)


def export_bundle(
    model: str | Path, output: Path, clip: str | Path | None = None, **choices: Any
) -> Bundle:
    """`export` in one call; `choices` are fields of ExportPlan.

    Raises: as `export` and `ExportPlan`."""
    return export(ExportPlan(model=model, clip=clip, **choices), output).bundle
