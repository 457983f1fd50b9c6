"""torchode: batches whose samples have steps of their own, or one for all."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from pynode.errors import NotComparable
from pynode.study.adapter import Counts, Gradient, Solved
from pynode.study.adapters.in_torch import CountedField, differentiate
from pynode.study.adapters.option import Option
from pynode.study.adapters.package import Package, tolerances
from pynode.study.problem import Problem
from pynode.study.setting import Setting

__all__ = ["Torchode"]

_FIXED = ("euler",)
_SOLVERS = {"dopri5": "Dopri5", "tsit5": "Tsit5", "heun": "Heun", "euler": "Euler"}


class Torchode(Package):
    """torchode, put together from term, step method, controller and adjoint as its README does.

    `batching="independent"`, what torchode is for, keeps a step size for each sample; all are evaluated together until
    the last one has arrived. A field that reads the time is then mapped over the samples by `torch.func.vmap`, since
    each is at a time of its own. `"joint"` gives it the whole batch as one sample, for which its backward solve has a
    class of its own, `JointBacksolveAdjoint`.

    `controller` is its `IntegralController` (README) or its `PIDController` with the coefficients of `solve_ivp`.

    `compile=True` compiles `solver.solve` by `torch.compile`: a minute. The README's `torch.compile(solver)`
    compiles `forward` alone and leaves `solve` as it is, and with torch 2.13 `torch.jit.script(solver)` ends in an
    internal error; so the default is to compile nothing.
    """

    NAME: ClassVar[str] = "torchode"
    DISTRIBUTION: ClassVar[str] = "torchode"
    MODULES: ClassVar[tuple[str, ...]] = ("torchode",)
    PAGE: ClassVar[str] = "https://torchode.readthedocs.io"
    OPTIONS: ClassVar[dict[str, Option]] = {
        "solver": Option(tuple(_SOLVERS), "dopri5"),
        "sensitivity": Option(("AutoDiffAdjoint", "BacksolveAdjoint"), "AutoDiffAdjoint"),
        "batching": Option(("independent", "joint"), "independent"),
        "controller": Option(("IntegralController", "PIDController"), "IntegralController"),
        "compile": Option(bool, False),
    }

    def build(  # type: ignore[override]
        self,
        problem: Problem,
        setting: Setting,
        *,
        solver: str,
        sensitivity: str,
        batching: str,
        controller: str,
        compile: bool,
    ) -> None:
        """Make the solver and the initial value problem."""
        import torchode

        joint = batching == "joint"
        self.problem, self.joint, self.sensitivity = problem, joint, sensitivity
        batch = 1 if problem.z0.dim() == 1 else len(problem.z0)
        backsolve = sensitivity == "BacksolveAdjoint"
        # The joint backward solve puts the samples together by itself, and gets them apart.
        self.field = (_Joint if joint and not backsolve else _Rows)(problem, batch)
        self.rows = 1 if joint and not backsolve else batch
        if not joint:
            self.field.each = _mode(self.field, problem, backsolve)
        term = torchode.ODETerm(self.field)
        numbers = tolerances(f"torchode's {solver}", setting, solver not in _FIXED)
        method = getattr(torchode, _SOLVERS[solver])(term=term)
        self.dt0 = None
        if solver in _FIXED:
            sign = 1 if problem.t[-1] > problem.t[0] else -1
            self.dt0 = torch.full((self.rows,), sign * numbers["dt"], dtype=problem.t.dtype)
            control = torchode.FixedStepController()
        elif controller == "PIDController":
            control = torchode.PIDController(**numbers, pcoeff=0.2, icoeff=0.5, dcoeff=0.0, term=term)
        else:
            control = torchode.IntegralController(**numbers, term=term)
        if not backsolve:
            adjoint = torchode.AutoDiffAdjoint(method, control)
        elif joint:
            adjoint = torchode.JointBacksolveAdjoint(term, method, control)
        else:
            adjoint = torchode.BacksolveAdjoint(term, method, control)
        self.run = torch.compile(adjoint.solve) if compile else adjoint.solve
        self.t = problem.t.repeat(self.rows, 1)
        self.make = torchode.InitialValueProblem
        self.success = torchode.Status.SUCCESS.value
        self.names = {status.value: status.name for status in torchode.Status}

    def _states(self, z0: Tensor) -> tuple[Tensor, dict[str, Any]]:
        self.field.counted()
        solution = self.run(self.make(y0=z0.reshape(self.rows, -1), t_eval=self.t), dt0=self.dt0)
        failed = solution.status[solution.status != self.success]
        if len(failed):
            raise ArithmeticError(f"torchode ends with the status {self.names.get(int(failed[0]), int(failed[0]))}")
        z = solution.ys.transpose(0, 1).reshape(len(self.problem.t), *z0.shape)
        return z, solution.stats

    def _counts(self, stats: dict[str, Any]) -> Counts:
        steps, accepted = stats["n_steps"], stats["n_accepted"]
        slowest = int(steps.argmax())
        n = int(accepted[slowest])
        return Counts(self.field.counted(), n_accepted=n, n_rejected=int(steps[slowest]) - n)

    def solve(self) -> Solved:
        """The states at the times."""
        with torch.no_grad():
            z, stats = self._states(self.problem.z0)
        return Solved(z, self._counts(stats))

    def gradient(self) -> Gradient:
        """The gradient of the loss; an evaluation that is pulled back counts as one of the backward pass."""
        counts = Counts()

        def solve(z0: Tensor) -> Tensor:
            nonlocal counts
            z, stats = self._states(z0)
            counts = self._counts(stats)
            return z

        loss, gradient = differentiate(self.problem, solve)
        counts.nfe_backward = counts.nfe if self.sensitivity == "AutoDiffAdjoint" else self.field.counted()
        return Gradient(loss, gradient, counts)


class _Rows(CountedField):
    """The field of samples that are vectors, `(batch, features)`, each at its own time, `(batch,)`."""

    def __init__(self, problem: Problem, batch: int) -> None:
        super().__init__(problem)
        self.shape = problem.z0.shape if problem.z0.dim() == 1 else problem.z0.shape[1:]
        self.single, self.each = problem.z0.dim() == 1, False

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """The rates of all samples."""
        if z.dim() == 1:  # a sample that torchode itself maps over
            self.nfe += 1
            return self._of_one(t, z)
        if self.each:
            self.nfe += 1
            return torch.func.vmap(self._of_one)(t, z)
        state = z[0] if self.single else z.reshape(len(z), *self.shape)
        return super().forward(t[0], state).reshape(len(z), -1)

    def _of_one(self, t: Tensor, z: Tensor) -> Tensor:
        state = z if self.single else z.reshape(1, *self.shape)
        return self.rates(t, state).reshape(-1)


class _Joint(_Rows):
    """The field of the whole batch as one sample, `(1, batch · features)`."""

    def __init__(self, problem: Problem, batch: int) -> None:
        super().__init__(problem, batch)
        self.whole = problem.z0.shape

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """The rates of the whole batch."""
        return CountedField.forward(self, t[0], z.reshape(self.whole)).reshape(1, -1)


class _Watched(Tensor):
    """A time that notes whether anything reads it."""

    read = False

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        _Watched.read = True
        plain = [x.as_subclass(Tensor) if isinstance(x, _Watched) else x for x in args]
        return func(*plain, **(kwargs or {}))


def _mode(field: _Rows, problem: Problem, backsolve: bool) -> bool:
    """Whether the samples have to be mapped over, since the field reads the time, which each has its own of.

    Raises:
        NotComparable: the field's samples are not independent, or cannot be mapped over.
    """
    if problem.z0.dim() == 1:
        return False
    z0, t = problem.z0, problem.t[0]
    with torch.no_grad():
        rates = field.rates(t, z0)
        other = z0.clone()
        other[0] += 0.1 * other[0].abs() + 0.1
        if not torch.equal(field.rates(t, other)[1:], rates[1:]):
            raise NotComparable("the samples of this field act on each other, and torchode's have steps of their own")
        _Watched.read = False
        field.rates(t.as_subclass(_Watched), z0)
        if not _Watched.read and not backsolve:
            return False
        why = "the time, which differs between" if _Watched.read else "one sample at a time in its backward solve of"
        try:
            mapped = torch.func.vmap(field._of_one)(t.expand(len(z0)), z0.flatten(1))
        except Exception as error:
            raise NotComparable(f"the field reads {why} samples, and torch.func.vmap cannot map it: {error}") from error
        if not torch.allclose(mapped.reshape(z0.shape), rates, rtol=1e-4, atol=1e-6):
            raise NotComparable(f"the field reads {why} samples, and is another of one sample by itself")
    return _Watched.read
