"""The packages that take part in studies, each by an adapter of its own."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pynode.errors import StudyError, unknown_name
from pynode.study.adapters.option import Option as Option
from pynode.study.adapters.option import chosen
from pynode.study.adapters.package import Package as Package
from pynode.study.named import find

__all__ = ["Offer", "Option", "Package", "check", "contenders", "get"]

_ADAPTERS = {
    "pynode": "pynode:PyNODE",
    "torchdiffeq": "torchdiffeq:Torchdiffeq",
    "torchode": "torchode:Torchode",
    "torchdyn": "torchdyn:Torchdyn",
    "diffrax": "diffrax:Diffrax",
    "scipy": "scipy:SciPy",
    "diffeqpy": "diffeqpy:DiffEqPy",
    "diffeqflux": "diffeqflux:DiffEqFlux",
}


@dataclass(frozen=True)
class Offer:
    """A package that can be a contender.

    Attributes:
        name: what `Contender(package=…)` takes.
        options: what can be chosen.
        version: the version that is installed; nothing where none is.
        missing: why it cannot take part here; nothing where it can.
        page: the documentation that its adapter follows.
    """

    name: str
    options: Mapping[str, Option]
    version: str
    missing: str
    page: str

    @property
    def available(self) -> bool:
        """Whether it can take part here."""
        return not self.missing


def get(name: str) -> type[Any]:
    """The adapter of that name, or the user's class `"module:Class"`; none of the packages is imported by this.

    Raises:
        StudyError: there is none of that name, the message lists them; or the class is no adapter.
        InputError: there is no such class.
    """
    if ":" not in name:
        if name not in _ADAPTERS:
            raise StudyError(f"{unknown_name('package', name, _ADAPTERS)}. Or name a class of yours, 'module:Class'")
        module, _, name = _ADAPTERS[name].partition(":")
        found: type[Any] = getattr(importlib.import_module(f"pynode.study.adapters.{module}"), name)
        return found
    adapter: Any = find(name, "the adapter")
    lacks = [method for method in ("prepare", "solve", "gradient") if not callable(getattr(adapter, method, None))]
    if not isinstance(adapter, type) or lacks:
        raise StudyError(
            f"an adapter is a class with the methods prepare, solve and gradient, and {name!r} "
            + (f"has no {', '.join(lacks)}" if isinstance(adapter, type) else f"is a {type(adapter).__name__}")
        )
    return adapter


def check(package: str, options: Mapping[str, Any]) -> None:
    """Refuse options that an adapter does not have. One of the user's is asked if it has `OPTIONS`.

    Raises:
        StudyError: there is no such adapter, option or value; the message lists the valid ones.
    """
    offered = getattr(get(package), "OPTIONS", None)
    if offered is not None:
        chosen(package, offered, options)


def contenders() -> dict[str, Offer]:
    """Every package that can be a contender, with its options, and why it cannot take part here, if so."""
    found = {}
    for name in _ADAPTERS:
        adapter = get(name)
        found[name] = Offer(name, adapter.OPTIONS, adapter.version(), adapter.missing(), adapter.PAGE)
    return found
