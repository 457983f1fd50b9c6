"""Multiple shooting, against sums of exact solutions and against DiffEqFlux."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pynode import InputError, JuliaField
from pynode.fit import multiple_shooting_loss

TIGHT = {"rtol": 1e-10, "atol": 1e-10}


class Decay(nn.Module):
    """dz/dt = -k z."""

    def __init__(self, k: float) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.tensor(k, dtype=torch.float64))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return -self.k * z


def trajectory(n: int = 8) -> tuple[Tensor, Tensor]:
    t = torch.linspace(0, 2, n, dtype=torch.float64) ** 1.5
    start = torch.tensor([[1.0, 2.0], [-0.5, 3.0]], dtype=torch.float64)
    noise = 0.05 * torch.arange(n * 4, dtype=torch.float64).sin().reshape(n, 2, 2)
    return torch.exp(-0.7 * t)[:, None, None] * start + noise, t


def by_hand(k: Tensor, data: Tensor, t: Tensor, groups: list[range], weight: float) -> Tensor:
    total, end = torch.zeros((), dtype=torch.float64), None
    for group in groups:
        z = torch.stack([data[group[0]] * torch.exp(-k * (t[i] - t[group[0]])) for i in group])
        total = total + (z - data[list(group)]).square().sum()
        if end is not None:
            total = total + weight * (end - data[group[0]]).abs().sum()
        end = z[-1]
    return total


@pytest.mark.parametrize(
    ("size", "groups"),
    [(3, [range(3), range(2, 5), range(4, 7), range(6, 8)]), (8, [range(8)]), (2, [range(i, i + 2) for i in range(7)])],
)
@pytest.mark.usefixtures("engine")
def test_is_the_sum_over_groups_that_share_their_ends(size: int, groups: list[range], engine: str) -> None:
    field, (data, t) = Decay(0.4), trajectory()
    found = multiple_shooting_loss(field, data, t, size, continuity_term=7.0, engine=engine, **TIGHT)
    expected = by_hand(field.k, data, t, groups, 7.0)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    (dk,) = torch.autograd.grad(found, field.k)
    torch.testing.assert_close(dk, torch.autograd.grad(expected, field.k)[0], rtol=1e-7, atol=1e-7)


def test_losses_of_ones_own() -> None:
    field, (data, t) = Decay(0.4), trajectory()
    found = multiple_shooting_loss(
        field,
        data,
        t,
        5,
        loss=lambda data, z: 0 * z.sum(),
        continuity_loss=lambda end, start: (end - start).square().sum(),
        continuity_term=2.0,
        engine="torch",
        **TIGHT,
    )
    end = data[0] * torch.exp(-0.4 * (t[4] - t[0]))
    torch.testing.assert_close(found, 2 * (end - data[4]).square().sum(), rtol=1e-8, atol=1e-8)


def test_refusals() -> None:
    field, (data, t) = Decay(0.4), trajectory()
    with pytest.raises(InputError, match="group_size must be an int from 2 to the number of times, 8, got 9"):
        multiple_shooting_loss(field, data, t, 9)
    with pytest.raises(InputError, match="t must have one entry for each of the 8 times of data, got 7"):
        multiple_shooting_loss(field, data, t[1:], 3)
    with pytest.raises(InputError, match=r"data must be a tensor \(time, batch, \*features\), got shape \(8,\)"):
        multiple_shooting_loss(field, data[:, 0, 0], t, 3)
    for name, value in (("running_cost", lambda t, z: z.sum(1)), ("save", "steps"), ("dense", True)):
        with pytest.raises(InputError, match=f"{name} is no keyword of multiple_shooting_loss"):
            multiple_shooting_loss(field, data, t, 3, engine="torch", **{name: value})
    with pytest.raises(InputError, match="an event ended the solve from t=0 on"):
        multiple_shooting_loss(field, data, t, 3, engine="torch", event=lambda t, z: t - 0.2)


CODE = "(u, p, t) -> [p[1] * u[1] - p[2] * u[1] * u[2], p[3] * u[1] * u[2] - p[4] * u[2]]"
DIFFEQFLUX = f"""
import DiffEqFlux, OrdinaryDiffEqTsit5, SciMLBase, SciMLSensitivity, Zygote
function reference(flat, ts, p, group_size)
    data, ts, p = reshape(Vector{{Float64}}(flat), 2, :), Vector{{Float64}}(ts), Vector{{Float64}}(p)
    problem = SciMLBase.ODEProblem({CODE}, data[:, 1], (ts[1], ts[end]), p)
    loss(p) = first(DiffEqFlux.multiple_shoot(p, data, ts, problem, (u, v) -> sum(abs2, u .- v),
        OrdinaryDiffEqTsit5.Tsit5(), group_size; continuity_term = 3, reltol = 1e-10, abstol = 1e-10,
        sensealg = SciMLSensitivity.ForwardDiffSensitivity()))
    value, (slope,) = Zygote.withgradient(loss, p)
    return [value; slope]
end
"""


@pytest.mark.julia
@pytest.mark.exhaustive  # DiffEqFlux takes half a minute to load
def test_is_that_of_diffeqflux() -> None:
    from pynode.engine.julia import runtime as julia_runtime

    julia_runtime.start()
    from juliacall import Main

    Main.seval(f"begin {DIFFEQFLUX} end")
    t = torch.linspace(0, 3, 10, dtype=torch.float64)
    data = torch.stack([1 + 0.5 * torch.sin(2 * t), 1.5 - torch.cos(1.7 * t)], -1)
    p = [1.3, 0.9, 0.8, 1.8]
    value, *slope = Main.reference(data.flatten().tolist(), t.tolist(), p, 4)
    field = JuliaField(CODE, torch.tensor(p, dtype=torch.float64))
    found = multiple_shooting_loss(field, data[:, None], t, 4, continuity_term=3.0, engine="julia", **TIGHT)
    assert found.item() == pytest.approx(value, rel=1e-8)
    found.backward()
    assert field.p.grad.tolist() == pytest.approx(slope, rel=1e-6)
