"""Neural controlled differential equations, against linear ones that are solved exactly."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call

from pynode import control
from pynode.errors import FieldError, InputError
from pynode.models import NeuralCDE

DOUBLE = torch.float64
TIGHT = {"rtol": 1e-7, "atol": 1e-9}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
slow = pytest.mark.slow
on_every_engine = pytest.mark.usefixtures("engine")


class Linearly(nn.Module):
    """F(z) = (A_0 z, A_1 z, …)."""

    def __init__(self, matrices):
        super().__init__()
        self.matrices = nn.Parameter(matrices)

    def forward(self, z):
        return torch.einsum("cij,bj->bic", self.matrices, z)


def linear_model(matrices, obs_dim, **keywords):
    hidden = matrices.shape[1]
    return NeuralCDE(
        obs_dim,
        hidden,
        hidden,
        field=Linearly(matrices),
        input_network=lambda x: torch.ones(len(x), hidden, dtype=DOUBLE) + 0 * x[:, :1],
        output_network=nn.Identity(),
        **{**TIGHT, **keywords},
    )


def series(batch=2, n=5, obs_dim=2):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, n, obs_dim, dtype=DOUBLE, generator=generator)
    t = torch.rand(batch, n, dtype=DOUBLE, generator=generator).cumsum(1)
    return x, t


@on_every_engine
@pytest.mark.parametrize("shared", [True, pytest.param(False, marks=slow)])
def test_a_linear_equation_on_a_linear_path_is_a_product_of_exponentials(shared):
    x, t = series()
    t = t[0] if shared else t
    matrices = 0.5 * torch.randn(3, 3, 3, dtype=DOUBLE)
    model = linear_model(matrices, 2, interpolation="linear")
    path = model.path(x, t)
    knots = t if shared else t[0]
    inside = knots[1:-1] if shared else knots[1:2]  # times of the first series alone
    found, along = model(path), model.trajectory(path, inside)
    stamps = t.expand(2, -1)
    steps = torch.cat([stamps.unsqueeze(-1), x], -1).diff(dim=1)
    factors = torch.linalg.matrix_exp(torch.einsum("btc,cij->btij", steps, matrices))
    z = [torch.ones(2, 3, 1, dtype=DOUBLE)]
    for factor in factors.unbind(1):
        z.append(factor @ z[-1])
    torch.testing.assert_close(found, z[-1].squeeze(-1), **CLOSE)
    for k, state in enumerate(along):
        torch.testing.assert_close(state[0], z[k + 1][0, :, 0], **CLOSE)


@on_every_engine
@pytest.mark.parametrize(
    "interpolation", ["hermite", pytest.param("linear", marks=slow), pytest.param("natural", marks=slow)]
)
def test_a_scalar_equation_depends_on_the_ends_of_the_path_alone(interpolation):
    """dz = z Σ a_i dX_i: z = exp(Σ a_i (X_i(end) - X_i(start)))."""
    x, t = series(3, 6)
    mask = torch.ones(3, 6, 2, dtype=torch.bool)
    mask[0, 4:] = False  # shorter, padded
    mask[1, 2, 0] = mask[2, 1:3, 1] = False
    a = torch.tensor([0.3, -0.4, 0.2, 0.1, -0.05], dtype=DOUBLE)
    # Tighter, as a step is off by more than its tolerance where the second derivative of the path jumps within it.
    tight = {"rtol": 1e-9, "atol": 1e-11}
    model = linear_model(a.reshape(5, 1, 1), 2, interpolation=interpolation, counts=True, **tight)
    found = model(model.path(x.masked_fill(~mask, math.nan).nan_to_num(1e6), t, mask))
    for i, last in enumerate((3, 5, 5)):
        ends = torch.cat([(t[i, last] - t[i, 0])[None], x[i, last] - x[i, 0], mask[i, 1 : last + 1].sum(0)])
        torch.testing.assert_close(found[i, 0], (a * ends).sum().exp(), atol=2e-4, rtol=0)


@on_every_engine
def test_steps_to_the_knots():
    """dz = z Σ a_i dX_i along cubics through random observations."""
    x, t = series(3, 10)
    a = torch.tensor([0.3, -0.4, 0.2], dtype=DOUBLE)
    ends = torch.cat([(t[0, -1] - t[0, 0]).expand(3, 1), x[:, -1] - x[:, 0]], 1)
    exact = (ends @ a).exp()[:, None]
    errors = []
    for stops in ({"tstops": None}, {}, {"tstops": "knots"}):
        model = linear_model(a.reshape(3, 1, 1), 2, rtol=1e-6, atol=1e-7, **stops)
        errors.append((model(model.path(x, t[0])) - exact).abs().max().item())
    over, *to = errors
    assert max(to) < min(1e-4, over / 5)


@on_every_engine
def test_a_field_that_reads_the_path():
    """dz = (x² - z) dt + 2 x dx from z = x² on: z = x² ever after, however x gets there."""
    x, t = series(3, 6, 1)
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[1, 2] = mask[2, 4:] = False

    def field(read):
        z, _, value = read.unbind(1)
        return torch.stack([value**2 - z, 2 * value], 1).unsqueeze(1)

    ends = {"input_network": lambda x: x[:, 1:] ** 2, "output_network": nn.Identity()}
    model = NeuralCDE(1, 1, 1, field=field, reads_path=True, interpolation="linear", solver="rk4", dt=0.1, **ends)
    last = torch.stack([x[0, 5], x[1, 5], x[2, 3]])
    torch.testing.assert_close(model(model.path(x, t[0], mask)), last**2, **CLOSE)


# -- the log-ODE method --------------------------------------------------------------------------------------


def nilpotent(channels):
    """Matrices whose products of three vanish: an equation on them sees a path's areas and no more."""
    generator = torch.Generator().manual_seed(3)
    matrices = torch.zeros(channels, 5, 5, dtype=DOUBLE)
    matrices[:, 0, 1:3] = torch.randn(channels, 2, dtype=DOUBLE, generator=generator)
    matrices[:, 1:3, 3:] = torch.randn(channels, 2, 2, dtype=DOUBLE, generator=generator)
    return matrices


