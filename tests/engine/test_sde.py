"""Stochastic differential equations on both engines, against closed forms of their solutions."""

import math
import subprocess
import sys

import pytest
import torch
from torch import nn

import pynode

DOUBLE = torch.float64
# Julia compiles each of StochasticDiffEq's solvers, which takes some seconds.
ON_JULIA = [pytest.mark.julia, pytest.mark.slow]
ENGINES = ["torch", pytest.param("julia", marks=ON_JULIA)]
MU, SIGMA = 0.3, 0.5


def diffusive(t, z, *args):
    """The diffusion σ z, of geometric Brownian motion."""
    return args[1] * z


def growing(t, z, *args):
    return args[0] * z


def gbm(batch=1, **options):
    """Geometric Brownian motion from 1, with a drift and a volatility of each sample's own."""
    mu, sigma = (torch.full((batch, 1), x, dtype=DOUBLE, requires_grad=True) for x in (MU, SIGMA))
    z0 = torch.ones(batch, 1, dtype=DOUBLE)
    return mu, sigma, pynode.solve_sde(growing, diffusive, z0, [0.0, 1.0], args=(mu, sigma), seed=5, **options)


def assert_mean(samples, expected):
    error = samples.std() / math.sqrt(len(samples))
    assert abs(samples.mean() - expected) < 3 * error
    assert error < 0.1 * max(1, abs(expected))  # so that something was measured


SOLVERS = {
    ("em", "ito"): 0.5,
    ("rkmil", "ito"): 1.0,
    ("srk", "ito"): 1.5,
    ("sriw1", "ito"): 1.5,
    ("sosri", "ito"): 1.5,
    ("euler_heun", "stratonovich"): 1.0,
    ("midpoint", "stratonovich"): 1.0,
    ("heun", "stratonovich"): 1.0,
    ("rkmil", "stratonovich"): 1.0,
}
OF = {s.name: s for s in pynode.sde_solvers()}


def on(engine, names):
    marks = ON_JULIA if engine == "julia" else []
    return [
        pytest.param(engine, *name, marks=marks, id=f"{engine}-{'-'.join(name)}")
        for name in names
        if engine in OF[name[0]].engines
    ]


EVERY = on("torch", SOLVERS) + on("julia", SOLVERS)


@pytest.mark.parametrize("engine", ENGINES)
def test_moments_and_gradients_of_geometric_brownian_motion(engine):
    mu, sigma, solution = gbm(4000, engine=engine, dt=0.05)
    z = solution.z[-1]
    assert_mean(z.detach(), math.exp(MU))
    assert_mean(z.detach() ** 2, math.exp(2 * MU + SIGMA**2))
    (z**2).sum().backward()  # a gradient of each sample's own
    second = math.exp(2 * MU + SIGMA**2)
    assert_mean(mu.grad, 2 * second)
    assert_mean(sigma.grad, 2 * SIGMA * second)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("matrix", [False, True])
def test_moments_and_gradients_of_an_ornstein_uhlenbeck_process(engine, matrix):
    def back(t, z, theta):
        return -theta * z

    def constant(t, z, theta):
        g = torch.full_like(z, 0.6)
        return (
            torch.stack([g * 0.6, g * 0.8], dim=-1) if matrix else g
        )  # two motions that make one of the same strength

    theta = torch.full((4000, 1), 1.5, dtype=DOUBLE, requires_grad=True)
    z0 = torch.full_like(theta, 2.0, requires_grad=True)
    t = [0.0, 0.5, 1.0]
    solution = pynode.solve_sde(back, constant, z0, t, args=(theta,), noise="additive", dt=0.05, seed=3, engine=engine)
    z = solution.z[-1]
    decay = math.exp(-1.5)
    assert_mean(z.detach(), 2 * decay)
    assert_mean((z.detach() - 2 * decay) ** 2, 0.36 * (1 - decay**2) / 3)
    z.sum().backward()
    assert_mean(theta.grad, -2 * decay)
    assert torch.allclose(z0.grad, torch.full_like(z0, decay), rtol=5e-3)  # the noise is additive


