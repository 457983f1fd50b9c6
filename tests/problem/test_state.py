"""States of every form: complex, 0-d, named tuples, dictionaries; on both engines."""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import pynode
from pynode.field import Field

DOUBLE, COMPLEX = torch.float64, torch.complex128
TIGHT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11}
STEPS: dict[str, Any] = {"solver": "rk4", "dt": 0.1}


class Phase(NamedTuple):
    x: Tensor
    v: Tensor


class Named(nn.Module):
    """x'' = -ω² x."""

    def __init__(self) -> None:
        super().__init__()
        self.omega = nn.Parameter(torch.tensor(1.5, dtype=DOUBLE))

    def forward(self, t: Tensor, s: Phase) -> Phase:
        return Phase(s.v, -(self.omega**2) * s.x)


class Keyed(Named):
    def forward(self, t: Tensor, s: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"v": -(self.omega**2) * s["x"], "x": s["v"]}  # in another order than the state's


class Schroedinger(nn.Module):
    """i ψ' = ω H ψ, with H the exchange of two levels: ψ(t) = (cos ωt, -i sin ωt) from (1, 0)."""

    def __init__(self) -> None:
        super().__init__()
        self.omega = nn.Parameter(torch.tensor(0.6, dtype=DOUBLE))
        self.register_buffer("H", torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=COMPLEX))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return -1j * self.omega * (z @ self.H)


UP = torch.tensor([[1.0, 0.0]], dtype=COMPLEX)


