"""Training steps of a field on trajectories: solve, loss, gradient and update, many in one call into Julia."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from pynode.engine.choose import choose
from pynode.engine.julia.call import Floats
from pynode.engine.julia.memory import in_order
from pynode.engine.julia.training import Trained
from pynode.engine.protocol import Problem, Retcode, Stats
from pynode.errors import EngineUnavailable, InputError, SolveError
from pynode.field import Field
from pynode.field._derived import derived_field
from pynode.fit._optimizer import check_native, optimizer_of, remember, updates_of
from pynode.problem.inputs import check_args, check_count, check_number, check_times
from pynode.problem.solved_field import solved_field
from pynode.problem.state import state_of, with_args
from pynode.solve import solve

__all__ = ["Trainer", "trainer"]

_LOOP = "train in a loop of solve, backward and optimizer.step(), or pass engine='torch'"


def trainer(
    field: Callable[..., Any],
    loss: Callable[[Tensor], Tensor],
    z0: Tensor,
    t: Tensor | Sequence[float],
    optimizer: str | Optimizer = "adam",
    *,
    lr: float | None = None,
    args: Sequence[Tensor] = (),
    solver: str = "auto",
    rtol: float = 1e-3,
    atol: float = 1e-6,
    dt: float | None = None,
    max_steps: int = 10_000,
    engine: str = "auto",
) -> Trainer:
    """Prepare the training of a field on trajectories, many steps of which are one call.

    A step solves from `z0` over `t`, evaluates `loss` of the solution, differentiates it by the discrete adjoint, and
    updates by the optimiser. On the julia engine the loss is traced as the field is, and steps are done in Julia, which
    writes to the memory of the torch tensors: small models spend most of a step in Python and autograd otherwise. The
    numbers are those of the usual loop, to rounding. On the torch engine it is that loop.

    Args:
        field: `f(t, z, *args)`, as `pynode.solve` takes it.
        loss: `loss(z)`, a scalar, of the solution `(time, batch, *features)`. What it reads besides, data and modules,
            it captures; its parameters are trained too.
        z0: `(batch, *features)`, float32 or float64; trained if it requires a gradient and the optimiser has it.
        t: `(time,)`, strictly monotone; trained as `z0`, on the torch engine alone.
        optimizer: a `torch.optim.SGD`, `Adam` or `AdamW` (on torch any other that steps without a closure). Its state
            stays its own: training may go on with it, here or in a loop of one's own. Its settings are looked at in
            each call, so that a scheduler may change them in between. Or `"sgd"`, `"adam"`, `"adamw"`, of all that
            requires a gradient.
        lr: the learning rate where the optimiser is given by name; 1e-3 where `None`.
        args: tensors that condition the field; trained as `z0`.
        solver: an explicit solver's name.
        rtol: relative tolerance.
        atol: absolute tolerance.
        dt: step of a fixed-step solver, or first step of an adaptive one.
        max_steps: bound on the steps of a solve.
        engine: `"auto"`, `"julia"` or `"torch"`.

    Returns:
        A `Trainer`: `trainer(steps)` trains. It leaves no gradients in `.grad`.

    Raises:
        InputError: an argument is not usable.
        EngineUnavailable: the engine is not there, or has not the solver, the optimiser or its settings, or a tensor's
            hooks would not be called.
        TraceError: the loss or the field cannot be turned into a graph.
        SolveError: a first solve did not reach the last time.
    """
    return Trainer(field, loss, z0, t, optimizer, lr, args, (solver, rtol, atol, dt, max_steps, engine))


class Trainer:
    """Training steps that are ready to be done; made by `pynode.fit.trainer`.

    Attributes:
        optimizer: the `torch.optim.Optimizer`.
        losses: `(steps,)`, those of the steps that the last call has done, also where it was interrupted or failed.
        stats: of the last call: evaluations of the field and of its products, and seconds, in all steps together.
    """

    def __init__(
        self,
        field: Callable[..., Any],
        loss: Callable[[Tensor], Tensor],
        z0: Tensor,
        t: Tensor | Sequence[float],
        optimizer: str | Optimizer,
        lr: float | None,
        args: Sequence[Tensor],
        options: tuple[str, float, float, float | None, int, str],
    ) -> None:
        if not callable(loss):
            raise InputError(f"loss must be a callable loss(z) of the solution, got {type(loss).__name__}")
        if not isinstance(z0, Tensor) or z0.is_complex() or z0.dim() < 1:
            got = f"{z0.dtype}, {tuple(z0.shape)}" if isinstance(z0, Tensor) else type(z0).__name__
            raise InputError(f"z0 must be one real tensor (batch, *features), got {got}")
        self.field, self.loss, self.z0, self.t = field, loss, z0, t
        self.args = check_args(args)
        listed = [t] if isinstance(t, Tensor) else t if isinstance(t, Sequence) else ()
        self._times = [x for x in listed if isinstance(x, Tensor)]
        named = [("z0", z0), *(("t", x) for x in self._times), *((f"args[{i}]", a) for i, a in enumerate(self.args))]
        for name, x in named:
            if x.requires_grad and not x.is_leaf:
                raise InputError(
                    f"{name} was computed from tensors that require a gradient, which a trainer would not do again "
                    "before each step: compute it in the field or the loss, detach it, or train in a loop of solve, "
                    "backward and optimizer.step()"
                )
        solver, rtol, atol, dt, max_steps, engine = options
        rtol, atol = check_number("rtol", rtol), check_number("atol", atol)
        self._engine, self._solver, self._how = choose(engine, solver, "discrete")
        self._options: dict[str, Any] = {
            "solver": self._solver.name,
            "rtol": rtol,
            "atol": atol,
            "dt": dt,
            "max_steps": max_steps,
            "engine": self._engine.name,
            "sensitivity": "discrete",
            "args": self.args,
        }
        # It is refused here as a solve is, and what the field reads late is known afterwards.
        with torch.no_grad():
            solution = solve(field, z0, t, **self._options)
        self.optimizer = optimizer_of(optimizer, self._trainable(solution.z), lr)
        self.losses, self.stats = z0.new_empty(0), Stats()

    def __call__(self, steps: int) -> Tensor:
        """Train.

        Args:
            steps: how many steps.

        Returns:
            `(steps,)`, the loss before each step.

        Raises:
            SolveError: a solve did not reach the last time, or the loss or a tensor is not finite: training stands
                where it stood before that step.
        """
        check_count("steps", steps)
        started = time.perf_counter()
        self.losses, self.stats = self.z0.new_empty(0), Stats(nfe_backward=0)
        try:
            (self._in_julia if self._engine.name == "julia" else self._in_python)(steps)
        finally:
            self.stats.seconds = time.perf_counter() - started
        return self.losses

    def _in_python(self, steps: int) -> None:
        losses: list[Tensor] = []
        try:
            for n in range(steps):
                self.optimizer.zero_grad()
                try:
                    solution = solve(self.field, self.z0, self.t, **self._options)
                except SolveError as error:
                    raise _failed(n, str(error), error.retcode, error.t_end, error.z_end) from None
                value = _checked(self.loss(solution.z), self.z0)
                if not bool(value.isfinite()):
                    raise _failed(n, f"the loss is {value.item()}", Retcode.NON_FINITE)
                trained = [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]
                value.backward(inputs=trained)
                self.optimizer.step()
                losses.append(value.detach().reshape(()))
                self.stats.nfe += solution.stats.nfe
                self.stats.nfe_backward = (self.stats.nfe_backward or 0) + (solution.stats.nfe_backward or 0)
        finally:
            self.optimizer.zero_grad()
            self.losses = torch.stack(losses) if losses else self.losses

    def _in_julia(self, steps: int) -> None:
        if self.z0.device.type != "cpu":
            raise EngineUnavailable(f"the julia engine trains on the CPU, z0 is on {self.z0.device}: {_LOOP}")
        check_native(self.optimizer, _LOOP)
        if any(x is y for group in self.optimizer.param_groups for x in group["params"] for y in self._times):
            raise EngineUnavailable(f"the julia engine does not train t: {_LOOP}")
        problem, loss = self._problems()
        if problem.field.facts.switches:
            raise EngineUnavailable(
                f"the field jumps where it compares t, which steps in Julia would step over: {_LOOP}"
            )
        read = (self.z0, *self.args, *problem.parameters, *loss.parameters)
        for x in (*problem.parameters, *loss.parameters):
            if x.requires_grad and not x.is_leaf:
                raise InputError(
                    f"a tensor of shape {tuple(x.shape)} that is trained was computed from others, which steps in "
                    f"Julia would not do again: {_LOOP}, or compute it in the field"
                )
        updates = updates_of(self.optimizer, read)
        for u in updates:
            if u.x.dtype != self.z0.dtype or u.x.device.type != "cpu" or in_order(u.x) is not u.x:
                strided = "" if in_order(u.x) is u.x else ", not contiguous"
                raise EngineUnavailable(
                    f"the julia engine trains contiguous tensors of the state's dtype, {self.z0.dtype}, on the CPU, "
                    f"got one of shape {tuple(u.x.shape)}, {u.x.dtype}, on {u.x.device}{strided}: {_LOOP}"
                )
        floats = Floats(problem.rtol, problem.atol, problem.dt or 0.0)
        trained = Trained(torch.empty(steps, dtype=self.z0.dtype, device="cpu"), floats)
        try:
            self._engine.train(problem, loss, (self.z0, *self.args), updates, trained)  # type: ignore[attr-defined]
        finally:
            remember(self.optimizer, updates)
            self.losses = trained.losses[: trained.done].clone()
            self.stats.nfe, self.stats.nfe_backward = trained.nfe, trained.nfe_backward
        if trained.done == steps:
            return
        if trained.retcode is not Retcode.SUCCESS:
            what = f"the solve stopped at t={trained.reached:.6g}: {trained.retcode.value}"
            raise _failed(trained.done, what, trained.retcode, trained.reached)
        raise _failed(
            trained.done,
            "the loss, or a tensor that it or the field reads, is not finite, masked or not",
            Retcode.NON_FINITE,
        )

    def _problems(self) -> tuple[Problem, Problem]:
        """The solve, and the loss as a field whose state is the solution and the loss, its only rate."""
        form, given = with_args(state_of(self.z0), self.args)
        if not form.is_plain:
            raise EngineUnavailable(
                "a trainer takes real args: train in a loop of solve, backward and optimizer.step()"
            )
        z0, args = self.z0.detach(), tuple(x.detach() for x in given)
        t = check_times(self.t, z0)[0].detach().double()
        field = Field(solved_field(self.field, None, form, len(args)), (z0,), t, args)
        states = z0.new_zeros(len(t), *z0.shape), z0.new_zeros(1)
        loss = Field(derived_field(_rates, self.loss), states, t, (), True)
        return self._problem(field, (z0,), t, args), self._problem(loss, states, t, ())

    def _problem(self, field: Field, z0: tuple[Tensor, ...], t: Tensor, args: tuple[Tensor, ...]) -> Problem:
        groups = {"z0": z0, "t": (t,), "args": args, "parameters": field.parameters}
        return Problem(
            field=field,
            z0=z0,
            t=t,
            args=args,
            parameters=field.parameters,
            solver=self._solver,
            sensitivity=self._how,
            wants={name: (True,) * len(group) for name, group in groups.items()},
            **{name: self._options[name] for name in ("rtol", "atol", "dt", "max_steps")},
        )

    def _trainable(self, z: Tensor) -> list[Tensor]:
        """The leaves that require a gradient and that a step reads, each once."""
        with torch.enable_grad():
            value = _checked(self.loss(z.detach().requires_grad_()), self.z0)
        if not value.requires_grad:
            raise InputError(
                "autograd does not follow how the loss depends on the solution, so that there is no gradient: compute "
                "it by differentiable operations on z, without detach(), item() or NumPy"
            )
        problem, loss = self._problems()
        read = (self.z0, *self._times, *self.args, *problem.parameters, *loss.parameters)
        return list({id(x): x for x in read if x.requires_grad and x.is_leaf}.values())


def _rates(loss: Callable[[Tensor], Tensor], owner: object, t: Tensor, z: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return torch.zeros_like(z[0]), _checked(loss(z[0]), z[0]).reshape(1)


def _checked(value: Any, like: Tensor) -> Tensor:
    """The loss.

    Raises:
        InputError: it is no scalar of the state's dtype.
    """
    if not isinstance(value, Tensor) or value.numel() != 1 or value.dtype != like.dtype:
        got = f"shape {tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"the loss must be a scalar tensor of the state's dtype, {like.dtype}, got {got}")
    return value


def _failed(n: int, what: str, retcode: object, t_end: object = None, z_end: object = None) -> SolveError:
    return SolveError(
        f"training stopped after {n} steps, and stands where it stood then: {what}", retcode, t_end, z_end
    )
