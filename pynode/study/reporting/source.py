"""What a report is made of, whatever it was given: rows, environments, what is known of the problems."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pynode.errors import StudyError

__all__ = ["Row", "Source", "load", "number"]

Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """Rows with their environments and problems, as a report and a comparison read them."""

    rows: list[Row]
    environments: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: dict[str, dict[str, Any]] = field(default_factory=dict)
    name: str = "study"

    @property
    def solves(self) -> list[Row]:
        """Rows of problems that are solved."""
        return [row for row in self.rows if row.get("kind", "solve") != "training"]

    @property
    def trainings(self) -> list[Row]:
        """Rows of models that are trained."""
        return [row for row in self.rows if row.get("kind", "solve") == "training"]


def load(source: Any, study: str = "") -> Source:
    """The rows of a `Result`, a `Store`, a path of a store, or a mapping with the key "rows".

    Args:
        source: any of these.
        study: the name of the study in a store; not needed where it has one alone.

    Raises:
        StudyError: when it is none of these, or holds no row.
        InputError: when a store has no such study.
    """
    parts = dict(source) if isinstance(source, Mapping) else _of_result(_result(source, study))
    rows = parts.get("rows")
    if not isinstance(rows, Sequence) or not rows:
        raise StudyError("there is no row to report of: run the study first (`pynode study run`, `Study.run`)")
    for row in rows:
        missing = [key for key in ("problem", "contender", "status") if not isinstance(row.get(key), str)]
        if missing:
            raise StudyError(f"a row of the study lacks {', '.join(missing)}: got the keys {sorted(row)}")
    names = sorted({str(row.get("study") or "") for row in rows} - {""})
    return Source(
        rows=[dict(row) for row in rows],
        environments={str(key): dict(value) for key, value in (parts.get("environments") or {}).items()},
        problems={str(key): dict(value) for key, value in (parts.get("problems") or {}).items()},
        name=str(parts.get("name") or ", ".join(names) or "study"),
    )


def _result(source: Any, study: str) -> Any:
    from pynode.study.result import Result
    from pynode.study.store import Store

    if isinstance(source, Store):
        return Result.load(source.path, study)
    return Result.load(source, study) if isinstance(source, (str, os.PathLike)) else source


def _of_result(result: Any) -> dict[str, Any]:
    if not hasattr(result, "rows"):
        raise StudyError(
            f"a report needs a Result, a Store or the path of a store, got {type(result).__name__}: pass what "
            "Study.run returned, or the path that it was given as `store`"
        )
    return {name: getattr(result, name, None) for name in ("rows", "environments", "problems", "name")}


def number(value: Any) -> float:
    """A row's value as a number; NaN where it is unknown."""
    if value is None or isinstance(value, (str, bool)):
        return math.nan
    return float(value)
