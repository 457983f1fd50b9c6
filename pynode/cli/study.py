"""`pynode study run`, `problems` and `contenders`."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pynode.errors import InputError
from pynode.text import table

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from pynode.study import Contender, Problem, Study

__all__ = ["add"]

_STORE = Path("out/studies.db")
_QUICK = {"measures": ("state", "gradient"), "repeats": 5, "budget": 0.5, "time_limit": 30.0}


def add(actions: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add them to the commands of `pynode study`."""
    run = actions.add_parser("run", help="run a study, or go on with one that was stopped, and print its table")
    run.add_argument(
        "what",
        nargs="+",
        metavar="FILE.toml | PROBLEM",
        help="the file of a study; or problems: names of `pynode study problems`, or FILE.py:NAME",
    )
    run.add_argument("--quick", action="store_true", help="two minutes: fewer contenders and repeats, no memory")
    run.add_argument("--store", type=Path, default=_STORE, help=f"the file of the rows (default: {_STORE})")
    run.add_argument("--name", help="of the study in the store (default: the file's, or the problems')")
    run.add_argument("--engine", nargs="+", choices=("julia", "torch"), help="of pynode, these engines alone")
    run.add_argument("--package", nargs="+", help="these packages alone, see `pynode study contenders`")
    run.add_argument("--workers", type=int, default=1, help="cells that run at once, which disturb each other")
    run.add_argument("--passes", type=int, help="how often each cell is run")
    run.add_argument("--threads", type=int, help="of each contender")
    run.add_argument("--time-limit", type=float, metavar="SECONDS", help="of each cell")
    run.set_defaults(run=_run)

    problems = actions.add_parser("problems", help="list the problems that come with pynode")
    problems.set_defaults(run=_problems)

    contenders = actions.add_parser("contenders", help="list the packages that can take part, with their options")
    contenders.set_defaults(run=_contenders)


def _run(arguments: argparse.Namespace) -> int:
    study = _study(arguments)
    try:
        result = study.run(arguments.store, workers=arguments.workers)
    except KeyboardInterrupt:
        print(f"stopped. The rows so far are in {arguments.store}: the same command goes on", file=sys.stderr)
        return 130
    print(result.table())
    print(f"\nThe rows are in {arguments.store}, as the study {study.name!r}")
    return 0 if any(row["status"] == "ok" for row in result) else 1


def _study(arguments: argparse.Namespace) -> Study:
    from pynode.study import Study
    from pynode.study.description import read

    given = {name: getattr(arguments, name) for name in ("name", "passes", "threads", "time_limit")}
    given = {name: value for name, value in given.items() if value is not None}
    quick = _QUICK if arguments.quick else {}
    if any(what.endswith(".toml") for what in arguments.what):
        if len(arguments.what) > 1:
            raise InputError(f"one file is a study of its own, got {' '.join(arguments.what)}. Run one after the other")
        description = read(arguments.what[0])
    else:
        name = " ".join([*(what.rpartition(":")[2] for what in arguments.what), *(["quick"] if quick else [])])
        description = {"name": name, "problems": arguments.what, **({"contenders": "quick"} if quick else {})}
    study = Study.from_dict({**description, **quick, **given})
    if arguments.engine or arguments.package:
        study.contenders = functools.partial(_chosen, study.contenders, arguments.engine, arguments.package)
    return study


def _chosen(
    contenders: Sequence[Contender] | Callable[[Problem], Sequence[Contender]],
    engines: Sequence[str] | None,
    packages: Sequence[str] | None,
    problem: Any,
) -> list[Contender]:
    """Of the contenders of a problem, those of some engines and packages.

    Raises:
        InputError: there is none.
    """
    every = contenders(problem) if callable(contenders) else contenders
    found = [
        c
        for c in every
        if (packages is None or c.package in packages)
        and (engines is None or c.package != "pynode" or c.options.get("engine", "auto") in engines)
    ]
    if not found:
        there = ", ".join(dict.fromkeys(str(c.package) for c in every))
        raise InputError(f"no contender of {problem.name} is left: it has {there}, see also `pynode study contenders`")
    return found


def _problems(arguments: argparse.Namespace) -> int:
    from pynode import study

    print(table(("problem", "what it is"), list(study.problems().items())))
    return 0


def _contenders(arguments: argparse.Namespace) -> int:
    from pynode import study

    for offer in study.contenders().values():
        print(f"{offer.name} {offer.version}".rstrip() + (f": {offer.missing}" if offer.missing else ""))
        for name, option in offer.options.items():
            print(f"    {name}: {option.valid} (default: {option.default!r})")
    return 0
