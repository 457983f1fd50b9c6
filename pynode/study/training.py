"""Training studies: the same model trained by different means, loss against seconds and evaluations, with seeds."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pynode.engine.protocol import Stats
from pynode.errors import InputError
from pynode.problem.inputs import check_count
from pynode.study.accuracy import NotFinite
from pynode.study.cell import Cell
from pynode.study.contender import Contender
from pynode.study.content import digest
from pynode.study.measure import Report, outcome

__all__ = ["Training", "adam", "measure"]

_POINTS = 200  # of a curve, at most
_EVERY = 5.0  # seconds between two looks at a training that goes on


def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Adam with its usual rate of 1e-3."""
    return torch.optim.Adam(parameters, lr=1e-3)


@dataclass(frozen=True, eq=False)
class Training:
    """A training that each contender does, with a seed for each pass of the study.

    The options of a contender go to `make_model`: the solver, the sensitivity, the engine, or whichever model it is.
    The package of such a contender is whatever it is called; no adapter takes part.

    Attributes:
        make_model: `make_model(**options)` returns the model; torch is seeded before.
        data: batches, a `DataLoader` say, or a function of the seed that returns such; gone through once an epoch.
        loss: `loss(model, batch)` returns a 0-d tensor.
        epochs: how often the data are gone through.
        optimizer: of the parameters; Adam with a rate of 1e-3.
        test: `test(model)` returns the final error, a number.
        test_metric: what that is called.
        nfe: `nfe(model)` returns the evaluations of the field in the last forward and backward pass; by default those
            that the `stats` of the model and its parts tell, as pynode's models have them.
        contenders: who takes part in a study that names nobody.
        name: what the training is called.
        description: a sentence on what it is.
        source: where it is from.

    Example:
        >>> training = Training(make_model, DataLoader(dataset, 128), loss=lambda model, batch: …, epochs=10)
        >>> Study("mine", [training], Contender.grid("pynode", sensitivity=["discrete", "backsolve"]), passes=5).run()
    """

    kind: ClassVar[str] = "training"

    make_model: Callable[..., nn.Module]
    data: Iterable[Any] | Callable[[int], Iterable[Any]]
    loss: Callable[[nn.Module, Any], Tensor]
    epochs: int
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] = adam
    test: Callable[[nn.Module], float] | None = None
    test_metric: str = "test error"
    nfe: Callable[[nn.Module], tuple[int | None, int | None]] | None = None
    contenders: tuple[Contender, ...] = ()
    name: str = "training"
    description: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        check_count("epochs", self.epochs)
        for name in ("make_model", "loss", "optimizer"):
            if not callable(getattr(self, name)):
                raise InputError(f"{name} of a training must be callable, got {type(getattr(self, name)).__name__}")
        if not callable(self.data) and (not isinstance(self.data, Iterable) or isinstance(self.data, Iterator)):
            raise InputError(
                "data must be batches that can be gone through again and again, or a function of the seed that "
                f"returns such, got {type(self.data).__name__}. Pass a DataLoader or a list"
            )

    @functools.cached_property
    def content(self) -> str:
        """The digest of what it is."""
        parts = (self.make_model, self.data, self.loss, self.epochs, self.optimizer, self.test, self.nfe)
        return digest(self.name, self.test_metric, *parts)

    def batches(self, seed: int) -> Iterable[Any]:
        """The batches of each epoch.

        Raises:
            InputError: they can be gone through once alone.
        """
        found = self.data(seed) if callable(self.data) else self.data
        if isinstance(found, Iterator):
            raise InputError(
                f"data(seed) of the training {self.name!r} must return batches that can be gone through again and "
                f"again, once an epoch, got {type(found).__name__}. Return a DataLoader or a list"
            )
        return found

    def evaluations(self, model: nn.Module) -> tuple[int | None, int | None]:
        """Evaluations of the field in the last forward and in the last backward pass."""
        if self.nfe is not None:
            return self.nfe(model)
        found = [stats for m in model.modules() if isinstance(stats := getattr(m, "stats", None), Stats)]
        backward = [s.nfe_backward for s in found if s.nfe_backward is not None]
        return (sum(s.nfe for s in found) if found else None), (sum(backward) if backward else None)


