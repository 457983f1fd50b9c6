"""Vector fields of every family that a trace has to hold, by name."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """A field, the feature shapes of its state and of its conditioning tensors, and what to expect."""

    field: Callable[..., Any]
    state: Shape | tuple[Shape, ...]
    args: Sequence[Shape] = ()
    tolerance: float = 1e-12
    allocates: bool = False  # in Julia, by a factorisation of its library
    batches: tuple[int, ...] = (3, 1, 5)
    needs: tuple[int, int] = (2, 6)  # the torch that can record it for any batch size
    domain: Callable[[Tensor], Tensor] = field(default=lambda x: x)  # maps normal numbers to admissible states

    @property
    def is_tuple(self) -> bool:
        return bool(self.state) and isinstance(self.state[0], tuple)

    def draw(self, batch: int, seed: int = 0) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """A time, a state and conditioning tensors, float64."""
        generator = torch.Generator().manual_seed(1000 * batch + seed)

        def normal(shape: Shape) -> Tensor:
            return torch.randn(batch, *shape, dtype=torch.float64, generator=generator)

        shapes: Any = self.state if self.is_tuple else (self.state,)
        states = tuple(self.domain(normal(s)) for s in shapes)
        return torch.tensor(0.37, dtype=torch.float64), states, tuple(map(normal, self.args))


CASES: dict[str, Callable[[], Case]] = {}


def case(make: Callable[[], Case]) -> Callable[[], Case]:
    CASES[make.__name__.strip("_")] = make
    return make


class Of(nn.Module):
    """The field f(t, z) = net(z)."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(*layers)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.net(z)


def linear(a: int, b: int, **keywords: Any) -> nn.Linear:
    return nn.Linear(a, b, dtype=torch.float64, **keywords)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(normal(*shape))


# ---- activations ------------------------------------------------------------------------------------

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    name: getattr(nn, name)
    for name in [
        "CELU",
        "ELU",
        "GELU",
        "Hardshrink",
        "Hardsigmoid",
        "Hardswish",
        "Hardtanh",
        "LeakyReLU",
        "LogSigmoid",
        "Mish",
        "PReLU",
        "RReLU",
        "ReLU",
        "ReLU6",
        "SELU",
        "SiLU",
        "Sigmoid",
        "Softplus",
        "Softshrink",
        "Softsign",
        "Tanh",
        "Tanhshrink",
    ]
}
ACTIVATIONS |= {
    "CELU 0.7": lambda: nn.CELU(0.7),
    "ELU 1.3": lambda: nn.ELU(1.3),
    "GELU tanh": lambda: nn.GELU("tanh"),
    "Hardtanh 0.3": lambda: nn.Hardtanh(-0.3, 0.4),
    "LeakyReLU 0.3": lambda: nn.LeakyReLU(0.3),
    "LogSoftmax": lambda: nn.LogSoftmax(-1),
    "Softmax": lambda: nn.Softmax(-1),
    "Softmin": lambda: nn.Softmin(-1),
    "Softplus 5": lambda: nn.Softplus(5, 0.4),
    "Softshrink 0.3": lambda: nn.Softshrink(0.3),
    "Threshold": lambda: nn.Threshold(0.2, -0.1),
    "ReLU in place": lambda: nn.ReLU(inplace=True),
    "GLU": lambda: nn.GLU(-1),
    "Softmax2d": lambda: nn.Sequential(nn.Unflatten(1, (2, 2, 1)), nn.Softmax2d(), nn.Flatten(1)),
}


def activation(name: str) -> Case:
    # torch itself rounds the 1/6 of Hardsigmoid's derivative to single precision.
    layer = ACTIVATIONS[name]().double().eval()
    return Case(
        Of(linear(3, 4), layer, linear(2 if name == "GLU" else 4, 3)),
        (3,),
        tolerance=1e-12 if name != "Hardsigmoid" else 1e-7,
    )


for _name in ACTIVATIONS:
    CASES[_name] = functools.partial(activation, _name)


# ---- perceptrons, time, tuples, arguments -----------------------------------------------------------


@case
def mlp() -> Case:
    return Case(Of(linear(3, 16), nn.Tanh(), linear(16, 16), nn.Softplus(), linear(16, 3)), (3,))


@case
def no_parameters() -> Case:
    return Case(lambda t, z: torch.sin(t) * z - z**3, (2,))


@case
def linear_without_bias() -> Case:
    return Case(Of(linear(2, 2, bias=False)), (2,))


@case
def spiral() -> Case:
    class Spiral(Of):
        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return self.net(z**3)

    return Case(Spiral(linear(2, 50), nn.Tanh(), linear(50, 2)), (2,))


@case
def bilinear() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Bilinear(3, 3, 3, dtype=torch.float64)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return self.layer(z, torch.tanh(z))

    return Case(Net(), (3,))


@case
def time_concatenated() -> Case:
    class Net(Of):
        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return self.net(torch.cat([z, t.expand(z.shape[0], 1)], 1))

    return Case(Net(linear(3, 8), nn.Tanh(), linear(8, 2)), (2,))


