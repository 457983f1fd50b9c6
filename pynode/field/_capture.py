"""Records what a field and its vector-Jacobian product do, as an fx graph of ATen operations.

PyTorch differentiates here: the product is `torch.autograd.grad` of the field, recorded with it.
"""

from __future__ import annotations

import contextlib
import functools
import linecache
import logging
import math
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import _core_aten_decompositions_post_autograd, get_decompositions
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import SLoc
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.backends import opt_einsum
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from pynode.errors import EngineUnavailable, FieldError, TraceError
from pynode.field._bound import Assumptions, BoundToBatch, Validity
from pynode.field._complex import OnPairs, has_complex
from pynode.field._lines import PYNODE, calling_line, is_users, place
from pynode.field._random import draws_random_numbers, randomness_refused
from pynode.field._symbolic import without_numbers

__all__ = ["BATCH_HINT", "Captured", "capture", "data_dependent", "user_line"]

# Stands for the batch size while recording. A large prime, so that no static size equals it by accident.
BATCH_HINT = 7919

_aten = torch.ops.aten
_KEPT: tuple[Any, ...] = (_aten.select_backward, _aten.slice_backward, _aten.slice_scatter, _aten.select_scatter)
_KEPT += (_aten.diagonal_backward, _aten.max_pool2d_with_indices_backward)
_KEPT += (_aten.unfold_backward, _aten.reflection_pad1d_backward, _aten.reflection_pad2d_backward)
_KEPT += (_aten.reflection_pad3d_backward,)
_FURTHER = [
    _aten.native_layer_norm,
    _aten.native_layer_norm_backward,
    _aten.native_group_norm,
    _aten.native_group_norm_backward,
    _aten._softmax,
    _aten._log_softmax,
    _aten.gelu,
    _aten.elu,
    _aten.leaky_relu,
    _aten.hardtanh,
    _aten.native_batch_norm,
    _aten._native_batch_norm_legit_no_training,
    _aten._native_batch_norm_legit,
    _aten._native_batch_norm_legit_functional,
    _aten.native_batch_norm_backward,
    _aten._log_softmax_backward_data,
    _aten._softmax_backward_data,
    _aten.repeat,
    _aten.rrelu_with_noise_backward,
]


def _hardshrink_backward(grad: Tensor, x: Tensor, lambd: float) -> Tensor:
    return torch.where((x >= -lambd) & (x <= lambd), torch.zeros_like(grad), grad)


def _hardsigmoid_backward(grad: Tensor, x: Tensor) -> Tensor:
    # In double precision too, torch has the sixth of single precision.
    return torch.where((x > -3) & (x < 3), grad * 0.1666666716337204, torch.zeros_like(grad))


def _rrelu(
    x: Tensor, noise: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, generator: Any = None
) -> Tensor:
    # In training it draws numbers, and stays what it is, to be refused.
    return NotImplemented if training else torch.where(x > 0, x, x * ((lower + upper) / 2))


def _cdist(x: Tensor, y: Tensor, p: float, mode: int | None = None) -> Tensor:
    return torch.linalg.vector_norm(x.unsqueeze(-2) - y.unsqueeze(-3), p, -1)


def _cdist_backward(grad: Tensor, x: Tensor, y: Tensor, p: float, distance: Tensor) -> Tensor:
    apart, d = x.unsqueeze(-2) - y.unsqueeze(-3), distance.unsqueeze(-1)
    slope = apart.sign() * apart.abs() ** (p - 1) / torch.where(d > 0, d, torch.ones_like(d)) ** (p - 1)
    return (grad.unsqueeze(-1) * slope).sum(-2)


def _trilinear(
    a: Tensor,
    b: Tensor,
    c: Tensor,
    expand_a: Sequence[int],
    expand_b: Sequence[int],
    expand_c: Sequence[int],
    sum_dims: Sequence[int],
    unroll_dim: int = 1,
) -> Tensor:
    for d in expand_a:
        a = a.unsqueeze(d)
    for d in expand_b:
        b = b.unsqueeze(d)
    for d in expand_c:
        c = c.unsqueeze(d)
    return (a * b * c).sum(list(sum_dims))


