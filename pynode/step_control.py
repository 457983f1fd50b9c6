"""How an adaptive solver chooses its steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pynode.errors import InputError, unknown_name

__all__ = ["CONTROLLERS", "NORMS", "StepControl"]

# The exponents of the last error, the one before, and the one before that, times the order.
CONTROLLERS: Mapping[str, tuple[float, float, float]] = {
    "i": (1.0, 0.0, 0.0),
    "pi": (0.7, -0.4, 0.0),
    "pid": (0.58, -0.21, 0.10),
}
NORMS = ("rms", "max", "sample_max")


@dataclass(frozen=True)
class StepControl:
    """How an adaptive solver chooses its steps; what is left out is as the engine's solver has it.

    After a step whose error is e_n times what the tolerances allow, the next is
    safety · e_n^(-β1/k) · e_{n-1}^(-β2/k) · e_{n-2}^(-β3/k) times as long, where k is the order of the error estimate
    plus one, within the factors and bounds below. A step with e_n > 1 is taken again; by a controller with β3 on julia,
    one after which the next would be less than 0.81 times as long.

    Args:
        controller: `"i"`, `"pi"`, `"pid"`, or the exponents (β1, β2, β3). julia alone; torchdiffeq's is `"i"`.
        dt_min: the least step. A solve that would need a shorter one fails (julia) or takes this one (torch).
        dt_max: the greatest.
        dt_first: the first; chosen by the solver if it is left out.
        safety: see above, between 0 and 1.
        factor_min: the least factor from one step to the next, between 0 and 1.
        factor_max: the greatest, above 1; on julia not after the very first step.
        norm: of the scaled errors of all components and samples, what e_n is: `"rms"`, the root of their mean square;
            `"max"`; `"sample_max"`, the greatest over the samples of the root mean square of each, so that no sample
            is less accurate among others than alone. By `"rms"` one sample in a batch of N may have an error √N times
            as large as the tolerances allow: an oscillator that is kicked once, among samples at rest, has at rtol 1e-6
            (torch, dopri5) an error of 1.6e-6 alone, 1.5e-5 in a batch of 100 and 3.0e-4 in one of 10,000, with 34,
            23 and 16 steps; by `"sample_max"` 1.6e-6 with 34 in each.

    Raises:
        InputError: a number is out of its bounds.

    Source:
        G. Söderlind, "Digital filters in adaptive time-stepping", ACM TOMS 29, 2003; E. Hairer, S. P. Nørsett,
        G. Wanner, "Solving Ordinary Differential Equations I", section II.4.
    """

    controller: str | tuple[float, float, float] | None = None
    dt_min: float | None = None
    dt_max: float | None = None
    dt_first: float | None = None
    safety: float | None = None
    factor_min: float | None = None
    factor_max: float | None = None
    norm: str = "rms"

    def __post_init__(self) -> None:
        if isinstance(self.controller, str):
            if self.controller not in CONTROLLERS:
                raise unknown_name("controller", self.controller, CONTROLLERS)
        elif self.controller is not None:
            betas = self.controller
            if not isinstance(betas, tuple) or len(betas) != 3 or not all(map(_is_number, betas)) or not betas[0] > 0:
                raise InputError(
                    "controller must be 'i', 'pi', 'pid' or three exponents (β1, β2, β3) with β1 > 0, got "
                    f"{self.controller!r}"
                )
        if self.norm not in NORMS:
            raise unknown_name("norm", self.norm, NORMS)
        for name, low, high in (
            ("dt_min", 0, math.inf),
            ("dt_max", 0, math.inf),
            ("dt_first", 0, math.inf),
            ("safety", 0, 1),
            ("factor_min", 0, 1),
            ("factor_max", 1, math.inf),
        ):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and low < value < high):
                raise InputError(f"{name} must be a number above {low} and below {high}, got {value!r}")
        if self.dt_min is not None and self.dt_max is not None and self.dt_min > self.dt_max:
            raise InputError(f"dt_min must not be above dt_max, got {self.dt_min} and {self.dt_max}")

    @property
    def exponents(self) -> tuple[float, float, float] | None:
        """β1, β2, β3; `None` where the solver's own are wanted."""
        return CONTROLLERS[self.controller] if isinstance(self.controller, str) else self.controller


def _is_number(x: object) -> bool:
    try:
        return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)
    except OverflowError:  # an int beyond all floats
        return False
