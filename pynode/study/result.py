"""What came of a study: its rows, as records, as a DataFrame, as a table."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pynode.errors import InputError, PyNODEWarning, StudyError, unknown_name
from pynode.study.row import Row
from pynode.study.store import Store
from pynode.text import table

if TYPE_CHECKING:
    import pandas

__all__ = ["Result"]

_SAME = ("kind", "problem", "contender", "rtol", "atol", "dt", "pass", "seed")


@dataclass
class Result:
    """The rows of a study.

    Attributes:
        name: the study's.
        rows: one for each cell, see `pynode.study.row` for the columns.
        environments: what they were measured in, by the ids in their column `environment`.
        problems: what is known of the problems, by name: description, source, how the reference was made, and how far
            its two ways agree.
        definition: the study as data, see `Study.to_dict`.
    """

    name: str
    rows: list[Row]
    environments: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: dict[str, dict[str, Any]] = field(default_factory=dict)
    definition: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    @classmethod
    def load(cls, path: str | os.PathLike[str], study: str = "") -> Result:
        """The result of a study that a store has, as `Study.run` returned it last, or as far as it came.

        Rows of what was called the same before, of a problem that has changed since, say, are not among them. A store
        of an earlier pynode does not tell them apart: then it is the latest row of each cell, with a warning.

        Args:
            path: the store.
            study: the study's name; not needed where the store has one study alone.

        Raises:
            StudyError: there is no such store.
            InputError: it has no such study.
        """
        if not os.path.exists(path):
            raise StudyError(f"there is no store {os.fspath(path)}: give the file that Study.run(store=…) has written")
        with Store(path) as store:
            definitions = store.studies()
            if not study:
                if len(definitions) != 1:
                    names = ", ".join(sorted(definitions)) or "none"
                    raise InputError(f"{os.fspath(path)} has the studies {names}: name one of them")
                (study,) = definitions
            if study not in definitions:
                raise unknown_name(f"study in {os.fspath(path)}", study, definitions)
            keys = store.defined(study)
            rows = store.rows(study, keys)
            if keys is None:
                warnings.warn(
                    f"{os.fspath(path)} is of an earlier pynode, which did not keep the rows of a study apart from "
                    f"those of others that were called {study!r} before. Run it again to have its own alone",
                    PyNODEWarning,
                    stacklevel=2,
                )
                rows = list({tuple(row.get(name) for name in _SAME): row for row in rows}.values())
            return cls(study, rows, store.environments(), store.problems(study), definitions[study])

    def frame(self) -> pandas.DataFrame:
        """The rows as a pandas DataFrame.

        Raises:
            StudyError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise StudyError(
                "a DataFrame needs pandas: pip install 'pynode-sciml[study]'. Result.rows has the same"
            ) from None
        return pandas.DataFrame(self.rows)

    def best(self, problem: str = "", *, error: float | None = None, measure: str = "state") -> Row:
        """The row that takes the least time on a problem at no more than some error.

        Args:
            problem: its name; not needed where the study has one alone.
            error: the greatest `error_trajectory`, or `gradient_error`; any where `None`.
            measure: `"state"`, or `"gradient"` for the seconds and errors of gradients.

        Raises:
            InputError: there is no such problem or measure.
            StudyError: no row is as good.
        """
        problems = {row["problem"] for row in self.rows}
        if not problem and len(problems) == 1:
            (problem,) = problems
        if problem not in problems:
            raise unknown_name("problem of the study", problem, problems)
        if measure not in ("state", "gradient"):
            raise unknown_name("measure", measure, ("state", "gradient"))
        prefix, found = ("gradient_", "gradient_error") if measure == "gradient" else ("", "error_trajectory")
        rows = [
            row
            for row in self.rows
            if row["problem"] == problem
            and row[f"{prefix}status"] == "ok"
            and row[f"{prefix}seconds"] is not None
            and (error is None or row[found] <= error)
        ]
        if not rows:
            bound = "" if error is None else f" with an error of at most {error:g}"
            raise StudyError(f"no contender solved {problem!r}{bound}: see the column reason, and loosen the error")
        return min(rows, key=lambda row: row[f"{prefix}seconds"])

    def table(self) -> str:
        """The rows as text, by problem, contender and tolerance; what failed with its reason."""
        header = ("contender", "setting", "error", "gradient error", "nfe", "ms", "gradient ms", "MB")
        texts = []
        for problem in dict.fromkeys(row["problem"] for row in self.rows):
            rows = sorted((row for row in self.rows if row["problem"] == problem), key=_order)
            good = [row for row in rows if row["status"] == "ok"]
            text = f"{problem}\n\n{table(header, [_cells(row) for row in good])}" if good else problem
            notes = [_note(row, kind) for row in rows for kind in ("", "gradient_") if _failed(row, kind)]
            texts.append("\n".join([text, *([""] if notes else []), *dict.fromkeys(filter(None, notes))]))
        return "\n\n".join(texts)


def _order(row: Row) -> tuple[Any, ...]:
    return row["contender"], -(row["rtol"] or row["dt"] or 0), row["pass"]


def _setting(row: Row) -> str:
    if row["rtol"] is not None:
        return f"rtol {row['rtol']:.0e}"
    return "-" if row["dt"] is None else f"dt {row['dt']:g}"


def _cells(row: Row) -> tuple[str, ...]:
    def shown(name: str, form: str, scale: float = 1) -> str:
        value = row.get(name)
        return "-" if value is None else format(scale * value, form)

    return (
        row["contender"],
        _setting(row),
        shown("error_trajectory", ".1e"),
        shown("gradient_error", ".1e"),
        shown("nfe", "d"),
        shown("seconds", ".3g", 1e3),
        shown("gradient_seconds", ".3g", 1e3),
        shown("peak_mb", ".1f"),
    )


def _failed(row: Row, kind: str) -> bool:
    """Whether there is something to say: of a gradient, only where the solve went well."""
    if kind and row["status"] != "ok":
        return False
    return row[f"{kind}status"] not in (None, "ok") or bool(row[f"{kind}reason"])


def _note(row: Row, kind: str) -> str:
    what = "gradient " if kind else ""
    reason = " ".join((row[f"{kind}reason"] or "").split())
    status = row[f"{kind}status"]
    if status == "not_comparable":
        return f"{row['contender']}: {what}not comparable: {reason}"
    said = reason if status == "ok" else f"{status.replace('_', ' ')}: {reason}"
    return f"{row['contender']}, {_setting(row)}: {what}{said}"