@on_every_engine
@pytest.mark.parametrize("window", [3, pytest.param(1, marks=slow), pytest.param(10, marks=slow)])
def test_log_signatures_to_depth_two_are_exact_for_an_equation_that_is_nilpotent(window):
    x, t = series(2, 8)
    a = nilpotent(3)
    exact = linear_model(a, 2, interpolation="linear")
    pairs = [(i, j) for i in range(3) for j in range(i + 1, 3)]
    brackets = torch.stack([a[j] @ a[i] - a[i] @ a[j] for i, j in pairs])
    windowed = linear_model(torch.cat([a, brackets]), 2, window=window)
    assert windowed.channels == 6
    for times in (t[0], t):
        torch.testing.assert_close(windowed(windowed.path(x, times)), exact(exact.path(x, times)), **CLOSE)
    first = linear_model(a, 2, window=window, depth=1)
    apart = (first(first.path(x, t)) - exact(exact.path(x, t))).abs().max()
    assert (apart < 1e-5) == (window == 1)  # without areas it is not


def test_the_area_of_a_square():
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    path = control.log_signatures(torch.arange(5.0), corners, 4)
    assert path.knots.tolist() == [[0.0, 4.0]]
    assert path(torch.tensor(0.0)).tolist() == [0.0, 0.0, 0.0]
    assert path(torch.tensor(4.0)).tolist() == [0.0, 0.0, 1.0]
    assert control.log_signatures(torch.arange(5.0), corners, 2).knots.tolist() == [[0.0, 2.0, 4.0]]


def test_log_signatures_of_ragged_series_are_those_of_each():
    x, t = series(3, 9)
    lengths = (9, 4, 2)
    ragged_t, ragged_x = t.clone(), x.clone()
    for i, n in enumerate(lengths):
        ragged_t[i, n:], ragged_x[i, n:] = math.nan, math.nan
    ragged_x[0, 2, 1] = math.nan
    together = control.log_signatures(ragged_t, ragged_x, 3)
    for i, n in enumerate(lengths):
        alone = control.log_signatures(t[i, :n], ragged_x[i, :n], 3)
        at = torch.linspace(float(t[i, 0]), float(t[i, n - 1]), 7, dtype=DOUBLE)
        torch.testing.assert_close(together(at)[i], alone(at))


@pytest.mark.parametrize(("window", "depth"), [(0, 2), (True, 1), (2, 3), (2.0, 1)])
def test_windows_and_depths_that_are_refused(window, depth):
    with pytest.raises(InputError, match="depth" if depth == 3 else "window"):
        control.log_signatures(torch.arange(4.0), torch.zeros(4, 2), window, depth)


def test_values_without_channels_have_no_log_signature():
    with pytest.raises(InputError, match="unsqueeze"):
        control.log_signatures(torch.arange(4.0), torch.zeros(4), 2)


# -- gradients -----------------------------------------------------------------------------------------------


@on_every_engine
@pytest.mark.parametrize(
    "how",
    [
        pytest.param({}),
        pytest.param({"interpolation": "natural", "counts": True}, marks=slow),
        pytest.param({"interpolation": "linear"}, marks=slow),
        pytest.param({"window": 2}),
        pytest.param({"reads_path": True}, marks=slow),
    ],
    ids=["hermite", "natural", "linear", "log-ODE", "of the path"],
)
def test_gradcheck(how):
    model = NeuralCDE(2, 3, 2, width=3, solver="rk4", dt=0.5, **how).double()
    x, t = series(2, 4)
    mask = torch.ones(2, 4, 2, dtype=torch.bool)
    mask[0, 2, 1] = False
    parameters = dict(model.named_parameters())

    def outputs(x, *values):
        path = model.path(x, t[0], mask)
        return functional_call(model, dict(zip(parameters, values, strict=True)), (path,))

    assert torch.autograd.gradcheck(outputs, (x.requires_grad_(), *parameters.values()), fast_mode=True)


