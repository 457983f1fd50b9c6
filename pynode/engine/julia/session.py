"""The Julia that runs in this process: its entry points, the kernels lowered so far, the solves that it keeps."""

from __future__ import annotations

import json
from typing import Any

import torch

from pynode.engine.julia import runtime
from pynode.engine.julia.call import Entries
from pynode.engine.julia.device import Device
from pynode.field._trace import Trace

__all__ = ["Kept", "Session"]


class Session:
    """What a process has asked of Julia so far; starts it when it is first needed.

    Attributes:
        module: the Julia module PyNODE; `None` before `start`.
        tangents: by kernel and batch size, whether Julia knows the kernel of its tangent.
    """

    def __init__(self) -> None:
        self.module: Any = None
        self.tangents: dict[tuple[int, int], bool] = {}
        self._entries: Entries | None = None
        self._kernels: dict[tuple[str, torch.dtype], int] = {}
        self._numbers: dict[str, int] = {}
        self._released: list[int] = []

    def start(self) -> Entries:
        """The entry points of Julia, which is started where it does not run yet.

        Raises:
            EngineUnavailable: Julia cannot be started here.
        """
        module = runtime.start()
        if self._entries is None:
            self.module, self._entries = module, Entries(module)
        while self._released:
            self._entries.release(self._released[0])
            del self._released[0]  # only now, as an interrupt may come in between; others may have been added
        return self._entries

    def kernel(self, trace: Trace, dtype: torch.dtype) -> int:
        """The number of a graph's kernel, which Julia lowers where it is new."""
        key = (trace.graph.key, dtype)
        if key not in self._kernels:
            text = json.dumps(trace.graph.to_dict())
            self._kernels[key] = self.module.register(trace.graph.key, str(dtype).removeprefix("torch."), text)
        return self._kernels[key]

    def number(self, kind: str, name: str) -> int:
        """Julia's number of a solver or a sensitivity."""
        if name not in self._numbers:
            self._numbers[name] = getattr(self.module, f"{kind}_number")(name)
        return self._numbers[name]

    def release(self, number: int) -> None:
        """Let Julia forget a solve, at the next call: this may run anywhere."""
        self._released.append(number)


class Kept:
    """A solve that Julia keeps, under a number that is not 0, for as long as this object lives."""

    number = 0  # where an interrupt comes before the next line is through

    def __init__(self, session: Session, number: int, device: Device) -> None:
        self.session, self.number, self.device = session, number, device
        if number:
            runtime.UNCLAIMED[0] = 0

    def __del__(self) -> None:
        if self.number:
            self.session.release(self.number)
