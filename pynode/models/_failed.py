"""The samples of which a solve has failed, where it may (`throw=False`): they are NaN, and the others go on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["failed_samples", "may_fail", "spread"]


def may_fail(solver_keywords: Mapping[str, Any]) -> bool:
    """Whether a solve by these keywords of `pynode.solve` returns when it fails."""
    return not solver_keywords.get("throw", True)


def failed_samples(z: Tensor) -> Tensor:
    """`(batch,)`: whether a sample of `z`, `(batch, …)`, has NaN, as the end of a solve has that has failed."""
    return z.detach().isnan().unsqueeze(-1).flatten(1).any(1)


def spread(failed: Tensor, z: Tensor) -> Tensor:
    """One entry for each sample, `(batch,)`, in the dimensions of `z`, `(batch, …)`."""
    return failed.reshape(-1, *(1,) * (z.dim() - 1))
