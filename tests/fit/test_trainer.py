"""Training steps in one call are those of the usual loop, and leave the optimiser as that would."""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

import pynode
from pynode.errors import EngineUnavailable, InputError, SolveError
from pynode.fit import trainer

T = torch.linspace(0, 1, 5, dtype=torch.float64)
TARGET = torch.linspace(-1, 1, 30, dtype=torch.float64).reshape(5, 3, 2).sin()
HOW = {"solver": "dopri5", "rtol": 1e-3, "atol": 1e-3}


class Model(nn.Module):
    """A field, a decoder that the loss reads, a conditioning tensor and a state, all of which are trained."""

    def __init__(self) -> None:
        super().__init__()
        self.field = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2))
        self.decoder = nn.Linear(2, 2)
        self.shared = nn.Parameter(torch.tensor([0.3, -0.2]))
        self.scale = nn.Parameter(torch.ones(2))
        self.z0 = nn.Parameter(torch.linspace(-1, 1, 6).reshape(3, 2))
        self.double()

    def rates(self, t: Tensor, z: Tensor, scale: Tensor) -> Tensor:
        return self.field(z) * scale + self.shared * torch.sin(t)

    def loss(self, z: Tensor) -> Tensor:
        return ((self.decoder(z) + self.shared - TARGET) ** 2).mean()


def loop(model: Model, optimizer: Optimizer, steps: int, **how: Any) -> Tensor:
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model.loss(pynode.solve(model.rates, model.z0, T, args=(model.scale,), **HOW, **how).z)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "adam": lambda p: Adam(p, lr=0.02, weight_decay=0.1, betas=(0.8, 0.99)),
    "adamw": lambda p: AdamW(p, lr=0.02, weight_decay=0.1),
    "sgd": lambda p: SGD(p, lr=0.05),
    "momentum": lambda p: SGD(p, lr=0.02, momentum=0.9, dampening=0.2, weight_decay=0.1),
    "nesterov": lambda p: SGD(p, lr=0.02, momentum=0.9, nesterov=True),
    "maximize": lambda p: SGD(p, lr=0.01, maximize=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_those_of_a_loop(engine: str, name: str) -> None:
    """Losses, tensors and what the optimiser remembers; also when loop and trainer take turns."""
    ours, plain = Model(), Model()
    plain.load_state_dict(ours.state_dict())
    of_ours, of_plain = (OPTIMIZERS[name](model.parameters()) for model in (ours, plain))
    train = trainer(ours.rates, ours.loss, ours.z0, T, of_ours, args=(ours.scale,), engine=engine, **HOW)
    found = torch.cat([train(3), loop(ours, of_ours, 2, engine=engine), train(2)])
    torch.testing.assert_close(found, loop(plain, of_plain, 7, engine=engine), rtol=1e-9, atol=0)
    for x, y in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-12)
        for key, kept in of_plain.state[y].items():
            if isinstance(kept, Tensor):
                torch.testing.assert_close(of_ours.state[x][key], kept, rtol=1e-8, atol=1e-12)
    assert train.stats.nfe > 0
    assert train.stats.nfe_backward


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", [{"solver": "rk4", "dt": 0.1}, {"solver": "tsit5"}])
@pytest.mark.julia
def test_to_rounding(dtype: torch.dtype, solver: dict[str, Any]) -> None:
    """Against the loop on the same engine."""
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)
    other, z0, target = copy.deepcopy(net), torch.randn(4, 2, dtype=dtype), TARGET[:, :1].to(dtype)
    train = trainer(net, lambda z: ((z - target) ** 2).mean(), z0, T, "adam", lr=0.01, engine="julia", **solver)
    losses, optimizer = train(10), Adam(other.parameters(), lr=0.01)
    for expected in losses:
        optimizer.zero_grad()
        loss = ((pynode.solve(other, z0, T, engine="julia", sensitivity="discrete", **solver).z - target) ** 2).mean()
        loss.backward()
        optimizer.step()
        torch.testing.assert_close(loss.detach(), expected)
    for x, y in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(x, y)


def test_a_tensor_in_several_places(engine: str) -> None:
    """State, conditioning tensor, field and loss all have the same one: dx/dt = a x + a from a, the loss a x(1)."""
    z = nn.Parameter(torch.tensor([[0.4]], dtype=torch.float64))
    how = {"solver": "rk4", "dt": 0.05, "engine": engine}
    train = trainer(
        lambda t, x, y: x * y + z, lambda x: (x[-1] * z).sum(), z, [0.0, 1.0], SGD([z], lr=0.1), args=(z,), **how
    )
    train(1)
    start = torch.tensor([[0.4]], dtype=torch.float64, requires_grad=True)
    end = (start + 1) * start.exp() - 1  # of dx/dt = a x + a from x(0) = a
    (gradient,) = torch.autograd.grad(end * start, start)
    torch.testing.assert_close(z.detach(), (start - 0.1 * gradient).detach(), rtol=1e-6, atol=0)