@case
def time_as_full() -> Case:
    def f(t: Tensor, z: Tensor) -> Tensor:
        return torch.cat([z, torch.ones_like(z[:, :1]) * t], 1)[:, 1:] + torch.zeros(z.shape[0], 1, dtype=z.dtype)

    return Case(f, (2,))


@case
def time_basis() -> Case:
    """Depth-variant weights: a Fourier series of t."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c = parameter(5, 3, 3)
            self.register_buffer("k", torch.arange(1.0, 3.0, dtype=torch.float64))

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            basis = torch.cat([torch.ones(1, dtype=z.dtype), torch.cos(self.k * t), torch.sin(self.k * t)])
            return torch.tanh(z @ torch.einsum("k,kij->ij", basis, self.c))

    return Case(Net(), (3,))


@case
def time_only() -> Case:
    return Case(lambda t, z: torch.zeros_like(z) + torch.exp(-t) * torch.cos(3 * t), (2,))


@case
def constant() -> Case:
    return Case(lambda t, z: torch.ones_like(z), (2,))


@case
def identity() -> Case:
    return Case(lambda t, z: z, (2,))


@case
def swap() -> Case:
    return Case(lambda t, z: (z[1], z[0]), ((2,), (2,)))


@case
def scalar_state() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.k = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return -self.k * z * t + torch.cos(t)

    return Case(Net(), ())


@case
def constant_components() -> Case:
    """Parts of the state that move at a rate which depends on nothing, before and behind one that does."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = linear(2, 2)

        def forward(self, t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            clock, z, still = state
            return torch.ones_like(clock), torch.tanh(self.net(z)) * t, torch.zeros_like(still)

    return Case(Net(), ((), (2,), (3,)))


@case
def tuple_state() -> Case:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = linear(3, 2), linear(2, 1)

        def forward(self, t: Tensor, z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            x, y = z
            dx = torch.tanh(self.a(torch.cat([x, y[:, None]], 1)))
            return dx, self.b(dx * t)[:, 0] - y

    return Case(Pair(), ((2,), ()))


@case
def arguments() -> Case:
    class Controlled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = linear(5, 2)

        def forward(self, t: Tensor, z: Tensor, x: Tensor, k: Tensor) -> Tensor:
            return torch.tanh(self.net(torch.cat([z, x], 1))) * k[:, None]

    return Case(Controlled(), (2,), args=((3,), ()))


@case
def unused_argument() -> Case:
    return Case(lambda t, z, x: z * 2, (2,), args=((3,),))


# ---- parameters, buffers, what a callable captures --------------------------------------------------


@case
def shared_parameters() -> Case:
    layer = linear(3, 3)
    return Case(Of(layer, nn.Tanh(), layer, nn.Tanh(), layer), (3,))


@case
def frozen_and_unused() -> Case:
    net = Of(linear(3, 5), nn.Tanh(), linear(5, 3))
    net.net[0].weight.requires_grad_(False)
    net.unused = parameter(4)
    return Case(net, (3,))


@case
def buffer_and_attribute() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
            self.register_buffer("whole", torch.tensor([1, 2, 3]))
            self.register_buffer("mask", torch.tensor([True, False, True]))
            self.shift = normal(3)  # neither a parameter nor a buffer
            self.w = parameter(3)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return torch.where(self.mask, z * self.scale, self.w) * self.whole + self.shift

    return Case(Net(), (3,))


@case
def tied_weight() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = parameter(3, 5)
            self.again = self.w

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return torch.tanh(z @ self.w) @ self.again.T

    return Case(Net(), (3,))


@case
def function_of_parameters() -> Case:
    """What depends on parameters alone, in several ways."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.s = parameter(3, 3), parameter(3)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            skew = self.w - self.w.T
            return z @ skew @ skew * F.softplus(self.s).sum() + z / self.w.norm()

    return Case(Net(), (3,))


@case
def closure_over_module() -> Case:
    net = nn.Sequential(linear(3, 4), nn.Tanh(), linear(4, 3))
    return Case(lambda t, z: net(z) * t, (3,))


@case
def closure_over_leaves() -> Case:
    w, b = normal(3, 3).requires_grad_(), parameter(3)
    constant = normal(3)
    return Case(lambda t, z: torch.tanh(z @ w + b) * constant, (3,))


@case
def nested_function() -> Case:
    w = normal(3, 3).requires_grad_()

    def inner(z: Tensor, scale: float = 2.0) -> Tensor:
        return z @ w * scale

    def f(t: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(inner(z) + inner(z, scale=0.5))

    return Case(f, (3,))


@case
def bound_method() -> Case:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = linear(3, 3)

        def velocity(self, t: Tensor, z: Tensor) -> Tensor:
            return torch.tanh(self.net(z))

    return Case(Model().velocity, (3,))


@case
def partial() -> Case:
    net = linear(3, 3)

    def f(layer: nn.Module, t: Tensor, z: Tensor, *, scale: float) -> Tensor:
        return layer(z) * scale

    return Case(functools.partial(f, net, scale=0.3), (3,))


@case
def callable_object() -> Case:
    class Plain:
        def __init__(self) -> None:
            self.net = linear(3, 3)
            self.w = normal(3).requires_grad_()

        def __call__(self, t: Tensor, z: Tensor) -> Tensor:
            return torch.tanh(self.net(z)) * self.w

    return Case(Plain(), (3,))


@case
def list_of_tensors() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = [normal(3, 3).requires_grad_(), normal(3, 3)]

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return torch.tanh(z @ self.weights[0]) @ self.weights[1]

    return Case(Net(), (3,))


# ---- in-place operations ----------------------------------------------------------------------------


@case
def in_place() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.relu = linear(3, 4), linear(4, 3), nn.ReLU(inplace=True)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            h = self.relu(self.a(z)) * 1
            h[:, 0] += t
            h += 1
            h[:, 1:3].mul_(2)
            h.clamp_(max=3)
            out = torch.zeros_like(z)
            out[:, 1] = h[:, 1]
            out[..., 0] = h[:, 2] ** 2
            return self.b(h) + out

    return Case(Net(), (3,))


@case
def filled_from_zeros() -> Case:
    def lorenz(t: Tensor, z: Tensor) -> Tensor:
        dz = torch.empty_like(z)
        x, y, w = z[..., 0], z[..., 1], z[..., 2]
        dz[..., 0] = 10 * (y - x)
        dz[..., 1] = x * (28 - w) - y
        dz[..., 2] = x * y - 8 / 3 * w
        return dz

    return Case(lorenz, (3,))


# ---- shapes -----------------------------------------------------------------------------------------


@case
def stack() -> Case:
    def lotka(t: Tensor, z: Tensor) -> Tensor:
        x, y = z[:, 0], z[:, 1]
        return torch.stack([1.5 * x - x * y, x * y - 3 * y], 1)

    return Case(lotka, (2,))


@case
def unbind_split_chunk() -> Case:
    def f(t: Tensor, z: Tensor) -> Tensor:
        a, b, c, d = z.unbind(-1)
        p, q = z.chunk(2, 1)
        r, s = z.split([1, 3], 1)
        return torch.stack([a * b, b + c, c.sin(), d], -1) + torch.cat([q, p], 1) * r + F.pad(s, (1, 0)) ** 2

    return Case(f, (4,))


@case
def slices() -> Case:
    def f(t: Tensor, z: Tensor) -> Tensor:
        left, right = z[:, :-1], z[:, 1:]
        flux = (right - left) ** 3
        return F.pad(flux, (1, 0)) - F.pad(flux, (0, 1)) + torch.cat([z[:, ::2], z[:, 1::2]], 1) + z.roll(1, 1)

    return Case(f, (6,))


@case
def reshapes() -> Case:
    def f(t: Tensor, z: Tensor) -> Tensor:
        x = z.view(z.shape[0], 2, 3).transpose(1, 2).reshape(-1, 6).unflatten(1, (3, 2))
        y = x.permute(0, 2, 1).flatten(1)
        return (
            y.unsqueeze(-1).expand(-1, -1, 2).sum(-1)
            + z.flip(1)
            + z.repeat(1, 2)[:, 3:9]
            + x.mT.reshape(-1, 6).squeeze()
        )

    return Case(f, (6,))


@case
def gather_by_constants() -> Case:
    def f(t: Tensor, z: Tensor) -> Tensor:
        i = torch.tensor([2, 0, 1, 1])
        return (
            z[:, i]
            + z.index_select(1, torch.tensor([3, 3, 0, 1]))
            + z[:, [0, -1, 2, 1]]
            + z.gather(1, i.expand(z.shape[0], 4))
        )

    return Case(f, (4,))


@case
def diagonals() -> Case:
    def f(t: Tensor, z: Tensor) -> Tensor:
        m = z.view(-1, 3, 3)
        trace = m.diagonal(dim1=1, dim2=2).sum(-1)
        return (torch.tril(m) @ torch.triu(m, 1)).flatten(1) * trace[:, None] + torch.diag_embed(m[:, 0]).flatten(1)

    return Case(f, (9,))


@case
def masked() -> Case:
    def f(t: Tensor, z: Tensor) -> Tensor:
        return z.masked_fill(z > 0.5, 0.1) + torch.where(z < t, z**2, z.abs()) + (z > 0) * z + (z >= 0.3).to(z) * t

    return Case(f, (4,))


# ---- arithmetic, reductions -------------------------------------------------------------------------


@case
def elementwise() -> Case:
    def f(t: Tensor, z: Tensor) -> Tensor:
        x = z.exp() + z.expm1() + z.sin() * z.cos() + z.tan() + z.sinh() / z.cosh() + z.atan() + z.asinh() + z.erf()
        p = z**2 + 0.5
        y = p.log() + p.log1p() + p.log2() - p.log10() + p.sqrt() * p.rsqrt() + p.reciprocal() + p.pow(1.7) + 2**z
        return x + y + z.neg() + z.abs() + torch.erfc(z) + torch.atan2(z, p) + z.square() + z.sigmoid() + torch.sinc(p)

    return Case(f, (4,))


@case
def bounded_domain() -> Case:
    def f(t: Tensor, z: Tensor) -> Tensor:
        return z.asin() + z.acos() + z.atanh() + (z + 2).acosh() + torch.logit(z * 0.4 + 0.5) + torch.hypot(z, t)

    return Case(f, (4,), domain=lambda x: 0.9 * torch.tanh(x))


@case
def special_functions() -> Case:
    def f(t: Tensor, z: Tensor) -> Tensor:
        return torch.lgamma(z**2 + 0.5) + torch.exp2(z) + torch.erfinv(0.9 * torch.tanh(z)) + torch.logaddexp(z, t)

    return Case(f, (3,))


@case
def interacting_particles() -> Case:
    """Forces by distance, between the particles `(particles, 2)` of each sample."""

    def f(t: Tensor, z: Tensor) -> Tensor:
        kernel = torch.exp(-(torch.cdist(z, z + 0.1) ** 2)) + torch.cdist(z, z.flip(1), p=1.0)
        return (kernel[..., None] * (z[:, :, None] - z[:, None])).sum(2)

    return Case(f, (4, 2))


@case
def windows() -> Case:
    mask = torch.tensor([True, False, True, True, False])

    def f(t: Tensor, z: Tensor) -> Tensor:
        return F.pad(z.unfold(1, 3, 2).sum(2), (0, 3)) + F.pad(z[:, mask], (1, 1)) + z.unfold(1, 1, 1)[..., 0]

    return Case(f, (5,))


@case
def piecewise_constant() -> Case:
    def f(t: Tensor, z: Tensor) -> Tensor:
        return (
            z.floor() + z.ceil() * z + z.round() + z.trunc() + z.frac() * z + z.sign() + z.remainder(0.7) + z.fmod(0.3)
        )

    return Case(f, (4,))


@case
def extrema() -> Case:
    def f(t: Tensor, z: Tensor) -> Tensor:
        top, low = z.max(1, keepdim=True).values, z.amin(1, keepdim=True)
        bounded = z.clamp(-0.5, 0.7) + z.clamp(min=0.1) + z.clip(max=torch.full((4,), 0.2, dtype=z.dtype))
        return (
            bounded + torch.maximum(z, z.flip(1)) + torch.minimum(z, t) + top - low * z.amax() + z.min(1, True).values
        )

    # z.amax() couples the samples: what one sample does then depends on the batch, and still has to be right.
    return Case(f, (4,))


@case
def reductions() -> Case:
    def f(t: Tensor, z: Tensor) -> Tensor:
        m = z.view(-1, 2, 3)
        a = (
            m.mean((1, 2), keepdim=True)
            + m.var(2, keepdim=True)
            + m.std(1, keepdim=True, correction=0)
            + m.sum(-1, True)
        )
        b = (
            m.logsumexp(2, keepdim=True)
            + m.norm(dim=1, keepdim=True)
            + m.prod(2, keepdim=True)
            + m.norm(p=1) / z.numel()
        )
        return ((m + a + b) * m.cumsum(2)).flatten(1) + z.mean() + z.sum() / z.shape[0]

    return Case(f, (6,))


@case
def norms_of_rows() -> Case:
    def f(t: Tensor, z: Tensor) -> Tensor:
        unit = F.normalize(z, dim=1) + z / torch.linalg.vector_norm(z, 3, dim=1, keepdim=True)
        return unit + F.cosine_similarity(z, z.flip(1), dim=1)[:, None] + z.abs().amax(1, keepdim=True)

    return Case(f, (4,))


# ---- products ---------------------------------------------------------------------------------------


@case
def products() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.b, self.v = parameter(4, 4), parameter(4), parameter(4)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            a = torch.addmm(self.b, z, self.w, beta=0.5, alpha=2) + z @ self.w.T + (z @ self.v)[:, None]
            m = z.view(-1, 2, 2)
            return (
                a + torch.bmm(m, m.mT).flatten(1) + torch.matmul(m, self.w[:2, :2]).flatten(1) + z.mv(self.v)[:, None]
            )

    return Case(Net(), (4,))


@case
def einsum() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = parameter(3, 3, 3)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return torch.einsum("bi,bj,ijk->bk", z, z, self.w) + torch.einsum("bi,bi->b", z, z)[:, None]

    return Case(Net(), (3,))


@case
def outer() -> Case:
    def f(t: Tensor, z: Tensor) -> Tensor:
        m = z[:, :, None] * z[:, None, :]
        return (m - m.mT + torch.eye(3, dtype=z.dtype)).sum(1)

    return Case(f, (3,))


class Attention(nn.Module):
    """Self-attention over the tokens of a state `(batch, tokens, width)`."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.q, self.k, self.v = linear(width, width), linear(width, width), linear(width, width)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        scores = self.q(z) @ self.k(z).transpose(1, 2) / math.sqrt(z.shape[-1])
        return scores.softmax(-1) @ self.v(z)


@case
def attention() -> Case:
    return Case(Attention(), (5, 4))


@case
def scaled_dot_product() -> Case:
    class Net(Attention):
        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(self.q(z), self.k(z), self.v(z))

    return Case(Net(), (5, 4))


@case
def multihead_attention() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True, dtype=torch.float64)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return self.attention(z, z, z)[0] + self.attention(z, z, z, need_weights=False)[0]

    return Case(Net(), (5, 4))


@case
def transformer_layer() -> Case:
    return Case(
        Of(nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True, norm_first=True, dtype=torch.float64)), (5, 4)
    )


