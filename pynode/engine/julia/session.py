"""The Julia that runs in this process: its entry points, the kernels lowered so far, the solves that it keeps."""

from __future__ import annotations

import ctypes
import json
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pynode.engine.julia import runtime
from pynode.engine.julia.call import Entries, Floats
from pynode.engine.julia.device import Device
from pynode.engine.protocol import Problem, Watched
from pynode.errors import EngineUnavailable
from pynode.field._trace import Trace
from pynode.weak import Departure

__all__ = ["InJulia", "Kept", "Lowered", "Session", "earlier_version"]


logger = logging.getLogger("pynode")


class InJulia(Protocol):
    """A field as Julia has it; the context in which Julia may be called to solve it.

    Attributes:
        device: where its tensors lie.
        kernel: Julia's number of the field.
        read: the tensors that the field reads.
    """

    device: Device
    kernel: int
    read: Sequence[Tensor]

    @property
    def called(self) -> object:
        """What Julia may call until it has released the last solve of the field."""

    def keep(self) -> None:
        """What follows are calls after the solve."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


class Lowered(InJulia, Protocol):
    """The field of one problem.

    Attributes:
        problem: the problem, on the field that is evaluated.
        values: the tensors whose values Julia takes, besides the state's: conditioning tensors, then the others.
    """

    problem: Problem
    values: Sequence[Tensor]


def earlier_version(lacks: str) -> EngineUnavailable:
    """What to raise where Julia's PyNODE is of a version that lacks something."""
    return EngineUnavailable(
        f"the Julia package PyNODE in Julia's environment is of an earlier version than pynode, without {lacks}: "
        "update it"
    )


