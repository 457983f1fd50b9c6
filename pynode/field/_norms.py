"""Refuses layers that write to their running statistics at each evaluation."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from pynode.errors import TraceError

__all__ = ["check_norms"]


def check_norms(owners: Mapping[str, nn.Module]) -> None:
    """Refuse batch norm, and its like, in training mode.

    Args:
        owners: the field's modules, by the prefix of their tensors' names.

    Raises:
        TraceError: names the layer.
    """
    for prefix, module in owners.items():
        if isinstance(module, _NormBase) and module.training and module.running_mean is not None:
            name = prefix.rstrip(".") or "(the field itself)"
            raise TraceError(
                f"the field's layer {name}, {type(module).__name__}, is in training mode: each evaluation would write "
                "to its running statistics, as many times as the solver takes, and a vector field has no state. Call "
                ".eval() on that layer, make it with track_running_stats=False, or take another (e.g. nn.GroupNorm)"
            )
