"""Fields as published models have them, each as small as its structure allows."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from kinds import CASES
from modules import Case, Of, case, conv, linear, normal, parameter
from torch import Tensor, nn

__all__ = ["CASES"]

TWO_PI = 2 * math.pi


def mlp(*sizes: int, act: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    """Linear layers with an activation between each two."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [linear(a, b), act()]
    return nn.Sequential(*layers[:-1])


def gradient(energy: nn.Module, z: Tensor) -> tuple[Tensor, Tensor]:
    """The state that autograd follows, and the gradient of a sum of energies."""
    with torch.enable_grad():
        z = z if z.requires_grad else z.detach().requires_grad_()
        (g,) = torch.autograd.grad(energy(z).sum(), z, create_graph=True)
    return z, g


# ---- neural operators -------------------------------------------------------------------------------


@case
def fno_with_complex_weights() -> Case:
    """A block of Li et al. 2021 as their code has it: spectral weights that are complex parameters."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(0.3 * torch.randn(2, 2, 3, dtype=torch.complex128))
            self.pointwise = nn.Conv1d(2, 2, 1, dtype=torch.float64)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            modes = torch.fft.rfft(z)
            out = torch.zeros(z.shape[0], 2, z.shape[-1] // 2 + 1, dtype=modes.dtype)
            out[:, :, :3] = torch.einsum("bim,iom->bom", modes[:, :, :3], self.weight)
            return F.gelu(torch.fft.irfft(out, n=z.shape[-1]) + self.pointwise(z))

    return Case(Block(), (2, 8), tolerance=1e-11)


@case
def deeponet() -> Case:
    """Lu et al. 2021: a branch net of the sensors and a trunk net of the places."""

    class DeepONet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch, self.trunk = mlp(6, 8, 4), mlp(2, 8, 4)
            self.register_buffer("x", torch.linspace(0, 1, 6, dtype=torch.float64)[:, None])

        def forward(self, t: Tensor, u: Tensor) -> Tensor:
            places = torch.cat([self.x, t.expand(6, 1)], 1)
            return self.branch(u) @ self.trunk(places).T

    return Case(DeepONet(), (6,))


@case
def hypernetwork() -> Case:
    """A network of the time gives another one's weights (the CNF of Chen et al. 2018, with its trace)."""

    class Hyper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(1, 8, 3 * 4 * 2 + 4)

        def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            flat = self.net(t.reshape(1, 1))[0]
            w, u, b = flat[:8].view(4, 2), flat[8:16].view(4, 2), flat[16:20]
            gate = torch.sigmoid(flat[20:24])
            h = torch.tanh(state[0] @ w.T + b)
            dz = (h * gate) @ u / 4
            trace = ((1 - h**2) * gate * (w * u).sum(1)).sum(1) / 4
            return dz, -trace

    return Case(Hyper(), ((2,), ()))


@case
def concatsquash() -> Case:
    """FFJORD's layer (Grathwohl et al. 2019): a gate and a shift that the time makes."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.gate, self.shift = linear(3, 3), linear(1, 3), linear(1, 3, bias=False)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            t = t.view(1, 1)
            return self.layer(z) * torch.sigmoid(self.gate(t)) + self.shift(t)

    return Case(Layer(), (3,))


# ---- coordinates ------------------------------------------------------------------------------------


@case
def siren() -> Case:
    """Sitzmann et al. 2020: sines between linear layers."""

    class Siren(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([linear(2, 8), linear(8, 8), linear(8, 2)])

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            for layer in self.layers[:-1]:
                z = torch.sin(3.0 * layer(z))
            return self.layers[-1](z)

    return Case(Siren(), (2,))


@case
def fourier_features() -> Case:
    """Tancik et al. 2020: random frequencies, which are not trained."""

    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("b", normal(5, 2))
            self.net = mlp(10, 8, 2)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            angle = TWO_PI * z @ self.b.T
            return self.net(torch.cat([angle.sin(), angle.cos()], -1))

    return Case(Features(), (2,))


@case
def kan() -> Case:
    """Liu et al. 2024: splines on the edges, by the recursion of de Boor and Cox, beside a SiLU."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("grid", torch.linspace(-2.2, 2.2, 12, dtype=torch.float64))
            self.splines, self.base = parameter(3, 3, 8), linear(3, 3)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            x, g = z[..., None], self.grid
            basis = ((x >= g[:-1]) & (x < g[1:])).to(z)
            for k in range(1, 4):
                left = (x - g[: -k - 1]) / (g[k:-1] - g[: -k - 1]) * basis[..., :-1]
                basis = left + (g[k + 1 :] - x) / (g[k + 1 :] - g[1:-k]) * basis[..., 1:]
            return self.base(F.silu(z)) + torch.einsum("bik,oik->bo", basis, self.splines)

    return Case(Layer(), (3,))


@case
def radial_basis_functions() -> Case:
    centres, weights, width = parameter(6, 2), parameter(6, 2), nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def f(t: Tensor, z: Tensor) -> Tensor:
        return torch.exp(-(torch.cdist(z[:, None], centres[None]) ** 2).squeeze(1) / width**2) @ weights

    return Case(f, (2,))


