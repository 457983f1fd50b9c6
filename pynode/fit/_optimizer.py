"""`torch.optim`'s optimisers as Julia runs them: their settings, and what they remember of each tensor."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from pynode.engine.julia.training import Update
from pynode.errors import EngineUnavailable, InputError, unknown_name

__all__ = ["check_native", "optimizer_of", "remember", "updates_of"]

_BY_NAME: dict[str, Callable[..., Optimizer]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW}


def optimizer_of(optimizer: Any, tensors: Sequence[Tensor], lr: float | None) -> Optimizer:
    """The optimiser that a name, or itself, stands for.

    Raises:
        InputError: it is neither, or needs a closure, or there is nothing to train, or two learning rates.
    """
    if isinstance(optimizer, Optimizer):
        if lr is not None:
            raise InputError("lr is that of the optimizer, which was given: leave lr out")
        if inspect.signature(optimizer.step).parameters["closure"].default is inspect.Parameter.empty:
            raise InputError(
                f"a trainer's step computes one gradient, and {type(optimizer).__name__} needs a closure that computes "
                "several: use another optimizer, or call its step(closure) in a loop"
            )
        return optimizer
    if not isinstance(optimizer, str):
        raise InputError(f"optimizer must be a name or a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if optimizer not in _BY_NAME:
        raise unknown_name("optimizer", optimizer, _BY_NAME)
    if not tensors:
        raise InputError(
            "there is nothing to train: neither field, loss, z0 nor args hold a tensor that requires a gradient"
        )
    return _BY_NAME[optimizer](tensors, lr=1e-3 if lr is None else lr)


def check_native(optimizer: Optimizer, loop: str) -> None:
    """Refuse an optimiser that Julia does not have.

    Args:
        optimizer: the optimiser.
        loop: what to do instead.

    Raises:
        EngineUnavailable: it is one.
    """
    if type(optimizer) not in _BY_NAME.values():
        names = ", ".join(f"torch.optim.{x.__name__}" for x in (SGD, Adam, AdamW))
        raise EngineUnavailable(f"the julia engine trains by {names}, got {type(optimizer).__name__}: {loop}")
    own = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    if own or _global_optimizer_pre_hooks or _global_optimizer_post_hooks:
        raise EngineUnavailable(f"the optimizer has hooks, which steps in Julia would not call: {loop}")
    step = vars(optimizer).get("step", type(optimizer).step)
    while hasattr(step, "_wrapped_by_lr_sched"):  # which counts the calls
        step = step.__wrapped__
    if step is not type(optimizer).step:
        raise EngineUnavailable(f"the optimizer's step has been replaced, which steps in Julia would not call: {loop}")
    for group in optimizer.param_groups:
        asked = [name for name in ("amsgrad", "differentiable", "capturable") if group.get(name)]
        if asked:
            raise EngineUnavailable(f"the julia engine trains without the optimizer's {asked[0]}=True: {loop}")
        for x in group["params"]:
            if x._backward_hooks or getattr(x, "_post_accumulate_grad_hooks", None):
                raise EngineUnavailable(
                    f"a tensor of shape {tuple(x.shape)} has hooks on its gradient, which steps in Julia would not "
                    f"call: {loop}"
                )


def updates_of(optimizer: Optimizer, read: Sequence[Tensor]) -> list[Update]:
    """How each tensor of an optimiser that is among those `read` is to be updated."""
    known = {id(x) for x in read}
    return [
        _update(optimizer, group, x)
        for group in optimizer.param_groups
        for x in group["params"]
        if id(x) in known and x.numel()
    ]


def remember(optimizer: Optimizer, updates: Sequence[Update]) -> None:
    """Leave in the optimiser what it remembers after steps that were done elsewhere."""
    for u in updates:
        count = int(u.count)
        if not count:
            continue
        state = optimizer.state[u.x]
        if u.adam:
            state.setdefault("step", torch.tensor(0.0, device="cpu")).fill_(count)
            state["exp_avg"], state["exp_avg_sq"] = u.first, u.second
        elif u.first is not None:
            state["momentum_buffer"] = u.first
        changed = [x for x in (u.x, u.first, u.second) if x is not None]
        torch.autograd.graph.increment_version(changed)
    optimizer._opt_called = True  # type: ignore[attr-defined]  # else its schedulers take it that no step was done


def _update(optimizer: Optimizer, group: dict[str, Any], x: Tensor) -> Update:
    known, adam = optimizer.state.get(x, {}), not isinstance(optimizer, SGD)
    first: Tensor | None = None
    second: Tensor | None = None
    lr, decay, maximize = (float(group[name]) for name in ("lr", "weight_decay", "maximize"))
    if adam:
        β1, β2 = map(float, group["betas"])
        decoupled = isinstance(optimizer, AdamW) or bool(group.get("decoupled_weight_decay", False))
        numbers = [lr, decay, β1, β2, float(group["eps"]), float(decoupled), maximize]
        first, second = (_moment(known.get(name), x) for name in ("exp_avg", "exp_avg_sq"))
        count = int(known.get("step", 0))
    else:
        momentum = float(group["momentum"])
        numbers = [lr, decay, momentum, float(group["dampening"]), float(group["nesterov"]), 0.0, maximize]
        if momentum:
            first = _moment(known.get("momentum_buffer"), x)
        count = int(known.get("momentum_buffer") is not None)
    return Update(
        x,
        adam,
        torch.tensor(numbers, dtype=torch.float64, device="cpu"),
        first,
        second,
        torch.tensor([count], device="cpu"),
    )


def _moment(kept: Tensor | None, x: Tensor) -> Tensor:
    return torch.zeros_like(x, requires_grad=False) if kept is None else kept.contiguous()
