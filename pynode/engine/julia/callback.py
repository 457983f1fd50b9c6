"""A field that Julia solves by calling Python at each evaluation."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pynode.engine.julia.call import integers
from pynode.engine.julia.device import Device
from pynode.engine.julia.evaluator import Evaluator, Graph
from pynode.engine.julia.session import Session
from pynode.engine.protocol import Problem
from pynode.errors import EngineUnavailable, FieldError
from pynode.field._outside import unhooked

__all__ = ["PythonField"]


class _Registered:
    """An evaluator that Julia knows, under a number like that of a kernel, for as long as this object lives."""

    def __init__(self, session: Session, evaluator: Evaluator, z0: Sequence[Tensor], n_bytes: int) -> None:
        self.evaluator = evaluator
        self.functions = evaluator.functions()  # whose addresses Julia has
        batch = z0[0].shape[0]
        values = [batch, n_bytes, len(self.functions), *map(id, self.functions)]
        values += [evaluator.call.buffer_info()[0], evaluator.time.data_ptr(), *(x.data_ptr() for x in evaluator.flat)]
        values += [len(evaluator.flat[4]), len(z0), *(z.numel() // batch for z in z0)]
        data, address, length = integers(values)
        self.kernel = session.register_callback(z0[0].dtype, address, length)
        session.forget_after(self, self.kernel)
        del data


class PythonField:
    """The field of one solve, as Python evaluates it for Julia; the context in which Julia may be called.

    It is a copy of the user's field that reads what that reads now (see `Field.freeze`). As to its parameters,
    conditioning tensors and products, Julia has the gradient's numbers only.

    Args:
        session: the Julia that runs.
        problem: the problem.
        device: where its tensors lie.

    Attributes:
        problem: the same, on the copy.
        kernel: Julia's number of the field.
        values: tensors that Julia copies; there are none.
        read: tensors that the field reads.
        called: the functions that Julia calls, with their memory.
        field: the copy.
        plain: what evaluates it without any layer, if there is such.
        args: the conditioning tensors, as the field gets them.
        graphs: evaluations that autograd has followed, by the number that Julia gives them.
        opened: the evaluation that rows of the Jacobian are taken of.
        wants_time: whether products of the time are among them.
        of_all: what all products differentiate by, and where the products belong; `of_state` and `of_theta` likewise.
        evaluated: whether the field was evaluated without its graph being kept.
        again: whether the next evaluation is the first of a call that follows the solve.
        sees_all: whether a solver that asks for the Jacobian may take autograd's.

    Raises:
        EngineUnavailable: the state is not on the processor.
        FieldError: the solve is within an evaluation of its own field.
    """

    def __init__(self, session: Session, problem: Problem, device: Device) -> None:
        if problem.z0[0].device.type != "cpu":
            raise EngineUnavailable(
                f"lowering='callback' works on CPU tensors, the state is on {problem.z0[0].device}: move the field and "
                "the state to the CPU, or use lowering='trace'"
            )
        problem.field.check_finite(problem.z0, problem.args)
        self.device, how = device, problem.sensitivity
        with torch.inference_mode(False):  # whose tensors autograd does not follow
            field = problem.field if how is None else problem.field.on_leaves(problem.wants["parameters"])
            field.freeze()
            self.args = tuple(
                (a.clone() if a.is_inference() else a.detach()).requires_grad_(wanted)
                for a, wanted in zip(problem.args, problem.wants["args"], strict=True)
            )
        self.field, self.plain, self.parameters = field, field.plain(), field.parameters
        self.problem = replace(problem, field=field, args=self.args, parameters=field.parameters)
        self.graphs: dict[int, Graph] = {}
        self.opened: Graph | None = None
        self.evaluated = self.again = self.sees_all = self._done = False
        self.values: Sequence[Tensor] = ()
        self.read: Sequence[Tensor] = list(field.named_tensors().values())
        self._state: dict[Any, Any] | None = None
        self._versions: list[int] = []
        self._contexts: contextlib.ExitStack | None = None
        self.wants_time = problem.wants["t"][0]
        self.called = self._find(session)
        self.kernel = self.called.kernel
        self._differentiates_by(self.called.evaluator)
        if problem.solver.stiff:
            with self:
                self.sees_all = _agrees(self, self.called.evaluator)

    def _find(self, session: Session) -> _Registered:
        """Memory of the right sizes that no call is using; Julia knows it already if a solve before was alike."""
        problem, how = self.problem, self.problem.sensitivity
        keeps = how is not None and how.name == "discrete"
        theta = (*self.args, *self.parameters) if how is not None else ()
        shapes = (keeps, tuple((x.shape, x.dtype) for x in problem.z0), tuple((x.shape, x.dtype) for x in theta))
        known = problem.field.memory.callbacks
        key = (problem.field.key, shapes)
        found: list[_Registered] | None = known.get(key)
        if found is None:
            found = known[key] = []
        for one in found:
            if one.evaluator.field is None:
                return one
        evaluator = Evaluator(problem.z0, theta)
        made = _Registered(session, evaluator, problem.z0, self._graph_bytes(evaluator) if keeps else 0)
        found.append(made)
        return made

    def _graph_bytes(self, evaluator: Evaluator) -> int:
        """What autograd keeps of an evaluation, besides what the field has anyway."""
        problem = self.problem
        for flat, z in zip(evaluator.z, problem.z0, strict=True):
            flat.detach().copy_(z)
        evaluator.time.copy_(problem.t[0])
        with unhooked():
            out = evaluator.followed(self, self.wants_time)
        own = {_memory(x)[0] for x in (*self.args, *self.parameters, *self.read)}
        sizes = dict(map(_memory, _saved(out)))
        return sum(size for place, size in sizes.items() if place not in own) + sum(z.nbytes for z in problem.z0)

    def _differentiates_by(self, evaluator: Evaluator) -> None:
        wants = self.problem.wants
        theta = [*self.args, *self.parameters]
        wanted = (
            [*wants["args"], *wants["parameters"]] if self.problem.sensitivity is not None else [False] * len(theta)
        )
        places = evaluator.dtheta or [torch.empty(0, device="cpu")] * len(theta)
        pairs = [(x, place) for x, place, w in zip(theta, places, wanted, strict=True) if w]
        self.of_state = tuple(evaluator.z), tuple(evaluator.dz)
        self.of_theta = tuple(x for x, _ in pairs), tuple(place for _, place in pairs)
        own = ((evaluator.t,), (evaluator.dt,)) if self.wants_time else ((), ())
        parts = (self.of_state, own, self.of_theta)
        self.of_all = sum((inputs for inputs, _ in parts), ()), sum((places for _, places in parts), ())

    def __enter__(self) -> None:
        evaluator = self.called.evaluator
        if evaluator.field is not None:
            raise FieldError(
                "a gradient or an interpolation of a solve is asked for within an evaluation of the same field that "
                "Julia waits for: ask for it outside of the field"
            )
        for flat, wanted in ((evaluator.flat[4], False), (evaluator.flat[5], self.wants_time)):
            if not wanted:  # what no product is written to
                flat.zero_()
        evaluator.field, self.again = self, self._done
        evaluator.call[1] = int(self.sees_all)
        self._contexts = contextlib.ExitStack()
        self._contexts.enter_context(torch.inference_mode(False))
        self._contexts.enter_context(torch.no_grad())

    def __exit__(self, *_: object) -> None:
        assert self._contexts is not None
        self._contexts.close()
        self.called.evaluator.field, self.opened = None, None
        self.field.settle()

    def keep(self) -> None:
        """Take note of what the field is, for evaluations after the solve."""
        self._done = True
        if self.evaluated or self.problem.dense:
            self._state, self._versions = self.field.state(), [a._version for a in self.args]

    def check_unchanged(self) -> None:
        """Refuse an evaluation after the solve where the field is another.

        Raises:
            FieldError: says what has changed.
        """
        assert self._state is not None
        self.again = False
        self.field.check_unchanged(self._state)
        for i, (a, version) in enumerate(zip(self.args, self._versions, strict=True)):
            if a._version != version:
                raise FieldError(
                    f"args[{i}] was changed in place between the solve and its gradient, which evaluates the field "
                    "again: change it after backward(), or use sensitivity='discrete'"
                )


def _memory(x: Tensor) -> tuple[int, int]:
    """What tells a tensor's memory from others', and its bytes; a sparse one, the field's own, does not count."""
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    if x.layout != torch.strided or x._is_zerotensor():  # the latter, of autograd's own, has none
        return id(x), 0
    storage = x.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def _saved(out: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that the graph of some holds."""
    found, seen = [], set()
    nodes: list[Any] = [x.grad_fn for x in out]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [following for following, _ in node.next_functions]
        kept = [getattr(node, name) for name in dir(node) if name.startswith("_saved_") or name == "saved_tensors"]
        for x in kept:
            found += [y for y in (x if isinstance(x, tuple | list) else (x,)) if isinstance(y, Tensor)]
    return found


_STEPS = {torch.float64: 1e-6, torch.float32: 5e-3}
_TOLERANCES = {torch.float64: 1e-4, torch.float32: 2e-2}


def _agrees(field: PythonField, evaluator: Evaluator) -> bool:
    """Whether the field moves as its derivatives say, at the start; if not, a part of it is hidden from autograd."""
    problem = field.problem
    z0, dtype = [z.detach() for z in problem.z0], problem.z0[0].dtype
    t0, step = problem.t[0].item(), _STEPS[dtype]
    # Numbers without a pattern, so that nothing cancels.
    w = [
        torch.arange(1.0, z.numel() + 1, device="cpu").mul(0.7).cos().reshape(z.shape).to(z) * (1 + z.abs()) for z in z0
    ]
    tau = (0.1 + abs(t0)) if abs(t0) else abs(float(problem.t[-1] - problem.t[0]))
    tau = min(tau, abs(float(problem.t[-1] - problem.t[0]))) * (1 if problem.t[-1] > problem.t[0] else -1)

    def at(s: float) -> list[Tensor]:
        for x, z, d in zip(evaluator.z, z0, w, strict=True):
            x.copy_(z + s * d)
        evaluator.time.fill_(t0 + s * tau)
        evaluator.value()
        return [x.clone() for x in evaluator.du]

    try:
        # Not before the start, where the field may not be defined: a parabola through three points.
        base, near, far = at(0.0), at(step), at(2 * step)
        moved = [(4 * b - 3 * a - c) / (2 * step) for a, b, c in zip(base, near, far, strict=True)]
        at(0.0)
        for x, d in zip(evaluator.v, w, strict=True):
            x.copy_(d)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Converting a tensor with requires_grad=True to a scalar")
            evaluator.tangent()
            along = [x.clone() for x in evaluator.du]
            evaluator.slope()
        found = [a + tau * b for a, b in zip(along, evaluator.du, strict=True)]
    except RuntimeError:  # no second derivatives, by which these are computed
        return False
    size = max(float(x.abs().max()) for x in (*moved, *found))
    return all(bool(((a - b).abs() <= _TOLERANCES[dtype] * size).all()) for a, b in zip(moved, found, strict=True))