# ---- normalisation ----------------------------------------------------------------------------------


def trained(norm: nn.Module) -> nn.Module:
    """With weights and running statistics other than at the start."""
    for x in (*norm.parameters(), *norm.buffers()):
        if x.is_floating_point():
            x.data = torch.rand_like(x, dtype=torch.float64) + 0.5
    return norm.double().eval()


@case
def layer_norm() -> Case:
    return Case(
        Of(linear(3, 6), trained(nn.LayerNorm(6)), nn.Tanh(), linear(6, 3), nn.LayerNorm(3, elementwise_affine=False)),
        (3,),
    )


@case
def rms_norm() -> Case:
    return Case(Of(linear(3, 6), trained(nn.RMSNorm(6)), linear(6, 3)), (3,))


@case
def group_norm() -> Case:
    return Case(Of(linear(3, 6), trained(nn.GroupNorm(2, 6)), linear(6, 3)), (3,))


@case
def instance_norm() -> Case:
    return Case(Of(trained(nn.InstanceNorm1d(2, affine=True))), (2, 5))


@case
def batch_norm_in_eval() -> Case:
    return Case(Of(linear(3, 4), trained(nn.BatchNorm1d(4)), nn.Tanh(), linear(4, 3)), (3,))


@case
def batch_norm_of_the_batch() -> Case:
    """Without running statistics: each call normalises by its own batch."""
    return Case(
        Of(linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False, dtype=torch.float64), linear(4, 3)),
        (3,),
        batches=(3, 2),
    )


