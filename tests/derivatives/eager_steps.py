"""What derivatives are held against: the same steps, operation by operation, differentiated by PyTorch itself."""

from __future__ import annotations

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