# ---- graphs -----------------------------------------------------------------------------------------

SOURCE = torch.tensor([0, 1, 2, 3, 0, 2, 4, 1, 3])
TARGET = torch.tensor([1, 2, 3, 4, 2, 0, 0, 4, 1])


def degrees(n: int = 5) -> Tensor:
    return torch.zeros(n, dtype=torch.float64).index_add(0, TARGET, torch.ones(9, dtype=torch.float64))


@case
def gcn() -> Case:
    """Kipf & Welling 2017, over edges; `(batch, nodes, features)`."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = linear(3, 3)
            norm = degrees().clamp(min=1).rsqrt()
            self.register_buffer("weight", norm[SOURCE] * norm[TARGET])

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            messages = self.lin(z)[:, SOURCE] * self.weight[:, None]
            return torch.relu(torch.zeros_like(z).index_add(1, TARGET, messages)) - z

    return Case(Layer(), (5, 3))


@case
def gat_over_edges() -> Case:
    """Veličković et al. 2018: attention over the edges into each node, by sums of exponentials."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin, self.a, self.b = linear(3, 3, bias=False), parameter(3), parameter(3)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            h = self.lin(z)
            score = F.leaky_relu((h @ self.a)[:, SOURCE] + (h @ self.b)[:, TARGET], 0.2)
            weight = torch.exp(score - score.amax(1, keepdim=True))
            total = torch.zeros(z.shape[:2], dtype=z.dtype).index_add(1, TARGET, weight)
            alpha = weight / total[:, TARGET]
            return F.elu(torch.zeros_like(h).index_add(1, TARGET, alpha[..., None] * h[:, SOURCE]))

    return Case(Layer(), (5, 3))


@case
def gat_dense() -> Case:
    """The same of two heads, with a mask of neighbours."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin, self.a = linear(4, 4), parameter(2, 2, 2)
            neighbours = torch.eye(5, dtype=torch.bool)
            neighbours[TARGET, SOURCE] = True
            self.register_buffer("neighbours", neighbours)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            h = self.lin(z).unflatten(-1, (2, 2))
            left, right = torch.einsum("bnhd,shd->sbhn", h, self.a)
            score = F.leaky_relu(left[..., :, None] + right[..., None, :], 0.2)
            alpha = score.masked_fill(~self.neighbours, -torch.inf).softmax(-1)
            return torch.einsum("bhnm,bmhd->bnhd", alpha, h).flatten(-2)

    return Case(Layer(), (5, 4))


@case
def neural_diffusion() -> Case:
    """GRAND (Chamberlain et al. 2021): attention less the identity."""
    q, k = parameter(3, 2), parameter(3, 2)

    def f(t: Tensor, z: Tensor) -> Tensor:
        return ((z @ q) @ (z @ k).mT / math.sqrt(2)).softmax(-1) @ z - z

    return Case(f, (5, 3))


@case
def message_passing() -> Case:
    """Gilmer et al. 2017: messages of an edge network, an update by a GRU cell."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.message, self.update = mlp(6, 8, 3), nn.GRUCell(3, 3, dtype=torch.float64)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            pairs = torch.cat([z[:, SOURCE], z[:, TARGET]], -1)
            mean = torch.zeros_like(z).index_add(1, TARGET, self.message(pairs)) / degrees().clamp(min=1)[:, None]
            return self.update(mean.flatten(0, 1), z.flatten(0, 1)).view_as(z) - z

    return Case(Layer(), (5, 3))