# ---- parametrisations -------------------------------------------------------------------------------


@case
def weight_norm() -> Case:
    return Case(Of(parametrizations.weight_norm(linear(3, 4)), nn.Tanh(), linear(4, 3)), (3,))


@case
def old_weight_norm() -> Case:
    with_hook: Any = torch.nn.utils.weight_norm
    return Case(Of(with_hook(linear(3, 4)), nn.Tanh(), linear(4, 3)), (3,))


@case
def spectral_norm() -> Case:
    return Case(Of(parametrizations.spectral_norm(linear(3, 4)), nn.Tanh(), linear(4, 3)).eval(), (3,))


@case
def old_spectral_norm() -> Case:
    with_hook: Any = torch.nn.utils.spectral_norm
    return Case(Of(with_hook(linear(3, 4)), nn.Tanh(), linear(4, 3)).eval(), (3,))


def orthogonal(map_: str) -> Case:
    layer = parametrizations.orthogonal(linear(3, 3, bias=False), orthogonal_map=map_)
    layer.parametrizations.weight.original.data.add_(0.1 * normal(3, 3))
    return Case(Of(layer, nn.Tanh(), linear(3, 3)), (3,))


for _name in ("matrix_exp", "cayley", "householder"):
    CASES[f"orthogonal_{_name}"] = functools.partial(orthogonal, _name)


