import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from pynode import data
from pynode.errors import InputError


def test_digits_shapes_and_range():
    train, test = data.digits(generator=torch.Generator().manual_seed(0))
    images, labels = train.tensors
    assert images.shape == (len(train), 1, 8, 8)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert (images.min().item(), images.max().item()) == (0.0, 1.0)
    assert len(train) + len(test) == 1797
    assert abs(len(test) - 0.2 * 1797) <= 5


def test_digits_are_sklearns_and_none_is_in_both_sets():
    train, test = data.digits(generator=torch.Generator().manual_seed(3))
    raw = load_digits()
    expected = sorted((*image.ravel() / 16, label) for image, label in zip(raw.images, raw.target, strict=True))
    got = sorted((*image.flatten().tolist(), label.item()) for part in (train, test) for image, label in part)
    np.testing.assert_allclose(got, expected, atol=0)


def test_digits_split_is_stratified():
    train, test = data.digits(test_fraction=0.25, generator=torch.Generator().manual_seed(1))
    n_train, n_test = (torch.bincount(part.tensors[1], minlength=10) for part in (train, test))
    assert ((n_test - 0.25 * (n_train + n_test)).abs() <= 0.5).all()


def test_digits_split_follows_the_generator():
    def first(seed):
        return data.digits(generator=torch.Generator().manual_seed(seed))[0].tensors[0]

    assert torch.equal(first(0), first(0))
    assert not torch.equal(first(0), first(1))


def test_digits_refuses_an_impossible_split():
    with pytest.raises(InputError, match=r"test_fraction must be between 0 and 1.*got 1\.5"):
        data.digits(test_fraction=1.5)


def test_cubic():
    x, y = data.cubic(5).tensors
    assert x.shape == y.shape == (5, 1)
    torch.testing.assert_close(x[:, 0], torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]))
    torch.testing.assert_close(y[:, 0], torch.tensor([-8.2, -1.1, 0.0, 1.1, 8.2]))
    with pytest.raises(InputError, match="at least 1, got 0"):
        data.cubic(0)


def test_spiral_conserves_what_the_exact_solution_does():
    """With q = Σ y⁴/4: dq/dt = Σ y³·(y³ A) = -0.1 Σ y⁶, as the rest of A is antisymmetric."""
    t, z = data.spiral(2001, t=(0.0, 5.0))
    assert t.shape == (2001,)
    assert z.shape == (2001, 1, 2)
    torch.testing.assert_close(z[0], torch.tensor([[2.0, 0.0]]))
    t, y = t.double(), z[:, 0].double()
    loss = torch.trapezoid(0.1 * (y**6).sum(1), t)
    q = (y**4).sum(1) / 4
    assert q[-1].item() == pytest.approx((q[0] - loss).item(), abs=2e-4)
    assert q[-1] < 0.5 * q[0]
    start = (y[1] - y[0]) / (t[1] - t[0])  # ẏ(0) = (8, 0) A = (-0.8, 16), up to O(step)
    torch.testing.assert_close(start, torch.tensor([-0.8, 16.0], dtype=torch.float64), atol=0.5, rtol=0)


