"""Measures of error on data made by hand."""

import math

import numpy as np
import pytest
import torch

from pynode.errors import StudyError
from pynode.study import Problem, Reference
from pynode.study.accuracy import NotFinite, drift, gradient_error, relative, state_errors

Z = np.array([[[1.0, 2.0]], [[3.0, 4.0]], [[6.0, 8.0]]])
REFERENCE = Reference(Z, {"a": np.array([3.0]), "z0": np.array([[0.0, 4.0]])}, 1.0, 0.0, 0.0, "by hand")


@pytest.mark.parametrize("unit", [1.0, 1e-200, 1e200])
def test_relative_error_has_no_unit(unit):
    right = unit * np.array([3.0, 4.0])
    assert relative(right + unit * np.array([0.0, 0.5]), right) == pytest.approx(0.1)
    assert relative(right, right) == 0.0


def test_of_zeros_and_of_nothing():
    assert relative(np.array([3.0, 4.0]), np.zeros(2)) == pytest.approx(math.sqrt(12.5))
    assert relative(np.zeros(0), np.zeros(0)) == 0.0
    assert relative(np.array([1e300]), np.array([1e-300])) == math.inf


def test_errors_of_states():
    """The initial state is given, and would only make the error smaller."""
    z = Z.copy()
    z[2, 0, 0] += 0.5
    end, trajectory = state_errors(z, REFERENCE)
    assert end == pytest.approx(0.05)
    assert trajectory == pytest.approx(0.5 / math.sqrt(9 + 16 + 36 + 64))


def test_states_of_another_shape_or_not_finite_are_told():
    with pytest.raises(StudyError, match=r"expected \(3, 1, 2\), got \(3, 2\)"):
        state_errors(Z[:, 0], REFERENCE)
    z = Z.copy()
    z[1, 0, 1] = np.nan
    with pytest.raises(NotFinite, match="from the time at position 1 on"):
        state_errors(z, REFERENCE)


def test_error_of_a_gradient_is_of_one_vector():
    assert gradient_error({"a": torch.tensor([3.0]), "z0": [[0.0, 4.5]]}, REFERENCE) == pytest.approx(0.1)
    assert gradient_error({"a": torch.tensor([3.5]), "z0": [[0.0, 4.0]]}, REFERENCE) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("got", "error"),
    [
        ({"a": [3.0]}, StudyError),
        ({"a": [3.0], "z0": [[0.0, 4.0]], "b": 1.0}, StudyError),
        ({"a": [3.0], "z0": [0.0, 4.0]}, StudyError),
        ({"a": [math.inf], "z0": [[0.0, 4.0]]}, NotFinite),
    ],
)
def test_a_gradient_that_cannot_be_compared(got, error):
    with pytest.raises(error):
        gradient_error(got, REFERENCE)


def problem(**invariants):
    return Problem(lambda t, z: -z, torch.ones(1, 2), torch.tensor([0.0, 1.0, 2.0]), invariants=invariants)


def test_drift_is_the_greatest_change():
    assert drift(problem(), Z) is None
    assert drift(problem(first=lambda z: z[..., 0]), Z) == pytest.approx(5.0)
    assert drift(problem(first=lambda z: z[..., 0], ratio=lambda z: z[..., 0] / z[..., 1]), Z) == pytest.approx(5.0)
    assert drift(problem(difference=lambda z: 2 * z[..., 0] - z[..., 1]), Z) == pytest.approx(4.0)  # 0 at the start


def test_an_invariant_that_is_not_finite_has_drifted_infinitely():
    both = {"first": lambda z: z[..., 0], "log": lambda z: (4 - z[..., 0]).log()}
    assert drift(problem(**both), Z) == math.inf
    assert drift(problem(log=both["log"], first=both["first"]), Z) == math.inf
