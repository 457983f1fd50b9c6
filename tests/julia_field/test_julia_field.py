"""Fields written in Julia, held against the same fields in PyTorch."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pynode
from pynode import EngineUnavailable, FieldError, InputError, JuliaField
from pynode.engine.julia import runtime as julia_runtime
from pynode.models import NODE

OUT_OF_PLACE = """
(u, p, t) -> [
    p.a * u[1] - p.b * u[1] * u[2] + sin(t),
    sum(p.W[1, :]) * u[1] * u[2] - p.W[2, 1] * u[2],
]
"""
IN_PLACE = """
function f!(du, u, p, t)
    du[1] = p.a * u[1] - p.b * u[1] * u[2] + sin(t)
    du[2] = -p.W[2, 1] * u[2]
    for j in 1:3
        du[2] += p.W[1, j] * u[1] * u[2]
    end
end
"""
TIMES = torch.tensor([0.2, 0.7, 1.5], dtype=torch.float64)
julia = pytest.mark.julia


def params(dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    W = torch.tensor([[0.1, 0.4, 0.2], [1.1, 5.0, 7.0]], dtype=dtype)
    return {"a": torch.tensor(1.3, dtype=dtype), "b": torch.tensor(0.9, dtype=dtype), "W": W}


def states(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor([[0.8, 0.5], [1.2, 0.3], [0.4, 1.1]], dtype=dtype)


class Same(nn.Module):
    """The field of the two Julia codes in PyTorch, on the same parameters."""

    def __init__(self, p: Any) -> None:
        super().__init__()
        self.p = p

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        p, (x, y) = self.p, z.unbind(1)
        return torch.stack(
            [p.a * x - p.b * x * y + torch.sin(t), p.W[0].sum() * x * y - p.W[1, 0] * y],
            1,
        )


def solved(field: Any, z0: Tensor, t: Tensor = TIMES, args: Any = (), **keywords: Any) -> list[Tensor]:
    """The solution, and its gradients in z0, t, args and the field's parameters."""
    z0, t = z0.clone().requires_grad_(), t.to(z0.dtype).clone().requires_grad_()
    args = [a.clone().requires_grad_() for a in args]
    inputs = [z0, t, *args, *field.parameters()]
    sol = pynode.solve(field, z0, t, args=args, engine="julia", **{"rtol": 1e-8, "atol": 1e-8, **keywords})
    weights = torch.arange(1, sol.z.numel() + 1).to(z0).cos().reshape(sol.z.shape)
    return [sol.z.detach(), *torch.autograd.grad((sol.z * weights).sum(), inputs)]


def assert_same(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


@julia
@pytest.mark.parametrize(
    ("code", "vjp"),
    [(code, vjp) for code in (OUT_OF_PLACE, IN_PLACE) for vjp in ("forwarddiff", "zygote", "reversediff", "auto")],
    ids=lambda x: {OUT_OF_PLACE: "out-of-place", IN_PLACE: "in-place"}.get(x, x),
)
def test_is_the_same_as_in_torch(code: str, vjp: str) -> None:
    """The value to the last bit but one, the discrete gradient in everything to rounding."""
    field = JuliaField(code, params(), vjp=vjp)
    assert field.inplace == (code == IN_PLACE)
    if code == IN_PLACE and vjp == "zygote":
        with pytest.raises(FieldError, match="Zygote cannot differentiate a function that writes to du"):
            solved(field, states())
        return
    assert_same(solved(field, states()), solved(Same(field.p), states()), 1e-12)
    assert field.vjp_package() == ("forwarddiff" if vjp == "auto" else vjp)


@julia
def test_float32() -> None:
    field = JuliaField(OUT_OF_PLACE, params()).float()
    found = solved(field, states(torch.float32), rtol=1e-4, atol=1e-4)
    assert all(x.dtype == torch.float32 for x in found)
    expected = solved(Same(field.p), states(torch.float32), rtol=1e-4, atol=1e-4)
    assert_same(found, expected, 2e-5)


@julia
@pytest.mark.parametrize("solver", ["rk4", "tsit5", "vern7"])
def test_gradcheck(solver: str) -> None:
    field = JuliaField(OUT_OF_PLACE, params())
    step = {"dt": 0.1} if solver == "rk4" else {"rtol": 1e-9, "atol": 1e-10}

    def run(z0: Tensor, t: Tensor, *_: Tensor) -> Tensor:
        return pynode.solve(field, z0, t, solver=solver, engine="julia", sensitivity="discrete", **step).z

    inputs = [states().requires_grad_(), TIMES.clone().requires_grad_(), *field.parameters()]
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True, eps=1e-5, atol=1e-5, rtol=1e-4)


