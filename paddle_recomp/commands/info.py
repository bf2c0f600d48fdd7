"""The command `info`: the content of a folder."""

from __future__ import annotations

from paddle_recomp.bundle import Bundle
from paddle_recomp.bundle.golden import golden_files
from paddle_recomp.commands.options import ClipOption, JsonOption, ModelArgument, TemplateOption
from paddle_recomp.commands.printing import PlainConsole
from paddle_recomp.commands.reports import print_bundle, print_checkpoint


def info(
    model: ModelArgument = "demo",
    clip: ClipOption = None,
    chat_template: TemplateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a checkpoint or a bundle holds, after checking every key, shape and checksum.
    Needs no paddle."""
    from paddle_recomp.vlm.loading import find

    found, console = find(model, clip, template=chat_template), PlainConsole()
    if isinstance(found, Bundle):
        found.verify()
        found.verify(golden_files(found))
        print_bundle(console, found, as_json)
    else:
        print_checkpoint(console, found, as_json)
