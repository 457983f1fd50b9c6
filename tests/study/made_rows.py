"""Rows as studies write them, made from a model of solvers: error ~ rtol, evaluations ~ rtol ** (-1 / order)."""

import math
import random

SECONDS_PER_CALL = {  # of the field, and of a solve apart from it
    "pynode julia": (2e-6, 2e-4),
    "pynode torch": (9e-5, 3e-4),
    "torchdiffeq": (8e-5, 2e-4),
    "torchode": (1.6e-4, 4e-4),
    "diffrax": (3e-6, 8e-4),
    "scipy": (5e-5, 1e-4),
    "diffeqpy": (4e-6, 1e-3),
}
FIRST = {"pynode julia": 9.0, "diffrax": 2.5, "diffeqpy": 12.0, "torchode": 0.4}
ORDERS = {"tsit5": 5, "vern7": 7, "dopri5": 5, "DOP853": 8, "RK45": 5, "Tsit5": 5, "rodas5p": 5, "bosh3": 3, "Vern9": 9}
CONTENDERS = [
    ("pynode", {"engine": "julia", "solver": "tsit5", "sensitivity": "discrete"}),
    ("pynode", {"engine": "julia", "solver": "vern7", "sensitivity": "discrete"}),
    ("pynode", {"engine": "julia", "solver": "vern7", "sensitivity": "backsolve"}),
    ("pynode", {"engine": "julia", "solver": "rodas5p", "sensitivity": "gauss"}),
    ("pynode", {"engine": "torch", "solver": "dopri5", "sensitivity": "discrete"}),
    ("pynode", {"engine": "torch", "solver": "dopri5", "sensitivity": "backsolve"}),
    ("pynode", {"engine": "torch", "solver": "bosh3", "sensitivity": "discrete"}),
    ("torchdiffeq", {"solver": "dopri5"}),
    ("torchode", {"solver": "Tsit5"}),
    ("diffrax", {"solver": "Tsit5"}),
    ("scipy", {"solver": "DOP853"}),
    ("scipy", {"solver": "RK45"}),
    ("diffeqpy", {"solver": "Vern9"}),
]
ENVIRONMENT = {
    "python": "3.11.7",
    "system": "Linux 6.1 x86_64",
    "processor": "Example CPU 9000 @ 2.1 GHz",
    "cores": 8,
    "memory_mb": 32768,
    "pynode": "0.9.0",
    "revision": "f5853e3",
    "packages": {"torch": "2.10.0", "torchdiffeq": "0.2.5", "torchode": "1.0.1", "diffrax": "0.7.0"},
    "julia": {"version": "1.10.4", "packages": {"OrdinaryDiffEq": "6.90.0", "SciMLSensitivity": "7.70.0"}},
}
PROBLEMS = {
    "lotka_volterra": {
        "description": "Prey and predators: two states, periodic, not stiff.",
        "source": "Lotka 1925; Volterra 1926; the parameters of SciMLBenchmarks.jl",
        "stiff": False,
        "shape": [2],
        "times": 21,
        "parameters": 4,
        "how": "Vern9 and DOP853 at 1e-12",
        "agreement": 3e-13,
        "gradient_agreement": 8e-12,
    },
    "van_der_pol": {
        "description": "The oscillator with μ = 1000.",
        "source": "Hairer & Wanner 1996, IV.1",
        "stiff": True,
        "shape": [2],
        "times": 21,
        "parameters": 4,
        "how": "Rodas5P and Radau at 1e-12",
        "agreement": 2e-11,
        "gradient_agreement": 4e-10,
    },
}


def row(problem, package, options, *, rtol=None, dt=None, number=0, scale=1.0, difficulty=1.0, rng=None, **changes):
    """A row of a cell that went well; `scale` is of its times."""
    rng = rng or random.Random(0)
    family = f"{package} {options['engine']}" if "engine" in options else package
    order = ORDERS[options["solver"]]
    nfe = round(difficulty * 40 * (order + 2) * (rtol ** (-1 / order)) / 5)
    backward = round(1.4 * nfe)
    per_call, apart = SECONDS_PER_CALL[family]
    process = math.exp(rng.gauss(0, 0.01))

    def times(n):
        usual = scale * process * (apart + per_call * n)
        return [usual * (1 + abs(rng.gauss(0, 0.03))) for _ in range(10)]

    seconds, gradient = sorted(times(nfe)), sorted(times(3 * nfe))
    inexact = 30 if options.get("sensitivity") == "backsolve" else 1
    fixed = random.Random(f"{problem} {family} {options} {rtol}")  # errors are the same in each run
    error = rtol * difficulty * math.exp(fixed.gauss(0, 0.3)) * 10 / order
    values = {
        "key": f"{problem} {package} {sorted(options.items())} {rtol} {dt} {number}",
        "study": "made",
        "kind": "solve",
        "problem": problem,
        "contender": " ".join([package, *map(str, options.values())]),
        "package": package,
        "options": options,
        "rtol": rtol,
        "atol": None if rtol is None else 1e-3 * rtol,
        "dt": dt,
        "pass": number,
        "status": "ok",
        "reason": "",
        "gradient_status": "ok",
        "gradient_reason": "",
        "memory_reason": "",
        "error_end": error,
        "error_trajectory": 0.6 * error,
        "gradient_error": 3 * inexact * error,
        "drift": None,
        "loss": 0.5,
        "nfe": nfe,
        "nfe_backward": backward,
        "n_accepted": nfe // (order + 1),
        "n_rejected": nfe // 60,
        "jacobians": nfe // 12 if options["solver"] == "rodas5p" else None,
        "prepare_seconds": 0.1,
        "seconds_first": FIRST.get(family, 0.01) + seconds[5],
        "seconds": seconds[5],
        "seconds_q1": seconds[2],
        "seconds_q3": seconds[7],
        "seconds_all": seconds,
        "cpu_seconds": 1.01 * seconds[5],
        "gradient_seconds_first": 1.7 * FIRST.get(family, 0.01) + gradient[5],
        "gradient_seconds": gradient[5],
        "gradient_seconds_q1": gradient[2],
        "gradient_seconds_q3": gradient[7],
        "gradient_seconds_all": gradient,
        "gradient_cpu_seconds": 1.01 * gradient[5],
        "peak_mb": 1.5 + rng.random(),
        "gradient_peak_mb": 3 + nfe / 400,
        "beside": 0,
        "calibration": 0.02 * (1 + rng.gauss(0, 0.01)),
        "threads": 1,
        "dtype": "float64",
        "environment": "e1",
        "started": 1772359200.0 + 10 * number,
        "ended": 1772359209.0 + 10 * number,
    }
    unknown = set(changes) - set(values)
    assert not unknown, unknown
    return values | changes


