"""Solves of every kind, each of which gives the same numbers, counts and refusals whenever it is made again."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from problems import MLP, Driven, Pair
from torch import Tensor, nn

import pynode

Result = list[Any]  # of tensors, counts and messages
Case = Callable[[], tuple[Result, Any]]  # the second is what a user may hold for a while

SOLVERS = {"julia": ["tsit5", "dopri5", "vern7", "rk4"], "torch": ["dopri5", "bosh3", "dopri8", "rk4"]}
STIFF = {"julia": ["rosenbrock23"], "torch": ["bdf"]}  # not lsoda: SciPy 1.17's own loses memory at each solve
SENSITIVITIES = {
    "julia": ["discrete", "discrete", "gauss", "interpolating", "backsolve", pynode.Discrete(memory="64KiB")],
    "torch": ["discrete", "discrete", "backsolve"],
}


class Explodes(nn.Module):
    """z' = z²: NaN and infinity soon after t = 1, from 1."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.w * z**2


class Raises(nn.Module):
    """Raises in the midst of a solve, or when it is traced."""

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        if float(t.detach()) > 0.5:
            raise ZeroDivisionError("no further than 0.5")
        return -z


class WrongShape(nn.Module):
    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return z[:, :1]


FIELDS = {"mlp": MLP, "driven": Driven, "pair": Pair}


def cases(engine: str, n: int, *, stiff: bool, continuous: bool) -> list[Case]:
    """The failures, and `n` solves that differ in field, shapes, type, times, solver, sensitivity and what is asked.

    Args:
        engine: what solves.
        n: how many solves.
        stiff: stiff solvers too, and
        continuous: continuous adjoints, which take Julia half a minute to compile.
    """
    drawn = random.Random(0)
    solvers = SOLVERS[engine] + (STIFF[engine] if stiff else [])
    sensitivities = SENSITIVITIES[engine] if continuous else ["discrete"]
    found = failures(engine, continuous)
    for k in range(n):
        solver = drawn.choice(solvers)
        how: dict[str, Any] = {"solver": solver, "engine": engine, "rtol": 1e-2, "atol": 1e-3}
        if solver == "rk4":
            how["dt"] = drawn.choice([0.1, 0.23])
        kind = drawn.choice(["value", *3 * ["gradient"], "independent", "dense", "event", "cost", "doses", "steps"])
        if kind == "gradient":
            how["sensitivity"] = drawn.choice(sensitivities)
            if solver in STIFF[engine]:
                how["sensitivity"] = "gauss" if engine == "julia" else "backsolve"
        if solver in STIFF[engine] and kind != "gradient":
            kind = "value"
        times = [0.0, *sorted(drawn.uniform(0.1, 1.0) for _ in range(drawn.choice([1, 2, 5])))]
        if drawn.random() < 0.3:
            times.reverse()
        name = drawn.choice(list(FIELDS))
        dtype = drawn.choice([torch.float32, torch.float64])
        # SciPy evaluates the field for each column of its Jacobian.
        batch = drawn.randint(1, 5 if solver in STIFF[engine] else 100)
        found.append(one(name, kind, batch, dtype, times, how, k))
    return found


