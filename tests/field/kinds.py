"""Further kinds of field: computed indices, order, tables, linear algebra, and models made of them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from modules import CASES, Case, case, linear, normal, parameter
from torch import Tensor, nn
from torch.func import grad, hessian, jacrev, vmap

__all__ = ["CASES"]

KNOTS = torch.linspace(-3, 3, 17, dtype=torch.float64)
EYE = torch.eye(3, dtype=torch.float64)


def square(z: Tensor) -> Tensor:
    """Well-conditioned matrices of nine features."""
    return z.reshape(-1, 3, 3) * 0.1 + 2 * EYE


# ---- tables -----------------------------------------------------------------------------------------


@case
def forcing_from_a_table() -> Case:
    """Linear interpolation of given values in time."""
    values = normal(17).requires_grad_()

    def f(t: Tensor, z: Tensor) -> Tensor:
        i = torch.searchsorted(KNOTS, t).clamp(1, 16)
        w = (t - KNOTS[i - 1]) / (KNOTS[i] - KNOTS[i - 1])
        return -z + values[i - 1] * (1 - w) + values[i] * w

    return Case(f, (2,))


@case
def forcing_of_several_channels() -> Case:
    values = normal(17, 4).requires_grad_()

    def f(t: Tensor, z: Tensor) -> Tensor:
        return z * values[torch.searchsorted(KNOTS, t.reshape(1), right=True)[0]] + values[-1, torch.tensor(2)]

    return Case(f, (4,))


@case
def spline_of_the_state() -> Case:
    """A learned activation, linear between knots."""
    values = parameter(17)

    def f(t: Tensor, z: Tensor) -> Tensor:
        i = torch.bucketize(z.detach(), KNOTS).clamp(1, 16)
        w = (z - KNOTS[i - 1]) / (KNOTS[i] - KNOTS[i - 1])
        return values[i - 1] * (1 - w) + values[i] * w

    return Case(f, (2, 3))


@case
def rows_of_a_table() -> Case:
    table = parameter(17, 4)

    def f(t: Tensor, z: Tensor) -> Tensor:
        i = torch.bucketize(z.detach()[:, 0], KNOTS).clamp(0, 16)
        return table[i] * z + F.embedding(i, table) + table.index_select(0, i) + table[-1 - i, 1][:, None]

    return Case(f, (4,))


@case
def tables_of_each_sample() -> Case:
    def f(t: Tensor, z: Tensor, knots: Tensor) -> Tensor:
        return z * torch.searchsorted(torch.cumsum(knots.abs(), 1), z.detach() + 1)

    return Case(f, (3,), args=((5,),))


# ---- sparse matrices --------------------------------------------------------------------------------


@case
def sparse_matrices() -> Case:
    """Of both layouts, one a buffer and one in a closure; the trace has them dense."""
    dense = (normal(5, 5) > 0.3) * normal(5, 5)
    closed = dense.T.to_sparse_csr()

    class Diffusion(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = linear(5, 5)
            self.register_buffer("matrix", dense.to_sparse())

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            x = torch.tanh(self.net(z)).T
            return (torch.sparse.mm(self.matrix, x) + self.matrix @ x + closed @ x).T

    return Case(Diffusion(), (5,))


# ---- computed indices, order ------------------------------------------------------------------------


@case
def entries_that_the_state_chooses() -> Case:
    def f(t: Tensor, z: Tensor) -> Tensor:
        i = (z.detach().abs() * 2).long().clamp(0, 3)
        once = z.gather(1, i) + torch.zeros_like(z).scatter_add(1, i, torch.sin(z))
        return once + torch.tanh(z)[:, :3].gather(1, i[:, 1:] % 3).sum(1, keepdim=True)

    return Case(f, (4,))


@case
def scatter_reduce() -> Case:
    index = torch.tensor([0, 0, 1, 2, 2])

    def f(t: Tensor, z: Tensor) -> Tensor:
        pooled = torch.zeros(z.shape[0], 3, dtype=z.dtype).scatter_reduce(1, index.expand(z.shape[0], 5), z, "sum")
        return pooled[:, index]

    return Case(f, (5,))


@case
def sorting() -> Case:
    weight = parameter(5)

    def f(t: Tensor, z: Tensor) -> Tensor:
        order = torch.argsort(z, -1, descending=True)
        return torch.sort(z, -1).values * weight + torch.take_along_dim(torch.tanh(z), order, -1)

    return Case(f, (5,))


@case
def ranks() -> Case:
    def f(t: Tensor, z: Tensor) -> Tensor:
        middle = z.median(-1, keepdim=True).values + z.kthvalue(2, -1, keepdim=True)[0]
        return (
            z
            - middle
            + torch.topk(z, 2, -1).values.sum(-1, keepdim=True)
            + torch.topk(z, 2, 1, largest=False)[0].prod(1)[:, None]
        )

    return Case(f, (5,))


@case
def argmax() -> Case:
    table = parameter(4, 4)

    def f(t: Tensor, z: Tensor) -> Tensor:
        return F.one_hot(z.argmax(-1), 4).to(z) * z + table[z.argmin(-1)] * z

    return Case(f, (4,))


@case
def mask_assigned() -> Case:
    def f(t: Tensor, z: Tensor) -> Tensor:
        out = torch.sin(z)
        out[z > 0.3] = 0.0
        return out

    return Case(f, (4,))


@case
def mixture_of_experts() -> Case:
    """The two best of three networks, for each sample."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = linear(4, 3)
            self.experts = nn.ModuleList(linear(4, 4) for _ in range(3))

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            best, where = torch.topk(self.gate(z), 2, -1)
            weights = torch.zeros(z.shape[0], 3, dtype=z.dtype).scatter(1, where, torch.softmax(best, -1))
            return sum(weights[:, j : j + 1] * torch.tanh(net(z)) for j, net in enumerate(self.experts))

    return Case(Experts(), (4,))


