import math

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal

from pynode.errors import InputError
from pynode.models import CNF, FFJORD
from pynode.models import _ffjord as module

TIGHT = {"rtol": 1e-8, "atol": 1e-8}


def points(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def flow(*args, **keywords):
    torch.manual_seed(0)
    return FFJORD(*args, hidden=(8,), **{**TIGHT, **keywords}).double()


@pytest.mark.parametrize("layer", ["concatsquash", "concat", "gated"])
@pytest.mark.parametrize("context", [0, 3])
def test_determinant_is_that_of_the_map(layer, context):
    model = flow(2, layer=layer, blocks=2, context=context).eval()
    x = points(4, 2)
    c = points(4, context) if context else None
    z, log_det = model.transform(x, c)
    for i in range(4):
        ci = None if c is None else c[i : i + 1]
        jacobian = torch.autograd.functional.jacobian(lambda v, ci=ci: model(v[None], ci)[0], x[i])
        assert log_det[i].item() == pytest.approx(torch.linalg.slogdet(jacobian).logabsdet.item(), abs=1e-5)
    torch.testing.assert_close(model.inverse(z, c), x, atol=1e-6, rtol=0)


@pytest.mark.parametrize("layer", ["concatsquash", "gated", "concat"])
def test_time_enters_every_layer(layer):
    field = flow(2, layer=layer).blocks[0].field
    z = points(3, 2)
    early, late = (field(torch.tensor(t, dtype=torch.float64), z) for t in (0.0, 1.0))
    assert (early - late).abs().min() > 1e-4


def test_blocks_follow_one_another():
    model, x = flow(2, blocks=3).eval(), points(5, 2)
    z, log_det = x, 0
    for block in model.blocks:
        assert isinstance(block, CNF)
        z, more, _ = block.eval()._map(z, None, False, True, "exact")
        log_det = log_det + more
    found = model.transform(x)
    torch.testing.assert_close(found[0], z)
    torch.testing.assert_close(found[1], log_det)
    assert model.stats.nfe == sum(block.stats.nfe for block in model.blocks)


def test_trace_is_estimated_in_training_and_exact_in_evaluation():
    model, x = flow(2), points(5, 2)
    many = x.repeat(20, 1)  # of five points the signs drawn are the same once in some thirty times
    assert not torch.equal(model.log_prob(many), model.log_prob(many))
    model.eval()
    assert torch.equal(model.log_prob(x), model.log_prob(x))
    torch.testing.assert_close(
        model.train().log_prob(x.repeat(2000, 1)).reshape(2000, 5).mean(0), model.eval().log_prob(x), atol=0.05, rtol=0
    )
    exact = flow(2, trace="exact")
    torch.testing.assert_close(exact.log_prob(x), exact.eval().log_prob(x))


def test_regularisers_of_the_blocks_add_up():
    model, x = flow(2, blocks=2, kinetic=0.1, jacobian=0.2), points(5, 2)
    loss = model.loss(x)
    parts = [block.regularisation for block in model.blocks]
    for name in ("kinetic", "jacobian"):
        torch.testing.assert_close(model.regularisation[name], sum(part[name] for part in parts))
    expected = 0.1 * model.regularisation["kinetic"] + 0.2 * model.regularisation["jacobian"]
    torch.testing.assert_close(model.penalty(), expected)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_density_integrates_to_one(engine):
    """Of a flow trained for a few steps, on a grid."""
    torch.manual_seed(0)
    model = FFJORD(2, hidden=(16,), rtol=1e-5, atol=1e-5, engine=engine)
    optimizer = torch.optim.Adam(model.parameters(), 2e-2)
    for _ in range(40):
        x = torch.randn(128, 2) * 0.3 + torch.tensor([1.5, 0.0]) * torch.randint(0, 2, (128, 1)).mul(2).sub(1)
        optimizer.zero_grad()
        loss = model.loss(x)
        loss.backward()
        optimizer.step()
    assert loss.item() < 2.3
    axis = torch.linspace(-6, 6, 121)
    with torch.no_grad():
        density = model.eval().log_prob(torch.cartesian_prod(axis, axis)).exp()
    assert density.double().sum().item() * 0.1**2 == pytest.approx(1.0, abs=1e-3)


def test_base_in_the_dtype_of_the_flow():
    assert flow(2).log_prob(points(3, 2)).dtype == torch.float64
    assert flow(2).sample(3).dtype == torch.float64
    assert FFJORD(2).sample(3).dtype == torch.float32
    base = Independent(Normal(torch.full((2,), 4.0), torch.ones(2)), 1)
    assert (flow(2, base=base).sample(500).mean(0) - flow(2).sample(500).mean(0) > 2).all()


# ---- images -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scales", [1, 2, 3])
def test_scales_are_invertible_with_the_maps_determinant(scales):
    model = flow((1, 4, 4), scales=scales, trace="exact")
    x = points(2, 1, 4, 4)
    z, log_det = model.transform(x)
    assert z.shape == x.shape
    jacobian = torch.autograd.functional.jacobian(lambda v: model(v[None])[0].flatten(), x[0]).reshape(16, 16)
    assert log_det[0].item() == pytest.approx(torch.linalg.slogdet(jacobian).logabsdet.item(), abs=1e-5)
    torch.testing.assert_close(model.inverse(z), x, atol=1e-6, rtol=0)
    assert len(model.blocks) == scales
    widths = [block.field[0].layer.in_channels for block in model.blocks]
    assert widths == [1, 2, 4][:scales]


def test_scales_without_flows_only_reorder():
    """What leaves early comes first, and a sample's entries are all there."""
    x = torch.arange(2 * 16.0).reshape(2, 1, 4, 4)
    z = module._into_scales(x, [[], [], []], lambda z, blocks: z)
    assert z.shape == x.shape
    assert torch.equal(z.flatten(1).sort(1).values, x.flatten(1))
    assert torch.equal(module._out_of_scales(z, [[], [], []], lambda z, blocks: z), x)
    first = z.flatten(1)[0, :8]  # the lower half of each 2 × 2 patch
    assert sorted(first.tolist()) == [4.0, 5.0, 6.0, 7.0, 12.0, 13.0, 14.0, 15.0]


def test_images_on_a_context():
    model = flow((1, 4, 4), scales=2, context=10)
    labels = nn.functional.one_hot(torch.tensor([3, 7]), 10).double()
    assert model.loss(points(2, 1, 4, 4), labels).isfinite()
    assert model.sample(2, labels).shape == (2, 1, 4, 4)


@pytest.mark.julia
@pytest.mark.slow
def test_engines_agree_on_images():
    x = points(2, 1, 4, 4)
    found = {}
    for engine in ("torch", "julia"):
        model = flow((1, 4, 4), scales=2, engine=engine, kinetic=0.1, jacobian=0.1)
        torch.manual_seed(1)
        loss = model.loss(x)
        found[engine] = (loss, torch.autograd.grad(loss, list(model.parameters())))
    torch.testing.assert_close(*(f[0] for f in found.values()), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(*(f[1] for f in found.values()), atol=1e-5, rtol=1e-5)


# ---- refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        ((0,), {}, "dim must be a positive whole number or"),
        (((1, 8),), {}, r"dim must be a positive whole number or \(channels, height, width\), got \(1, 8\)"),
        ((2,), {"layer": "squash"}, "unknown layer 'squash': expected one of 'concatsquash'"),
        ((2,), {"blocks": 0}, "blocks must be a positive whole number, got 0"),
        ((2,), {"hidden": (8, 0.5)}, r"each width of hidden must be a positive whole number, got 0\.5"),
        ((2,), {"scales": 2}, "halves an image 1 times"),
        (((1, 6, 8),), {"scales": 3}, "multiples of 4, got dim"),
        ((2,), {"scales": 0}, "scales must be a positive whole number, got 0"),
        ((2,), {"trace": "none"}, "unknown trace 'none'"),
        (((1, 4, 4),), {"layer": "concat", "context": 2}, "takes no context for images"),
        (
            (3,),
            {"base": Independent(Normal(torch.zeros(2), 1.0), 1)},
            r"events of shape \(3,\), as dim says, got \(2,\)",
        ),
        ((2,), {"control": True}, "unknown solver keyword 'control'"),
    ],
)
def test_arguments_that_are_no_use(arguments, keywords, message):
    with pytest.raises(InputError, match=message):
        FFJORD(*arguments, **keywords)


