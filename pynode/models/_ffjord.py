"""FFJORD: free-form fields in stacks, on vectors and, over several scales, on images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from pynode.engine.protocol import Stats
from pynode.errors import InputError, unknown_name
from pynode.models._check import check_solver_keywords
from pynode.models._cnf import CNF, check_flow_keywords
from pynode.models._failed import failed_samples, may_fail, spread
from pynode.models._flow import Base, Flow, Mapped, StandardNormal
from pynode.nn import ConcatSquash, DataControl, TimeConcat, TimeSequential

__all__ = ["FFJORD"]

_LAYERS = ("concatsquash", "concat", "gated")


class FFJORD(Flow):
    """Continuous normalizing flows with free-form fields, one after the other.

    In training mode the trace is Hutchinson's estimate (as `trace` says), in evaluation mode it is exact, which
    takes one product for each dimension of a sample.

    Images flow over several scales: after the blocks of a scale each 2 × 2 patch becomes four channels ("squeeze"), and
    half of the channels are done, while the others go on at the next scale. `Dequantised` makes a density of images on
    a few grey levels of it.

    A step of training is thousands of small operations: with its default number of threads torch can be many times
    slower than with one, above all beside other work on the machine. Set `OMP_NUM_THREADS=1` or call
    `torch.set_num_threads(1)`; `pynode doctor` measures it.

    Args:
        dim: number of features of a sample; or (channels, height, width), and then the fields are convolutional.
        hidden: widths of the hidden layers of each field.
        blocks: number of flows in a row; for images, at each scale.
        base: as in `CNF`, with events of shape `dim`; the standard normal distribution where `None`.
        layer: how the time enters each layer: `"concatsquash"` (it gates and shifts the outputs), `"gated"` (it gates
            them), `"concat"` (it is one more input).
        activation: makes the function between the layers; smooth, since the trace differentiates it.
        context: number of features of the context, 0 where there is none.
        scales: number of scales, for images.
        trace: `"hutchinson"`, or `"exact"` also in training.
        noise: as in `CNF`.
        kinetic: λ_K as in `CNF`; the regularisers of all blocks add up.
        jacobian: λ_J as in `CNF`.
        t: as in `CNF`, for each block.
        solver_keywords: as `pynode.solve` takes.

    Attributes:
        blocks: the flows, from data to base.

    Raises:
        InputError: an argument is not usable.

    Source:
        W. Grathwohl et al., "FFJORD: Free-form continuous dynamics for scalable reversible generative models", ICLR
        2019; the scales as in L. Dinh et al., "Density estimation using Real NVP", ICLR 2017, section 3.6.
    """

    def __init__(
        self,
        dim: int | tuple[int, int, int],
        *,
        hidden: Sequence[int] = (64, 64),
        blocks: int = 1,
        base: Base | None = None,
        layer: str = "concatsquash",
        activation: Callable[[], nn.Module] = nn.Tanh,
        context: int = 0,
        scales: int = 1,
        trace: str = "hutchinson",
        noise: str = "rademacher",
        kinetic: float = 0.0,
        jacobian: float = 0.0,
        t: tuple[float, float] = (0.0, 1.0),
        **solver_keywords: Any,
    ) -> None:
        check_flow_keywords(trace, noise, kinetic, jacobian)
        check_solver_keywords(solver_keywords, own=("control",))
        shape = _shape(dim, scales)
        if layer not in _LAYERS:
            raise unknown_name("layer", layer, _LAYERS)
        if layer == "concat" and context and len(shape) > 1:
            raise InputError("layer='concat' takes no context for images: take 'concatsquash' or 'gated'")
        for name, count in (("blocks", blocks), *(("each width of hidden", width) for width in hidden)):
            if not isinstance(count, int) or count < 1:
                raise InputError(f"{name} must be a positive whole number, got {count!r}")
        super().__init__(StandardNormal(shape) if base is None else base, {"kinetic": kinetic, "jacobian": jacobian})
        if isinstance(base, torch.distributions.Distribution) and base.event_shape != shape:
            raise InputError(f"base must have events of shape {shape}, as dim says, got {tuple(base.event_shape)}")
        self.event_shape = torch.Size(shape)
        self.scales = scales
        keywords = {"trace": trace, "noise": noise, "kinetic": kinetic, "jacobian": jacobian, "t": t, **solver_keywords}
        self.blocks = nn.ModuleList()
        for scale in range(scales):
            for _ in range(blocks):
                field = _field(shape, hidden, layer, activation, context)
                self.blocks.append(CNF(field, StandardNormal(shape), **keywords))
            if scale < scales - 1:
                shape = (2 * shape[0], shape[1] // 2, shape[2] // 2)

    @property
    def stats(self) -> Stats | None:
        """The `Stats` of the last call, summed over the blocks; `None` before it."""
        parts = [block.stats for block in self.blocks]
        if any(p is None for p in parts):
            return None

        def total(name: str) -> Any:
            found = [getattr(p, name) for p in parts]
            return None if None in found else sum(found)

        return Stats(*map(total, ("nfe", "nfe_backward", "n_accepted", "n_rejected", "seconds")))

    def _event_shape(self) -> torch.Size:
        return self.event_shape

    def _map(self, x: Tensor, context: Tensor | None, reverse: bool, density: bool) -> Mapped:
        regularisation: dict[str, Tensor] = {}
        log_det = x.new_zeros(len(x)) if density else None
        failed: Tensor | None = None  # where solves may, the samples of which one has

        def through(z: Tensor, blocks: list[nn.Module]) -> Tensor:
            nonlocal log_det, failed
            for block in reversed(blocks) if reverse else blocks:
                assert isinstance(block, CNF)
                z, found, energies = block._map(z, context, reverse, density, None if self.training else "exact")
                if log_det is not None and found is not None:
                    log_det = log_det + found
                for name, value in energies.items():
                    regularisation[name] = regularisation.get(name, 0) + value
                if may_fail(block.solver_keywords):
                    lost = failed_samples(z)
                    failed = lost if failed is None else failed | lost
                    z = z.masked_fill(spread(failed, z), 0.0)  # goes on, unseen, beside the others
            return z

        per_scale = len(self.blocks) // self.scales
        groups = [list(self.blocks)[i * per_scale : (i + 1) * per_scale] for i in range(self.scales)]
        along = _out_of_scales if reverse else _into_scales
        z = through(x, groups[0]) if self.scales == 1 else along(x, groups, through)
        if failed is not None:
            z = z.masked_fill(spread(failed, z), torch.nan)
            log_det = None if log_det is None else log_det.masked_fill(failed, torch.nan)
        self.regularisation = regularisation
        return z, log_det, regularisation

    def extra_repr(self) -> str:
        """The arguments that the blocks do not show."""
        return f"dim={tuple(self.event_shape)}, scales={self.scales}"


Through = Callable[[Tensor, list[nn.Module]], Tensor]


def _into_scales(z: Tensor, groups: list[list[nn.Module]], through: Through) -> Tensor:
    """Through all scales; what leaves at each and what is left at the end, one after the other, in the shape of z."""
    shape, done = z.shape, []
    for group in groups[:-1]:
        z, out = pixel_unshuffle(through(z, group), 2).chunk(2, dim=1)
        done.append(out.flatten(1))
    done.append(through(z.contiguous(), groups[-1]).flatten(1))
    return torch.cat(done, dim=1).reshape(shape)


def _out_of_scales(z: Tensor, groups: list[list[nn.Module]], through: Through) -> Tensor:
    """The inverse of `_into_scales`."""
    n, c, h, w = z.shape
    flat, outs = z.flatten(1), []
    for _ in groups[:-1]:
        c, h, w = 2 * c, h // 2, w // 2
        out, flat = flat[:, : c * h * w], flat[:, c * h * w :]
        outs.append(out.reshape(n, c, h, w))
    z = through(flat.reshape(n, c, h, w), groups[-1])
    for group, out in zip(reversed(groups[:-1]), reversed(outs), strict=True):
        z = through(pixel_shuffle(torch.cat([z, out], dim=1), 2), group)
    return z


def _shape(dim: Any, scales: Any) -> tuple[int, ...]:
    """The shape of a sample."""
    shape = (dim,) if isinstance(dim, int) else tuple(dim) if isinstance(dim, Sequence) else ()
    if len(shape) not in (1, 3) or not all(isinstance(n, int) and n >= 1 for n in shape):
        raise InputError(f"dim must be a positive whole number or (channels, height, width), got {dim!r}")
    if not isinstance(scales, int) or scales < 1:
        raise InputError(f"scales must be a positive whole number, got {scales!r}")
    if scales > 1 and (len(shape) == 1 or math.gcd(*shape[1:]) % 2 ** (scales - 1)):
        raise InputError(
            f"scales={scales} halves an image {scales - 1} times: height and width must be multiples of "
            f"{2 ** (scales - 1)}, got dim={dim!r}"
        )
    return shape


def _field(
    shape: tuple[int, ...], hidden: Sequence[int], layer: str, activation: Callable[[], nn.Module], context: int
) -> TimeSequential:
    """A field of dense or convolutional layers, each conditioned on the time and the context."""
    layers: list[nn.Module] = []
    for a, b in pairwise((shape[0], *hidden, shape[0])):
        a += 1 + context if layer == "concat" else 0
        plain = nn.Linear(a, b) if len(shape) == 1 else nn.Conv2d(a, b, 3, padding=1)
        if layer == "concat":
            layers.append(DataControl(TimeConcat(plain)) if context else TimeConcat(plain))
        else:
            layers.append(ConcatSquash(plain, context, shift=layer == "concatsquash"))
        layers.append(activation())
    return TimeSequential(*layers[:-1])
