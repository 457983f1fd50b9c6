"""What a field computes from the time alone, recorded so that it can be computed for other times without the field."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["Slot", "Step", "Tape", "smooth"]

_this_thread = threading.local()


@contextlib.contextmanager
def smooth() -> Iterator[None]:
    """The context of operations whose results are used in such a way that nothing jumps where they do."""
    before = getattr(_this_thread, "smooth", False)
    _this_thread.smooth = True
    try:
        yield
    finally:
        _this_thread.smooth = before


class Slot(NamedTuple):
    """Stands for a tensor that depends on the time."""

    number: int


class Step(NamedTuple):
    """An operation on tensors that depend on the time alone, and on constants.

    Attributes:
        operation: the operation.
        name: its name, without the overload.
        args: its operands.
        kwargs: those that have names.
        outputs: the slots of what it returns.
        slots: those that it reads.
        constants: the other tensors that it reads.
        smooth: whether a jump of its results is none of what they are used for.
    """

    operation: Any
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[int | None, ...]
    slots: tuple[int, ...]
    constants: tuple[Tensor, ...]
    smooth: bool = False


class Tape(TorchDispatchMode):
    """Records, within the context, what is computed from a time, but not from a state.

    An operation counts as one on constants, whose values are kept, where it has neither among its operands. What is
    written in place into a constant is not followed.

    Args:
        t: the time, 0-d; operations on this very tensor are recorded, which is slot 0.
        state: the tensors of the state.

    Attributes:
        steps: the operations, in order.
        floating: for each slot whether it holds floating-point numbers, real or complex.
        branches: whether a number was taken out of a tensor that depends on the time, to decide on what is computed.
    """

    def __init__(self, t: Tensor, state: Iterable[Tensor]) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.floating = [True]
        self.branches = False
        self._slots = {id(t): 0}
        self._held: list[Any] = [t]  # so that no id is used again
        self._others: set[int] = set()  # what depends on the state, by id
        self._storages: set[int] = set()  # and by memory
        for x in state:
            self._lose(x)

    def _lose(self, x: Tensor) -> None:
        self._held.append(x)
        self._others.add(id(x))
        self._slots.pop(id(x), None)
        memory = _memory(x)
        if memory is not None:
            self._storages.add(memory)

    def _is_lost(self, x: Tensor) -> bool:
        return id(x) in self._others or _memory(x) in self._storages

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        operands = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        slots = [id(x) in self._slots for x in operands]
        lost = any(map(self._is_lost, operands))
        out = func(*args, **kwargs)
        if not lost and not any(slots):
            return out
        if func is torch.ops.aten._local_scalar_dense.default:
            self.branches |= not lost
            return out
        outputs = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if func._schema.is_mutable:
            written = _written(func, args, kwargs)
            if not all(id(x) in self._slots for x in written):
                lost = True
            if lost:
                for x in written:
                    self._lose(x)
        if lost:
            for x in outputs:
                self._lose(x)
            return out
        read = tuple([self._slots[id(x)] for x in operands if id(x) in self._slots])
        constants = tuple([x for x in operands if id(x) not in self._slots])
        args, kwargs = tree_map(self._as_slot, (args, dict(kwargs)))
        written_to = tuple(map(self._new, tree_leaves(out)))
        hidden = getattr(_this_thread, "smooth", False)
        name = str(func.overloadpacket.__name__)
        self.steps.append(Step(func, name, args, kwargs, written_to, read, constants, hidden))
        return out

    def _as_slot(self, x: Any) -> Any:
        return Slot(self._slots[id(x)]) if isinstance(x, Tensor) and id(x) in self._slots else x

    def _new(self, x: Any) -> int | None:
        if not isinstance(x, Tensor):
            return None
        self._held.append(x)
        self._slots[id(x)] = len(self.floating)
        self.floating.append(x.is_floating_point() or x.is_complex())
        return len(self.floating) - 1

    def play(self, t: Tensor, look: Callable[[int, Sequence[Any], dict[str, Any]], None], end: int) -> None:
        """Compute for another time.

        Args:
            t: the time.
            look: gets the number of each step and its operands, before it is taken.
            end: the number of steps.
        """
        values: list[Any] = [None] * len(self.floating)
        values[0] = t

        def value(x: Any) -> Any:
            if isinstance(x, Slot):
                return values[x.number]
            return [value(y) for y in x] if isinstance(x, list | tuple) else x

        for i, step in enumerate(self.steps[:end]):
            args = [value(x) for x in step.args]
            kwargs = {key: value(x) for key, x in step.kwargs.items()}
            look(i, args, kwargs)
            out = step.operation(*args, **kwargs)
            for slot, x in zip(step.outputs, [out] if isinstance(out, Tensor) else tree_leaves(out), strict=True):
                if slot is not None:
                    values[slot] = x


def _memory(x: Tensor) -> int | None:
    """What tells the memory of a tensor from others'."""
    try:
        return int(x.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # a sparse one, say
        return None


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The operands that an operation writes to."""
    found = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            x = args[i] if i < len(args) else kwargs.get(argument.name)
            found += [y for y in tree_leaves(x) if isinstance(y, Tensor)]
    return found
