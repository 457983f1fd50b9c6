"""Directional and second derivatives of solves of every kind of field, against the same steps by PyTorch alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from modules import Case
from reference import error
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from zoo import EVERY, UNTRACED

import pynode
from pynode.field import Field
from pynode.field._direction import DirectionField
from pynode.nn._signature import with_time

TIMES, DT = (0.3, 0.31, 0.32), 0.01  # so short that no state leaves its domain
QUICK = {"mlp", "attention", "conv_with_time", "gat_over_edges", "hodgkin_huxley", "layer_norm", "tuple_state"}
COMPILED = {"attention", "double_pendulum", "gat_over_edges", "hodgkin_huxley", "instance_norm"}
COMPILED |= {"layer_norm", "sparse_matrices", "special_functions", "state_space"}
# What PyTorch itself has no second derivative of (of `cdist`, `hardsigmoid`, `logcumsumexp`, of what SciPy computes).
LEFT_OUT = {"Hardsigmoid", "flocking", "interacting_particles", "radial_basis_functions", "scipy_inside"}
LEFT_OUT |= {"running_logarithms"}


def by_hand(case: Case, z: tuple[Tensor, ...], args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The last state after midpoint steps."""

    def f(t: float, z: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        out = case.field(torch.tensor(t, dtype=torch.float64), z if case.is_tuple else z[0], *args)
        return tuple(out) if case.is_tuple else (out,)

    for t in TIMES[:-1]:
        half = tuple(x + DT / 2 * k for x, k in zip(z, f(t, z), strict=True))
        z = tuple(x + DT * k for x, k in zip(z, f(t + DT / 2, half), strict=True))
    return z


def by_solve(
    case: Case, z: tuple[Tensor, ...], args: tuple[Tensor, ...], options: dict[str, Any]
) -> tuple[Tensor, ...]:
    state = z if case.is_tuple else z[0]
    sol = pynode.solve(case.field, state, list(TIMES), args=args, solver="midpoint", dt=DT, **options)
    return tuple(x[-1] for x in (sol.z if case.is_tuple else (sol.z,)))


def pattern(x: Tensor, phase: float) -> Tensor:
    """Numbers without a pattern of their own."""
    return (torch.arange(x.numel(), dtype=x.dtype) * 0.7 + phase).cos().reshape(x.shape)


def derivatives(case: Case, options: dict[str, Any] | None) -> list[Tensor]:
    """The derivative of the last state as the first one moves, and of the gradient of a number that it gives."""
    _, z0, args = case.draw(2)

    def last(*z: Tensor) -> tuple[Tensor, ...]:
        return by_hand(case, z, args) if options is None else by_solve(case, z, args, options)

    directions = tuple(pattern(z, 0.3) for z in z0)
    if options is None:  # which needs no derivative forwards of each operation
        moved = torch.autograd.functional.jvp(last, z0, directions)[1]
    else:
        moved = torch.func.jvp(last, z0, directions)[1]
    inputs = [z.detach().requires_grad_() for z in z0]
    total = sum((x.square() * pattern(x, 0.1)).sum() for x in last(*inputs))
    first = torch.autograd.grad(total, inputs, create_graph=True)
    along = sum((g * pattern(g, 0.5)).sum() for g in first)
    second = torch.autograd.grad(along, inputs, allow_unused=True, materialize_grads=True)
    return [x.detach() for x in (*moved, *second)]


def kinds(engine: str) -> list[Any]:
    def marks(name: str) -> list[Any]:
        if engine == "torch":
            return [] if name in QUICK else [pytest.mark.slow]
        # Each has kernels to be compiled, for five seconds to two minutes.
        rest = pytest.mark.slow if name in COMPILED else pytest.mark.exhaustive
        return [pytest.mark.julia] if name in {"mlp", "tuple_state"} else [pytest.mark.julia, rest]

    return [
        pytest.param(engine, name, marks=marks(name), id=f"{engine}-{name}") for name in sorted(set(EVERY) - LEFT_OUT)
    ]


@pytest.mark.parametrize(("engine", "name"), [*kinds("torch"), *kinds("julia")])
def test_derivatives_of_each_kind(engine: str, name: str) -> None:
    case = EVERY[name]()
    options = {"engine": engine} | ({"lowering": "callback"} if engine == "julia" and name in UNTRACED else {})
    with sdpa_kernel(SDPBackend.MATH):  # of the others PyTorch has no second derivative
        expected = derivatives(case, None)
        assert error(derivatives(case, options), expected) <= 1e-8


def moved(case: Case) -> tuple[list[Tensor], list[Tensor]]:
    """The gradient of <v, J(z) w> in z, and how <v, J(z)> changes along w, by differences: both are <v, f''(z) w>."""
    _, z0, args = case.draw(2)
    t, n = torch.tensor(0.3, dtype=torch.float64), len(z0)
    field = Field(with_time(case.field, len(args)), z0, t, args, case.is_tuple)
    w, v = ([pattern(z, phase) for z in z0] for phase in (0.3, 0.9))

    def gradient(out: Sequence[Tensor], z: Sequence[Tensor]) -> list[Tensor]:
        total = sum((x * c).sum() for x, c in zip(out, v, strict=True))
        if not total.requires_grad:
            return [torch.zeros_like(x) for x in z]
        return list(torch.autograd.grad(total, z, allow_unused=True, materialize_grads=True))

    def product(step: float) -> list[Tensor]:
        z = [(x + step * d).requires_grad_() for x, d in zip(z0, w, strict=True)]
        return gradient(field(t, z, args), z)

    z = [x.clone().requires_grad_() for x in z0]
    direction = DirectionField(field, n, [False] * len(args), [False] * len(field.parameters), False)
    differences = [(a - b) / 2e-6 for a, b in zip(product(1e-6), product(-1e-6), strict=True)]
    return gradient(direction(t, [*z, *w], args)[n:], z), differences


ROUGH = {"equilibrium_to_a_tolerance", "network_of_single_precision"}  # whose rounding the differences show


@pytest.mark.parametrize("name", sorted(set(EVERY) - LEFT_OUT - ROUGH))
def test_a_product_is_differentiated_once_more(name: str) -> None:
    with sdpa_kernel(SDPBackend.MATH):
        found, expected = moved(EVERY[name]())
    assert error(found, expected) <= 1e-5