def test_it_learns_the_frequency_of_an_oscillator(engine: str) -> None:
    """A field with one unknown number, from its exact solution."""
    ω = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
    t = torch.linspace(0, 2, 9, dtype=torch.float64)
    exact = torch.stack([torch.cos(2 * t), -2 * torch.sin(2 * t)], -1)[:, None]
    train = trainer(
        lambda t, z: torch.stack([z[:, 1], -(ω**2) * z[:, 0]], -1),
        lambda z: ((z - exact) ** 2).mean(),
        exact[0],
        t,
        lr=0.05,
        rtol=1e-6,
        engine=engine,
    )
    losses = train(80)
    assert losses.shape == (80,)
    assert ω.item() == pytest.approx(2, abs=0.02)
    assert losses[-1] < 1e-3 * losses[0]


def test_what_stops_it_leaves_the_last_good_step(engine: str) -> None:
    z0, weight = torch.ones(1, 1, dtype=torch.float64), nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    optimizer = SGD([weight], lr=2.0, maximize=True)  # grows, until the solution overflows
    train = trainer(
        lambda t, z: weight * z**2, lambda z: z[-1].sum(), z0, [0.0, 0.5], optimizer, max_steps=200, engine=engine
    )
    with pytest.raises(SolveError, match=r"training stopped after [1-9]"):
        train(20)
    done = len(train.losses)
    assert 0 < done < 20
    assert bool(train.losses.isfinite().all())
    # The solution is 1 / (1 - w / 2), and w the sum of its derivatives.
    expected = torch.tensor(1.0, dtype=torch.float64)
    for _ in range(done):
        expected = expected + 2 * 0.5 / (1 - expected / 2) ** 2
    assert weight.item() == pytest.approx(expected.item(), rel=0.05)


def test_settings_are_looked_at_in_each_call(engine: str) -> None:
    weight = nn.Parameter(torch.tensor(1.0))
    optimizer = SGD([weight], lr=0.1)
    z0, t = torch.ones(1, 1), [0.0, 1.0]
    train = trainer(lambda t, z: weight * z, lambda z: z[-1].sum(), z0, t, optimizer, engine=engine)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.0)
    train(1)
    scheduler.step()  # warns where no step has been done
    before = weight.item()
    train(2)
    assert weight.item() == before