@case
def embedding_of_constants() -> Case:
    labels = torch.tensor([0, 2, 1])
    table = nn.Embedding(5, 3, padding_idx=2, dtype=torch.float64)
    return Case(lambda t, z: z * table(labels), (3, 3))


@case
def bessel_and_gamma_functions() -> Case:
    """The modified functions of Bessel, incomplete ones of gamma, and what quantiles are made of."""

    def f(t: Tensor, z: Tensor) -> Tensor:
        bessel = torch.i0(z) + torch.special.i1(z) - torch.special.i0e(3 * z) * torch.special.i1e(z)
        quantile = torch.special.ndtri(torch.sigmoid(z)) + torch.special.erfcx(z)
        shape = 1.5 + torch.arange(3, dtype=z.dtype)
        return bessel + quantile + torch.special.gammainc(shape, z**2) - torch.special.gammaincc(shape, z.exp())

    return Case(f, (3,), allocates=True)  # within the library of Bessel's functions


class Labelled(Case):
    """A case whose conditioning tensors are a label and a truth value for each sample."""

    def draw(self, batch: int, seed: int = 0) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        t, z, _ = super().draw(batch, seed)
        return t, z, (torch.arange(batch) * 3 % 5, torch.arange(batch) % 2 == 0)


@case
def labels() -> Case:
    """Integers and truth values that condition the field."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.of_label = nn.Embedding(5, 3, dtype=torch.float64)
            self.net = linear(3, 3)

        def forward(self, t: Tensor, z: Tensor, label: Tensor, active: Tensor) -> Tensor:
            moved = torch.tanh(self.net(z + self.of_label(label))) * label[:, None]
            return torch.where(active[:, None] & (label > 1)[:, None], moved, -z) + F.one_hot(label % 3, 3)

    return Labelled(Net(), (3,))


# ---- the batch as a dimension -----------------------------------------------------------------------


@case
def entry_of_each_sample() -> Case:
    """Indices that each sample has of its own, read from and assigned to: samples stay independent."""

    def f(t: Tensor, z: Tensor) -> Tensor:
        samples = torch.arange(z.shape[0])
        best = z.detach()[..., 0].argmax(-1)
        order = z.detach()[..., 1].argsort(-1)
        out = torch.sin(z)
        out[samples, best] = z[samples, best, 1:2] * t
        return out + z[samples[:, None], order] * z[samples, torch.zeros_like(best)][:, None]

    return Case(f, (4, 3))


@case
def ranks_in_the_batch() -> Case:
    """The median and another rank of all samples, and the sample before each and behind it."""

    def f(t: Tensor, z: Tensor) -> Tensor:
        middle = z.median(0).values + z.kthvalue(1, 0)[0]
        return z.roll(1, 0) * z - z.roll((-1, 1), (0, 1)).tanh() + z.roll(1) / 4 - middle * z

    return Case(f, (4,), batches=(3, 4, 6))


@case
def order_of_the_batch() -> Case:
    """Samples that are ranked, picked and counted among each other."""

    def f(t: Tensor, z: Tensor) -> Tensor:
        ranked = torch.sort(z, 0).values + z[torch.argsort(z.detach()[:, 0])]
        least = z[z.detach()[:, 1].argmin()] + z.max(0).values + z.gather(0, z.detach().argsort(0))
        return ranked - least * torch.arange(z.shape[0], dtype=z.dtype)[:, None] + z * z.argmax()

    return Case(f, (4,))


@case
def nearest_neighbour() -> Case:
    """Each sample is drawn to the one nearest to it, as in consensus dynamics."""

    def f(t: Tensor, z: Tensor) -> Tensor:
        apart = (z[:, None] - z[None]).square().sum(-1).detach()
        own = torch.arange(z.shape[0])
        near = torch.where(own[:, None] == own, torch.inf, apart).argmin(1)
        return z[near] - z

    return Case(f, (3,), batches=(3, 2, 5))


@case
def mask_that_is_known() -> Case:
    """As a buffer, with all that it picks at the end of the field."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            mask = torch.tensor([True, False, True, True, False])
            self.register_buffer("mask", mask)
            self.last = torch.cat([mask, ~mask])

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            out = torch.cos(z)
            out[:, self.mask] = z[:, self.mask] ** 2
            return torch.cat([out, z], 1)[:, self.last]

    return Case(Masked(), (5,))


