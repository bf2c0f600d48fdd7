"""The table of bounds in docs/security.md, which is made from `Limits`.

python -m tests.limits_table    # writes it again
"""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from paddle_recomp.limits import Limits, variable

DOCUMENT = Path(__file__).parents[1] / "docs" / "security.md"


def table() -> str:
    """Every bound with its variable."""
    rows = ["| at most | of what | variable |", "|---|---|---|"]
    for item in fields(Limits):
        rows.append(f"| {item.default:,} | {item.metadata['counted']} | `{variable(item.name)}` |")
    return "\n".join(rows)


def page() -> str:
    """The document with this table."""
    text = DOCUMENT.read_text(encoding="utf-8")
    inside = f"<!-- limits -->\n{table()}\n<!-- /limits -->"
    return re.sub(r"<!-- limits -->\n.*?<!-- /limits -->", inside, text, flags=re.S)


if __name__ == "__main__":
    DOCUMENT.write_text(page(), encoding="utf-8")
