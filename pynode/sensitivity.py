"""How the gradient of a solution is computed: names, options, and what each costs."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, fields
from typing import ClassVar

from pynode.errors import InputError, unknown_name

__all__ = [
    "Backsolve",
    "Discrete",
    "Forward",
    "Gauss",
    "Interpolating",
    "Quadrature",
    "Sensitivity",
    "find_sensitivity",
]


@dataclass(frozen=True)
class Sensitivity:
    """Base class of the options objects that `solve(sensitivity=…)` takes."""

    name: ClassVar[str] = ""

    @functools.cached_property
    def options(self) -> dict[str, object]:
        """The options that the user set, by name."""
        return {f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None}


@dataclass(frozen=True)
class Discrete(Sensitivity):
    """Discretise-then-optimise: the exact gradient of the numerical solution.

    Accurate to rounding for the discrete solution. On the julia engine it keeps the stages of every step while they
    fit in `memory`, and beyond that the state at every so many steps, from which it makes the others again: memory
    is bounded, and the backward pass takes about one more forward solve. On the torch engine it keeps autograd's
    graph, whose memory grows linearly with the number of steps.

    Args:
        memory: what the kept steps of one solve may take, in bytes or as a text such as `"64MiB"` (units B, KiB,
            MiB, GiB, kB, MB, GB); default 1 GiB. Julia engine only.
    """

    name: ClassVar[str] = "discrete"
    memory: int | str | None = None

    def __post_init__(self) -> None:
        _read_memory(self)


_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "kB": 10**3, "MB": 10**6, "GB": 10**9}


def _read_memory(how: Discrete | Forward) -> None:
    """Replace the option `memory` by a number of bytes, where it is a text with a unit; beyond all memory is 2⁶²."""
    size = how.memory
    if size is None:
        return
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        object.__setattr__(how, "memory", min(size, 2**62))
        return
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKMG]?i?B)\s*", size) if isinstance(size, str) else None
    if found is None or found[2] not in _UNITS or float(found[1]) == 0:
        raise InputError(
            f"{type(how).__name__}(memory=…) must be a positive number of bytes or a text with a unit "
            f"({', '.join(_UNITS)}), got {size!r}. Pass e.g. '64MiB'"
        )
    object.__setattr__(how, "memory", int(min(float(found[1]) * _UNITS[found[2]], 2.0**62)))


@dataclass(frozen=True)
class _Continuous(Sensitivity):
    rtol: float | None = None
    atol: float | None = None

    def __post_init__(self) -> None:
        for key in ("rtol", "atol"):
            value = getattr(self, key)
            if value is not None and not (value > 0):
                raise InputError(f"{type(self).__name__}({key}=…) must be positive, got {value!r}")


@dataclass(frozen=True)
class Backsolve(_Continuous):
    """Chen et al. 2018, algorithm 1: state, adjoint and gradient are integrated backwards together.

    Memory is constant in the number of steps. The state is recomputed backwards, which is unstable for stiff or
    strongly contracting fields: where it is off by a tenth of the solution's largest number, at one of the times that
    are reported, the backward pass raises a `SolveError` (of the torch engine's solvers only the adaptive Runge-Kutta
    methods are looked at).

    Args:
        rtol: relative tolerance of the backward solve; default, that of the forward one.
        atol: absolute tolerance of the backward solve, in units of dL/dz; by default that of the forward one, but no
            more than rtol times the largest dL/dz (or atol / max|z| times, if that is more).
    """

    name: ClassVar[str] = "backsolve"


@dataclass(frozen=True)
class Interpolating(_Continuous):
    """Continuous adjoint along the stored dense forward solution (SciMLSensitivity's InterpolatingAdjoint).

    Memory is linear in the number of forward steps; stable; error of the order of the tolerances.

    Args:
        rtol: relative tolerance of the backward solve; default, that of the forward one.
        atol: absolute tolerance of the backward solve, in units of dL/dz; by default that of the forward one, but no
            more than rtol times the largest dL/dz (or atol / max|z| times, if that is more).
        checkpointing: store only the saved times and solve again between them.
    """

    name: ClassVar[str] = "interpolating"
    checkpointing: bool | None = None


@dataclass(frozen=True)
class Quadrature(_Continuous):
    """Continuous adjoint, the parameter gradient by adaptive quadrature (QuadratureAdjoint).

    Memory is linear in the number of forward and backward steps; suited to small states and many parameters.

    Args:
        rtol: relative tolerance of the backward solve and the quadrature; default, that of the forward solve.
        atol: absolute tolerance of the backward solve and the quadrature, in units of dL/dz; by default that of the
            forward one, but no more than rtol times the largest dL/dz (or atol / max|z| times, if that is more).
    """

    name: ClassVar[str] = "quadrature"


@dataclass(frozen=True)
class Gauss(_Continuous):
    """Continuous adjoint, the parameter gradient by Gauss-Kronrod quadrature in each backward step (GaussAdjoint).

    The quadrature cuts a step until it is within the tolerances, so that what a parameter multiplies may change faster
    than the adjoint does.

    Memory is linear in the number of forward steps; the fastest continuous adjoint for many parameters.

    Args:
        rtol: relative tolerance of the backward solve; default, that of the forward one.
        atol: absolute tolerance of the backward solve, in units of dL/dz; by default that of the forward one, but no
            more than rtol times the largest dL/dz (or atol / max|z| times, if that is more).
        checkpointing: store only the saved times and solve again between them.
    """

    name: ClassVar[str] = "gauss"
    checkpointing: bool | None = None


@dataclass(frozen=True)
class Forward(Sensitivity):
    """Forward sensitivities: the derivatives of the state, solved for along with it (the variational equation).

    One tangent of the state for each number that a gradient is wanted for: entries of the parameters, of the state and
    of `args` (one sample's, where no sample depends on another), and the first time. Time and memory grow with their
    count, and memory with the number of reported times too, not with the number of steps. The error control covers the
    tangents, so that the gradient is as accurate as the solution, also of stiff fields; the backward pass evaluates the
    field only where the gradient of `t` is wanted. For few parameters; not for a `JuliaField`.

    Args:
        memory: what the tangents may take, in bytes or as a text such as `"64MiB"`; a solve that needs more is refused.
            Default 256 MiB.
    """

    name: ClassVar[str] = "forward"
    memory: int | str | None = None

    def __post_init__(self) -> None:
        _read_memory(self)


_BY_NAME: dict[str, type[Sensitivity]] = {
    c.name: c for c in (Discrete, Backsolve, Interpolating, Quadrature, Gauss, Forward)
}


def find_sensitivity(choice: str | Sensitivity) -> Sensitivity | None:
    """The options object of a name (`None` for `"auto"`), or the object itself.

    Raises:
        InputError: the name is unknown; the message lists the valid ones, nearest first.
    """
    if isinstance(choice, Sensitivity):
        return choice
    if choice == "auto":
        return None
    if not isinstance(choice, str):
        raise InputError(f"sensitivity must be a name or a pynode.Sensitivity, got {type(choice).__name__}")
    if choice not in _BY_NAME:
        raise unknown_name("sensitivity", choice, ["auto", *_BY_NAME])
    return _BY_NAME[choice]()
