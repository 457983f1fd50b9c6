"""A study as data: what a TOML file has, and what the store keeps.

```toml
name = "orbits"
measures = ["state", "gradient"]
repeats = 20

problems = ["lotka_volterra", "model.py:problem", { name = "van_der_pol", mu = 10.0, rtol = [1e-3, 1e-6] }]

[[contenders]]
package = "pynode"
engine = ["torch", "julia"]           # a list is a contender for each
solver = "dopri5"

[[contenders]]
package = "torchdiffeq"
method = "rk4"
dt = [0.1, 0.01]                      # steps, or rtol, in place of the problem's
```

A problem is a name of the library's, with options of it, or `FILE.py:NAME` or `module:NAME`, which is a `Problem` or
a function that returns one. `contenders = "default"`, or no contenders, takes those of `pynode.study.defaults`, and
`"quick"` a few of them.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pynode.errors import InputError, unknown_name
from pynode.study import library
from pynode.study.contender import Contender
from pynode.study.defaults import default_contenders, quick_contenders
from pynode.study.named import find
from pynode.study.setting import Setting

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from pynode.study.study import Study

__all__ = ["arguments", "described", "read"]

_PLAIN = ("name", "measures", "repeats", "budget", "passes", "time_limit", "memory_limit", "threads", "seed")
_CHOSEN = {"default": default_contenders, "quick": quick_contenders}
_SETTINGS = ("rtol", "atol", "dt")


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a TOML file has; paths in it are relative to it.

    Raises:
        InputError: it is not there, or no TOML.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"there is no file {file}: give the path of a study, a TOML file")
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is no TOML file: {error}") from error
    folder = file.resolve().parent
    for key, named in (("problems", "name"), ("contenders", "package")):
        if isinstance(found.get(key), list):
            found[key] = [_with_path(each, named, folder) for each in found[key]]
    return {"name": file.stem} | found


def _with_path(each: Any, named: str, folder: Path) -> Any:
    """A problem or a contender with the file of `FILE.py:NAME` in full, which it has under this name or is itself."""
    if isinstance(each, dict):
        return {key: _with_path(value, named, folder) if key == named else value for key, value in each.items()}
    place, _, name = each.rpartition(":") if isinstance(each, str) else ("", "", "")
    return f"{folder / place}:{name}" if place.endswith(".py") else each


def arguments(description: Mapping[str, Any]) -> dict[str, Any]:
    """What `Study` takes, of a description.

    Raises:
        InputError: a key or a value is not usable.
    """
    for key in description:
        if key not in (*_PLAIN, "problems", "contenders"):
            raise unknown_name("key of a study", key, (*_PLAIN, "problems", "contenders"))
    for key in ("name", "problems"):
        if key not in description:
            raise InputError(f"a study needs {key}, got {', '.join(description) or 'nothing'}")
    problems = [_problem(each) for each in _listed("problems", description["problems"])]
    contenders: Any = description.get("contenders", "default")
    if isinstance(contenders, str):
        if contenders not in _CHOSEN:
            raise unknown_name("choice of contenders", contenders, _CHOSEN)
        contenders = _CHOSEN[contenders]
    else:
        contenders = [c for each in _listed("contenders", description["contenders"]) for c in _contenders(each)]
    return {
        **{name: description[name] for name in _PLAIN if name in description},
        "problems": problems,
        "contenders": contenders,
    }


def described(study: Study) -> dict[str, Any]:
    """A study as data, which `arguments` takes unless problems or contenders were given as objects of the user's."""
    plain = {name: getattr(study, name) for name in _PLAIN} | {"measures": list(study.measures)}
    problems = [each if isinstance(each, str) else _of_problem(each) for each in study.problems]
    found = {**plain, "problems": problems}
    for name, chosen in _CHOSEN.items():
        if study.contenders is chosen:
            return {**found, "contenders": name}
    if callable(study.contenders):
        return {**found, "contenders": getattr(study.contenders, "__qualname__", type(study.contenders).__name__)}
    return {**found, "contenders": [_of_contender(c) for c in study.contenders]}


