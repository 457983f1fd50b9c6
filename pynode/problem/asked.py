"""What a solve is asked for, as it was given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pynode.control import Control
from pynode.mass_matrix import MassMatrix
from pynode.problem.event import Events
from pynode.problem.progress import Progress
from pynode.sensitivity import Sensitivity
from pynode.step_control import StepControl

__all__ = ["Asked"]


@dataclass(eq=False)
class Asked:
    """The keywords of `solve`, which describes them, except `args`; all but `dt` and the events are still unchecked.

    `dt` is also the first step of `step_control`, `events` is what `event` was given. `kinks` are those of a `Problem`.
    """

    solver: str
    rtol: Any
    atol: Any
    dt: float | None
    step_control: StepControl | None
    sensitivity: str | Sensitivity
    running_cost: Callable[..., Tensor] | None
    events: Events | None
    batching: str
    tstops: Tensor | Sequence[float] | str | None
    control: Control | None
    mass: Tensor | MassMatrix | None
    lowering: str
    max_steps: int
    max_events: int
    engine: str
    save: str | Callable[[Tensor, Any], Any]
    dense: bool
    progress: bool | Callable[[Progress], object]
    throw: bool
    kinks: Tensor | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it is nothing but the states at times that are given."""
        without = self.running_cost is self.events is self.control is self.mass is None
        without = without and type(self.tstops) is tuple and not self.tstops
        return without and self.save == "times" and self.progress is False and not self.dense
