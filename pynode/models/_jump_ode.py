"""Neural jump ODEs: event sequences whose intensities follow a state that jumps at each event."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from pynode.models._check import check_callables
from pynode.models._layers import layers
from pynode.models._observed import ObservedODE
from pynode.models._observed_model import ObservedModel
from pynode.problem.inputs import check_count

__all__ = ["JumpODE"]

_LEAST_STD = 1e-4  # of values, so that their log density stays finite


class JumpODE(ObservedModel):
    """A point process: a state flows between the events, jumps at each, and gives the intensities of the next.

    z' = f(t, z) from a learned z(t₀) on, z = z + w(z, x, mask) at an event, and events of kind k, the observed entries
    of channel k, happen with intensity λ_k(z). With `marks` an event has a value too, Gaussian given the state before
    it. Series may have times of their own, and different lengths: pad them with `mask` False and the end of the time
    through which they were watched. All are solved together.

    Args:
        obs_dim: kinds of events.
        hidden: size of z.
        marks: whether events have values, x; they have none otherwise, and x is not looked at but for its shape.
        field: f, a callable `f(z)` or `f(t, z)`, where t is the time of a series, 0-d, and z its state, a batch of one;
            a network with one hidden layer that does not depend on t where `None`.
        log_intensity: from z `(batch, hidden)` to log λ(z), `(batch, obs_dim)`; a network with one hidden layer where
            `None`.
        jump: w, a callable `w(z, x, mask)` that returns `(batch, hidden)`, with x and mask `(batch, obs_dim)`, zero
            where nothing happened; a network with one hidden layer where `None`.
        t0: the time from which series are watched.
        width: of the hidden layers of the networks that are made here.
        solver_keywords: as `pynode.solve` takes: `solver`, `rtol`, `atol`, `dt`, `sensitivity`, `max_steps`,
            `engine`, `throw`, … The time of the solve is one in which a unit leads from each event to the next:
            `dt=0.25` takes four steps in between, and `max_steps` counts those.

    `forward` and `trajectory` return intensities, `(batch, obs_dim)` and `(time_new, batch, obs_dim)`.

    Attributes:
        initial: z(t₀), `(hidden,)`.
        stats: the `Stats` of the last call, `None` before it.

    Raises:
        InputError: an argument is not usable, or a name is unknown.

    Source:
        J. Jia, A. R. Benson, "Neural Jump Stochastic Differential Equations", NeurIPS 2019: equations 5 to 8.
    """

    def __init__(
        self,
        obs_dim: int,
        hidden: int,
        *,
        marks: bool = False,
        field: Callable[..., Any] | None = None,
        log_intensity: Callable[[Tensor], Tensor] | None = None,
        jump: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
        t0: float = 0.0,
        width: int = 32,
        **solver_keywords: Any,
    ) -> None:
        n, d, w = check_count("hidden", hidden), check_count("obs_dim", obs_dim), check_count("width", width)
        field = nn.Sequential(*layers(n, w, n)) if field is None else field
        check_callables(field, log_intensity=log_intensity, jump=jump)
        intensity = _Intensity(nn.Sequential(*layers(n, w, d)) if log_intensity is None else log_intensity)
        added = _Network(nn.Sequential(*layers(n + 2 * d, w, n))) if jump is None else jump
        super().__init__(d, n, ObservedODE(field, _Added(added, marks), _Total(intensity)), t0, solver_keywords)
        self.marks = nn.Sequential(*layers(n, w, 2 * d)) if marks else None

    @property
    def _intensity(self) -> _Intensity:
        assert isinstance(self.flow.cost, _Total)
        return self.flow.cost.intensity

    def _output(self, h: Tensor) -> Tensor:
        return self._intensity(h)

    def log_prob(self, x: Tensor, t: Tensor, mask: Tensor | None = None) -> Tensor:
        """The log likelihood of each series.

        Args:
            x: the values of the events, as in `forward`.
            t: their times, as in `forward`. A series was watched from t₀ to its last entry, observed or not.
            mask: which events happened, as in `forward`; a series may be without any.

        Returns:
            `(batch,)`: Σ log λ_k(z(t)) over the events, by the states before them, minus the integral of Σ_k λ_k over
            the time that was watched; with `marks` plus the log densities of the values.
        """
        entries, course = self._course(x, t, mask, to_end=True)
        seen, values = entries.series.mask.transpose(0, 1), entries.series.x.transpose(0, 1)
        times, batch = course.before.shape[:2]
        found = self._intensity.log(course.before.flatten(0, 1)).unflatten(0, (times, batch))
        if self.marks is not None:
            mean, spread = self.marks(course.before).chunk(2, dim=-1)
            std = nn.functional.softplus(spread) + _LEAST_STD
            found = found + Normal(mean, std, validate_args=False).log_prob(values)
        assert course.running_cost is not None
        return found.masked_fill(~seen, 0).sum((0, 2)) - course.running_cost


class _Intensity(nn.Module):
    """λ(z) > 0."""

    def __init__(self, log: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.log = log

    def forward(self, z: Tensor) -> Tensor:
        return self.log(z).exp()


class _Total(nn.Module):
    """Σ_k λ_k(z)."""

    def __init__(self, intensity: _Intensity) -> None:
        super().__init__()
        self.intensity = intensity

    def forward(self, z: Tensor) -> Tensor:
        return self.intensity(z).sum(1)


class _Network(nn.Module):
    """w as a network of all that it takes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        return self.network(torch.cat([z, x, mask], 1))


class _Added(nn.Module):
    """z + w(z, x, mask)."""

    def __init__(self, jump: Callable[[Tensor, Tensor, Tensor], Tensor], marks: bool) -> None:
        super().__init__()
        self.jump, self.marks = jump, marks

    def forward(self, z: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        return z + self.jump(z, x if self.marks else torch.zeros_like(x), mask)
