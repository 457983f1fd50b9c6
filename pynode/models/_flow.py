"""What every normalizing flow has: a density, samples, and a face for `torch.distributions`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform, constraints

from pynode.errors import InputError
from pynode.field._finite import check_finite
from pynode.field._outside import outside_of_compile
from pynode.models._failed import failed_samples, may_fail, spread

__all__ = ["Base", "Flow", "Mapped", "StandardNormal"]

Base = Distribution | Callable[[Tensor | None], Distribution]


# A state, log |det ∂z/∂x| or `None`, and the regularisers by their names.
Mapped = tuple[Tensor, Tensor | None, dict[str, Tensor]]


class Flow(nn.Module):
    """A density p(x) = q(z(x)) |det ∂z/∂x| of a bijection z(x) and a base q.

    Args:
        base: q, of batch shape () and with the data's event shape; or a callable `base(context)` that returns such
            a distribution or one of batch shape `(batch,)`. Where it is an `nn.Module`, it is trained and moved
            between devices with the flow.

    Attributes:
        base: as given.
        regularisation: what the solves of the last call of `log_prob`, `loss` or `transform` have integrated beside
            the density: mean over the samples of each energy, 0-d, differentiable. Only what has a weight is in it.
            Where several threads use one flow the last call may be another's: `loss` takes its own.
        weights: the weight of each of these in `loss`.
    """

    def __init__(self, base: Base, weights: dict[str, float]) -> None:
        super().__init__()
        if isinstance(base, Distribution):
            _check_base(base, torch.Size())
        elif not callable(base):
            raise InputError(
                "base must be a torch.distributions.Distribution or a callable base(context) that returns one, got "
                f"{type(base).__name__}"
            )
        self.base = base
        self.weights = weights
        self.regularisation: dict[str, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        # The last call's results hang on its autograd graph, which neither copies nor pickles.
        return {**self.__dict__, "regularisation": {}}

    def _map(self, x: Tensor, context: Tensor | None, reverse: bool, density: bool) -> Mapped:
        """z(x), or x(z) with `reverse`; with `density` also log |det ∂z/∂x|, `(batch,)`, and the regularisers.

        Sets `regularisation`, which is for the user to read: another thread may have made the last call by then.
        """
        raise NotImplementedError

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """z(x), without its determinant.

        Args:
            x: `(batch, *event)`.
            context: what conditions the flow, `(batch, …)`, or `(1, …)` for all samples alike.

        Returns:
            `(batch, *event)`.

        Raises:
            InputError: x or the context is not usable.
        """
        return self._map(*self._checked("x", x, context), reverse=False, density=False)[0]

    def transform(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From data to base.

        Args:
            x: `(batch, *event)`.
            context: as in `forward`.

        Returns:
            z(x), `(batch, *event)`, and log |det ∂z/∂x|, `(batch,)`.

        Raises:
            InputError: x or the context is not usable.
        """
        z, log_det, _ = self._map(*self._checked("x", x, context), reverse=False, density=True)
        assert log_det is not None
        return z, log_det

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """From base to data.

        Args:
            z: `(batch, *event)`.
            context: as in `forward`.

        Returns:
            x(z), `(batch, *event)`.

        Raises:
            InputError: z or the context is not usable.
        """
        return self._map(*self._checked("z", z, context), reverse=True, density=False)[0]

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The log-density of each sample.

        Args:
            x: `(batch, *event)`.
            context: as in `forward`.

        Returns:
            log p(x), `(batch,)`.

        Raises:
            InputError: x or the context is not usable.
        """
        return self._density(x, context)[0]

    def _density(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The log-density of each sample, `(batch,)`, and the regularisers."""
        z, log_det, regularisation = self._map(*self._checked("x", x, context), reverse=False, density=True)
        assert log_det is not None
        if len(x) == 0:  # which the distributions of torch do not take
            return log_det, regularisation
        base = self._base(context, len(x))
        if not any(may_fail(getattr(part, "solver_keywords", {})) for part in self.modules()):
            return base.log_prob(z) + log_det, regularisation
        failed = failed_samples(z)
        with torch.random.fork_rng(devices=[]):  # the distributions of torch take no NaN
            stand_in = base.sample(torch.Size() if base.batch_shape else torch.Size([len(z)])).to(z)
        found = base.log_prob(torch.where(spread(failed, z), stand_in, z))
        return found.masked_fill(failed, torch.nan) + log_det, regularisation

    def loss(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The objective of training: mean negative log-likelihood and the weighted regularisers, 0-d.

        Args:
            x: `(batch, *event)`, at least one sample.
            context: as in `forward`.

        Raises:
            InputError: x or the context is not usable.
        """
        if isinstance(x, Tensor) and x.dim() and len(x) == 0:
            raise InputError("loss is a mean over samples and needs at least one, got an empty batch")
        log_density, regularisation = self._density(x, context)
        return self._weighted(regularisation) - log_density.mean()

    def penalty(self) -> Tensor:
        """Σ weight · regulariser of the last call, 0-d; zero where nothing is regularised."""
        return self._weighted(self.regularisation)

    def _weighted(self, regularisation: dict[str, Tensor]) -> Tensor:
        terms = [self.weights[name] * value for name, value in regularisation.items()]
        return torch.stack(terms).sum() if terms else torch.zeros(())

    @torch.no_grad()
    def sample(self, n: int, context: Tensor | None = None) -> Tensor:
        """Draw samples; for samples with a gradient see `as_transform`.

        Args:
            n: how many.
            context: `(n, …)`, or `(1, …)` for all samples alike.

        Returns:
            `(n, *event)`.

        Raises:
            InputError: n is not a whole number, or the context has another number of rows.
        """
        if isinstance(n, bool) or not isinstance(n, int) or n < 0:
            raise InputError(f"n must be a whole number of samples, got {n!r}")
        base = self._base(context, n)
        z = base.sample(torch.Size() if base.batch_shape else torch.Size([n]))
        parameter = next(self.parameters(), z)
        return self.inverse(z.to(parameter), context)

    def as_transform(self, context: Tensor | None = None) -> Transform:
        """The bijection from base to data, for `torch.distributions.TransformedDistribution`.

        Args:
            context: one row for each sample that the transform will be given, or a single row for all.
        """
        return _FlowTransform(self, context)

    def _base(self, context: Tensor | None, batch: int) -> Distribution:
        if isinstance(self.base, Distribution):
            return self.base
        base = self.base(None if context is None else _rows(context, batch))
        if not isinstance(base, Distribution):
            raise InputError(f"base(context) must return a torch.distributions.Distribution, got {type(base).__name__}")
        return _check_base(base, torch.Size([batch]))

    def _event_shape(self) -> torch.Size | None:
        """The shape of one sample, where it is known without a context."""
        return self.base.event_shape if isinstance(self.base, Distribution) else None

    @outside_of_compile
    def _checked(self, name: str, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise InputError(f"{name} must be a floating-point tensor (batch, *event), got {got}")
        event = self._event_shape()
        if x.dim() == 0 or (event is not None and x.shape[1:] != event):
            expected = ", ".join(["batch", *("*event" if event is None else map(str, event))])
            raise InputError(
                f"{name} must have shape ({expected}), one event of the density per row, got {tuple(x.shape)}. "
                "For a single event add the batch dimension with unsqueeze(0)"
            )
        check_finite(name, x)
        return x, None if context is None else _rows(context, len(x))


class StandardNormal(nn.Module, Distribution):
    """The standard normal distribution over events of a shape, on the device and in the dtype of its flow.

    A call gives torch's own distribution, of batch shape ().
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = True
    zeros: Tensor

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        nn.Module.__init__(self)
        Distribution.__init__(self, torch.Size(), torch.Size(event_shape), validate_args=False)
        self.register_buffer("zeros", torch.zeros(event_shape), persistent=False)

    def forward(self, context: Tensor | None = None) -> Distribution:
        """The distribution, of batch shape ()."""
        normal = torch.distributions.Normal(self.zeros, torch.ones_like(self.zeros))
        return torch.distributions.Independent(normal, self.zeros.dim())

    @property
    def support(self) -> constraints.Constraint:
        """All of the space."""
        return constraints.independent(constraints.real, self.zeros.dim())

    @property
    def mean(self) -> Tensor:
        """Zeros."""
        return self.zeros

    @property
    def mode(self) -> Tensor:
        """Zeros."""
        return self.zeros

    @property
    def variance(self) -> Tensor:
        """Ones."""
        return torch.ones_like(self.zeros)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Distribution:
        """The distribution with another batch shape."""
        return self().expand(batch_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Samples `(*sample_shape, *event)`."""
        return self().rsample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """The logarithm of the density at `value`, `(…, *event)`."""
        return self().log_prob(value)

    def entropy(self) -> Tensor:
        """The entropy, 0-d."""
        return self().entropy()


def _check_base(base: Distribution, batch_shape: torch.Size) -> Distribution:
    if base.batch_shape not in (torch.Size(), batch_shape):
        allowed = " or ".join(str(tuple(s)) for s in dict.fromkeys((torch.Size(), batch_shape)))
        raise InputError(
            f"base must have batch shape {allowed} and events of the data's shape, got batch shape "
            f"{tuple(base.batch_shape)} and event shape {tuple(base.event_shape)}. "
            "Turn batch dimensions into event dimensions with torch.distributions.Independent(base, 1)"
        )
    return base


def _rows(context: Tensor, batch: int) -> Tensor:
    """The context with one row per sample."""
    if not isinstance(context, Tensor) or context.dim() == 0 or len(context) not in (1, batch):
        got = tuple(context.shape) if isinstance(context, Tensor) else type(context).__name__
        raise InputError(
            f"context must be a tensor with one row per sample, ({batch}, …), or one row for all, (1, …), got {got}"
        )
    return context.expand(batch, *context.shape[1:])


class _FlowTransform(Transform):
    """From base to data; any leading dimensions. A determinant comes from the same solve as the value."""

    bijective = True

    def __init__(self, flow: Flow, context: Tensor | None) -> None:
        super().__init__(cache_size=1)
        self.flow, self.context = flow, context
        event = flow._event_shape()
        self.domain = self.codomain = constraints.independent(constraints.real, 1 if event is None else len(event))
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

    def with_cache(self, cache_size: int = 1) -> Transform:
        """Itself: it always remembers its last value."""
        return self

    def _solve(self, x: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
        leading = x.shape[: x.dim() - self.domain.event_dim]
        flat = x.reshape(leading.numel(), *x.shape[len(leading) :])
        checked = self.flow._checked("z" if reverse else "x", flat, self.context)
        y, log_det, _ = self.flow._map(*checked, reverse=reverse, density=True)
        assert log_det is not None
        return y.reshape(x.shape), log_det.reshape(leading)

    def _call(self, x: Tensor) -> Tensor:
        y, log_det = self._solve(x, reverse=True)
        self._last = (x, y, log_det)
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        x, log_det = self._solve(y, reverse=False)
        self._last = (x, y, -log_det)
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """The logarithm of |det ∂y/∂x|, of the shape of x without its event dimensions."""
        last = self._last  # read once: another thread may come in between
        if last is not None and last[0] is x and last[1] is y:
            return last[2]
        return self._solve(x, reverse=True)[1]
