"""Image classifiers whose features flow along a neural ODE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pynode.errors import InputError
from pynode.models._node import NODE
from pynode.nn import ConvField, ConvHead, ConvStem

__all__ = ["ODENet", "RKNet"]


class ODENet(NODE):
    """An image classifier: a downsampling stem, an ODE block, a head.

    The residual network of the same parts is `ResNet(field, depth, shared=False, input_network=net.input_network,
    output_network=net.output_network)`.

    Args:
        in_channels: channels of the images.
        classes: number of classes.
        channels: channels of the features.
        downsamplings: how often the stem halves height and width.
        field: the vector field on features `(batch, channels, h, w)`; `ConvField(channels)` where `None`.
        sensitivity: `"backsolve"`, the adjoint of the paper, whose memory does not grow with the depth, or another
            that `solve` takes.
        node_keywords: as `NODE` takes, `input_network` and `output_network` in place of the stem and the head
            included.

    Raises:
        InputError: an argument is not usable; at a call, the images have another shape than the stem takes.
        SolveError: in a backward pass by `"backsolve"`, the state that is computed backwards left the trajectory by
            a tenth, see `pynode.Backsolve`. With a few channels and the default tolerances untrained networks do so
            now and then: pass a smaller `rtol`, another sensitivity, or use `RKNet`.

    Source:
        R. T. Q. Chen et al., "Neural Ordinary Differential Equations", NeurIPS 2018, section 3 (ODE-Net).
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        *,
        channels: int = 64,
        downsamplings: int = 2,
        field: Callable[..., Any] | None = None,
        sensitivity: Any = "backsolve",
        **node_keywords: Any,
    ) -> None:
        node_keywords.setdefault("input_network", ConvStem(in_channels, channels, downsamplings))
        node_keywords.setdefault("output_network", ConvHead(channels, classes))
        super().__init__(ConvField(channels) if field is None else field, sensitivity=sensitivity, **node_keywords)


class RKNet(ODENet):
    """An `ODENet` that is differentiated through the steps of its Runge–Kutta method: exact, but it keeps every stage.

    Args:
        in_channels: channels of the images.
        classes: number of classes.
        keywords: as `ODENet` takes, except for `sensitivity`.

    Raises:
        InputError: as `ODENet`; `sensitivity` is given.

    Source:
        R. T. Q. Chen et al., "Neural Ordinary Differential Equations", NeurIPS 2018, section 3 (RK-Net).
    """

    def __init__(self, in_channels: int, classes: int, **keywords: Any) -> None:
        if "sensitivity" in keywords:
            raise InputError("RKNet is the ODENet with sensitivity='discrete'; for another sensitivity use ODENet")
        super().__init__(in_channels, classes, sensitivity="discrete", **keywords)