# ---- running extrema, norms -------------------------------------------------------------------------


@case
def running() -> Case:
    """Extrema, sums and products so far."""

    def f(t: Tensor, z: Tensor) -> Tensor:
        top, where = torch.cummax(z, -1)
        return top * t + torch.cummin(z, 1)[0] + torch.cumprod(z, -1) + z.gather(1, where) * where

    return Case(f, (5,))


@case
def running_logarithms() -> Case:
    return Case(lambda t, z: torch.logcumsumexp(z, -1) + torch.logcumsumexp(3 * z, 1).flip(1) * t, (5,))


@case
def norms_of_matrices() -> Case:
    orders = (1, -1, 2, -2, math.inf, -math.inf, "fro", "nuc")
    of_vectors = (0, 0.5, 1, 2, 3, -1, math.inf, -math.inf)

    def f(t: Tensor, z: Tensor) -> Tensor:
        of_rows = sum(torch.linalg.norm(z, ord=p, dim=2, keepdim=True) for p in of_vectors)
        turned = torch.linalg.matrix_norm(z.transpose(0, 1), 1, dim=(0, 2))[:, None, None]
        return z * sum(torch.linalg.matrix_norm(z, p)[:, None, None] for p in orders) + of_rows + turned * z

    return Case(f, (4, 3), tolerance=1e-10, allocates=True)


# ---- linear algebra ---------------------------------------------------------------------------------


@case
def orthogonal_factors() -> Case:
    """Of tall and of wide matrices."""

    def f(t: Tensor, z: Tensor) -> Tensor:
        q, r = torch.linalg.qr(z)
        basis, factor = torch.linalg.qr(z.mT)
        return q @ torch.tanh(r) + (basis @ torch.sin(factor)).mT + torch.linalg.qr(z[:, :3] + 3 * EYE)[1].sum() * q

    return Case(f, (4, 3), tolerance=1e-9)


