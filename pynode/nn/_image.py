"""Convolutional vector fields, and what stands before and after them in an image classifier."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn

from pynode.errors import InputError
from pynode.nn._time import TimeConcat, TimeSequential

__all__ = ["ConvField", "ConvHead", "ConvStem"]


class ConvField(TimeSequential):
    """A convolutional vector field on images: norm, activation, convolution, twice, and a norm.

    Without `group_norm` it is convolution, activation, convolution.

    Args:
        channels: channels of the state `(batch, channels, h, w)`.
        hidden: channels between the convolutions; as many as the state's where `None`.
        out_channels: channels of the result; those of the state where `None`. A field of order n on a state of
            n · c channels returns c.
        kernel_size: of both convolutions, odd, so that height and width stay.
        time: whether both convolutions get the depth as one more channel.
        group_norm: whether there are group norms, in up to 32 groups.
        activation: makes the activation, e.g. `nn.Softplus` for a smooth field.

    Raises:
        InputError: a number is not a positive integer, or `kernel_size` is even.

    Source:
        R. T. Q. Chen et al., "Neural Ordinary Differential Equations", NeurIPS 2018, section 3.
    """

    def __init__(
        self,
        channels: int,
        hidden: int | None = None,
        *,
        out_channels: int | None = None,
        kernel_size: int = 3,
        time: bool = True,
        group_norm: bool = True,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        hidden = channels if hidden is None else hidden
        out_channels = channels if out_channels is None else out_channels
        _check_counts(channels=channels, hidden=hidden, out_channels=out_channels, kernel_size=kernel_size)
        if kernel_size % 2 == 0:
            raise InputError(f"kernel_size must be odd, so that the field keeps height and width, got {kernel_size}")

        def convolution(inner: int, outer: int) -> nn.Module:
            if time:
                return TimeConcat(nn.Conv2d(inner + 1, outer, kernel_size, padding=kernel_size // 2))
            return nn.Conv2d(inner, outer, kernel_size, padding=kernel_size // 2)

        first, second = convolution(channels, hidden), convolution(hidden, out_channels)
        if group_norm:
            before = [_norm(channels), activation(), first, _norm(hidden), activation(), second, _norm(out_channels)]
            super().__init__(*before)
        else:
            super().__init__(first, activation(), second)


class ConvStem(nn.Sequential):
    """From images to features: a 3 × 3 convolution, then one that halves height and width for each downsampling.

    Args:
        in_channels: channels of the images.
        channels: channels of the features.
        downsamplings: how often height and width are halved.

    Raises:
        InputError: a number is not a positive integer (`downsamplings` may be zero); at a call, the images have
            another number of channels, or too few pixels.

    Source:
        R. T. Q. Chen et al., "Neural Ordinary Differential Equations", NeurIPS 2018, section 3: two downsamplings
        of MNIST's images before the ODE block.
    """

    def __init__(self, in_channels: int, channels: int, downsamplings: int = 2) -> None:
        _check_counts(in_channels=in_channels, channels=channels)
        if not isinstance(downsamplings, int) or downsamplings < 0:
            raise InputError(f"downsamplings must be an integer of at least 0, got {downsamplings!r}")
        halving = [
            layer
            for _ in range(downsamplings)
            for layer in (_norm(channels), nn.ReLU(), nn.Conv2d(channels, channels, 4, stride=2, padding=1))
        ]
        super().__init__(nn.Conv2d(in_channels, channels, 3), *halving)
        self.in_channels = in_channels
        self.smallest = 2 + 2**downsamplings

    def forward(self, x: Tensor) -> Tensor:
        """Features `(batch, channels, h', w')` of images `(batch, in_channels, h, w)`."""
        if x.ndim != 4 or x.shape[1] != self.in_channels or min(x.shape[2:]) < self.smallest:
            raise InputError(
                f"images must be of shape (batch, {self.in_channels}, h, w) with h and w of at least {self.smallest}, "
                f"got {tuple(x.shape)}"
            )
        return super().forward(x)


class ConvHead(nn.Sequential):
    """From features to classes: norm, ReLU, the mean over the pixels, a linear layer.

    Args:
        channels: channels of the features `(batch, channels, h, w)`.
        classes: number of classes; the result is their logits `(batch, classes)`.

    Raises:
        InputError: a number is not a positive integer.
    """

    def __init__(self, channels: int, classes: int) -> None:
        _check_counts(channels=channels, classes=classes)
        super().__init__(
            _norm(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)
        )


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(32, channels), channels)


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise InputError(f"{name} must be an integer of at least 1, got {count!r}")
