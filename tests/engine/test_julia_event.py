"""The graph of an event function, which needs no Julia."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pynode.engine.julia.event import _rates
from pynode.field import Field
from pynode.field._derived import derived_field
from pynode.field._interpreter import interpret
from pynode.field._trace import Trace, trace_field
from pynode.problem.state import state_of

LEVELS = torch.tensor([0.5, 1.5])


def one() -> Callable[..., Tensor]:
    return lambda t, z: z[0, 0] - t


def two() -> Callable[..., Tensor]:
    return lambda t, z: z[0][:, 0].amin() - LEVELS * t


@pytest.mark.parametrize(("make", "is_tuple", "n"), [(one, False, 1), (two, True, 2)])
def test_values_are_rates_and_traced_once(make: Callable[..., Any], is_tuple: bool, n: int) -> None:
    """The values are the rates of each row; a function that is made anew for each solve shares its trace."""
    t, found = torch.tensor(0.7), []
    for batch in (3, 5):
        z = (torch.randn(batch, 2), torch.randn(batch)) if is_tuple else (torch.randn(batch, 2),)
        event = make()
        watched = (*z, torch.zeros(batch, n))
        field = Field(derived_field(_rates, event, state_of(z if is_tuple else z[0])), watched, t, (), True)
        trace: Trace = trace_field(field, watched, t, ())
        found.append(trace)
        rates, _ = interpret(trace.graph, [t, *watched, *trace.bound(field)])
        values = event(t, z if is_tuple else z[0]).reshape(-1)
        torch.testing.assert_close(rates[-1], values.expand(batch, n))
        assert not any(rate.any() for rate in rates[:-1])
        assert all(product is None for product in trace.graph.vjp)
    assert found[0] is found[1]
