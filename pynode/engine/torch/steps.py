"""How torchdiffeq's adaptive solvers are told to choose their steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pynode.engine.protocol import Problem
from pynode.engine.torch.rhs import as_tuple
from pynode.errors import EngineUnavailable
from pynode.step_control import CONTROLLERS, StepControl

__all__ = ["step_options", "step_tolerances"]


def step_options(control: StepControl) -> dict[str, Any]:
    """Options of torchdiffeq's.

    Raises:
        EngineUnavailable: another controller is asked for than the one that it has.
    """
    if control.exponents not in (None, CONTROLLERS["i"]):
        raise EngineUnavailable(
            "the torch engine has the controller 'i' alone, which is torchdiffeq's: leave step_control's controller "
            'out, or use engine="julia"'
        )
    given = {
        "min_step": control.dt_min,
        "max_step": control.dt_max,
        "safety": control.safety,
        "dfactor": control.factor_min,
        "ifactor": control.factor_max,
    }
    return {**{name: x for name, x in given.items() if x is not None}, "norm": _NORMS[control.norm]}


def step_tolerances(problem: Problem) -> tuple[Any, Any]:
    """Relative and absolute tolerance; of each number of the state where they differ, in a tuple's tensors flattened.

    Raises:
        EngineUnavailable: the solver takes two numbers alone.
    """
    if problem.steps is None:
        return problem.rtol, problem.atol
    if problem.solver.torch in ("LSODA", "BDF", "Radau"):
        raise EngineUnavailable(
            f"the torch engine's {problem.solver.name!r}, which is SciPy's, takes two tolerances, and no step_control: "
            "give rtol and atol as numbers and divide each component of the state by its usual size, or use another "
            "solver"
        )
    each = problem.steps.tolerances_of(problem.z0)
    if each is None:
        return problem.rtol, problem.atol
    if not problem.field.is_tuple:
        return each[0][0], each[1][0]
    rtol, atol = (tuple(x.reshape(-1) for x in of) for of in each)
    return rtol, atol


def _rms(z: Any) -> Tensor:
    parts = as_tuple(z)
    squares = torch.stack([x.abs().square().sum() for x in parts]).sum()
    return torch.sqrt(squares / sum(x.numel() for x in parts))


def _max(z: Any) -> Tensor:
    return torch.stack([x.abs().max() for x in as_tuple(z)]).max()


def _sample_max(z: Any) -> Tensor:
    parts = [x.abs().square().reshape(x.shape[0], -1) for x in as_tuple(z)]
    squares = torch.stack([x.sum(1) for x in parts]).sum(0)
    return torch.sqrt(squares / sum(x.shape[1] for x in parts)).max()


_NORMS = {"rms": _rms, "max": _max, "sample_max": _sample_max}
