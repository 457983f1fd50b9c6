"""Who takes part in a study: a package with its options."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pynode.errors import InputError
from pynode.study.setting import Setting

__all__ = ["Contender"]

Option = str | int | float | bool


@dataclass(frozen=True)
class Contender:
    """A package that solves, with its options.

    Attributes:
        package: the name of an adapter, see `pynode.study.contenders()`; or an `Adapter` class of your own, which may
            be given as `"module:Class"` or `"FILE.py:Class"` too.
        options: what its adapter takes: `engine`, `solver`, `sensitivity`, `batching`, …
        settings: the tolerances or steps at which it solves, in place of the problem's.
        label: what it is called in the report: the package with its options where it is not given.
    """

    package: str | type
    options: Mapping[str, Option] = field(default_factory=dict)
    settings: tuple[Setting, ...] | None = None
    label: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.package, type):
            object.__setattr__(self, "package", f"{self.package.__module__}:{self.package.__qualname__}")
        if not isinstance(self.package, str) or not self.package:
            raise InputError(
                f"package must be the name of an adapter, or 'module:Class' of your own, got {self.package!r}"
            )
        if not isinstance(self.label, str):
            raise InputError(f"the label of a contender must be a text, got {self.label!r}. Pass e.g. label='mine'")
        for name, value in self.options.items():
            if not isinstance(name, str) or not isinstance(value, str | int | float | bool):
                raise InputError(
                    f"the options of a contender are texts, numbers and truth values by name, got {name}={value!r}. "
                    "Contender.grid takes a list for each"
                )
        object.__setattr__(self, "options", dict(self.options))
        if self.settings is not None:
            settings = tuple(self.settings)
            if not settings or not all(isinstance(s, Setting) for s in settings):
                raise InputError(f"settings must be some of Setting, got {self.settings!r}")
            object.__setattr__(self, "settings", settings)
        if not self.label:
            words = [self.package.rpartition(":")[2], *itertools.starmap(_word, self.options.items())]
            object.__setattr__(self, "label", " ".join(w for w in words if w))

    def __hash__(self) -> int:
        return hash((self.package, tuple(sorted(self.options.items())), self.settings, self.label))

    @classmethod
    def grid(
        cls, package: str | type, *, settings: Sequence[Setting] | None = None, **options: Option | Sequence[Option]
    ) -> list[Contender]:
        """A contender for each combination of the options, each of which may be a list.

        Examples:
            >>> [c.label for c in Contender.grid("pynode", engine="torch", solver=["dopri5", "bosh3"])]
            ['pynode torch dopri5', 'pynode torch bosh3']
        """
        lists = [x if isinstance(x, list | tuple) else [x] for x in options.values()]
        if not all(lists):
            raise InputError("each option of a grid has at least one value, got an empty list")
        given = None if settings is None else tuple(settings)
        return [cls(package, dict(zip(options, values, strict=True)), given) for values in itertools.product(*lists)]


def _word(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return name if value else f"no {name}"
    return value if isinstance(value, str) else f"{name}={value}"
