"""Attention that is differentiated twice."""

from __future__ import annotations

import threading
from collections.abc import Callable

from torch.backends import cuda

__all__ = ["TwiceDifferentiable"]

_SWITCHES: tuple[
    tuple[Callable[[], bool], Callable[[bool], None], bool], ...
] = (  # how attention is computed, and whether so where it is differentiated twice
    (cuda.flash_sdp_enabled, cuda.enable_flash_sdp, False),
    (cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp, False),
    (cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp, False),
    (cuda.math_sdp_enabled, cuda.enable_math_sdp, True),
)


class TwiceDifferentiable:
    """The context in which a function that calls `scaled_dot_product_attention` has second derivatives.

    There attention is made of products and a softmax. PyTorch's fused kernels, on processors and on GPUs, have first
    derivatives alone. The switches are the process's: of threads that are in the context at once the last one puts them
    back.
    """

    _lock = threading.Lock()
    _inside = 0
    _before: tuple[bool, ...] = ()

    def __enter__(self) -> None:
        of = TwiceDifferentiable
        with of._lock:
            if of._inside == 0:
                of._before = tuple([get() for get, _, _ in _SWITCHES])
                for _, switch, wanted in _SWITCHES:
                    switch(wanted)
            of._inside += 1

    def __exit__(self, *exception: object) -> None:
        of = TwiceDifferentiable
        with of._lock:
            of._inside -= 1
            if of._inside == 0:
                for (_, switch, _), was in zip(_SWITCHES, of._before, strict=True):
                    switch(was)
