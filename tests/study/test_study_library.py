"""The problems that come with pynode: their fields in torch, JAX and Julia, their solutions, and their references."""

import dataclasses
import functools
import pickle

import numpy as np
import pytest
import torch

import pynode
from pynode.engine.julia import runtime
from pynode.errors import InputError, StudyError
from pynode.field import Field, interpret
from pynode.field._trace import trace_field
from pynode.study import Problem
from pynode.study.accuracy import drift, relative
from pynode.study.library import make, problem, problems
from pynode.study.library.network import load
from pynode.study.library.shipped import read, write
from pynode.study.truth import reference

NAMES = sorted(problems())
NETWORKS = ("digits", "ffjord", "latent_ode")
T = torch.tensor(0.25).double()


@functools.cache
def made(name):
    return problem(name)


@functools.cache
def near(name):
    """A state near the first one, none of whose entries is special."""
    z0 = made(name).z0
    return z0 + 0.1 + 0.1 * torch.rand(z0.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def slope(name, z):
    with torch.no_grad():
        return made(name).field(T, z)


def pulled(name, z, cotangent):
    """The pullback of the field: of the state, and of all parameters, each as it is."""
    z, parameters = z.clone().requires_grad_(), tuple(made(name).parameters.values())
    found = torch.autograd.grad(made(name).field(T, z), (z, *parameters), cotangent, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip((z, *parameters), found, strict=True)]


def a_cotangent(name):
    return torch.rand(made(name).z0.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


# -- the same field in each package --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [n if n in ("hires", "linear", "lotka_volterra") else pytest.param(n, marks=pytest.mark.slow) for n in NAMES],
)
def test_jax_has_the_same_field_and_derivative(name):
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    from jax_precision import double_precision

    z, cotangent = near(name), a_cotangent(name)
    with double_precision():
        parameters = [jax.numpy.asarray(p.detach().numpy()) for p in made(name).field.parameters()]
        value, pull = jax.vjp(lambda y, p: made(name).jax(0.25, y, p), jax.numpy.asarray(z.numpy()), parameters)
        by_state, by_parameters = pull(jax.numpy.asarray(cotangent.numpy()))
        assert relative(np.asarray(value), slope(name, z).numpy()) < 1e-13
        for got, right in zip((by_state, *by_parameters), pulled(name, z, cotangent), strict=True):
            assert relative(np.asarray(got), right.numpy()) < 1e-12


CALL = """
function (f, u, p, t)
    du = similar(collect(u))
    f(reshape(du, SHAPE), reshape(collect(u), SHAPE), collect(p), t)
    return du
end
"""


@pytest.mark.julia
@pytest.mark.parametrize("name", NAMES)
def test_julia_has_the_same_field_and_derivative(name):
    jl, z, cotangent, draw = runtime.module(), near(name), a_cotangent(name), torch.Generator().manual_seed(3)
    field = jl.seval(f"({made(name).julia})")
    call = jl.seval(CALL.replace("SHAPE", str(tuple(reversed(z.shape)))))
    p = torch.cat([x.detach().reshape(-1) for x in made(name).parameters.values()])

    def value(state, parameters):
        return np.asarray(call(field, state.reshape(-1).numpy(), parameters.numpy(), 0.25)).reshape(z.shape)

    assert relative(value(z, p), slope(name, z).numpy()) < 1e-13
    along, beside = (torch.rand(x.shape, generator=draw, dtype=torch.float64) * x.abs() for x in (z, p))
    h = 1e-5
    got = (value(z + h * along, p + h * beside) - value(z - h * along, p - h * beside)) / (2 * h)
    by_state, *rest = pulled(name, z, cotangent)
    right = (by_state * along).sum() + torch.cat([g.reshape(-1) for g in rest]) @ beside
    assert float((torch.from_numpy(got) * cotangent).sum()) == pytest.approx(float(right), rel=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_the_field_takes_any_batch_and_travels(name):
    of = made(name)
    again = pickle.loads(pickle.dumps(of))
    assert again.equations == of.equations
    assert again.own_reference is not None
    if name != "ffjord":  # whose noise belongs to its points
        two = torch.cat([near(name), near(name) + 0.1])
        assert torch.allclose(of.field(T, two)[: len(of.z0)], slope(name, near(name)), rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_pynode_has_a_graph_of_it(name):
    z = near(name)
    field = Field(made(name).field, (z,), T)
    found = trace_field(field, (z,), T, ())
    (value,), _ = interpret(found.graph, [T, z, *(x.detach() for x in found.bound(field))])
    assert relative(value.numpy(), slope(name, z).numpy()) < 1e-13


# -- solutions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["kepler", "linear"])
def test_an_exact_solution_obeys_its_equation(name):
    of = made(name)
    t = torch.linspace(0.1, float(of.t[-1]), 50, dtype=torch.float64)
    states, rates = torch.func.jvp(of.exact, (t,), (torch.ones_like(t),))
    with torch.no_grad():
        right = torch.stack([of.field(s, z) for s, z in zip(t, states, strict=True)])
    assert relative(rates.numpy(), right.numpy()) < 1e-12
    assert relative(of.exact(of.t)[0].numpy(), of.z0.numpy()) < 1e-14


@pytest.mark.parametrize("name", NAMES)
def test_references_agree_and_keep_what_is_kept(name):
    of = made(name)
    found = of.reference
    assert found.agreement < 1e-9
    jumps = name == "van_der_pol_stiff"  # sensitivities too, by 10⁶: the variational equations lose digits there
    assert found.gradient_agreement < (1e-7 if jumps else 1e-8)
    assert set(found.gradient) == {*of.parameters, "z0"}
    assert all(found.gradient[key].shape == tuple(p.shape) for key, p in of.parameters.items())
    assert np.array_equal(found.z[0], of.z0.numpy())
    assert float(of.loss_of(torch.from_numpy(found.z))) == pytest.approx(found.loss, rel=1e-9)
    assert of.description
    assert of.source
    if of.invariants:
        assert drift(of, found.z) < 1e-9


# Of the Test Set for IVP Solvers, release 2.4, to the digits that the stiff ones share with the solvers named there.
PUBLISHED = {
    "hires": [
        0.7371312573325668e-3, 0.1442485726316185e-3, 0.5888729740967575e-4, 0.1175651343283149e-2,
        0.2386356198831331e-2, 0.6238968252742796e-2, 0.2849998395185769e-2, 0.2850001604814231e-2,
    ],
    "robertson": [0.2083340149701255e-7, 0.8333360770334713e-13, 0.9999999791665050],
    "oregonator": [0.1000814870318523e1, 0.1228178521549917e4, 0.1320554942846706e3],
    "van_der_pol_stiff": [0.1706167732170469e1, -0.8928097010248125e-3],
    "pleiades": [
        0.3706139143970502, 0.3237284092057233e1, -0.3222559032418324e1, 0.6597091455775310, 0.3425581707156584,
        0.1562172101400631e1, -0.7003092922212495, -0.3943437585517392e1, -0.3271380973972550e1, 0.5225081843456543e1,
        -0.2590612434977470e1, 0.1198213693392275e1, -0.2429682344935824, 0.1091449240428980e1, 0.3417003806314313e1,
        0.1354584501625501e1, -0.2590065597810775e1, 0.2025053734714242e1, -0.1155815100160448e1, -0.8072988170223021,
        0.5952396354208710, -0.3741244961234010e1, 0.3773459685750630, 0.9386858869551073, 0.3667922227200571,
        -0.3474046353808490, 0.2344915448180937e1, -0.1947020434263292e1,
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_end_is_that_of_the_test_set(name):
    assert made(name).reference.z[-1, 0] == pytest.approx(PUBLISHED[name], rel=1e-8)


@pytest.mark.parametrize("name", ["linear", "lotka_volterra"])
def test_a_reference_can_be_made_again(name):
    check_again(name)


LONG = ("allen_cahn", "brusselator", "hires", "oregonator", "pleiades", "robertson", "van_der_pol_stiff")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.exhaustive if name in LONG else pytest.mark.slow)
        for name in NAMES
        if name not in NETWORKS
    ],
)
def test_every_reference_can_be_made_again(name):
    check_again(name)


def check_again(name):
    pytest.importorskip("jax", reason="JAX is not installed")
    from jax_precision import double_precision

    from pynode.study.library.make_references import WAYS

    with double_precision():
        again, shipped = reference(make(name), jitted=True, ways=WAYS.get(name)), made(name).reference
    assert relative(again.z, shipped.z) < 1e-8
    assert all(relative(again.gradient[key], right) < 1e-7 for key, right in shipped.gradient.items())


@pytest.mark.julia
@pytest.mark.parametrize("name", ["hires", "latent_ode", "pleiades"])
def test_julia_finds_the_reference(name):
    """By solvers that no reference was made with."""
    of = made(name)
    solver, rtol = ("rodas5p", 1e-8) if of.stiff else ("vern9", 1e-11)
    z0 = of.z0.clone().requires_grad_()
    z = pynode.solve(of.field, z0, of.t, solver=solver, rtol=rtol, atol=1e-5 * rtol, engine="julia", max_steps=10**6).z
    found = torch.autograd.grad(of.loss_of(z), (z0, *of.parameters.values()))
    bound = 1e-5 if of.stiff else 1e-7
    assert relative(z.detach().numpy(), of.reference.z) < bound
    right = [of.reference.gradient[key] for key in ("z0", *of.parameters)]
    assert relative(*(np.concatenate([np.ravel(x) for x in vector]) for vector in (found, right))) < bound


# -- by name -------------------------------------------------------------------------------------------------


def test_a_wrong_name_lists_the_nearest_first():
    with pytest.raises(InputError, match=r"unknown problem 'lotka_voltera': expected one of 'lotka_volterra'"):
        problem("lotka_voltera")


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("van_der_pol", {"mi": 1.0}, "has no option 'mi': its options are mu"),
        ("lorenz", {"mu": 1.0}, "has no option 'mu': it has none"),
        ("van_der_pol", {"mu": -1.0}, "mu must be greater than 0"),
        ("kepler", {"eccentricity": 1.0}, "at least 0 and less than 1"),
        ("digits", {"batch": 257}, "from 1 to 256"),
        ("lorenz", {"dtype": "float16"}, "'float32' or 'float64'"),
    ],
)
def test_wrong_options_are_refused(name, options, says):
    with pytest.raises(StudyError, match=says):
        problem(name, **options)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("van_der_pol", {"mu": "x"}, "mu of the problem 'van_der_pol' must be a finite number, got 'x'"),
        ("van_der_pol", {"mu": [1.0]}, "mu of the problem 'van_der_pol' must be a finite number"),
        ("van_der_pol", {"mu": True}, "mu of the problem 'van_der_pol' must be a finite number, got True"),
        ("kepler", {"eccentricity": "0.5"}, "eccentricity of the problem 'kepler' must be a finite number"),
        ("brusselator", {"points": 8.0}, "points of the problem 'brusselator' must be an int"),
        ("digits", {"batch": [1]}, "batch of the problem 'digits' must be an int"),
    ],
)
def test_options_that_are_no_numbers_are_refused(name, options, says):
    with pytest.raises(InputError, match=says):
        problem(name, **options)


