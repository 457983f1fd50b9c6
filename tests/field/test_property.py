"""Random modules: the graph's value, products and tangents equal the module's and autograd's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from modules import ACTIVATIONS, Case, linear, parameter
from reference import check, check_tangent
from torch import Tensor, nn

from pynode.errors import TraceError

Layer = Callable[[Tensor, Tensor], Tensor]

# Hardsigmoid: see `activation`; the others take other shapes or have parameters of single precision.
ACTIVATION_NAMES = sorted(set(ACTIVATIONS) - {"Hardsigmoid", "GLU", "Softmax2d", "PReLU"})


def distinct(x: Tensor) -> Tensor:
    """Entries without ties, for which the order would be a matter of choice."""
    return x + 0.37 * torch.arange(x.shape[1], dtype=x.dtype)


def matrices(x: Tensor) -> Tensor:
    """A well-conditioned matrix of each sample, with eigenvalues that are apart."""
    n = x.shape[1]
    turned = torch.tanh(x)[:, :, None] * torch.sin(x + 1)[:, None]
    return torch.diag(1 + torch.arange(n, dtype=x.dtype)) + 0.2 * turned / n


def positive(x: Tensor) -> Tensor:
    m = matrices(x)
    return m @ m.mT


def applied(m: Tensor, x: Tensor) -> Tensor:
    return (m @ torch.tanh(x)[:, :, None])[:, :, 0]


def by_singular_values(x: Tensor) -> Tensor:
    u, s, vh = torch.linalg.svd(matrices(x), full_matrices=False)
    return applied(u @ torch.diag_embed(torch.log1p(s)) @ vh, x)


def damped(x: Tensor) -> Tensor:
    """Its Fourier series, of which high frequencies are damped and shifted."""
    k = torch.fft.rfftfreq(x.shape[1], dtype=x.dtype)
    return torch.fft.irfft(torch.fft.rfft(x) * torch.exp((0.3j - 1) * k), n=x.shape[1])


# What the operations beyond layers do: order, computed places, linear algebra, transforms, running extrema.
FURTHER: dict[str, Callable[[Tensor], Tensor]] = {
    "best of each sample": lambda x: x * x[torch.arange(x.shape[0]), distinct(x).detach().argmax(1)][:, None] / 4,
    "cholesky": lambda x: applied(torch.linalg.cholesky(positive(x)), x),
    "complex": lambda x: torch.fft.ifft(torch.fft.fft(x) * torch.exp(0.2j * x)).real,
    "cummax": lambda x: torch.cummax(distinct(x), 1).values,
    "cummin": lambda x: torch.cummin(distinct(x), 1)[0],
    "cumprod": lambda x: torch.cumprod(1 + 0.3 * torch.tanh(x), 1),
    "det": lambda x: torch.tanh(x) * torch.linalg.det(0.7 * matrices(x))[:, None] / math.factorial(x.shape[1]),
    "eigh": lambda x: torch.linalg.eigvalsh(positive(x)).log(),
    "fft": damped,
    "gather": lambda x: x.gather(1, distinct(x).detach().argsort(1)),
    "inv": lambda x: applied(torch.linalg.inv(matrices(x)), x),
    "logcumsumexp": lambda x: torch.logcumsumexp(x, 1),
    "matrix_exp": lambda x: applied(torch.linalg.matrix_exp(0.2 * matrices(x)), x) / x.shape[1],
    "pinv": lambda x: torch.linalg.pinv(matrices(x)[:, :, :1]).sum(1) + x,
    "qr": lambda x: applied(torch.linalg.qr(matrices(x))[0], x),
    "scatter": lambda x: torch.zeros_like(x).scatter_add(1, (7 * x.detach().abs()).long() % x.shape[1], torch.sin(x)),
    "slogdet": lambda x: x + torch.linalg.slogdet(matrices(x))[1][:, None],
    "solve": lambda x: torch.linalg.solve(matrices(x), torch.cos(x)),
    "sort": lambda x: torch.sort(distinct(x), 1).values,
    "sort down": lambda x: torch.sort(distinct(x), 1, descending=True)[0],
    "svd": by_singular_values,
    "topk": lambda x: x - torch.topk(distinct(x), min(2, x.shape[1]), 1).values.mean(1, keepdim=True),
    "triangle": lambda x: torch.linalg.solve_triangular(matrices(x).tril(), x[:, :, None], upper=False)[:, :, 0],
}

SHOWN = {"best of each sample", "cummax", "scatter", "topk"}

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "atan": torch.atan,
    "clamp": lambda x: x.clamp(-0.8, 0.9),
    "copysign": lambda x: torch.copysign(x, x.flip(1)),
    "cos": torch.cos,
    "cumsum": lambda x: x.cumsum(1),
    "erf": torch.erf,
    "exp of a bounded": lambda x: torch.exp(torch.tanh(x)),
    "flip": lambda x: x.flip(1),
    "ldexp": lambda x: torch.ldexp(x, torch.tensor(-1)),
    "log of a positive": lambda x: torch.log(x**2 + 0.5),
    "neg": torch.neg,
    "norm": lambda x: x / (x.norm(dim=1, keepdim=True) + 1),
    "roll": lambda x: x.roll(1, 1),
    "softmax": lambda x: x.softmax(1),
    "signbit": lambda x: torch.where(torch.signbit(x), x, x * 0.3),
    "sqrt of a positive": lambda x: torch.sqrt(x * x + 1),
    "square": lambda x: x**2 / 4,
    "sum": lambda x: x + x.sum(1, keepdim=True) / x.shape[1],
    "mean of the batch": lambda x: x - x.mean(0, keepdim=True),
    "max": lambda x: x - x.amax(1, keepdim=True),
    "var": lambda x: x / (x.var(1, keepdim=True, correction=0) + 1),
    "where": lambda x: torch.where(x > 0.1, x, x * 0.3),
}

BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "cat": lambda x, y: torch.cat([x, y], 1)[:, ::2] if x.shape[1] > 1 else x + y,
    "div": lambda x, y: x / (1 + y**2),
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "mul": lambda x, y: torch.tanh(x) * y,
    "outer": lambda x, y: (x[:, :, None] * y[:, None, :]).tanh().mean(2),
    "stack": lambda x, y: torch.stack([x, y, x], 2).amin(2),
    "sub": torch.sub,
}

STEPS = (
    *("linear", "shared", "activation", "unary", "further", "binary", "skip"),
    *("time", "time column", "layer norm", "slice", "pad", "index", "attention", "embedding"),
)


class Random(nn.Module):
    """A chain of layers drawn step by step; `(batch, width)` in and out."""

    def __init__(self, draw: Callable[..., Any], width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.steps: list[Layer] = []
        self.plan: list[str] = []
        size = width
        shared: dict[int, nn.Module] = {}
        for kind in draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=6)):
            name = kind
            if kind == "linear":
                layer, size = self.module(linear(size, new := draw(st.integers(1, 6)), bias=draw(st.booleans()))), new
                self.steps.append(lambda t, z, layer=layer: layer(z))
            elif kind == "shared":
                layer = shared.setdefault(size, self.module(linear(size, size)))
                self.steps.append(lambda t, z, layer=layer: layer(torch.tanh(layer(z))))
            elif kind == "activation":
                name = draw(st.sampled_from(ACTIVATION_NAMES))
                layer = self.module(ACTIVATIONS[name]().double().eval())
                # In place it would write to what an earlier step has saved.
                self.steps.append(lambda t, z, layer=layer: layer(z + 0.0))
            elif kind == "unary":
                name = draw(st.sampled_from(sorted(UNARY)))
                self.steps.append(lambda t, z, f=UNARY[name]: f(z))
            elif kind == "further":
                name = draw(st.sampled_from(sorted(FURTHER)))
                self.steps.append(lambda t, z, f=FURTHER[name]: f(torch.tanh(z) + 0.1 * z))
            elif kind == "embedding":
                table = self.module(nn.Embedding(5, size, dtype=torch.float64))
                self.steps.append(lambda t, z, table=table: z * table((3 * z[:, 0].detach()).long() % 5))
            elif kind == "binary":
                name = draw(st.sampled_from(sorted(BINARY)))
                a, b = self.module(linear(size, size)), self.module(linear(size, size))
                self.steps.append(lambda t, z, f=BINARY[name], a=a, b=b: f(a(z), b(z)))
            elif kind == "skip":
                layer = self.module(nn.Sequential(linear(size, size), nn.Tanh()))
                self.steps.append(lambda t, z, layer=layer: z + layer(z))
            elif kind == "time":
                self.steps.append(lambda t, z: z * torch.cos(3 * t) + t**2)
            elif kind == "time column":
                self.steps.append(lambda t, z: torch.cat([t.expand(z.shape[0], 1), z], 1))
                size += 1
            elif kind == "layer norm":
                layer = self.module(nn.LayerNorm(size, eps=0.1, dtype=torch.float64))
                self.steps.append(lambda t, z, layer=layer: layer(z))
            elif kind == "slice":
                start, step = draw(st.integers(0, size - 1)), draw(st.integers(1, 3))
                self.steps.append(lambda t, z, start=start, step=step: z[:, start::step])
                size = len(range(start, size, step))
            elif kind == "pad":
                before, after = draw(st.integers(0, 2)), draw(st.integers(0, 2))
                self.steps.append(lambda t, z, p=(before, after): nn.functional.pad(z, p))
                size += before + after
            elif kind == "index":
                index = draw(st.lists(st.integers(-size, size - 1), min_size=1, max_size=6))
                self.steps.append(lambda t, z, index=index: z[:, index])
                size = len(index)
            else:
                layer = self.module(linear(2, 6))
                self.steps.append(lambda t, z, layer=layer: attention(layer, z))
            self.plan.append(name)
        self.last = linear(size, width)
        self.scale = parameter(width)

    def module(self, layer: nn.Module) -> nn.Module:
        self.layers.append(layer)
        return layer

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        for step in self.steps:
            z = step(t, z)
        return self.last(z) * self.scale

    def __repr__(self) -> str:
        return f"Random({self.plan})"


def attention(layer: nn.Module, z: Tensor) -> Tensor:
    """Over the features as tokens."""
    q, k, v = layer(torch.stack([z, z.sin()], 2)).chunk(3, 2)
    return ((q @ k.mT / math.sqrt(2)).softmax(2) @ v).sum(2)


@st.composite
def cases(draw: Callable[..., Any]) -> tuple[Case, int, int]:
    width = draw(st.integers(1, 5))
    torch.manual_seed(draw(st.integers(0, 1000)))
    return Case(Random(draw, width), (width,)), draw(st.integers(1, 4)), draw(st.integers(1, 9))


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(cases())
def test_random_modules(drawn: tuple[Case, int, int]) -> None:
    """The graph of one batch size holds for another."""
    case, batch, another = drawn
    found = check(case, batch)
    assert found.graph.batch is None
    assert check(case, another) is found


@pytest.mark.slow
@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(cases(), st.integers(1, 2))
def test_tangents_of_random_modules(drawn: tuple[Case, int, int], n: int) -> None:
    """The derivatives in directions of the state, against forward-mode differentiation."""
    case, batch, _ = drawn
    check_tangent(case, batch, n)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in SHOWN else pytest.mark.slow) for n in FURTHER])
def test_each_further_operation(name: str) -> None:
    """By itself: the value and products for two batch sizes, and the tangent."""
    case = Case(Alone(FURTHER[name]), (4,), tolerance=1e-11)
    found = check(case, 3)
    assert found.graph.batch is None
    assert check(case, 1) is found
    if name == "logcumsumexp":  # PyTorch's derivative of it takes the logarithm of the cotangent
        with pytest.raises(TraceError, match="an operation may have none at zero"):
            check_tangent(case, 3)
    else:
        check_tangent(case, 3)


class Alone(nn.Module):
    """An operation between two layers."""

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.f, self.first, self.last = f, linear(4, 4), linear(4, 4)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.last(self.f(self.first(z)))
