"""References: against exact solutions and gradients, by each way, and refused where two ways do not agree."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from torch import nn

from pynode.errors import StudyError
from pynode.study import Problem, Reference
from pynode.study.accuracy import relative
from pynode.study.truth import reference
from pynode.study.truth.flat import Flat
from pynode.study.truth.variational import solve_variational

T = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64)


class Linear(nn.Module):
    def __init__(self, matrix):
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor(matrix, dtype=torch.float64))
        self.register_parameter("unused", nn.Parameter(torch.ones(2, dtype=torch.float64)))

    def forward(self, t, z):
        return z @ self.matrix.T


def weighted(z):
    return (z * torch.arange(1, z.numel() + 1, dtype=z.dtype).reshape(z.shape)).sum().square()


def problem(matrix=((0.0, 1.0), (-1.0, -0.1)), **keywords):
    z0 = torch.tensor([[1.0, 0.5], [0.3, -2.0]], dtype=torch.float64)
    return Problem(Linear(matrix), z0, T, **{"loss": weighted, **keywords})


def exact(of):
    """States, loss and gradient by the matrix exponential, which autograd differentiates."""
    matrix, z0 = of.field.matrix.detach().clone().requires_grad_(), of.z0.clone().requires_grad_()
    z = torch.stack([z0 @ torch.matrix_exp(matrix * t).T for t in of.t])
    loss = of.loss_of(z)
    by_matrix, by_z0 = torch.autograd.grad(loss, (matrix, z0))
    return z.detach().numpy(), loss.item(), {"matrix": by_matrix, "unused": torch.zeros(2), "z0": by_z0}


def check(found, of, tolerance=1e-10):
    z, loss, gradient = exact(of)
    assert relative(found.z, z) < tolerance
    assert found.loss == pytest.approx(loss, rel=tolerance)
    assert list(found.gradient) == list(gradient)
    for name, right in gradient.items():
        assert relative(found.gradient[name], right.numpy()) < tolerance, name
    assert found.agreement < tolerance
    assert found.gradient_agreement < tolerance


@pytest.mark.parametrize("large", [False, True], ids=["variational equations", "backpropagation"])
def test_reference_is_the_matrix_exponential(large, monkeypatch):
    if large:
        monkeypatch.setattr("pynode.study.truth.agreed._LARGE", 0)
        monkeypatch.setattr("pynode.study.truth.discrete._PIECES", 2)
    of = problem()
    found = reference(of)
    check(found, of)
    ways = ("dopri8", "dopri5", "DOP853") if large else ("DOP853", "LSODA")
    assert all(way in found.how for way in ways)
    assert of.field.matrix.grad is None


def test_reference_of_a_stiff_field():
    keywords = {"z0": torch.tensor([[1.0, 0.5]]).double(), "t": torch.tensor([0.0, 0.04]).double()}
    of = dataclasses.replace(problem(((-50.0, 1.0), (1.0, -0.5)), stiff=True, loss=None), **keywords)
    found = reference(of)
    check(found, of, 1e-9)
    assert "Radau" in found.how


def test_reference_is_the_exact_solution_where_there_is_one():
    of = problem()
    z, _, _ = exact(of)
    found = reference(dataclasses.replace(of, exact=lambda t: torch.from_numpy(z)))
    assert np.array_equal(found.z, z)
    assert found.how.startswith("the exact solution")
    wrong = dataclasses.replace(of, exact=lambda t: torch.from_numpy(z * (1 + 1e-6)))
    with pytest.raises(StudyError, match=r"no reference for Linear: its states .*differ by 1.0e-06"):
        reference(wrong)


def test_states_alone_need_no_gradient():
    found = reference(problem(), gradient=False)
    assert found.gradient == {}
    assert relative(found.z, exact(problem())[0]) < 1e-10


def test_disagreement_is_refused():
    """A state that decays, beside a mode that grows from rounding errors."""
    z0 = torch.tensor([[1.0, -20.0]], dtype=torch.float64)
    of = Problem(Linear(((0.0, 1.0), (400.0, 0.0))), z0, torch.tensor([0.0, 2.0]).double())
    with pytest.raises(StudyError, match=r"its states by SciPy's DOP853.* needs a shorter span"):
        reference(of, gradient=False)


def test_blow_up_is_refused():
    of = Problem(lambda t, z: z**2, torch.ones(1, 1).double(), torch.tensor([0.0, 2.0]).double())
    with pytest.raises(StudyError, match="SciPy's DOP853"):
        reference(of)


def test_stiff_and_large_is_refused(monkeypatch):
    monkeypatch.setattr("pynode.study.truth.agreed._LARGE_STIFF", 10)
    with pytest.raises(StudyError, match="stiff, and 4 numbers with 10 derivatives of each"):
        reference(problem(stiff=True))


def test_a_reference_of_its_own_is_given_back_until_the_field_changes():
    of = problem()
    own = reference(of)
    assert own.of == of.equations
    known = dataclasses.replace(of, reference=own)
    assert reference(known) is own
    with torch.no_grad():
        known.field.matrix[0, 0] += 0.5
    again = reference(known)
    assert again is not own
    check(again, known)
    users = Reference(own.z, own.gradient, own.loss, 0.0, 0.0, "mine")
    assert reference(dataclasses.replace(known, reference=users)) is users


@pytest.mark.slow
def test_gradients_by_differences_are_those_of_the_matrix_exponential():
    keywords = {"z0": torch.tensor([[1.0, 0.5]]).double(), "t": torch.tensor([0.0, 0.04]).double()}
    of = dataclasses.replace(problem(((-50.0, 1.0), (1.0, -0.5)), stiff=True, loss=None), **keywords)
    found = reference(of, ways=("LSODA by differences", "Radau"))
    check(found, of, 1e-9)
    assert found.how == (
        "SciPy's LSODA, with central differences of order 8, and SciPy's Radau, with the variational equations"
    )


def test_a_number_that_stays_at_rounding_errors_does_not_hold_up_the_solver():
    """The middle of an odd profile, which is zero but for rounding, beside numbers of size 1."""
    z0 = torch.tensor([[1.0, 1e-17, -1.0]], dtype=torch.float64)
    matrix = ((-40.0, 20.0, 0.0), (20.0, -40.0, 20.0), (0.0, 20.0, -40.0))
    of = Problem(Linear(matrix), z0, torch.tensor([0.0, 0.2]).double(), loss=weighted)
    steps = []
    flat = Flat(of)
    value = flat.value
    flat.value = lambda t, y: steps.append(t) or value(t, y)
    solve_variational(flat, "DOP853", gradient=False)
    assert len(steps) < 2000


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, t, z):
        return self.rate * z if float(t) < 1 else -self.rate * z


class Differentiating(nn.Module):
    """Differentiates within itself, as FFJORD does."""

    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, t, z):
        with torch.enable_grad():
            y = z if z.requires_grad else z.detach().requires_grad_()
            (slope,) = torch.autograd.grad((self.rate * y**3).sum(), y, create_graph=True)
        return slope


@pytest.mark.parametrize("t", [0.5, 1.5])
def test_control_flow_on_values_is_followed(t):
    flat = Flat(Problem(Branching(), torch.ones(1, 1).double(), T))
    sign = 1 if t < 1 else -1
    assert [x.item() for x in flat.derivatives(t, np.array([3.0]))] == [sign * 6, sign * 2, sign * 3]


class Clock(nn.Module):
    def forward(self, t, z):
        return t.expand_as(z)


@pytest.mark.parametrize("t", [0.1, np.float64(0.1)])
def test_the_time_is_in_double_precision(t):
    """It was rounded to single precision, the default, on which a solver at tight tolerances does not get ahead."""
    flat = Flat(Problem(Clock(), torch.ones(1, 1).double(), T))
    y = np.array([3.0])
    assert flat.value(t, y) == flat.derivatives(t, y)[0] == [0.1]


def test_a_field_that_differentiates_within_itself():
    flat = Flat(Problem(Differentiating(), torch.ones(1, 2).double(), T))
    value, by_state, by_rate = flat.derivatives(0.0, np.array([3.0, 0.5]))
    assert value == pytest.approx([54.0, 1.5])
    assert by_state == pytest.approx(np.diag([36.0, 6.0]))
    assert by_rate == pytest.approx(np.array([[27.0], [0.75]]))


def test_single_precision_is_solved_in_double():
    double = problem()
    single = Problem(Linear(((0.0, 1.0), (-1.0, -0.125))).float(), double.z0.float(), T, loss=weighted)
    found = reference(single)
    check(found, problem(((0.0, 1.0), (-1.0, -0.125))), 1e-6)
    assert found.z.dtype == np.float64


def test_arguments_are_constants():
    rate = torch.tensor([0.5], dtype=torch.float64)
    of = Problem(lambda t, z, a: -a * z, torch.ones(1, 1).double(), T, args=(rate,))
    found = reference(of)
    assert found.z[:, 0, 0] == pytest.approx(np.exp(-0.5 * T.numpy()), rel=1e-11)
    assert found.gradient["z0"] == pytest.approx(2 * np.exp(-T.numpy()).mean(), rel=1e-10)


def in_jax(t, z, p, rate):
    return z @ p[0].T * rate


@pytest.mark.slow
def test_a_compiled_field_for_jax_gives_the_same():
    pytest.importorskip("jax", reason="JAX is not installed")
    from jax_precision import double_precision

    of = dataclasses.replace(problem(), jax=functools.partial(in_jax, rate=1.0))
    with double_precision():
        check(reference(of, jitted=True), of)
        with pytest.raises(StudyError, match="the field of Linear for JAX is another one"):
            reference(dataclasses.replace(of, jax=functools.partial(in_jax, rate=1.001)), jitted=True)
        with pytest.raises(StudyError, match="no field for JAX"):
            reference(problem(), jitted=True)
    with double_precision(False), pytest.raises(StudyError, match="JAX is in single precision"):
        reference(of, jitted=True)
