"""Exports of the numbers: CSV and Parquet of the rows, LaTeX of the points."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pynode.study.optional import need
from pynode.study.reporting.front import front
from pynode.study.reporting.measures import MEASURES
from pynode.study.reporting.points import disturbed, points
from pynode.study.reporting.source import Row, Source, number
from pynode.study.reporting.units import plus_minus, seconds, slug

if TYPE_CHECKING:
    import pandas

__all__ = ["frame", "latex", "write_csv", "write_latex", "write_parquet"]

_LISTS = ("seconds_all", "gradient_seconds_all")


def frame(source: Source, what: str = "the table of rows") -> pandas.DataFrame:
    """The rows as a pandas DataFrame: numbers as numbers, lists as lists, options and curves as JSON text."""
    pandas = need("pandas", what)
    columns = list(dict.fromkeys(key for row in source.rows for key in row))
    data = {}
    for column in columns:
        values = [row.get(column) for row in source.rows]
        if any(isinstance(value, dict) for value in values):
            values = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
        data[column] = pandas.Series(values, dtype=_dtype(column, values))
    return pandas.DataFrame(data)


def _dtype(column: str, values: Sequence[Any]) -> str:
    known = [value for value in values if value is not None]
    if column in _LISTS:
        return "object"
    if known and all(isinstance(value, int) and not isinstance(value, bool) for value in known):
        return "Int64"  # pandas' integers with missing values
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in known):
        return "float64"
    return "object"


def write_csv(source: Source, stem: Path) -> list[Path]:
    """`STEM.csv`: a line for each row; lists and dictionaries are JSON."""
    path = Path(f"{stem}.csv")
    found = frame(source, "CSV")
    for column in _LISTS:
        if column in found:
            found[column] = [None if value is None else json.dumps(value) for value in found[column]]
    found.to_csv(path, index=False)
    return [path]


def write_parquet(source: Source, stem: Path) -> list[Path]:
    """`STEM.parquet`: a line for each row."""
    need("pyarrow", "Parquet")
    path = Path(f"{stem}.parquet")
    frame(source, "Parquet").to_parquet(path, engine="pyarrow", index=False)
    return [path]


def write_latex(source: Source, stem: Path) -> list[Path]:
    """`STEM-PROBLEM.tex` for each problem: a table for the package booktabs, to be put in with `\\input`."""
    found = []
    for name, text in latex(source).items():
        path = Path(f"{stem}-{name}.tex")
        path.write_text(text, encoding="utf-8")
        found.append(path)
    return found


def latex(source: Source) -> dict[str, str]:
    """The tables of all problems and trainings, by names for files."""
    from pynode.study.reporting.training import summary

    restless = disturbed(source.rows)
    texts: dict[str, str] = {}
    for problem in dict.fromkeys(row["problem"] for row in source.solves):
        rows = [row for row in source.solves if row["problem"] == problem]
        texts[_free(problem, texts)] = _points_table(problem, points(rows, restless))
    for problem in dict.fromkeys(row["problem"] for row in source.trainings):
        entries = summary([row for row in source.trainings if row["problem"] == problem])
        texts[_free(f"{problem}-training", texts)] = _training_table(entries)
    return texts


def _free(name: str, taken: dict[str, str]) -> str:
    """A name for a file that no other problem has."""
    base = free = slug(name)
    place = 2
    while free in taken:
        free, place = f"{base}-{place}", place + 1
    return free


def _points_table(problem: str, found: list[Row]) -> str:
    well = [point for point in found if any(point.get(m.status) == "ok" for m in MEASURES)]
    state, gradient = MEASURES
    best = {
        measure.name: {id(well[i]) for i in front(well, measure, error, "seconds")}
        for measure, error in ((state, "error_trajectory"), (gradient, "gradient_error"))
    }

    def bold(text: str, point: Row, name: str) -> str:
        return rf"\textbf{{{text}}}" if text != "--" and id(point) in best[name] else text

    lines = []
    for point in well:
        cells = [_escaped(point["contender"]), _escaped(point["setting"])]
        cells += [_power(number(point["error_trajectory"])), bold(_time(point["seconds"]), point, "state")]
        cells += [_count(point["nfe"])]
        cells += [_power(number(point["gradient_error"])), bold(_time(point["gradient_seconds"]), point, "gradient")]
        cells += [_count(point["nfe_backward"])]
        lines.append(" & ".join(cells) + r" \\")
    failed = len(found) - len(well)
    head = [
        f"% {_one_line(problem)}: error over the trajectory and of the gradient (relative), time of one call (median).",
        "% Bold: on the Pareto front of error and time. Needs \\usepackage{booktabs}."
        + (f" Points that failed and are not here: {failed}." if failed else ""),
        r"\begin{tabular}{llrrrrrr}",
        r"\toprule",
        r" & & \multicolumn{3}{c}{state} & \multicolumn{3}{c}{gradient} \\",
        r"\cmidrule(lr){3-5} \cmidrule(lr){6-8}",
        r"contender & setting & error & time & NFE & error & time & NFE backward \\",
        r"\midrule",
    ]
    return "\n".join([*head, *lines, r"\bottomrule", r"\end{tabular}", ""])


def _training_table(entries: list[dict[str, Any]]) -> str:
    lines = []
    for entry in entries:
        values = [entry[key] for key in ("test", "loss", "seconds", "nfe", "epoch_nfe")]
        cells = [f"${_math(plus_minus(v['mean'], v['std']))}$" if v else "--" for v in values]
        lines.append(
            " & ".join([_escaped(entry["contender"]), f"{entry['finished']}/{entry['seeds']}", *cells]) + r" \\"
        )
    metric = _escaped(entries[0]["metric"])
    return "\n".join(
        [
            "% Mean and standard deviation over seeds. Needs \\usepackage{booktabs}.",
            r"\begin{tabular}{lrrrrrr}",
            r"\toprule",
            rf"contender & seeds & {metric} & last loss & seconds & NFE & NFE in the last epoch \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}


def _escaped(text: str) -> str:
    return "".join(_SPECIAL.get(c, c) for c in _one_line(text))


def _one_line(text: str) -> str:
    return " ".join(str(text).split())


def _math(text: str) -> str:
    """`3.1×10⁻⁶ ± …` for the mathematical mode."""
    normal = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
    words = []
    for word in text.replace("\u202f", r"\,").replace("±", r"\pm").split(" "):
        factor, times, power = word.partition("×10")
        words.append(rf"{factor}\times 10^{{{power.translate(normal)}}}" if times else word)
    return " ".join(words)


def _power(value: float) -> str:
    if not math.isfinite(value):
        return "--"
    if value == 0:
        return "$0$"
    factor, exponent = f"{value:.1e}".split("e")
    return rf"${factor}\times 10^{{{int(exponent)}}}$"


def _time(value: Any) -> str:
    text = seconds(number(value))
    return text.replace(" ", r"\,").replace("µs", r"\textmu s") if text else "--"


def _count(value: Any) -> str:
    return "--" if not math.isfinite(number(value)) else f"{number(value):,.0f}".replace(",", r"\,")