def path_errors(engine, solver, calculus, dt, batch):
    """Solutions less the exact ones of the same Brownian motion, which is the solution without drift of diffusion 1."""
    same = {"engine": engine, "solver": solver, "calculus": calculus, "dt": dt}
    with torch.no_grad():
        _, _, solution = gbm(batch, **same)
        z0 = torch.zeros(batch, 1, dtype=DOUBLE)
        still = pynode.solve_sde(lambda t, z: 0 * z, lambda t, z: torch.ones_like(z), z0, [0.0, 1.0], seed=5, **same)
    w = still.z[-1]
    assert abs(w.var() - 1) < 0.3
    drift = MU - SIGMA**2 / 2 if calculus == "ito" else MU
    return solution.z[-1] - torch.exp(drift + SIGMA * w)


@pytest.mark.parametrize(("engine", "solver", "calculus"), EVERY)
def test_strong_order(engine, solver, calculus):
    coarse, fine = (path_errors(engine, solver, calculus, dt, 500).abs().mean() for dt in (0.125, 0.125 / 8))
    order = math.log(coarse / fine) / math.log(8)
    expected = SOLVERS[solver, calculus]
    assert expected - 0.15 < order < expected + 0.4


@pytest.mark.parametrize(("engine", "solver", "calculus"), EVERY)
def test_strong_order_of_noise_that_is_not_linear(engine, solver, calculus):
    """dz = cos² z ∘ dW from 0 is arctan W; in the sense of Itô it has the drift -sin z cos³ z."""
    same = {"engine": engine, "solver": solver, "calculus": calculus, "seed": 5}
    z0 = torch.zeros(500, 1, dtype=DOUBLE)

    def drift(t, z):
        return -torch.sin(z) * torch.cos(z) ** 3 if calculus == "ito" else 0 * z

    def error(dt):
        with torch.no_grad():
            z = pynode.solve_sde(drift, lambda t, z: torch.cos(z) ** 2, z0, [0.0, 1.0], dt=dt, **same).z[-1]
            w = pynode.solve_sde(lambda t, z: 0 * z, lambda t, z: 0 * z + 1, z0, [0.0, 1.0], dt=dt, **same).z[-1]
        return (z - torch.atan(w)).abs().mean()

    order = math.log(error(0.125) / error(0.125 / 8)) / math.log(8)
    expected = 0.5 if (solver, calculus) == ("rkmil", "stratonovich") else SOLVERS[solver, calculus]
    assert expected - 0.2 < order < expected + 0.4


def additive_errors(engine, solver, calculus, dt):
    """Solutions of dz = (β/√(1+t) - z/(2(1+t))) dt + αβ/√(1+t) dW less the exact ones, (z(0) + β (t + α W))/√(1+t).

    The second feature is W. The equation is 4.4.6 of Kloeden and Platen (1992), section 4.4.
    """
    alpha, beta = 0.4, 0.7

    def drift(t, z):
        return torch.stack([beta / (1 + t).sqrt() - z[:, 0] / (2 * (1 + t)), 0 * z[:, 1]], dim=1)

    def diffusion(t, z):
        strength = torch.stack([alpha * beta / (1 + t).sqrt(), torch.ones_like(t)])
        return strength.expand(len(z), 2).unsqueeze(2)  # one Brownian motion drives both

    z0 = torch.tensor([[1.0, 0.0]], dtype=DOUBLE).expand(500, 2)
    options = {"noise": "additive", "calculus": calculus, "solver": solver, "dt": dt, "seed": 5, "engine": engine}
    with torch.no_grad():
        end = pynode.solve_sde(drift, diffusion, z0, [0.0, 1.0], **options).z[-1]
    assert abs(end[:, 1].var() - 1) < 0.3
    return end[:, 0] - (1 + beta * (1 + alpha * end[:, 1])) / math.sqrt(2)


ADDITIVE = {("em", "ito"): 1.0, ("sra1", "ito"): 1.5, ("sosra", "ito"): 1.5, ("sosra", "stratonovich"): 1.5}


