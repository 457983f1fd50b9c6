"""Provides Julia and its packages, through juliapkg, when that is asked for."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pynode.engine.julia import lock
from pynode.engine.julia.environment import juliapkg_project
from pynode.engine.julia.runtime import PYNODE_UUID, available, julia_folder
from pynode.errors import EngineUnavailable, InputError

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
    "StochasticDiffEq": ("789caeaf-c7a9-5a7d-9973-96adeb23e2a0", "6.102"),
    "Zygote": ("e88e6eb3-aa80-5325-afca-941959d7151f", "0.6.67, 0.7"),
}

CUDA = {"CUDA": ("052768ef-5323-5732-b1bb-66c8b64840ba", "5.4, 6")}


@dataclass(frozen=True)
class Plan:
    """What `install` does.

    Attributes:
        project: the Julia environment that it makes.
        depot: where Julia keeps packages, for all its environments.
        julia: the versions of Julia that will do.
        packages: the Julia packages that are asked for, each with its versions or folder.
        locked: how many packages the lock file has; 0 where it is not used.
    """

    project: Path
    depot: Path
    julia: str
    packages: dict[str, str]
    locked: int = 0

    def __str__(self) -> str:
        exactly = f", and what they need, {self.locked} in all, in exactly the versions of pynode's lock file"
        return "\n".join(
            [
                f"Julia {self.julia} and these packages{exactly * bool(self.locked)}:",
                *(f"  {name} ({version})" for name, version in self.packages.items()),
                "",
                "Downloaded: Julia from julialang.org, about 0.2 GB, unless juliaup or the PATH has one that fits; the "
                "packages and their libraries, less than 1 GB, from Julia's package server or the one that "
                "JULIA_PKG_SERVER names. Then the packages are compiled, which takes some minutes.",
                f"Written: the environment, and a Julia that is downloaded, to {self.project}; packages and compiled "
                f"code to {self.depot}, which all environments of Julia's share. Together about 3 GB.",
                f"To remove it: delete the folder {self.project}. Where nothing else uses Julia, delete {self.depot} "
                'too; otherwise `julia -e "using Pkg; Pkg.gc()"` removes the packages that no environment has.',
            ]
        )


def install(dry_run: bool = False, cuda: bool = False, locked: bool = False) -> Plan:
    """Provide Julia and the packages of the julia engine, through juliapkg, with its progress on the terminal.

    Args:
        dry_run: only say what would be done.
        cuda: also CUDA.jl, for states on a GPU.
        locked: exactly the versions of Julia and the packages that pynode was run with.

    Returns:
        The plan that was, or would be, carried out.

    Raises:
        InputError: cuda and locked, since the lock file has no CUDA.jl.
        EngineUnavailable: the environment is not one that can be made, or making it failed, e.g. without a
            connection; the message has the reason.
    """
    if cuda and locked:
        raise InputError("the lock file has no CUDA.jl: leave out cuda or locked")
    if os.environ.get("PYTHON_JULIACALL_EXE") or os.environ.get("PYTHON_JULIACALL_PROJECT"):
        raise EngineUnavailable(
            "PYTHON_JULIACALL_EXE and PYTHON_JULIACALL_PROJECT name a Julia of your own, which pynode leaves alone: "
            f'unset them, or add PyNODE to it yourself with Pkg.develop(path="{julia_folder()}")'
        )
    from juliapkg.state import STATE

    plan = _plan(cuda, locked)
    if dry_run:
        return plan
    if STATE["offline"]:
        raise EngineUnavailable("juliapkg is told to download nothing: unset PYTHON_JULIAPKG_OFFLINE")
    try:
        if locked:
            lock.install(julia_folder())
        else:
            _install({**EXTRAS, **(CUDA if cuda else {})})
    except subprocess.CalledProcessError as error:
        raise EngineUnavailable(
            f"Julia could not be installed: Julia's package manager failed (exit code {error.returncode}), and "
            f"has said why above. {_RETRY}"
        ) from error
    except EngineUnavailable:
        raise
    except Exception as error:
        raise EngineUnavailable(f"Julia could not be installed: {error}. {_RETRY}") from error
    state = available()
    if not state.ok:
        raise EngineUnavailable(f"Julia was installed, but does not serve: {state.why}. {state.fix}")
    return plan


_RETRY = (
    "Check the connection and run the command again, which keeps what is there already, or install Julia yourself and "
    "set PYTHON_JULIACALL_EXE and PYTHON_JULIACALL_PROJECT"
)


def _plan(cuda: bool, locked: bool) -> Plan:
    from juliapkg.state import STATE

    packages = {"PyNODE": str(julia_folder())}
    project, depot = juliapkg_project(), Path(STATE["depot"])
    if not locked:
        packages |= {name: version for name, (_, version) in {**EXTRAS, **(CUDA if cuda else {})}.items()}
        return Plan(project, depot, JULIA_VERSIONS, packages)
    found = lock.read(julia_folder())
    packages |= {name: found.versions[name] for name in found.direct if name != "PyNODE"}
    return Plan(project, depot, found.julia, packages, len(found.packages))


def _install(packages: dict[str, tuple[str, str]]) -> None:
    """Let juliapkg provide Julia and the packages, in the newest versions that are allowed."""
    import juliapkg

    juliapkg.require_julia(JULIA_VERSIONS)
    juliapkg.add("PyNODE", PYNODE_UUID, dev=True, path=str(julia_folder()))
    for name, (uuid, version) in packages.items():
        juliapkg.add(name, uuid, version=version)
    juliapkg.resolve(force=True)
