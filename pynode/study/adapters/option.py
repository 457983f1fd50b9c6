"""`Option`: a choice that an adapter offers, and the check of what was chosen."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pynode.errors import StudyError

__all__ = ["Option", "chosen"]


@dataclass(frozen=True)
class Option:
    """One option of an adapter.

    Attributes:
        values: those that it can have, or the type of its values.
        default: the one that it has unless another is given.
    """

    values: tuple[Any, ...] | type
    default: Any

    @property
    def valid(self) -> str:
        """The valid values in words."""
        return f"any {self.values.__name__}" if isinstance(self.values, type) else ", ".join(map(repr, self.values))

    def allows(self, value: object) -> bool:
        """Whether it can have this value."""
        if not isinstance(self.values, type):
            return any(type(value) is type(each) and value == each for each in self.values)
        if self.values is float:
            return isinstance(value, (int, float)) and not isinstance(value, bool)
        return isinstance(value, self.values) and (self.values is bool or not isinstance(value, bool))


def chosen(package: str, offered: Mapping[str, Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """What is chosen of each option: what is given, and the defaults.

    Raises:
        StudyError: there is no such option, or it cannot have that value; the message lists the valid ones.
    """
    for name, value in given.items():
        if name not in offered:
            near = difflib.get_close_matches(name, offered, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            options = ", ".join(map(repr, offered)) or "none"
            raise StudyError(f"{package} has no option {name!r}{hint}; its options are: {options}")
        if not offered[name].allows(value):
            near = difflib.get_close_matches(str(value), map(str, _values(offered[name])), n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise StudyError(f"{package} has no {name}={value!r}{hint}; valid are: {offered[name].valid}")
    return {name: given.get(name, option.default) for name, option in offered.items()}


def _values(option: Option) -> tuple[Any, ...]:
    return () if isinstance(option.values, type) else option.values