@pytest.mark.parametrize(("engine", "solver", "calculus"), on("torch", ADDITIVE) + on("julia", ADDITIVE))
def test_strong_order_of_additive_noise(engine, solver, calculus):
    coarse, fine = (additive_errors(engine, solver, calculus, dt).abs().mean() for dt in (0.125, 0.125 / 8))
    order = math.log(coarse / fine) / math.log(8)
    expected = ADDITIVE[solver, calculus]
    assert expected - 0.15 < order < expected + 0.7  # the drift is linear, for which some gain half an order


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("solver", ["em", "rkmil"])
def test_weak_order(engine, solver):
    coarse, fine = (path_errors(engine, solver, "ito", dt, 20_000) for dt in (0.25, 0.0625))
    bias = (1 + MU / 4) ** 4 - math.exp(MU)  # in expectation both are Euler's method, of order 1
    assert_mean_of_difference(coarse, bias)
    assert_mean_of_difference(fine, (1 + MU / 16) ** 16 - math.exp(MU))


def assert_mean_of_difference(samples, expected):
    error = samples.std() / math.sqrt(len(samples))
    assert abs(samples.mean() - expected) < 3 * error
    assert error < abs(expected) / 2


class Drift(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 3, dtype=DOUBLE), nn.Linear(3, 2, dtype=DOUBLE)

    def forward(self, t, z, x):
        return self.b(torch.tanh(self.a(z))) * (1 + t) + 0.3 * x


class Entrywise(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.rand(2, dtype=DOUBLE) + 0.5)

    def forward(self, t, z, x):
        return self.w * torch.cos(z) * (1 + t**2) + 0.1 * x


class Additive(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.w = nn.Parameter(torch.rand(*shape, dtype=DOUBLE) + 0.5)

    def forward(self, t, z, x):
        return (self.w * (1 + torch.sin(t))).expand(len(z), *self.w.shape)


class Matrix(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.linear = nn.Linear(2, 2 * channels, dtype=DOUBLE)

    def forward(self, t, z, x):
        return torch.sin(self.linear(z)).unflatten(1, (2, -1)) * (1 + t)


CASES = [
    ("em", "ito", "diagonal", Entrywise()),
    ("rkmil", "ito", "diagonal", Entrywise()),
    ("rkmil", "stratonovich", "diagonal", Entrywise()),
    ("euler_heun", "stratonovich", "diagonal", Entrywise()),
    ("sriw1", "ito", "diagonal", Entrywise()),
    ("sosri", "ito", "diagonal", Entrywise()),
    ("sra1", "ito", "additive", Additive(2)),
    ("sosra", "ito", "additive", Additive(2)),
    ("sra1", "ito", "additive", Additive(2, 3)),
    ("sosra", "stratonovich", "additive", Additive(2, 3)),
    ("em", "ito", "general", Matrix(3)),
    ("em", "ito", "scalar", Matrix(1)),
    ("euler_heun", "stratonovich", "general", Matrix(3)),
]
TORCH_CASES = [("srk", "ito", "diagonal", Entrywise()), ("em", "ito", "general", Matrix(3))]


def of_case(case):
    solver, calculus, noise, diffusion = case
    dims = diffusion.w.dim() if hasattr(diffusion, "w") else ""
    return f"{solver}-{calculus}-{noise}-{type(diffusion).__name__}{dims}"


@pytest.mark.parametrize("with_cost", [False, True], ids=["plain", "cost"])
@pytest.mark.parametrize(
    ("engine", "case"),
    [pytest.param("torch", c, id="torch-" + of_case(c), marks=pytest.mark.slow) for c in TORCH_CASES]
    + [pytest.param("julia", c, id="julia-" + of_case(c), marks=ON_JULIA) for c in CASES],
)
def test_gradcheck(engine, case, with_cost):
    solver, calculus, noise, diffusion = case
    drift = Drift()
    z0, x = (torch.randn(2, 2, dtype=DOUBLE, requires_grad=True) for _ in range(2))
    parameters = [*drift.parameters(), *diffusion.parameters()]
    options = {"noise": noise, "calculus": calculus, "solver": solver, "seed": 11, "dt": 0.2, "engine": engine}

    def cost(t, z, x):
        return (z**2).sum(1) * t + x.sum(1)

    def solved(z0, x, *parameters):
        names = [("0." + n) for n, _ in drift.named_parameters()] + [
            ("1." + n) for n, _ in diffusion.named_parameters()
        ]
        both = dict(zip(names, parameters, strict=True))

        def f(t, z, x):
            own = {n[2:]: p for n, p in both.items() if n[0] == "0"}
            return torch.func.functional_call(drift, own, (t, z, x))

        def g(t, z, x):
            own = {n[2:]: p for n, p in both.items() if n[0] == "1"}
            return torch.func.functional_call(diffusion, own, (t, z, x))

        found = pynode.solve_sde(
            f, g, z0, [0.0, 0.3, 0.7], args=(x,), running_cost=cost if with_cost else None, **options
        )
        return (found.z, found.running_cost) if with_cost else found.z

    assert torch.autograd.gradcheck(solved, (z0, x, *parameters))


@pytest.mark.julia
@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "noise", "tolerance"),
    [("rkmil", "diagonal", 1e-2), ("sosri", "diagonal", 0.2), ("sosra", "additive", 0.2)],
)
def test_steps_by_tolerance_keep_the_noise(solver, noise, tolerance):
    # The second feature is the noise itself, and the first one has steps rejected.
    def drift(t, z):
        return torch.stack([-8 * z[:, 0] ** 3 + 30 * torch.sin(40 * t), 0 * z[:, 1]], dim=1)

    def diffusion(t, z):
        return torch.ones_like(z)

    z0 = torch.zeros(5000, 2, dtype=DOUBLE)
    t = torch.linspace(0, 1, 6, dtype=DOUBLE)
    solution = pynode.solve_sde(
        drift,
        diffusion,
        z0,
        t,
        noise=noise,
        solver=solver,
        rtol=tolerance,
        atol=tolerance,
        dt=0.1,
        seed=1,
        engine="julia",
    )
    assert solution.stats.n_rejected >= 2
    increments = solution.z[1:, :, 1].diff(dim=0, prepend=z0[None, :, 1])
    assert torch.allclose(increments.var(1) / 0.2, torch.ones(5, dtype=DOUBLE), atol=4 * math.sqrt(2 / 5000))
    assert increments.mean(1).abs().max() < 4 * math.sqrt(0.2 / 5000)
    correlation = torch.corrcoef(increments) - torch.eye(5, dtype=DOUBLE)
    assert correlation.abs().max() < 4 / math.sqrt(5000)


