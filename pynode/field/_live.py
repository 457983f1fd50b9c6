"""What evaluates a field."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from pynode.field._bindings import Reads
from pynode.field._frozen import Frozen
from pynode.field._memory import Memory
from pynode.field._substitution import LateRead, Substitution

__all__ = ["Live"]


class Live:
    """What evaluates a field: the copy of its function, and what reaches the tensors that no copy can replace.

    Args:
        function: the user's callable.
        reads: what it reads.
        named: its tensors, by name; `computed` those of them that are parametrized.
        values: what it reads instead of its own tensors, by name.
        memory: what is known of it.
        autocast: the dtype of autocast.
        unwraps: see `Frozen`.
        late: names of tensors that require a gradient and are no inputs.
        looks: whether to look at what it reads even where all is known.

    Attributes:
        read: names of the tensors that evaluations have read, as far as that is looked at.
        differentiates: whether they have called `torch.autograd.grad`, likewise.
        strict: whether a tensor that requires a gradient and has no place in a field is refused, likewise.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        reads: Reads,
        named: Mapping[str, Tensor],
        computed: Mapping[str, Tensor],
        values: Mapping[str, Tensor],
        memory: Memory,
        autocast: torch.dtype | None,
        unwraps: bool,
        late: Iterable[str] = (),
        looks: bool = False,
    ) -> None:
        self.by_id = {id(named[n]): x for n, x in values.items() if x is not named[n]}
        given = {path: values.get(path, x) for path, x in computed.items()}
        self.frozen = Frozen(function, reads, self.by_id, given, unwraps)
        self.autocast, self.memory = autocast, memory
        self.read: set[str] = set()
        self.differentiates, self.strict = False, True
        self.held = named  # so that no id is used again
        self.late = {id(named[n]): n for n in late}
        self.looks = looks or reads.opaque or bool(self.late)
        if self.looks:
            self.names = {id(named[n]): n for n in named if id(named[n]) not in self.late}
            self.names.update((id(x), n) for n, x in values.items())

    def __call__(self, t: Tensor, z: Any, *args: Tensor) -> Any:
        if self.autocast is not None:
            with torch.autocast(t.device.type, self.autocast):
                return self._evaluate(t, z, *args)
        return self._evaluate(t, z, *args)

    def _evaluate(self, t: Tensor, z: Any, *args: Tensor) -> Any:
        if not self.looks:
            return self.frozen.function(t, z, *args)
        arguments = (t, *(z if isinstance(z, tuple) else (z,)), *args)
        mode = Substitution(self.by_id, self.names, self.late, arguments, self.strict)
        try:
            with mode:
                out = self.frozen.function(t, z, *args)
        except LateRead as late:
            self.memory.learn(late)
            raise
        self.read |= mode.read
        self.differentiates |= mode.differentiates
        return out
