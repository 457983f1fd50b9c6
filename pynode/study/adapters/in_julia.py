"""What the adapters of Julia packages share: the one Julia, what its environment has, and the problem as its arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pynode.engine.julia import environment, runtime
from pynode.errors import NotComparable
from pynode.study.problem import Problem

__all__ = [
    "SOLVERS",
    "STIFF",
    "array",
    "flat_of",
    "flat_parameters",
    "julia",
    "missing_packages",
    "numpy_of",
    "start",
    "version_of",
]

# Where the solvers are that adapters offer: in OrdinaryDiffEq's sub-packages.
SOLVERS = {
    "Tsit5": "OrdinaryDiffEqTsit5",
    "BS3": "OrdinaryDiffEqLowOrderRK",
    "DP5": "OrdinaryDiffEqLowOrderRK",
    "DP8": "OrdinaryDiffEqHighOrderRK",
    "Vern6": "OrdinaryDiffEqVerner",
    "Vern7": "OrdinaryDiffEqVerner",
    "Vern8": "OrdinaryDiffEqVerner",
    "Vern9": "OrdinaryDiffEqVerner",
    "Rosenbrock23": "OrdinaryDiffEqRosenbrock",
    "Rodas4": "OrdinaryDiffEqRosenbrock",
    "Rodas5P": "OrdinaryDiffEqRosenbrock",
    "TRBDF2": "OrdinaryDiffEqSDIRK",
    "KenCarp4": "OrdinaryDiffEqSDIRK",
    "FBDF": "OrdinaryDiffEqBDF",
    "QNDF": "OrdinaryDiffEqBDF",
}
STIFF = ("Rosenbrock23", "Rodas4", "Rodas5P", "TRBDF2", "KenCarp4", "FBDF", "QNDF")


def missing_packages(name: str, packages: tuple[str, ...]) -> str:
    """Why what needs these packages of Julia's cannot take part; nothing where it can. Starts nothing."""
    there = runtime.available()
    if not there.ok:
        return f"{name} cannot take part: {there.why}. {there.fix}"
    found = environment.read(environment.project_folder())
    lacking = [package for package in packages if package not in found.direct]
    if not lacking:
        return ""
    return f"{name} cannot take part: the Julia environment {found.folder} does not have {', '.join(lacking)}"


def start() -> Any:
    """The module Main of the Julia that pynode uses."""
    runtime.start()
    from juliacall import Main  # only now: it starts Julia

    return Main


def julia(problem: Problem) -> str:
    """The problem's field as Julia code.

    Raises:
        NotComparable: it has none, or it has conditioning tensors, which the code does not get.
    """
    if not problem.julia:
        raise NotComparable('the problem has no field in Julia: pass Problem(julia="function (du, u, p, t) … end")')
    if problem.args:
        raise NotComparable("the problem's field in Julia does not get its args: make them parameters of the field")
    return problem.julia


def array(main: Any, x: Tensor) -> Any:
    """An array of Julia's own with the same memory, so that its dimensions are reversed."""
    flat = np.ascontiguousarray(x.detach().numpy()).reshape(-1)
    return main.reshape(main.Array(flat), tuple(reversed(x.shape)) or (1,))


def flat_parameters(problem: Problem) -> Tensor:
    """All parameters of the field in a row."""
    named = problem.field.parameters() if isinstance(problem.field, torch.nn.Module) else ()
    flat = [p.detach().reshape(-1) for p in named]
    return torch.cat(flat) if flat else problem.z0.new_zeros(0)


def numpy_of(states: Any, problem: Problem) -> np.ndarray:
    """States `(time, *z0.shape)` from Julia's, which have the dimensions in reverse, without a copy."""
    z: np.ndarray = np.asarray(states).T
    return z.reshape(len(problem.t), *problem.z0.shape)


def flat_of(x: Any) -> np.ndarray:
    """The numbers of an array of Julia's, or of zeros where it has no gradient, in the order of memory."""
    return np.array(np.asarray(x).T, order="C").reshape(-1)


def version_of(package: str) -> str:
    """The version of a package in Julia's environment; nothing where it is not there."""
    if not runtime.available().ok:
        return ""
    return environment.read(environment.project_folder()).versions.get(package, "")