@pytest.mark.julia
@pytest.mark.parametrize("solver", ["sra1", "sosra"])
@pytest.mark.parametrize("start", [0.0, 1.0])
def test_steps_by_tolerance_where_motions_mix(solver, start):
    """The first step was looked for by what takes the matrices of all samples for one, and failed."""
    a = torch.tensor([[0.3, 0.1, 0.2], [0.4, -0.5, 0.1]], dtype=DOUBLE)
    solution, given = (
        pynode.solve_sde(
            lambda t, z: -0.5 * z,
            lambda t, z: (a * (1 + t)).expand(len(z), 2, 3),
            torch.full((4000, 2), start, dtype=DOUBLE),
            [0.0, 1.0],
            noise="additive",
            solver=solver,
            rtol=1e-2,
            atol=1e-2,
            dt=dt,
            running_cost=lambda t, z: z.sum(1),
            seed=1,
            engine="julia",
        )
        for dt in (None, 0.01)
    )
    s = torch.linspace(0, 1, 1001, dtype=DOUBLE)
    covariance = torch.trapezoid(torch.exp(s - 1) * (1 + s) ** 2, s) * a @ a.T
    assert torch.allclose(torch.cov(solution.z[-1].T), covariance, atol=0.05)
    assert torch.allclose(solution.z[-1].mean(0), torch.full((2,), start * math.exp(-0.5), dtype=DOUBLE), atol=0.05)
    assert solution.stats.n_accepted < given.stats.n_accepted + 100  # steps grow by an eighth at most