def test_options_make_another_problem():
    mild = problem("van_der_pol", mu=2.0)
    assert mild.name == "van_der_pol(mu=2.0)"
    assert mild.reference is None
    assert problem("van_der_pol", mu=1.0).reference is not None
    assert problem("van_der_pol", mu=1000.0).stiff
    assert problem("brusselator", points=10).z0.shape == (1, 20)
    assert problem("digits", batch=8).z0.shape == (8, 32)


def test_single_precision_has_the_same_reference():
    single = problem("lorenz", dtype="float32")
    assert single.dtype == "float32"
    assert {p.dtype for p in single.parameters.values()} == {torch.float32}
    assert np.array_equal(single.own_reference.z, made("lorenz").reference.z)


def test_a_changed_field_has_no_reference_any_more():
    of = problem("lorenz")
    with torch.no_grad():
        of.field.coefficients[0] = 9.0
    assert of.own_reference is None


def test_a_reference_of_a_problem_that_has_changed_is_refused(tmp_path, monkeypatch):
    of = make("lorenz")
    folder = tmp_path / "data" / "references"
    folder.mkdir(parents=True)
    write(folder, "lorenz", of, made("lorenz").reference, {})
    monkeypatch.setattr("pynode.study.library.shipped.resources.files", lambda _: tmp_path)
    found = read("lorenz", of)
    assert np.array_equal(found.z, made("lorenz").reference.z)
    assert found.how == made("lorenz").reference.how
    with pytest.raises(StudyError, match="lorenz has changed since its reference was made"):
        read("lorenz", dataclasses.replace(of, t=2 * of.t))
    assert read("kepler", of) is None


@pytest.mark.parametrize("name", NETWORKS)
def test_trained_networks_say_how_they_were_trained(name):
    weights, z0, notes = load(name)
    assert {x.dtype for x in (*weights.values(), z0)} == {torch.float32}
    assert notes["script"] == "benchmarks/train_fields.py"
    assert any(key.startswith("test ") for key in notes)


def test_a_problem_of_the_library_is_a_problem():
    assert isinstance(made("lorenz"), Problem)
    assert problems()["lorenz"].startswith("Lorenz")