def measure(cell: Cell, report: Report) -> None:
    """Train, and report the curves: what was there when the process is ended is kept."""
    training: Training = cell.problem
    seed = cell.seed + cell.number
    report("making the model", seed=seed, test_metric=training.test_metric if training.test else None)
    try:
        torch.manual_seed(seed)
        model = training.make_model(**cell.contender.options)
        course = _Course(report)
        _train(training, model, seed, course)
        report("testing", **course.columns())
        error = None if training.test is None else float(training.test(model))
        if error is not None and not math.isfinite(error):
            raise NotFinite(f"the {training.test_metric} is {error}")
        report("tested", test_error=error, status="ok", reason="")
    except Exception as error:
        status, reason = outcome(error)
        report("ending", status=status, reason=reason)


def _train(training: Training, model: nn.Module, seed: int, course: _Course) -> None:
    batches = training.batches(seed)
    first = next(iter(batches), None)
    if first is None:
        raise InputError(f"the data of the training {training.name!r} have no batch")
    course.report("the first step")
    started = time.perf_counter()
    training.loss(model, first).backward()  # what is compiled at the first call is no part of the training
    course.first = time.perf_counter() - started
    model.zero_grad(set_to_none=True)
    optimizer = training.optimizer(model.parameters())
    torch.manual_seed(seed)  # so that the order of the batches is that of all contenders
    course.report("training", seconds_first=course.first)
    for epoch in range(training.epochs):
        before = len(course.points)
        for batch in batches:
            started = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            loss = training.loss(model, batch)
            loss.backward()
            optimizer.step()
            course.step(loss.item(), time.perf_counter() - started, *training.evaluations(model))
        if len(course.points) == before:
            raise InputError(
                f"the data of the training {training.name!r} have no batch in epoch {epoch + 1} of {training.epochs}: "
                "they must be such that they can be gone through again and again. Pass a DataLoader or a list"
            )
        course.end_of_epoch()


class _Course:
    """What is noted of a training as it goes on."""

    def __init__(self, report: Report) -> None:
        self.report, self.first = report, 0.0
        self.seconds, self.forward, self.backward, self.known = 0.0, 0, 0, True
        self.points: list[tuple[float, int, float]] = []  # seconds, evaluations, loss, after each step
        self.of_epoch: list[int] = []
        self.epochs: list[float] = []
        self.reported = time.monotonic()

    def step(self, loss: float, seconds: float, nfe: int | None, nfe_backward: int | None) -> None:
        """Note a step.

        Raises:
            NotFinite: the loss is not.
        """
        if not math.isfinite(loss):
            raise NotFinite(f"the loss of step {len(self.points) + 1} is {loss}")
        self.seconds += seconds
        if nfe is None:
            self.known = False
        else:
            self.forward, self.backward = self.forward + nfe, self.backward + (nfe_backward or 0)
            self.of_epoch.append(nfe)
        self.points.append((self.seconds, self.forward + self.backward, loss))
        if time.monotonic() - self.reported > _EVERY:
            self.report(f"training, after {len(self.points)} steps", **self.columns())
            self.reported = time.monotonic()

    def end_of_epoch(self) -> None:
        """Note the mean number of evaluations of a forward pass in the epoch."""
        if self.of_epoch:
            self.epochs.append(sum(self.of_epoch) / len(self.of_epoch))
        self.of_epoch = []

    def columns(self) -> dict[str, Any]:
        """The columns of a row, as far as it goes: of many steps, means of as many as make a curve of some points."""
        size = math.ceil(len(self.points) / _POINTS)
        groups = [self.points[i : i + size] for i in range(0, len(self.points), size or 1)]
        curves: dict[str, list[float]] = {
            "seconds": [group[-1][0] for group in groups],
            "loss": [sum(loss for _, _, loss in group) / len(group) for group in groups],
        }
        if self.known:
            curves |= {"nfe": [group[-1][1] for group in groups], "epoch_nfe": self.epochs}
        return {
            "curves": curves,
            "seconds": self.seconds,
            "loss": self.points[-1][2] if self.points else None,
            "nfe": self.forward if self.known else None,
            "nfe_backward": self.backward if self.known else None,
        }