@pytest.mark.parametrize("engine", ENGINES)
def test_the_seed_is_the_noise(engine):
    one, two, other = (
        gbm(3, dt=0.1, engine=engine)[2].z,
        gbm(3, dt=0.1, engine=engine, running_cost=lambda t, z, *a: z.sum(1))[2].z,
        pynode.solve_sde(
            growing,
            diffusive,
            torch.ones(3, 1, dtype=DOUBLE),
            [0.0, 1.0],
            dt=0.1,
            seed=6,
            engine=engine,
            args=tuple(torch.full((3, 1), x, dtype=DOUBLE) for x in (MU, SIGMA)),
        ).z,
    )
    assert torch.equal(one, two)  # which an integral along does not change
    assert not torch.equal(one, other)
    torch.manual_seed(4)
    drawn = [
        pynode.solve_sde(lambda t, z: z, lambda t, z: z, torch.ones(1, 1), [0.0, 1.0], dt=0.5, engine=engine)
        for _ in range(2)
    ]
    torch.manual_seed(4)
    again = pynode.solve_sde(lambda t, z: z, lambda t, z: z, torch.ones(1, 1), [0.0, 1.0], dt=0.5, engine=engine)
    assert drawn[0].seed == again.seed != drawn[1].seed
    assert torch.equal(drawn[0].z, again.z)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_the_seed_is_the_noise_in_another_process(engine):
    code = (
        "import torch, pynode\n"
        "def f(t, z): return z\n"
        f"z = pynode.solve_sde(f, f, torch.ones(4, 2), [0.0, 1.0], dt=0.1, seed=8, engine={engine!r}).z\n"
        "print(z.flatten().tolist())"
    )
    here = pynode.solve_sde(lambda t, z: z, lambda t, z: z, torch.ones(4, 2), [0.0, 1.0], dt=0.1, seed=8, engine=engine)
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert there.strip() == str(here.z.flatten().tolist())


@pytest.mark.parametrize("engine", ENGINES)
def test_the_stochastic_adjoint_agrees_with_the_steps(engine):
    gradients = []
    for how in ("discrete", "backsolve"):
        mu, sigma, solution = gbm(50, dt=0.002, calculus="stratonovich", sensitivity=how, engine=engine)
        (solution.z[-1] ** 2).sum().backward()
        gradients.append((mu.grad, sigma.grad))
    for discrete, backsolve in zip(*gradients, strict=True):
        assert torch.allclose(discrete, backsolve, rtol=0.02, atol=0.02)
        assert not torch.equal(discrete, backsolve)


@pytest.mark.julia
def test_julia_names_the_engine_that_has_the_stochastic_adjoint():
    with pytest.raises(pynode.EngineUnavailable, match="'backsolve' of SDEs: pass 'discrete', or engine='torch'"):
        gbm(2, dt=0.5, sensitivity="backsolve", engine="julia")


@pytest.mark.julia
@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "noise", "diffusion"),
    [
        ("euler_heun", "diagonal", Entrywise()),
        ("rkmil", "diagonal", Entrywise()),
        ("euler_heun", "general", Matrix(3)),
        ("euler_heun", "scalar", Matrix(1)),
        ("sosra", "additive", Additive(2)),
        ("euler_heun", "additive", Additive(2, 3)),
    ],
)
def test_the_stochastic_adjoint_converges_to_the_steps(solver, noise, diffusion):
    # Both gradients are of the same path.
    drift = Drift()
    torch.manual_seed(0)
    z0, x = torch.randn(2, 200, 2, dtype=DOUBLE)

    def gradients(sensitivity, dt):
        inputs = [*(a.clone().requires_grad_() for a in (z0, x)), *drift.parameters(), *diffusion.parameters()]
        found = pynode.solve_sde(
            drift,
            diffusion,
            inputs[0],
            [0.0, 0.2, 0.5],
            args=(inputs[1],),
            noise=noise,
            calculus="stratonovich",
            solver=solver,
            dt=dt,
            seed=5,
            sensitivity=sensitivity,
            running_cost=lambda t, z, x: (z**2).sum(1) * t + x.sum(1),
            engine="julia",
        )
        loss = (found.z[1] * found.z[2]).sum() + found.running_cost.square().sum()
        of_z0, of_x, *of_parameters = torch.autograd.grad(loss, inputs)
        return of_z0, of_x, torch.cat([g.flatten() for g in of_parameters])

    errors = []
    for dt in (0.02, 0.00125):
        pairs = zip(gradients("backsolve", dt), gradients("discrete", dt), strict=True)
        errors.append([((a - b).norm() / b.norm()).item() for a, b in pairs])
    for coarse, fine in zip(*errors, strict=True):
        assert 0 < fine < 0.02
        assert fine < (0.4 if solver == "rkmil" else 0.2) * coarse  # 1/4 at order 1/2, 1/16 at order 1


