"""`Package`: what the adapters have in common."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from typing import Any, ClassVar

from pynode.errors import NotComparable
from pynode.study.adapter import Gradient, Solved
from pynode.study.adapters.option import Option, chosen
from pynode.study.problem import Problem
from pynode.study.setting import Setting

__all__ = ["Package", "missing_modules", "tolerances"]


class Package:
    """An adapter of a package: it checks the options and whether the package is there, and leaves the rest to `build`.

    Attributes:
        NAME: by which contenders call it.
        DISTRIBUTION: by which pip installs it.
        MODULES: what has to be installed for it.
        IMPORTS: what has to be importable, where that is more.
        PAGE: the documentation that it follows.
        OPTIONS: what can be chosen.
    """

    NAME: ClassVar[str]
    DISTRIBUTION: ClassVar[str]
    MODULES: ClassVar[tuple[str, ...]] = ()
    IMPORTS: ClassVar[tuple[str, ...]] = ()
    PAGE: ClassVar[str]
    OPTIONS: ClassVar[Mapping[str, Option]] = {}

    @classmethod
    def missing(cls) -> str:
        """Why the package cannot take part here; nothing where it can. Imports nothing."""
        return missing_modules(cls.NAME, cls.MODULES)

    @classmethod
    def version(cls) -> str:
        """The version that is installed; nothing where none is."""
        try:
            return importlib.metadata.version(cls.DISTRIBUTION)
        except importlib.metadata.PackageNotFoundError:
            return ""

    def prepare(self, problem: Problem, setting: Setting, **options: Any) -> None:
        """Make everything ready for `solve` and `gradient`.

        Raises:
            StudyError: there is no such option, or it cannot have that value.
            NotComparable: the package is not installed, or cannot solve this problem.
        """
        using = chosen(self.NAME, self.OPTIONS, options)
        why = self.missing()
        if why:
            raise NotComparable(why)
        for module in self.IMPORTS or self.MODULES:
            try:
                importlib.import_module(module)
            except Exception as error:  # whatever a broken installation raises
                raise NotComparable(f"{self.NAME} cannot take part: importing {module} fails: {error}") from error
        self.build(problem, setting, **using)

    def build(self, problem: Problem, setting: Setting, **options: Any) -> None:
        """`prepare`, with a value for each option."""
        raise NotImplementedError

    def solve(self) -> Solved:
        """Solve the problem, without a gradient."""
        raise NotImplementedError

    def gradient(self) -> Gradient:
        """Solve the problem, and differentiate its loss."""
        raise NotImplementedError


def missing_modules(name: str, modules: tuple[str, ...]) -> str:
    """Which of the modules are not installed, in a sentence; nothing where all are."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if not missing:
        return ""
    return f"{name} cannot take part, {' and '.join(missing)} not being installed: pip install {' '.join(missing)}"


def tolerances(name: str, setting: Setting, adaptive: bool) -> dict[str, float]:
    """The setting as keywords `rtol` and `atol` of an adaptive solver, or `dt` of one with a fixed step.

    Raises:
        NotComparable: the setting is one for the other kind of solvers.
    """
    if adaptive:
        if setting.rtol is None or setting.atol is None:
            raise NotComparable(
                f"{name} chooses its steps: it needs a setting with rtol and atol, and this has dt alone"
            )
        return {"rtol": setting.rtol, "atol": setting.atol}
    if setting.dt is None:
        raise NotComparable(f"{name} has a fixed step: it needs a setting with dt, and this has tolerances alone")
    return {"dt": setting.dt}