def _weight_norm_backward(grad: Tensor, v: Tensor, g: Tensor, norms: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    others = [d for d in range(v.dim()) if d != dim % v.dim()]
    along = (grad * v).sum(others, keepdim=True)
    return g / norms * (grad - v * along / norms**2), along / norms


def _pinv(x: Tensor, *, atol: Any = None, rtol: Any = None, hermitian: bool = False) -> Tensor:
    """By the singular values; those below the tolerance, torch's, count as zero."""
    if hermitian:  # torch looks at the lower triangle alone
        x = x.tril() + x.tril(-1).mT
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    top = s.amax(-1, keepdim=True)
    eps = torch.finfo(x.dtype).eps * max(int(x.shape[-2]), int(x.shape[-1]))
    of_top = (0.0 if atol is not None else eps) if rtol is None else _column(rtol)
    least = torch.maximum(top * of_top, torch.zeros_like(top) if atol is None else top * 0 + _column(atol))
    inverse = torch.where(s > least, 1 / torch.where(s > least, s, torch.ones_like(s)), torch.zeros_like(s))
    return (vh.mT * inverse.unsqueeze(-2)) @ u.mT


def _column(tolerance: Any) -> Any:
    return tolerance.unsqueeze(-1) if isinstance(tolerance, Tensor) and tolerance.dim() else tolerance


def _roll(x: Tensor, shifts: Sequence[int], dims: Sequence[int] = ()) -> Tensor:
    """By slices: along the batch for any size of it that the shift does not exceed."""
    if not dims:
        return _roll(x.reshape(-1), shifts, [0]).reshape(x.shape)
    for shift, d in zip(shifts, dims, strict=True):
        n = x.shape[d]
        if isinstance(n, int):
            shift %= max(n, 1)
        elif abs(shift) > n:
            return NotImplemented
        start = -shift if shift < 0 else n - shift
        if shift:
            x = torch.cat([x.narrow(d, start, n - start), x.narrow(d, 0, start)], d)
    return x


def _signbit(x: Tensor) -> Tensor:
    """Of minus zero too."""
    return (x < 0) | ((x == 0) & (1 / x < 0))


def _copysign(x: Tensor, sign: Tensor) -> Tensor:
    return torch.where(_signbit(sign), -x.abs(), x.abs())


def _masked_scatter(x: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    """The entries of the mask get those of the source, one after the other."""
    mask = mask.expand(x.shape)
    return torch.where(mask, source.reshape(-1).index_select(0, _places(mask)).reshape(x.shape), x)


def _places(mask: Tensor) -> Tensor:
    """For each entry of the mask how many came before it."""
    return (mask.reshape(-1).to(torch.int64).cumsum(0) - 1).clamp(min=0)


def _masked_scatter_backward(grad: Tensor, mask: Tensor, sizes: Sequence[int]) -> Tensor:
    mask = mask.expand(grad.shape)
    of_source = torch.where(mask, grad, torch.zeros_like(grad)).reshape(-1)
    return grad.new_zeros(math.prod(sizes)).index_add(0, _places(mask), of_source).reshape(tuple(sizes))


def _put(x: Tensor, index: Tensor, source: Tensor, accumulate: bool = False) -> Tensor:
    where, flat = index.reshape(-1), x.reshape(-1)
    where = torch.where(where < 0, where + flat.shape[0], where)
    put = flat.index_add(0, where, source.reshape(-1)) if accumulate else flat.index_copy(0, where, source.reshape(-1))
    return put.reshape(x.shape)


# torch has no rule for these that works with a symbolic batch size.
_OWN: dict[Any, Callable[..., Any]] = {
    _aten.hardshrink_backward.default: _hardshrink_backward,
    _aten.softshrink_backward.default: _hardshrink_backward,
    _aten.hardsigmoid_backward.default: _hardsigmoid_backward,
    _aten._cdist_forward.default: _cdist,
    _aten._cdist_backward.default: _cdist_backward,
    _aten.hypot.default: lambda x, y: (x * x + y * y).sqrt(),
    _aten.rrelu_with_noise.default: _rrelu,
    _aten.roll.default: _roll,
    _aten._trilinear.default: _trilinear,
    _aten._weight_norm_interface_backward.default: _weight_norm_backward,
    _aten.linalg_pinv.atol_rtol_tensor: _pinv,
    _aten.signbit.default: _signbit,
    _aten.copysign.Tensor: _copysign,
    _aten.copysign.Scalar: lambda x, sign: math.copysign(1.0, sign) * x.abs(),
    _aten.ldexp.Tensor: lambda x, power: x * torch.pow(2.0, power.to(x.dtype)),
    _aten.masked_scatter.default: _masked_scatter,
    _aten.masked_scatter_backward.default: _masked_scatter_backward,
    _aten.put.default: _put,
}


def _zeros_of_features(x: Tensor, other: Tensor, self_num_batch_dims: int = 0) -> Tensor:
    """Zeros of the shape of one tensor, behind the first dimensions of another; torch makes them on no device."""
    return other.new_zeros((*x.shape[:self_num_batch_dims], *other.shape))


def _zeros(size: Sequence[int], **options: Any) -> Tensor:
    """Zeros that have memory: torch's rules for those that have none make tensors of another device of them."""
    return torch.zeros(tuple(size), **{k: v for k, v in options.items() if k in ("dtype", "device")})


_OWN[_aten._new_zeros_with_same_feature_meta.default] = _zeros_of_features
_OWN[_aten._efficientzerotensor.default] = _zeros


@functools.cache
def _decompositions() -> dict[Any, Callable[..., Any]]:
    # torch's public table has composite operators too, which come apart anyway, and takes a quarter of a second.
    table = {**_core_aten_decompositions_post_autograd(), **get_decompositions(_FURTHER), **_OWN}
    return {op: f for op, f in table.items() if getattr(op, "overloadpacket", op) not in _KEPT}


class Sizes(ShapeEnv):
    """Symbolic sizes that do not note where torch met them; `Assumptions` notes where a field did.

    To tell its own files from others, torch would import its compiler and exporter, a quarter of a second.
    """

    def _get_stack_summary(self, is_debug: bool = False, framework_loc: str | None = None) -> tuple[SLoc, str]:
        return SLoc(framework_loc, None), ""


class Captured:
    """What `capture` returns.

    Attributes:
        graph: the fx graph; its outputs are `dz/dt`, then a product for each input asked for, or `None`.
        env: the symbolic sizes that the recording used.
        batch: the symbol of the batch size, `None` where the batch is static.
        validity: for which batch sizes it holds.
    """

    def __init__(self, graph: fx.GraphModule, env: ShapeEnv, batch: Any, validity: Validity) -> None:
        self.graph, self.env, self.batch, self.validity = graph, env, batch, validity

    @property
    def assumes_batch(self) -> bool:
        """Whether the recording fixed the batch size to a number."""
        return self.batch is not None and self.batch in self.env.replacements


def capture(
    function: Callable[[Sequence[Tensor]], Sequence[Tensor]],
    inputs: Sequence[Tensor],
    batched: Sequence[bool],
    wanted: Sequence[bool],
    n_states: int,
    captured: Sequence[Tensor] = (),
    outside: str = __file__,
) -> Captured:
    """Record a function and the product of a cotangent with its Jacobians.

    Args:
        function: takes the inputs, returns the field's tensors.
        inputs: example tensors, whose values do not matter: `t`, the state, then all else.
        batched: for each input whether its first dimension is the batch.
        wanted: for each input whether the product with its Jacobian is wanted.
        n_states: how many tensors the state has.
        captured: leaves that the function reads otherwise and whose products are wanted too.
        outside: the file that calls this and that `function` is of: further out there is no code of the field.

    Raises:
        TraceError: the function does something that a graph cannot hold.
        BoundToBatch: it makes a number of the batch size.
    """
    env = Sizes()
    mode = FakeTensorMode(shape_env=env, allow_non_fake_inputs=True)
    mode.cache_enabled = False  # what is cached would stay: a hundred kilobytes for each trace
    batch: Any = None
    if any(batched):
        example = mode.from_tensor(
            torch.empty(BATCH_HINT, device="cpu"),
            symbolic_context=StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC]),
        )
        batch = example.shape[0]
    symbol = batch.node.expr if batch is not None else None
    assumptions = env.guards = Assumptions(symbol, outside)

    def fake(x: Tensor, is_batched: bool) -> Tensor:
        shape = (batch, *x.shape[1:]) if is_batched else x.shape
        with mode:
            return torch.empty(shape, dtype=x.dtype, device=x.device)

    fakes = [fake(x, b) for x, b in zip(inputs, batched, strict=True)]

    def joint(xs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> list[Tensor | None]:
        with torch.enable_grad():
            xs = [x.detach().requires_grad_(w and x.is_floating_point()) for x, w in zip(xs, wanted, strict=True)]
            with _Lines():
                outputs = function(xs)
            pairs = [(o, v) for o, v in zip(outputs, cotangents, strict=True) if o.requires_grad]
            wrt = [*(x for x, w in zip(xs, wanted, strict=True) if w), *captured]
            products: list[Tensor | None] = [None] * len(wrt)
            places = [i for i, x in enumerate(wrt) if x.requires_grad]  # integers have no derivative
            if pairs and places:
                followed, vs = zip(*pairs, strict=True)
                found = torch.autograd.grad(followed, [wrt[i] for i in places], vs, allow_unused=True)
                for i, g in zip(places, found, strict=True):
                    products[i] = g
        return [*(o.detach() for o in outputs), *products]

    recordings: list[fx.GraphModule] = []

    def record(what: Callable[..., Any], *examples: Any) -> fx.GraphModule:
        recordings.append(make_fx(what, decomposition_table=_decompositions())(*examples))
        return recordings[-1]

    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_silent())
            stack.enter_context(mode)
            stack.enter_context(enable_python_dispatcher())
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(fx.traceback.preserve_node_meta())
            # It looks for the best order by the numbers that the sizes are.
            stack.enter_context(opt_einsum.flags(enabled=False))
            cotangents = [torch.empty_like(z) for z in fakes[1 : 1 + n_states]]
            graph = record(joint, fakes, cotangents)
            graph.graph.eliminate_dead_code()
            _refuse(graph, len(inputs))
            if any(_mutates(n) for n in graph.graph.nodes):
                pure = functionalize(_flat(fx.Interpreter(graph)), remove="mutations")
                graph = record(pure, *fakes, *cotangents)
            if has_complex(graph):
                graph = record(_flat(OnPairs(graph)), *fakes, *cotangents)
    except (TraceError, FieldError, BoundToBatch):
        raise
    except Exception as error:
        raise (BoundToBatch(assumptions.bound) if assumptions.bound else _failed(error)) from error
    finally:
        _forget(recordings)
    if assumptions.bound:  # something has caught it
        raise BoundToBatch(assumptions.bound)
    graph.graph.eliminate_dead_code()
    return Captured(graph, env, symbol, Validity(symbol, assumptions, assumptions.where))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """A context within which torch does not log what fails while recording: it is reported once, as an exception."""
    noise = [logging.getLogger(f"torch.{n}") for n in ("_subclasses.fake_tensor", "fx.experimental.symbolic_shapes")]
    levels = [logger.level for logger in noise]
    for logger in noise:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(noise, levels, strict=True):
            logger.setLevel(level)


