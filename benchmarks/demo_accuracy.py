"""Accuracy of the demo model on held-out scenes: every method at equal budgets.

    python -m benchmarks.demo_accuracy --output docs/demo_accuracy.json
    python -m benchmarks.demo_accuracy --output docs/demo_accuracy.json --only random

The second one measures some rows again and leaves the others as they are.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.comparing import FRACTIONS
from benchmarks.held_out import Evaluation, Item, draw_items, is_right
from paddle_recomp.compression.config import CompressionConfig, preset
from paddle_recomp.config import TokenBudget
from paddle_recomp.types import Answer
from paddle_recomp.vlm.demo import DEMO_CHECKPOINT
from paddle_recomp.vlm.loading import find_checkpoint, load, load_front_end
from paddle_recomp.vlm.vlm import VLM

SEEN_SHARE = 0.25
"""The visual score drops an object when it keeps less than this share of its patches."""

SEEDS = range(5)

METHODS: dict[str, CompressionConfig] = {
    "corrected": preset("corrected"),
    "faithful": preset("faithful"),
    "visual score only": preset("corrected", method="visual"),
    # It is drawn with each of SEEDS.
    "random": preset("corrected", method="random"),
    "uniform": preset("corrected", method="uniform"),
}
ABLATIONS: dict[str, CompressionConfig] = {
    "corrected": preset("corrected"),
    "question_source = prompt_first_line": preset("corrected", question_source="prompt_first_line"),
    "text_pooling = last_position": preset("corrected", text_pooling="last_position"),
    "patch_layernorm = false": preset("corrected", patch_layernorm=False),
    "attention = heads": preset("corrected", attention="heads"),
    "outliers = all": preset("corrected", outliers="all"),
    "scaling = float64": preset("corrected", scaling="float64"),
    "text_sign = -1": preset("corrected", text_sign=-1),
    "text_scope = all": preset("corrected", text_scope="all"),
    "centres_of = channels": preset("corrected", centres_of="channels"),
    "cluster_keys = misaligned": preset("corrected", cluster_keys="misaligned"),
    "text_weight = 0": preset("corrected", text_weight=0.0),
    "merge = raw": preset("corrected", merge="raw"),
    "rest = with_centres": preset("corrected", rest="with_centres"),
    "faithful": preset("faithful"),
}


@dataclass(frozen=True)
class Outcome:
    """The result of one configuration for one item."""

    right: bool
    tokens: int
    object_share: float
    """Share of the asked object's patches among the kept ones; 1 where no object is asked."""


def outcome(item: Item, answer: Answer) -> Outcome:
    """The report's entry for an answer."""
    kept, target = answer.compressed[0].index[0], item.question.target
    patches = np.array([], dtype=np.int64) if target is None else item.scene.patches(target)
    return Outcome(
        right=is_right(item, answer),
        tokens=answer.num_visual_tokens,
        object_share=float(np.isin(patches, kept).mean()) if len(patches) else 1.0,
    )


def summary(
    items: Sequence[Item], outcomes: Sequence[Outcome], dropped: Sequence[bool]
) -> dict[str, Any]:
    """Accuracies in percent: over all items, over those whose object the visual score drops, and by
    kind."""

    def percent(chosen: list[Outcome]) -> float | None:
        return round(100 * float(np.mean([one.right for one in chosen])), 2) if chosen else None

    kinds = sorted({item.question.kind for item in items})
    asked = [
        one for item, one in zip(items, outcomes, strict=True) if item.question.target is not None
    ]
    return {
        "accuracy": percent(list(outcomes)),
        "dropped_by_visual": percent(
            [one for one, gone in zip(outcomes, dropped, strict=True) if gone]
        ),
        "object_patches_kept": round(100 * float(np.mean([one.object_share for one in asked])), 2),
        "mean_tokens": round(float(np.mean([one.tokens for one in outcomes])), 2),
        "by_kind": {
            kind: percent(
                [o for i, o in zip(items, outcomes, strict=True) if i.question.kind == kind]
            )
            for kind in kinds
        },
    }


