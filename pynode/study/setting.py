"""How exactly a contender is asked to solve: tolerances, or a step."""

from __future__ import annotations

from dataclasses import dataclass

from pynode.errors import InputError
from pynode.problem.inputs import check_number

__all__ = ["Setting"]

_RTOL_TO_ATOL = 1e-3


@dataclass(frozen=True)
class Setting:
    """Tolerances of an adaptive solver, or the step of one with fixed steps.

    Attributes:
        rtol: the relative tolerance.
        atol: the absolute one; a thousandth of `rtol` where it is not given.
        dt: the step; then there are no tolerances.
    """

    rtol: float | None = None
    atol: float | None = None
    dt: float | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("rtol", "atol", "dt") if getattr(self, name) is not None]
        if given not in (["rtol"], ["rtol", "atol"], ["dt"]):
            raise InputError(
                f"a setting has rtol, rtol and atol, or dt, got {' and '.join(given) or 'none of them'}. "
                "Pass e.g. Setting(rtol=1e-6), or Setting(dt=0.01) for fixed steps"
            )
        for name in given:
            object.__setattr__(self, name, check_number(name, getattr(self, name)))
        if self.rtol is not None and self.atol is None:
            object.__setattr__(self, "atol", _RTOL_TO_ATOL * self.rtol)

    def __str__(self) -> str:
        return f"dt {self.dt:g}" if self.rtol is None else f"rtol {self.rtol:g}"
