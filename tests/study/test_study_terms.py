import pytest
import torch
from torch import nn

from pynode.errors import FieldError, InputError, PyNODEError
from pynode.study import Contender, NotComparable, Problem, Reference, Setting, StudyError


class Decay(nn.Module):
    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, t, z):
        return -self.rate * z


T = torch.linspace(0, 1, 5, dtype=torch.float64)
Z0 = torch.ones(3, 2, dtype=torch.float64)


def test_a_problem_of_one_line():
    problem = Problem(Decay(), Z0, T)
    assert problem.name == "Decay"
    assert problem.dtype == "float64"
    assert list(problem.parameters) == ["rate"]
    assert [s.rtol for s in problem.settings] == [1e-3, 1e-5, 1e-7]
    z = torch.randn(5, 3, 2)
    assert problem.loss_of(z) == z.square().mean()


def test_a_problem_takes_what_solve_takes():
    assert Problem(lambda z: -z, Z0, [0.0, 1.0]).t.tolist() == [0.0, 1.0]
    assert Problem(lambda t, z, a: a * z, Z0, T, args=(torch.ones(3, 2, dtype=torch.float64),)).name == "<lambda>"


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"z0": (Z0, Z0)}, InputError, "one real tensor"),
        ({"z0": torch.ones(3, dtype=torch.int64)}, InputError, "float32 or torch.float64"),
        ({"t": torch.tensor([0.0, 1.0, 1.0])}, InputError, "strictly monotone"),
        ({"t": torch.rand(3, 2).cumsum(1)}, InputError, "1-d"),
        ({"args": [1.0]}, InputError, "args must be a tuple of tensors"),
        ({"field": lambda t, z: z[:1]}, FieldError, "shape of the state"),
        ({"field": lambda t, z: z.float()}, FieldError, "dtype of the state"),
        ({"field": (lambda m: lambda t, z: m(t, z))(Decay())}, InputError, "Make it an nn.Module"),
        ({"loss": lambda z: z.sum(0)}, InputError, "0-d tensor"),
        ({"invariants": {"energy": lambda z: z.sum()}}, InputError, "'energy' must return"),
        ({"exact": lambda t: t}, InputError, "exact must return"),
        ({"reference": Reference(torch.zeros(1).numpy(), {}, 0.0, 0.0, 0.0, "")}, InputError, "reference's states"),
        ({"settings": ()}, InputError, "settings"),
        ({"settings": (1e-3,)}, InputError, "settings"),
    ],
)
def test_a_problem_that_is_none_is_refused(change, error, says):
    with pytest.raises(error, match=says):
        Problem(**{"field": Decay(), "z0": Z0, "t": T, **change})


def test_settings():
    assert Setting(1e-6) == Setting(rtol=1e-6, atol=1e-9)
    assert (str(Setting(1e-6)), str(Setting(dt=0.5))) == ("rtol 1e-06", "dt 0.5")
    for wrong in ({}, {"atol": 1e-3}, {"rtol": 1e-3, "dt": 0.1}, {"rtol": -1.0}, {"dt": float("inf")}):
        with pytest.raises(InputError):
            Setting(**wrong)


def test_contenders():
    grid = Contender.grid("pynode", engine=["torch", "julia"], solver="dopri5", batching=["joint", "independent"])
    assert [c.label for c in grid] == [
        "pynode torch dopri5 joint",
        "pynode torch dopri5 independent",
        "pynode julia dopri5 joint",
        "pynode julia dopri5 independent",
    ]
    assert Contender("my.module:Euler", {"jit": True, "order": 3, "lazy": False}).label == "Euler jit order=3 no lazy"
    assert len({*grid, Contender("pynode", grid[0].options)}) == 4
    for wrong in (
        lambda: Contender(""),
        lambda: Contender("pynode", {"solver": ["a"]}),
        lambda: Contender("pynode", settings=(1.0,)),
        lambda: Contender.grid("pynode", solver=[]),
    ):
        with pytest.raises(InputError):
            wrong()


def test_errors_of_a_study():
    assert issubclass(NotComparable, StudyError)
    assert issubclass(StudyError, PyNODEError)
    assert issubclass(StudyError, ValueError)