def over_seeds(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The means of the summaries of several draws, and the accuracy of each."""

    def mean(values: Sequence[Any]) -> Any:
        return None if None in values else round(float(np.mean(values)), 2)

    kinds = rows[0]["by_kind"]
    return {
        **{key: mean([row[key] for row in rows]) for key in rows[0] if key != "by_kind"},
        "by_kind": {kind: mean([row["by_kind"][kind] for row in rows]) for kind in kinds},
        "accuracy_by_seed": [row["accuracy"] for row in rows],
    }


class Bench:
    """Runs configurations over the same items with one language model."""

    def __init__(self, model: str, scenes: int, batch: int, progress: Progress) -> None:
        self.items = draw_items(scenes)
        self.model = model
        self.batch = batch
        self.progress = progress
        self.base = load(model)
        self.patches = self.base.see(Image.fromarray(self.items[0].scene.image)).num_patches

    def outcomes(
        self, config: CompressionConfig, budgets: Sequence[TokenBudget], name: str
    ) -> list[Outcome]:
        """One configuration over all items."""
        front_end = load_front_end(find_checkpoint(self.model), config)
        vlm = VLM(front_end, self.base.answerer)
        answers = Evaluation(vlm, self.items, self.batch).answers(budgets, self.progress, name)
        return [outcome(item, one) for item, one in zip(self.items, answers, strict=True)]

    def exactly(self, tokens: int) -> list[TokenBudget]:
        """The same exact budget for every item."""
        return [TokenBudget(tokens=tokens)] * len(self.items)

    def dropped(self, outcomes: Sequence[Outcome]) -> list[bool]:
        """Items whose object the visual score alone does not keep."""
        return [one.object_share < SEEN_SHARE for one in outcomes]

    def row(
        self, name: str, budget_name: str, budget: Sequence[TokenBudget], dropped: Sequence[bool]
    ) -> dict[str, Any]:
        """The summary of a method; of `random` over all seeds."""
        config, title = METHODS[name], f"{name}, {budget_name}"
        configs = [config.with_options(seed=s) for s in SEEDS] if name == "random" else [config]
        rows = [summary(self.items, self.outcomes(one, budget, title), dropped) for one in configs]
        return over_seeds(rows) if name == "random" else rows[0]

    def compare(self, names: Sequence[str]) -> dict[str, Any]:
        """These methods at every budget, at equal token counts."""
        nothing = [False] * len(self.items)
        results: dict[str, Any] = {"full": {}}
        if set(names) == set(METHODS):
            full = [TokenBudget(full=True)] * len(self.items)
            outcomes = self.outcomes(preset("corrected"), full, "uncompressed")
            results["full"] = {"uncompressed": summary(self.items, outcomes, nothing)}
        dynamic = self.outcomes(
            METHODS["corrected"], [TokenBudget()] * len(self.items), "corrected, dynamic"
        )
        # Equal budgets: for each question every method gets the number of tokens that the filter
        # gave `corrected`.
        budgets = {
            "dynamic": [TokenBudget(tokens=one.tokens) for one in dynamic],
            **{name: self.exactly(int(self.patches * f)) for name, f in FRACTIONS.items()},
        }
        for budget_name, budget in budgets.items():
            visual = self.outcomes(METHODS["visual score only"], budget, "visual score only")
            dropped = self.dropped(visual)
            known = {"visual score only": visual}
            if budget_name == "dynamic":
                known["corrected"] = dynamic
            results[budget_name] = {
                "questions_dropped_by_visual": sum(dropped),
                **{
                    name: summary(self.items, known[name], dropped)
                    if name in known
                    else self.row(name, budget_name, budget, dropped)
                    for name in names
                },
            }
        return results

    def ablate(self, names: Sequence[str], tokens: int) -> dict[str, Any]:
        """`corrected` with one switch turned to the public code's side, at an exact budget."""
        if not names:
            return {}
        budget = self.exactly(tokens)
        visual = self.outcomes(METHODS["visual score only"], budget, "visual score only")
        dropped = self.dropped(visual)
        return {
            name: summary(self.items, self.outcomes(ABLATIONS[name], budget, name), dropped)
            for name in names
        }


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """A report with the rows of another one in place of its own."""
    both = {
        key: merged(old[key], value)
        if isinstance(value, dict) and "accuracy" not in value
        else value
        for key, value in new.items()
        if key in old
    }
    return {**old, **{key: value for key, value in new.items() if key not in old}, **both}


def print_results(console: Console, results: dict[str, Any]) -> None:
    """The comparison as a table."""
    table = Table("budget", "method", "tokens", "right %", "dropped by visual %", "object kept %")
    for budget, methods in results.items():
        for name, row in methods.items():
            if isinstance(row, dict):
                table.add_row(
                    budget,
                    name,
                    f"{row['mean_tokens']:.1f}",
                    f"{row['accuracy']:.1f}",
                    "" if row["dropped_by_visual"] is None else f"{row['dropped_by_visual']:.1f}",
                    f"{row['object_patches_kept']:.1f}",
                )
    console.print(table)


def main() -> None:
    """Runs the comparison, then the ablation, and writes both as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=DEMO_CHECKPOINT)
    parser.add_argument("--scenes", type=int, default=260)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--only", nargs="+", choices=[*METHODS, *ABLATIONS], metavar="ROW")
    parser.add_argument("--no-ablation", action="store_true")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    wanted = options.only or [*METHODS, *ABLATIONS]

    console = Console()
    with Progress(console=Console(stderr=True)) as progress:
        bench = Bench(options.model, options.scenes, options.batch, progress)
        if options.only and options.output is not None:
            before = json.loads(options.output.read_text(encoding="utf-8"))
            if before["questions"] != len(bench.items):
                parser.error(
                    f"{options.output} is about {before['questions']} questions, --scenes "
                    f"{options.scenes} about {len(bench.items)}: their rows cannot stand together"
                )
        found = bench.compare([name for name in METHODS if name in wanted])
        console.print(f"{len(bench.items)} questions about {options.scenes} held-out scenes")
        print_results(console, found)
        report = {"questions": len(bench.items), "patches": bench.patches, **found}
        if not options.no_ablation:
            names = [name for name in ABLATIONS if name in wanted]
            report["ablation_12.5%"] = bench.ablate(names, bench.patches // 8)
            print_results(console, {"12.5%": report["ablation_12.5%"]})
    if options.output is not None:
        if options.only:
            report = merged(before, report)
        options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
