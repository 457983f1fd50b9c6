"""The named training `annuli`: an augmented neural ODE against one that is not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pynode import data
from pynode.engine.choose import engines
from pynode.models import ANODE, NODE
from pynode.nn import TimeSequential
from pynode.study.contender import Contender
from pynode.study.training import Training

__all__ = ["annuli"]

_BATCH = 125
_TEST_SEED = 10**6  # another seed than any of the training's


def annuli(points: int = 1000, epochs: int = 60, width: int = 32) -> Training:
    """A regression whose target is -1 in a disc and 1 in the annulus around it.

    A flow of the plane cannot part the two; one with a dimension more can, at a lower number of evaluations. The
    contenders' options: `model` (`"anode"` or `"node"`), and what `pynode.solve` takes.

    Args:
        points: of the training set; the test set has 2000.
        epochs: how often they are gone through, in batches of 125.
        width: of the field's two hidden layers.

    Source:
        E. Dupont, A. Doucet, Y. W. Teh, "Augmented Neural ODEs", NeurIPS 2019, sections 3 to 5.
    """
    return Training(
        make_model=_Model(width),
        data=_Data(points),
        loss=_loss,
        epochs=epochs,
        optimizer=_optimizer,
        test=_test,
        test_metric="mean squared error of 2000 new points",
        contenders=_contenders(),
        name="annuli",
        description="NODE and ANODE on a disc inside an annulus",
        source='E. Dupont, A. Doucet, Y. W. Teh, "Augmented Neural ODEs", NeurIPS 2019',
    )


def _contenders() -> tuple[Contender, ...]:
    """ANODE and NODE by three sensitivities; by two without Julia.

    The torch engine's third, forward, solves an equation for each of the field's parameters: hours.
    """
    julia = engines()["julia"].ok
    how = ["discrete", "gauss", "backsolve"] if julia else ["discrete", "backsolve"]
    engine = "julia" if julia else "torch"
    return tuple(Contender.grid("pynode", model=["anode", "node"], engine=engine, sensitivity=how))


class _Model:
    """Makes the model of a contender; a class, so that it can be sent to another process."""

    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(self, model: str = "anode", rtol: float = 1e-6, atol: float = 1e-6, **keywords: Any) -> nn.Module:
        """The model, by its name."""
        keywords |= {"rtol": rtol, "atol": atol}
        if model == "node":
            return NODE(self._field(2), output_network=nn.Linear(2, 1), **keywords)
        if model == "anode":
            return ANODE(self._field(3), 1, output_network=nn.Linear(3, 1), **keywords)
        raise ValueError(f"model must be 'anode' or 'node', got {model!r}")

    def _field(self, d: int) -> nn.Module:
        n = self.width
        return TimeSequential(nn.Linear(d, n), nn.Tanh(), nn.Linear(n, n), nn.Tanh(), nn.Linear(n, d))


class _Data:
    """Makes the batches of a seed."""

    def __init__(self, points: int) -> None:
        self.points = points

    def __call__(self, seed: int) -> DataLoader[tuple[Tensor, ...]]:
        """The batches, in another order in each epoch."""
        generator = torch.Generator().manual_seed(seed)
        return DataLoader(data.annuli(self.points, generator=generator), _BATCH, shuffle=True, generator=generator)


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    loss: Tensor = (model(x) - y).square().mean()
    return loss


def _optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=5e-3)


def _test(model: nn.Module) -> float:
    x, y = data.annuli(2000, generator=torch.Generator().manual_seed(_TEST_SEED)).tensors
    with torch.no_grad():
        return _loss(model, (x, y)).item()