@case
def singular_values() -> Case:
    """Values of a matrix, and functions of it, that do not depend on the signs of the vectors."""

    def f(t: Tensor, z: Tensor) -> Tensor:
        u, s, vh = torch.linalg.svd(z, full_matrices=False)
        whole = torch.linalg.svd(z[:, :3] + 2 * EYE)
        return (
            u @ torch.diag_embed(torch.tanh(s)) @ vh
            + z @ whole[2].mT @ whole[0].mT * torch.linalg.svdvals(z).prod(-1)[:, None, None]
        )

    return Case(f, (4, 3), tolerance=1e-9, allocates=True)


@case
def least_squares() -> Case:
    matrix = normal(4, 3).requires_grad_()

    def f(t: Tensor, z: Tensor) -> Tensor:
        fit = torch.linalg.lstsq(z, torch.sin(z)).solution
        vector = torch.linalg.lstsq(matrix.expand(z.shape[0], 4, 3), z[:, :, :1]).solution
        rank = torch.linalg.pinv(z[:, :, :1] * z[:, :1], rtol=1e-6).mT
        return z @ fit + z * vector.mT + torch.linalg.pinv(z).mT + rank

    return Case(f, (4, 3), tolerance=1e-8, allocates=True)


@case
def systems() -> Case:
    matrix = (normal(3, 3) * 0.2 + 2 * EYE).requires_grad_()

    def f(t: Tensor, z: Tensor) -> Tensor:
        rows = z.reshape(-1, 3, 3)
        own = torch.linalg.solve(square(z), rows) + torch.linalg.solve(square(z).mT, rows)
        right = torch.linalg.solve(square(z), rows, left=False)
        vector = torch.linalg.solve(torch.diag_embed(1 + rows[:, 0] ** 2) + 0.1, rows[:, 1])
        shared = torch.linalg.solve(matrix, rows[:, 2].T).T
        return (own + right).flatten(1) + torch.cat([vector, shared, vector * shared], 1)

    return Case(f, (9,), tolerance=1e-11)


@case
def inverses() -> Case:
    matrix = (normal(3, 3) * 0.2 + 2 * EYE).requires_grad_()
    return Case(lambda t, z: (torch.linalg.inv(square(z)) @ torch.linalg.inv(matrix)).flatten(1), (9,), tolerance=1e-11)


@case
def determinants() -> Case:
    def f(t: Tensor, z: Tensor) -> Tensor:
        m = z.reshape(-1, 3, 3)
        numbers = torch.linalg.det(m) + torch.linalg.det(m.mT) * t + torch.linalg.slogdet(m)[1]
        return z * (numbers + torch.logdet(m @ m.mT + EYE))[:, None]

    return Case(f, (9,), tolerance=1e-11)


@case
def triangles() -> Case:
    matrix = (normal(3, 3) * 0.2 + 2 * EYE).requires_grad_()

    def f(t: Tensor, z: Tensor) -> Tensor:
        rows = z.reshape(-1, 3, 3)
        positive = rows @ rows.mT + EYE
        lower = torch.linalg.cholesky(positive)
        solved = torch.linalg.solve_triangular(matrix.tril(), rows, upper=False)
        solved = solved + torch.linalg.solve_triangular(matrix.triu(), rows, upper=True, left=False)
        return (
            lower + torch.linalg.cholesky(positive, upper=True) + solved + torch.cholesky_solve(rows, lower)
        ).flatten(1)

    return Case(f, (9,), tolerance=1e-10)


@case
def matrix_exponential() -> Case:
    matrix = parameter(3, 3)

    def f(t: Tensor, z: Tensor) -> Tensor:
        rows = z.reshape(-1, 3, 3)
        return (torch.linalg.matrix_exp(rows * 0.3) + rows @ torch.matrix_exp(matrix * t)).flatten(1)

    return Case(f, (9,), tolerance=1e-11, allocates=True)