@julia
@pytest.mark.slow
@pytest.mark.parametrize("how", ["gauss", "interpolating", "quadrature", "backsolve"])
def test_continuous_adjoints(how: str) -> None:
    field = JuliaField(OUT_OF_PLACE, params())
    tight = {"sensitivity": how, "rtol": 1e-10, "atol": 1e-11}
    assert_same(solved(field, states(), **tight), solved(field, states(), rtol=1e-11, atol=1e-12), 1e-7)


@julia
@pytest.mark.slow
def test_stiff_solver() -> None:
    field = JuliaField(OUT_OF_PLACE, params())
    z = pynode.solve(field, states(), TIMES, solver="rodas5p", engine="julia", rtol=1e-8, atol=1e-8).z
    torch.testing.assert_close(z, solved(field, states())[0], rtol=1e-6, atol=1e-6)


@julia
@pytest.mark.slow
@pytest.mark.parametrize("code", [OUT_OF_PLACE, IN_PLACE], ids=["out-of-place", "in-place"])
def test_enzyme(code: str) -> None:
    julia_runtime.start()
    from juliacall import JuliaError, Main

    try:
        Main.seval("import Enzyme; Enzyme.autodiff(Enzyme.Reverse, x -> x^2, Enzyme.Active, Enzyme.Active(1.0))")
    except JuliaError as error:
        pytest.skip(f"Enzyme itself does not work in this Julia: {str(error).splitlines()[0]}")
    field = JuliaField(code, params(), vjp="enzyme")
    assert_same(solved(field, states()), solved(Same(field.p), states()), 1e-12)


@julia
def test_a_reversediff_tape_follows_a_branch() -> None:
    """The tape is recorded where u > 1 and then run where u < 1."""
    field = JuliaField(
        "(u, p, t) -> u[1] > 1 ? -p .* u : 3 .* p .* u .^ 2", torch.tensor([0.7]).double(), vjp="reversediff"
    )
    for z0 in (2.0, 0.5):
        z = torch.tensor([[z0]], dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(field(torch.zeros(()), z).sum(), z)
        assert slope.item() == pytest.approx(-0.7 if z0 > 1 else 4.2 * z0)


@julia
def test_batched() -> None:
    """A function of the whole batch, `(features, batch)`; a tensor of parameters has the same indices in Julia."""
    W = torch.tensor([[0.3, -1.0, 0.2], [0.8, 0.1, -0.5], [0.0, 0.4, 0.6]], dtype=torch.float64)
    field = JuliaField("(u, p, t) -> tanh.(p * u) .* cos(t)", W, batched=True)

    class Torch(nn.Module):
        def __init__(self, p: nn.Parameter) -> None:
            super().__init__()
            self.p = p

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return torch.tanh(z @ self.p.T) * torch.cos(t)

    z0 = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)
    assert_same(solved(field, z0), solved(Torch(field.p), z0), 1e-10)  # a traced tanh is a fast one
    assert field.vjp_package() == "zygote"


@julia
def test_features_of_higher_rank_come_with_their_dimensions_in_reverse() -> None:
    field = JuliaField("(u, p, t) -> (@assert size(u) == (3, 2); u .* [1.0 4.0; 2.0 5.0; 3.0 6.0])")
    z = torch.ones(5, 2, 3, dtype=torch.float64)
    expected = torch.arange(1.0, 7.0, dtype=torch.float64).reshape(2, 3).expand(5, 2, 3)
    torch.testing.assert_close(field(torch.zeros(()), z), expected)