def _listed(name: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, list | tuple) or not value:
        raise InputError(f"{name} must be a list with at least one entry, got {value!r}")
    return value


def _problem(each: Any) -> Any:
    """A problem by a text or a table; a plain name of the library's stays a name."""
    if not isinstance(each, str | Mapping):
        raise InputError(f"a problem is a name, or a table with a name and options, got {each!r}")
    table = {"name": each} if isinstance(each, str) else dict(each)
    if "content" in table:
        raise InputError(f"the problem {table.get('name')!r} was an object of Python's: a description cannot make it")
    name = table.pop("name", None)
    if not isinstance(name, str):
        raise InputError(f"a problem needs a name, got {each!r}")
    settings = _settings_of(table)
    if ":" in name:
        problem = _made(find(name, "the problem"), name, table)
    elif table or settings:
        problem = library.problem(name, **table)
    else:
        return name
    return dataclasses.replace(problem, settings=settings) if settings else problem


def _made(found: Any, name: str, options: dict[str, Any]) -> Any:
    if callable(found) and not hasattr(found, "kind"):
        try:
            found = found(**options)
        except TypeError as error:
            given = f"the options {options}" if options else "a call without options"
            raise InputError(
                f"{name} must be a pynode.study.Problem, or a function that returns one, and does not take {given}: "
                f"{error}"
            ) from error
    elif options:
        raise InputError(f"{name} is a problem, and takes no options, got {', '.join(options)}")
    if not hasattr(found, "kind"):
        raise InputError(f"{name} must be a pynode.study.Problem, or a function that returns one, got {found!r}")
    return found


def _contenders(each: Any) -> list[Contender]:
    if isinstance(each, str):
        return [Contender(each)]
    if not isinstance(each, Mapping) or not isinstance(each.get("package"), str):
        raise InputError(f"a contender is a table with a package and its options, got {each!r}")
    options = dict(each)
    package, label, settings = options.pop("package"), options.pop("label", ""), _settings_of(options)
    grid = Contender.grid(package, settings=settings or None, **options)
    if label == "":
        return grid
    if len(grid) > 1:
        raise InputError(f"the label {label!r} is for one contender, got lists of options, which make {len(grid)}")
    return [dataclasses.replace(grid[0], label=label)]


def _settings_of(table: dict[str, Any]) -> tuple[Setting, ...]:
    """The settings of a table, whose keys are taken out of it."""
    given = {name: table.pop(name) for name in _SETTINGS if name in table}
    lists = {name: value if isinstance(value, list | tuple) else [value] for name, value in given.items()}
    for name, values in lists.items():
        if not values:
            raise InputError(
                f"{name} must be a number, or a list of at least one, got []. Leave it out for those of the problem"
            )
    if "dt" in lists and len(lists) > 1:
        raise InputError(f"settings are tolerances or steps, got {', '.join(given)}")
    if "atol" in lists and len(lists["atol"]) != len(lists.get("rtol", [])):
        raise InputError("atol goes with rtol: give as many of one as of the other")
    return tuple(Setting(**dict(zip(lists, values, strict=True))) for values in zip(*lists.values(), strict=True))


def _of_settings(settings: Sequence[Setting] | None) -> dict[str, list[float]]:
    if not settings:
        return {}
    if all(s.dt is not None for s in settings):
        return {"dt": [s.dt for s in settings if s.dt is not None]}
    return {
        "rtol": [s.rtol for s in settings if s.rtol is not None],
        "atol": [s.atol for s in settings if s.atol is not None],
    }


def _of_contender(contender: Contender) -> dict[str, Any]:
    return {
        "package": contender.package,
        **contender.options,
        **_of_settings(contender.settings),
        "label": contender.label,
    }


def _of_problem(problem: Any) -> dict[str, Any]:
    facts = {name: getattr(problem, name, "") for name in ("kind", "name", "description", "source")}
    return {**facts, "content": problem.content}
