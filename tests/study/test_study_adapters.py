"""Each package solves and differentiates a linear system, against matrix exponentials."""

import importlib.util
import sys
import types

import numpy as np
import pytest
import torch
from linear_problem import distance, exact, problem
from torch import nn

from pynode.errors import InputError, NotComparable, StudyError
from pynode.study import Contender, Counts, Gradient, Problem, Setting, Solved, Study, adapters
from pynode.study.defaults import default_contenders

needs_julia = pytest.mark.julia


def contender(package, *marks, **options):
    return pytest.param(package, options, marks=marks, id=" ".join([package, *map(str, options.values())]))


IN_PYTHON = [
    contender("pynode", engine="torch"),
    contender("pynode", engine="torch", sensitivity="backsolve"),
    contender("pynode", engine="torch", batching="independent"),
    contender("pynode", engine="torch", solver="radau", sensitivity="backsolve"),
    contender("torchdiffeq"),
    contender("torchdiffeq", solver="bosh3", sensitivity="odeint_adjoint", adjoint_norm="seminorm"),
    contender("torchdiffeq", solver="LSODA", sensitivity="odeint_adjoint"),
    contender("torchode"),
    contender("torchode", solver="tsit5", batching="joint"),
    contender("torchode", solver="tsit5", controller="PIDController"),
    contender("torchode", sensitivity="BacksolveAdjoint"),
    contender("torchode", sensitivity="BacksolveAdjoint", batching="joint"),
    contender("torchdyn"),
    contender("torchdyn", solver="tsit5", sensitivity="adjoint"),
]
COMPILED = [  # some seconds each, which JAX takes to compile
    contender("diffrax", pytest.mark.slow),
    contender("diffrax", pytest.mark.exhaustive, solver="Kvaerno5", sensitivity="BacksolveAdjoint"),
]
IN_JULIA = [
    contender("pynode", needs_julia, engine="julia", solver="vern7", sensitivity="gauss"),
    contender("pynode", needs_julia, engine="julia", batching="independent"),
    contender("diffeqflux", needs_julia),
    contender(
        "diffeqflux",
        needs_julia,
        pytest.mark.exhaustive,
        sensitivity="InterpolatingAdjoint",
        vjp="compiled ReverseDiffVJP",
    ),
]
WITHOUT_GRADIENT = [
    contender("scipy", solver="DOP853"),
    contender("scipy", solver="Radau"),
    contender("scipy", solver="LSODA", jacobian="differences"),
    contender("torchdiffeq", solver="LSODA"),
    contender("diffeqpy", needs_julia),
    contender("diffeqpy", needs_julia, field="python"),
    contender("diffeqpy", needs_julia, solver="Rodas5P", field="python"),
]
FIXED = [
    contender("pynode", engine="torch", solver="rk4"),
    contender("torchdiffeq", solver="rk4"),
    contender("torchode", solver="euler"),
    contender("torchdyn", solver="rk4"),
]


def made(package, options, given, setting=None):
    """The adapter, ready; the test is skipped where the package is not there."""
    adapter = adapters.get(package)()
    try:
        adapter.prepare(given, setting or Setting(1e-7), **options)
    except NotComparable as error:
        if "cannot take part" in str(error):
            pytest.skip(str(error))
        raise
    return adapter


@pytest.mark.parametrize(("package", "options"), IN_PYTHON + COMPILED + IN_JULIA + WITHOUT_GRADIENT)
def test_states_are_right_and_cost_more_when_they_are_more_exact(package, options):
    given = problem()
    right, _ = exact(given)
    loose, tight = (made(package, options, given, Setting(rtol)).solve() for rtol in (1e-3, 1e-7))
    assert distance(tight.z, right) < 2e-5
    assert distance(loose.z, right) < 3e-2
    assert 0 < (loose.counts.nfe or 1) < (tight.counts.nfe or 2)
    assert 0 < (loose.counts.n_accepted or 1) < (tight.counts.n_accepted or 2)


@pytest.mark.parametrize(("package", "options"), IN_PYTHON + COMPILED + IN_JULIA)
def test_gradients_are_right(package, options):
    given = problem()
    _, right = exact(given)
    got = made(package, options, given).gradient()
    assert {name: distance(got.gradient[name], right[name]) < 2e-5 for name in right} == {"z0": True, "matrix": True}
    assert set(got.gradient) == {"z0", "matrix"}
    assert float(got.loss) == pytest.approx(given.loss_of(torch.as_tensor(exact(given)[0])).item(), rel=1e-5)
    if package not in ("diffrax", "diffeqflux"):
        assert got.counts.nfe_backward > 0


