"""Forward solves and gradients, side by side at an equal error.

    python benchmarks/solve.py [STUDY.toml …] [--store FILE]

Runs the studies, `studies/solve.toml` and `studies/stiff.toml` by default, goes on with a store that is there already,
and prints a table for each problem. Each contender is there at the loosest of its tolerances whose error is no larger
than that of the first contender of the study, torchdiffeq, at the second tightest; a ratio says how many times as fast
as that one it is.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pynode.study import Result, Study

STUDIES = [Path(__file__).parent / "studies" / name for name in ("solve.toml", "stiff.toml")]
HEADS = ("contender", "rtol", "error", "nfe", "forward ms", "ratio", "gradient ms", "ratio", "gradient's error", "MB")
SLACK = 1.01


def at_equal_error(rows: list[dict[str, Any]], base: str) -> list[dict[str, Any]]:
    """Of each contender the row of its loosest tolerance that is as exact as the base; the base's comes first."""
    good = sorted((row for row in rows if row["status"] == "ok"), key=lambda row: -row["rtol"])
    of_base = [row for row in good if row["contender"] == base]
    if not of_base:
        return []
    chosen = of_base[-2:][0]
    found = {base: chosen}
    for row in good:
        alone = row["package"].endswith(":Products")  # which is no solve, and has no error
        if alone or row["error_trajectory"] <= SLACK * chosen["error_trajectory"]:
            found.setdefault(row["contender"], row)
    return list(found.values())


def table(problem: str, rows: list[dict[str, Any]], base: str) -> str:
    """The rows of a problem as Markdown, the fastest gradient first."""
    found = at_equal_error(rows, base)
    lines = [f"\n### {problem}\n", f"| {' | '.join(HEADS)} |", f"|{' --- |' * len(HEADS)}"]
    for row in sorted(found, key=lambda row: row["gradient_seconds"] or float("inf")):
        cells = [row["contender"], f"{row['rtol']:.0e}", f"{row['error_trajectory']:.1e}", str(row["nfe"] or "-")]
        for name in ("seconds", "gradient_seconds"):
            there, of_base = row[name], found[0][name]
            cells.append("-" if there is None else f"{1e3 * there:.3g}")
            cells.append("-" if there is None or of_base is None else f"{of_base / there:.2f}")
        error, peak = row["gradient_error"], row["gradient_peak_mb"]
        cells += ["-" if error is None else f"{error:.1e}", "-" if peak is None else f"{peak:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    absent = {row["contender"]: row for row in rows if row["contender"] not in {each["contender"] for each in found}}
    for name, row in sorted(absent.items()):
        lines.append(f"\n{name}: {row['reason'] or 'not as exact at any of its tolerances'}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", type=Path, default=STUDIES)
    parser.add_argument("--store", type=Path, default=Path("solve.sqlite"), help="the rows; default, solve.sqlite")
    arguments = parser.parse_args()
    for path in arguments.studies:
        study = Study.from_toml(path)
        result: Result = study.run(arguments.store)
        base = study.contenders[0].label if not callable(study.contenders) else result.rows[0]["contender"]
        for problem in dict.fromkeys(row["problem"] for row in result.rows):
            print(table(problem, [row for row in result.rows if row["problem"] == problem], base))


if __name__ == "__main__":
    main()
