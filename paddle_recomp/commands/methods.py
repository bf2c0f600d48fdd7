"""`recomp methods`: the known compression methods, from their declarations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import Field, asdict, fields
from typing import Annotated, Any, get_args, get_type_hints

import typer
from rich.table import Table

from paddle_recomp.commands.options import JsonOption
from paddle_recomp.commands.printing import PlainConsole, write_json, write_text
from paddle_recomp.compression.method import INPUTS, Method
from paddle_recomp.compression.registry import METHODS, get_method
from paddle_recomp.config import TowerOptions

_PLACES = {
    "after_tower": "after the vision tower",
    "between_layers": "between the vision tower's layers",
    "in_language_model": "inside the language model",
}


def methods(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Only these; default: all.")
    ] = None,
    as_json: JsonOption = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/methods.md.")] = False,
) -> None:
    """Show the compression methods: what each does, reads and can be told."""
    chosen = [get_method(name) for name in names or METHODS]
    if as_json:
        write_json([method_dict(one) for one in chosen])
    elif as_markdown:
        write_text(markdown(chosen), end="")
    else:
        print_methods(PlainConsole(), chosen)


def method_dict(method: Method) -> dict[str, Any]:
    """A declaration as plain data."""
    return {
        "name": method.name,
        "summary": method.summary,
        "source": method.source,
        "acts": method.acts,
        "inputs": list(method.inputs),
        "stages": [asdict(stage) for stage in method.stages],
        "presets": {name: dict(options) for name, options in method.presets.items()},
        "options": [
            {
                "name": one.name,
                "default": one.default,
                "allowed": _allowed(method.options, one.name),
                "doc": one.metadata["doc"],
            }
            for one in fields(method.options)
        ],
    }


def print_methods(console: PlainConsole, methods: Sequence[Method]) -> None:
    """A paragraph for each method, with a table of its options."""
    for method in methods:
        console.say(method.name, "bold")
        for line in _facts(method):
            console.say(f"  {line}")
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for one in fields(method.options):
            table.add_row(f"  {one.name}={one.default}", one.metadata["doc"])
        console.print(table)


def markdown(methods: Sequence[Method]) -> str:
    """The page docs/methods.md."""
    lines = [
        "# Compression methods",
        "This page is made from the declarations of the methods: `make docs` writes it again.",
        "`--method NAME` chooses one, `--set NAME=VALUE` sets one of its options or of the",
        "[towers'](#options-of-the-towers), `--preset NAME` takes a named set of them.",
        "",
        "| method | | acts | stages | source |",
        "|---|---|---|---|---|",
    ]
    for method in methods:
        stages = ", ".join(stage.name for stage in method.stages)
        lines.append(
            f"| [`{method.name}`](#{method.name}) | {method.summary} | {_PLACES[method.acts]} | "
            f"{stages} | {method.source} |"
        )
    for method in methods:
        lines += ["", f"## {method.name}", *(f"- {line}" for line in _facts(method)), ""]
        lines += _option_table(fields(method.options), method.options)
    lines += ["", "## Options of the towers", "They hold for every method.", ""]
    lines += _option_table(fields(TowerOptions), TowerOptions)
    lines += ["", "## What a method may read", "The list is closed: a reader of a bundle refuses"]
    lines += ["a graph that takes anything else.", "", "| input | |", "|---|---|"]
    lines += [f"| `{name}` | {meaning} |" for name, meaning in INPUTS.items()]
    return "\n".join(lines) + "\n"


def _facts(method: Method) -> Iterator[str]:
    yield method.summary
    yield f"Source: {method.source}."
    yield f"It acts {_PLACES[method.acts]} and reads {', '.join(method.inputs)}."
    stages = (f"{stage.name} ({stage.kind}: {stage.meaning})" for stage in method.stages)
    yield f"Its stages: {', '.join(stages)}."
    if method.presets:
        yield f"Its presets: {', '.join(method.presets)}."


def _option_table(options: Sequence[Field[Any]], kind: type) -> list[str]:
    lines = ["| option | default | allowed | |", "|---|---|---|---|"]
    for one in options:
        allowed = ", ".join(f"`{value}`" for value in _allowed(kind, one.name))
        doc = one.metadata["doc"].replace("|", "\\|")
        lines.append(f"| `{one.name}` | `{one.default}` | {allowed} | {doc} |")
    return lines


def _allowed(options: type, name: str) -> list[Any]:
    """The values that an option allows; empty where it is a number."""
    hint = get_type_hints(options)[name]
    return list(get_args(hint)) or ([True, False] if hint is bool else [])
