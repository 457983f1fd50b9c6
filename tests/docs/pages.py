"""The blocks of code of the site's pages."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
NOTEBOOKS = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.ipynb"))
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))

_FENCE = re.compile(r"^(?P<indent> *)```(?P<info>.+)\n(?P<code>(?:.*\n)*?)(?P=indent)```$", re.MULTILINE)


@dataclass
class Block:
    """One fenced block.

    Attributes:
        line: the number of the line before its first.
        language: what the fence says.
        classes: further words of the fence, `julia` for what needs Julia.
        options: `data-raises`, the error that the block is to end with; `title`, the name of a file.
        code: without the fence and its indentation.
        shown: of Python, what the page shows as its output: the block of text that follows at once, if one does.
    """

    line: int
    language: str
    classes: set[str]
    options: dict[str, str]
    code: str
    shown: str | None = None


def blocks(page: str) -> list[Block]:
    """The blocks of a page, in order; those of text behind Python are part of it."""
    text, found, end = (DOCS / page).read_text(), [], -1
    for match in _FENCE.finditer(text):
        indent, info = match["indent"], match["info"].strip()
        braces = info.startswith("{")
        words = shlex.split(info.strip("{} "))
        names = [w.lstrip(".") for w in words if "=" not in w]
        options = dict(w.split("=", 1) for w in words if "=" in w)
        assert braces or len(names) == 1, f"{page}: {info}"
        code = "".join(line.removeprefix(indent) for line in match["code"].splitlines(keepends=True))
        follows = not text[end : match.start()].strip() if end >= 0 else False
        if names[0] == "text" and follows and found[-1].language == "python" and found[-1].shown is None:
            found[-1].shown = code
        else:
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(line, names[0], set(names[1:]), options, code))
        end = match.end()
    return found