@pytest.mark.julia
@pytest.mark.slow
def test_a_backward_solve_that_leaves_the_path_is_an_error():
    z0 = torch.ones(3, 2, dtype=DOUBLE, requires_grad=True)
    solution = pynode.solve_sde(
        lambda t, z: -30 * z,
        lambda t, z: torch.ones_like(z),
        z0,
        [0.0, 0.5, 1.0],
        calculus="stratonovich",
        solver="euler_heun",
        dt=0.05,
        seed=1,
        sensitivity="backsolve",
        engine="julia",
    )
    with pytest.raises(pynode.SolveError, match=r"backward solve.*left the trajectory") as error:
        solution.z[-1].sum().backward()
    assert error.value.retcode is pynode.Retcode.OFF_TRAJECTORY


@pytest.mark.parametrize("engine", ENGINES)
def test_what_was_captured_has_its_gradient(engine):
    kept = torch.tensor([0.2, 0.4], dtype=DOUBLE, requires_grad=True)
    z0 = torch.ones(3, 2, dtype=DOUBLE)
    # The same tensor in both: its gradient is the sum.
    z = pynode.solve_sde(
        lambda t, z: kept * z, lambda t, z: kept * z, z0, [0.0, 1.0], dt=0.5, seed=1, solver="em", engine=engine
    ).z
    (gradient,) = torch.autograd.grad(z[-1].sum(), kept)
    shifted = []
    for e in (1e-6, -1e-6):

        def moved(t, z, e=e):
            return (kept.detach() + e) * z

        found = pynode.solve_sde(moved, moved, z0, [0.0, 1.0], dt=0.5, seed=1, solver="em", engine=engine)
        shifted.append(found.z[-1].sum())
    assert torch.allclose(gradient.sum(), (shifted[0] - shifted[1]) / 2e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_further_derivatives_raise(engine):
    mu, _, solution = gbm(2, dt=0.5, engine=engine)
    (first,) = torch.autograd.grad(solution.z.sum(), mu, create_graph=True)
    with pytest.raises(pynode.EngineUnavailable, match="no further derivative"):
        first.sum().backward()
    z0 = torch.ones(2, 1, dtype=DOUBLE)

    def end(z0):
        return pynode.solve_sde(lambda t, z: z, lambda t, z: z, z0, [0.0, 1.0], dt=0.5, engine=engine).z[-1].sum()

    with pytest.raises(pynode.EngineUnavailable, match=r"backward\(\)"):
        torch.func.grad(end)(z0)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_solve_that_fails_says_so(engine):
    def explosive(t, z):
        return z**3

    z0 = torch.full((2, 1), 3.0, dtype=DOUBLE)
    with pytest.raises(pynode.SolveError, match="became infinite") as caught:
        pynode.solve_sde(explosive, lambda t, z: 0 * z, z0, [0.0, 0.01, 5.0], dt=0.01, engine=engine)
    assert caught.value.retcode is pynode.Retcode.NON_FINITE
    assert torch.isfinite(caught.value.z_end).all()
    failed = pynode.solve_sde(
        lambda t, z: z, lambda t, z: z, z0, [0.0, 1.0], dt=0.01, max_steps=10, engine=engine, throw=False
    )
    assert failed.retcode is pynode.Retcode.MAX_STEPS
    assert failed.z[-1].isnan().all()
    with pytest.raises(pynode.InputError, match="finite"):
        pynode.solve_sde(lambda t, z: z, lambda t, z: z, z0 * math.inf, [0.0, 1.0], dt=0.1, engine=engine)


Z0 = torch.ones(3, 2)
LINE = {"drift": lambda t, z: z, "diffusion": lambda t, z: z, "z0": Z0, "t": [0.0, 1.0], "dt": 0.1, "engine": "torch"}


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"noise": "diagonl"}, pynode.InputError, "expected one of 'diagonal'"),
        ({"calculus": "itô"}, pynode.InputError, "calculus"),
        ({"solver": "euler"}, pynode.InputError, "unknown solver"),
        ({"solver": "sra1"}, pynode.InputError, "takes additive noise"),
        ({"solver": "sosri"}, pynode.EngineUnavailable, "engine='julia'"),
        ({"solver": "sosri", "noise": "general"}, pynode.InputError, "use one of 'em'"),
        ({"rtol": 1e-3}, pynode.EngineUnavailable, "takes fixed steps"),
        ({"dt": None}, pynode.InputError, "needs the step"),
        ({"dt": -1.0}, pynode.InputError, "dt must be positive"),
        ({"seed": -1}, pynode.InputError, "seed must be"),
        ({"seed": 1.0}, pynode.InputError, "seed must be"),
        ({"sensitivity": "gauss"}, pynode.EngineUnavailable, "pass 'discrete' or 'backsolve'$"),
        ({"t": [1.0, 0.0]}, pynode.InputError, "strictly increasing"),
        ({"t": torch.tensor([0.0, 1.0], requires_grad=True)}, pynode.InputError, "no gradient to the times"),
        ({"t": [1.7e9, 1.7e9 + 1]}, pynode.InputError, "dtype|monotone|subtract"),
        ({"z0": (Z0, Z0)}, pynode.InputError, "one real tensor"),
        ({"z0": torch.ones(3, 2, dtype=torch.complex64)}, pynode.InputError, "one real tensor"),
        ({"z0": torch.ones(0, 2)}, pynode.InputError, "not empty"),
        ({"z0": torch.ones(3, 2, dtype=torch.int64)}, pynode.InputError, "float32"),
        ({"noise": "additive"}, pynode.InputError, "does not depend on the state"),
        ({"noise": "general"}, pynode.FieldError, r"diffusion: .*\(3, 2, channels\)"),
        ({"noise": "scalar", "diffusion": lambda t, z: torch.ones(3, 2, 2)}, pynode.FieldError, r"\(3, 2, 1\)"),
        ({"diffusion": lambda t, z: z.double()}, pynode.FieldError, "dtype"),
        ({"drift": lambda t, z: z[:, :1]}, pynode.FieldError, "drift"),
        ({"diffusion": lambda t, z: z.flip(1)}, pynode.InputError, "depends on entry i"),
        # Where the derivative is zero at the initial state.
        (
            {"noise": "additive", "diffusion": lambda t, z: torch.sqrt(1 + z**2), "z0": 0 * Z0},
            pynode.InputError,
            "does not depend on the state",
        ),
        (
            {"diffusion": lambda t, z: torch.sqrt(1 + (z + z.flip(1)) ** 2), "z0": 0 * Z0},
            pynode.InputError,
            "depends on entry i",
        ),
        (
            {"diffusion": lambda t, z: 0.5 + torch.relu(z.flip(1) - 0.2), "z0": 0 * Z0},
            pynode.InputError,
            "depends on entry i",
        ),
        ({"running_cost": lambda t, z: z}, pynode.FieldError, "running_cost"),
        ({"args": 3}, pynode.InputError, "args"),
    ],
)
def test_refusals(changed, error, message):
    given = {**LINE, **changed}
    with pytest.raises(error, match=message):
        pynode.solve_sde(given.pop("drift"), given.pop("diffusion"), given.pop("z0"), given.pop("t"), **given)