def test_wrong_event_shape():
    with pytest.raises(InputError, match=r"x must have shape \(batch, 1, 4, 4\), .* got \(2, 16\)"):
        flow((1, 4, 4)).log_prob(points(2, 16))
    assert math.isfinite(flow((1, 4, 4)).loss(points(1, 1, 4, 4)).item())


def test_scores_of_each_sample_by_vmap():
    model = flow(2, trace="exact", engine="torch", solver="rk4", dt=0.25).eval()
    x = points(3, 2)
    found = torch.vmap(torch.func.grad(lambda v: model.log_prob(v[None])[0]))(x)
    x.requires_grad_()
    (expected,) = torch.autograd.grad(model.log_prob(x).sum(), x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("blocks", [1, 2])
def test_samples_whose_solve_fails(blocks):
    """Their NaN was refused by the next block, or by the base, and so were all other samples."""
    torch.manual_seed(0)
    keywords = {"blocks": blocks, "trace": "exact", "engine": "torch", "batching": "independent", "rtol": 1e-5}
    model, usual = FFJORD(2, **keywords, throw=False, max_steps=5), FFJORD(2, **keywords)
    with torch.no_grad():
        model.blocks[0].field[0].layer.weight.mul_(20)
    usual.load_state_dict(model.state_dict())
    x = torch.tensor([[0.01, 0.02], [3.0, -5.0], [20.0, 9.0]])
    found, expected = model.log_prob(x), usual.log_prob(x)
    assert found.isnan().tolist() == [True, False, False]
    torch.testing.assert_close(found[1:], expected[1:])
    assert model.log_prob(x[:1]).isnan().all()
    assert model.log_prob(x[:0]).shape == (0,)
    torch.testing.assert_close(model(x)[1:], usual(x)[1:])
