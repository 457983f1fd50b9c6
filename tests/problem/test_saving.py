"""What a solution keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import pynode

D = torch.float64


class Oscillator(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.k = torch.nn.Parameter(torch.tensor(2.0, dtype=D))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.stack([z[:, 1], -self.k * z[:, 0]], 1)


Z0 = torch.tensor([[1.0, 0.0], [0.5, -1.0]], dtype=D)


def exact(k: Tensor, t: Tensor) -> Tensor:
    w = k.sqrt()
    x0, v0 = Z0[:, 0], Z0[:, 1]
    t = t[:, None]
    x = x0 * (w * t).cos() + v0 / w * (w * t).sin()
    v = -x0 * w * (w * t).sin() + v0 * (w * t).cos()
    return torch.stack([x, v], -1)


@pytest.mark.parametrize(
    ("solver", "span"),
    [
        ("dopri5", (0.0, 1.5)),
        ("bosh3", (2.0, 0.5)),
        ("rk4", (2.0, 0.5)),
        pytest.param("adaptive_heun", (0.0, 1.5), marks=pytest.mark.slow),
    ],
)
def test_steps(engine: str, solver: str, span: tuple[float, float]) -> None:
    """As many as the solver counts, with the states and gradients of a solve that reports at these times."""
    field = Oscillator()
    options: dict[str, Any] = {"solver": solver, "engine": engine, "rtol": 1e-5, "atol": 1e-7}
    options |= {"dt": 0.04} if solver == "rk4" else {}
    sol = pynode.solve(field, Z0, span, save="steps", **options)
    assert sol.t[0] == span[0]
    assert sol.t[-1] == span[1]
    assert len(sol.t) == sol.z.shape[0] > 6
    assert bool((sol.t.diff() * (span[1] - span[0]) > 0).all())
    plain = pynode.solve(field, Z0, span, **options)
    assert len(sol.t) == plain.stats.n_accepted + 1
    torch.testing.assert_close(sol.z, exact(field.k, sol.t - span[0]), rtol=0, atol=1e-3)
    again = pynode.solve(field, Z0, sol.t, **options)
    weights = torch.linspace(1, 2, sol.z.numel(), dtype=D).reshape(sol.z.shape)
    ours, theirs = (torch.autograd.grad((x.z * weights).sum(), field.k)[0] for x in (sol, again))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


@pytest.mark.julia
@pytest.mark.parametrize("solver", ["tsit5", "vern7", "rodas5p", "fbdf"])
def test_steps_of_julia(solver: str) -> None:
    field = Oscillator()
    with torch.no_grad():
        sol = pynode.solve(field, Z0, [0.0, 3.0], solver=solver, save="steps", rtol=1e-7, atol=1e-9, engine="julia")
        plain = pynode.solve(field, Z0, [0.0, 3.0], solver=solver, rtol=1e-7, atol=1e-9, engine="julia")
    assert len(sol.t) == plain.stats.n_accepted + 1
    torch.testing.assert_close(sol.z, exact(field.k, sol.t), rtol=0, atol=1e-4)


def test_steps_across_a_jump(engine: str) -> None:
    """The times where it starts afresh are among them."""
    sol = pynode.solve(
        lambda t, z: torch.where(t < 0.7, -z, z), Z0, [0.0, 1.0], save="steps", rtol=1e-6, atol=1e-8, engine=engine
    )
    assert bool((sol.t == 0.7).any())
    assert sol.t.dtype == D
    torch.testing.assert_close(sol.z[-1], Z0 * torch.exp(torch.tensor(-0.4, dtype=D)), rtol=1e-5, atol=0)


def test_steps_to_a_bounce(engine: str) -> None:
    def field(t: Tensor, z: Tensor) -> Tensor:
        return torch.stack([z[:, 1], -9.81 + 0 * z[:, 1]], 1)

    bounce = pynode.Event(
        lambda t, z: z[:, 0].amin(),
        direction=-1,
        terminal=False,
        affect=lambda t, z: torch.stack([0 * z[:, 0], -0.8 * z[:, 1]], 1),
    )
    z0, options = torch.tensor([[1.0, 0.0]], dtype=D), {"event": bounce, "rtol": 1e-8, "atol": 1e-8, "engine": engine}
    sol = pynode.solve(field, z0, [0.0, 1.5], save="steps", **options)
    plain = pynode.solve(field, z0, [0.0, 1.5], **options)
    torch.testing.assert_close(sol.events.t, plain.events.t)
    torch.testing.assert_close(sol.z[-1], plain.z[-1])
    assert len(sol.t) + len(sol.events) > 6
    assert (sol.t[:, None] - sol.events.t).abs().min() > 1e-6


def test_steps_leave_out_events(engine: str) -> None:
    """At these, a solve that reports there would have the state before the jump, or that after it, by chance."""

    def field(t: Tensor, z: Tensor) -> Tensor:
        return torch.stack([-0.7 * z[:, 0], z[:, 0]], 1)

    hit = pynode.Event(
        lambda t, z: z[0, 0] - 0.5, direction=-1, affect=lambda t, z: torch.stack([z[:, 0] + 0.3, z[:, 1]], 1)
    )
    dose = pynode.At([1.25], lambda t, z: z + 0)
    for first in torch.linspace(0.8, 1.6, 5).tolist():
        z0 = torch.tensor([[first, 0.0]], dtype=D)
        sol = pynode.solve(field, z0, [0.0, 2.5], save="steps", event=[hit, dose], engine=engine, rtol=1e-6, atol=1e-8)
        hits = sol.events.t[sol.events.index == 0]
        assert len(hits) >= 1
        assert (sol.t[:, None] - hits).abs().min() > 1e-6
        assert (sol.t == 1.25).any()  # whose time is known
        # A step that goes over a jump shows it.
        for t in hits:
            after = int(torch.searchsorted(sol.t, t))
            assert sol.z[after, 0, 0] > sol.z[after - 1, 0, 0]


def test_a_function_of_the_state(engine: str) -> None:
    """Values and gradients are those of the function of the states that are reported."""
    field, t = Oscillator(), torch.linspace(0, 1, 6, dtype=D)

    def energy(t: Tensor, z: Tensor) -> dict[str, Tensor]:
        assert t.shape == ()
        return {"energy": field.k * z[:, 0] ** 2 + z[:, 1] ** 2, "time": t * 2}

    sol = pynode.solve(field, Z0, t, save=energy, rtol=1e-8, atol=1e-8, engine=engine)
    plain = pynode.solve(field, Z0, t, rtol=1e-8, atol=1e-8, engine=engine)
    expected = field.k * plain.z[..., 0] ** 2 + plain.z[..., 1] ** 2
    assert set(sol.z) == {"energy", "time"}
    torch.testing.assert_close(sol.z["energy"], expected, rtol=0, atol=0)
    torch.testing.assert_close(sol.z["time"], 2 * t)
    torch.testing.assert_close(sol.z_end, plain.z[-1], rtol=0, atol=0)
    weights = torch.rand(6, 2, dtype=D)
    ours, theirs = (torch.autograd.grad((x * weights).sum(), field.k)[0] for x in (sol.z["energy"], expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    assert "(6, 2)" in repr(sol)


def test_of_independent_samples_and_tuples(engine: str) -> None:
    times = torch.tensor([[0.0, 0.5, 1.0], [0.0, 0.2, 0.4]], dtype=D)
    sol = pynode.solve(
        lambda t, z: (-z[0], z[1] * 0 + 1),
        (Z0, torch.zeros(2, dtype=D)),
        times,
        save=lambda t, z: z[0][:, 0] + t,
        rtol=1e-9,
        atol=1e-9,
        engine=engine,
    )
    expected = Z0[:, 0] * torch.exp(-times.T) + times.T
    torch.testing.assert_close(sol.z, expected, rtol=1e-7, atol=1e-7)


def test_each_sample_is_saved_by_its_own_time(engine: str) -> None:
    """The times of all, as a tensor, were multiplied with the features where there were as many of these."""
    z0 = torch.tensor([[0.0, 0.0], [10.0, 20.0]], dtype=D, requires_grad=True)
    times = torch.tensor([[0.0, 1.0, 2.0], [0.0, 3.0, 5.0]], dtype=D, requires_grad=True)

    def save(t: Tensor, z: Tensor) -> dict[str, Tensor]:
        assert (t.shape, z.shape) in (((), (1, 2)), ((), (2, 2)))
        return {"product": t * z, "some": torch.cat([z[:, :1], t * z[:, 1:]], 1), "t": t}

    def solve(z0: Tensor, t: Tensor) -> Any:
        return pynode.solve(lambda t, z: 0 * z + 1, z0, t, save=save, engine=engine).z

    found, alone = solve(z0, times), [solve(z0[b : b + 1], times[b]) for b in range(2)]
    for name in ("product", "some"):
        expected = torch.cat([x[name] for x in alone], 1)
        torch.testing.assert_close(found[name], expected)
        ours, theirs = (
            torch.autograd.grad(x.square().sum(), [z0, times], retain_graph=True) for x in (found[name], expected)
        )
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(found["t"], times.T)
    for wrong in (lambda t, z: z[0], lambda t, z: z.expand(2, 2), lambda t, z: z[:, : 1 + int(t > 2)]):
        with pytest.raises(pynode.InputError, match="return a row"):
            pynode.solve(lambda t, z: 0 * z + 1, z0, times, save=wrong, engine=engine)


def test_refusals(engine: str) -> None:
    field = Oscillator()

    def solve(save: Any, **options: Any) -> Any:
        return pynode.solve(field, Z0, [0.0, 0.1, 0.2], save=save, engine=engine, **options)

    for save, message in (
        (3, "save must be 'times', 'steps' or a callable"),
        ("step", "'steps'"),
        (lambda t, z: 1.0, "save must return a tensor"),
        (lambda t, z: z[: 1 + (t < 0.15)], "the same shapes each time"),
    ):
        with pytest.raises(pynode.InputError) as caught:
            solve(save)
        assert message in str(caught.value)
    with pytest.raises(pynode.InputError, match="steps of their own"):
        solve("steps", batching="independent")


def test_scipys_solvers_do_not_tell_their_steps() -> None:
    with pytest.raises(pynode.EngineUnavailable, match="does not tell its steps"):
        pynode.solve(Oscillator(), Z0, [0.0, 0.1], solver="lsoda", save="steps", engine="torch")


@pytest.mark.parametrize("batching", ["joint", "independent"])
@pytest.mark.parametrize("event", [None, pynode.Event(lambda t, z: (z - 0.9).prod(), affect=lambda t, z: 1.5 * z)])
def test_gradients_to_the_times_that_a_function_reads(engine: str, batching: str, event: Any) -> None:
    """It was given times without their graph, and the gradient lacked a part without a word."""
    if event is not None and batching == "independent":
        event = pynode.Event(lambda t, z: z[:, 0] - 0.9, affect=lambda t, z: 1.5 * z)
    z0 = torch.ones(1, 1, dtype=D)

    def saved(t: Tensor) -> Tensor:
        keywords: dict[str, Any] = {"event": event, "batching": batching, "rtol": 1e-10, "atol": 1e-10}
        sol = pynode.solve(
            lambda t, z: -z * torch.cos(t), z0, t, save=lambda t, z: (z * t, t), engine=engine, **keywords
        )
        return (
            (sol.z[0].flatten() * torch.tensor([1.0, 2.0, 3.0], dtype=D)).sum()
            + sol.z[1].square().sum()
            + sol.t_end.sum()
        )

    t = torch.tensor([0.0, 0.7, 2.0], dtype=D, requires_grad=True)
    (found,) = torch.autograd.grad(saved(t), t)
    eps = 1e-5 * torch.eye(3, dtype=D)
    with torch.no_grad():
        expected = torch.stack([(saved(t + e) - saved(t - e)) / 2e-5 for e in eps])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_times_are_those_asked_for_where_doses_are_learned(engine: str) -> None:
    t, dose = [0.0, 1.0, 2.0], torch.tensor([0.5], dtype=D, requires_grad=True)
    doses = pynode.At(dose, lambda t, z: z + 1)
    how: dict[str, Any] = {"event": doses, "save": lambda t, z: t, "engine": engine}
    sol = pynode.solve(lambda t, z: -z, torch.ones(1, 1, dtype=D), t, **how)
    assert sol.z.tolist() == sol.t.tolist() == t
    assert sol.t_end.item() == 2.0


def test_times_of_a_solution_are_its_own(engine: str) -> None:
    t = torch.tensor([0.0, 1.0], dtype=D, requires_grad=True)
    sol = pynode.solve(lambda t, z: -z, torch.ones(1, 1, dtype=D), t, engine=engine)
    with torch.no_grad():
        t.mul_(2)
    assert sol.t.tolist() == [0.0, 1.0]
    assert sol.t_end.item() == 1.0
    assert not sol.t.requires_grad