@case
def eigenvalues() -> Case:
    def f(t: Tensor, z: Tensor) -> Tensor:
        m = z.reshape(-1, 3, 3)
        values, vectors = torch.linalg.eigh(m + m.mT)
        root = vectors @ torch.diag_embed(torch.log1p(values**2)) @ vectors.mT
        return root.flatten(1) * torch.linalg.eigvalsh(m + m.mT).repeat(1, 3)

    return Case(f, (9,), tolerance=1e-9, allocates=True)


# ---- Fourier transforms -----------------------------------------------------------------------------


@case
def spectral_derivatives() -> Case:
    """Burgers' equation, by transforms of an even number of points."""
    k = 2 * torch.pi * torch.fft.rfftfreq(8, 1 / 8, dtype=torch.float64)

    def f(t: Tensor, z: Tensor) -> Tensor:
        u = torch.fft.rfft(z)
        return torch.fft.irfft(-(k**2) * 0.01 * u, n=8) - z * torch.fft.irfft(1j * k * u, n=8) / 10

    return Case(f, (8,), tolerance=1e-11)


@case
def transforms() -> Case:
    """Of an odd number of points, of complex numbers, normalised in other ways."""
    k = torch.fft.fftfreq(5, dtype=torch.float64)

    def f(t: Tensor, z: Tensor) -> Tensor:
        once = torch.fft.ifft(1j * k * torch.fft.fft(z, norm="ortho"), norm="ortho").real
        return once + torch.fft.hfft(torch.fft.rfft(z), n=5) + torch.fft.irfft(torch.fft.rfft(z, norm="forward"), n=5)

    return Case(f, (5,), tolerance=1e-11)


@case
def transforms_in_the_plane() -> Case:
    """Vorticity on a torus: the stream function by a division in Fourier space."""
    k = torch.fft.fftfreq(4, 1 / 4, dtype=torch.float64)
    square = k[:, None] ** 2 + k[: 4 // 2 + 1].abs() ** 2
    square[0, 0] = 1.0

    def f(t: Tensor, w: Tensor) -> Tensor:
        transform = torch.fft.rfft2(w)
        psi = transform / square
        u = torch.fft.irfft2(1j * k[:, None] * psi, s=(4, 4))
        again = torch.fft.ifft2(torch.fft.fft2(w) * torch.exp(-square[:, [0, 1, 2, 1]])).real
        return again - u * torch.fft.irfft2(1j * k[:3].abs() * transform, s=(4, 4))

    return Case(f, (4, 4), tolerance=1e-11)


@case
def fourier_neural_operator() -> Case:
    """One block of Li et al. 2021 (figure 2): a truncated spectral convolution beside a pointwise one."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = parameter(2, 2, 3, 2)  # real and imaginary parts
            self.pointwise = nn.Conv1d(2, 2, 1, dtype=torch.float64)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            modes = torch.fft.rfft(z)
            mixed = torch.einsum("bim,iom->bom", modes[:, :, :3], torch.view_as_complex(self.weight))
            return torch.tanh(torch.fft.irfft(mixed, n=8) + self.pointwise(z))

    return Case(Block(), (2, 8), tolerance=1e-11)


@case
def lagrangian() -> Case:
    """The accelerations of a learned Lagrangian (Cranmer et al. 2020, equation 6)."""

    class Lagrangian(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(linear(4, 8), nn.Softplus(), linear(8, 1))

        def energy(self, q: Tensor, v: Tensor) -> Tensor:
            return self.net(torch.cat([q, v]))[0] + 5 * (v * v).sum()

        def acceleration(self, x: Tensor) -> Tensor:
            q, v = x[:2], x[2:]
            mass = hessian(self.energy, 1)(q, v)
            coupling = jacrev(grad(self.energy, 1), 0)(q, v)
            return torch.linalg.solve(mass, grad(self.energy, 0)(q, v) - coupling @ v)

        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return torch.cat([x[:, 2:], vmap(self.acceleration)(x)], 1)

    return Case(Lagrangian(), (4,), tolerance=1e-11)