@julia
@pytest.mark.parametrize(
    ("code", "inplace", "message"),
    [
        (
            "(u, p, t, a) -> a .- u",
            None,
            r"takes 4 arguments, and is called as f!\(du, u, p, t, arg1\)\. If it is of the form "
            r"f\(u, p, t, arg1\), make it a JuliaField with inplace=False",
        ),
        (
            "(du, u, p, t, a) -> (du .= a .- u)",
            False,
            r"takes 5 arguments, and is called as f\(u, p, t, arg1\)\. .* with inplace=True",
        ),
        ("(u, p, t) -> -u", None, r"takes 3 arguments, and is called as f\(u, p, t, arg1\)$"),
    ],
)
def test_number_of_arguments(code: str, inplace: bool | None, message: str) -> None:
    """The form that a function is taken for is told by its number of arguments, and the error says which it was."""
    with pytest.raises(FieldError, match=message):
        solved(JuliaField(code, inplace=inplace), states(), args=[states()])


@julia
def test_conditioning_tensors() -> None:
    """After p and t, sample by sample, with their gradient."""
    field = JuliaField("(u, p, t, x) -> p .* (x .- u)", torch.tensor([0.7, 0.2]).double(), inplace=False)

    class Torch(nn.Module):
        def __init__(self, p: nn.Parameter) -> None:
            super().__init__()
            self.p = p

        def forward(self, t: Tensor, z: Tensor, x: Tensor) -> Tensor:
            return self.p * (x - z)

    x = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], dtype=torch.float64)
    assert_same(solved(field, states(), args=[x]), solved(Torch(field.p), states(), args=[x]), 1e-12)
    node = NODE(field, control=True, engine="julia")
    assert node(states()).shape == (3, 2)
    with pytest.raises(FieldError, match=r"args\[0\] of a JuliaField must be of shape \(batch, \.\.\.\)"):
        pynode.solve(field, states(), TIMES, args=[x[:1]], engine="julia")


# ---- parameters -----------------------------------------------------------------------------------------------------


@julia
def test_parameters_have_names_and_indices_of_both_languages() -> None:
    field = JuliaField(OUT_OF_PLACE, {"deep": {"er": [1.0, 2.0]}, **params()})
    assert [n for n, _ in field.named_parameters()] == ["p.a", "p.b", "p.W", "p.deep.er"]
    from juliacall import Main

    found = field.component_array()
    assert "ComponentVector" in str(Main.typeof(found))
    assert (found.W[1, 0], found.deep.er[1], found.a) == (1.1, 2.0, 1.3)  # juliacall counts from 0
    with torch.no_grad():
        field.p.W[1, 0] = 2.5
    assert field.component_array().W[1, 0] == 2.5
    other = JuliaField(OUT_OF_PLACE, {"deep": {"er": [0.0, 0.0]}, **params()})
    other.load_state_dict(field.state_dict())
    assert other.p.W[1, 0] == 2.5


@julia
def test_flat_parameters_are_one_vector_in_julias_order() -> None:
    named, flat = JuliaField(OUT_OF_PLACE, params()), JuliaField(OUT_OF_PLACE, params(), flat=True)
    assert [n for n, _ in flat.named_parameters()] == ["p"]
    assert flat.p.tolist() == [1.3, 0.9, 0.1, 1.1, 0.4, 5.0, 0.2, 7.0] == list(flat.component_array())
    dp = solved(flat, states())[-1]
    a, b, W = solved(named, states())[3:]
    torch.testing.assert_close(dp, torch.cat([a[None], b[None], W.T.reshape(-1)]), rtol=1e-14, atol=1e-14)


