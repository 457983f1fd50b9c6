"""Derivatives of every order and kind, against the same steps differentiated operation by operation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from eager_steps import Field, close, inputs, loss, torchdiffeqs
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd import functional as A

import pynode
from pynode.engine import SolverInfo

EXACT = 1e-10
LOOSE: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-5, "dt": 0.07}
FINE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12, "dt": 0.07}
ALL = (0, 1, 2)


def solver(field: nn.Module, **keywords: Any) -> Callable[..., Tensor]:
    def call(z0: Tensor, t: Tensor, u: Tensor) -> Tensor:
        return pynode.solve(field, z0, t, args=(u,), **keywords).z

    return call


def explicit() -> list[Any]:
    return [pytest.param(info, id=info.name) for info in pynode.solvers() if "torch" in info.engines and not info.stiff]


@pytest.mark.parametrize("info", explicit())
def test_second_derivatives_of_torchs_solvers(info: SolverInfo) -> None:
    """Of z0, times, args and parameters at once."""
    field = Field()
    ours = loss(solver(field, solver=info.name, engine="torch", **LOOSE))
    theirs = loss(torchdiffeqs(info, field, LOOSE))
    if info.adaptive and info.name != "dopri5":  # which stops at each time here, with the step that it had
        theirs = loss(in_pieces(info, field))
    x = [y.requires_grad_() for y in inputs()] + list(field.parameters())
    products = []
    for call in (ours, theirs):
        g = torch.autograd.grad(call(*x[:3]), x, create_graph=True)
        dot = sum((y * y.detach().cos()).sum() for y in g)
        products.append((g, torch.autograd.grad(dot, x)))
    close(products[0], products[1], EXACT)


def in_pieces(info: SolverInfo, field: nn.Module) -> Callable[..., Tensor]:
    """As `torchdiffeqs`, solving from each time to the next, with the steps that pynode's torch engine takes."""
    from pynode.engine.torch import engine

    seen: list[float] = []
    whole = engine._odeint

    def call(z0: Tensor, t: Tensor, u: Tensor) -> Tensor:
        z = [z0]
        for i in range(len(t) - 1):
            dt = LOOSE["dt"] if i == 0 else seen[i - 1]
            z.append(torchdiffeqs(info, field, LOOSE | {"dt": dt})(z[-1], t[i : i + 2], u)[1])
        return torch.stack(z)

    def spy(problem: Any, rhs: Any, t: Tensor, options: Any = None) -> Any:
        out = whole(problem, rhs, t, options)
        if len(t) == 2:
            seen.append(rhs.dt_last)
        return out

    engine._odeint = spy
    try:
        solver(field, solver=info.name, engine="torch", **LOOSE)(*inputs())
    finally:
        engine._odeint = whole
    return call


SOLVERS = [pytest.param(n, id=n) for n in ("dopri5", "rk4")]


def both(name: str, field: nn.Module) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    info = next(s for s in pynode.solvers() if s.name == name)
    return solver(field, solver=name, engine="torch", **LOOSE), torchdiffeqs(info, field, LOOSE)


@pytest.mark.parametrize("name", SOLVERS)
def test_autograd_functional(name: str) -> None:
    ours, theirs = both(name, Field())
    x = inputs()
    v = tuple(y.cos() for y in x)
    close(A.hessian(loss(ours), x), A.hessian(loss(theirs), x), EXACT)
    close(A.hvp(loss(ours), x, v), A.hvp(loss(theirs), x, v), EXACT)
    close(A.vhp(loss(ours), x, v), A.vhp(loss(theirs), x, v), EXACT)
    close(A.jvp(ours, x, v), A.jvp(theirs, x, v), EXACT)
    close(A.jacobian(ours, x), A.jacobian(theirs, x), EXACT)


@pytest.mark.parametrize("name", SOLVERS)
def test_dual_numbers(name: str) -> None:
    field = Field()
    ours, theirs = both(name, field)
    x = inputs()
    v = tuple(y.cos() for y in x)
    _, expected = A.jvp(theirs, x, v)
    with forward_ad.dual_level():
        z = forward_ad.unpack_dual(ours(*map(forward_ad.make_dual, x, v)))
        assert z.tangent is not None
        close(z.tangent, expected, EXACT)
    with torch.no_grad(), forward_ad.dual_level():  # also where no gradient is recorded
        close(forward_ad.unpack_dual(ours(*map(forward_ad.make_dual, x, v))).tangent, expected, EXACT)