class Session:
    """What a process has asked of Julia so far; starts it when it is first needed.

    Attributes:
        tangents: by kernel and batch size, whether Julia knows the kernel of its tangent.
    """

    def __init__(self) -> None:
        self.tangents: dict[tuple[int, int], bool] = {}
        self._entries: Entries | None = None
        self._kernels: dict[tuple[str, torch.dtype], int] = {}
        self._numbers: dict[str, int] = {}
        self._living: set[Departure] = set()
        self._released: list[Departure] = []
        self._forgotten: list[Departure] = []
        self._progress: Any = None
        self._stochastic: Any = None

    def start(self) -> Entries:
        """The entry points of Julia, which is started where it does not run yet.

        Raises:
            EngineUnavailable: Julia cannot be started here.
        """
        runtime.start()
        if self._entries is None:
            self._entries = Entries()
        # Entries go only when they are done, as an interrupt may come in between; others may have been added.
        while self._released:
            self._entries.release(self._released[0].number)
            self._living.discard(self._released[0])
            del self._released[0]
        while self._forgotten:
            runtime.module().forget_callback(self._forgotten[0].number)
            self._living.discard(self._forgotten[0])
            del self._forgotten[0]
        return self._entries

    @property
    def stochastic(self) -> Callable[..., int]:
        """The entry point of stochastic differential equations.

        Raises:
            EngineUnavailable: Julia cannot be started here, or its PyNODE is of a version without them.
        """
        entries = self.start()
        if self._stochastic is None:
            if not hasattr(runtime.module(), "stochastic_entry_point"):
                raise earlier_version("SDEs")
            self._stochastic = entries.function(int(runtime.module().stochastic_entry_point()), 3)
        found: Callable[..., int] = self._stochastic
        return found

    def kernel(self, trace: Trace, dtype: torch.dtype) -> int:
        """The number of a graph's kernel, which Julia lowers where it is new."""
        key = (trace.graph.key, dtype)
        if key not in self._kernels:
            self.start()
            self._kernels[key] = _register(trace.graph.key, dtype, json.dumps(trace.graph.to_dict()))
            logger.info("julia has a new kernel, which it compiles when it is called first: %.8s", trace.graph.key)
        return self._kernels[key]

    def register_callback(self, dtype: torch.dtype, address: int, length: int) -> int:
        """The number of a field that Python evaluates, like that of a kernel; see `julia/src/bridge/callback.jl`."""
        return int(runtime.module().register_callback(str(dtype).removeprefix("torch."), address, length))

    def forget_after(self, owner: object, number: int) -> None:
        """Let Julia forget a field that Python evaluates, at the first call after its owner is no more."""
        self._living.add(Departure.of(owner, self._forgotten.append, number))

    def number(self, kind: str, name: str) -> int:
        """Julia's number of a solver or a sensitivity.

        Raises:
            EngineUnavailable: Julia's PyNODE is of a version without it.
        """
        if name not in self._numbers:
            found = runtime.evaluate(f'PyNODE.{kind}_number("{name}")')
            if found == "nothing":
                raise earlier_version(f"the {kind} {name}")
            self._numbers[name] = int(found)
        return self._numbers[name]

    def watch(self, watched: Watched) -> None:
        """Let others see how far the next solve is."""
        if self._progress is None:
            now, samples = runtime.module().progress_addresses()
            self._progress = (ctypes.c_double * 2).from_address(int(now)), ctypes.c_int64.from_address(int(samples))
        now, samples = self._progress
        now[0] = now[1] = math.nan
        before = samples.value
        watched.look = lambda: (now[0], now[1])
        watched.samples = lambda: samples.value - before

    def floats_of(self, problem: Problem, *told: float) -> Floats:
        """What Julia's `asked_steps` reads, and what it was told besides; the problem must outlive the call."""
        kinks = problem.kinks
        given = (0.0, 0.0) if kinks is None else (float(len(kinks)), float(kinks.data_ptr()))
        steps = self._choose_steps(problem)
        return Floats(problem.rtol, problem.atol, problem.dt or 0.0, *given, steps, *told)

    def _choose_steps(self, problem: Problem) -> float:
        """Tell Julia of the choice of steps in the next solve; 1 if there is something to tell, else 0."""
        if problem.steps is None:
            return 0.0
        control = problem.steps.control
        if control.exponents is not None and not problem.solver.takes_controller:
            raise EngineUnavailable(
                f"the solver {problem.solver.name!r} has a controller of its own: leave step_control's controller out"
            )
        names = ("dt_min", "dt_max", "safety", "factor_min", "factor_max")
        numbers = [math.nan if (x := getattr(control, name)) is None else float(x) for name in names]
        batch = 1 if problem.t.dim() == 2 else problem.z0[0].shape[0]
        sizes = [math.prod(z.shape[1:]) for z in problem.z0]
        one = [z[:1] for z in problem.z0] if problem.t.dim() == 2 else problem.z0
        each = problem.steps.tolerances_of(one)
        rtol, atol = ([y for x in of for y in x.reshape(-1).tolist()] for of in each or ((), ()))
        runtime.module().set_step_control(
            list(control.exponents or ()), numbers, control.norm, sizes, batch, rtol, atol
        )
        return 1.0

    def give_mass(self, problem: Problem) -> float:
        """Tell Julia of the mass matrix of the next solve; 1 if there is one, else 0."""
        mass = problem.mass
        if mass is None:
            return 0.0
        runtime.module().set_mass(
            len(mass.matrix), *(x.T.reshape(-1).tolist() for x in (mass.matrix, mass.left, mass.right))
        )
        return 1.0

    def release_after(self, owner: object, number: int, called: object) -> None:
        """Let Julia forget a solve, at the first call after its owner is no more; until then it may call this."""
        self._living.add(Departure.of(owner, self._released.append, number, called))


class Kept:
    """A solve that Julia keeps, under a number that is not 0, for as long as this object lives.

    Args:
        session: the Julia that runs.
        number: the number.
        lowered: the field, the context in which Julia may be called for the solve.
    """

    def __init__(self, session: Session, number: int, lowered: InJulia) -> None:
        self.session, self.number, self.lowered = session, number, lowered
        if number:
            session.release_after(self, number, lowered.called)
            runtime.UNCLAIMED[0] = 0


def _register(key: str, dtype: torch.dtype, graph: str) -> int:
    text = graph.encode()
    memory = ctypes.create_string_buffer(text, len(text))
    there = f"unsafe_string(Ptr{{UInt8}}({ctypes.addressof(memory)}), {len(text)})"
    return int(runtime.evaluate(f'PyNODE.register("{key}", "{str(dtype).removeprefix("torch.")}", {there})'))
