"""Reports of studies: an HTML page, figures for papers, tables."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pynode.errors import unknown_name
from pynode.study.reporting.source import Source, load

__all__ = ["FORMATS", "report"]

FORMATS = ("html", "png", "svg", "csv", "parquet", "latex")


def report(
    source: Any, path: str | os.PathLike[str], formats: Sequence[str] | str = ("html",), *, study: str = ""
) -> list[Path]:
    """Write the report of a study.

    Args:
        source: a `Result`, a `Store`, or the path of a store.
        path: the page, e.g. `"report.html"`; or a folder, in which it is called that. Other formats are written beside
            it, under names that begin with the page's: `report.csv`, `report.parquet`,
            `report-PROBLEM-work-precision.svg`, `report-PROBLEM.tex`.
        formats: which of `"html"` (one page, which holds all that it needs), `"png"` and `"svg"` (work-precision
            diagrams and training curves), `"csv"` and `"parquet"` (a line for each row), `"latex"` (booktabs).
        study: the study's name, where a store has several.

    Returns:
        The files that were written.

    Raises:
        InputError: a format is unknown.
        StudyError: there is nothing to report, or a package is missing that a format needs.
    """
    chosen = (formats,) if isinstance(formats, str) else tuple(formats)
    for name in chosen:
        if name not in FORMATS:
            raise unknown_name("format of a report", name, FORMATS)
    found = load(source, study)
    path = Path(path)
    if not path.suffix:
        path = path / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    stem = path.with_suffix("")
    files = [file for name in dict.fromkeys(chosen) if name in _WRITERS for file in _WRITERS[name](found, stem)]
    if images := [name for name in dict.fromkeys(chosen) if name not in _WRITERS]:
        from pynode.study.reporting.paper import write_figures

        files += write_figures(found, stem, images)
    return files


def _html(source: Source, stem: Path) -> list[Path]:
    from pynode.study.reporting.page import page

    path = Path(f"{stem}.html")
    path.write_text(page(source), encoding="utf-8")
    return [path]


def _table(writer: str) -> Callable[[Source, Path], list[Path]]:
    def write(source: Source, stem: Path) -> list[Path]:
        from pynode.study.reporting import tables

        files: list[Path] = getattr(tables, writer)(source, stem)
        return files

    return write


_WRITERS: dict[str, Callable[[Source, Path], list[Path]]] = {
    "html": _html,
    "csv": _table("write_csv"),
    "parquet": _table("write_parquet"),
    "latex": _table("write_latex"),
}