@case
def own_parametrization() -> Case:
    class Skew(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.triu(1) - x.triu(1).mT

    layer = linear(3, 3)
    parametrize.register_parametrization(layer, "weight", Skew())
    return Case(Of(layer, nn.Tanh(), layer), (3,))


# ---- derivatives inside the field -------------------------------------------------------------------


@case
def gradient_flow() -> Case:
    """The field is the gradient of an energy."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.energy = nn.Sequential(linear(3, 8), nn.Tanh(), linear(8, 1))

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            with torch.enable_grad():
                z = z if z.requires_grad else z.detach().requires_grad_()
                (g,) = torch.autograd.grad(self.energy(z).sum(), z, create_graph=True)
            return -g

    return Case(Net(), (3,))


@case
def ffjord() -> Case:
    """State, log density and both RNODE terms; Hutchinson's estimate with given noise."""

    class Flow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(linear(3, 8), nn.Tanh(), linear(8, 2))

        def forward(self, t: Tensor, state: tuple[Tensor, ...], noise: Tensor) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                z = state[0] if state[0].requires_grad else state[0].detach().requires_grad_()
                dz = self.net(torch.cat([z, t.expand(z.shape[0], 1)], 1))
                (pulled,) = torch.autograd.grad(dz, z, noise, create_graph=True)
            divergence = (pulled * noise).sum(1)
            return dz, -divergence, (dz**2).sum(1), (pulled**2).sum(1)

    return Case(Flow(), ((2,), (), (), ()), args=((2,),))


@case
def exact_divergence() -> Case:
    class Flow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(linear(2, 8), nn.Softplus(), linear(8, 2))

        def forward(self, t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                z = state[0] if state[0].requires_grad else state[0].detach().requires_grad_()
                dz = self.net(z)
                trace = sum(torch.autograd.grad(dz[:, i].sum(), z, create_graph=True)[0][:, i] for i in range(2))
            return dz, -trace

    return Case(Flow(), ((2,), ()))


@case
def hamiltonian() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.h = nn.Sequential(linear(4, 8), nn.Tanh(), linear(8, 1))

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            with torch.enable_grad():
                z = z if z.requires_grad else z.detach().requires_grad_()
                (g,) = torch.autograd.grad(self.h(z).sum(), z, create_graph=True)
            return torch.cat([g[:, 2:], -g[:, :2]], 1)

    return Case(Net(), (4,))


# ---- complex numbers --------------------------------------------------------------------------------

_M = torch.complex(normal(2, 2), normal(2, 2))

# Functions of a complex number for each of two features, `(batch, 2)`, of the time, and of real parameters `(2, 2)`.
COMPLEX: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "products": lambda z, t, v, w: -1j * t * z @ _M.T + (2 - 0.5j) * z * z.conj() * v[0],
    "products of a batch": lambda z, t, v, w: (
        torch.einsum("bi,ij,bj->bi", z, _M, z) + torch.bmm(z[:, :, None], z[:, None].conj()).sum(2)
    ),
    "parameters": lambda z, t, v, w: (
        z @ torch.view_as_complex(v.reshape(2, 1, 2)).reshape(2, 1) * torch.complex(w[0], v[0])
    ),
    "polar": lambda z, t, v, w: z * torch.polar(v[0] ** 2, t * w[0]) + torch.exp(1j * t) * z.abs() + z.angle() * 1j,
    "quotients": lambda z, t, v, w: z / (3 + z.abs() + 2j) + z.reciprocal() / (1 - 2j) + z / 2 - 1 / (z + 3j),
    "exponentials": lambda z, t, v, w: (0.3 * z).exp() + z.log() * 1j + z.sqrt() + (1j * z * t).exp(),
    "circular": lambda z, t, v, w: z.sin() - z.cos() * t + torch.tanh(0.5 * z) + z.sinh() - 1j * z.cosh() * t,
    "powers": lambda z, t, v, w: z**2 - z**3 * 0.1 + z**-1 + z**0.5 + z ** (0.2 + 0.1j) + 2.0**z,
    "shapes": lambda z, t, v, w: (
        torch.cat([z[:, 1:], z.flip(1)[:, 1:] * 1j], 1) + torch.stack([z.sum(1), z.mean(1)], 1).roll(1, 1)
    ),
    "parts": lambda z, t, v, w: torch.complex(z.imag * t, z.real) + z.real * 2 - 1j * z.imag.tanh(),
    "chosen": lambda z, t, v, w: (
        torch.where(z.real > 0, z, z.conj() * 1j) + torch.where(z.imag > 0, z.real, 0.3).to(z.dtype)
    ),
    "filled": lambda z, t, v, w: (
        torch.full_like(z, 1 + 2j) * z
        + torch.ones_like(z) * t
        - torch.zeros_like(z)
        + torch.tensor(2j, dtype=z.dtype)
        + 0j * z
    ),
    "norms": lambda z, t, v, w: (
        z / (1 + (z.abs() ** 2).sum(1, keepdim=True)) + torch.sgn(z) + torch.dot(_M[0], _M[1]) * z
    ),
}


class OnComplex(nn.Module):
    """A function of complex numbers as a field of pairs of real numbers."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.v, self.w = name, parameter(2, 2), parameter(2, 2)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        value = COMPLEX[self.name](torch.view_as_complex(z.contiguous()), t, self.v, self.w)
        return torch.view_as_real(value.resolve_conj())


CASES |= {f"complex, {name}": functools.partial(lambda name: Case(OnComplex(name), (2, 2)), name) for name in COMPLEX}


# ---- images -----------------------------------------------------------------------------------------


def conv(*sizes: int, **keywords: Any) -> nn.Conv2d:
    return nn.Conv2d(*sizes, dtype=torch.float64, **keywords)


IMAGE = (3, 6, 5)  # channels, height, width

CONVOLUTIONS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: conv(3, 3, 3, padding=1),
    "conv without bias": lambda: conv(3, 3, 3, padding=1, bias=False),
    "conv of one pixel": lambda: conv(3, 3, 1),
    "conv of many channels": lambda: nn.Sequential(conv(3, 8, 3, padding=1), nn.Tanh(), conv(8, 3, 3, padding=1)),
    "conv of uneven kernel": lambda: conv(3, 3, (3, 1), padding=(1, 0)),
    "conv, padding same": lambda: conv(3, 3, 3, padding="same", dilation=(2, 1)),
    "conv, no padding": lambda: nn.Sequential(conv(3, 4, 3), nn.ConvTranspose2d(4, 3, 3, dtype=torch.float64)),
    "conv, dilation": lambda: conv(3, 3, 3, padding=(2, 1), dilation=(2, 1)),
    "conv, groups": lambda: nn.Sequential(conv(3, 6, 3, padding=1, groups=3), conv(6, 3, 3, padding=1, groups=3)),
    "conv, depthwise": lambda: conv(3, 3, 3, padding=1, groups=3),
    "conv, stride": lambda: nn.Sequential(
        conv(3, 4, 3, stride=(2, 1), padding=1),
        nn.Tanh(),
        nn.ConvTranspose2d(4, 3, 3, stride=(2, 1), padding=1, output_padding=(1, 0), dtype=torch.float64),
    ),
    "conv, transposed, groups": lambda: nn.Sequential(
        conv(3, 4, 1), nn.ConvTranspose2d(4, 6, 3, padding=1, groups=2, dtype=torch.float64), conv(6, 3, 1)
    ),
    "conv, circular": lambda: conv(3, 3, 3, padding=1, padding_mode="circular"),
    "conv, reflect": lambda: conv(3, 3, 3, padding=(2, 1), dilation=(2, 1), padding_mode="reflect"),
    "conv, replicate": lambda: conv(3, 3, 3, padding=1, padding_mode="replicate"),
    "group norm of images": lambda: nn.Sequential(
        conv(3, 4, 3, padding=1), trained(nn.GroupNorm(2, 4)), nn.ReLU(), conv(4, 3, 3, padding=1)
    ),
    "batch norm of images": lambda: nn.Sequential(trained(nn.BatchNorm2d(3)), conv(3, 3, 3, padding=1)),
    "average pooling": lambda: Resized(nn.AvgPool2d(2)),
    "average pooling, padding": lambda: Resized(nn.AvgPool2d(3, 2, 1, count_include_pad=False)),
    "average pooling, ceil": lambda: Resized(nn.AvgPool2d((3, 2), (2, 2), 1, ceil_mode=True)),
    "average pooling, divisor": lambda: Resized(nn.AvgPool2d(2, 1, divisor_override=3)),
    "adaptive pooling": lambda: Resized(nn.AdaptiveAvgPool2d((4, 3))),
    "global pooling": lambda: Resized(nn.AdaptiveAvgPool2d(1)),
    "max pooling": lambda: Resized(nn.MaxPool2d(2)),
    "max pooling, overlapping": lambda: Resized(nn.MaxPool2d(3, 2, 1)),
    "max pooling, dilation, ceil": lambda: Resized(nn.MaxPool2d((2, 3), 2, 1, dilation=(2, 1), ceil_mode=True)),
    "upsampling": lambda: Resized(nn.Upsample(scale_factor=2)),
    "upsampling to a size": lambda: Resized(nn.Upsample(size=(9, 7))),
    "upsampling, bilinear": lambda: Resized(nn.Upsample(scale_factor=2, mode="bilinear")),
    "upsampling, bilinear, aligned": lambda: Resized(nn.Upsample(size=(9, 7), mode="bilinear", align_corners=True)),
    "upsampling, nearest-exact": lambda: Resized(nn.Upsample(size=(9, 7), mode="nearest-exact")),
    "adaptive max pooling": lambda: Resized(nn.AdaptiveMaxPool2d((4, 3))),
    "global max pooling": lambda: Resized(nn.AdaptiveMaxPool2d(1)),
    "upsampling, antialiased": lambda: Resized(Antialiased()),
    "padding with a number": lambda: Resized(nn.ConstantPad2d((1, 0, 2, -1), 0.5)),
    "local response norm": lambda: nn.LocalResponseNorm(2),
    "pixel shuffle": lambda: nn.Sequential(nn.PixelUnshuffle(1), conv(3, 12, 1), nn.PixelShuffle(2), nn.MaxPool2d(2)),
}


class Antialiased(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return F.interpolate(z, (4, 7), mode="bilinear", antialias=True)


class Resized(nn.Module):
    """A layer between two convolutions, brought back to the size of its input by a linear map of the pixels."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = nn.Sequential(conv(3, 2, 1), layer)
        size = self.layer(torch.zeros(1, *IMAGE, dtype=torch.float64)).flatten(2).shape[-1]
        self.back = linear(size, math.prod(IMAGE[1:]))
        self.mix = conv(2, 3, 1)

    def forward(self, z: Tensor) -> Tensor:
        return self.mix(self.back(self.layer(z).flatten(2)).unflatten(2, IMAGE[1:]))


def image(name: str) -> Case:
    return Case(Of(CONVOLUTIONS[name](), nn.Tanh()), IMAGE)


for _name in CONVOLUTIONS:
    CASES[_name] = functools.partial(image, _name)


@case
def conv1d() -> Case:
    layer = nn.Conv1d(2, 2, 3, padding=1, dtype=torch.float64)
    return Case(Of(layer, nn.Tanh(), nn.MaxPool1d(3, 1, 1), nn.AvgPool1d(3, 1, 1)), (2, 7))


@case
def conv3d() -> Case:
    return Case(
        Of(nn.Conv3d(2, 2, (3, 1, 2), stride=(1, 1, 1), padding=(1, 0, 1), dtype=torch.float64), Crop()), (2, 3, 2, 3)
    )


class Crop(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z[..., :3]


def volume(name: str) -> Case:
    return Case(Of(VOLUMES[name](), Flat(), nn.Tanh()), (2, 4, 3, 5))


class Flat(nn.Module):
    """Voxels of any number brought back to those of the state by a fixed map."""

    def forward(self, z: Tensor) -> Tensor:
        flat = z.flatten(2)
        weights = torch.arange(60 * flat.shape[-1]).to(z).reshape(-1, 60).mul(0.7).cos()
        return (flat @ weights).unflatten(2, (4, 3, 5))


def conv3(**keywords: Any) -> nn.Conv3d:
    return nn.Conv3d(2, 2, (3, 2, 1), padding=(1, 1, 0), dtype=torch.float64, **keywords)


VOLUMES: dict[str, Callable[[], nn.Module]] = {
    "conv of volumes, circular": lambda: conv3(padding_mode="circular"),
    "conv of volumes, reflect": lambda: conv3(padding_mode="reflect"),
    "conv of volumes, replicate": lambda: conv3(padding_mode="replicate"),
    "conv of volumes, transposed": lambda: nn.ConvTranspose3d(2, 2, 2, (2, 1, 1), (1, 0, 1), dtype=torch.float64),
    "max pooling of volumes": lambda: nn.MaxPool3d((3, 2, 2), (2, 1, 2), (1, 0, 1)),
    "average pooling of volumes": lambda: nn.AvgPool3d((3, 2, 2), (2, 1, 2), (1, 0, 1), count_include_pad=False),
    "adaptive pooling of volumes": lambda: nn.AdaptiveAvgPool3d((3, 2, 4)),
    "adaptive max pooling of volumes": lambda: nn.AdaptiveMaxPool3d((3, 2, 4)),
    "upsampling of volumes": lambda: nn.Upsample(scale_factor=2),
    "upsampling of volumes, nearest-exact": lambda: nn.Upsample((5, 4, 7), mode="nearest-exact"),
    "upsampling of volumes, trilinear": lambda: nn.Upsample((5, 4, 7), mode="trilinear"),
}
for _name in VOLUMES:
    CASES[_name] = functools.partial(volume, _name)


@case
def windows_of_the_last_dimension() -> Case:
    return Case(lambda t, z: torch.tanh(z.unfold(-1, 3, 1)).sum(-1) * z[:, 1:-1] @ torch.ones(3, 5).to(z), (5,))


@case
def places_in_the_batch() -> Case:
    """What counts the samples holds for any number of them, though they are not independent."""

    def f(t: Tensor, z: Tensor) -> Tensor:
        n = z.shape[0]
        greatest = z[:, 0].argmax(0)
        upper = torch.triu(torch.ones(n, n, dtype=z.dtype)) + torch.eye(n, dtype=z.dtype)
        return torch.sin(upper @ z) + torch.arange(0, n)[:, None] * z + greatest

    return Case(f, (2,))


@case
def conv_with_time() -> Case:
    """The convolutional field of Chen et al.'s ODE-Net: time as a channel, group norms."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = trained(nn.GroupNorm(3, 6)), trained(nn.GroupNorm(2, 6))
            self.conv1, self.conv2 = conv(7, 6, 3, padding=1), conv(7, 6, 3, padding=1)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            channel = torch.ones_like(z[:, :1]) * t
            z = self.conv1(torch.cat([channel, torch.relu(self.norm1(z))], 1))
            return self.norm2(self.conv2(torch.cat([channel, torch.relu(z)], 1)))

    return Case(Net(), (6, 4, 4))


@case
def ffjord_of_images() -> Case:
    """A derivative of convolutions within the field: their double derivative in the products."""

    class Flow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                conv(2, 4, 3, padding=1, stride=2), nn.Softplus(), nn.Upsample(scale_factor=2), conv(4, 2, 3, padding=1)
            )

        def forward(self, t: Tensor, state: tuple[Tensor, ...], noise: Tensor) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                z = state[0] if state[0].requires_grad else state[0].detach().requires_grad_()
                dz = self.net(z)
                (pulled,) = torch.autograd.grad(dz, z, noise, create_graph=True)
            return dz, -(pulled * noise).flatten(1).sum(1)

    return Case(Flow(), ((2, 4, 4), ()), args=((2, 4, 4),), needs=(2, 13))
