"""Attention in fields that are differentiated within: flows, Hamiltonian and Lagrangian networks."""

import math
import threading

import pytest
import torch
from torch import nn
from torch.backends import cuda
from torch.distributions import MultivariateNormal
from torch.nn import functional

from pynode.errors import FieldError
from pynode.models import CNF, HamiltonianNN, LagrangianNN
from pynode.nn._attention import TwiceDifferentiable

D = torch.float64
SWITCHES = (cuda.flash_sdp_enabled, cuda.mem_efficient_sdp_enabled, cuda.cudnn_sdp_enabled, cuda.math_sdp_enabled)

on_every_engine = pytest.mark.usefixtures("engine")


class Attention(nn.Module):
    """Attention among three particles in the plane, by PyTorch's function or written out."""

    def __init__(self, fused: bool, out: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fused = fused
        self.layers = nn.ModuleList([nn.Linear(n, m, dtype=D) for n, m in ((2, 4), (2, 4), (2, 4), (4, out))])

    def attended(self, z):
        q, k, v = (layer(z.reshape(-1, 3, 2)) for layer in self.layers[:3])
        if self.fused:
            h = functional.scaled_dot_product_attention(q, k, v)
        else:
            h = torch.softmax(q @ k.mT / math.sqrt(4), -1) @ v
        return self.layers[3](h)

    def forward(self, t, z):
        return self.attended(z).reshape(z.shape)


class Energy(Attention):
    """A scalar of states of two particles and a half: any will do."""

    def __init__(self, fused: bool) -> None:
        super().__init__(fused, out=1)

    def forward(self, z):
        return self.attended(z).sum((1, 2)) + z.square().sum(1)


def results(model, call):
    value = call(model)
    return [value, *torch.autograd.grad(value.square().sum(), list(model.parameters()))]


@on_every_engine
@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_a_flow(trace):
    x, base = torch.randn(4, 6, dtype=D), MultivariateNormal(torch.zeros(6, dtype=D), torch.eye(6, dtype=D))

    def density(model):
        torch.manual_seed(1)  # of Hutchinson's noise
        return model.log_prob(x)

    found, expected = (results(CNF(Attention(fused), base, trace=trace), density) for fused in (True, False))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@on_every_engine
@pytest.mark.parametrize("model", [HamiltonianNN, LagrangianNN])
def test_mechanics(model):
    z0, t = 0.3 * torch.randn(2, 6, dtype=D), torch.linspace(0, 1, 3, dtype=D)
    found, expected = (results(model(Energy(fused)), lambda m: m.trajectory(z0, t)) for fused in (True, False))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_switches_are_put_back():
    before = [get() for get in SWITCHES]
    cuda.enable_mem_efficient_sdp(False)
    try:
        with TwiceDifferentiable(), TwiceDifferentiable():
            assert [get() for get in SWITCHES] == [False, False, False, True]
        with pytest.raises(FieldError), TwiceDifferentiable():
            raise FieldError("inside")
        assert [get() for get in SWITCHES] == [before[0], False, *before[2:]]
    finally:
        cuda.enable_mem_efficient_sdp(before[1])


def test_threads_share_them():
    before = [get() for get in SWITCHES]
    entered, leave = threading.Event(), threading.Event()

    def other():
        with TwiceDifferentiable():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with TwiceDifferentiable():
        thread.start()
        assert entered.wait(10)
    assert [get() for get in SWITCHES] == [False, False, False, True]  # the other thread is still inside
    leave.set()
    thread.join()
    assert [get() for get in SWITCHES] == before
