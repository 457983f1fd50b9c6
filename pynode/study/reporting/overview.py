"""The first look at a study: counts, and how much slower than the fastest each contender is at an equal error."""

from __future__ import annotations

import math
from typing import Any

from pynode.study.reporting.front import fastest
from pynode.study.reporting.measures import work
from pynode.study.reporting.source import Source
from pynode.study.reporting.units import day

__all__ = ["overview"]


def overview(source: Source, problems: list[dict[str, Any]]) -> dict[str, Any]:
    """Numbers of the header and, for state and gradient, the matrix of contenders and problems."""
    statuses = [row["status"] for row in source.rows]
    absent = statuses.count("not_comparable")
    times = sorted(row[key] for row in source.rows for key in ("started", "ended") if row.get(key))
    processors = sorted({str(e["processor"]) for e in source.environments.values() if e.get("processor")})
    return {
        "problems": len({row["problem"] for row in source.rows}),
        "contenders": len({row["contender"] for row in source.rows}),
        "cells": len(statuses),
        "ok": statuses.count("ok"),
        "absent": absent,
        "failed": len(statuses) - statuses.count("ok") - absent,
        "begun": day(times[0]) if times else "",
        "ended": day(times[-1]) if times else "",
        "processors": processors,
        "threads": sorted({row["threads"] for row in source.rows if row.get("threads") is not None}),
        "matrices": {name: matrix for name in ("state", "gradient") if (matrix := _matrix(problems, name))["rows"]},
    }


def _matrix(problems: list[dict[str, Any]], name: str) -> dict[str, Any]:
    columns: list[dict[str, Any]] = []
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    labels: dict[str, dict[str, Any]] = {}
    for problem in problems:
        for contender in problem["data"]["contenders"]:
            labels.setdefault(contender["label"], contender)
        shown = next((m for m in problem["measures"] if m["name"] == name), None)
        if shown is None:
            continue
        columns.append({"name": problem["name"], "id": problem["id"], "asked": shown["asked"]})
        order = fastest(problem["points"], shown["spec"], shown["error"], shown["asked"])
        costs = {problem["points"][i]["contender"]: work(problem["points"][i], shown["spec"], "seconds") for i in order}
        least = min(costs.values(), default=math.nan)
        ok = {p["contender"] for p in problem["points"] if p.get(shown["spec"].status) == "ok"}
        here = {p["contender"]: p.get(shown["spec"].status) for p in problem["points"]}
        for label in labels:
            if label in costs:
                cells[label, problem["name"]] = {"times": costs[label] / least, "text": _times(costs[label] / least)}
            elif label in ok:
                cells[label, problem["name"]] = {"times": None, "text": "not reached"}
            elif label in here:
                text = "" if here[label] in (None, "not_comparable") else "failed"
                cells[label, problem["name"]] = {"times": None, "text": text}
    nothing = {"times": None, "text": ""}
    rows: list[dict[str, Any]] = [
        {"contender": contender, "cells": [cells.get((label, column["name"]), nothing) for column in columns]}
        for label, contender in labels.items()
    ]
    rows = [row for row in rows if any(cell["text"] for cell in row["cells"])]
    return {"columns": columns, "rows": sorted(rows, key=_mean)}


def _times(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 9.995 else f"{ratio:.0f}"


def _mean(row: dict[str, Any]) -> tuple[int, float]:
    """Contenders that reach the error on more problems come first, then those that are faster."""
    known = [math.log(cell["times"]) for cell in row["cells"] if cell["times"]]
    return -len(known), sum(known) / len(known) if known else 0.0