def test_a_graph_from_before_is_not_stale(engine: str) -> None:
    """Autograd knows that the tensors have changed."""
    weight = nn.Parameter(torch.tensor(1.0))
    square = weight**2
    trainer(lambda t, z: weight * z, lambda z: z[-1].sum(), torch.ones(1, 1), [0.0, 1.0], engine=engine)(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        square.backward()


@pytest.mark.julia
def test_an_interrupt_leaves_whole_steps(interruptible: None) -> None:
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    z0, optimizer = torch.ones(1, 2, dtype=torch.float64), Adam(net.parameters())
    train = trainer(net, lambda z: z[-1].square().sum(), z0, [0.0, 1.0], optimizer, engine="julia")
    train(1)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    with pytest.raises(KeyboardInterrupt):
        train(10**8)
    done = len(train.losses)
    assert done > 1
    assert int(optimizer.state[net[0].weight]["step"]) == done + 1
    again = pynode.solve(net, z0, [0.0, 1.0], engine="julia", sensitivity="discrete").z[-1].square().sum().detach()
    assert train(1)[0] == pytest.approx(again.item(), rel=1e-12)


def test_times_are_trained_in_python() -> None:
    net, loss, z0 = nn.Linear(1, 1), lambda z: (z[-1] - 3).square().mean(), torch.ones(4, 1)
    times = [nn.Parameter(torch.tensor([0.0, 1.0])) for _ in range(2)]
    trainer(copy.deepcopy(net), loss, z0, times[0], "sgd", lr=0.01, engine="torch")(3)
    optimizer = SGD([times[1], *net.parameters()], lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        loss(pynode.solve(net, z0, times[1], engine="torch").z).backward()
        optimizer.step()
    assert torch.equal(times[0], times[1])
    assert not torch.equal(times[0], torch.tensor([0.0, 1.0]))


def test_what_is_refused() -> None:
    field, z0, t = nn.Linear(1, 1), torch.ones(1, 1), [0.0, 1.0]

    def of(**changed: Any) -> Any:
        given = {"field": field, "loss": lambda z: z.sum(), "z0": z0, "t": t, "engine": "torch", **changed}
        return trainer(**given)

    with pytest.raises(InputError, match="unknown optimizer 'adm': expected one of 'adam'"):
        of(optimizer="adm")
    with pytest.raises(InputError, match="lr is that of the optimizer"):
        of(optimizer=SGD(field.parameters(), lr=0.1), lr=0.1)
    with pytest.raises(InputError, match="the loss must be a scalar tensor"):
        of(loss=lambda z: z[-1].repeat(2, 1))
    with pytest.raises(InputError, match="nothing to train"):
        of(field=lambda t, z: -z)
    with pytest.raises(InputError, match="z0 must be one real tensor"):
        of(z0=(z0, z0))
    with pytest.raises(InputError, match="steps must be a positive int"):
        of()(0)
    learned = nn.Parameter(torch.tensor(1.0))
    for name, computed in (("z0", learned * z0), ("t", learned * torch.tensor([0.0, 1.0])), ("args", [learned * 2])):
        with pytest.raises(InputError, match=rf"{name}.* was computed from tensors that require a gradient"):
            of(field=lambda t, z, *args: field(z), **{name: computed})


def test_tensors_that_are_not_trained_get_no_gradient(engine: str) -> None:
    """Those of the model that the optimizer does not have."""
    model = Model()
    reference = copy.deepcopy(model)
    fitted = trainer(
        model.rates,
        model.loss,
        model.z0,
        T,
        SGD(model.field.parameters(), lr=0.05),
        args=(model.scale,),
        engine=engine,
        **HOW,
    )
    fitted(3)
    assert all(p.grad is None for p in model.parameters())
    loop(reference, SGD(reference.field.parameters(), lr=0.05), 3, engine=engine)
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


def test_what_cannot_be_trained_is_refused(engine: str) -> None:
    model = Model()

    def make(loss: Any = model.loss, optimizer: Any = "adam") -> Any:
        return trainer(model.rates, loss, model.z0, T, optimizer, args=(model.scale,), engine=engine, **HOW)

    with pytest.raises(InputError, match="LBFGS needs a closure"):
        make(optimizer=torch.optim.LBFGS(model.parameters()))
    with pytest.raises(InputError, match="there is no gradient"):
        make(loss=lambda z: z.detach().sum())
    for steps in (True, 0, 1.0):
        with pytest.raises(InputError, match="steps must be a positive int"):
            make()(steps)


@pytest.mark.julia
def test_what_julia_would_leave_out_is_refused() -> None:
    def of(optimizer: Optimizer, field: Any = None) -> Any:
        return trainer(field or net, lambda z: z.sum(), torch.ones(1, 1), [0.0, 1.0], optimizer, engine="julia")(1)

    net = nn.Linear(1, 1)
    with pytest.raises(EngineUnavailable, match=r"trains by torch\.optim\.SGD"):
        of(torch.optim.RMSprop(net.parameters()))
    with pytest.raises(EngineUnavailable, match="amsgrad=True"):
        of(Adam(net.parameters(), amsgrad=True))
    start = nn.Parameter(torch.tensor(0.5))
    with pytest.raises(EngineUnavailable, match="jumps where it compares t"):
        of(SGD([start], lr=0.1), lambda t, z: torch.where(t > start, z, -z))
    computed = start * 2
    with pytest.raises(InputError, match="computed from others"):
        of(SGD([start], lr=0.1), lambda t, z: computed * z)
    t = nn.Parameter(torch.tensor([0.0, 1.0]))
    for optimizer in (SGD([t, *net.parameters()], lr=0.1), "sgd"):
        with pytest.raises(EngineUnavailable, match="does not train t"):
            trainer(net, lambda z: z.sum(), torch.ones(1, 1), t, optimizer, engine="julia")(1)
    end = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(EngineUnavailable, match="does not train t"):
        trainer(net, lambda z: z.sum(), torch.ones(1, 1), [0.0, end], SGD([end], lr=0.1), engine="julia")(1)
    hook = net.weight.register_hook(lambda g: g)
    with pytest.raises(EngineUnavailable, match="hooks on its gradient"):
        of(SGD(net.parameters(), lr=0.1))
    hook.remove()
    every = register_optimizer_step_post_hook(lambda *_: None)
    with pytest.raises(EngineUnavailable, match="the optimizer has hooks"):
        of(SGD(net.parameters(), lr=0.1))
    every.remove()
    optimizer = SGD(net.parameters(), lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 3)  # counts the steps by one in their place
    of(optimizer)
    optimizer.step = lambda closure=None: None  # type: ignore[method-assign]
    with pytest.raises(EngineUnavailable, match="step has been replaced"):
        of(optimizer)
