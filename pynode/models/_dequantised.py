"""Images on a few grey levels, and a density on the reals."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pynode.errors import InputError
from pynode.models._flow import Flow

__all__ = ["Dequantised"]


class Dequantised(nn.Module):
    """A distribution of images on grey levels, made of a flow on the reals.

    Level k of 0, …, L - 1 becomes y = (k + u) / L with u uniform on [0, 1), and then logit(α + (1 - 2 α) y). The flow's
    density there, in terms of y and averaged over u, bounds the log-probability of the levels from below. After
    `whiten`, the flow gets the logits by an affine map that gives them mean 0 and covariance I.

    Args:
        flow: the density on the reals, with events of an image's shape.
        levels: L, at least 2.
        alpha: α in (0, 0.5), keeps the logit finite.

    Raises:
        InputError: an argument is not usable.

    Source:
        L. Dinh et al., "Density estimation using Real NVP", ICLR 2017, section 4.1; L. Theis et al., "A note on the
        evaluation of generative models", ICLR 2016, section 3.1 (the bound).
    """

    mean: Tensor
    factor: Tensor

    def __init__(self, flow: Flow, levels: int = 256, *, alpha: float = 0.05) -> None:
        super().__init__()
        if not isinstance(flow, Flow):
            raise InputError(f"flow must be a CNF or an FFJORD, got {type(flow).__name__}")
        if not isinstance(levels, int) or levels < 2:
            raise InputError(f"levels must be a whole number of at least 2, got {levels!r}")
        if not isinstance(alpha, int | float) or not 0 < alpha < 0.5:
            raise InputError(f"alpha must lie between 0 and 0.5, got {alpha!r}")
        self.flow = flow
        self.levels = levels
        self.alpha = alpha
        self.register_buffer("mean", torch.zeros(0), persistent=False)  # empty where the logits are as they are
        self.register_buffer("factor", torch.zeros(0, 0), persistent=False)  # of the covariance, lower triangular

    def get_extra_state(self) -> dict[str, Tensor]:
        """What `whiten` has set, for `state_dict`: of another size before and after it."""
        return {"mean": self.mean, "factor": self.factor}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """From a `state_dict`."""
        self.mean, self.factor = (state[name].to(self.mean) for name in ("mean", "factor"))

    @torch.no_grad()
    def whiten(self, x: Tensor) -> None:
        """Set the affine map by the mean and the covariance of the logits of these images.

        Args:
            x: as in `dequantise`, more images than an image has entries.

        Raises:
            InputError: there are too few images, or they are none.
        """
        self.mean, self.factor = x.new_zeros(0), x.new_zeros(0, 0)
        y = self.dequantise(x)[0].flatten(1)
        if len(y) <= y.shape[1]:
            raise InputError(f"whiten needs more images than the {y.shape[1]} entries of one, got {len(y)}")
        covariance = y.T.cov().reshape(y.shape[1], y.shape[1])  # that of one entry is 0-d
        self.mean, self.factor = y.mean(0), torch.linalg.cholesky(covariance)

    def dequantise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """From levels to reals, by noise that is drawn anew.

        Args:
            x: images `(batch, *event)` of levels k / (L - 1), in [0, 1].

        Returns:
            The logits, after `whiten` white, `(batch, *event)`, and the logarithm of what their density is to be
            multiplied by, `(batch,)`: log p(x) ≥ E[log p(logits) + ratio].

        Raises:
            InputError: an entry lies outside of [0, 1].
        """
        if not isinstance(x, Tensor) or not x.is_floating_point() or not bool(((x >= 0) & (x <= 1)).all()):
            raise InputError(f"x must hold grey levels k / {self.levels - 1} in [0, 1], as floating point")
        k = (x * (self.levels - 1)).round()
        y = (k + torch.rand_like(x)) / self.levels
        p = self.alpha + (1 - 2 * self.alpha) * y
        logit = p.log() - (-p).log1p()
        # d logit / dy = (1 - 2 α) / (p (1 - p)), and -log(p (1 - p)) = softplus(logit) + softplus(-logit)
        slope = math.log(1 - 2 * self.alpha) + softplus(logit) + softplus(-logit)
        ratio = (slope - math.log(self.levels)).flatten(1).sum(1)
        if not len(self.mean):
            return logit, ratio
        centred = logit.flatten(1) - self.mean
        white = torch.linalg.solve_triangular(self.factor, centred.T, upper=False).T
        return white.reshape(x.shape), ratio - self.factor.diagonal().log().sum()

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """A lower bound of each image's log-probability, unbiased over the noise.

        Args:
            x: as in `dequantise`.
            context: as the flow takes.

        Returns:
            `(batch,)`.

        Raises:
            InputError: an entry lies outside of [0, 1], or the flow refuses the shape.
        """
        logit, ratio = self.dequantise(x)
        return self.flow.log_prob(logit, context) + ratio

    def bits_per_dim(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """An upper bound of the bits per entry of each image; arguments and result as in `log_prob`."""
        return -self.log_prob(x, context) / (math.prod(x.shape[1:]) * math.log(2))

    def loss(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The mean of the negative bound and the flow's weighted regularisers, 0-d."""
        logit, ratio = self.dequantise(x)
        return self.flow.loss(logit, context) - ratio.mean()

    def sample(self, n: int, context: Tensor | None = None) -> Tensor:
        """Draw images on the grey levels.

        Args:
            n: how many.
            context: as the flow takes.

        Returns:
            `(n, *event)`, levels k / (L - 1).
        """
        logit = self.flow.sample(n, context)
        if len(self.mean):
            logit = (logit.flatten(1) @ self.factor.T + self.mean).reshape(logit.shape)
        y = (logit.sigmoid() - self.alpha) / (1 - 2 * self.alpha)
        return (y * self.levels).floor().clamp(0, self.levels - 1) / (self.levels - 1)
