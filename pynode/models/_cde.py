"""Neural controlled differential equations: a hidden state that is driven by a path through observations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pynode.control import Control, CubicHermite, Linear, NaturalCubic, PiecewiseConstant, log_signatures
from pynode.control._log_signature import log_signature_channels
from pynode.engine.protocol import Stats
from pynode.errors import FieldError, InputError, unknown_name
from pynode.models._check import check_callables, check_solver_keywords
from pynode.models._moved import from_own_start, moved
from pynode.models._series import Series, check_series
from pynode.nn._signature import with_time
from pynode.problem.inputs import as_times, check_count
from pynode.solve import solve

__all__ = ["NeuralCDE"]

_INTERPOLATIONS: dict[str, type[Control]] = {"hermite": CubicHermite, "linear": Linear, "natural": NaturalCubic}


class NeuralCDE(nn.Module):
    """A neural controlled differential equation: z(t₀) = h_x(X(t₀)), dz = F(z) dX, ŷ(t) = h_y(z(t)).

    X is a path through the observations of a series, with the time among its channels; F(z) is a matrix with a column
    for each channel. `path` makes X, `forward` and `trajectory` take it:

        model = NeuralCDE(obs_dim=3, hidden=8, out_dim=2)
        y = model(model.path(x, t, mask))

    Where all series of a batch share their times, an adaptive solver ends a step at each of them; where they have times
    of their own it goes over the knots of cubic paths, with errors many times the tolerance: see
    `pynode.control.CubicHermite`.

    For long series `window` takes the log-ODE method: the path's increments over windows of so many observations are
    their log-signatures, so that a step of the solver may be as long as a window.

    Args:
        obs_dim: channels of the observations.
        hidden: size of z.
        out_dim: channels of the output.
        field: F, a callable `F(z)` or `F(t, z)` that returns `(batch, hidden, channels)`, with `channels` as the
            attribute says; a network with one hidden layer, and tanh at its end, where `None`.
        reads_path: whether F depends on the path's value too, dz = F(z, X) dX. What is passed to `field` as z is then
            `(batch, hidden + channels)`, z and behind it X(t). It is the equation of the state (z, X), which a field
            of z alone would have to learn to carry along.
        input_network: h_x, from X(t₀), `(batch, channels)`, to `(batch, hidden)`; linear where `None`.
        output_network: h_y, from `(batch, hidden)` to the output; linear where `None`.
        interpolation: `"hermite"`, cubic with backward differences, which does not look ahead further than the next
            observation; `"natural"`, cubic splines; or `"linear"`. `"hermite"` where `None`.
        counts: whether the path has for each channel also the number of its observations so far, which tells what was
            missing.
        window: observations from one window's end to the next, for the log-ODE method in the place of an
            interpolation.
        depth: of the log-signatures: 1, increments; 2, also the Lévy areas of each two channels.
        width: of the hidden layer of the field that is made here.
        solver_keywords: as `pynode.solve` takes: `solver`, `rtol`, `atol`, `dt`, `sensitivity`, `max_steps`,
            `engine`, `throw`, …

    Attributes:
        channels: of the path: the time, the observations, the counts, and for `depth` 2 the areas.
        stats: the `Stats` of the last call; `None` before it.

    Raises:
        InputError: an argument is not usable, or a name is unknown.

    Source:
        P. Kidger, J. Morrill, J. Foster, T. Lyons, "Neural Controlled Differential Equations for Irregular Time
        Series", NeurIPS 2020, equations 4 and 5 (and section 3.2 for the counts); J. Morrill, C. Salvi, P. Kidger,
        J. Foster, T. Lyons, "Neural Rough Differential Equations for Long Time Series", ICML 2021 (the log-ODE method).
    """

    def __init__(
        self,
        obs_dim: int,
        hidden: int,
        out_dim: int,
        *,
        field: Callable[..., Tensor] | None = None,
        input_network: Callable[[Tensor], Tensor] | None = None,
        output_network: Callable[[Tensor], Tensor] | None = None,
        interpolation: str | None = None,
        counts: bool = False,
        reads_path: bool = False,
        window: int | None = None,
        depth: int = 2,
        width: int = 64,
        **solver_keywords: Any,
    ) -> None:
        super().__init__()
        self.obs_dim, self.hidden = check_count("obs_dim", obs_dim), check_count("hidden", hidden)
        check_solver_keywords(solver_keywords, own=("control",))
        if interpolation is not None and window is not None:
            raise InputError("window takes the log-ODE method in the place of an interpolation: leave one of them out")
        interpolation = "hermite" if interpolation is None else interpolation
        if interpolation not in _INTERPOLATIONS:
            raise unknown_name("interpolation", interpolation, tuple(_INTERPOLATIONS))
        self.interpolation, self.counts, self.depth = interpolation, counts, depth
        self.window = None if window is None else check_count("window", window)
        channels = 1 + obs_dim * (2 if counts else 1)
        of_windows = log_signature_channels(channels, depth)  # which checks the depth in any case
        self.channels = channels if window is None else of_windows
        self.reads_path = reads_path
        if field is None:
            read = self.hidden + (self.channels if reads_path else 0)
            field = _Matrix(read, self.hidden, self.channels, check_count("width", width))
        check_callables(field, input_network=input_network, output_network=output_network)
        self.controlled = _Controlled(field, self.hidden, self.channels, reads_path)
        self.input_network = nn.Linear(self.channels, hidden) if input_network is None else input_network
        self.output_network = (
            nn.Linear(hidden, check_count("out_dim", out_dim)) if output_network is None else output_network
        )
        self.solver_keywords = solver_keywords
        self.stats: Stats | None = None

    @property
    def field(self) -> Callable[..., Tensor]:
        """F."""
        return self.controlled.field

    def path(self, x: Tensor, t: Tensor, mask: Tensor | None = None) -> Control:
        """The path through observations, differentiable in them.

        The observed channels are constant before the first observation of a series and after its last. With times
        `(time,)`, the time goes on to their end; with times of its own, each series' path ends at its last observation.

        Args:
            x: observations `(batch, time, obs_dim)`, float32 or float64; anything where the mask is False.
            t: their times, `(time,)` or `(batch, time)`, increasing within each series; behind the last observation of
                a shorter one they may repeat. They must not require a gradient.
            mask: what was observed, bool, `(batch, time)` or `(batch, time, obs_dim)`; `None` for all.

        Raises:
            InputError: a shape or value is not usable, or a series has observations at less than two times.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise InputError(
                f"x must be a tensor of floating-point numbers, got {getattr(x, 'dtype', type(x).__name__)}. "
                "Convert it with torch.as_tensor(x, dtype=torch.float32)"
            )
        series = check_series(x, t, mask, self.obs_dim, -torch.inf, x.dtype)
        shared = as_times("t", t, x).dim() == 1
        times = series.t[0] if shared else _with_ends(series)
        stamps = times.to(x.dtype).expand(len(x), -1).unsqueeze(-1)
        values = [stamps, series.x.masked_fill(~series.mask, torch.nan)]
        if self.counts:
            values.append(series.mask.to(x.dtype).cumsum(1))
        stacked = torch.cat(values, -1)
        if self.window is not None:
            return log_signatures(times, stacked, self.window, self.depth)
        return _INTERPOLATIONS[self.interpolation](times, stacked)

    def forward(self, path: Control) -> Tensor:
        """The output at the end of the path.

        Args:
            path: X, of a batch, as `path` makes it.

        Returns:
            h_y(z(t)) at the last time of any series, `(batch, out_dim)`.
        """
        z0, first, last = self._start(path)
        return self.output_network(self._solve(z0, torch.stack([first, last]), path)[-1])

    def trajectory(self, path: Control, t: Tensor) -> Tensor:
        """The output along the path.

        Args:
            path: X, as in `forward`.
            t: `(time,)`, strictly increasing, from the first time of any series on, not behind the last.

        Returns:
            h_y(z(t)) for each t, `(time, batch, out_dim)`.
        """
        z0, first, _ = self._start(path)
        t = as_times("t", t, z0)
        if t.dim() != 1 or len(t) == 0:
            raise InputError(f"t must be 1-d and hold at least one time, got shape {tuple(t.shape)}")
        times, from_start = from_own_start(first.reshape(1).to(t.dtype), t)
        z = self._solve(z0, times, path) if len(times) > 1 else z0.unsqueeze(0)
        states = [*z[1:]]
        if from_start:
            states.insert(0, moved(self.controlled, z0, t[0], (path,)))
        return torch.stack([self.output_network(state) for state in states])

    def _start(self, path: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The first state, and the ends of the path."""
        if not isinstance(path, Control) or isinstance(path, PiecewiseConstant):
            got = "PiecewiseConstant, whose derivative is zero" if isinstance(path, Control) else type(path).__name__
            raise InputError(f"the input must be a path with a derivative, as model.path(x, t) makes it, got {got}")
        first, last = (x.detach() for x in path.span)
        value = path(first)
        if path.form.dims != 2 or value.shape[1] != self.channels:
            raise InputError(
                f"the path must have a value (batch, channels) = (batch, {self.channels}), got {tuple(value.shape)}. "
                "Make it with model.path(x, t)"
            )
        self.stats = None
        z0 = self.input_network(value)
        if z0.shape != (len(value), self.hidden):
            raise InputError(
                f"input_network must return (batch, hidden) = {(len(value), self.hidden)}, got {tuple(z0.shape)}"
            )
        return z0, first, last

    def _solve(self, z0: Tensor, t: Tensor, path: Control) -> Tensor:
        solution = solve(self.controlled, z0, t, control=path, **self.solver_keywords)
        self.stats = solution.stats
        return solution.z

    def extra_repr(self) -> str:
        """The arguments that are not modules."""
        how = f"interpolation={self.interpolation!r}" if self.window is None else f"window={self.window}"
        parts = [f"obs_dim={self.obs_dim}", f"hidden={self.hidden}", f"channels={self.channels}", how]
        parts += ["reads_path=True"] if self.reads_path else []
        parts += [f"depth={self.depth}"] if self.window is not None else []
        return ", ".join(parts + [f"{k}={v!r}" for k, v in self.solver_keywords.items()])


class _Controlled(nn.Module):
    """dz/dt = F(z) dX/dt, or F(z, X) dX/dt."""

    def __init__(self, field: Callable[..., Tensor], hidden: int, channels: int, reads_path: bool) -> None:
        super().__init__()
        self.field, self.shape, self.reads_path = field, (hidden, channels), reads_path

    def forward(self, t: Tensor, z: Tensor, path: Control) -> Tensor:
        read = torch.cat([z, path(t)], 1) if self.reads_path else z
        matrix = with_time(self.field)(t, read)
        if not isinstance(matrix, Tensor) or matrix.shape[1:] != self.shape:
            got = tuple(matrix.shape) if isinstance(matrix, Tensor) else type(matrix).__name__
            raise FieldError(
                f"the field of a NeuralCDE must return a matrix for each sample: expected (batch, {self.shape[0]}, "
                f"{self.shape[1]}) = (batch, hidden, channels), got {got}"
            )
        return (matrix @ path.derivative(t).unsqueeze(-1)).squeeze(-1)


class _Matrix(nn.Module):
    """The field that is made where none is given."""

    def __init__(self, read: int, hidden: int, channels: int, width: int) -> None:
        super().__init__()
        self.shape = (hidden, channels)
        self.network = nn.Sequential(nn.Linear(read, width), nn.Tanh(), nn.Linear(width, hidden * channels), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        return self.network(z).unflatten(-1, self.shape)


def _with_ends(series: Series) -> Tensor:
    """The times, NaN behind the last observation of each series."""
    n = series.t.shape[1]
    position = torch.arange(n, device=series.t.device)
    last = torch.where(series.mask.any(2), position, -1).amax(1, keepdim=True)
    return series.t.masked_fill(position > last, torch.nan)
