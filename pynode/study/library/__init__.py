"""Problems by name, each with its source and its reference."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pynode.errors import StudyError, unknown_name
from pynode.problem.inputs import check_finite, check_integer
from pynode.study.library.allen_cahn import allen_cahn
from pynode.study.library.brusselator import brusselator
from pynode.study.library.digits import digits
from pynode.study.library.ffjord import ffjord
from pynode.study.library.henon_heiles import henon_heiles
from pynode.study.library.hires import hires
from pynode.study.library.kepler import kepler
from pynode.study.library.latent_ode import latent_ode
from pynode.study.library.linear import linear
from pynode.study.library.lorenz import lorenz
from pynode.study.library.lotka_volterra import lotka_volterra
from pynode.study.library.oregonator import oregonator
from pynode.study.library.pleiades import pleiades
from pynode.study.library.robertson import robertson
from pynode.study.library.shipped import read
from pynode.study.library.van_der_pol import van_der_pol, van_der_pol_stiff
from pynode.study.problem import Problem

__all__ = ["make", "problem", "problems"]

_MAKERS: dict[str, Callable[..., Problem]] = {
    maker.__name__: maker
    for maker in (
        linear,
        lotka_volterra,
        lorenz,
        kepler,
        henon_heiles,
        pleiades,
        van_der_pol,
        van_der_pol_stiff,
        robertson,
        hires,
        oregonator,
        brusselator,
        allen_cahn,
        digits,
        ffjord,
        latent_ode,
    )
}
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def problems() -> dict[str, str]:
    """The names of the problems that come with pynode, each with a sentence on what it is."""
    return {name: inspect.getdoc(maker).partition("\n")[0] for name, maker in _MAKERS.items()}  # type: ignore[union-attr]


def problem(name: str, *, dtype: str | torch.dtype = "float64", **options: Any) -> Problem:
    """A problem that comes with pynode.

    Its field is an `nn.Module` whose parameters are the constants of the equations, so that their gradient is measured,
    and there are versions of it for JAX and Julia. With its own options it comes with a reference; with others the
    reference is made when it is needed.

    Args:
        name: one of `problems()`.
        dtype: `"float64"` or `"float32"`, of the field, the state and the times. In single precision the constants are
            rounded, and the reference is that of the constants before.
        options: of the problem: `mu` of `"van_der_pol"`, `eccentricity` of `"kepler"`, `points` of `"brusselator"` and
            `"allen_cahn"`, `batch` of `"digits"`.

    Raises:
        InputError: the name is unknown, or an option is no number.
        StudyError: an option is unknown or not usable.
    """
    found = make(name, **options)
    given = {key: value for key, value in options.items() if value != _options(name)[key]}
    found = in_dtype(found, dtype)
    return found if given else replace(found, reference=read(name, found))


def make(name: str, **options: Any) -> Problem:
    """`problem` in double precision, without its reference."""
    if name not in _MAKERS:
        raise unknown_name("problem", name, _MAKERS)
    known = _options(name)
    for key in options:
        if key not in known:
            has = f"its options are {', '.join(known)}" if known else "it has none"
            raise StudyError(f"the problem {name!r} has no option {key!r}: {has}")
        check = check_integer if isinstance(known[key], int) else check_finite
        check(f"{key} of the problem {name!r}", options[key])
    found = _MAKERS[name](**options)
    given = [f"{key}={value}" for key, value in options.items() if value != known[key]]
    text, _, source = (inspect.getdoc(_MAKERS[name]) or "").partition("\nSource:\n")
    return replace(
        found,
        name=f"{name}({', '.join(given)})" if given else name,
        description=" ".join(text.split()),
        source=" ".join(source.split()),
    )


def in_dtype(found: Problem, dtype: str | torch.dtype) -> Problem:
    """A problem in another precision."""
    to = _DTYPES.get(str(dtype).removeprefix("torch."))
    if to is None:
        raise StudyError(f"dtype must be 'float32' or 'float64', got {dtype!r}")
    assert isinstance(found.field, nn.Module)
    return replace(found, field=found.field.to(to), z0=found.z0.to(to), t=found.t.to(to))


def _options(name: str) -> dict[str, Any]:
    return {key: parameter.default for key, parameter in inspect.signature(_MAKERS[name]).parameters.items()}
