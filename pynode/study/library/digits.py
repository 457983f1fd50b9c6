"""The field of a neural ODE that tells handwritten digits apart."""

from __future__ import annotations

from functools import partial

import torch

from pynode.errors import StudyError
from pynode.study.library.network import Network, julia_network, load, network_in_jax
from pynode.study.problem import Problem
from pynode.study.setting import Setting

__all__ = ["digits"]


def digits(batch: int = 256) -> Problem:
    """A trained network 32-64-64-32 with tanh × 256: the field of a neural ODE that tells handwritten digits apart.

    z' = W₃ tanh(W₂ tanh(W₁ z + b₁) + b₂) + b₃, t from 0 to 1. Between two linear layers it was trained on
    scikit-learn's digits to a test accuracy of 99 %; the initial states are what the first layer makes of images of the
    test set.

    Source:
        benchmarks/train_fields.py; R. T. Q. Chen, Y. Rubanova, J. Bettencourt, D. Duvenaud, "Neural Ordinary
        Differential Equations", NeurIPS 2018, section 3.
    """
    weights, z0, _ = load("digits")
    if isinstance(batch, bool) or batch not in range(1, len(z0) + 1):
        raise StudyError(f"batch must be a whole number from 1 to {len(z0)}, got {batch!r}")
    field = Network(32, 64, 64, 32).double()
    field.load_state_dict(weights)
    return Problem(
        field,
        z0[:batch].double(),
        torch.tensor([0.0, 1.0], dtype=torch.float64),
        settings=tuple(map(Setting, (1e-3, 1e-5, 1e-7))),
        jax=partial(network_in_jax, time=False),
        julia=julia_network(field.widths),
    )