@julia
def test_parameters_made_in_julia() -> None:
    from juliacall import Main

    Main.seval("import ComponentArrays")
    for code in ("(a = 1.3, b = 0.9, W = [0.1 0.4 0.2; 1.1 5.0 7.0])",) * 2:
        given = Main.seval(code)
        for p in (given, Main.ComponentArrays.ComponentArray(given)):
            field = JuliaField(OUT_OF_PLACE, p, dtype=torch.float64)
            assert {n: x.tolist() for n, x in field.named_parameters()} == {
                "p.a": 1.3,
                "p.b": 0.9,
                "p.W": [[0.1, 0.4, 0.2], [1.1, 5.0, 7.0]],
            }
    assert JuliaField("(u, p, t) -> p .* u", Main.seval("[1.0, 2.0]")).p.tolist() == [1.0, 2.0]


@julia
def test_juliacalls_functions() -> None:
    from juliacall import Main

    field = JuliaField(Main.seval(OUT_OF_PLACE.strip()), params())
    assert_same(solved(field, states()), solved(JuliaField(OUT_OF_PLACE, params()), states()), 1e-14)
    assert copy.deepcopy(field)(torch.zeros(()), states()).shape == (3, 2)


LORENZ = """
function lorenz!(du, u, p, t)
    du[1] = p[1] * (u[2] - u[1])
    du[2] = u[1] * (p[2] - u[3]) - u[2]
    du[3] = u[1] * u[2] - p[3] * u[3]
end
""".strip()


@julia
def test_a_problem_of_julias() -> None:
    """As diffeqpy hands it out."""
    from juliacall import Main

    Main.seval("import SciMLBase")
    problem = Main.SciMLBase.ODEProblem(
        Main.seval(LORENZ), Main.seval("[1.0, 0.0, 0.5]"), (0.0, 0.3), Main.seval("[10.0, 28.0, 8 / 3]")
    )
    field = JuliaField(problem, dtype=torch.float64)
    assert field.inplace
    assert field.tspan == (0.0, 0.3)
    assert field.u0.tolist() == [[1.0, 0.0, 0.5]]
    assert field.p.tolist() == [10.0, 28.0, 8 / 3]

    def lorenz(t: Tensor, u: Tensor) -> Tensor:
        x, y, z = u.unbind(1)
        return torch.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], 1)

    tight = {"engine": "julia", "rtol": 1e-9, "atol": 1e-9}
    found, expected = (pynode.solve(f, field.u0, field.tspan, **tight).z for f in (field, lorenz))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@julia
def test_lists_of_pythons_in_a_problem() -> None:
    """diffeqpy's users pass lists for u0 and p, which Julia sees as Python's."""
    from juliacall import Main

    Main.seval("import SciMLBase")
    problem = Main.SciMLBase.ODEProblem(Main.seval("(u, p, t) -> p .* u"), [1.0, 2.0], (0.0, 1.0), [0.5, -0.5])
    field = JuliaField(problem)
    assert (field.u0.tolist(), field.p.tolist()) == ([[1.0, 2.0]], [0.5, -0.5])


@julia
def test_functions_of_pythons_are_refused() -> None:
    """Also within what SciML makes of them: the solver's calls hold no lock of Python's, and would crash."""
    from juliacall import Main

    def f(u: Any, p: Any, t: Any) -> Any:
        return [-p[0] * u[0]]

    Main.seval("import SciMLBase")
    problem = Main.SciMLBase.ODEProblem(f, [1.0], (0.0, 1.0), [0.5])
    closure = Main.seval("f -> (u, p, t) -> f(u, p, t)")(f)
    for function in (problem, problem.f, closure):
        with pytest.raises(pynode.FieldError, match=r"one of Python's, or holds an object of Python's.* in Julia"):
            JuliaField(function)


