"""Gives the operations that a field calls other tensors in the place of some, wherever the field keeps these."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pynode.errors import FieldError
from pynode.field._lines import calling_line

__all__ = ["LateRead", "Substitution"]


class LateRead(FieldError):
    """A tensor that requires a gradient was not read by the evaluations before, and was not made an input."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"the field reads {name}, which requires a gradient, for the first time, and a solve that is under way "
            "cannot take it as an input any more"
        )
        self.name = name


class Substitution(TorchFunctionMode):
    """Within this context each operation gets the substitutes of its operands, and none that has no place in a field.

    Tensors are told by identity, so that it does not matter where they are kept. It acts on this thread alone, and
    changes nothing of the user's.

    Args:
        substitutes: by the id of a tensor what takes its place.
        names: by the id of a tensor, or of its substitute, its name.
        late: by the id of a tensor that requires a gradient and is no input, its name.
        arguments: the field's own arguments.
        strict: whether to refuse tensors that require a gradient and are none of these.

    Attributes:
        read: the names of the tensors that were read.
        differentiates: whether the field has called `torch.autograd.grad`.
    """

    def __init__(
        self,
        substitutes: Mapping[int, Tensor],
        names: Mapping[int, str],
        late: Mapping[int, str],
        arguments: Iterable[Tensor] = (),
        strict: bool = True,
    ) -> None:
        super().__init__()
        self.strict = strict
        self.substitutes, self.names, self.late = substitutes, names, late
        self.read: set[str] = set()
        self.differentiates = False
        self.known = {id(x) for x in arguments}
        self.known.update(names, map(id, substitutes.values()))
        self.made: list[Tensor] = []  # leaves of the field's own making, held so that no id is used again
        with torch.enable_grad():
            marker = torch.zeros((), requires_grad=True, device="cpu").clone()
        self.start = marker.grad_fn._sequence_nr()  # type: ignore[union-attr]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.autograd.grad:
            self.differentiates = True
        args = tuple(map(self._checked, args))
        if kwargs:
            kwargs = {key: self._checked(x) for key, x in kwargs.items()}
        if func is torch.autograd.grad or func is Tensor.backward:
            # For a GPU it would be on a thread of autograd's own, which counts what it makes from another start.
            with torch.autograd.set_multithreading_enabled(False):
                out = func(*args, **(kwargs or {}))
        else:
            out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self._note(out)
        elif out is None and func == _SET_REQUIRES_GRAD:
            self._note(args[0])
        elif isinstance(out, tuple | list):
            for x in out:
                if isinstance(x, Tensor):
                    self._note(x)
        return out

    def _note(self, x: Tensor) -> None:
        if x.requires_grad and x.grad_fn is None and id(x) not in self.known:
            self.known.add(id(x))
            self.made.append(x)

    def _checked(self, x: Any) -> Any:
        if isinstance(x, Tensor):
            key = id(x)
            name = self.names.get(key)
            if name is not None:
                self.read.add(name)
                return self.substitutes.get(key, x)
            if key in self.late:
                raise LateRead(self.late[key])
            if key in self.substitutes:
                return self.substitutes[key]
            if self.strict and x.requires_grad and key not in self.known:
                self._refuse(x)
            return x
        if isinstance(x, list | tuple) and x and not isinstance(x, torch.Size):
            parts = [self._checked(item) for item in x]
            if all(a is b for a, b in zip(parts, x, strict=True)):
                return x
            return type(x)._make(parts) if hasattr(x, "_make") else type(x)(parts)
        if isinstance(x, dict):
            return {k: self._checked(item) for k, item in x.items()}
        return x

    def _refuse(self, x: Tensor) -> None:
        """Refuse a tensor from outside that was not found where tensors are looked for."""
        if torch._C._functorch.is_functorch_wrapped_tensor(x):  # of a transform within the field
            return
        if x.grad_fn is not None and x.grad_fn._sequence_nr() > self.start:
            return
        raise FieldError(
            f"the field reads a tensor of shape {tuple(x.shape)} that requires a gradient and is kept where it cannot "
            f"be found{calling_line(__file__)}: the gradient could not flow through the solve. Keep it in an attribute "
            "of the field, or pass it in solve(args=(…,)) and take it as f(t, z, *args)"
        )


_SET_REQUIRES_GRAD: Any = vars(torch._C.TensorBase)["requires_grad"].__set__