@on_every_engine
def test_gradients_of_adaptive_steps_are_exact():
    """The gradient of exp(Σ a_i ΔX_i) to a, and to the data."""
    x, t = series(2, 5)
    a = torch.tensor([0.3, -0.4, 0.2], dtype=DOUBLE)
    model = linear_model(a.reshape(3, 1, 1), 2, interpolation="linear")
    x.requires_grad_()
    out = model(model.path(x, t[0]))
    to_a, to_x = torch.autograd.grad(out.sum(), (model.field.matrices, x))
    ends = torch.cat([(t[0, -1] - t[0, 0]).expand(2, 1), (x[:, -1] - x[:, 0]).detach()], 1)
    value = (ends @ a).exp()
    torch.testing.assert_close(to_a.flatten(), value @ ends, **CLOSE)
    expected = torch.zeros_like(to_x)
    expected[:, -1], expected[:, 0] = value[:, None] * a[1:], -value[:, None] * a[1:]
    torch.testing.assert_close(to_x, expected, **CLOSE)


# -- the model -----------------------------------------------------------------------------------------------


def test_a_trajectory_ends_where_forward_does():
    model = NeuralCDE(2, 4, 3)
    x, t = (a.float() for a in series(3, 6))
    path = model.path(x, t[0])
    along = model.trajectory(path, t[0])
    assert along.shape == (6, 3, 3)
    assert model.stats.nfe > 0
    torch.testing.assert_close(along[-1], model(path), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(along[0], model.output_network(model.input_network(path(path.span[0]))))
    torch.testing.assert_close(model.trajectory(path, t[0, :1]), along[:1])


@on_every_engine
def test_a_trajectory_has_derivatives_to_its_times():
    """Of each output to its own time alone, also where that is the path's first one."""
    model = NeuralCDE(1, 3, 2, interpolation="linear", rtol=1e-9, atol=1e-9).double()
    x, knots = series(2, 4, 1)
    path = model.path(x, knots[0])
    t = torch.stack([knots[0, 0], knots[0, 1] + 0.01]).requires_grad_()
    out = model.trajectory(path, t).sum((1, 2))
    step = 1e-5
    moved = model.trajectory(path, t.detach() + step).sum((1, 2))
    for i in range(2):
        (found,) = torch.autograd.grad(out[i], t, retain_graph=True)
        expected = torch.zeros(2, dtype=DOUBLE)
        expected[i] = (moved[i] - out[i].detach()) / step
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_a_field_of_time():
    class OfTime(nn.Module):
        def forward(self, t, z):
            return torch.stack([2 * t + 0 * z, 0 * z], -1)

    model = NeuralCDE(1, 1, 1, field=OfTime(), input_network=lambda x: 0 * x[:, :1], output_network=nn.Identity())
    path = model.path(torch.zeros(2, 3, 1), torch.tensor([0.0, 1.0, 2.0]))
    torch.testing.assert_close(model(path), torch.full((2, 1), 4.0), atol=1e-4, rtol=0)  # ∫ 2t dt


def test_what_is_refused():
    model = NeuralCDE(2, 3, 1)
    x, t = torch.zeros(2, 4, 2), torch.arange(4.0)
    with pytest.raises(InputError, match=r"model\.path"):
        model(x)
    with pytest.raises(InputError, match="PiecewiseConstant"):
        model(control.PiecewiseConstant(t, torch.zeros(2, 4, 3)))
    with pytest.raises(InputError, match=r"\(batch, 3\), got \(2, 2\)"):
        model(control.CubicHermite(t, x))
    with pytest.raises(InputError, match="at least 2"):
        model.path(x[:, :1], t[:1])
    with pytest.raises(InputError, match="floating-point"):
        model.path(x.long(), t)
    with pytest.raises(InputError, match="interpolation"):
        NeuralCDE(2, 3, 1, interpolation="cubic")
    with pytest.raises(InputError, match="leave one of them out"):
        NeuralCDE(2, 3, 1, interpolation="linear", window=3)
    with pytest.raises(InputError, match="depth"):
        NeuralCDE(2, 3, 1, window=3, depth=3)
    with pytest.raises(InputError, match="control"):
        NeuralCDE(2, 3, 1, control=True)
    with pytest.raises(InputError, match="input_network"):
        NeuralCDE(2, 3, 1, input_network=nn.Linear(3, 2))(model.path(x, t))
    with pytest.raises(FieldError, match="matrix for each sample"):
        NeuralCDE(2, 3, 1, field=nn.Linear(3, 3))(model.path(x, t))
    with pytest.raises(InputError, match="at least one time"):
        model.trajectory(model.path(x, t), torch.zeros(0))