# ---- named tuples and dictionaries -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["named tuple", "dictionary", "ordered dictionary"])
def test_state_by_name(engine: str, kind: str) -> None:
    x0 = torch.tensor([[1.0], [0.5]], dtype=DOUBLE, requires_grad=True)
    v0 = torch.zeros(2, 1, dtype=DOUBLE)
    field = Named() if kind == "named tuple" else Keyed()
    make = {"dictionary": dict, "ordered dictionary": OrderedDict}.get(kind)
    z0: Any = Phase(x0, v0) if make is None else make(x=x0, v=v0)

    def read(z: Any, name: str) -> Tensor:
        return getattr(z, name) if make is None else z[name]

    def cost(t: Tensor, z: Any) -> Tensor:
        return read(z, "x")[:, 0]

    sol = pynode.solve(field, z0, [0.0, 1.0, 2.0], engine=engine, running_cost=cost, dense=True, **TIGHT)
    assert type(sol.z) is type(sol.z_end) is type(sol(0.3)) is type(z0)
    turns = 1.5 * sol.t[:, None, None]
    torch.testing.assert_close(read(sol.z, "x"), x0 * torch.cos(turns), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(read(sol.z, "v"), -1.5 * x0 * torch.sin(turns), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(read(sol(0.3), "x"), x0.detach() * math.cos(0.45), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sol.running_cost, x0[:, 0] * math.sin(3) / 1.5, rtol=1e-6, atol=1e-6)
    read(sol.z, "x")[-1].sum().backward()
    torch.testing.assert_close(x0.grad, torch.full_like(x0, math.cos(3)), rtol=1e-6, atol=1e-6)
    assert field.omega.grad is not None
    assert field.omega.grad.item() == pytest.approx(-2 * 1.5 * math.sin(3), rel=1e-6)


def test_event_of_a_state_by_name(engine: str) -> None:
    z0 = {"x": torch.tensor([[1.0], [0.9]], dtype=DOUBLE), "v": torch.zeros(2, 1, dtype=DOUBLE)}
    for batching, shape in (("joint", ()), ("independent", (2,))):
        sol = pynode.solve(
            Keyed(), z0, [0.0, 3.0], engine=engine, event=lambda t, z: z["x"][0, 0], batching=batching, **TIGHT
        )
        torch.testing.assert_close(sol.event_t, torch.full(shape, math.pi / 3, dtype=DOUBLE))
        assert sol.event_z.keys() == sol.z_end.keys() == z0.keys()
        torch.testing.assert_close(sol.event_z["v"], -1.5 * z0["x"])
        assert torch.equal(sol.z_end["v"], sol.event_z["v"])


def test_a_failed_solve_keeps_the_form(engine: str) -> None:
    z0 = {"x": torch.ones(1, 1, dtype=DOUBLE), "v": torch.zeros(1, 1, dtype=DOUBLE)}
    sol = pynode.solve(Keyed(), z0, [0.0, 1e3], engine=engine, max_steps=5, throw=False)
    assert sol.z_end.keys() == z0.keys()
    turns = 1.5 * sol.t_end
    torch.testing.assert_close(sol.z_end["x"], torch.cos(turns).reshape(1, 1), rtol=0, atol=0.05)


def test_what_is_known_of_a_field_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The field is examined once for each form, although each solve makes another field of it."""
    examined = []
    original = Field._examine
    monkeypatch.setattr(Field, "_examine", lambda self, *a: examined.append(1) or original(self, *a))
    x, field, psi = torch.ones(2, 1, dtype=DOUBLE), Keyed(), Schroedinger()
    for _ in range(3):
        pynode.solve(field, {"x": x.clone(), "v": x.clone()}, [0.0, 1.0], engine="torch")
        pynode.solve(psi, UP, [0.0, 1.0], engine="torch", running_cost=lambda t, z: z.abs().sum(-1))
    assert len(examined) == 2


@pytest.mark.parametrize(
    ("out", "text"),
    [
        (lambda s: {"x": s["v"]}, r"expected dict with 'x', 'v', got dict with \['x'\]"),
        (lambda s: (s["v"], s["x"]), r"expected dict with 'x', 'v', got tuple"),
        (lambda s: {"x": s["v"], "v": s["x"][0]}, r"derivative of z0\['v'\].*expected \(2, 1\), .* got \(1,\)"),
        (lambda s: {"x": s["v"], "v": s["x"].float()}, r"z0\['v'\].*expected .*float64, got .*float32"),
        (lambda s: {"x": s["v"], "v": 1.0}, r"z0\['v'\].* got float"),
    ],
)
def test_a_field_that_returns_another_form(engine: str, out: Any, text: str) -> None:
    z0 = {"x": torch.ones(2, 1, dtype=DOUBLE), "v": torch.zeros(2, 1, dtype=DOUBLE)}
    with pytest.raises(pynode.FieldError, match=text):
        pynode.solve(lambda t, s: out(s), z0, [0.0, 1.0], engine=engine)


# ---- complex ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sensitivity", ["discrete", "backsolve", "forward"])
def test_complex_state(engine: str, sensitivity: str) -> None:
    field, z0 = Schroedinger(), UP.clone().requires_grad_()

    def end(z0: Tensor, omega: Tensor, **keywords: Any) -> Tensor:
        z = pynode.solve(field, z0, [0.0, 0.7, 1.0], engine=engine, sensitivity=sensitivity, **keywords).z
        assert z.dtype == COMPLEX
        assert torch.equal(z[0], z0)
        return z[-1]

    exact = torch.tensor([[math.cos(0.6), -1j * math.sin(0.6)]], dtype=COMPLEX)
    torch.testing.assert_close(end(z0, field.omega, **TIGHT), exact, rtol=1e-7, atol=1e-7)
    assert torch.autograd.gradcheck(lambda *x: end(*x, **STEPS), (z0, field.omega), rtol=1e-4)
    (end(z0, field.omega, **TIGHT)[0, 1].abs() ** 2).backward()
    assert field.omega.grad is not None
    assert field.omega.grad.item() == pytest.approx(math.sin(1.2), rel=1e-6)


def test_complex_state_with_all_that_a_solve_can_do(engine: str) -> None:
    field, z0 = Schroedinger(), torch.cat([UP, 0.5j * UP]).requires_grad_()

    def population(t: Tensor, z: Tensor) -> Tensor:
        return z[:, 1].abs() ** 2

    def half(t: Tensor, z: Tensor) -> Tensor:
        return z[:, 1].abs().square().sum() - 0.5 * z.abs().square().sum()

    sol = pynode.solve(
        field, z0, [0.0, 0.5, 3.0], engine=engine, running_cost=population, event=half, dense=True, **TIGHT
    )
    assert sol.event_t.item() == pytest.approx(math.pi / 4 / 0.6, rel=1e-7)
    torch.testing.assert_close(sol.event_z.abs(), torch.tensor([[1.0, 1.0], [0.5, 0.5]], dtype=DOUBLE) / math.sqrt(2))
    assert torch.isnan(sol.z[-1].real).all()
    expected = sol.event_t / 2 - math.sin(math.pi / 2) / (4 * 0.6)
    torch.testing.assert_close(sol.running_cost, torch.stack([expected, expected / 4]), rtol=1e-6, atol=1e-8)
    assert sol(0.5).dtype == COMPLEX
    torch.testing.assert_close(sol(0.5), sol.z[1].detach(), rtol=1e-6, atol=1e-6)
    each = pynode.solve(field, z0, [0.0, 1.0], engine=engine, batching="independent", **TIGHT)
    joint = pynode.solve(field, z0, [0.0, 1.0], engine=engine, **TIGHT)
    torch.testing.assert_close(each.z, joint.z, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("sensitivity", ["discrete", "backsolve", "forward"])
def test_complex_conditioning_tensors(engine: str, sensitivity: str) -> None:
    z0, omega = UP.clone().requires_grad_(), torch.tensor([0.6 + 0.1j], dtype=COMPLEX, requires_grad=True)
    shift = torch.tensor(0.2j, dtype=COMPLEX, requires_grad=True)
    H = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=COMPLEX)

    def end(z0: Tensor, omega: Tensor, shift: Tensor, **keywords: Any) -> Tensor:
        return pynode.solve(
            lambda t, z, w, s: -1j * w * (z @ H) + s * z,
            z0,
            [0.0, 1.0],
            args=(omega, shift),
            engine=engine,
            sensitivity=sensitivity,
            **keywords,
        ).z[-1]

    w, s = 0.6 + 0.1j, 0.2j
    grown = torch.exp(torch.tensor(s))
    exact = torch.stack([torch.cos(torch.tensor(w)), -1j * torch.sin(torch.tensor(w))]).to(COMPLEX) * grown
    torch.testing.assert_close(end(z0, omega, shift, **TIGHT)[0], exact.to(COMPLEX), rtol=1e-6, atol=1e-6)
    assert torch.autograd.gradcheck(lambda *x: end(*x, **STEPS), (z0, omega, shift), rtol=1e-4, fast_mode=True)


@pytest.mark.parametrize("sensitivity", ["discrete", "backsolve", "forward"])
def test_complex_parameters(engine: str, sensitivity: str) -> None:
    """Their gradients are, as complex numbers, PyTorch's: by both engines."""
    omega = nn.Parameter(torch.tensor([0.6 + 0.1j], dtype=COMPLEX))
    H = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=COMPLEX)

    def field(t: Tensor, z: Tensor) -> Tensor:
        return -1j * omega * (z @ H)

    solution = pynode.solve(field, UP, [0.0, 1.0], engine=engine, sensitivity=sensitivity, **TIGHT)
    solution.z[-1, 0, 1].abs().backward()
    c = torch.tensor(0.6 + 0.1j, dtype=COMPLEX, requires_grad=True)
    torch.sin(c).abs().backward()
    torch.testing.assert_close(omega.grad, c.grad[None], rtol=1e-6, atol=1e-6)


def test_complex_parameters_that_change(engine: str) -> None:
    """In place, as an optimizer does it, and behind a first solve without a gradient; second derivatives too."""
    net = nn.Linear(2, 2, bias=False, dtype=COMPLEX)

    def end(weight: Tensor) -> Tensor:
        return torch.matrix_exp(weight) @ UP[0]

    def field(t: Tensor, z: Tensor) -> Tensor:
        return net(z)

    for _ in range(2):
        with torch.no_grad():
            net.weight.mul_(0.7)
            z = pynode.solve(field, UP, [0.0, 1.0], engine=engine, **TIGHT).z[-1, 0]
            torch.testing.assert_close(z, end(net.weight), rtol=1e-7, atol=1e-7)
        solution = pynode.solve(field, UP, [0.0, 1.0], engine=engine, **TIGHT)
        (found,) = torch.autograd.grad(solution.z[-1].abs().sum(), net.weight)
        (exact,) = torch.autograd.grad(end(net.weight).abs().sum(), net.weight)
        torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-6)


