"""`solve_sde`: stochastic differential equations, on either engine."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.derivatives.run import Failed
from pynode.derivatives.stochastic import StochasticRun, differentiable_sde
from pynode.engine.choose_stochastic import choose_stochastic
from pynode.engine.protocol import Retcode
from pynode.engine.stochastic import StochasticProblem
from pynode.errors import EngineUnavailable, InputError, SolveError
from pynode.field._kept import check_no_cache
from pynode.field._outside import is_recording, lacks_values, outside_of_compile
from pynode.problem.inputs import check_args, check_count, check_number, check_state, check_times
from pynode.problem.late import once_known
from pynode.problem.precision import autocast_dtype
from pynode.problem.state import TENSOR
from pynode.problem.stochastic import check_kind, check_noise, diffusion_field, drift_field
from pynode.solution import Solution, times_of
from pynode.torch_state import leaves_thread_state
from pynode.transforms import is_active, is_wrapped, moves

__all__ = ["solve_sde"]


@outside_of_compile
@leaves_thread_state
def solve_sde(
    drift: Callable[..., Any],
    diffusion: Callable[..., Any],
    z0: Tensor,
    t: Tensor | Sequence[float],
    *,
    noise: str = "diagonal",
    calculus: str = "ito",
    args: Sequence[Tensor] = (),
    solver: str = "auto",
    dt: float | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    seed: int | None = None,
    sensitivity: str = "auto",
    running_cost: Callable[..., Tensor] | None = None,
    max_steps: int = 100_000,
    engine: str = "auto",
    throw: bool = True,
) -> Solution:
    """Solve dz = f(t, z, *args) dt + g(t, z, *args) dW from z(t[0]) = z0, differentiably.

    Each sample has Brownian motions W of its own, which depend on `seed`, the shapes and the steps alone. Gradients
    flow to `z0`, to the parameters of drift, diffusion and running cost, and to `args`, with the path of W held.

    Args:
        drift: f, an `nn.Module` or a callable `f(t, z, *args)` in the shape of `z`, or `f(z)`, as a field of `solve`.
        diffusion: g, called likewise; of the shape that `noise` says.
        z0: `(batch, *features)`, one tensor, float32 or float64.
        t: `(time,)`, strictly increasing, without a gradient. Every solver steps exactly to each entry.
        noise: `"diagonal"`: g has the shape of z, and each of its numbers a Brownian motion. `"additive"`: g does not
            depend on z; it has the shape of z, or `(batch, *features, channels)`. `"general"`: g is
            `(batch, *features, channels)`, and a sample has so many Brownian motions; `"scalar"`: it has one,
            `(batch, *features, 1)`.
        calculus: `"ito"` or `"stratonovich"`.
        args: tensors that condition drift and diffusion.
        solver: a name from `pynode.sde_solvers()`, or `"auto"`, the one of the highest order for the noise.
        dt: the step, from each `t[i]`, the last one cut to end on `t[i + 1]`; with tolerances, the first step.
        rtol: relative tolerance. With this or `atol` the julia engine's solver chooses its steps, one size for the
            whole batch; the noise of steps that are rejected is kept. The one that is left out is 1e-2.
        atol: absolute tolerance.
        seed: of the noise, at least 0; the same seed gives the same solution on the same machine and versions. Drawn by
            PyTorch's generator where `None`.
        sensitivity: `"discrete"`, the exact derivative of the steps that were taken; or `"backsolve"`, the stochastic
            adjoint, whose error goes to zero with the steps. On torch it is torchsde's, and its memory does not grow
            with the steps; on julia it solves back by `euler_heun`, in the sense of Stratonovich only, and keeps the
            noise of each step and the states at `t` alone; where it does not come back to those, by a tenth of the
            largest number, it raises a `SolveError`.
        running_cost: `l(t, z, *args) -> (batch,)`; its integral over `t` is `Solution.running_cost`.
        max_steps: the number of steps, accepted or not, after which the solve is given up.
        engine: `"julia"` (StochasticDiffEq on the traced drift and diffusion), `"torch"` (torchsde), or `"auto"`.
        throw: whether a failed integration raises, rather than come back with its `retcode`.

    Returns:
        The solution; it has `seed`, and no interpolant.

    Raises:
        InputError: an argument is not usable, or the diffusion depends on the state as its noise must not.
        FieldError: drift, diffusion or running cost return a wrong shape, dtype or device.
        TraceError: the julia engine cannot have a graph of drift or diffusion.
        EngineUnavailable: the engine is not there, or lacks what is asked for.
        SolveError: the integration did not reach the last time.

    Source:
        P. E. Kloeden, E. Platen, "Numerical Solution of Stochastic Differential Equations", Springer 1992; A. Rößler,
        "Runge-Kutta methods for the strong approximation of solutions of stochastic differential equations", SIAM J.
        Numer. Anal. 48 (2010); C. Rackauckas, Q. Nie, "Stability-optimized high order methods and stiffness detection
        for pathwise stiff stochastic differential equations", IEEE HPEC 2020 (SOSRI, SOSRA); X. Li, T.-K. L. Wong, R.
        T. Q. Chen, D. Duvenaud, "Scalable gradients for stochastic differential equations", AISTATS 2020 (backsolve).
    """
    if not isinstance(z0, Tensor) or z0.is_complex():
        got = f"dtype {z0.dtype}" if isinstance(z0, Tensor) else type(z0).__name__
        raise InputError(
            f"z0 must be one real tensor (batch, *features), got {got}. Put the parts of a state side by side, with "
            "torch.cat"
        )
    if z0.dim() == 0 or z0.numel() == 0:
        raise InputError(f"z0 must be (batch, *features), not empty, got shape {tuple(z0.shape)}")
    recording = is_recording() or lacks_values()
    if recording or autocast_dtype((z0,)) is not None:
        what = "while it is recorded" if recording else "under autocast"
        raise EngineUnavailable(f"solve_sde does not work {what}: call it outside of that context")
    check_kind(noise, calculus)
    numbers = {"dt": dt, "rtol": rtol, "atol": atol}
    dt, rtol, atol = (None if x is None else check_number(name, x) for name, x in numbers.items())
    adaptive = not (rtol is None and atol is None)
    if dt is None and not adaptive:
        raise InputError("a solve of an SDE needs the step dt=…, or rtol=… or atol=… for steps of the solver's choice")
    if adaptive:
        rtol, atol = 1e-2 if rtol is None else rtol, 1e-2 if atol is None else atol
    check_count("max_steps", max_steps, "10_000")
    solve = functools.partial(
        _solve,
        drift,
        diffusion,
        z0,
        t,
        noise=noise,
        calculus=calculus,
        args=args,
        solver=solver,
        dt=dt,
        rtol=rtol,
        atol=atol,
        seed=_seed(seed),
        sensitivity=sensitivity,
        running_cost=running_cost,
        max_steps=max_steps,
        engine=engine,
        throw=throw,
    )
    return once_known(solve)


def _seed(seed: int | None) -> int:
    if seed is None:
        return int(torch.randint(2**62, (), device="cpu"))
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InputError(f"seed must be an int from 0 to 2**63 - 1, or None, got {seed!r}")
    return seed


def _check_resolved(z: Tensor, t: Sequence[float]) -> None:
    """Refuse times that drift and diffusion, which get them in the state's dtype, could not tell apart."""
    least = min(b - a for a, b in itertools.pairwise(t))
    resolved = torch.finfo(z.dtype).eps * max(abs(t[0]), abs(t[-1]))
    if resolved > 1e-3 * least:
        raise InputError(
            f"t has entries {least:.3g} apart, and near {t[-1]:.6g} the dtype of the state, {z.dtype}, resolves "
            f"{resolved:.3g}: subtract a reference from the times, or use a state in torch.float64"
        )


