"""The training of `studies/flow.toml`: steps of FFJORD, by pynode's model and as programs on torchdiffeq write it."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torchdiffeq
from torch import Tensor, nn

from pynode import data
from pynode.models import FFJORD
from pynode.study import Training

_TOLERANCES = {"rtol": 1e-5, "atol": 1e-5}
_STEPS = 30


class Published(nn.Module):
    """A flow on torchdiffeq: a state (z, log-density), the trace by autograd."""

    def __init__(self, flow: FFJORD, trace: str, function: str, tolerances: dict[str, float]) -> None:
        super().__init__()
        self.tolerances = tolerances
        self.flow, self.trace, self.solve = flow, trace, getattr(torchdiffeq, function)
        self.block = flow.blocks[0]
        self.noise, self.nfe, self.nfe_forward = torch.empty(0), 0, 0

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        self.nfe += 1
        with torch.enable_grad():
            z = state[0].requires_grad_(True)
            dz = self.block.field(t, z)
            if self.trace == "exact":
                columns = (torch.autograd.grad(dz[:, i].sum(), z, create_graph=True)[0][:, i] for i in range(2))
                divergence = functools.reduce(torch.add, columns)
            else:
                (pulled,) = torch.autograd.grad(dz, z, self.noise, create_graph=True)
                divergence = (pulled * self.noise).sum(1)
        return dz, divergence

    def loss(self, x: Tensor) -> Tensor:
        """The negative mean log-likelihood."""
        self.noise, self.nfe = self.block._draw(x), 0
        start, t = (x.clone(), x.new_zeros(len(x))), torch.tensor([0.0, 1.0])
        z, log_det = self.solve(self, start, t, method="dopri5", **self.tolerances)
        self.nfe_forward = self.nfe
        return -(self.flow.base().log_prob(z[-1]) + log_det[-1]).mean()


class Model:
    """Makes the model of a contender."""

    def __init__(self, trace: str) -> None:
        self.trace = trace

    def __call__(self, function: str = "", engine: str = "auto") -> nn.Module:
        options: dict[str, Any] = {**_TOLERANCES, "engine": engine}
        flow = FFJORD(2, hidden=(64, 64), layer="concat", trace=self.trace, **options)
        return Published(flow, self.trace, function, _TOLERANCES) if function else flow


def loss(model: Any, batch: Tensor) -> Tensor:
    return model.loss(batch)


def nfe(model: Any) -> tuple[int | None, int | None]:
    """Evaluations of the last step; of backpropagation those that are pulled back."""
    if not isinstance(model, Published):
        return model.stats.nfe, model.stats.nfe_backward
    return model.nfe_forward, (model.nfe - model.nfe_forward) or model.nfe_forward


def training(trace: str = "hutchinson", batch: int = 512) -> Training:
    """The same samples in each step."""
    x = data.density("moons", batch, generator=torch.Generator().manual_seed(0))
    return Training(Model(trace), [x] * _STEPS, loss, epochs=1, nfe=nfe, name=f"FFJORD, {trace} trace")
