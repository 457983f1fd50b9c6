"""Complex tensors that a solve differentiates by, as pairs of real numbers: what all solvers and graphs take.

The gradient in a pair is, as a complex number, the one that PyTorch gives: ∂L/∂a + i ∂L/∂b at a + i b.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["as_pairs", "as_read"]


def as_pairs(x: Tensor) -> Tensor:
    """A complex tensor as a view of its parts, `(…, 2)`; any other as it is."""
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def as_read(values: Mapping[str, Tensor], named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values by name as the function reads them: complex where it has complex tensors of that name.

    Autograd follows them to the pairs, whatever context this is called in.
    """
    if not any(n in named and named[n].is_complex() for n in values):
        return dict(values)
    with torch.inference_mode(False), torch.enable_grad():
        return {
            n: torch.view_as_complex(_even(x)) if n in named and named[n].is_complex() and not x.is_complex() else x
            for n, x in values.items()
        }


def _even(x: Tensor) -> Tensor:
    """Pairs that lie in memory as complex numbers do."""
    fits = x.stride(-1) == 1 and all(s % 2 == 0 for s in (*x.stride()[:-1], x.storage_offset()))
    return x if fits else x.clone(memory_format=torch.contiguous_format)
