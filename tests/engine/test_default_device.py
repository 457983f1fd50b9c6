"""Solves do not depend on PyTorch's default device, which need not be the state's.

`meta` stands for such another device: what is made there has no memory, so that whatever needs a number of it fails.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pynode

D = torch.float64
ROOT = Path(pynode.__file__).parent
# Where modules are made, and data, the default device is the user's to choose.
OF_THE_USER = ("models", "nn", "data", "plot", "study", "cli")
FACTORIES = {
    *("arange", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "normal", "ones", "rand", "randint"),
    *("randn", "randperm", "scalar_tensor", "tensor", "tril_indices", "triu_indices", "zeros"),
}


def made_anywhere(source: str) -> list[str]:
    """The calls of PyTorch that make a tensor on the default device."""
    return [
        ast.unparse(call)
        for call in ast.walk(ast.parse(source))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and ast.unparse(call.func.value) == "torch"
        and call.func.attr in FACTORIES
        and not any(k.arg in ("device", None) for k in call.keywords)
    ]


def test_made_anywhere() -> None:
    assert made_anywhere("torch.zeros(2); torch.ones(2, device='cpu'); x.zeros(2); torch.nn.zeros(2)") == [
        "torch.zeros(2)"
    ]


@pytest.mark.parametrize("room", sorted({p.relative_to(ROOT).parts[0] for p in ROOT.rglob("*.py")} - {*OF_THE_USER}))
def test_what_a_room_makes_is_on_a_device_that_it_names(room: str) -> None:
    path = ROOT / room
    files = [path] if path.is_file() else sorted(path.rglob("*.py"))
    found = [f"{file.relative_to(ROOT)}: {call}" for file in files for call in made_anywhere(file.read_text())]
    assert found == []


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()


def reaches(t: Tensor, z: Tensor) -> Tensor:
    return t - 0.5 + 0 * z.reshape(-1)[0]


def each_reaches(t: Tensor, z: Tensor) -> Tensor:
    return t - 0.5 + 0 * z[:, 0]


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "independent": {"batching": "independent"},
    "backsolve": {"sensitivity": "backsolve"},
    "forward": {"sensitivity": "forward"},
    "event": {"event": pynode.Event(reaches)},
    "jump": {"event": pynode.Event(reaches, terminal=False, affect=lambda t, z: z + 1)},
    "event of each": {"event": pynode.Event(each_reaches), "batching": "independent"},
    "jump of each": {
        "event": pynode.Event(each_reaches, terminal=False, affect=lambda t, z: z + 1),
        "batching": "independent",
    },
    "preset jump": {"event": pynode.At([0.5], lambda t, z: z + 1)},
    "dense": {"dense": True},
    "fixed steps": {"solver": "midpoint", "dt": 0.1},
    "running cost": {"running_cost": lambda t, z: z.square().sum(-1)},
    "steps": {"save": "steps"},
    "stops": {"tstops": [0.3]},
    "callback": {"lowering": "callback"},
    "step control": {"step_control": pynode.StepControl(norm="max", dt_max=0.2)},
}


def results(engine: str, field: nn.Module, keywords: dict[str, Any], times: Any) -> list[Tensor]:
    z0 = torch.tensor([[0.3, -0.2], [1.0, 0.5], [-0.7, 0.1]], dtype=D, device="cpu", requires_grad=True)
    solution = pynode.solve(field, z0, times, engine=engine, **keywords)
    last = solution.z_end if solution.z_end.requires_grad else solution.z[-1]
    loss = last.square().sum() + (solution.running_cost.sum() if "running_cost" in keywords else 0)
    found = [solution.z.detach(), *torch.autograd.grad(loss, [z0, *field.parameters()])]
    return [*found, solution(0.3).detach()] if keywords.get("dense") else found


@pytest.mark.parametrize("kind", KINDS)
def test_solves_of_a_state_elsewhere(engine: str, kind: str) -> None:
    field = network()
    with torch.device("meta"):
        first = results(engine, field, KINDS[kind], [0.0, 1.0])
    there = results(engine, field, KINDS[kind], [0.0, 1.0])
    with torch.device("meta"):
        again = results(engine, field, KINDS[kind], [0.0, 1.0])
    for x, y, z in zip(first, there, again, strict=True):
        assert x.device.type == "cpu"
        assert torch.equal(x.nan_to_num(7.0), y.nan_to_num(7.0))
        assert torch.equal(z.nan_to_num(7.0), y.nan_to_num(7.0))


def test_times_and_paths_elsewhere(engine: str) -> None:
    def found() -> list[Tensor]:
        values = torch.tensor([[0.0], [1.0], [0.5]], dtype=D, device="cpu")
        path = pynode.control.CubicHermite([0.0, 0.4, 1.0], values)
        z0 = torch.ones(2, 1, dtype=D, device="cpu", requires_grad=True)
        driven = pynode.solve(lambda t, z, X: X.derivative(t) - z, z0, [0.0, 1.0], control=path, engine=engine)
        own = pynode.solve(lambda t, z: -z, z0, [[0.0, 1.0], [0.0, 0.5]], batching="independent", engine=engine)
        return [driven.z.detach(), own.z.detach(), *torch.autograd.grad(driven.z.sum() + own.z.sum(), z0)]

    expected = found()
    with torch.device("meta"):
        assert all(torch.equal(x, y) for x, y in zip(found(), expected, strict=True))


def test_derivatives_elsewhere(engine: str) -> None:
    field = network(1)

    def found() -> list[Tensor]:
        z0 = torch.tensor([[0.3, -0.2]], dtype=D, device="cpu", requires_grad=True)

        def end(z: Tensor) -> Tensor:
            return pynode.solve(field, z, [0.0, 1.0], engine=engine).z[-1]

        (grad,) = torch.autograd.grad(end(z0).sum(), z0, create_graph=True)
        (second,) = torch.autograd.grad(grad.square().sum(), z0)
        tangents: Callable[..., Any] = torch.func.jvp
        return [second, tangents(end, (z0.detach(),), (torch.ones_like(z0),))[1].detach()]

    expected = found()
    with torch.device("meta"):
        assert all(torch.equal(x, y) for x, y in zip(found(), expected, strict=True))
