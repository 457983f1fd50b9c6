"""How results came about, for what is written beside them."""

from __future__ import annotations

from typing import Any

import torch

from pynode.engine.choose import choose
from pynode.study.environment import environment

__all__ = ["record"]


def record(engine: str, seed: int, seconds: float) -> dict[str, Any]:
    """The engine that ran, the seed, torch's threads, the seconds, and the versions of everything.

    Args:
        engine: the name that was asked for, `"auto"` among them.
        seed: of the program's random numbers, the first one where it uses several.
        seconds: that the program took.
    """
    return {
        "engine": choose(engine, "auto", "auto")[0].name,
        "seed": seed,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        **environment(),
    }
