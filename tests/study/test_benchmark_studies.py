"""The studies in benchmarks/ can be read, and one of them shows what it is to show."""

from pathlib import Path

import pytest

from pynode.study import Contender, Study

STUDIES = Path(__file__).parents[2] / "benchmarks" / "studies"


@pytest.mark.parametrize(
    ("name", "problems"),
    [
        ("memory", ["1×", "2×", "4×", "8×"]),
        ("flow", ["FFJORD, hutchinson trace", "FFJORD, exact trace"]),
        ("annuli", ["annuli"]),
        ("discrete", ["10 midpoint steps", "40 midpoint steps"]),
    ],
)
def test_a_study_has_its_problems_and_valid_contenders(name, problems):
    study = Study.from_toml(STUDIES / f"{name}.toml")
    cells = study.cells()
    assert {cell.problem.name for cell in cells} == set(problems)
    assert len({cell.key for cell in cells}) == len(cells)


@pytest.mark.slow
def test_the_discrete_adjoint_is_the_gradient_of_the_steps_and_backsolve_is_not():
    study = Study.from_toml(STUDIES / "discrete.toml")
    few = next(problem for problem in study.resolved() if problem.name == "10 midpoint steps")
    options = {"engine": "torch", "solver": "midpoint"}
    contenders = [Contender("pynode", {**options, "sensitivity": how}) for how in ("discrete", "backsolve")]
    rows = Study("exact", [few], contenders, measures=["gradient"], repeats=1).run(progress=False).rows
    errors = {row["options"]["sensitivity"]: row["gradient_error"] for row in rows}
    assert errors["discrete"] < 1e-15
    assert 1e-3 < errors["backsolve"] < 1e-1
