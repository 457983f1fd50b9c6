"""Ctrl-C at any point of the code that enters and leaves contexts: PyTorch's state and results stay."""

from __future__ import annotations

import contextlib
import copy
import random
import signal
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils._python_dispatch as dispatch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx import _symbolic_trace

import pynode
from pynode import torch_state
from pynode.torch_state import leaves_thread_state

ROOT = str(Path(pynode.__file__).parent)
GENERATOR = 0x20  # a flag of code objects
Site = tuple[Any, ...]


def state() -> dict[str, Any]:
    """What contexts of PyTorch change, read without pynode's help."""
    return {
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch._C._is_fwd_grad_enabled()),
        "function modes": torch._C._len_torch_function_stack(),
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
        "flags": {name: x for name, x in vars(dispatch).items() if name.startswith("_is_in_")},
        "transform": torch._C._functorch.peek_interpreter_stack(),
        "autocast": [(torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")],
        "cache": (torch.is_autocast_cache_enabled(), torch.autocast_increment_nesting()),
        "nesting": torch.autocast_decrement_nesting(),
        "anomaly": (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        "hooks": torch._C._autograd._top_saved_tensors_default_hooks(True),
        "level": forward_ad._current_level,
        "modules": (nn.Module.__call__, nn.Module.__getattr__, vars(nn.Module).get("__getattribute__")),
        "recording": (_symbolic_trace.is_fx_tracing(), torch.fx.traceback.should_preserve_node_meta),
        "warnings": (tuple(warnings.filters), warnings.showwarning),
        "attention": (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()),
        "einsum": torch.backends.opt_einsum.enabled,
    }


class Interrupt:
    """A trace function that sends a signal at the first chosen opcode that it meets; `None` chosen: notes them all."""

    def __init__(self, chosen: set[Site] | None) -> None:
        self.chosen, self.seen, self.fired = chosen, set[Site](), False

    def __call__(self, frame: types.FrameType, event: str, argument: Any) -> Any:
        frame.f_trace_lines = False
        code, outer = frame.f_code, frame
        of_context = code.co_name in ("__enter__", "__exit__") or code.co_flags & GENERATOR
        if not of_context and not code.co_filename.endswith(("contextlib.py", "grad_mode.py", "_python_dispatch.py")):
            return None
        while not outer.f_code.co_filename.startswith(ROOT) or outer.f_code.co_name == "outer":
            if outer.f_back is None:
                return None  # not called by pynode
            outer = outer.f_back
        frame.f_trace_opcodes = True
        return self.at

    def at(self, frame: types.FrameType, event: str, argument: Any) -> Any:
        if event == "opcode" and not self.fired:
            back = frame.f_back
            site = (frame.f_code, frame.f_lasti, back and back.f_code, back and back.f_lasti)
            if self.chosen is None:
                self.seen.add(site)
            elif site in self.chosen:
                self.chosen.remove(site)
                self.fired = True
                sys.settrace(None)
                signal.raise_signal(signal.SIGINT)
        return self.at


@contextlib.contextmanager
def traced(by: Interrupt) -> Iterator[None]:
    before = sys.gettrace()  # that of what measures coverage
    sys._getframe().f_trace_opcodes = True  # CPython 3.12 looks for one frame that wants them when tracing begins
    sys.settrace(by)
    try:
        yield
    finally:
        sys.settrace(before)


class Field(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 4), nn.Linear(4, 2)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(z))) * torch.sin(t)


FIELD = Field()
Z0, T = torch.ones(3, 2), [0.0, 0.5]


def new() -> Field:
    """Of which nothing is known yet."""
    field = Field()
    field.load_state_dict(FIELD.state_dict())
    return field


def solved(field: Field, x: Tensor) -> Tensor:
    return pynode.solve(field, x, T, rtol=1e-1, atol=1e-1, engine="torch").z[-1]


