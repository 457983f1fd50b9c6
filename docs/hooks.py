"""What mkdocs makes of other files while it builds the site: the table of solvers, pages of the notebooks."""

from __future__ import annotations

import base64
import html
import re
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
from tabulate import tabulate

import pynode

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

MARK = "<!-- solvers -->"
DPI = 110  # of the notebooks' pictures
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
    markdown = re.sub(r"(\]\([\w/.]*\w+)\.ipynb\)", r"\1.md)", markdown)
    return markdown.replace(MARK, solvers_table())


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, as it was stored with its outputs, and its pictures by the names of their files."""
    parts, pictures = [], {}
    for cell in nbformat.read(path, as_version=4).cells:
        parts.append(
            cell.source
            if cell.cell_type == "markdown"
            else f"```python\n{cell.source}\n```"
        )
        for output in cell.get("outputs", []):
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "image/png" in data:
                name = f"{path.stem}-{len(pictures)}.png"
                pictures[name] = base64.b64decode(data["image/png"])
                pixels = int.from_bytes(pictures[name][16:20], "big")
                shape = f"{{ .figure width={pixels * 72 // DPI} }}"
                parts.append(f"![{cell.metadata['alt']}]({name}){shape}")
            else:
                text = data["text/plain"].rstrip("\n")
                parts.append(f"```{{ .text .printed }}\n{text}\n```")
    title, *rest = parts
    heading, _, opening = title.partition("\n")
    download = f"[Download this notebook]({path.name}){{ download }}"
    return "\n\n".join([heading, download, opening, *rest]), pictures


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Called by mkdocs once it has found the files: each notebook gets a page."""
    from mkdocs.structure.files import File

    for file in list(files):
        path = Path(file.src_uri)
        if path.suffix == ".ipynb":
            page, pictures = notebook_page(Path(file.abs_src_path))
            made = {path.with_suffix(".md").name: page, **pictures}
            for name, content in made.items():
                uri = path.with_name(name).as_posix()
                files.append(File.generated(config, uri, content=content))
    return files
