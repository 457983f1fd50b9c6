"""What mkdocs puts into pages while it builds them: the table of solvers."""

import html

from tabulate import tabulate

import pynode

MARK = "<!-- solvers -->"
HEADER = (
    "name",
    "for",
    "order",
    "step",
    "stiff",
    "engines",
    "OrdinaryDiffEq",
    "torchdiffeq",
)


def solvers_table() -> str:
    """Every solver that pynode knows, as a table in Markdown."""
    rows = []
    for s in pynode.solvers():
        step, stiff = (
            "adaptive" if s.adaptive else "fixed",
            "yes" if s.stiff else "no",
        )
        named = [
            f"`{name}`" if name else "–" for name in (s.name, s.julia, s.torch)
        ]
        rows.append(
            (
                named[0],
                html.escape(s.purpose),
                str(s.order),
                step,
                stiff,
                ", ".join(s.engines),
                *named[1:],
            )
        )
    return tabulate(rows, HEADER, tablefmt="pipe", disable_numparse=True)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Called by mkdocs for each page."""
    return markdown.replace(MARK, solvers_table())