def test_a_real_derivative_of_a_complex_state_is_refused(engine: str) -> None:
    with pytest.raises(pynode.FieldError, match=r"derivative of z0 .*expected .*complex128, got .*float64"):
        pynode.solve(lambda t, z: -z.abs(), UP, [0.0, 1.0], engine=engine)


# ---- 0-d -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [DOUBLE, COMPLEX])
def test_state_without_a_batch(engine: str, dtype: torch.dtype) -> None:
    z0 = torch.tensor(2.0, dtype=dtype, requires_grad=True)

    def field(t: Tensor, z: Tensor) -> Tensor:
        assert z.dim() == 0
        return -z

    sol = pynode.solve(
        field, z0, [0.0, 1.0, 2.0], engine=engine, running_cost=lambda t, z: z.abs().square(), dense=True, **TIGHT
    )
    assert sol.z.shape == (3,)
    assert sol.z_end.shape == sol.running_cost.shape == sol(0.3).shape == ()
    assert sol([0.3, 0.4]).shape == (2,)
    torch.testing.assert_close(sol.z, 2 * torch.exp(-sol.t).to(dtype), rtol=1e-7, atol=1e-7)
    assert sol.running_cost.item() == pytest.approx(2 * (1 - math.exp(-4)), rel=1e-6)
    sol.z[-1].abs().backward()
    assert z0.grad.item() == pytest.approx(math.exp(-2), rel=1e-6)
    sol = pynode.solve(field, z0, [0.0, 2.0], engine=engine, event=lambda t, z: z.abs() - 1, **TIGHT)
    assert sol.event_z.shape == sol.z_end.shape == ()
    assert sol.event_z.item() == pytest.approx(1)
    assert sol.event_t.item() == pytest.approx(math.log(2))
    with pytest.raises(pynode.InputError, match=r"needs z0 of shape \(batch, \*features\), got \(\)"):
        pynode.solve(field, z0, [0.0, 2.0], engine=engine, batching="independent")


