"""Plain-text tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["table"]


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table with aligned columns; the first column to the left, numbers to the right."""
    from tabulate import tabulate  # here, so that importing pynode stays light

    cells = [[str(cell) for cell in row] for row in rows]
    right = [i > 0 and all(row[i][:1].isdigit() or row[i] in ("", "-") for row in cells) for i in range(len(header))]
    align = ["right" if to_the_right else "left" for to_the_right in right]
    return tabulate(
        cells,
        header,
        tablefmt="simple",
        colalign=align if rows else None,
        headersalign=align,
        disable_numparse=True,  # numbers stay as they are written
        preserve_whitespace=True,
    )