@pytest.mark.parametrize(("package", "options"), [IN_PYTHON[0], IN_PYTHON[4], *IN_PYTHON[7:9], IN_PYTHON[12]])
def test_a_loss_of_the_users_backwards_in_time(package, options):
    given = problem(loss=lambda z: (z[-1] ** 2 * torch.tensor([1.0, 3.0])).sum(), backwards=True)
    states, right = exact(given)
    adapter = made(package, options, given)
    got = adapter.gradient()
    assert distance(adapter.solve().z, states) < 2e-5
    assert {name: distance(got.gradient[name], right[name]) < 2e-5 for name in right} == {"z0": True, "matrix": True}


@pytest.mark.slow
def test_a_loss_of_the_users_with_diffrax():
    given = problem(loss=lambda z: (z[-1] ** 2 * torch.tensor([1.0, 3.0])).sum())
    _, right = exact(given)
    got = made("diffrax", {}, given).gradient()
    assert {name: distance(got.gradient[name], right[name]) < 2e-5 for name in right} == {"z0": True, "matrix": True}


@pytest.mark.parametrize(("package", "options"), WITHOUT_GRADIENT)
def test_who_has_no_gradient_says_so(package, options):
    adapter = made(package, options, problem())
    with pytest.raises(NotComparable, match=r"gradient|differentiate"):
        adapter.gradient()


@pytest.mark.parametrize(("package", "options"), FIXED)
def test_fixed_steps(package, options):
    given = problem()
    right, of_loss = exact(given)
    errors = [distance(made(package, options, given, Setting(dt=dt)).solve().z, right) for dt in (1 / 12, 1 / 24)]
    assert errors[0] / errors[1] == pytest.approx(2 if options["solver"] == "euler" else 16, rel=0.2)
    got = made(package, options, given, Setting(dt=1 / 24)).gradient()
    assert distance(got.gradient["matrix"], of_loss["matrix"]) < (0.15 if options["solver"] == "euler" else 1e-5)
    with pytest.raises(NotComparable, match="fixed step"):
        made(package, options, given)


def test_adaptive_solvers_need_tolerances():
    for package in ("torchdiffeq", "scipy", "pynode"):
        with pytest.raises(NotComparable, match="chooses its steps"):
            made(package, {}, problem(), Setting(dt=0.1))