def test_tuple_without_a_batch(engine: str) -> None:
    z0 = (torch.tensor(1.0, dtype=DOUBLE), torch.tensor(0.0, dtype=DOUBLE))
    x, v = pynode.solve(lambda t, z: (z[1], -z[0]), z0, [0.0, 1.0], engine=engine, **TIGHT).z
    torch.testing.assert_close(torch.stack([x, v]), torch.tensor([[1, math.cos(1)], [0, -math.sin(1)]], dtype=DOUBLE))


# ---- what is no state ------------------------------------------------------------------------------------------------


def test_what_is_no_state(engine: str) -> None:
    numpy = pytest.importorskip("numpy")
    ones = numpy.ones((2, 1))

    def refused(text: str, z0: Any, **keywords: Any) -> None:
        with pytest.raises(pynode.InputError, match=text):
            pynode.solve(lambda t, z: 1 / 0, z0, [0.0, 1.0], engine=engine, **keywords)

    refused(r"dictionary of tensors, got ndarray\. Convert arrays and numbers with torch.as_tensor", ones)
    refused(r"got tuple of ndarray\. .* torch.as_tensor", (ones,))
    refused(r"got dict of float, ndarray\. .* torch.as_tensor", {"x": ones, "v": 1.0})
    refused(r"got list of Tensor", [torch.ones(2)])
    refused(r"got dict of nothing", {})
    refused(r"got dict of tuple", {"x": (torch.ones(2), torch.ones(2))})
    refused(r"args must be a tuple .* got ndarray\. .* torch.as_tensor", torch.ones(2, 1), args=ones)
    refused(r"args must be a tuple .* got tuple of ndarray", torch.ones(2, 1), args=(ones,))
    refused(r"one batch size: expected 2, as z0\[0\], got 3 in z0\[1\]\.", (torch.ones(2, 1), torch.ones(3, 1)))
    mixed = {"x": torch.ones(2), "v": torch.ones(())}
    refused(r"one batch size: .* as z0\['x'\], got a 0-d tensor in z0\['v'\]", mixed)
    refused(r"dtype torch.float32 or torch.float64.* counterparts, got torch.int64", torch.ones(2, dtype=torch.int64))
    refused(r"share dtype and device: expected torch.float32", (torch.ones(2), torch.ones(2, dtype=COMPLEX)))
    for dtype in (torch.int64, torch.bool, torch.float16, torch.float8_e4m3fn):
        refused(r"dtype torch.float32 or torch.float64", torch.ones(2, 1).to(dtype))
    refused(
        r"z0 must be a dense tensor, got one of layout torch.sparse_coo\. Pass z0.to_dense\(\)", ones_of("sparse_coo")
    )
    refused(r"z0\['x'\] must be a dense tensor", {"x": ones_of("sparse_csr")})
    refused(r"args\[0\] must be a dense tensor", torch.ones(2, 1), args=(ones_of("sparse_coo"),))


def ones_of(layout: str) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sparse tensors are in beta
        return torch.ones(2, 1).to_sparse(layout=getattr(torch, layout))