def failed(values, status, reason, measure="state"):
    """The row, as it is when the state or the gradient alone failed."""
    keys = [key for key in values if key.startswith("gradient_") or key == "nfe_backward"]
    if measure == "state":
        keys += ["error_end", "error_trajectory", "nfe", "n_accepted", "n_rejected", "peak_mb", "cpu_seconds", "loss"]
        keys += [key for key in values if key.startswith("seconds")]
    changes = {key: [] if key.endswith("_all") else None for key in keys}
    told = {"gradient_status": status, "gradient_reason": reason}
    if measure == "state":
        told |= {"status": status, "reason": reason}
    return values | changes | told


def study_rows(seed=0, passes=1, rtols=(1e-3, 1e-5, 1e-7, 1e-9), scale=lambda contender: 1.0):
    """Two problems, thirteen contenders, four tolerances, with failures of every kind."""
    rng = random.Random(seed)
    rows = []
    for number in range(passes):
        for problem, difficulty in (("lotka_volterra", 1.0), ("van_der_pol", 6.0)):
            for package, options in CONTENDERS:
                for rtol in rtols:
                    label = " ".join([package, *options.values()])
                    made = row(
                        problem,
                        package,
                        options,
                        rtol=rtol,
                        number=number,
                        difficulty=difficulty,
                        rng=rng,
                        scale=scale(label),
                    )
                    rows.append(_fail_where_it_would(made))
    return rows


def _fail_where_it_would(made):
    solver, package, stiff = made["options"]["solver"], made["package"], made["problem"] == "van_der_pol"
    if package == "scipy":
        return failed(made, "not_comparable", "SciPy's solvers have no gradient", "gradient")
    if package == "diffeqpy" and stiff:
        return failed(made, "not_comparable", "diffeqpy is not installed: pip install diffeqpy")
    if stiff and package == "torchode":
        return failed(made, "memory", "went over the limit of 8192 MB")
    if stiff and package == "torchdiffeq":
        reason = "AssertionError: underflow in dt 3.6e-13" if made["rtol"] > 1e-6 else ""
        return failed(made, "failed", reason) if reason else failed(made, "timeout", "took over 300 s")
    if stiff and package == "diffrax" and made["rtol"] < 1e-6:
        return failed(made, "crashed", "the process ended by signal 11 (segmentation fault)")
    if stiff and made["options"].get("sensitivity") == "backsolve":
        return failed(made, "not_finite", "the gradient of a is not finite", "gradient")
    if solver == "bosh3" and made["rtol"] < 1e-8:
        return failed(made, "failed", "SolveError: MaxIters: 100000 steps did not reach t = 10")
    return made


def training_rows(seeds=5, steps=400, epochs=20):
    """Two models under two sensitivities, with several seeds."""
    rows = []
    for model, rate in (("NODE", 0.010), ("ANODE", 0.018)):
        for sensitivity, speed in (("discrete", 1.0), ("backsolve", 1.5)):
            for seed in range(seeds):
                rng = random.Random(f"{model} {sensitivity} {seed}")
                options = {"model": model, "sensitivity": sensitivity, "engine": "torch", "solver": "dopri5"}
                noise, loss, nfe, seconds = 0.0, [], [], []
                for step in range(steps):
                    noise = 0.9 * noise + rng.gauss(0, 0.05)
                    loss.append(0.02 + 0.7 * math.exp(-rate * step + noise))
                    evaluations = (30 if model == "ANODE" else 40) * (1 + step / steps) * speed
                    nfe.append((nfe[-1] if nfe else 0) + round(2 * evaluations))
                    seconds.append((seconds[-1] if seconds else 0) + 9e-5 * 2 * evaluations)
                per_epoch = [
                    (30 if model == "ANODE" else 40) * (1 + e / epochs) + rng.gauss(0, 2) for e in range(epochs)
                ]
                made = row("annuli", "pynode", options, rtol=1e-4, rng=rng)
                made |= {
                    "kind": "training",
                    "contender": f"{model} {sensitivity}",
                    "seed": seed,
                    "curves": {"seconds": seconds, "nfe": nfe, "loss": loss, "epoch_nfe": per_epoch},
                    "test_error": loss[-1] + abs(rng.gauss(0, 0.01)),
                    "test_metric": "cross-entropy",
                }
                rows.append(made)
    return rows


def source(rows, **changes):
    """What a report takes."""
    return {"rows": rows, "environments": {"e1": ENVIRONMENT}, "problems": PROBLEMS, "name": "made"} | changes
