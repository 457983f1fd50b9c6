"""Provides Julia and its packages, through juliapkg, when that is asked for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pynode.engine.julia.runtime import PYNODE_UUID, julia_folder, juliapkg_project
from pynode.errors import EngineUnavailable

__all__ = ["CUDA", "EXTRAS", "JULIA_VERSIONS", "Plan", "install"]

JULIA_VERSIONS = "~1.10, 1.11"

# Packages that PyNODE loads on demand, with the versions that it was run with.
EXTRAS = {
    "ComponentArrays": ("b0b7db55-cfe3-40fc-9ded-d10e2dbeff66", "0.15"),
    "FFTW": ("7a1cc6ca-52ef-59f5-83cd-3a7055c09341", "1.8"),
    "ForwardDiff": ("f6369f11-7733-5829-9624-2563aa707210", "0.10, 1"),
    "OrdinaryDiffEqAdamsBashforthMoulton": ("89bda076-bce5-4f1c-845f-551c83cdda9a", "1"),
    "OrdinaryDiffEqBDF": ("6ad6398a-0878-4a85-9266-38940aa047c8", "1"),
    "OrdinaryDiffEqLowStorageRK": ("b0944070-b475-4768-8dec-fb6eb410534d", "1"),
    "OrdinaryDiffEqRosenbrock": ("43230ef6-c299-4910-a778-202eb28ce4ce", "1"),
    "OrdinaryDiffEqSDIRK": ("2d112036-d095-4a1e-ab9a-08536f3ecdbf", "1"),
    "OrdinaryDiffEqSSPRK": ("669c94d9-1f4b-4b64-b377-1aa079aa2388", "1"),
    "OrdinaryDiffEqStabilizedRK": ("358294b1-0aab-51c3-aafe-ad5ab194a2ad", "1"),
    "ReverseDiff": ("37e2e3b7-166d-5795-8a7a-e32c996b4267", "1.15"),
    "SciMLSensitivity": ("1ed8b502-d754-442c-8d5d-10ac956f44a1", "7.96"),
    "Zygote": ("e88e6eb3-aa80-5325-afca-941959d7151f", "0.6.67, 0.7"),
}

CUDA = {"CUDA": ("052768ef-5323-5732-b1bb-66c8b64840ba", "5.4, 6")}


@dataclass(frozen=True)
class Plan:
    """What `install` does.

    Attributes:
        project: the Julia environment that it makes.
        julia: the versions of Julia that will do.
        packages: the Julia packages, each with its versions or folder.
    """

    project: Path
    julia: str
    packages: dict[str, str]

    def __str__(self) -> str:
        lines = [f"Julia {self.julia} and these packages into {self.project}:"]
        return "\n".join([*lines, *(f"  {name} ({version})" for name, version in self.packages.items())])


def install(dry_run: bool = False, cuda: bool = False) -> Plan:
    """Provide Julia and the packages of the julia engine, through juliapkg, with its progress on the terminal.

    Args:
        dry_run: only say what would be done.
        cuda: also CUDA.jl, for states on a GPU.

    Returns:
        The plan that was, or would be, carried out.

    Raises:
        EngineUnavailable: juliapkg could not do it, e.g. without a connection; the message has its reason.
    """
    if os.environ.get("PYTHON_JULIACALL_EXE") or os.environ.get("PYTHON_JULIACALL_PROJECT"):
        raise EngineUnavailable(
            "PYTHON_JULIACALL_EXE and PYTHON_JULIACALL_PROJECT name a Julia of your own, which pynode leaves alone: "
            f'unset them, or add PyNODE to it yourself with Pkg.develop(path="{julia_folder()}")'
        )
    extras = {**EXTRAS, **(CUDA if cuda else {})}
    plan = Plan(
        juliapkg_project(),
        JULIA_VERSIONS,
        {"PyNODE": str(julia_folder()), **{name: version for name, (_, version) in extras.items()}},
    )
    if dry_run:
        return plan
    import juliapkg

    try:
        juliapkg.require_julia(JULIA_VERSIONS)
        juliapkg.add("PyNODE", PYNODE_UUID, dev=True, path=str(julia_folder()))
        for name, (uuid, version) in extras.items():
            juliapkg.add(name, uuid, version=version)
        juliapkg.resolve(force=True)
    except Exception as error:
        raise EngineUnavailable(
            f"Julia could not be installed: {error}. Check the connection, or install Julia yourself and set "
            "PYTHON_JULIACALL_EXE and PYTHON_JULIACALL_PROJECT"
        ) from error
    return plan
