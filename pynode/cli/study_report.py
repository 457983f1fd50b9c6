"""`pynode study report` and `pynode study diff`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction

__all__ = ["WORSE", "add"]

WORSE = 3
"""The exit code of `diff` where something got slower or worse: 1 and 2 say that the command itself failed."""


def add(actions: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both commands to those of `pynode study`."""
    report = actions.add_parser("report", help="write a study's report: a page, figures for papers, tables")
    report.add_argument("store", type=Path, help="the store that the study was written to")
    report.add_argument("--out", type=Path, help="the page, or a folder (default: beside the store)")
    report.add_argument(
        "--formats",
        type=_formats,
        default=("html",),
        help="html, png, svg, csv, parquet, latex, with commas between them, or all (default: html)",
    )
    report.add_argument("--study", default="", help="the study's name, where the store has several")
    report.set_defaults(run=_report)

    diff = actions.add_parser(
        "diff",
        help="what got faster, slower, worse from one study to another",
        epilog=f"The exit code is 0 where nothing got slower or worse, {WORSE} where something did, 1 or 2 where the "
        "comparison could not be made.",
    )
    diff.add_argument("a", type=Path, help="the store of the study before")
    diff.add_argument("b", type=Path, help="the store of the study after")
    diff.add_argument("--study", default="", help="the study's name, where the stores have several")
    diff.add_argument("--study-b", default="", help="the name in the store b, where it is another")
    diff.add_argument("--least", type=float, default=1.05, help="the least ratio of times that matters (default: 1.05)")
    diff.add_argument("--out", type=Path, help="also write the comparison as an HTML page")
    diff.set_defaults(run=_diff)


def _formats(text: str) -> tuple[str, ...]:
    from pynode.study.reporting import FORMATS

    return FORMATS if text == "all" else tuple(filter(None, text.split(",")))


def _report(arguments: argparse.Namespace) -> int:
    from pynode.study.reporting import report
    from pynode.study.reporting.units import slug

    out = arguments.out or arguments.store.with_name(f"{slug(arguments.study or arguments.store.stem)}.html")
    for path in report(arguments.store, out, arguments.formats, study=arguments.study):
        print(path)
    return 0


def _diff(arguments: argparse.Namespace) -> int:
    from pynode.study.comparison import compare

    study_b = arguments.study_b or arguments.study
    found = compare(arguments.a, arguments.b, least=arguments.least, study_a=arguments.study, study_b=study_b)
    print(found)
    if arguments.out:
        print(f"\n{found.write(arguments.out)}")
    return WORSE if found.slower or found.worse else 0
