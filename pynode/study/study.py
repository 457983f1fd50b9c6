"""A study: problems, contenders and measures, and the cells that they make."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

from pynode.errors import InputError, unknown_name
from pynode.problem.inputs import check_count, check_integer, check_number
from pynode.study.adapters import check
from pynode.study.cell import Cell, adapter_of
from pynode.study.contender import Contender
from pynode.study.description import arguments, described, read
from pynode.study.library import problem
from pynode.study.problem import Problem
from pynode.study.result import Result
from pynode.study.run import run
from pynode.study.store import Store

__all__ = ["MEASURES", "Study"]

MEASURES = ("state", "gradient", "memory")


@dataclass
class Study:
    """A comparison of contenders on problems, on equal terms.

    Each problem is solved by each contender at each setting, in a process of its own with the same number of threads,
    in an order that is shuffled; the first call is timed apart from later ones.

    Attributes:
        name: by which the store and the report know it.
        problems: the problems, trainings among them, or names of the library's, see `pynode.study.problems()`.
        contenders: who takes part; or what gives them for a problem.
        measures: what is measured: `"state"`, which is always, `"gradient"`, and `"memory"`, which takes a second
            process for each cell.
        repeats: how many later calls are timed at most.
        budget: seconds after which no further call is made.
        passes: how often each cell is run, each time in another order.
        time_limit: seconds that a cell may take.
        memory_limit: MB of resident memory that it may take.
        threads: of each package.
        seed: of the order, and of torch's random numbers.

    Raises:
        InputError: an argument is not usable.
    """

    name: str
    problems: Sequence[Any]
    contenders: Sequence[Contender] | Callable[[Problem], Sequence[Contender]]
    measures: Sequence[str] = MEASURES
    repeats: int = 10
    budget: float = 2.0
    passes: int = 1
    time_limit: float = 300.0
    memory_limit: float = 8192.0
    threads: int = 1
    seed: int = 0
    _made: list[Any] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise InputError(f"a study needs a name, by which the store knows it, got {self.name!r}")
        if isinstance(self.problems, str) or not self.problems:
            raise InputError(f"problems must be a list of problems or their names, got {self.problems!r}")
        if isinstance(self.measures, str) or not isinstance(self.measures, Sequence):
            raise InputError(f"measures must be a list of {', '.join(MEASURES)}, got {self.measures!r}")
        for name in self.measures:
            if name not in MEASURES:
                raise unknown_name("measure", name, MEASURES)
        self.measures = tuple(m for m in MEASURES if m in {"state", *self.measures})
        for name in ("repeats", "passes", "threads"):
            check_count(name, getattr(self, name))
        check_integer("seed", self.seed)
        for name in ("budget", "time_limit", "memory_limit"):
            setattr(self, name, check_number(name, getattr(self, name)))
        if not callable(self.contenders):
            _check_contenders(self.contenders)

    def resolved(self) -> list[Any]:
        """The problems, those of the library made.

        Raises:
            InputError: a name is unknown, or two problems have one name.
        """
        if not self._made:
            self._made = [_problem(each) for each in self.problems]
            names = [problem.name for problem in self._made]
            _check_unique(names, "problems")
        return self._made

    def cells(self) -> list[Cell]:
        """The cells in the order in which they are run.

        Raises:
            InputError: a problem or an adapter is unknown.
        """
        cells = []
        problems = [(problem, problem.content) for problem in self.resolved()]
        for number in range(self.passes):
            of_pass = [cell for problem, content in problems for cell in self._cells_of(problem, content, number)]
            random.Random(f"{self.seed} {number}").shuffle(of_pass)
            cells += of_pass
        return cells

    def _cells_of(self, problem: Any, content: str, number: int) -> list[Cell]:
        contenders = self.contenders(problem) if callable(self.contenders) else self.contenders
        _check_contenders(contenders)
        cells = []
        measures = tuple(self.measures) if problem.kind == "solve" else ("state",)
        for contender in contenders:
            settings: Sequence[Any] = (None,)
            if problem.kind == "solve":
                adapter_of(contender)  # to refuse an unknown one, or a wrong option, before anything runs
                if isinstance(contender.package, str) and ":" not in contender.package:
                    check(contender.package, contender.options)
                settings = contender.settings or problem.settings
            cells += [
                Cell(
                    study=self.name,
                    problem=problem,
                    content=content,
                    contender=contender,
                    setting=setting,
                    number=number,
                    measures=measures,
                    repeats=self.repeats,
                    budget=self.budget,
                    time_limit=self.time_limit,
                    memory_limit=self.memory_limit,
                    threads=self.threads,
                    seed=self.seed,
                )
                for setting in dict.fromkeys(settings)
            ]
        return cells

    def run(
        self,
        store: str | os.PathLike[str] | Store | None = None,
        *,
        workers: int = 1,
        executor: Executor | None = None,
        progress: bool = True,
    ) -> Result:
        """Run the cells that a store does not have yet.

        A run that is stopped, by Ctrl-C or a power cut, is gone on with by running it again.

        Args:
            store: the file of the rows, or a `Store`; `None`: they are kept in memory.
            workers: how many cells run at once. Each row says how many others ran beside it, since those disturb.
            executor: what runs the cells instead: `concurrent.futures.ProcessPoolExecutor`, Dask's
                `Client.get_executor()`, `mpi4py.futures.MPIPoolExecutor`, or another.
            progress: whether to show a bar.

        Returns:
            The result, with the rows of all cells.

        Raises:
            InputError: a problem or an adapter is unknown.
            StudyError: a problem has no reference of its states, or cannot be sent to another process. One that has
                none of its gradient is solved all the same, and its gradients are not comparable.
        """
        return run(self.name, self.cells(), self.to_dict(), store, workers, executor, progress)

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> Study:
        """The study that a TOML file describes, see `pynode.study.description`.

        Raises:
            InputError: the file describes none.
        """
        return cls.from_dict(read(path))

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> Study:
        """The study that data describe, as `to_dict` returns them and a TOML file has them.

        Raises:
            InputError: they describe none.
        """
        return cls(**arguments(description))

    def to_dict(self) -> dict[str, Any]:
        """The study as data, for the store; problems that were given as objects appear with their digest alone."""
        return described(self)


def _problem(given: Any) -> Any:
    if not isinstance(given, str):
        if not hasattr(given, "kind") or not hasattr(given, "name"):
            raise InputError(
                f"problems must be Problem objects or names of the library's, got {type(given).__name__}. Make one "
                "with pynode.study.Problem(field, z0, t)"
            )
        return given
    return problem(given)


def _check_contenders(contenders: Any) -> None:
    if (
        isinstance(contenders, Contender | str)
        or not contenders
        or not all(isinstance(c, Contender) for c in contenders)
    ):
        raise InputError(
            f"contenders must be a list of Contender, got {contenders!r}. Make them with "
            "pynode.study.Contender.grid(package, option=[…])"
        )
    _check_unique([c.label for c in contenders], "contenders")


def _check_unique(names: Sequence[str], what: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{what} of a study differ in their names, got {', '.join(twice)} more than once")