def test_spiral_takes_a_batch_and_refuses_what_is_no_point():
    _, one = data.spiral(11, t=(0.0, 1.0), z0=((1.0, 0.5),))
    _, two = data.spiral(11, t=(0.0, 1.0), z0=((1.0, 0.5), (0.0, -2.0)))
    torch.testing.assert_close(two[:, :1], one, atol=1e-6, rtol=1e-6)
    with pytest.raises(InputError, match=r"\(batch, 2\), got \(1, 3\)"):
        data.spiral(z0=((1.0, 2.0, 3.0),))
    with pytest.raises(InputError, match="at least 2"):
        data.spiral(1)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_spirals_lie_on_the_two_curves():
    """Around (-5, 0), with ψ = 6π + 1 - φ, r ψ = 15; around (5, 0) r = 0.3 φ; both up to whole turns of the angle."""
    _, _, path, times = data.spirals(400, 30, generator=seeded()).tensors
    assert path.shape == (400, 200, 2)
    torch.testing.assert_close(times[0], torch.linspace(0, 1.2 * math.pi, 200))
    path = path.double()
    found = {}
    for name, centre, along in (("clockwise", -5.0, lambda r: 15 / r), ("counter", 5.0, lambda r: r / 0.3)):
        offset = path - torch.tensor([centre, 0.0], dtype=torch.float64)
        r = offset.norm(dim=-1)
        angle = along(r)
        predicted = torch.stack([r * angle.cos(), r * angle.sin()], dim=-1)
        found[name] = ((predicted - offset).norm(dim=-1) < 1e-4).all(1)
        passed = (angle[:, -1] - angle[:, 0])[found[name]]
        sign = -1 if name == "clockwise" else 1
        torch.testing.assert_close(passed, torch.full_like(passed, sign * 1.2 * math.pi), atol=1e-4, rtol=0)
    assert torch.equal(found["clockwise"], ~found["counter"])
    assert 150 < found["clockwise"].sum() < 250


def test_spirals_are_observed_irregularly_in_the_first_half_with_the_noise_asked_for():
    x, t, path, times = data.spirals(500, 30, 0.3, generator=seeded()).tensors
    assert x.shape == (500, 30, 2)
    assert t.shape == (500, 30)
    assert (t.diff(dim=1) > 0).all()
    assert t.max() == times[0, 99]
    assert len({tuple(row.tolist()) for row in t}) == 500  # each path has times of its own
    index = torch.searchsorted(times.contiguous(), t)
    residual = x - path.gather(1, index.unsqueeze(2).expand(-1, -1, 2))
    assert residual.std().item() == pytest.approx(0.3, rel=0.02)
    assert residual.mean().abs() < 0.01
    exact = data.spirals(3, 100, 0.0, generator=seeded()).tensors
    torch.testing.assert_close(exact[0], exact[2][:, :100], atol=1e-6, rtol=0)


def test_spirals_follow_the_generator_and_refuse_what_cannot_be():
    same, again, other = (data.spirals(5, 10, generator=seeded(s)).tensors[0] for s in (1, 1, 2))
    assert torch.equal(same, again)
    assert not torch.equal(same, other)
    for keywords, message in (
        ({"n": 0}, "n must be at least 1, got 0"),
        ({"n_obs": 101}, "n_obs must be between 1 and 100, .* got 101"),
        ({"noise": -1.0}, r"noise must be a standard deviation, .* got -1\.0"),
        (
            {"start": (2.0, 1.0)},
            r"start must be two increasing angles between 0 and 4.8 π = 15\.08, got \(2\.0, 1\.0\)",
        ),
        ({"start": (0.0, 15.1)}, r"got \(0\.0, 15\.1\)"),
    ):
        with pytest.raises(InputError, match=message):
            data.spirals(**keywords)


def test_spirals_start_where_they_are_asked_to():
    """The angle of a start is r / 0.3 around (5, 0), or 6π + 1 - 15 / r around (-5, 0)."""
    path = data.spirals(400, 30, start=(1.0, 2.0), generator=seeded()).tensors[2][:, 0].double()
    radii = [(path - torch.tensor([x, 0.0], dtype=torch.float64)).norm(dim=1) for x in (5.0, -5.0)]
    counter = radii[0] < 0.61
    angle = torch.where(counter, radii[0] / 0.3, 6 * math.pi + 1 - 15 / radii[1])
    assert 150 < counter.sum() < 250
    assert 1.0 <= angle.min() < 1.02
    assert 1.98 < angle.max() <= 2.0 + 1e-5


