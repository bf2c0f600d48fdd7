"""Parts that the comparisons share: the budgets, the agreement of two visual encoders, a progress
bar."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from export.choices import compare_kept
from paddle_recomp.bundle import Bundle
from paddle_recomp.config import TokenBudget
from paddle_recomp.types import VisualTokens

FRACTIONS = {"12.5%": 1 / 8, "25%": 1 / 4}
"""Exact budgets, as shares of all patches."""


def budgets_for(patches: int) -> dict[str, TokenBudget]:
    """Every budget by its name in the reports."""
    exact = {name: TokenBudget(tokens=int(patches * share)) for name, share in FRACTIONS.items()}
    return {"full": TokenBudget(full=True), "dynamic": TokenBudget(), **exact}


def kept_alike(expected: VisualTokens, found: VisualTokens) -> tuple[float, float]:
    """Intersection over union of the single patches that both encoders keep of one image, and the
    mean cosine of the embeddings of those that both keep. numpy, B = 1."""
    first, second = (
        {
            "visual_embeds": one.embeds,
            "token_count": one.count,
            "token_index": one.index,
            "token_stage": one.stage,
        }
        for one in (expected, found)
    )
    return compare_kept(first, second)


def fingerprint(bundle: Bundle) -> dict[str, str]:
    """The checksum of each encoder graph, by which a report names the measured model."""
    return checksums(bundle, sorted(info.file for info in bundle.graphs.values()))


def checksums(bundle: Bundle, names: Iterable[str]) -> dict[str, str]:
    """The beginnings of the checksums of some files of a bundle."""
    return {name: bundle.checksums[name][:16] for name in names}


def progress_bar() -> Progress:
    """A progress bar on standard error, so that the output stays a report."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