@julia
def test_diffeqpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its modules are juliacall's: `from diffeqpy import de` loads more packages than there need be here."""
    diffeqpy = pytest.importorskip("diffeqpy")
    found = Path(os.environ["PYTHON_JULIACALL_EXE"]).parent if "PYTHON_JULIACALL_EXE" in os.environ else ""
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}{os.pathsep}{found}")
    if shutil.which("julia") is None:
        pytest.skip("diffeqpy looks for julia on the PATH, and would install it")
    base = diffeqpy.load_julia_packages("SciMLBase", "OrdinaryDiffEqTsit5")[0]
    f = base.seval("(u, p, t) -> -p[1] .* u")
    problem = base.ODEProblem(f, [1.0, 2.0], (0.0, 1.0), [0.5])
    for field in (JuliaField(problem, dtype=torch.float64), JuliaField(f, torch.tensor([0.5]).double())):
        z0 = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
        z = pynode.solve(field, z0, [0.0, 1.0], engine="julia", rtol=1e-9, atol=1e-9).z[-1]
        torch.testing.assert_close(z, z0 * torch.tensor(-0.5).double().exp(), rtol=1e-8, atol=1e-8)


# ---- Lux, networks, and what it composes with ------------------------------------------------------------------------


@julia
def test_lux_model() -> None:
    """Parameters by Lux's names; drawn with torch's generator; batched; equal to the same network in torch."""
    code = "import Lux; Lux.Chain(Lux.Dense(2 => 5, tanh), Lux.Dense(5 => 2))"
    torch.manual_seed(3)
    field = JuliaField(code).double()
    torch.manual_seed(3)
    assert torch.equal(JuliaField(code).double().p.layer_1.weight, field.p.layer_1.weight)
    shapes = {n: tuple(x.shape) for n, x in field.named_parameters()}
    assert shapes == {
        "p.layer_1.weight": (5, 2),
        "p.layer_1.bias": (5,),
        "p.layer_2.weight": (2, 5),
        "p.layer_2.bias": (2,),
    }
    assert field.batched

    class Torch(nn.Module):
        def __init__(self, p: Any) -> None:
            super().__init__()
            self.p = p

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            one, two = self.p.layer_1, self.p.layer_2
            return torch.tanh(z @ one.weight.T + one.bias) @ two.weight.T + two.bias

    assert_same(solved(field, states()), solved(Torch(field.p), states()), 1e-6)  # Lux's tanh is a fast one
    optimizer = torch.optim.Adam(field.parameters(), lr=0.05)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = (NODE(field, engine="julia")(states()) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


UDE = "(u, p, t, nn) -> (y = nn(u); [p.a * u[1] + y[1], -p.b * u[2] + y[2]])"


class TorchUDE(nn.Module):
    def __init__(self, p: Any, network: nn.Module) -> None:
        super().__init__()
        self.p, self.network = p, network

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        known = torch.stack([self.p.a * z[:, 0], -self.p.b * z[:, 1]], 1)
        return known + self.network(z)[:, :2]


def network(inputs: int = 2, outputs: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 6), nn.Tanh(), nn.Linear(6, outputs)).double()


@julia
def test_universal_differential_equation() -> None:
    """Known terms in Julia, a network of torch's inside: its size is found, and gradients reach both."""
    net, p = network(), {k: v for k, v in params().items() if k != "W"}
    field = JuliaField(UDE, p, networks={"nn": net})
    assert [n for n, _ in field.named_parameters()][:2] == ["networks.nn.0.weight", "networks.nn.0.bias"]
    expected = solved(TorchUDE(field.p, net), states())
    found = solved(field, states())
    order = [n.replace("network.", "networks.nn.") for n, _ in TorchUDE(field.p, net).named_parameters()]
    by_name = dict(zip([n for n, _ in field.named_parameters()], found[3:], strict=True))
    assert_same([*found[:3], *(by_name[n] for n in order)], expected, 1e-12)


@julia
def test_two_networks_in_a_batched_function() -> None:
    """A matrix goes in, one column for each sample; the second network gets the time beside the state."""
    code = "(u, p, t, f, g) -> f(u) .* g(vcat(u, fill(t, 1, size(u, 2))))"
    f, g = network(2, 2), network(3, 2)
    field = JuliaField(code, networks={"f": f, "g": g}, batched=True)

    class Torch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.networks = nn.ModuleDict({"f": f, "g": g})

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return f(z) * g(torch.cat([z, t.expand(len(z), 1)], 1))

    assert_same(solved(field, states()), solved(Torch(), states()), 1e-9)  # sums in another order, so other step sizes
    with torch.no_grad():
        f[0].weight.mul_(0.5)  # the next solve sees it
    assert_same(solved(field, states()[:1]), solved(Torch(), states()[:1]), 1e-9)