def _forget(recordings: Sequence[fx.GraphModule]) -> None:
    """Let go of what torch would keep of recordings for good: their source, and what it learnt of their sizes."""
    for recording in recordings:
        name = type(recording).forward.__code__.co_filename
        linecache.cache.pop(name, None)
        fx.graph_module._loader.eval_cache.pop(name, None)
    for method in vars(ShapeEnv).values():
        if hasattr(method, "cache_clear"):
            method.cache_clear()


def _flat(interpreter: fx.Interpreter) -> Callable[..., Any]:
    def run(*xs: Tensor) -> Any:
        return interpreter.run(*xs, enable_io_processing=False)

    return run


def _mutates(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _refuse(graph: fx.GraphModule, n_inputs: int) -> None:
    """Refuse randomness and writes to the field's own tensors."""
    inputs = [n for n in graph.graph.nodes if n.op == "placeholder"][:n_inputs]
    owned = {*inputs, *(n for n in graph.graph.nodes if n.op == "get_attr")}
    for node in graph.graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        if draws_random_numbers(node.target):
            raise randomness_refused(node.target, user_line(node))
        if _mutates(node):
            target = node.args[0]
            while isinstance(target, fx.Node) and target not in owned and target.target in _VIEWS:
                target = target.args[0]
            if target in owned:
                raise TraceError(
                    f"the field writes to one of its own tensors or inputs ({node.target}){user_line(node)}: a "
                    "vector field has no state. Call field.eval() for batch norm, or compute a new tensor"
                )


_VIEWS = {
    _aten.alias.default,
    _aten.view.default,
    _aten.select.int,
    _aten.slice.Tensor,
    _aten.permute.default,
}
_VIEWS |= {_aten.unsqueeze.default, _aten.expand.default, _aten.detach.default, _aten.t.default}


class _Lines(TorchFunctionMode):
    """Notes with each operation the line of the user's code that called it; see also `without_numbers`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        fx.traceback.set_stack_trace([calling_line(__file__)])
        return without_numbers(func)(*args, **(kwargs or {}))


def user_line(node: fx.Node) -> str:
    """Where the user's code called a node's operation, as ` at file:line: text`; empty where it is not known."""
    return node.stack_trace or ""


def data_dependent(where: str) -> str:
    """The refusal of what depends on values."""
    return (
        f"the field's control flow or a Python number depends on the values of its tensors{where}. Use "
        'torch.where instead of `if`, keep tensors as tensors (no .item(), float() or numpy), or engine="torch"'
    )


def _failed(error: Exception) -> TraceError:
    """The refusal of a recording that failed, with the user's line and a remedy."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if is_users(f.filename)]
    if isinstance(error, EngineUnavailable):  # of a solve within the field
        frames = [f for f in frames if not f.filename.startswith(PYNODE)]
    where = place(frames[-1].filename, frames[-1].lineno or 0) if frames else ""
    name = type(error).__name__
    if "DataDependent" in name or "item()" in str(error) or "GuardOnDataDependent" in name:
        return TraceError(data_dependent(where))
    if "in-place" in str(error):
        return TraceError(f"the field writes to one of its inputs{where}: compute a new tensor instead")
    first = str(error).strip().splitlines()
    what = f"{where}: {name}: {first[0] if first else ''}"
    return TraceError(
        f'the field cannot be traced{what}. Use differentiable torch operations on t and z only, or engine="torch"',
        f"an operation fails{what}",
    )
