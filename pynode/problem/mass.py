"""What a solve with a mass matrix asks of its matrix, its solver and all else that is asked for."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pynode.engine.protocol import Mass
from pynode.engine.solvers import SOLVERS
from pynode.errors import InputError
from pynode.mass_matrix import MassMatrix
from pynode.problem.event import Events
from pynode.problem.settings import Settings
from pynode.problem.state import State
from pynode.transforms import is_followed

__all__ = ["check_mass", "check_no_stops"]


def check_mass(
    given: Any,
    form: State,
    state: tuple[Tensor, ...],
    settings: Settings,
    lowering: str,
    events: Events | None,
    cost: object,
    recording: bool,
) -> Mass | None:
    """The mass matrix of a solve; `None` without one.

    Args:
        given: the user's, or one that was checked before.
        form: the form of the state.
        state: the tensors that are solved, without that of a running cost.
        settings: what else is asked for.
        lowering: how the engine is to have the field.
        events: what is to happen in the course of the solve.
        cost: the running cost, which is one more number of each sample.
        recording: whether the solve is recorded rather than done.

    Raises:
        InputError: it is no mass matrix of such a state, or one of what is asked for cannot be had with one.
    """
    if given is None:
        return None
    if not isinstance(given, MassMatrix):
        if not isinstance(given, Tensor):
            raise InputError(
                f"mass must be a tensor or a pynode.MassMatrix, got {type(given).__name__}. Convert arrays and lists "
                "with torch.as_tensor"
            )
        given = MassMatrix(given)
    _check_asked(form, state, settings, lowering, events, recording)
    return _decomposed(_checked_matrix(given.matrix, state), given.initial, cost is not None)


def check_no_stops(mass: Mass | None, stops: object) -> None:
    """Refuse times at which a solve with a mass matrix would have to start afresh.

    Raises:
        InputError: there are any.
    """
    if mass is not None and stops:
        raise InputError(
            "a solve with a mass matrix has no stops: at a jump of the field the algebraic variables jump too. Solve "
            "each piece by itself, from mass=pynode.MassMatrix(M, initial='consistent'); or pass tstops=None if the "
            "field compares t without a jump"
        )


def _check_asked(
    form: State, state: tuple[Tensor, ...], settings: Settings, lowering: str, events: Events | None, recording: bool
) -> None:
    solver, how = settings.solver, settings.sensitivity
    if not solver.mass:
        able = " or ".join(f"solver={s.name!r}" for s in SOLVERS.values() if s.mass)
        raise InputError(
            f"the solver {solver.name!r} of the {settings.engine.name} engine takes no mass matrix: pass {able}, with "
            "engine='julia'; or, where M is regular, divide the field by it"
        )
    if how.name != "gauss" or how.options.get("checkpointing") is not None:
        raise InputError(
            f"a solve with a mass matrix has no sensitivity {how!r}: pass sensitivity='gauss' (or pynode.Gauss with "
            "tolerances alone), the adjoint equation with the transposed matrix"
        )
    if events is not None:
        raise InputError(
            "a solve with a mass matrix has no events, whose jumps would leave the algebraic equations: solve without "
            "event, in pieces if need be"
        )
    if lowering != "trace":
        raise InputError(
            f"a solve with a mass matrix needs the field's Jacobian, from its trace: expected lowering='trace', got "
            f"{lowering!r}"
        )
    if recording:
        raise InputError(
            "a solve with a mass matrix cannot be recorded, since its steps depend on the state: call it as it is"
        )
    if any(form.complex):
        raise InputError("a solve with a mass matrix takes real states: pass the real and imaginary parts as features")
    if state[0].device.type != "cpu":
        raise InputError(
            f"a solve with a mass matrix takes CPU tensors, z0 is on {state[0].device}: move it to the CPU"
        )


def _checked_matrix(matrix: Tensor, state: tuple[Tensor, ...]) -> Tensor:
    """The matrix as `(n, n)`, in double on the CPU."""
    n = sum(math.prod(z.shape[1:]) for z in state)
    if is_followed(matrix):
        raise InputError(
            "mass must be constant: it has no gradient. Pass it detached, and put what is to be learned into the field"
        )
    if not matrix.is_floating_point() or tuple(matrix.shape) not in ((n,), (n, n)):
        raise InputError(
            f"mass must be a real tensor of shape ({n}, {n}), or the diagonal ({n},), over the {n} numbers of a "
            f"sample; got shape {tuple(matrix.shape)} of {matrix.dtype}"
        )
    matrix = matrix.detach().to("cpu", torch.float64)
    if not bool(matrix.isfinite().all()):
        raise InputError("mass must be finite, and has NaN or infinity. Correct it")
    if not bool(matrix.any()):
        raise InputError(
            "mass is zero: no equation has a derivative. Solve f(t, z) = 0 by a method for algebraic equations"
        )
    return torch.diag(matrix) if matrix.dim() == 1 else matrix.clone()


def _decomposed(matrix: Tensor, initial: str, has_cost: bool) -> Mass:
    """With the null spaces; the running cost is one number more, whose derivative is what the field gives."""
    n = len(matrix)
    if has_cost:
        matrix = torch.block_diag(matrix, torch.ones(1, 1, dtype=torch.float64, device="cpu"))
    u, s, v = torch.linalg.svd(matrix[:n, :n])
    rank = int((s > n * torch.finfo(torch.float64).eps * s[0]).sum())
    left, right = (torch.nn.functional.pad(x, (0, 0, 0, int(has_cost))) for x in (u[:, rank:], v[rank:].T))
    return Mass(matrix, left, right, initial)
