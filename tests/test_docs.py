"""The documents: links that lead somewhere, and what is made from code or repeats it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from paddle_recomp.commands.methods import markdown
from paddle_recomp.compression.config import CompressionConfig, preset
from paddle_recomp.compression.registry import METHODS
from tests import limits_table

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "training").glob("*.md")]
)


def prose(document: Path) -> str:
    """The text without its code."""
    text = document.read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(document: Path) -> set[str]:
    """The names that a renderer gives to the headings."""
    headings = re.findall(r"^#+ (.*)", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_the_page_of_methods_is_what_the_command_prints() -> None:
    """`make docs` writes it."""
    written = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert written == markdown(list(METHODS.values()))


def test_the_page_of_bounds_has_them_all() -> None:
    """`make docs` writes the table."""
    assert limits_table.DOCUMENT.read_text(encoding="utf-8") == limits_table.page()


def test_the_table_of_switches_has_the_presets() -> None:
    """Each row of docs/algorithm.md begins its two cells with the values of the two presets."""
    rows = re.findall(
        r"^\| `(\w+)` \| `([^`]+)`(.*) \| `([^`]+)`(.*) \|$",
        prose(ROOT / "docs" / "algorithm.md"),
        re.MULTILINE,
    )
    faithful, corrected = preset("faithful").as_dict(), preset("corrected").as_dict()
    for name, public, _, ours, _ in rows:
        for written, value in ((public, faithful[name]), (ours, corrected[name])):
            assert CompressionConfig().with_text_options(**{name: written}).as_dict()[name] == value
    different = {name for name, value in faithful.items() if value != corrected[name]}
    assert different <= {name for name, *_ in rows}
