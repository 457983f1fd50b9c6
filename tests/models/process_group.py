"""What two processes do in `test_distributed.py`: every family of models, trained by both and by one."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from pynode.models import (
    ANODE,
    CGNN,
    CNF,
    FFJORD,
    NODE,
    ODERNN,
    RNN,
    AdaptiveDepthNODE,
    Dequantised,
    GraphODE,
    GRUODEBayes,
    HamiltonianNN,
    Hypersolver,
    JumpODE,
    LagrangianNN,
    LatentODE,
    LatentSDE,
    NeuralCDE,
    NeuralSDE,
    ODENet,
    ResNet,
    RKNet,
    StackedNODE,
)
from pynode.nn import Graph, GraphConv, TimeConcat, TimeSequential

ROWS, STEPS = 6, 2
# Steps of the solver that do not depend on what else is in the batch: both ways differ by rounding alone.
FIXED = {"solver": "rk4", "dt": 0.25, "sensitivity": "discrete"}


class Objective(nn.Module):
    """A model and its loss, a mean over samples."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, *batch: Tensor) -> Tensor:
        return self.loss(self.model, *batch)


def error(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return ((model(x) - y) ** 2).mean()


def noisy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return ((model(x, seed=4) - y) ** 2).mean()


def in_halves(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The loss of a batch as two processes have it: a row's noise depends on the shape of what is solved."""

    def mean(model: nn.Module, *batch: Tensor) -> Tensor:
        halves = zip(*(b.split(ROWS // 2) for b in batch), strict=True)
        return torch.stack([loss(model, *half) for half in halves]).mean()

    return mean


def likelihood(model: nn.Module, x: Tensor) -> Tensor:
    return -model.log_prob(x).mean()


def network(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_in, 5), nn.Tanh(), nn.Linear(5, n_out))


def timed(n: int) -> TimeSequential:
    return TimeSequential(TimeConcat(nn.Linear(n + 1, 5)), nn.Tanh(), nn.Linear(5, n))


class Energy(nn.Module):
    """A network, and v²/2; without a last bias, on which no motion depends."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1, bias=False))

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z).squeeze(1) + z[:, 1] ** 2 / 2


def families() -> dict[str, tuple[Objective, tuple[Tensor, ...]]]:
    """By name an objective and a batch of `ROWS` samples."""
    torch.manual_seed(0)
    x, y = torch.randn(ROWS, 2), torch.randn(ROWS, 2)
    images, labels = torch.rand(ROWS, 1, 8, 8), torch.randn(ROWS, 10)
    series, t = torch.randn(ROWS, 4, 2), torch.tensor([0.0, 0.25, 0.75, 1.0]).double()
    base = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2).double(), 1.0), 1)
    each = {"batching": "independent", "sensitivity": "discrete"}
    ring = Graph(torch.tensor([[0, 1, 2], [1, 2, 0]]), normalise="row")
    nodes = torch.randn(ROWS, 3, 2), torch.randn(ROWS, 3, 2)
    lazy = ANODE(timed(3), 1, input_network="linear", output_network=nn.Linear(3, 2), **FIXED).double()
    lazy(x.double())  # makes the parameters of its first layer
    small = {"channels": 4, "downsamplings": 1}
    levels = torch.randint(0, 17, (ROWS, 1, 4, 4)) / 16

    def elbo(model: nn.Module, series: Tensor) -> Tensor:
        return -model.elbo(series, t).mean()

    def of_series(model: nn.Module, series: Tensor) -> Tensor:
        return -model.log_prob(series, t).mean()

    def noisy_elbo(model: nn.Module, series: Tensor) -> Tensor:
        return -model.elbo(series, t, seed=4).mean()

    found: dict[str, tuple[nn.Module, Callable[..., Tensor], tuple[Tensor, ...]]] = {
        "NODE": (NODE(timed(2), **FIXED), error, (x, y)),
        "NODE, each sample's own steps": (NODE(timed(2), **each), error, (x, y)),
        "ANODE": (ANODE(timed(3), 1, output_network=nn.Linear(3, 2), **FIXED), error, (x, y)),
        "ANODE, linear": (lazy, error, (x, y)),
        "AdaptiveDepthNODE": (AdaptiveDepthNODE(timed(2), network(2, 1), **FIXED), error, (x, y)),
        "StackedNODE": (StackedNODE([timed(2), timed(2)], **FIXED), error, (x, y)),
        "ODENet": (ODENet(1, 10, **small, **FIXED), error, (images, labels)),
        "RKNet": (RKNet(1, 10, **small, solver="rk4", dt=0.25), error, (images, labels)),
        "ResNet": (ResNet(timed(2), 3, shared=False), error, (x, y)),
        "CNF": (CNF(timed(2), base, kinetic=0.1, **FIXED), likelihood, (x,)),
        "FFJORD": (FFJORD(2, hidden=(8,), blocks=2, **FIXED), likelihood, (x,)),
        "Dequantised": (Dequantised(FFJORD((1, 4, 4), hidden=(4,), **FIXED), 17), likelihood, (levels,)),
        "LatentODE": (LatentODE(2, 3, hidden=5, **FIXED), elbo, (series,)),
        "LatentODE, ODE-RNN": (LatentODE(2, 3, hidden=5, encoder="ode_rnn", **FIXED), elbo, (series,)),
        "RNN": (RNN(2, hidden=5), of_series, (series,)),
        "NeuralCDE": (NeuralCDE(2, 3, 2, width=5, **FIXED), lambda m, s, y: error(m, m.path(s, t), y), (series, y)),
        "ODERNN": (ODERNN(2, 3, 2, width=5, **FIXED), lambda m, s, y: ((m(s, t) - y) ** 2).mean(), (series, y)),
        "GRUODEBayes": (GRUODEBayes(2, 3, width=5, **FIXED), lambda m, s: m.loss(s, t).mean(), (series,)),
        "HamiltonianNN": (HamiltonianNN(Energy(), dissipation=network(2, 1), **FIXED), error, (x, y)),
        "LagrangianNN": (LagrangianNN(Energy(), forcing=network(2, 1), **FIXED), error, (x, y)),
        "GraphODE": (GraphODE(GraphConv(ring, 2, 2), **FIXED), error, nodes),
        "CGNN": (CGNN(ring, 2, mixed=True, **FIXED), error, nodes),
        "Hypersolver": (Hypersolver(timed(2), lambda h, s, z, dz: dz * z, **FIXED), error, (x, y)),
        "NeuralSDE": (NeuralSDE(timed(2), timed(2), dt=0.25, solver="em"), in_halves(noisy), (x, y)),
        "LatentSDE": (LatentSDE(2, 3, hidden=5, dt=0.25, solver="em"), in_halves(noisy_elbo), (series,)),
        "JumpODE": (JumpODE(2, 3, marks=True, width=5, **FIXED), of_series, (series,)),
    }
    return {
        name: (Objective(model, loss).double(), tuple(b.double() for b in batch))
        for name, (model, loss, batch) in found.items()
    }


def train(objective: nn.Module, batch: tuple[Tensor, ...]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The first step's gradients, and the parameters after `STEPS` steps, by name."""
    optimizer = torch.optim.SGD(objective.parameters(), lr=1e-2, momentum=0.9)
    gradients: dict[str, Tensor] = {}
    for step in range(STEPS):
        optimizer.zero_grad()
        objective(*batch).backward()
        if step == 0:
            gradients = {n: p.grad.clone() for n, p in objective.named_parameters()}
        optimizer.step()
    return gradients, {n: p.detach().clone() for n, p in objective.named_parameters()}


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of two sets of tensors, relative to the largest number in them."""
    assert found.keys() == expected.keys()
    largest = max(float(x.abs().max()) for x in expected.values())
    return max(float((found[n] - x).abs().max()) for n, x in expected.items()) / largest


def draw_alike() -> None:
    """Let every sample of a batch have the same random numbers, whatever its place in it."""

    def rsample(self: torch.distributions.Normal, shape: tuple[int, ...] = ()) -> Tensor:
        draws = torch.linspace(-1, 1, self.loc.shape[-1], dtype=self.loc.dtype)
        return self.loc + self.scale * draws.expand(*shape, *self.loc.shape)

    torch.distributions.Normal.rsample = rsample
    torch.rand_like = lambda x: torch.full_like(x, 0.3)
    CNF._draw = lambda self, x: torch.where(x > 0, 1.0, -1.0).to(x.dtype)


def replicated(rank: int, names: Sequence[str]) -> dict[str, tuple[float, float]]:
    """How far two processes with DDP are from one with the whole batch, in gradients and parameters."""
    found, known = {}, families()
    for name in names:
        objective, batch = known[name]
        alone, shard = copy.deepcopy(objective), tuple(b.chunk(2)[rank] for b in batch)
        gradients, parameters = train(DistributedDataParallel(objective), shard)
        expected = train(alone, batch)
        found[name] = tuple(
            difference({n.removeprefix("module."): x for n, x in got.items()}, want)
            for got, want in zip((gradients, parameters), expected, strict=True)
        )
    return found


def whole(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: x.full_tensor() if isinstance(x, DTensor) else x for n, x in found.items()}


def sharded(rank: int, names: Sequence[str]) -> dict[str, tuple[float, float]]:
    """As `replicated`, with parameters of which each process has a half (FSDP2)."""
    mesh, found = init_device_mesh("cpu", (2,)), {}
    for name in names:
        for reshard in (False, True):
            objective, batch = families()[name]
            alone, shard = copy.deepcopy(objective), tuple(b.chunk(2)[rank] for b in batch)
            fully_shard(objective, mesh=mesh, reshard_after_forward=reshard)
            gradients, parameters = train(objective, shard)
            expected = train(alone, batch)
            found[f"{name}, reshard_after_forward={reshard}"] = (
                difference(whole(gradients), expected[0]),
                difference(whole(parameters), expected[1]),
            )
    return found


def work(rank: int, meeting: str, out: str, engine: str, names: Sequence[str], halved: Sequence[str]) -> None:
    """One of two processes.

    Args:
        rank: 0 or 1.
        meeting: a file by which they find one another.
        out: where the first writes what it has found.
        engine: of all solves.
        names: of the families whose parameters are in copies.
        halved: of those whose parameters are in halves.
    """
    torch.set_num_threads(1)
    os.environ["PYNODE_ENGINE"] = engine
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    try:
        draw_alike()
        found = {"replicated": replicated(rank, names), "sharded": sharded(rank, halved)}
        if rank == 0:
            torch.save(found, out)
        dist.barrier()
    finally:
        dist.destroy_process_group()