def test_lynx_hare():
    years, pelts = data.lynx_hare()
    assert years.tolist() == list(range(1900, 1921))
    assert pelts.shape == (21, 2)
    assert pelts.sum(0).tolist() == pytest.approx([715.7, 423.5], abs=1e-3)
    hare, lynx = pelts.T
    assert years[hare.argmax()] == 1903
    assert years[lynx.argmax()] == 1904  # the predator's peak follows the prey's


def test_reflection():
    x, y = data.reflection(200, generator=torch.Generator().manual_seed(0)).tensors
    assert x.shape == y.shape == (200, 1)
    assert torch.equal(y, -x)
    assert torch.equal(((x[:, 0] + 1) / 2 * 200).floor(), torch.arange(200.0))  # one in each part
    assert (x**2).mean().item() == pytest.approx(1 / 3, abs=2e-3)
    assert not torch.equal(x, data.reflection(200, generator=torch.Generator().manual_seed(1)).tensors[0])


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_annuli(dim):
    x, y = data.annuli(3000, (0.4, 0.8, 1.2), dim, generator=torch.Generator().manual_seed(0)).tensors
    assert x.shape == (3000, dim)
    assert y.shape == (3000, 1)
    radius, inner = x.norm(dim=1), y[:, 0] < 0
    assert set(y.flatten().tolist()) == {-1.0, 1.0}
    assert inner.sum() == 1000
    assert radius[inner].max() <= 0.4
    assert radius[~inner].min() >= 0.8 - 1e-6
    assert radius[~inner].max() <= 1.2 + 1e-6
    # Uniform in volume: half of each lies within the radius that halves it.
    for part, low, high in ((inner, 0.0, 0.4), (~inner, 0.8, 1.2)):
        half = ((low**dim + high**dim) / 2) ** (1 / dim)
        assert (radius[part] < half).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert x.mean(0).abs().max() < 0.05
    assert 0 < inner[:500].sum() < 500  # in random order


def test_a_slice_that_is_the_whole_circle():
    """It was empty: the angles are told apart but for full turns."""
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    for pair in ((0.0, 2 * math.pi), (-math.pi, math.pi), (1.0, 20.0)):
        assert data.in_slices(x, [pair]).all()
        with pytest.raises(InputError, match="leave some of the circle"):
            data.annuli(10, slices=[pair])
    assert not data.in_slices(x, [(1.0, 1.0)]).any()


def test_annuli_without_slices():
    slices = ((0.0, 1.0), (3.0, -2.0))  # the second goes over the angle π
    x, _ = data.annuli(2000, slices=slices, generator=torch.Generator().manual_seed(0)).tensors
    angle = torch.atan2(x[:, 1], x[:, 0])
    assert not data.in_slices(x, slices).any()
    assert not ((angle > 0) & (angle < 1)).any()
    assert not ((angle > 3) | (angle < -2)).any()
    assert ((angle > 1) & (angle < 3)).any()
    assert (angle < 0).any()
    full, _ = data.annuli(2000, generator=torch.Generator().manual_seed(0)).tensors
    share = data.in_slices(full, slices).float().mean().item()
    assert share == pytest.approx((1.0 + 2 * np.pi - 5.0) / (2 * np.pi), abs=0.05)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: data.reflection(0), "n must be an integer of at least 1, got 0"),
        (lambda: data.reflection(3, low=1.0, high=-1.0), "low must lie below high"),
        (lambda: data.annuli(0), "n must be an integer of at least 1, got 0"),
        (lambda: data.annuli(9, (1.0, 0.5, 2.0)), r"three radii with 0 < r1 < r2 < r3, got \(1\.0"),
        (lambda: data.annuli(9, (0.5, 1.0)), "r must be three radii r1 < r2 < r3, got"),
        (lambda: data.annuli(9, dim=0), "dim must be an integer of at least 1, got 0"),
        (lambda: data.annuli(9, dim=1, slices=((0.0, 1.0),)), "dim of at least 2"),
        (lambda: data.annuli(9, slices=(1.0,)), r"slices must be pairs of angles \(from, to\), got 1\.0"),
        (lambda: data.annuli(9, slices=((0.0, 3.2), (3.1, 6.4))), "slices must leave some of the circle"),
    ],
)
def test_wrong_arguments_of_the_crossing_problems(make, message):
    with pytest.raises(InputError, match=message):
        make()