class Timed(nn.Module):
    """ż = cos(t) z: each sample's time counts."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, t, z):
        return self.scale * torch.cos(t) * z


@pytest.mark.parametrize("sensitivity", ["AutoDiffAdjoint", "BacksolveAdjoint"])
def test_torchode_maps_a_field_that_reads_the_time_over_the_samples(sensitivity):
    z0 = torch.tensor([[1.0], [50.0]], dtype=torch.float64)
    given = Problem(Timed(), z0, torch.linspace(0, 3, 4, dtype=torch.float64))
    right = z0.numpy() * np.exp(np.sin(given.t.numpy()))[:, None, None]
    adapter = made("torchode", {"sensitivity": sensitivity}, given, Setting(rtol=1e-8, atol=1e-6))
    assert distance(adapter.solve().z, right) < 1e-6
    of_scale = (2 * right**2 * np.sin(given.t.numpy())[:, None, None]).mean()
    assert float(adapter.gradient().gradient["scale"]) == pytest.approx(of_scale, rel=1e-5)


def test_torchode_refuses_samples_that_act_on_each_other():
    class Mixed(nn.Module):
        def forward(self, t, z):
            return z.mean(0) - z

    given = Problem(Mixed(), torch.tensor([[1.0], [2.0]]), torch.tensor([0.0, 1.0]))
    with pytest.raises(NotComparable, match="act on each other"):
        made("torchode", {}, given)
    assert distance(made("torchode", {"batching": "joint"}, given).solve().z[-1].mean(0), np.array([1.5])) < 1e-5


def test_steps_of_independent_samples_compare_with_those_of_a_joint_solve():
    given = problem()
    for package, options in (("torchode", {}), ("pynode", {"engine": "torch"})):
        counts = [made(package, {**options, "batching": b}, given).solve().counts for b in ("joint", "independent")]
        assert counts[1].n_accepted == pytest.approx(counts[0].n_accepted, rel=0.3)
        assert counts[1].nfe == pytest.approx(counts[0].nfe, rel=0.3)


def test_a_field_without_a_batch_and_parameters():
    given = Problem(lambda t, z: -z, torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0]))
    right = np.exp(-1) * np.array([1.0, 2.0])
    for package in ("pynode", "torchdiffeq", "torchode", "scipy"):
        options = {"engine": "torch"} if package == "pynode" else {}
        adapter = made(package, options, given, Setting(1e-5))
        assert distance(adapter.solve().z[-1], right) < 1e-4
        if package != "scipy":
            assert set(adapter.gradient().gradient) == {"z0"}


def test_wrong_names_and_values_are_refused_with_the_valid_ones():
    with pytest.raises(StudyError, match=r"no option 'solvr' \(did you mean 'solver'\?\).*'solver', 'sensitivity'"):
        adapters.check("torchdiffeq", {"solvr": "dopri5"})
    with pytest.raises(StudyError, match=r"no solver='dopri4' \(did you mean 'dopri\d'\?\); valid are: 'dopri5'"):
        adapters.check("torchdiffeq", {"solver": "dopri4"})
    with pytest.raises(StudyError, match=r"no max_steps=True.*any int"):
        adapters.check("pynode", {"max_steps": True})
    with pytest.raises(StudyError, match=r"torchdifeq.*'torchdiffeq'"):
        adapters.get("torchdifeq")
    with pytest.raises(StudyError, match="no solver='RK54'"):
        adapters.get("scipy")().prepare(problem(), Setting(1e-3), solver="RK54")
    with pytest.raises(StudyError, match="no solver='dopri4'"):
        Study("wrong", [problem()], [Contender("torchdiffeq", {"solver": "dopri4"})]).cells()


def test_what_is_not_installed_is_a_reason(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("torchode", "jax") else found(name))
    with pytest.raises(NotComparable, match="torchode not being installed: pip install torchode"):
        adapters.get("torchode")().prepare(problem(), Setting(1e-3))
    offers = adapters.contenders()
    assert "jax not being installed" in offers["diffrax"].missing
    assert not offers["torchode"].available
    assert offers["torchdiffeq"].available
    assert offers["torchdiffeq"].version
    assert "odeint_adjoint" in offers["torchdiffeq"].options["sensitivity"].valid


def test_what_cannot_be_imported_is_a_reason(monkeypatch):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "torchode":
                raise RuntimeError("a library of another version")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: types.SimpleNamespace())
    monkeypatch.delitem(sys.modules, "torchode", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(NotComparable, match="importing torchode fails: a library of another version"):
        adapters.get("torchode")().prepare(problem(), Setting(1e-3))


def test_the_problem_has_to_have_its_field_in_the_language():
    given = problem(jax=None)
    if adapters.contenders()["diffrax"].available:
        with pytest.raises(NotComparable, match=r"no field for JAX"):
            made("diffrax", {}, given)


class Mine:
    """An adapter of a user's: three methods."""

    def prepare(self, problem, setting, factor=1.0):
        self.problem, self.factor = problem, factor

    def solve(self):
        return Solved(exact(self.problem)[0] * self.factor, Counts(nfe=1))

    def gradient(self):
        return Gradient(0.0, exact(self.problem)[1])


def test_a_users_adapter_and_what_is_none():
    adapter = adapters.get(f"{__name__}:Mine")()
    adapter.prepare(problem(), Setting(1e-3), factor=1.0)
    assert distance(adapter.solve().z, exact(problem())[0]) == 0
    adapters.check(f"{__name__}:Mine", {"factor": 2.0})  # its own business
    with pytest.raises(InputError, match="no module nowhere for the adapter"):
        adapters.get("nowhere:Mine")
    with pytest.raises(StudyError, match="no prepare, solve, gradient"):
        adapters.get(f"{__name__}:Timed")


def test_the_default_contenders_have_valid_options():
    names = set()
    for stiff in (False, True):
        for quick in (False, True):
            given = problem(stiff=stiff)
            found = default_contenders(given, quick=quick)
            names |= {(c.package, quick) for c in found}
            for c in found:
                adapters.check(c.package, c.options)
    assert {package for package, quick in names if quick} == {"pynode", "torchdiffeq", "scipy"}
    assert {"torchode", "torchdyn", "diffrax"} <= {package for package, _ in names}
    assert all("Radau" not in c.options.values() for c in default_contenders(problem()))


@pytest.mark.julia
def test_diffeqflux_takes_a_chain_of_layers_as_its_neural_ode_with_the_weights_given():
    layers = [nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 4), nn.Sigmoid(), nn.Linear(4, 2, bias=False)]
    net = nn.Sequential(*layers).double()
    given = Problem(net, problem().z0, problem().t)
    right = made("torchdiffeq", {}, given, Setting(1e-10))
    how = {"interface": "NeuralODE", "sensitivity": "InterpolatingAdjoint", "vjp": "ZygoteVJP"}
    adapter = made("diffeqflux", how, given)
    assert distance(adapter.solve().z, right.solve().z.numpy()) < 1e-6
    got, gradient = adapter.gradient().gradient, right.gradient().gradient
    assert set(got) == set(gradient)
    assert max(distance(got[name], g.numpy()) for name, g in gradient.items()) < 1e-6
    with pytest.raises(NotComparable, match="this field is none"):
        made("diffeqflux", how, problem())
