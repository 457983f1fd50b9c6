"""What the results of a problem are held against."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

__all__ = ["Reference"]


@dataclass(frozen=True, eq=False)
class Reference:
    """The right states and the right gradient of a problem, in double precision.

    Attributes:
        z: the states at the problem's times, `(time, *z0.shape)`.
        gradient: that of the problem's loss, by the names of the field's parameters and `"z0"`; empty where there is
            none.
        loss: the loss of these states.
        agreement: how far two independent ways to the states are apart: the relative root mean square of the
            difference.
        gradient_agreement: the same of the gradient, all of it as one vector.
        how: how it was made, for the report.
        of: the digest of what it was made of, `Problem.equations`, so that a problem which has changed since is told
            apart; empty for one that is yours.
        no_gradient: why there is no gradient, where one was wanted.
    """

    z: np.ndarray
    gradient: Mapping[str, np.ndarray]
    loss: float
    agreement: float
    gradient_agreement: float
    how: str
    of: str = ""
    no_gradient: str = ""

    def to_bytes(self) -> bytes:
        """All of it, for the store."""
        facts = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("z", "gradient")}
        gradient = {f"gradient {name}": array for name, array in self.gradient.items()}
        data = io.BytesIO()
        arrays: dict[str, Any] = {"z": self.z, "facts": np.array(json.dumps(facts)), **gradient}
        np.savez_compressed(data, **arrays)
        return data.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Reference:
        """The inverse of `to_bytes`."""
        with np.load(io.BytesIO(data), allow_pickle=False) as found:
            gradient = {n.removeprefix("gradient "): found[n] for n in found.files if n.startswith("gradient ")}
            return cls(z=found["z"], gradient=gradient, **json.loads(str(found["facts"])))