def gradient(field: Field) -> float:
    x = Z0.clone().requires_grad_()
    solved(field, x).sum().backward()
    assert x.grad is not None
    return x.grad.sum().item()


def second(field: Field) -> float:
    x = Z0.clone().requires_grad_()
    (g,) = torch.autograd.grad(solved(field, x).sum(), x, create_graph=True)
    return torch.autograd.grad(g.square().sum(), x)[0].sum().item()


def forward(field: Field) -> float:
    return torch.func.jvp(lambda x: solved(field, x), (Z0,), (Z0,))[1].sum().item()


def mapped_gradients(field: Field) -> float:
    return torch.func.vmap(torch.func.grad(lambda x: solved(field, x[None]).sum()))(Z0).sum().item()


def autocast(field: Field) -> float:
    with torch.autocast("cpu", torch.bfloat16):
        return gradient(field)


def explained(field: Field) -> str:
    return str(pynode.field.explain(field, Z0))


@leaves_thread_state
def nested(n: int) -> None:
    if n:
        nested(n - 1)


def test_no_call_is_left_under_way() -> None:
    """Else no later call of this thread would put back what the process has."""
    caught, drawn = 0, random.Random(0)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for _ in range(3000):
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-5 + 1e-4 * drawn.random())
                while True:
                    nested(2)
            except KeyboardInterrupt:
                caught += 1
            assert not torch_state._CALLS.threads
            assert not torch_state._CALLS.lock.locked()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert caught == 3000


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    ("call", "n"),
    [(gradient, 20), (second, 10), (forward, 10), (mapped_gradients, 10), (autocast, 10), (explained, 3)],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_interrupts_within_contexts(call: Callable[[Field], Any], n: int) -> None:
    call(new())
    expected, before = call(new()), state()
    known = Interrupt(None)
    field = new()
    with traced(known):
        call(field)
    assert len(known.seen) > n
    for site in random.Random(0).sample(sorted(known.seen, key=repr), n):
        interrupt, field = Interrupt({site}), new()
        with contextlib.suppress(KeyboardInterrupt), traced(interrupt):
            call(field)
        assert state() == before, site
        assert call(field) == expected, site


def test_errors_are_as_they_were() -> None:
    """What is raised in the ordinary way keeps its traceback's variables."""

    @leaves_thread_state
    def fails() -> None:
        here = 1
        raise ValueError(here)

    with pytest.raises(ValueError, match="1") as error:
        fails()
    assert error.traceback[-1].locals["here"] == 1


def test_contexts_within_transforms_and_modes_stay() -> None:
    """Those that the caller has entered are entered still."""

    @leaves_thread_state
    def leaves_open() -> None:
        torch.set_grad_enabled(False)
        torch._C._push_on_torch_function_stack(torch.overrides.TorchFunctionMode())
        raise KeyboardInterrupt

    class Noted(torch.overrides.TorchFunctionMode):
        calls = 0

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            type(self).calls += 1
            return func(*args, **(kwargs or {}))

    def interrupted(x: Tensor) -> Tensor:
        with pytest.raises(KeyboardInterrupt):
            leaves_open()
        return (x * x).sum()

    with Noted():
        assert torch.equal(torch.func.grad(interrupted)(torch.ones(2)), torch.full((2,), 2.0))
        assert Noted.calls > 0
        assert torch._C._len_torch_function_stack() == 1
    assert torch._C._len_torch_function_stack() == 0
    assert torch.is_grad_enabled()


def test_traces_in_threads() -> None:
    """One at a time: two at once would each put back what the other has changed of `nn.Module`."""
    before, fields = state(), [nn.Sequential(*[nn.Linear(2, 2) for _ in range(n)]) for n in range(1, 5)]
    alone = [str(pynode.field.explain(field, Z0)) for field in copy.deepcopy(fields)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda field: str(pynode.field.explain(field, Z0)), fields)) == alone
    assert state() == before