@case
def schnet() -> Case:
    """Schütt et al. 2017: filters of radial basis functions of distances, as forces on atoms `(atoms, 3)`."""

    class Interaction(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.filter, self.atom = mlp(6, 8, 4, act=nn.Softplus), parameter(4, 4)
            self.register_buffer("centres", torch.linspace(0, 3, 6, dtype=torch.float64))
            self.out = mlp(4, 4, 1, act=nn.Softplus)

        def energy(self, x: Tensor) -> Tensor:
            apart = (x[:, :, None] - x[:, None]).square().sum(-1)
            distance = (apart + torch.eye(4, dtype=x.dtype)).sqrt()
            basis = torch.exp(-2 * (distance[..., None] - self.centres) ** 2)
            cutoff = 0.5 * (torch.cos(distance * math.pi / 5) + 1) * (distance < 5) * (1 - torch.eye(4, dtype=x.dtype))
            filters = self.filter(basis) * cutoff[..., None]
            return self.out(self.atom + torch.einsum("bijf,jf->bif", filters, self.atom))

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return -gradient(self.energy, z)[1]

    return Case(Interaction(), (4, 3), tolerance=1e-11)


@case
def egnn() -> Case:
    """Satorras et al. 2021: positions and features, equivariant to rotations."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.edge, self.place, self.node = mlp(5, 8, 4, act=nn.SiLU), mlp(4, 4, 1), mlp(6, 8, 2, act=nn.SiLU)

        def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            x, h = state
            apart = x[:, :, None] - x[:, None]
            n = h.shape[1]
            pair = [h[:, :, None].expand(-1, -1, n, -1), h[:, None].expand(-1, n, -1, -1)]
            m = self.edge(torch.cat([*pair, apart.square().sum(-1, keepdim=True)], -1))
            dx = (apart * self.place(m)).sum(2) / (n - 1)
            return dx, self.node(torch.cat([h, m.sum(2)], -1))

    return Case(Layer(), ((4, 3), (4, 2)))


@case
def point_net() -> Case:
    """Qi et al. 2017: a maximum over points, given back to each."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = mlp(3, 8, act=nn.ReLU), mlp(11, 8, 3, act=nn.ReLU)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            top = self.one(z).max(1, keepdim=True).values
            return self.two(torch.cat([z, top.expand(-1, z.shape[1], -1)], -1))

    return Case(Net(), (5, 3))


# ---- sets, attention --------------------------------------------------------------------------------


@case
def deep_sets() -> Case:
    net, pooled = linear(3, 3), linear(3, 3)
    return Case(lambda t, z: torch.tanh(net(z) + pooled(z.mean(1, keepdim=True))), (5, 3))


class Block(nn.Module):
    """The multihead attention block of Lee et al. 2019."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True, dtype=torch.float64)
        self.norm, self.last = nn.LayerNorm(width, dtype=torch.float64), nn.LayerNorm(width, dtype=torch.float64)
        self.net = mlp(width, width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.norm(x + self.attention(x, y, y, need_weights=False)[0])
        return self.last(h + torch.relu(self.net(h)))


@case
def set_transformer() -> Case:
    """An induced set attention block: through a few trained points."""

    class Induced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.points, self.one, self.two = parameter(1, 2, 4), Block(), Block()

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return self.two(z, self.one(self.points.expand(z.shape[0], -1, -1), z))

    return Case(Induced(), (5, 4))


@case
def perceiver() -> Case:
    """Cross attention from the state to tokens that condition the field."""

    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.kv = linear(4, 4), linear(3, 8)

        def forward(self, t: Tensor, z: Tensor, tokens: Tensor) -> Tensor:
            k, v = self.kv(tokens).chunk(2, -1)
            return F.scaled_dot_product_attention(self.q(z), k, v)

    return Case(Cross(), (5, 4), args=((6, 3),))


@case
def causal_rotary_attention() -> Case:
    """Su et al. 2021: keys and queries turned by their places."""

    class Rotary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = linear(4, 12)
            angle = torch.outer(torch.arange(5.0, dtype=torch.float64), torch.tensor([1.0, 0.1], dtype=torch.float64))
            self.register_buffer("cos", angle.cos())
            self.register_buffer("sin", angle.sin())

        def turned(self, x: Tensor) -> Tensor:
            a, b = x[..., ::2], x[..., 1::2]
            return torch.stack([a * self.cos - b * self.sin, a * self.sin + b * self.cos], -1).flatten(-2)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            q, k, v = self.qkv(z).chunk(3, -1)
            return F.scaled_dot_product_attention(self.turned(q), self.turned(k), v, is_causal=True)

    return Case(Rotary(), (5, 4))


@case
def rotary_by_complex_numbers() -> Case:
    """The same turn as in Llama's code: multiplication by complex numbers that are a buffer."""

    class Rotary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = linear(4, 4)
            angle = torch.outer(torch.arange(5.0, dtype=torch.float64), torch.tensor([1.0, 0.1], dtype=torch.float64))
            self.register_buffer("turns", torch.polar(torch.ones_like(angle), angle))

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            pairs = torch.view_as_complex(self.lin(z).unflatten(-1, (2, 2)))
            return torch.view_as_real(pairs * self.turns).flatten(-2)

    return Case(Rotary(), (5, 4))


@case
def linear_attention() -> Case:
    """Katharopoulos et al. 2020, causal: running sums of outer products."""
    q, k, v = linear(3, 3), linear(3, 3), linear(3, 3)

    def f(t: Tensor, z: Tensor) -> Tensor:
        a, b = F.elu(q(z)) + 1, F.elu(k(z)) + 1
        states = torch.cumsum(b[..., None] * v(z)[..., None, :], 1)
        return torch.einsum("bnd,bnde->bne", a, states) / (a * b.cumsum(1)).sum(-1, keepdim=True)

    return Case(f, (5, 3))


@case
def hopfield() -> Case:
    """Ramsauer et al. 2021: the state moves to stored patterns."""
    patterns = parameter(6, 3)
    return Case(lambda t, z: (2.0 * z @ patterns.T).softmax(-1) @ patterns - z, (3,))


@case
def slot_attention() -> Case:
    """Locatello et al. 2020: a softmax over the slots, and a GRU cell."""

    class Slots(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.kv, self.cell = linear(4, 4), linear(3, 8), nn.GRUCell(4, 4, dtype=torch.float64)

        def forward(self, t: Tensor, z: Tensor, inputs: Tensor) -> Tensor:
            k, v = self.kv(inputs).chunk(2, -1)
            weights = (k @ self.q(z).mT / 2).softmax(-1)
            updates = (weights / weights.sum(1, keepdim=True)).mT @ v
            return self.cell(updates.reshape(-1, 4), z.reshape(-1, 4)).view_as(z) - z

    return Case(Slots(), (3, 4), args=((5, 3),))


@case
def sinkhorn_attention() -> Case:
    """Rounds of normalisation in logarithms (Tay et al. 2020)."""

    class Sinkhorn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k = linear(3, 3), linear(3, 3)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            scores = self.q(z) @ self.k(z).mT
            for _ in range(3):
                scores = scores - scores.logsumexp(-1, keepdim=True)
                scores = scores - scores.logsumexp(-2, keepdim=True)
            return scores.exp() @ z - z

    return Case(Sinkhorn(), (4, 3))


@case
def soft_sort() -> Case:
    """Prillo & Eisenschlos 2020: a relaxed permutation from the sorted state."""
    weight = parameter(5)

    def f(t: Tensor, z: Tensor) -> Tensor:
        ordered = torch.sort(z, -1, descending=True).values
        turned = (-(ordered[..., None] - z[..., None, :]).abs()).softmax(-1)
        return (turned @ (z * weight)[..., None])[..., 0]

    return Case(f, (5,))


@case
def soft_mixture() -> Case:
    """A gate over experts whose weights are one tensor."""
    gate, experts, biases = linear(4, 3), parameter(3, 4, 4), parameter(3, 4)

    def f(t: Tensor, z: Tensor) -> Tensor:
        each = torch.tanh(torch.einsum("bi,eio->beo", z, experts) + biases)
        return (gate(z).softmax(-1)[..., None] * each).sum(1)

    return Case(f, (4,))


# ---- perceptrons and images -------------------------------------------------------------------------


@case
def mlp_mixer() -> Case:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.tokens, self.channels = (
                nn.LayerNorm(3, dtype=torch.float64),
                mlp(5, 6, 5, act=nn.GELU),
                mlp(3, 6, 3, act=nn.GELU),
            )

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return self.channels(z + self.tokens(self.norm(z).mT).mT)

    return Case(Mixer(), (5, 3))


@case
def gated_mlp() -> Case:
    """gMLP's spatial gate and a SwiGLU."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.spatial, self.down = linear(3, 8), nn.Conv1d(5, 5, 1, dtype=torch.float64), linear(4, 3)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            u, v = self.up(z).chunk(2, -1)
            return self.down(F.silu(u) * self.spatial(v))

    return Case(Gated(), (5, 3))


@case
def highway() -> Case:
    net, gate = linear(3, 3), linear(3, 3)

    def f(t: Tensor, z: Tensor) -> Tensor:
        g = torch.sigmoid(gate(z))
        return g * torch.relu(net(z)) + (1 - g) * z

    return Case(f, (3,))


@case
def u_net() -> Case:
    """A level of a U-Net that knows the time: down, up, and what goes past."""

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.down, self.up = (
                conv(2, 4, 3, padding=1),
                conv(4, 4, 3, padding=1, stride=2),
                nn.ConvTranspose2d(4, 4, 2, stride=2, dtype=torch.float64),
            )
            self.last, self.time = conv(8, 2, 3, padding=1), linear(1, 4)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            h = F.silu(self.first(z) + self.time(t.view(1, 1))[..., None, None])
            return self.last(torch.cat([h, self.up(F.silu(self.down(h)))], 1))

    return Case(UNet(), (2, 4, 4))


@case
def convnext() -> Case:
    """Liu et al. 2022: a depthwise convolution, and layers over the channels, which come last."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.spatial = conv(3, 3, 3, padding=1, groups=3)
            self.norm, self.net, self.scale = (
                nn.LayerNorm(3, dtype=torch.float64),
                mlp(3, 6, 3, act=nn.GELU),
                parameter(3),
            )

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            h = self.spatial(z).permute(0, 2, 3, 1)
            return (self.net(self.norm(h)) * self.scale).permute(0, 3, 1, 2)

    return Case(Layer(), (3, 4, 4))


@case
def squeeze_and_excitation() -> Case:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.gate = conv(3, 3, 3, padding=1), mlp(3, 2, 3, act=nn.ReLU)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            h = self.conv(z)
            return h * torch.sigmoid(self.gate(h.mean((2, 3))))[..., None, None]

    return Case(Layer(), (3, 4, 4))


@case
def film() -> Case:
    """Perez et al. 2018: a context scales and shifts."""

    class Film(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.film = linear(3, 8), linear(8, 3), linear(2, 16)

        def forward(self, t: Tensor, z: Tensor, context: Tensor) -> Tensor:
            scale, shift = self.film(context).chunk(2, -1)
            return self.two(torch.relu(self.one(z) * (1 + scale) + shift))

    return Case(Film(), (3,), args=((2,),))


@case
def probability_flow() -> Case:
    """The ODE of a variance-preserving diffusion (Song et al. 2021), with a sinusoidal embedding of the time."""

    class Flow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(2 + 6, 8, 2, act=nn.SiLU)
            self.register_buffer("rates", torch.exp(-torch.arange(3, dtype=torch.float64)))

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            angle = 10 * t * self.rates
            embedded = torch.cat([angle.sin(), angle.cos()]).expand(z.shape[0], -1)
            beta = 0.1 + t * 19.9
            std = torch.sqrt(1 - torch.exp(-0.5 * t**2 * 19.9 - 0.1 * t))
            score = -self.net(torch.cat([z, embedded], 1)) / std
            return -0.5 * beta * (z + score)

    return Case(Flow(), (2,))


@case
def fixed_rounds_of_an_equilibrium() -> Case:
    """A deep equilibrium layer by a known number of rounds."""
    w, u = nn.Parameter(0.3 * normal(3, 3)), linear(3, 3)

    def f(t: Tensor, z: Tensor) -> Tensor:
        h = torch.zeros_like(z)
        for _ in range(6):
            h = torch.tanh(h @ w + u(z))
        return h - z

    return Case(f, (3,))


# ---- recurrent --------------------------------------------------------------------------------------


@case
def gru_ode() -> Case:
    """De Brouwer et al. 2019: the continuous GRU."""

    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.r, self.z, self.g = linear(3, 3), linear(3, 3), linear(3, 3)

        def forward(self, t: Tensor, h: Tensor) -> Tensor:
            r, z = torch.sigmoid(self.r(h)), torch.sigmoid(self.z(h))
            return (1 - z) * (torch.tanh(self.g(r * h)) - h)

    return Case(Cell(), (3,))


@case
def lstm_cell() -> Case:
    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.LSTMCell(2, 3, dtype=torch.float64)

        def forward(self, t: Tensor, state: tuple[Tensor, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
            h, c = self.cell(x, state)
            return h - state[0], c - state[1]

    return Case(Cell(), ((3,), (3,)), args=((2,),))


@case
def recurrent_over_features() -> Case:
    """nn.GRU over the features as a sequence."""
    layer = nn.GRU(2, 2, batch_first=True, dtype=torch.float64)
    return Case(lambda t, z: layer(z)[0] - z, (4, 2))


@case
def liquid_time_constants() -> Case:
    """Hasani et al. 2021."""
    net, a, tau = linear(4, 3), parameter(3), parameter(3)

    def f(t: Tensor, z: Tensor, x: Tensor) -> Tensor:
        gate = torch.sigmoid(net(torch.cat([z, x[:, None]], 1)))
        return -(F.softplus(tau) + gate) * z + gate * a

    return Case(f, (3,), args=((),))


@case
def antisymmetric() -> Case:
    """Chang et al. 2019: a stable recurrent network."""
    w, b = parameter(3, 3), parameter(3)
    return Case(lambda t, z: torch.tanh(z @ (w - w.T - 0.1 * torch.eye(3, dtype=z.dtype)).T + b), (3,))


@case
def oscillatory() -> Case:
    """coRNN (Rusch & Mishra 2021): damped driven oscillators, position and velocity."""
    net = linear(6, 3)

    def f(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        y, v = state
        return v, torch.tanh(net(torch.cat([y, v], 1))) - 2.0 * y - 0.5 * v + torch.sin(t)

    return Case(f, ((3,), (3,)))


@case
def neural_cde() -> Case:
    """Kidger et al. 2020: driven by the derivative of a cubic path through data of each sample, found by the time."""

    class Cde(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(3, 8, 3 * 2)
            self.register_buffer("knots", torch.linspace(0, 1, 5, dtype=torch.float64))

        def forward(self, t: Tensor, z: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
            i = (torch.bucketize(t, self.knots) - 1).clamp(0, 3)
            s = t - self.knots[i]
            slope = b[:, i] + (c[:, i] + d[:, i] * s) * s
            return (self.net(z).tanh().view(-1, 3, 2) @ slope[..., None])[..., 0]

    return Case(Cde(), (3,), args=((4, 2), (4, 2), (4, 2)))


@case
def state_space() -> Case:
    """S4D (Gu et al. 2022): a diagonal system of complex numbers, whose poles and readout are complex parameters."""

    class S4(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.complex(-torch.rand(3), normal(3).float()).to(torch.complex128))
            self.b = nn.Parameter(torch.randn(3, dtype=torch.complex128))

        def forward(self, t: Tensor, z: Tensor, u: Tensor) -> Tensor:
            x = torch.view_as_complex(z)
            return torch.view_as_real(torch.complex(-self.a.real.exp(), self.a.imag) * x + self.b * u[:, None])

    return Case(S4(), (3, 2), args=((),))


@case
def selective_state_space() -> Case:
    """Mamba's (Gu & Dao 2023): steps and inputs that the token chooses."""

    class Selective(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log_a, self.step, self.inputs = parameter(2, 3), linear(2, 2), linear(2, 3)

        def forward(self, t: Tensor, h: Tensor, x: Tensor) -> Tensor:
            step = F.softplus(self.step(x))[..., None]
            return -step * self.log_a.exp() * h + step * self.inputs(x)[:, None] * x[..., None]

    return Case(Selective(), (2, 3), args=((2,),))


# ---- mechanics --------------------------------------------------------------------------------------


@case
def separable_hamiltonian() -> Case:
    class Separable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.potential, self.kinetic = mlp(2, 8, 1), mlp(2, 8, 1)

        def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            q, p = state
            return gradient(self.kinetic, p)[1], -gradient(self.potential, q)[1]

    return Case(Separable(), ((2,), (2,)))


@case
def port_hamiltonian() -> Case:
    """(J - R) ∇H + G u, with trained dissipation."""

    class Port(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.h, self.j, self.r, self.g = mlp(4, 8, 1), parameter(4, 4), parameter(4, 4), parameter(4)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            slope = gradient(self.h, z)[1]
            return slope @ (self.j - self.j.T - self.r @ self.r.T).T + self.g * torch.sin(t)

    return Case(Port(), (4,))


@case
def double_pendulum() -> Case:
    """Its mass matrix and forces, by a system of equations for each sample."""

    def f(t: Tensor, z: Tensor) -> Tensor:
        a, b, va, vb = z.unbind(-1)
        c, s = torch.cos(a - b), torch.sin(a - b)
        one = torch.ones_like(a)
        mass = torch.stack([torch.stack([2 * one, c], -1), torch.stack([c, one], -1)], -2)
        force = torch.stack([-(vb**2) * s - 2 * 9.81 * a.sin(), va**2 * s - 9.81 * b.sin()], -1)
        return torch.cat([z[:, 2:], torch.linalg.solve(mass, force)], 1)

    return Case(f, (4,))


@case
def cart_pole() -> Case:
    """Learned friction beside known mechanics."""
    friction = mlp(2, 4, 2)

    def f(t: Tensor, z: Tensor, force: Tensor) -> Tensor:
        _, angle, v, w = z.unbind(-1)
        sin, cos = angle.sin(), angle.cos()
        moved = (force + 0.05 * w**2 * sin) / 1.1
        turn = (9.81 * sin - cos * moved) / (0.5 * (4 / 3 - 0.1 * cos**2 / 1.1))
        return torch.stack([v, w, moved - 0.05 * turn * cos / 1.1, turn], -1) - F.pad(friction(z[:, 2:]), (2, 0))

    return Case(f, (4,), args=((),))


@case
def attitude() -> Case:
    """A rigid body: a quaternion, and Euler's equations with a trained inertia."""
    root = nn.Parameter(torch.eye(3, dtype=torch.float64) + 0.1 * normal(3, 3))

    def f(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        q, w = state
        q = F.normalize(q, dim=-1)
        inertia = root @ root.T
        scalar, vector = q[:, :1], q[:, 1:]
        dq = torch.cat([-(vector * w).sum(-1, keepdim=True), scalar * w + torch.linalg.cross(vector, w)], -1) / 2
        torque = -torch.linalg.cross(w, w @ inertia)
        return dq, torch.linalg.solve(inertia, torque.T).T

    return Case(f, ((4,), (3,)))


@case
def many_bodies() -> Case:
    """Softened gravity of masses that are trained."""
    masses = nn.Parameter(torch.rand(4, dtype=torch.float64) + 0.5)

    def f(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, v = state
        apart = x[:, None] - x[:, :, None]
        pull = (apart.square().sum(-1) + 0.1) ** -1.5
        return v, (apart * (pull * masses)[..., None]).sum(2)

    return Case(f, ((4, 2), (4, 2)))


@case
def springs() -> Case:
    """Nodes that edges join, with trained lengths."""
    rest = nn.Parameter(torch.rand(9, dtype=torch.float64) + 0.5)

    def f(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, v = state
        apart = x[:, TARGET] - x[:, SOURCE]
        length = apart.norm(dim=-1, keepdim=True)
        force = (length - rest[:, None]) * apart / length
        return v, torch.zeros_like(x).index_add(1, SOURCE, force).index_add(1, TARGET, -force) - 0.1 * v

    return Case(f, ((5, 2), (5, 2)))


@case
def flocking() -> Case:
    """Cucker & Smale 2007."""

    def f(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, v = state
        weight = (1 + torch.cdist(x, x + 1e-3) ** 2) ** -0.4
        return v, (weight[..., None] * (v[:, None] - v[:, :, None])).mean(2)

    return Case(f, ((4, 2), (4, 2)))


# ---- known dynamics, with networks in them ----------------------------------------------------------


@case
def kuramoto() -> Case:
    frequencies, coupling = parameter(6), parameter(6, 6)

    def f(t: Tensor, z: Tensor) -> Tensor:
        return frequencies + (coupling * torch.sin(z[:, None] - z[:, :, None])).mean(-1)

    return Case(f, (6,))


@case
def universal_lotka_volterra() -> Case:
    """Rackauckas et al. 2020: known growth, and an interaction that a network learns."""

    class Universal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rates = nn.Parameter(torch.tensor([0.3, -0.5], dtype=torch.float64))
            self.net = mlp(2, 5, 5, 2)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return self.rates.exp() * z * torch.tensor([1.0, -1.0], dtype=z.dtype) + self.net(torch.log1p(z**2))

    return Case(Universal(), (2,))


@case
def epidemic() -> Case:
    """Age groups with a contact matrix, and a rate that changes with the seasons."""
    contacts = nn.Parameter(torch.rand(3, 3, dtype=torch.float64))

    def f(t: Tensor, z: Tensor) -> Tensor:
        s, i, _ = z.unbind(1)
        new = (1 + 0.3 * torch.cos(TWO_PI * t)) * s * (i @ F.softplus(contacts).T)
        return torch.stack([-new, new - 0.2 * i, 0.2 * i], 1)

    return Case(f, (3, 3), domain=torch.sigmoid)


@case
def chemical_reactions() -> Case:
    """A network whose neurons are mass action: exp(W log c) (Ji & Deng 2021)."""
    orders, rates = nn.Parameter(torch.rand(4, 5, dtype=torch.float64)), parameter(4)

    def f(t: Tensor, c: Tensor) -> Tensor:
        speed = torch.exp(torch.log(c.clamp(min=1e-8)) @ orders.T + rates)
        return -speed @ orders

    return Case(f, (5,), domain=lambda x: x.abs() + 0.1)


@case
def two_compartments() -> Case:
    """A drug with saturable elimination, and covariates of each patient in the rates."""
    net = mlp(2, 4, 3)

    def f(t: Tensor, z: Tensor, patient: Tensor) -> Tensor:
        absorption, exchange, most = F.softplus(net(patient)).unbind(-1)
        gut, blood = z[:, 0], z[:, 1]
        out = most * blood / (1 + blood.abs())
        return torch.stack([-absorption * gut, absorption * gut - out - exchange * blood], -1)

    return Case(f, (2,), args=((2,),))


@case
def hodgkin_huxley() -> Case:
    conductances = nn.Parameter(torch.tensor([120.0, 36.0, 0.3], dtype=torch.float64))

    def f(t: Tensor, z: Tensor) -> Tensor:
        v, gates = 10 * z[:, 0], torch.sigmoid(z[:, 1:])
        m, h, n = gates.unbind(-1)
        na, k, leak = conductances
        current = na * m**3 * h * (v - 50) + k * n**4 * (v + 77) + leak * (v + 54.4)
        x = (v + 40) / 10
        alpha = torch.where(x.abs() < 1e-6, 1 + x / 2, x / -torch.expm1(-x))
        opened = torch.stack([alpha, 0.07 * torch.exp(-(v + 65) / 20), 0.1 * alpha], -1)
        closed = torch.stack([4 * torch.exp(-(v + 65) / 18), 1 / (1 + torch.exp(-(v + 35) / 10)), opened[:, 2]], -1)
        drive = torch.where((t > 0.2) & (t < 0.8), 10.0, 0.0)
        return torch.cat([(drive - current)[:, None] / 10, opened * (1 - gates) - closed * gates], 1) / 100

    return Case(f, (4,))


@case
def excitable_network() -> Case:
    """FitzHugh–Nagumo cells that a sparse matrix couples."""
    coupling = torch.sparse_coo_tensor(torch.stack([TARGET, SOURCE]), torch.ones(9, dtype=torch.float64), (5, 5))

    def f(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        v, w = state
        return v - v**3 / 3 - w + 0.5 + torch.sparse.mm(coupling, v.T).T, 0.08 * (v + 0.7 - 0.8 * w)

    return Case(f, ((5,), (5,)))


@case
def linear_chain() -> Case:
    """A delay by a chain of compartments, at whose end a network feeds back."""
    net = mlp(1, 4, 1)

    def f(t: Tensor, z: Tensor) -> Tensor:
        return 3.0 * torch.diff(z, dim=1, prepend=net(z[:, -1:]) - z[:, :1] * 0.1)

    return Case(f, (5,))


@case
def lorenz_96() -> Case:
    forcing = nn.Parameter(torch.tensor(8.0, dtype=torch.float64))
    return Case(lambda t, z: (z.roll(-1, 1) - z.roll(2, 1)) * z.roll(1, 1) - z + forcing, (6,))


@case
def kalman_bucy() -> Case:
    """The mean and the covariance of a filter: a matrix Riccati equation."""
    a, c, root = parameter(3, 3), parameter(2, 3), parameter(3, 3)

    def f(t: Tensor, state: tuple[Tensor, Tensor], y: Tensor) -> tuple[Tensor, Tensor]:
        mean, p = state
        gain = p @ c.T
        dp = a @ p + p @ a.T + root @ root.T - gain @ gain.mT
        return mean @ a.T + (gain @ (y - mean @ c.T)[..., None])[..., 0], dp

    return Case(f, ((3,), (3, 3)), args=((2,),))


@case
def gaussian_process() -> Case:
    """The posterior mean of a process through given points, by a Cholesky factor."""
    places, values = normal(5, 2), normal(5, 2)
    log_width = nn.Parameter(torch.tensor(0.2, dtype=torch.float64))

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return torch.exp(-0.5 * (x[:, None] - y[None]).square().sum(-1) / log_width.exp() ** 2)

    def f(t: Tensor, z: Tensor) -> Tensor:
        factor = torch.linalg.cholesky(kernel(places, places) + 0.1 * torch.eye(5, dtype=z.dtype))
        return kernel(z, places) @ torch.cholesky_solve(values, factor)

    return Case(f, (2,), tolerance=1e-11)


@case
def koopman() -> Case:
    """A linear system in lifted coordinates: rotations and decays."""
    lift, back, rates = mlp(2, 6, 4), linear(4, 2), parameter(2, 2)

    def f(t: Tensor, z: Tensor) -> Tensor:
        pairs = lift(z).unflatten(-1, (2, 2))
        decay, turn = -F.softplus(rates[0]), rates[1]
        x, y = pairs.unbind(-1)
        return back(torch.stack([decay * x - turn * y, turn * x + decay * y], -1).flatten(1))

    return Case(f, (2,))


@case
def convex_potential() -> Case:
    """The gradient of an input-convex network (Huang et al. 2021)."""

    class Convex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.skip, self.w = linear(3, 6), linear(3, 6), parameter(6, 6)
            self.last = parameter(6)

        def potential(self, z: Tensor) -> Tensor:
            h = F.softplus(self.first(z))
            h = F.softplus(h @ F.softplus(self.w) + self.skip(z))
            return h @ F.softplus(self.last)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return gradient(self.potential, z)[1]

    return Case(Convex(), (3,))


@case
def orthogonal_dynamics() -> Case:
    """A weight kept on the Stiefel manifold by QR, of parameters alone."""
    w = parameter(4, 2)
    return Case(lambda t, z: torch.tanh(z @ torch.linalg.qr(w)[0]) @ torch.linalg.qr(w)[0].T, (4,), tolerance=1e-11)


# ---- partial differential equations -----------------------------------------------------------------


@case
def gray_scott() -> Case:
    """Reaction and diffusion on a torus, with trained rates."""
    rates = nn.Parameter(torch.tensor([0.04, 0.06], dtype=torch.float64))

    def laplacian(u: Tensor) -> Tensor:
        return u.roll(1, -1) + u.roll(-1, -1) + u.roll(1, -2) + u.roll(-1, -2) - 4 * u

    def f(t: Tensor, z: Tensor) -> Tensor:
        u, v = z.unbind(1)
        reaction = u * v**2
        du = 0.16 * laplacian(u) - reaction + rates[0] * (1 - u)
        return torch.stack([du, 0.08 * laplacian(v) + reaction - rates.sum() * v], 1)

    return Case(f, (2, 4, 4))


@case
def wave() -> Case:
    """Displacement and velocity, by a stencil that is a convolution; the speed depends on the place."""
    stencil = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]], dtype=torch.float64)[None, None]
    speed = parameter(4, 4)

    def f(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        u, v = state
        return v, speed**2 * F.conv2d(u[:, None], stencil, padding=1)[:, 0]

    return Case(f, ((4, 4), (4, 4)))


@case
def conservation_law() -> Case:
    """Finite volumes with a limiter, upwind, and a flux that a network corrects."""
    net = mlp(2, 4, 1)

    def f(t: Tensor, u: Tensor) -> Tensor:
        back, ahead = u - u.roll(1, 1), u.roll(-1, 1) - u
        slope = torch.where(back * ahead > 0, torch.where(back.abs() < ahead.abs(), back, ahead), 0.0)
        left, right = u + slope / 2, (u - slope / 2).roll(-1, 1)
        flux = torch.maximum(left.clamp(min=0) ** 2, right.clamp(max=0) ** 2) / 2
        flux = flux + 0.1 * net(torch.stack([left, right], -1))[..., 0]
        return flux.roll(1, 1) - flux

    return Case(f, (6,))


@case
def kuramoto_sivashinsky() -> Case:
    k = torch.fft.rfftfreq(8, 1 / 8, dtype=torch.float64)

    def f(t: Tensor, u: Tensor) -> Tensor:
        linear_part = torch.fft.irfft((k**2 - k**4) * torch.fft.rfft(u), n=8)
        return linear_part / 50 - torch.fft.irfft(0.5j * k * torch.fft.rfft(u**2), n=8)

    return Case(f, (8,), tolerance=1e-11)


@case
def nonlinear_schroedinger() -> Case:
    """A complex wave as a pair of real ones, in Fourier space and out of it."""
    k = torch.fft.fftfreq(6, 1 / 6, dtype=torch.float64)
    strength = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def f(t: Tensor, z: Tensor) -> Tensor:
        psi = torch.view_as_complex(z)
        bent = torch.fft.ifft(-(k**2) * torch.fft.fft(psi))
        return torch.view_as_real(0.5j * bent - 1j * strength * psi.abs() ** 2 * psi)

    return Case(f, (6, 2), tolerance=1e-11)


@case
def learned_stencils() -> Case:
    """Bar-Sinai et al. 2019: a network chooses the coefficients of each place."""

    class Stencils(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                nn.Conv1d(1, 4, 3, padding=1, padding_mode="circular", dtype=torch.float64),
                nn.ReLU(),
                nn.Conv1d(4, 3, 1, dtype=torch.float64),
            )

        def forward(self, t: Tensor, u: Tensor) -> Tensor:
            weights = self.net(u[:, None])
            weights = weights - weights.mean(1, keepdim=True)
            around = torch.stack([u.roll(1, 1), u, u.roll(-1, 1)], 1)
            return (weights * around).sum(1)

    return Case(Stencils(), (6,))


@case
def augmented() -> Case:
    """Dupont et al. 2019: further channels beside the state, of second order."""
    net = Of(linear(5, 8), nn.Softplus(), linear(8, 2))

    def f(t: Tensor, z: Tensor) -> Tensor:
        return torch.cat([z[:, 2:], net(t, torch.cat([z, t.expand(z.shape[0], 1)], 1))], 1)

    return Case(f, (4,))
