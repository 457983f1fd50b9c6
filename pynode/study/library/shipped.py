"""The references of the named problems, which come with pynode."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pynode.errors import StudyError
from pynode.study.problem import Problem
from pynode.study.reference import Reference

__all__ = ["read", "write"]

_PREFIX = "gradient."
_TOLERANCE = 1e-6  # of what a problem's numbers may have changed by: less than between float32 and float64


def write(folder: Path, name: str, problem: Problem, reference: Reference, notes: dict[str, object]) -> Path:
    """Write the reference of a problem to a file of this name, with notes on how it was made."""
    notes = {
        **notes,
        "how": reference.how,
        "loss": reference.loss,
        "agreement": reference.agreement,
        "gradient_agreement": reference.gradient_agreement,
    }
    path = folder / f"{name}.npz"
    gradient: dict[str, Any] = {_PREFIX + key: value for key, value in reference.gradient.items()}
    np.savez_compressed(
        path,
        z=reference.z[1:],
        made_of=_numbers(problem),
        notes=json.dumps(notes),
        **gradient,
    )
    return path


def read(name: str, problem: Problem) -> Reference | None:
    """The reference of a named problem; `None` where none comes with pynode, and it is made when it is needed.

    Args:
        name: the problem's.
        problem: as the reference was made for, or the same in single precision.

    Raises:
        StudyError: the problem has changed since it was made.
    """
    place = resources.files(__package__) / "data" / "references" / f"{name}.npz"
    if not place.is_file():
        return None
    with place.open("rb") as file, np.load(file) as archive:
        arrays = {key: archive[key] for key in archive.files}
    notes = json.loads(str(arrays["notes"]))
    now = _numbers(problem)
    if now.shape != arrays["made_of"].shape or not np.allclose(now, arrays["made_of"], rtol=_TOLERANCE, atol=0):
        raise StudyError(
            f"{name} has changed since its reference was made: python -m pynode.study.library.make_references {name}"
        )
    return Reference(
        z=np.concatenate([problem.z0.double().unsqueeze(0).numpy(), arrays["z"]]),
        gradient={key.removeprefix(_PREFIX): arrays[key] for key in arrays if key.startswith(_PREFIX)},
        loss=notes["loss"],
        agreement=notes["agreement"],
        gradient_agreement=notes["gradient_agreement"],
        how=notes["how"],
        of=problem.equations,
    )


def _numbers(problem: Problem) -> np.ndarray:
    """The times, and the norms of the initial state and of each parameter, and of the field there."""
    with torch.no_grad():
        slope = problem.field(problem.t[0], problem.z0 + 0.01, *problem.args)
    parts = [problem.z0, *problem.parameters.values(), slope]
    norms = [float(part.detach().double().square().sum().sqrt()) for part in parts]
    return np.array([*problem.t.double().tolist(), *norms])
