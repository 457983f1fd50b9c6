"""Wrong use of NODE: refused when it is built, where that can be told; with the remedy in any case."""

import math

import pytest
import torch
from torch import nn

from pynode.control import Linear
from pynode.errors import EngineUnavailable, FieldError, InputError
from pynode.models import NODE
from pynode.nn import TimeConcat, TimeSequential


def mlp():
    return TimeSequential(TimeConcat(nn.Linear(3, 8)), nn.Tanh(), nn.Linear(8, 2))


def points(n=5, features=2):
    return torch.ones(n, features, dtype=torch.float64)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"rtoll": 1e-3}, "unknown solver keyword 'rtoll': expected one of 'rtol'"),
        ({"dense": True}, "unknown solver keyword 'dense'"),
        ({"event": max}, "unknown solver keyword 'event'"),
        ({"save": "steps"}, "unknown solver keyword 'save'"),  # of which a model's results would be at other depths
        ({"solver": "dopri6"}, "unknown solver 'dopri6': expected one of 'dopri"),
        ({"sensitivity": "discreet"}, "unknown sensitivity 'discreet': expected one of 'discrete'"),
        ({"engine": "tourch"}, "unknown engine 'tourch': expected one of 'torch'"),
        ({"rtol": -1.0}, "rtol must be positive and finite, got -1.0"),
        ({"max_steps": 0}, "max_steps must be positive"),
        ({"t": (0.0, 0.0)}, "t must be two different finite numbers, got"),
        ({"t": (0.0, math.inf)}, "t must be two different finite numbers"),
        ({"t": (0.0, 1.0, 2.0)}, "t must be two numbers, the first and the last depth"),
        ({"t": 1.0}, "t must be two numbers"),
        ({"order": 0}, "order must be an integer of at least 1, got 0"),
        ({"order": 1.5}, "order must be an integer of at least 1, got 1.5"),
        ({"control": Linear([0.0, 1.0], torch.ones(2))}, "control must be True, .* got Linear"),
        ({"output_network": 3}, "output_network must be an nn.Module or a callable, got int"),
        ({"running_cost": "energy"}, "running_cost must be an nn.Module or a callable, got str"),
    ],
)
def test_wrong_arguments_are_refused_when_the_model_is_built(keywords, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        NODE(mlp(), **keywords)


def test_a_solver_that_the_named_engine_lacks_is_refused_when_the_model_is_built():
    with pytest.raises(EngineUnavailable, match="the torch engine has no solver 'tsit5'"):
        NODE(mlp(), engine="torch", solver="tsit5")


def test_a_field_that_is_no_callable():
    with pytest.raises(InputError, match=r"field must be an nn\.Module or a callable, got Tensor"):
        NODE(torch.zeros(2))


def test_a_tuple_state_is_sent_to_solve():
    with pytest.raises(InputError, match=r"one tensor, got tuple from input_network.*pynode\.solve"):
        NODE(mlp(), input_network=lambda x: (x, x))(points())


def test_order_that_does_not_divide_the_state():
    with pytest.raises(InputError, match=r"order 2 .* multiple of it, got a state of shape \(5, 3\)"):
        NODE(lambda t, z: z[:, :1], order=2, input_network=nn.Identity())(points(features=3))


def test_higher_order_field_that_returns_the_whole_derivative():
    with pytest.raises(FieldError, match=r"the last derivative only: expected shape \(5, 2\).*got \(5, 4\)"):
        NODE(lambda t, z: z, order=2)(points())
