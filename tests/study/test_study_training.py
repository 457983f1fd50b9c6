"""Training studies: curves, seeds, evaluations, errors; the named training."""

import itertools

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pynode.errors import InputError, StudyError
from pynode.models import NODE
from pynode.nn import TimeSequential
from pynode.study import Contender, Study, Training
from pynode.study.annuli import annuli
from pynode.study.defaults import default_contenders
from pynode.study.training import measure


class Recorded:
    """The columns that a measurement hands over."""

    def __init__(self):
        self.columns, self.doing = {}, []

    def __call__(self, doing, **columns):
        self.doing.append(doing)
        self.columns |= columns


def measured(training, seed=0, number=0, **options):
    (cell,) = Study("t", [training], [Contender("pynode", options)], seed=seed, passes=number + 1).cells()[number:]
    report = Recorded()
    measure(cell, report)
    return report.columns


def data(seed):
    x = torch.linspace(-1, 1, 32).unsqueeze(1)
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(TensorDataset(x, -x), 8, shuffle=True, generator=generator)


def make(scale=1.0, **keywords):
    return NODE(TimeSequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)), engine="torch", **keywords)


def loss(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


def test_error(model):
    x = torch.tensor([[0.5], [-0.25]])
    with torch.no_grad():
        return loss(model, (x, -x)).item()


test_error.__test__ = False  # pytest is not to call it

MINE = Training(make, data, loss, epochs=3, test=test_error, test_metric="mse", name="mine")


def test_a_model_of_the_users_is_trained_as_by_hand():
    columns = measured(MINE, solver="rk4", dt=0.5)
    torch.manual_seed(0)
    model = make(solver="rk4", dt=0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    torch.manual_seed(0)
    batches, losses = data(0), []
    next(iter(batches))  # the first call, apart
    for batch in itertools.chain(*(batches for _ in range(3))):
        optimizer.zero_grad()
        value = loss(model, batch)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert columns["curves"]["loss"] == pytest.approx(losses)
    forward, backward = model.stats.nfe, model.stats.nfe_backward
    assert columns["test_error"] == pytest.approx(test_error(model))
    assert columns["test_metric"] == "mse"
    assert columns["status"] == "ok"
    assert columns["curves"]["nfe"] == [(forward + backward) * (i + 1) for i in range(12)]
    assert columns["curves"]["epoch_nfe"] == [forward] * 3
    assert (columns["nfe"], columns["nfe_backward"]) == (12 * forward, 12 * backward)
    assert all(a < b for a, b in itertools.pairwise(columns["curves"]["seconds"]))
    assert columns["seconds"] == columns["curves"]["seconds"][-1]


def test_each_pass_has_a_seed_of_its_own_and_the_same_one_gives_the_same():
    first, again, second = measured(MINE, seed=4), measured(MINE, seed=4), measured(MINE, seed=3, number=1)
    other = measured(MINE, seed=5)
    assert [c["seed"] for c in (first, second, other)] == [4, 4, 5]
    assert first["curves"]["loss"] == again["curves"]["loss"] == second["curves"]["loss"]
    assert first["curves"]["loss"] != other["curves"]["loss"]


def test_what_fails_or_diverges_is_a_row():
    def wild(model, batch):
        return loss(model, batch) * float("nan")

    assert measured(Training(make, data, wild, 1))["status"] == "not_finite"
    columns = measured(MINE, solver="rk5")
    assert (columns["status"], columns.get("curves")) == ("failed", None)
    assert "rk4" in columns["reason"]
    assert measured(Training(make, [], loss, 1))["reason"].startswith("InputError: the data of the training")
    plain = measured(Training(lambda: nn.Linear(1, 1), data, loss, 1))
    assert plain["status"] == "ok"
    assert plain["nfe"] is None
    assert set(plain["curves"]) == {"seconds", "loss"}


class Once:
    """Batches that can be gone through once alone, which does not show."""

    def __init__(self, batches):
        self.batches = iter(batches)

    def __iter__(self):
        return self.batches


def test_batches_that_can_be_gone_through_once_alone_are_refused():
    batches = list(data(0))
    for make_once, kind in ((iter, "list_iterator"), (lambda x: (b for b in x), "generator"), (zip, "zip")):
        columns = measured(Training(make, lambda seed, make_once=make_once: make_once(batches), loss, 5, name="mine"))
        assert columns["status"] == "failed"
        assert columns["reason"] == (
            "InputError: data(seed) of the training 'mine' must return batches that can be gone through again and "
            f"again, once an epoch, got {kind}. Return a DataLoader or a list"
        )
    columns = measured(Training(make, lambda seed: Once(batches), loss, 5))
    assert columns["status"] == "failed"
    assert "have no batch in epoch 2 of 5" in columns["reason"]
    columns = measured(Training(make, lambda seed: batches, loss, 5))
    assert columns["status"] == "ok"
    assert len(columns["curves"]["loss"]) == 5 * len(batches)


def test_a_training_draws_no_random_number_when_it_is_made():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    Training(make, DataLoader([0.0, 1.0], shuffle=True), loss, 1)
    assert torch.rand(1) == expected


def test_a_long_training_has_a_curve_of_some_points():
    x = torch.ones(1, 1)
    columns = measured(Training(lambda: nn.Linear(1, 1), [(x, x)], loss, 1000))
    assert len(columns["curves"]["loss"]) == len(columns["curves"]["seconds"]) == 200


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="epochs"):
        Training(make, data, loss, 0)
    with pytest.raises(InputError, match="loss of a training must be callable"):
        Training(make, data, None, 1)
    with pytest.raises(InputError, match="gone through again"):
        Training(make, iter([1]), loss, 1)
    with pytest.raises(StudyError, match="names no contenders"):
        default_contenders(MINE)


@pytest.mark.slow
def test_annuli_runs_as_a_study():
    training = annuli(points=250, epochs=2, width=8)
    contenders = [c for c in default_contenders(training) if c.options["sensitivity"] == "discrete"]
    assert [c.options["model"] for c in contenders] == ["anode", "node"]
    contenders = [Contender("pynode", {**c.options, "engine": "torch", "rtol": 1e-3}) for c in contenders]
    rows = Study("annuli", [training], contenders, passes=2).run(progress=False).rows
    assert [row["status"] for row in rows] == ["ok"] * 4
    assert sorted((row["options"]["model"], row["seed"]) for row in rows) == [
        ("anode", 0),
        ("anode", 1),
        ("node", 0),
        ("node", 1),
    ]
    assert all(0 < row["test_error"] < 2 for row in rows)
    assert all(len(row["curves"]["loss"]) == 4 for row in rows)
