import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal, TransformedDistribution

from pynode.errors import FieldError, InputError, TraceError
from pynode.models import CNF, FFJORD
from pynode.nn import ConcatSquash, TimeConcat, TimeSequential

on_every_engine = pytest.mark.usefixtures("engine")

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
A = torch.tensor([[0.3, -0.8], [0.5, -0.2]], dtype=torch.float64)


class Affine(nn.Module):
    """ż = z Aᵀ + b."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(A.clone())
        self.offset = nn.Parameter(torch.tensor([0.4, -0.1], dtype=torch.float64))

    def forward(self, t, z):
        return z @ self.matrix.T + self.offset


class WithDivergence(Affine):
    def __init__(self):
        super().__init__()
        self.asked = 0

    def divergence(self, t, z):
        self.asked += 1
        return torch.trace(self.matrix).expand(z.shape[0])


class OneHidden(nn.Module):
    """ż = U tanh(W z + b + c t), whose trace is Σ u_k·w_k (1 - tanh²)."""

    def __init__(self, dim=2, width=6):
        super().__init__()
        self.net = TimeSequential(TimeConcat(nn.Linear(dim + 1, width)), nn.Tanh(), nn.Linear(width, dim)).double()
        self.dim = dim

    def forward(self, t, z):
        return self.net(t, z)

    def exact(self, t, z):
        inner = self.net[0](t, z)
        w, u = self.net[0].layer.weight[:, : self.dim], self.net[2].weight
        return (1 - torch.tanh(inner) ** 2) @ (w * u.T).sum(1)


def standard(*shape):
    zeros = torch.zeros(shape, dtype=torch.float64)
    return Independent(Normal(zeros, torch.ones_like(zeros)), len(shape))


def points(n=5, features=2):
    return torch.randn(n, features, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


# ---- the density ------------------------------------------------------------------------------------


@on_every_engine
@pytest.mark.parametrize("t", [(0.0, 1.5), (1.0, -0.5)])
def test_density_of_an_affine_field_is_that_of_a_normal_distribution(t):
    """z(t₁) = M x + m is standard normal, so x is normal with mean -M⁻¹ m and covariance (Mᵀ M)⁻¹."""
    field, x = Affine(), points()
    span = t[1] - t[0]
    m = torch.matrix_exp(span * A)
    shift = torch.linalg.solve(A, (m - torch.eye(2, dtype=A.dtype)) @ field.offset.detach())
    exact = MultivariateNormal(-torch.linalg.solve(m, shift), precision_matrix=m.T @ m)
    flow = CNF(field, standard(2), t=t, **TIGHT)
    torch.testing.assert_close(flow.log_prob(x), exact.log_prob(x), atol=1e-6, rtol=0)
    z, log_det = flow.transform(x)
    torch.testing.assert_close(z, x @ m.T + shift, atol=1e-6, rtol=0)
    torch.testing.assert_close(log_det, torch.full((5,), span * 0.1, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dim", [1, 2, 4, 5])  # rows one by one, and in one product of copies
def test_exact_trace_is_the_analytic_one(dim, engine):
    if engine == "julia" and dim in (1, 4):
        pytest.skip("the same code as 2, and a minute's compilation")
    field = OneHidden(dim)
    x = points(features=dim)
    given = OneHidden(dim)
    given.load_state_dict(field.state_dict())
    given.divergence = given.exact
    _, by_rows = CNF(field, standard(dim), **TIGHT).transform(x)
    _, analytic = CNF(given, standard(dim), **TIGHT).transform(x)
    torch.testing.assert_close(by_rows, analytic, atol=1e-7, rtol=0)
    assert by_rows.abs().min() > 1e-3


def test_a_field_with_a_divergence_is_asked_for_it():
    field = WithDivergence()
    _, log_det = CNF(field, standard(2), **TIGHT).transform(points())
    assert field.asked > 0
    torch.testing.assert_close(log_det, torch.full((5,), 0.1, dtype=torch.float64), atol=1e-6, rtol=0)
    before = field.asked
    CNF(field, standard(2), trace="hutchinson").log_prob(points())
    assert field.asked == before


def test_a_field_that_does_not_depend_on_the_state_keeps_volumes():
    class Drift(nn.Module):
        def forward(self, t, z):
            return torch.ones_like(z) * t

    z, log_det = CNF(Drift(), standard(2), **TIGHT).transform(points())
    torch.testing.assert_close(z, points() + 0.5)
    assert not log_det.any()


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
def test_hutchinsons_estimate_is_unbiased(noise):
    """Over 4000 draws the mean lies within 4.5 standard errors of the exact trace: the field is linear, so that
    the log-determinant is linear in the estimate."""
    field, n = Affine(), 4000
    x = points(1).expand(n, 2)
    _, estimates = CNF(field, standard(2), trace="hutchinson", noise=noise, rtol=1e-6).transform(x)
    error = estimates.std() / math.sqrt(n)
    assert estimates.std() > 0.1
    assert (estimates.mean() - 0.1).abs() < 4.5 * error


def test_hutchinsons_estimate_of_the_frobenius_norm_is_unbiased():
    n = 4000
    x = points(1).expand(n, 2)
    flow = CNF(Affine(), standard(2), trace="hutchinson", jacobian=1.0, rtol=1e-6)
    flow.transform(x)
    # Rademacher: |Aᵀε|² = ‖A‖²_F ± 2 a, a = Σ_j A_1j A_2j
    spread = 2 * (A[0] * A[1]).sum().abs() / math.sqrt(n)
    assert (flow.regularisation["jacobian"] - A.square().sum()).abs() < 4.5 * spread


def test_noise_is_drawn_once_for_each_solve():
    drawn = []

    class Watched(Affine):
        def forward(self, t, z):
            drawn.append(torch.get_rng_state())
            return super().forward(t, z)

    flow = CNF(Watched(), standard(2), trace="hutchinson")
    first = flow.transform(points())[1]
    assert len(drawn) > 6
    assert all(torch.equal(state, drawn[0]) for state in drawn)
    assert not torch.equal(first, flow.transform(points())[1])


@on_every_engine
def test_forward_then_inverse_returns_the_data():
    for tolerance in (1e-4, 1e-8):
        flow = CNF(OneHidden(), standard(2), rtol=tolerance, atol=tolerance)
        x = points()
        torch.testing.assert_close(flow.inverse(flow(x)), x, atol=10 * tolerance, rtol=10 * tolerance)


def test_density_integrates_to_one():
    """Of a flow far from the base, on a grid."""
    field = OneHidden(width=16)
    with torch.no_grad():
        field.net[2].weight *= 4
    flow = CNF(field, standard(2), rtol=1e-6)
    axis = torch.linspace(-9, 9, 181, dtype=torch.float64)
    with torch.no_grad():
        density = flow.log_prob(torch.cartesian_prod(axis, axis)).exp()
    assert (density - standard(2).log_prob(torch.cartesian_prod(axis, axis)).exp()).abs().max() > 0.05
    assert density.sum().item() * 0.1**2 == pytest.approx(1.0, abs=1e-3)


def test_samples_have_the_density():
    """Of the affine field: mean and covariance of 20000 samples."""
    flow = CNF(Affine(), standard(2), rtol=1e-6)
    m = torch.matrix_exp(A)
    shift = torch.linalg.solve(A, (m - torch.eye(2, dtype=A.dtype)) @ flow.field.offset.detach())
    x = flow.sample(20000)
    assert x.shape == (20000, 2)
    assert not x.requires_grad
    torch.testing.assert_close(x.mean(0), -torch.linalg.solve(m, shift), atol=0.05, rtol=0)
    torch.testing.assert_close(x.T.cov(), torch.linalg.inv(m.T @ m), atol=0.1, rtol=0)


def test_trajectory_passes_through_data_and_base():
    flow, x = CNF(Affine(), standard(2), **TIGHT), points()
    t = torch.linspace(0, 1, 5)
    there = flow.trajectory(x, t)
    assert there.shape == (5, 5, 2)
    torch.testing.assert_close(there[-1], flow(x), atol=1e-7, rtol=0)
    back = flow.trajectory(there[-1], t.flip(0), reverse=True)
    torch.testing.assert_close(back, there.flip(0), atol=1e-7, rtol=0)


# ---- regularisers -----------------------------------------------------------------------------------


@on_every_engine
@pytest.mark.parametrize("t", [(0.0, 1.0), (1.0, 0.0)])
def test_regularisers_are_the_integrals(t):
    """ż = a z: ∫ |f|² = a² |x|² (e^{2a} - 1) / 2a over [0, 1], ∫ ‖∂f/∂z‖² = 2 a²; both positive also backwards."""
    a = 0.6
    field = nn.Linear(2, 2, bias=False).double()
    with torch.no_grad():
        field.weight.copy_(a * torch.eye(2, dtype=torch.float64))
    x = points()
    flow = CNF(TimeSequential(field), standard(2), kinetic=0.5, jacobian=0.25, t=t, **TIGHT)
    assert flow.regularisation == {}
    b = a if t[1] > t[0] else -a  # backwards the same path is one of rate -a
    kinetic = a * a * x.square().sum(1).mean() * (math.exp(2 * b) - 1) / (2 * b)
    loss = flow.loss(x)
    assert flow.regularisation["kinetic"].item() == pytest.approx(kinetic.item(), abs=1e-7)
    assert flow.regularisation["jacobian"].item() == pytest.approx(2 * a * a, abs=1e-7)
    bare = -CNF(flow.field, standard(2), t=t, **TIGHT).log_prob(x).mean()
    assert loss.item() == pytest.approx((bare + 0.5 * kinetic + 0.25 * 2 * a * a).item(), abs=1e-7)


def test_only_what_has_a_weight_is_integrated():
    flow = CNF(Affine(), standard(2), kinetic=0.1)
    flow.log_prob(points())
    assert set(flow.regularisation) == {"kinetic"}
    flow.sample(2)
    assert flow.regularisation == {}


def losses_and_gradients(trace, **keywords):
    torch.manual_seed(0)
    field = OneHidden(width=4)
    flow = CNF(field, standard(2), trace=trace, kinetic=0.3, jacobian=0.2, rtol=1e-7, atol=1e-7, **keywords)
    x = points(3).requires_grad_()
    torch.manual_seed(1)
    loss = flow.loss(x)
    return loss, torch.autograd.grad(loss, [x, *flow.parameters()])


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_gradient_of_the_regularised_likelihood(trace, engine):
    torch.manual_seed(0)
    field = OneHidden(width=3)
    flow = CNF(field, standard(2), trace=trace, kinetic=0.3, jacobian=0.2, solver="rk4", dt=0.25, engine=engine)
    names = [n for n, _ in field.named_parameters()]

    def loss(x, *parameters):
        torch.manual_seed(1)  # the same noise at each call
        for name, p in zip(names, parameters, strict=True):
            owner, _, last = name.rpartition(".")
            field.get_submodule(owner)._parameters[last] = p
        return flow.loss(x)

    inputs = [points(3).requires_grad_(), *(p.detach().clone().requires_grad_() for p in field.parameters())]
    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.julia
@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_engines_agree(trace):
    there = {engine: losses_and_gradients(trace, engine=engine) for engine in ("torch", "julia")}
    torch.testing.assert_close(*(there[e][0] for e in there), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(*(there[e][1] for e in there), atol=1e-5, rtol=1e-5)


@pytest.mark.julia
@pytest.mark.slow
def test_continuous_adjoint_on_julia_gives_the_discrete_ones_gradient():
    there = {s: losses_and_gradients("hutchinson", engine="julia", sensitivity=s) for s in ("discrete", "gauss")}
    torch.testing.assert_close(*(there[s][1] for s in there), atol=1e-5, rtol=1e-5)


# ---- conditions -------------------------------------------------------------------------------------


def conditioned():
    torch.manual_seed(0)
    return TimeSequential(ConcatSquash(nn.Linear(2, 8), 3), nn.Tanh(), nn.Linear(8, 2)).double()


def test_each_context_has_its_density():
    flow = CNF(conditioned(), standard(2), **TIGHT)
    x, contexts = points(4), torch.eye(3, dtype=torch.float64)[[0, 1, 2, 1]]
    together = flow.log_prob(x, contexts)
    for i in range(4):
        torch.testing.assert_close(flow.log_prob(x[i : i + 1], contexts[i : i + 1]), together[i : i + 1])
    assert (flow.log_prob(x, contexts[:1]) - together)[1:].abs().min() > 1e-3
    assert flow.sample(6, contexts[:1]).shape == (6, 2)


def test_a_gradient_reaches_the_context():
    context = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 1]].requires_grad_()
    CNF(conditioned(), standard(2)).loss(points(4), context).backward()
    assert (context.grad.abs() > 0).all()


def test_bases_by_context():
    """N bases: with a field that does nothing the flow is the base of each context."""

    class Still(nn.Module):
        def forward(self, t, z, context):
            return torch.zeros_like(z)

    class Bases(nn.Module):
        def __init__(self):
            super().__init__()
            self.means = nn.Parameter(torch.tensor([[0.0, 3.0], [5.0, 0.0]], dtype=torch.float64))

        def forward(self, context):
            return Independent(Normal(context @ self.means, torch.ones_like(context)), 1)

    flow = CNF(Still(), Bases())
    context = torch.eye(2, dtype=torch.float64)
    at_means = flow.log_prob(flow.base.means.detach(), context)
    torch.testing.assert_close(at_means, torch.full((2,), -math.log(2 * math.pi), dtype=torch.float64))
    x = flow.sample(4000, context.repeat_interleave(2000, 0))
    torch.testing.assert_close(x[2000:].mean(0), flow.base.means[1].detach(), atol=0.1, rtol=0)
    assert [name for name, _ in flow.named_parameters()] == ["base.means"]


# ---- torch.distributions ----------------------------------------------------------------------------


def test_transformed_distribution_is_the_flow():
    flow, x = CNF(OneHidden(), standard(2), **TIGHT), points(6)
    density = TransformedDistribution(standard(2), [flow.as_transform()])
    assert density.event_shape == (2,)
    torch.testing.assert_close(density.log_prob(x), flow.log_prob(x), atol=1e-7, rtol=0)
    torch.testing.assert_close(density.log_prob(x.reshape(2, 3, 2)), flow.log_prob(x).reshape(2, 3), atol=1e-7, rtol=0)
    torch.testing.assert_close(density.log_prob(x[0]), flow.log_prob(x)[0], atol=1e-7, rtol=0)
    samples = density.rsample((4,))
    assert samples.requires_grad
    torch.testing.assert_close(density.log_prob(samples), flow.log_prob(samples), atol=1e-6, rtol=0)


def test_transformed_distribution_of_the_base_that_ffjord_makes():
    torch.manual_seed(0)
    flow, x = FFJORD(2, hidden=(8,), engine="torch", rtol=1e-8, atol=1e-8).double().eval(), points(6)
    density = TransformedDistribution(flow.base, [flow.as_transform()])
    torch.testing.assert_close(density.log_prob(x), flow.log_prob(x), atol=1e-6, rtol=0)
    assert density.rsample((3, 4)).shape == (3, 4, 2)
    assert density.sample().dtype == torch.float64
    exact = Independent(Normal(torch.zeros(2, dtype=x.dtype), torch.ones(2, dtype=x.dtype)), 1)
    assert (flow.base.event_shape, flow.base.batch_shape) == (exact.event_shape, exact.batch_shape)
    torch.testing.assert_close(flow.base.log_prob(x), exact.log_prob(x))
    torch.testing.assert_close(flow.base.entropy(), exact.entropy())
    assert flow.base.expand((5,)).sample().shape == (5, 2)
    for name in ("mean", "mode", "variance", "stddev"):
        torch.testing.assert_close(getattr(flow.base, name), getattr(exact, name))


def test_transform_obeys_its_protocol():
    flow, z = CNF(OneHidden(), standard(2), **TIGHT), points(3)
    transform = flow.as_transform()
    x = transform(z)
    torch.testing.assert_close(x, flow.inverse(z), atol=1e-7, rtol=0)
    solves = flow.stats
    log_det = transform.log_abs_det_jacobian(z, x)
    assert flow.stats is solves, "the determinant comes with the value"
    torch.testing.assert_close(log_det, -flow.transform(x)[1], atol=1e-7, rtol=0)
    jacobian = torch.autograd.functional.jacobian(lambda v: flow.inverse(v[None])[0], z[0])
    assert log_det[0].item() == pytest.approx(torch.linalg.slogdet(jacobian).logabsdet.item(), abs=1e-6)
    assert transform.inv(x) is z
    torch.testing.assert_close(transform.inv(x.clone()), z, atol=1e-7, rtol=0)
    torch.testing.assert_close(transform.log_abs_det_jacobian(z.clone(), x), log_det)


# ---- a module ---------------------------------------------------------------------------------------


def test_state_dict_is_the_fields_and_copies_work():
    flow = CNF(OneHidden(), standard(2), kinetic=0.1)
    flow.loss(points()).backward()
    assert all(name.startswith("field.") for name in flow.state_dict())
    for twin in (copy.deepcopy(flow), pickle.loads(pickle.dumps(CNF(Affine(), standard(2))))):
        assert twin.regularisation == {}
        assert twin.log_prob(points()).shape == (5,)


def test_one_sample_and_none():
    flow = CNF(OneHidden(), standard(2))
    x = points()
    torch.testing.assert_close(flow.log_prob(x[:1]), flow.log_prob(x)[:1], atol=1e-3, rtol=0)
    assert flow.log_prob(x[:0]).shape == (0,)
    assert flow.sample(0).shape == (0, 2)
    with pytest.raises(InputError, match="needs at least one, got an empty batch"):
        flow.loss(x[:0])


# ---- refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 3), (5,), (2,), (2, 5, 2)])
def test_wrong_event_shape(shape):
    flow = CNF(Affine(), standard(2))
    with pytest.raises(InputError, match=r"x must have shape \(batch, 2\), one event of the density per row, got"):
        flow.log_prob(torch.zeros(shape, dtype=torch.float64))
    with pytest.raises(InputError, match=r"z must have shape \(batch, 2\)"):
        flow.inverse(torch.zeros(shape, dtype=torch.float64))


def test_data_that_is_not_finite_or_no_number():
    flow = CNF(Affine(), standard(2))
    x = points()
    x[1, 0] = math.nan
    with pytest.raises(InputError, match="x must be finite, got 1 of 10 entries"):
        flow.log_prob(x)
    with pytest.raises(InputError, match=r"x must be a floating-point tensor .* got torch.int64"):
        flow.log_prob(torch.zeros(3, 2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Dropout(0.5), "draws random numbers"),
        (nn.RReLU(), "draws random numbers"),
        (nn.BatchNorm1d(8), r"layer 1, BatchNorm1d, is in training mode.*Call \.eval\(\) on that layer"),
    ],
)
def test_layers_that_are_no_function_of_a_sample(layer, message):
    field = TimeSequential(nn.Linear(2, 8), layer, nn.Linear(8, 2)).double()
    flow = CNF(field, standard(2))
    with pytest.raises(TraceError, match=message):
        flow.log_prob(points())
    layer.eval()
    assert flow.log_prob(points()).isfinite().all()


def test_a_field_of_another_width():
    with pytest.raises(FieldError, match=r"expected \(5, 2\), got \(5, 3\)"):
        CNF(TimeSequential(nn.Linear(2, 3)).double(), standard(2)).log_prob(points())


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"trace": "exakt"}, "unknown trace 'exakt': expected one of 'exact', 'hutchinson'"),
        ({"noise": "normal"}, "unknown noise 'normal': expected one of"),
        ({"kinetic": -1.0}, "kinetic is the weight of a regulariser, a finite number of at least 0, got -1.0"),
        ({"jacobian": math.nan}, "jacobian is the weight of a regulariser"),
        ({"t": (1.0, 1.0)}, "t must be two different finite numbers"),
        ({"rtoll": 1e-3}, "unknown solver keyword 'rtoll': expected one of 'rtol'"),
    ],
)
def test_arguments_that_are_no_use(keywords, message):
    with pytest.raises(InputError, match=message):
        CNF(Affine(), standard(2), **keywords)


def test_bases_that_are_none():
    with pytest.raises(InputError, match=r"base must be a torch.distributions.Distribution or a callable .* got int"):
        CNF(Affine(), 3)
    with pytest.raises(InputError, match=r"got batch shape \(2,\) and event shape \(\).*Independent\(base, 1\)"):
        CNF(Affine(), Normal(torch.zeros(2), torch.ones(2)))
    with pytest.raises(
        InputError, match=r"base\(context\) must return a torch.distributions.Distribution, got NoneType"
    ):
        CNF(Affine(), lambda context: None).log_prob(points())
    with pytest.raises(InputError, match=r"batch shape \(\) or \(5,\).*got batch shape \(3,\)"):
        CNF(Affine(), lambda context: standard(2).expand((3,))).log_prob(points())


def test_contexts_and_counts_that_do_not_fit():
    flow = CNF(conditioned(), standard(2))
    with pytest.raises(InputError, match=r"one row per sample, \(5, …\), or one row for all, \(1, …\), got \(4, 3\)"):
        flow.log_prob(points(), torch.zeros(4, 3, dtype=torch.float64))
    with pytest.raises(InputError, match=r"n must be a whole number of samples, got 1\.5"):
        flow.sample(1.5)


@pytest.mark.parametrize("t", [[0.5, 1.0], [0.0], [[0.0, 1.0]]])
def test_trajectories_that_start_elsewhere(t):
    with pytest.raises(InputError, match="the first of them 0, where x lives"):
        CNF(Affine(), standard(2)).trajectory(points(), torch.tensor(t))


def test_trajectory_refuses_unsorted_times_and_times_outside_of_the_span():
    with pytest.raises(InputError, match=r"within the flow's span, \(0\.0, 1\.0\), got \[0\.0, 1\.5\]"):
        CNF(Affine(), standard(2)).trajectory(points(), torch.tensor([0.0, 1.5]))
    with pytest.raises(InputError, match="strictly monotone"):
        CNF(Affine(), standard(2)).trajectory(points(), torch.tensor([0.0, 0.7, 0.4]))


class Mixing(nn.Module):
    """Subtracts the mean over the batch, by a weight."""

    def __init__(self, weight):
        super().__init__()
        self.layer = nn.Linear(2, 2).double()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64))

    def forward(self, t, z):
        h = torch.tanh(self.layer(z))
        return h - self.weight * h.mean(0, keepdim=True)


@on_every_engine
@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_a_field_that_mixes_samples_has_no_density(trace, weight):
    """Also where a weight of zero hides it at first: the log-density was that of something else, without a word."""
    flow = CNF(Mixing(weight), standard(2), trace=trace)
    x = torch.randn(5, 2, dtype=torch.float64)
    with pytest.raises(FieldError, match="the field mixes samples"):
        flow.log_prob(x)
    assert flow.trajectory(x, torch.tensor([0.0, 1.0])).shape == (2, 5, 2)  # where there is no density


@on_every_engine
def test_a_field_that_holds_numbers_of_each_sample():
    """And can therefore be evaluated for this batch alone."""

    class Held(nn.Module):
        def __init__(self, shift):
            super().__init__()
            self.shift = shift

        def forward(self, t, z):
            return torch.sin(z + self.shift)

    x, shift = torch.randn(5, 2, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    found = CNF(Held(shift), standard(2), **TIGHT).log_prob(x)
    alone = [CNF(Held(shift[b : b + 1]), standard(2), **TIGHT).log_prob(x[b : b + 1]) for b in range(5)]
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-7, atol=1e-7)