@pytest.mark.parametrize("name", ["dopri5", pytest.param("rk4", marks=pytest.mark.slow)])
def test_func(name: str) -> None:
    ours, theirs = both(name, Field())
    x = inputs()
    v = tuple(y.cos() for y in x)
    jacobian, hessian = A.jacobian(theirs, x), A.hessian(loss(theirs), x)
    close(torch.func.jvp(ours, x, v), A.jvp(theirs, x, v), EXACT)
    close(torch.func.jacrev(ours, ALL)(*x), jacobian, EXACT)
    close(torch.func.jacfwd(ours, ALL)(*x), jacobian, EXACT)
    close(torch.func.grad(loss(ours), ALL)(*x), A.jacobian(loss(theirs), x), EXACT)
    _, pull = torch.func.vjp(ours, *x)
    w = theirs(*x).sin()
    close(pull(w), A.vjp(theirs, x, w)[1], EXACT)
    close(torch.func.hessian(loss(ours), ALL)(*x), hessian, EXACT)
    close(torch.func.jacrev(torch.func.jacrev(loss(ours), ALL), ALL)(*x), hessian, EXACT)
    close(torch.func.jacrev(torch.func.jacfwd(loss(ours), ALL), ALL)(*x), hessian, EXACT)


@pytest.mark.parametrize("outer", ALL)
@pytest.mark.parametrize("inner", ALL)
def test_mixed_derivatives_in_reverse(inner: int, outer: int) -> None:
    """Of inputs that each transform follows alone, and of one that both do."""
    ours, theirs = both("dopri5", Field())
    x = inputs()
    v = x[inner].cos()

    def product(y: Tensor) -> Tensor:
        given = tuple(y if i == outer else z for i, z in enumerate(x))
        return (torch.func.grad(loss(ours), inner)(*given) * v).sum()

    rows = A.hessian(loss(theirs), x)[inner][outer]
    close(torch.func.grad(product)(x[outer]), torch.tensordot(v, rows, v.dim()), EXACT)


