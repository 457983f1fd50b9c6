import functools
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from decay_adapter import Decay, Exact, problem
from torch import nn

from pynode.study import Contender, Setting, Study
from pynode.study.content import digest


def scaled(factor):
    return lambda t, z: factor * z


class Twice(nn.Module):
    factor = 2

    def forward(self, t, z):
        return self.factor * z


class Thrice(Twice):
    factor = 3


def test_equal_things_have_one_digest_and_others_another():
    def first(t, z):
        return z + 1

    def second(t, z):
        return z + 2

    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    other = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid())
    other.load_state_dict(net.state_dict())
    things = [
        *(1, 1.0, "1", True, None, b"1", (1,), [1], {1: 1}, {1}),
        *(torch.ones(2), torch.ones(2, dtype=torch.float64), torch.ones(2, 1), torch.tensor([1.0, 2.0])),
        *(torch.ones(2, requires_grad=True), np.ones(2), np.ones(2, dtype=np.float32)),
        *(first, second, scaled(1.0), scaled(2.0), functools.partial(first, 1), functools.partial(first, 2)),
        *(Twice(), Thrice(), Twice().eval(), Decay(), net, other, net.forward, Twice, Setting(1e-3), Setting(1e-4)),
    ]
    digests = [digest(x) for x in things]
    assert len(set(digests)) == len(things)
    assert digests == [digest(x) for x in things]
    assert digest(scaled(2.0)) == digest(scaled(2.0))
    with torch.no_grad():
        net[0].weight[0, 0] += 1e-6
    assert digest(net) not in digests


@pytest.mark.slow
def test_a_digest_does_not_depend_on_the_process():
    code = "from decay_adapter import problem; print(problem().content)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "7", "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.stdout.strip() == problem().content


def test_a_field_that_is_trained_on_is_another_problem():
    whole = problem()
    study = Study("s", [whole], [Contender(Exact)])
    before = {cell.key for cell in study.cells()}
    with torch.no_grad():
        whole.field.rate += 1
    assert not before & {cell.key for cell in study.cells()}


@pytest.mark.parametrize("change", [{"name": "x"}, {"loss": torch.sum}, {"stiff": True}, {"reference": None}])
def test_what_changes_the_content_of_a_problem(change):
    whole = problem()
    assert replace(whole).content == whole.content
    assert replace(whole, description="told at length", settings=(Setting(1e-9),)).content == whole.content
    assert replace(whole, **change).content != whole.content