def _solve(
    drift: Callable[..., Any],
    diffusion: Callable[..., Any],
    z0: Tensor,
    t: Tensor | Sequence[float],
    *,
    noise: str,
    calculus: str,
    args: Sequence[Tensor],
    solver: str,
    dt: float | None,
    rtol: float | None,
    atol: float | None,
    seed: int,
    sensitivity: str,
    running_cost: Callable[..., Tensor] | None,
    max_steps: int,
    engine: str,
    throw: bool,
) -> Solution:
    (z,) = check_state(TENSOR, (z0,))
    given, numbers = check_times(t, z)
    if given.dim() != 1 or numbers[1] < numbers[0]:
        raise InputError(f"t must be 1-d and strictly increasing, got shape {tuple(given.shape)} from {numbers[0]}")
    if given.requires_grad:
        raise InputError("solve_sde has no gradient to the times: pass t.detach()")
    times = given.double()
    _check_resolved(z, numbers)
    args = check_args(args)
    chosen, info, how = choose_stochastic(engine, solver, noise, calculus, rtol is not None, sensitivity)
    if is_active() and any(is_wrapped(x) or moves(x) for x in (z, times, *args)):
        raise EngineUnavailable(
            "solve_sde has gradients by backward() and torch.autograd.grad, and none by torch.func's transforms or "
            "dual numbers"
        )
    values = tuple(a.detach() for a in args)
    f = drift_field(drift, running_cost, z.detach(), times, values)
    g, channels = diffusion_field(diffusion, noise, z.detach(), times, values)
    state = (z,) if running_cost is None else (z, z.new_zeros(len(z)))
    inputs = (*state, *args, *f.parameters, *g.parameters)
    wants = tuple(torch.is_grad_enabled() and x.requires_grad for x in inputs)
    for field in (f, g):
        check_no_cache(field.facts.cached, zip(field.names, field.parameters, strict=True))
    problem = StochasticProblem(
        drift=f,
        diffusion=g,
        z0=tuple(x.detach() for x in state),
        t=times.detach(),
        args=values,
        channels=channels,
        noise=noise,
        calculus=calculus,
        solver=info,
        rtol=rtol,
        atol=atol,
        dt=dt,
        max_steps=max_steps,
        seed=seed,
        sensitivity=how if any(wants) else None,
        wants=wants,
    )
    check_noise(g, noise, info.entrywise, problem.diffusion_state, problem.t, values, info.name)
    run = StochasticRun(chosen, problem, throw)
    states: tuple[Tensor, ...] = ()
    with contextlib.suppress(Failed):  # of which the run tells
        states = differentiable_sde(run, inputs) if any(wants) else run.solve()
    done = run.integration
    failed_at = None
    if done.retcode is not Retcode.SUCCESS:
        assert done.z_end is not None
        t_end = times.new_tensor(done.t_end if math.isfinite(done.t_end) else float(times[0])).to(given)
        failed_at = t_end, done.z_end[:1]
        if throw:
            name = getattr(drift, "__qualname__", type(drift).__name__)
            raise SolveError(
                f"the SDE with drift {name} by {info.name} on the {chosen.name} engine stopped at "
                f"t={float(t_end):.6g}: {done.retcode.value}",
                done.retcode,
                t_end,
                done.z_end[0],
            )
    cost = None if running_cost is None else states[1][-1]
    return Solution(
        **times_of(given),
        z=states[0],
        running_cost=cost,
        stats=done.stats,
        retcode=done.retcode,
        engine=chosen.name,
        solver=info.name,
        seed=seed,
        _failed_at=failed_at,
    )