class Model(nn.Module):
    """A field within a module, for `functional_call`."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__()
        self.field = Field()
        self.keywords = keywords
        _, self.t, self.u = inputs()

    def forward(self, z0: Tensor) -> Tensor:
        return pynode.solve(self.field, z0, self.t, args=(self.u,), **self.keywords).z


class Reference(Model):
    def forward(self, z0: Tensor) -> Tensor:
        info = next(s for s in pynode.solvers() if s.name == self.keywords["solver"])
        return torchdiffeqs(info, self.field, LOOSE)(z0, self.t, self.u)


def test_parameters_by_functional_call() -> None:
    """Derivatives in parameters that a transform has wrapped; and ensembles of them."""
    model, reference = (kind(solver="dopri5", engine="torch", **LOOSE) for kind in (Model, Reference))
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    names, values = list(parameters), tuple(parameters.values())
    z0 = inputs()[0]

    def of(module: nn.Module) -> Callable[..., Tensor]:
        return loss(lambda *p: torch.func.functional_call(module, dict(zip(names, p, strict=True)), (z0,)))

    places = tuple(range(len(values)))
    close(torch.func.grad(of(model), places)(*values), A.jacobian(of(reference), values), EXACT)
    close(torch.func.hessian(of(model), places)(*values), A.hessian(of(reference), values), EXACT)
    v = tuple(p.cos() for p in values)
    close(torch.func.jvp(of(model), values, v)[1], A.jvp(of(reference), values, v)[1], EXACT)
    several = tuple(torch.stack([p, p + 0.3, 0.5 * p]) for p in values)
    expected = [A.jacobian(of(reference), tuple(p[i] for p in several)) for i in range(3)]
    got = torch.vmap(torch.func.grad(of(model), places))(*several)
    close(got, [torch.stack(g) for g in zip(*expected, strict=True)], EXACT)
    # One solve for each: the gradient of each sample by itself.
    states = torch.stack([z0, -z0, z0 + 0.1])

    def at(p: Any, z: Tensor) -> Tensor:
        return loss(lambda *q: torch.func.functional_call(model, dict(zip(names, q, strict=True)), (z,)))(*p)

    got = torch.vmap(torch.func.grad(at), in_dims=(None, 0))(values, states)
    close(got, [torch.stack(g) for g in zip(*(torch.func.grad(at)(values, z) for z in states), strict=True)], EXACT)


def test_vmap(engine: str) -> None:
    """Over states and args, whose samples join one batch; over times; nested; and derivatives of it."""
    z0, t, u = inputs()
    call = solver(Field(), engine=engine, **FINE)
    states, rates = torch.stack([z0, -z0, z0 + 0.1]), torch.stack([u, u + 0.2, 2 * u])
    times = torch.stack([t, 2 * t, t + 0.1])
    close(torch.vmap(call, (0, None, 0))(states, t, rates), torch.stack(list(map(call, states, [t] * 3, rates))), 1e-8)
    close(torch.vmap(call, (1, None, None), 2)(states.movedim(0, 1), t, u).movedim(2, 0),
          torch.stack([call(z, t, u) for z in states]), 1e-8)  # fmt: skip
    close(torch.vmap(call, (None, 0, None))(z0, times, u), torch.stack([call(z0, s, u) for s in times]), 1e-8)
    table = torch.vmap(torch.vmap(call, (0, None, None)), (None, None, 0))(states, t, rates)
    close(table, torch.stack([torch.stack([call(z, t, a) for z in states]) for a in rates]), 1e-8)
    slope = torch.func.grad(loss(call), (0, 2))
    got = torch.vmap(slope, (0, None, None))(states, t, u)
    close(got, [torch.stack(g) for g in zip(*(slope(z, t, u) for z in states), strict=True)], 1e-7)
    total = torch.func.grad(lambda x: torch.vmap(loss(call), (0, None, None))(x, t, u).sum())(states)
    close(total, got[0], 1e-7)


def test_a_solve_within_a_transform_of_other_tensors(engine: str) -> None:
    z0, others = torch.ones(1, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0]])

    def call(x: Tensor) -> Tensor:
        return x * pynode.solve(lambda t, z: -z, z0, [0.0, 1.0], engine=engine).z[-1, 0]

    expected = math.exp(-1)
    close(torch.vmap(call)(others), others * expected, 1e-3)
    close(torch.func.grad(lambda x: call(x).sum())(others[0]), torch.full((2,), expected), 1e-3)


def test_vmap_of_a_field_that_mixes_samples(engine: str) -> None:
    """Each of the mapped solves keeps a batch to itself."""

    def field(t: Tensor, z: Tensor) -> Tensor:
        return z.mean(0, keepdim=True) - z * z

    def call(z: Tensor) -> Tensor:
        return pynode.solve(field, z, [0.0, 1.0], engine=engine, **FINE).z[-1]

    states = torch.stack([inputs()[0], 0.3 * inputs()[0]]).abs()
    close(torch.vmap(call)(states), torch.stack([call(z) for z in states]), 1e-8)
    one = states[:, :1]
    close(torch.vmap(call)(one), torch.stack([call(z) for z in one]), 1e-8)


@pytest.mark.parametrize(
    ("engine", "how"),
    [("torch", "backsolve"), ("torch", "forward"), pytest.param("julia", "backsolve", marks=pytest.mark.julia)],
)
def test_continuous_sensitivities(engine: str, how: str) -> None:
    """To the tolerances: the derivative of the exact solution, here that of many small steps."""
    field = Field()
    info = next(s for s in pynode.solvers() if s.name == "rk4")
    keywords = {"rtol": 1e-7, "atol": 1e-9, "dt": 0.01}
    ours = solver(field, sensitivity=how, engine=engine, **keywords)
    theirs = torchdiffeqs(info, field, keywords)
    x = [y.requires_grad_() for y in inputs()] + list(field.parameters())
    found = []
    for call in (ours, theirs):
        g = torch.autograd.grad(loss(call)(*x[:3]), x, create_graph=True)
        dot = sum((y * y.detach().cos()).sum() for y in g)
        found.append((g, torch.autograd.grad(dot, x)))
    close(found[0], found[1], 2e-5)
    plain = inputs()
    v = tuple(y.cos() for y in plain)
    close(torch.func.jvp(ours, plain, v), A.jvp(theirs, plain, v), 1e-5)


def test_independent_samples(engine: str) -> None:
    """Each with its own times, one row shorter than the other."""
    field = Field()
    z0, t, u = inputs()
    times = torch.stack([t, torch.tensor([0.2, 0.9, float("nan")], dtype=t.dtype)])
    x = [z0.requires_grad_(), u.requires_grad_(), *field.parameters()]
    call = solver(field, engine=engine, **LOOSE)

    def together() -> Tensor:
        return call(z0, times, u).nan_to_num().sin().sum()

    def apart() -> Tensor:
        rows = [call(z0[i : i + 1], times[i][~times[i].isnan()], u[i : i + 1]) for i in range(2)]
        return torch.stack([row.sin().sum() for row in rows]).sum()

    found = []
    for run in (together, apart):
        g = torch.autograd.grad(run(), x, create_graph=True)
        found.append((g, torch.autograd.grad(sum((y * y.detach().cos()).sum() for y in g), x)))
    close(found[0], found[1], EXACT)


def third(call: Callable[..., Tensor]) -> Callable[[], Any]:
    z0, t, u = inputs()

    def backward() -> Any:
        x = z0.clone().requires_grad_()
        (g,) = torch.autograd.grad(loss(call)(x, t, u), x, create_graph=True)
        (h,) = torch.autograd.grad(g.sum(), x, create_graph=True)
        return torch.autograd.grad(h.sum(), x, allow_unused=True)

    return backward


def test_what_is_missing_raises(engine: str) -> None:
    field = Field()
    z0, t, u = inputs()
    call = solver(field, engine=engine, **LOOSE)
    first = loss(call)

    def total(f: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda z: f(z, t, u).sum()

    asked = [
        third(call),
        lambda: torch.func.jacfwd(torch.func.jacfwd(first))(z0, t, u),
        lambda: torch.func.grad(total(torch.func.hessian(first)))(z0),
        lambda: torch.func.jacfwd(torch.func.hessian(first))(z0, t, u),
        lambda: A.hessian(total(lambda z, *_: A.jacobian(total(first), z, create_graph=True)), z0),
    ]
    for ask in asked:
        with pytest.raises(pynode.EngineUnavailable, match="second"):
            ask()
    with pytest.raises(pynode.EngineUnavailable, match="event"):
        torch.func.grad(lambda z: pynode.solve(lambda t, z: -z, z, [0.0, 9.0], engine=engine,
                                               event=lambda t, z: z.sum() - 0.1).event_t)(z0.abs())  # fmt: skip
    x = z0.abs().requires_grad_()
    met = pynode.solve(lambda t, z: -z, x, [0.0, 9.0], event=lambda t, z: z.sum() - 0.1, engine=engine).event_t
    (g,) = torch.autograd.grad(met, x, create_graph=True)
    with pytest.raises(pynode.EngineUnavailable, match="no further derivative"):
        torch.autograd.grad(g.sum(), x, allow_unused=True)


def test_a_gradient_penalty(engine: str) -> None:
    """|dy/dz0|² of y = e^a z0, summed: 2 e^2a, whose derivative in a is 4 e^2a."""
    a = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    x = torch.ones(2, 1, dtype=torch.float64, requires_grad=True)
    y = pynode.solve(lambda t, z: a * z, x, [0.0, 1.0], engine=engine, **FINE).z[-1].sum()
    (g,) = torch.autograd.grad(y, x, create_graph=True)
    (g**2).sum().backward()
    torch.testing.assert_close(a.grad, 4 * torch.exp(2 * a.detach()), rtol=1e-8, atol=0)


def test_changes_after_the_solve(engine: str) -> None:
    """A second derivative is that of the field as it was solved, or an error that says what has changed."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.tensor(0.4, dtype=torch.float64))
            self.scale = 1.0

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return self.scale * self.a * z

    for how in ("discrete", "backsolve") if engine == "torch" else ("discrete",):
        field = Scaled()
        x = torch.ones(1, 1, dtype=torch.float64)
        y = pynode.solve(field, x, [0.0, 1.0], engine=engine, sensitivity=how, **FINE).z[-1].sum()
        (g,) = torch.autograd.grad(y, field.a, create_graph=True)
        field.scale = 3.0
        if engine == "torch" and how == "discrete":  # which has the graph
            (h,) = torch.autograd.grad(g, field.a)
            torch.testing.assert_close(h, torch.tensor(0.4, dtype=torch.float64).exp(), rtol=1e-7, atol=0)
        else:
            with pytest.raises(pynode.FieldError, match="scale"):
                torch.autograd.grad(g, field.a)
