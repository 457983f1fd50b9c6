"""The dynamics of a latent ODE."""

from __future__ import annotations

import math
from functools import partial

import torch

from pynode.study.library.network import Network, julia_network, load, network_in_jax
from pynode.study.problem import Problem
from pynode.study.setting import Setting

__all__ = ["latent_ode"]


def latent_ode() -> Problem:
    """The trained dynamics of a latent ODE, 4-32-32-4 with tanh × 64, which draws spirals on, t to 1.2 π.

    The model was trained on 1000 noisy spirals; the initial states are the posterior means of 64 others, and the times
    go from the first observation to twice the time that was observed.

    Source:
        benchmarks/train_fields.py; R. T. Q. Chen, Y. Rubanova, J. Bettencourt, D. Duvenaud, "Neural Ordinary
        Differential Equations", NeurIPS 2018, section 5.1.
    """
    weights, z0, _ = load("latent_ode")
    field = Network(4, 32, 32, 4).double()
    field.load_state_dict(weights)
    return Problem(
        field,
        z0.double(),
        torch.linspace(0, 1.2 * math.pi, 13, dtype=torch.float64),
        settings=tuple(map(Setting, (1e-3, 1e-5, 1e-7))),
        jax=partial(network_in_jax, time=False),
        julia=julia_network(field.widths),
    )