@julia
def test_beside_terms_in_torch() -> None:
    """A JuliaField is a module as others: it may be part of a field, also under a running cost."""
    net = network(2, 2)

    class Sum(nn.Module):
        def __init__(self, known: nn.Module) -> None:
            super().__init__()
            self.known, self.net = known, net

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return self.known(t, z) + 0.1 * self.net(z)

    julias = JuliaField(OUT_OF_PLACE, params())
    assert_same(solved(Sum(julias), states()), solved(Sum(Same(julias.p)), states()), 1e-12)
    costs = [
        NODE(f, engine="julia", running_cost=lambda t, z: z.square().sum(1), rtol=1e-8, atol=1e-8)
        for f in (julias, Same(julias.p))
    ]
    for model in costs:
        model(states())
    torch.testing.assert_close(costs[0].running_cost, costs[1].running_cost, rtol=1e-12, atol=1e-12)


@julia
def test_another_batch_size_lowers_nothing_anew() -> None:
    field = JuliaField(OUT_OF_PLACE, params())
    solved(field, states())
    before = julia_runtime.module().kernel_count()
    solved(field, states().repeat(7, 1))
    solved(JuliaField(OUT_OF_PLACE, params()), states())  # nor does a second field of equal code
    assert julia_runtime.module().kernel_count() == before


@julia
def test_copies() -> None:
    field = JuliaField(OUT_OF_PLACE, params())
    expected = field(torch.zeros(()), states())
    for other in (copy.deepcopy(field), pickle.loads(pickle.dumps(field))):
        assert torch.equal(other(torch.zeros(()), states()), expected)
        assert other.p.a is not field.p.a


# ---- refusals --------------------------------------------------------------------------------------------------------


@julia
@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("(u, p, t) ->", "the Julia code of the field cannot be used: ParseError"),
        ("no_such_name", "UndefVarError: `no_such_name` not defined"),
        ("42", r"expected a function f\(u, p, t\) or f!\(du, u, p, t\), a Lux layer, or an ODE problem, got Int64"),
        ("(u, p) -> u", r"the function takes 2 arguments, expected f\(u, p, t\)"),
        ("(u, p, t) -> u .* no_such", r"failed at t = 0.2 \(line 1 of its code\): UndefVarError"),
        ("(u, p, t) -> begin\n  u * u\nend", r"\(line 2 of its code\): MethodError: no method matching \*"),
        ("(u, p, t) -> u[1:1]", r"must return dz/dt of the size of the state of one sample: expected size \(2,\), got"),
        ("(u, p, t) -> 1.0", r"expected size \(2,\), got Float64"),
        ("(u, p, t) -> p.c .* u", "has no field c"),
        ("function f(u, p, t)\n  return log.(u .- 1)\nend", r"\(line 2 of its code\): DomainError"),
    ],
)
def test_errors_in_the_code(code: str, message: str) -> None:
    with pytest.raises(FieldError, match=message):
        pynode.solve(JuliaField(code, params()), states(), TIMES, engine="julia")


@julia
def test_an_error_in_the_middle_of_a_solve() -> None:
    field = JuliaField('(u, p, t) -> t > 0.5 ? error("too late") : -u')
    with pytest.raises(FieldError, match=r"failed at t = .* \(line 1 of its code\): too late"):
        pynode.solve(field, states(), TIMES, engine="julia")