def test_a_diffusion_that_takes_no_other_states(engine):
    """Noise is looked at for other states too, of which the user's function may refuse some, or give NaN."""

    def positive(t, z):
        if (z < 0).any():
            raise ValueError("a state below zero")
        return 0.1 * torch.sqrt(z)

    solution = pynode.solve_sde(lambda t, z: 1 - z, positive, Z0 + 2, [0.0, 0.1], dt=0.02, engine="torch")
    assert torch.isfinite(solution.z).all()
    solution = pynode.solve_sde(
        lambda t, z: 1 - z, lambda t, z: 0.1 * torch.sqrt(z), Z0 + 2, [0.0, 0.1], dt=0.02, engine=engine
    )
    assert torch.isfinite(solution.z).all()


def test_torchsde_is_asked_for(monkeypatch):
    from pynode.engine import choose_stochastic
    from pynode.engine.torch import stochastic

    choose_stochastic.choose_stochastic.cache_clear()
    monkeypatch.setattr(stochastic.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(pynode.EngineUnavailable, match=r'pip install "pynode-sciml\[sde\]"'):
        pynode.solve_sde(LINE["drift"], LINE["diffusion"], Z0, [0.0, 1.0], dt=0.1, engine="torch")
    choose_stochastic.choose_stochastic.cache_clear()
