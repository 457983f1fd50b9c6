"""A cell of a study: one problem, one contender, one setting, one pass."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pynode import __version__
from pynode.study.adapter import Adapter
from pynode.study.adapters import get
from pynode.study.contender import Contender
from pynode.study.content import digest
from pynode.study.row import COLUMNS, TRAINING_COLUMNS, Row
from pynode.study.setting import Setting

__all__ = ["Cell", "adapter_of"]


@dataclass(frozen=True, eq=False)
class Cell:
    """What is measured in a process of its own.

    Attributes:
        study: the study's name.
        problem: a `Problem`, or a training.
        content: the digest of the problem.
        contender: who solves it.
        setting: the tolerances or the step; `None` for a training.
        number: which pass, from 0.
        measures: of `"state"`, `"gradient"`, `"memory"`.
        repeats: how many later calls are timed at most.
        budget: seconds after which no further call is made.
        time_limit: seconds that the whole process may take.
        memory_limit: MB of resident memory that it may take.
        threads: of all packages.
        seed: of torch's random numbers.
    """

    study: str
    problem: Any
    content: str
    contender: Contender
    setting: Setting | None
    number: int
    measures: tuple[str, ...]
    repeats: int
    budget: float
    time_limit: float
    memory_limit: float
    threads: int
    seed: int

    @functools.cached_property
    def key(self) -> str:
        """The digest of all that its numbers depend on, the versions of pynode and of the package too."""
        c = self.contender
        return digest(
            [self.content, c.package, sorted(c.options.items()), c.label, self.setting, self.number],
            [sorted(self.measures), self.repeats, self.budget, self.time_limit, self.memory_limit],
            [self.threads, self.seed, __version__, versions_of(self.contender)],
        )

    def row(self) -> Row:
        """Its row, as far as it is known before anything has run."""
        columns = {**COLUMNS, **TRAINING_COLUMNS} if self.problem.kind == "training" else COLUMNS
        s = self.setting or Setting(dt=1)
        return {
            **dict.fromkeys(columns),
            "key": self.key,
            "study": self.study,
            "kind": self.problem.kind,
            "problem": self.problem.name,
            "contender": self.contender.label,
            "package": self.contender.package,
            "options": dict(self.contender.options),
            "rtol": s.rtol,
            "atol": s.atol,
            "dt": s.dt if self.setting else None,
            "pass": self.number,
            "threads": self.threads,
            "dtype": getattr(self.problem, "dtype", None),
        }


def adapter_of(contender: Contender) -> Callable[[], Adapter]:
    """The class of a contender's adapter.

    Raises:
        StudyError: there is no such adapter.
        InputError: there is no such class of the user's.
    """
    return get(str(contender.package))


def versions_of(contender: Contender) -> Any:
    """The versions of what an adapter needs, `None` for what is not installed; of one that is the user's, its code."""
    found = adapter_of(contender)
    names = [getattr(found, "DISTRIBUTION", ""), *getattr(found, "MODULES", ())]
    own = [found] if ":" in str(contender.package) else []
    return [(name, _version(name)) for name in dict.fromkeys(filter(None, names))], own


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