@julia
def test_refusals() -> None:
    field = JuliaField(OUT_OF_PLACE, params())
    with pytest.raises(EngineUnavailable, match="a JuliaField, which runs on the julia engine only"):
        pynode.solve(field, states(), TIMES, engine="torch")
    with pytest.raises(FieldError, match=r"parameters of the JuliaField are of dtype torch.float64 beside a state of"):
        pynode.solve(field, states(torch.float32), TIMES, engine="julia")
    with pytest.raises(FieldError, match=r"must be of shape \(batch, \*features\), got \(3,\)"):
        pynode.solve(field, states()[:, 0], TIMES, engine="julia")
    with pytest.raises(InputError, match="'zygot': expected one of 'zygote'"):
        JuliaField(OUT_OF_PLACE, params(), vjp="zygot")
    with pytest.raises(InputError, match="function must be Julia code as text, or a Julia object"):
        JuliaField(lambda u, p, t: u)
    with pytest.raises(InputError, match=r"networks\['nn'\] must be an nn.Module, got function"):
        JuliaField(UDE, networks={"nn": lambda x: x})
    with pytest.raises(FieldError, match='only Zygote sees through networks of PyTorch: use vjp="zygote"'):
        JuliaField(UDE, networks={"nn": network()}, vjp="forwarddiff")
    with pytest.raises(InputError, match=r"the name 'half' in params cannot be that of a parameter"):
        JuliaField(OUT_OF_PLACE, {"half": 1.0})
    with pytest.raises(InputError, match=r"params\['a'\] must be a number, a tensor"):
        JuliaField(OUT_OF_PLACE, {"a": "x"})
    with pytest.raises(InputError, match=r"params must be of a floating-point type, got torch.int64"):
        JuliaField("(u, p, t) -> p .* u", torch.tensor([1, 2]))
    from juliacall import Main

    text = Main.seval('(a = "text",)')
    with pytest.raises(FieldError, match="the parameters of a Julia field must be numbers"):
        JuliaField("(u, p, t) -> u", text)


@julia
def test_refusals_of_networks() -> None:
    both = JuliaField("(u, p, t, nn) -> nn(u) .* nn(u[1:1])", networks={"nn": nn.Tanh()})
    with pytest.raises(FieldError, match="the network 'nn' is called with inputs of different sizes"):
        both(torch.zeros(()), states())
    one = JuliaField("(u, p, t, nn) -> nn(u)", networks={"nn": nn.Flatten(0)})
    with pytest.raises(FieldError, match=r"must map \(batch, \*features\) to \(batch, \*features\)"):
        one(torch.zeros(()), states())


def test_without_julia() -> None:
    """The message says what is missing and how to get it."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON_JULIA", "JULIA"))}
    script = "import pynode; pynode.JuliaField('(u, p, t) -> u')"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**environment, "PYTHON_JULIACALL_EXE": "/nowhere/julia", "PYTHON_JULIACALL_PROJECT": "/nowhere"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "EngineUnavailable: the julia engine is not available here: PYTHON_JULIACALL_EXE is" in done.stderr
    assert "Set it to Julia's executable" in done.stderr


@julia
@pytest.mark.parametrize("vjp", ["zygote", "reversediff", "forwarddiff"])
@pytest.mark.parametrize("how", ["discrete", "gauss"])
def test_frozen_parameters(vjp: str, how: str) -> None:
    """What is not trained stays as it is, and the rest has the gradient that it has beside trained parameters."""
    network = vjp == "zygote"
    code = "(u, p, t, net) -> p.a .* u .+ net(u)" if network else "(u, p, t) -> p.a .* u .- p.b .* u .^ 2"
    p = {"a": 0.7} if network else {"a": 0.7, "b": 0.4}
    found = []
    for frozen in (True, False):
        torch.manual_seed(1)
        networks = {"net": nn.Linear(2, 2).double()} if network else {}
        field = JuliaField(code, p, networks=networks, vjp=vjp, dtype=torch.float64)
        field.p.a.requires_grad_(not frozen)
        sol = pynode.solve(field, states(), TIMES, engine="julia", sensitivity=how, rtol=1e-8, atol=1e-8)
        sol.z[-1].square().sum().backward()
        assert (field.p.a.grad is None) == frozen
        found.append([q.grad for name, q in field.named_parameters() if name != "p.a"])
    assert_same(found[0], found[1], 1e-7)
