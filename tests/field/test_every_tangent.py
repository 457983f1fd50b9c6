"""Directional and second derivatives of solves of every kind of field, against the same steps by PyTorch alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from modules import Case
from reference import error
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from zoo import EVERY, UNTRACED

import pynode

TIMES, DT = (0.3, 0.31, 0.32), 0.01  # so short that no state leaves its domain
QUICK = {"mlp", "attention", "conv_with_time", "gat_over_edges", "hodgkin_huxley", "layer_norm", "tuple_state"}
# What PyTorch itself has no second derivative of (of `cdist`, `hardsigmoid`, `logcumsumexp`, of what SciPy computes).
LEFT_OUT = {"Hardsigmoid", "flocking", "interacting_particles", "radial_basis_functions", "scipy_inside"}
LEFT_OUT |= {"running_logarithms"}
# PyTorch's sparse matrices have no rule for several directions at once: the torch engine refuses, with PyTorch's words.
SPARSE = {"excitable_network", "sparse_matrices"}


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
    marks = [pytest.mark.julia] if engine == "julia" else []
    quick = {"mlp", "tuple_state"} if engine == "julia" else QUICK  # there are kernels to be compiled
    return [
        pytest.param(engine, name, marks=marks if name in quick else [*marks, pytest.mark.slow], id=f"{engine}-{name}")
        for name in sorted(set(EVERY) - LEFT_OUT - (SPARSE if engine == "torch" else set()))
    ]


@pytest.mark.parametrize(("engine", "name"), [*kinds("torch"), *kinds("julia")])
def test_derivatives_of_each_kind(engine: str, name: str) -> None:
    case = EVERY[name]()
    options = {"engine": engine} | ({"lowering": "callback"} if engine == "julia" and name in UNTRACED else {})
    with sdpa_kernel(SDPBackend.MATH):  # of the others PyTorch has no second derivative
        expected = derivatives(case, None)
        assert error(derivatives(case, options), expected) <= 1e-8


@pytest.mark.parametrize("name", sorted(SPARSE))
def test_sparse_matrices_are_refused(name: str) -> None:
    with pytest.raises(NotImplementedError, match="SparseTensorImpl"):
        derivatives(EVERY[name](), {"engine": "torch"})
