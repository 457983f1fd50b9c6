import math

import pytest
import torch

from pynode.errors import InputError
from pynode.models import RNN


def rnn(**keywords):
    torch.manual_seed(0)
    return RNN(2, 6, **keywords).double()


def series(n=3, length=5):
    generator = torch.Generator().manual_seed(1)
    t = torch.rand(n, length, dtype=torch.float64, generator=generator).sort(1).values
    return torch.randn(n, length, 2, dtype=torch.float64, generator=generator), t


def test_prediction_uses_the_observations_before_it_alone():
    m, (x, t) = rnn(), series()
    one_step = m.predict(x, t, t)
    assert one_step.shape == x.shape
    changed = x.clone()
    changed[:, 3:] += 10
    torch.testing.assert_close(m.predict(changed, t, t[:, :4]), one_step[:, :4])
    changed[:, 2] += 10
    assert not torch.allclose(m.predict(changed, t, t)[:, 3], one_step[:, 3])


def test_log_prob_is_the_chain_rule_over_predictions():
    """p(x) = Π N(xᵢ; prediction from those before, σ²), each prediction asked for by itself."""
    m, (x, t) = rnn(), series()
    with torch.no_grad():  # the same σ at every step
        m.head.weight[2:] = 0
        m.head.bias[2:] = math.log(math.expm1(0.4 - 1e-3))
    first = m.head(m.gru(torch.cat([torch.zeros(3, 1, 4).double(), t[:, :1, None]], dim=2))[0])[..., :2]
    rest = [m.predict(x[:, :i], t[:, :i], t[:, i : i + 1]) for i in range(1, 5)]
    residual = x - torch.cat([first, *rest], dim=1)
    exact = (-(residual**2) / (2 * 0.16) - math.log(0.4) - 0.5 * math.log(2 * math.pi)).sum((1, 2))
    torch.testing.assert_close(m.log_prob(x, t), exact)


def test_prediction_goes_on_from_its_own():
    """Two steps ahead is one step ahead after the first prediction was observed."""
    m, (x, t) = rnn(), series()
    new = t[:, -1:] + torch.tensor([0.5, 0.8], dtype=torch.float64)
    ahead = m.predict(x, t, new)
    longer = torch.cat([x, ahead[:, :1]], dim=1)
    again = m.predict(longer, torch.cat([t, new[:, :1]], dim=1), new[:, 1:])
    torch.testing.assert_close(again, ahead[:, 1:])


def test_what_is_asked_between_observations_changes_nothing_else():
    m, (x, t) = rnn(), series()
    new = (t[:, :-1] + t[:, 1:]) / 2
    later = t[:, -1:] + 0.5
    together = m.predict(x, t, torch.cat([new, later], dim=1))
    for i in range(4):
        torch.testing.assert_close(m.predict(x, t, new[:, i : i + 1])[:, 0], together[:, i])
    torch.testing.assert_close(m.predict(x, t, later)[:, 0], together[:, -1])


def test_padding_and_masks_leave_out():
    m, (x, t) = rnn(), series()
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[0, 3:] = mask[1, 1] = False
    dirty = x.masked_fill(~mask.unsqueeze(2), math.nan)
    t[0, 3:] = t[0, 2]
    new = torch.tensor([0.3, 1.5], dtype=torch.float64)
    log_prob, later = m.log_prob(dirty, t, mask), m.predict(dirty, t, new, mask)
    for i in range(3):
        alone = x[i : i + 1, mask[i]], t[i : i + 1, mask[i]]
        torch.testing.assert_close(log_prob[i : i + 1], m.log_prob(*alone))
        torch.testing.assert_close(later[i : i + 1], m.predict(*alone, new))
    mask = mask.unsqueeze(2).repeat(1, 1, 2)
    mask[2, 2, 1] = False
    assert not torch.allclose(m.log_prob(dirty, t, mask)[2], log_prob[2])
    assert m.log_prob(dirty, t, mask).isfinite().all()


def test_gradcheck():
    m, (x, t) = rnn(), series(2, 3)
    names, parameters = zip(*m.named_parameters(), strict=True)

    class LogProb(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.m = m

        def forward(self, x):
            return self.m.log_prob(x, t)

    module = LogProb()

    def call(x, *values):
        return torch.func.functional_call(module, {f"m.{n}": v for n, v in zip(names, values, strict=True)}, (x,))

    values = tuple(p.detach().clone().requires_grad_() for p in parameters)
    assert torch.autograd.gradcheck(call, (x.requires_grad_(), *values))


def test_batch_of_none():
    x, t = series(1)
    assert rnn().log_prob(x[:0], t[:0]).shape == (0,)
    assert rnn().predict(x[:0], t[:0], t[:0]).shape == (0, 5, 2)


def test_training_learns_a_rotation():
    torch.manual_seed(0)
    t = torch.linspace(0, 3, 20)
    phase = 2 * math.pi * torch.rand(64, 1)
    x = torch.stack([torch.cos(2 * t + phase), torch.sin(2 * t + phase)], dim=2)
    m = RNN(2, 16)
    optimizer = torch.optim.Adam(m.parameters(), 1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        (-m.log_prob(x, t).mean()).backward()
        optimizer.step()
    with torch.no_grad():
        error = m.predict(x[:, :10], t[:10], t[10:13]) - x[:, 10:13]
    assert error.pow(2).mean().sqrt() < 0.4  # over seeds 0.004 to 0.18; the signal's is 0.7


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"obs_dim": 0}, "obs_dim must be a positive int, got 0"),
        ({"hidden": 0}, "hidden must be a positive int, got 0"),
    ],
)
def test_wrong_arguments(keywords, message):
    with pytest.raises(InputError, match=message):
        RNN(**{"obs_dim": 2, **keywords})


def test_wrong_series():
    m, (x, t) = rnn(), series()
    with pytest.raises(InputError, match="non-decreasing"):
        m.log_prob(x, t.flip(1))
    with pytest.raises(InputError, match="t_new must be non-decreasing"):
        m.predict(x, t, t.flip(1))
    with pytest.raises(InputError, match=r"finite where it was observed.*mask=x\.isfinite"):
        m.predict(x * math.nan, t, t)