def one(
    name: str, kind: str, batch: int, dtype: torch.dtype, times: list[float], how: dict[str, Any], seed: int
) -> Case:
    if kind == "independent":
        how["batching"], batch = "independent", batch % 3 + 1

    def drawn() -> tuple[nn.Module, Any, tuple[Tensor, ...]]:
        g = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        z0 = torch.randn(batch, 1 if name == "driven" else 2, generator=g, dtype=dtype)
        args = (torch.randn(batch, 1, generator=g, dtype=dtype),) if name == "driven" else ()
        return FIELDS[name](dtype), ((z0, z0[:, 0].clone()) if name == "pair" else z0), args

    ours = drawn()

    def run() -> tuple[Result, Any]:
        field, z0, args = ours if seed % 2 else drawn()  # the same field again, or a new one of the same numbers
        states = z0 if isinstance(z0, tuple) else (z0,)
        wanted = [] if kind == "value" else [*states, *args, *field.parameters()]
        for x in wanted:
            x.requires_grad_()
        options = dict(how)
        if kind == "dense":
            options["dense"] = True
        if kind == "event":
            options["event"] = lambda t, z, *_: t - sum(times) / len(times) + 0 * first(z).sum()
        if kind == "doses":
            middle = (times[0] + times[-1]) / 2
            switch = pynode.Event(lambda t, z, *_: t - middle + 0 * first(z).sum(), affect=jumped)
            options["event"] = [pynode.At(torch.tensor([0.9 * middle]), jumped), switch]
        if kind == "steps":
            options["save"] = "steps"
        if kind == "cost":
            options["running_cost"] = lambda t, z, *_: first(z).square().sum(1)
        enabled = torch.is_grad_enabled()
        try:  # torch's context managers are Python code, which an interrupt may cut in two
            torch._C._set_grad_enabled(bool(wanted))
            sol = pynode.solve(field, z0, torch.tensor(times), args=args, **options)
        finally:
            torch._C._set_grad_enabled(enabled)
        out = sol.z if isinstance(sol.z, tuple) else (sol.z,)
        if kind == "dense":
            inner = sol((times[0] + times[-1]) / 2)
            out = (*out, *(inner if isinstance(inner, tuple) else (inner,)))
        if kind == "event":
            out = (*out, sol.t_end)
        if kind == "cost":
            out = (*out, sol.running_cost)
        result: Result = [x.detach().clone() for x in out]
        if wanted:
            total = sum(x.square().sum() for x in out)
            result += torch.autograd.grad(total, wanted, allow_unused=True)
        s = sol.stats
        return [*result, s.nfe, s.nfe_backward, s.n_accepted, s.n_rejected, sol.retcode, len(sol.events or ())], sol

    return run


def jumped(t: Tensor, z: Any, *_: Tensor) -> Any:
    return tuple(1.5 * x for x in z) if isinstance(z, tuple) else 1.5 * z


def first(z: Any) -> Tensor:
    x: Tensor = z[0] if isinstance(z, tuple) else z
    return x


def failures(engine: str, continuous: bool) -> list[Case]:
    z0 = torch.ones(3, 2, dtype=torch.float64)

    def fails(call: Callable[[], Any]) -> Case:
        def run() -> tuple[Result, Any]:
            torch.manual_seed(0)
            try:
                sol = call()
            except (pynode.PyNODEError, ZeroDivisionError) as error:
                return [type(error).__name__, str(error)], None
            s = sol.stats
            return [sol.z.detach(), sol.z_end.detach(), s.nfe, s.n_accepted, s.n_rejected, sol.retcode], sol

        return run

    def solve(field: nn.Module, end: float = 2.0, start: Tensor = z0, **options: Any) -> Any:
        return pynode.solve(field, start.clone().requires_grad_(), [0.0, 0.5, end], **{"engine": engine, **options})

    def backward(field: nn.Module, **options: Any) -> None:
        sol = solve(field, **options)
        sol.z[torch.isfinite(sol.z)].sum().backward()

    found = [
        lambda: solve(MLP(), max_steps=1),
        lambda: solve(MLP(), max_steps=1, throw=False),
        lambda: solve(MLP(), max_steps=1, throw=False, batching="independent"),
        lambda: solve(Explodes(), rtol=1e-2),
        lambda: solve(Explodes(), throw=False, solver="rk4", dt=0.02),
        lambda: backward(Explodes(), throw=False, solver="rk4", dt=0.1),
        lambda: solve(Raises()),
        lambda: solve(WrongShape()),
        lambda: solve(MLP(), start=z0 * float("nan")),
        lambda: solve(MLP(), solver="tsit"),
        lambda: solve(MLP(), event=lambda t, z: t + 1 + 0 * z.sum()),
    ]
    if continuous:
        how: dict[str, Any] = {"sensitivity": "backsolve", "max_steps": 12, "rtol": 1e-2}
        found.append(lambda: backward(Explodes(), end=0.97, **how))
    if engine == "julia":
        raises = pynode.JuliaField(
            '(u, p, t) -> t > 0.5 ? error("no further than 0.5") : -p .* u', torch.ones(1).double()
        )
        found.append(lambda: solve(raises, sensitivity="discrete"))
    return [fails(call) for call in found]


def same(a: Result, b: Result) -> bool:
    """To the bit, NaN included."""

    def equal(x: Any, y: Any) -> bool:
        if not isinstance(x, Tensor):
            return bool(x == y)
        return (
            x.dtype == y.dtype
            and x.shape == y.shape
            and torch.equal(x.nan_to_num(nan=1.5e30), y.nan_to_num(nan=1.5e30))
        )

    return len(a) == len(b) and all(map(equal, a, b))