NAMES = ("moons", "pinwheel", "8gaussians", "checkerboard", "swissroll", "2spirals")


def draw(name, n=20000, seed=0):
    return data.density(name, n, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
def test_density_draws_points_of_the_plane(name):
    x = draw(name)
    assert x.shape == (20000, 2)
    assert x.dtype == torch.float32
    assert (x.abs() < 5).all()
    assert torch.equal(x[:0], data.density(name, 0))
    assert torch.equal(x, draw(name))
    assert not torch.equal(x, draw(name, seed=1))


def test_densities_lie_where_they_should():
    """Radii, squares and symmetries that each set has by its construction."""
    x = draw("8gaussians")
    angle = math.pi / 4 * torch.arange(8)
    nearest = torch.cdist(x, math.sqrt(8) * torch.stack([angle.cos(), angle.sin()], 1)).min(1)
    assert nearest.values.square().mean().item() == pytest.approx(2 * 2 / 16, rel=0.05)
    assert torch.bincount(nearest.indices).float().std() < 3 * math.sqrt(2500)
    x = draw("checkerboard")
    assert (((x / 2).floor().sum(1) % 2) == 0).all()
    assert (x.abs() <= 4).all()
    x = draw("swissroll") * 5
    angle = torch.atan2(x[:, 1], x[:, 0])
    turns = torch.stack([(x.norm(dim=1) - angle) / (2 * math.pi)])
    assert (turns - turns.round()).abs().mean() < 0.15  # the radius grows with the angle
    for name in ("moons", "2spirals"):
        x = draw(name)
        assert x.mean(0).abs().max() < 0.05
    x = draw("moons")
    upper = torch.hypot(x[:, 0] + 1, x[:, 1] + 0.5) - 2, x[:, 1] > -0.5
    lower = torch.hypot(x[:, 0] - 1, x[:, 1] - 0.5) - 2, x[:, 1] < 0.5
    off = torch.minimum(*(torch.where(there, d.abs(), math.inf) for d, there in (upper, lower)))
    ends = torch.tensor([[-3, -0.5], [1, -0.5], [3, 0.5], [-1, 0.5]])
    off = torch.minimum(off, torch.cdist(x, ends).min(1).values)
    assert off.mean().item() == pytest.approx(0.2 * math.sqrt(2 / math.pi), rel=0.03)  # half-normal, but at the ends
    x = draw("pinwheel")
    turned = torch.view_as_complex(x) * torch.polar(torch.tensor(1.0), torch.tensor(2 * math.pi / 5))
    some, other = x[:500], torch.view_as_real(turned)[500:]
    assert torch.cdist(some, other).min(1).values.mean() < 0.05  # a fifth of a turn changes nothing


def test_single_samples_are_drawn_from_the_whole_density():
    """Not from one end of it, as a set of n points would be that is laid out along the curve."""
    generator = torch.Generator().manual_seed(0)
    for name in NAMES:
        x = torch.cat([data.density(name, 1, generator=generator) for _ in range(500)])
        together = data.density(name, 20000, generator=generator)
        assert (x.mean(0) - together.mean(0)).abs().max() < 0.4, name
        assert (x.std(0) / together.std(0) - 1).abs().max() < 0.2, name


def test_density_refuses_other_names_and_counts():
    with pytest.raises(InputError, match="unknown density 'moon': expected one of 'moons'"):
        data.density("moon", 3)
    with pytest.raises(InputError, match="n must be a whole number of samples, got -1"):
        data.density("moons", -1)
