"""What derivatives are held against: the same steps, operation by operation, differentiated by PyTorch itself."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torchdiffeq
from torch import Tensor, nn

from pynode.engine import SolverInfo
from pynode.engine.grid import substeps


class Field(nn.Module):
    """A field of time, state and a conditioning tensor that is nonlinear in all, with two parameters."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(1)
        self.w = nn.Parameter(torch.randn(2, 2, generator=g, dtype=torch.float64))
        self.b = nn.Parameter(torch.randn(2, generator=g, dtype=torch.float64))

    def forward(self, t: Tensor, z: Tensor, u: Tensor) -> Tensor:
        return torch.tanh(z @ self.w + self.b * torch.sin(t)) * u - 0.3 * z


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """A state, times, and what the field is conditioned by."""
    g = torch.Generator().manual_seed(2)
    z0 = torch.randn(2, 2, generator=g, dtype=torch.float64)
    t = torch.tensor([0.1, 0.3, 0.8], dtype=torch.float64)
    return z0, t, torch.rand(2, 1, generator=g, dtype=torch.float64) + 0.5


Call = Callable[..., Tensor]


def torchdiffeqs(info: SolverInfo, field: nn.Module, keywords: dict[str, Any]) -> Call:
    """`(z0, t, u) -> z` by torchdiffeq, whose every operation PyTorch differentiates."""

    def call(z0: Tensor, t: Tensor, u: Tensor) -> Tensor:
        dt = keywords["dt"]
        call: dict[str, Any] = {"method": info.torch, "rtol": keywords["rtol"], "atol": keywords["atol"]}
        if info.adaptive:

            def options(s: Tensor, step: float) -> dict[str, Any]:
                return {"first_step": step, "step_t": s[-1:]}

        elif info.name == "adams":
            (n,) = substeps((t[0].item(), t[-1].item()), dt)
            grid = torch.cat([t[0] + (t[-1] - t[0]) * torch.arange(n, dtype=t.dtype) / n, t[-1:]])
            call["options"] = {"grid_constructor": lambda f, y, s: grid, "interp": "cubic"}
        else:
            counts = substeps(t.tolist(), dt)
            steps = [a + torch.arange(n, dtype=t.dtype) * dt for a, n in zip(t[:-1], counts, strict=True)]
            grid = torch.cat([*steps, t[-1:]])
            call["options"] = {"grid_constructor": lambda f, y, s: grid}
        f = lambda s, z: field(s, z, u)  # noqa: E731
        if info.adaptive:
            return torchdiffeq.odeint(f, z0, t, options=options(t, dt), **call)
        return torchdiffeq.odeint(f, z0, t, **call)

    return call


class Eager:
    """`(z0, t, u) -> z` by the steps of the julia engine's latest solve, from the coefficients of its method.

    A step's start and end move as pynode says: with the entry of `t` from which the steps are counted; the last step
    before an entry that is stepped to is cut.
    """

    def __init__(self, field: nn.Module, steps: list[float], lands: bool, tableau: Any) -> None:
        self.field, self.steps, self.lands = field, steps, lands
        self.A, self.b, self.c, self.W = (torch.tensor(tableau[k], dtype=torch.float64) for k in ("A", "b", "c", "W"))
        self.fsal = tableau["fsal"]

    @staticmethod
    def of(field: nn.Module, info: SolverInfo) -> Eager:
        from juliacall import Main as jl

        kept = jl.seval("PyNODE.KEPT[PyNODE.NEXT[]]")
        tab = jl.PyNODE.tableau(info.julia, jl.Float64)
        rows = [[float(x) for x in row] for row in jl.seval("x -> collect(eachrow(x.A))")(tab)]
        weights = [[float(x) for x in row] for row in jl.seval("x -> collect(eachrow(x.W))")(tab)]
        lands = bool(jl.PyNODE.lands_on_times(kept.options))
        found = {"A": rows, "b": list(map(float, tab.b)), "c": list(map(float, tab.c)), "W": weights}
        return Eager(field, list(map(float, kept.steps.t)), lands, found | {"fsal": bool(tab.fsal)})

    def _times(self, t: Tensor) -> list[Tensor]:
        values, i, found = t.tolist(), 0, []
        for s in self.steps:
            if self.lands and i + 1 < len(values) and s == values[i + 1]:
                i += 1
            found.append(t[i] + (s - values[i]))
        found[-1] = t[-1]
        return found

    def __call__(self, z0: Tensor, t: Tensor, u: Tensor) -> Tensor:
        times, values = self._times(t), t.tolist()
        z, out, first = z0, [z0], None
        for n, (a, b) in enumerate(itertools.pairwise(times)):
            h, k = b - a, []
            for j, row in enumerate(self.A):
                y = z + h * sum((row[i] * k[i] for i in range(j)), torch.zeros_like(z))
                k.append(first if j == 0 and first is not None else self.field(a + self.c[j] * h, y, u))
            while len(out) < len(t) and (values[len(out)] - self.steps[n + 1]) * (1 if h > 0 else -1) <= 0:
                i = len(out)
                if values[i] == self.steps[n + 1] and (self.lands or i == len(t) - 1):
                    out.append(z + h * sum(w * x for w, x in zip(self.b, k, strict=True)))
                    continue
                theta = (t[i] - a) / h
                powers = theta ** torch.arange(self.W.shape[1])
                out.append(z + h * sum(w * x for w, x in zip(self.W @ powers, k, strict=True)))
            z = z + h * sum(w * x for w, x in zip(self.b, k, strict=True))
            first = k[-1] if self.fsal else None
        return torch.stack(out)


def loss(call: Call) -> Call:
    """A number that depends on the states in a way that is not linear."""

    def of(*x: Tensor) -> Tensor:
        z = call(*x)
        return (torch.sin(z) * torch.arange(1.0, z.numel() + 1).to(z).reshape(z.shape).cos()).sum()

    return of


def close(got: Any, expected: Any, tolerance: float) -> None:
    """Assert that tensors in any structure are equal but for a tolerance."""
    a, b = torch.utils._pytree.tree_leaves(got), torch.utils._pytree.tree_leaves(expected)
    assert len(a) == len(b) > 0
    for x, y in zip(a, b, strict=True):
        assert x.shape == y.shape
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)
