"""Each example runs, with fewer iterations than its user's, and shows what it claims."""

import contextlib
import io
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pynode import plot

EXAMPLES = Path(__file__).parents[1] / "examples"
TRAINED = [pytest.mark.exhaustive, pytest.mark.timeout(1000)]


def short_or_trained(short, trained=()):
    """A test at options that are soon done, and, among the exhaustive ones, at those with which the example learns."""
    runs = [pytest.param(short, marks=pytest.mark.slow, id="short"), pytest.param(trained, marks=TRAINED, id="trained")]
    return pytest.mark.parametrize("options", runs)


def run(name, out, *options, engine="torch", apart=False, timeout=900):
    """What an example writes and prints: `apart` as a program, else in this process, where the packages are loaded."""
    arguments = [f"{EXAMPLES / name}.py", "--engine", engine, "--out", f"{out}", *options]
    if apart:
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, timeout=timeout, check=False
        )
        assert done.returncode == 0, done.stderr
        stdout = done.stdout
    else:
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
            patch.syspath_prepend(EXAMPLES)  # as it is for a script
            patch.setattr(sys, "argv", arguments)
            runpy.run_path(arguments[0], run_name="__main__")
        stdout = printed.getvalue()
    results = json.loads((out / "results.json").read_text())
    how = results.pop("run")
    assert how["engine"] == engine
    assert isinstance(how["seed"], int)
    assert how["threads"] >= 1
    assert how["seconds"] > 0
    assert how["packages"]["torch"] == torch.__version__
    return results, stdout


def test_results_without_matplotlib(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    from _shared import write

    monkeypatch.setattr(plot, "available", lambda: False)
    write(tmp_path / "new", {"mse": 0.5}, pytest.fail, engine="torch", seed=3)
    results = json.loads((tmp_path / "new" / "results.json").read_text())
    assert (results["mse"], results["run"]["engine"], results["run"]["seed"]) == (0.5, "torch", 3)
    assert "No figures: matplotlib is not installed" in capsys.readouterr().out


def assert_figures(out, *names):
    for name in names:
        assert (out / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert (out / name).stat().st_size > 10_000


@short_or_trained(("--iterations", "40"), ("--iterations", "300"))
def test_cubic_regression(options, tmp_path):
    results, stdout = run("cubic_regression", tmp_path, *options, apart=True)
    resnet, node = results["ResNet"], results["ODE-Net"]
    assert resnet["parameters"] == node["parameters"] == 2 * 25 + 25 + 25 + 1
    # The targets' variance is 17.0; the best straight line leaves 2.4.
    most = 6 if options[-1] == "40" else 0.2
    assert resnet["mse"] < most
    assert node["mse"] < most
    assert node["mse_between"] < 2 * most
    assert resnet["nfe_forward"] == 3 < node["nfe_forward"]
    assert "ODE-Net" in stdout
    assert_figures(tmp_path, "fit.png", "trajectories.png")


@short_or_trained(("--iterations", "60"), ("--iterations", "400"))
def test_spiral_fit(options, tmp_path):
    results, _ = run("spiral_fit", tmp_path, *options)
    assert results["mse_after"] < (1.2 if options[-1] == "60" else 0.4) < 1.5 < results["mse_before"]
    assert results["engine"] == "torch"
    assert_figures(tmp_path, "training.png", "spiral.png")


@short_or_trained(("--systems", "Pendulum", "--iterations", "5", "--paths", "2", "--horizons", "5"))
def test_hamiltonian(options, tmp_path):
    summary = run("hamiltonian", tmp_path, "--seeds", "1", *options)[0]["summary"]
    for found in summary.values():
        assert set(found) == {"NODE", "HNN", "HNN, separable"}
        assert options or found["HNN, separable"]["over_node"] < 0.3
    assert_figures(tmp_path, "pendulum_energy.png", "pendulum_paths.png")


@short_or_trained(("--iterations", "4", "--paths", "4", "--horizons", "5"))
def test_lagrangian(options, tmp_path):
    summary = run("lagrangian", tmp_path, "--seeds", "1", *options)[0]["summary"]
    assert set(summary) == {"NODE", "LNN"}
    assert options or summary["LNN"]["energy_error"] < 0.5 * summary["NODE"]["energy_error"]
    assert_figures(tmp_path, "energy.png", "angles.png")


@short_or_trained(("--seeds", "1", "--iterations", "20"), ("--seeds", "3"))
def test_graph_ode(options, tmp_path):
    results, _ = run("graph_ode", tmp_path, *options)
    club = results["karate club"]["models"]
    assert club["GDE"]["parameters"] == club["GCN"]["parameters"]
    assert min(club[name]["mean"] for name in club) > (0.6 if options[-1] == "20" else 0.75)
    assert_figures(tmp_path, "accuracy.png")


@short_or_trained(("--iterations", "40"))
def test_hypersolver(options, tmp_path):
    summary = run("hypersolver", tmp_path, "--seeds", "1", *options)[0]["summary"]
    for method in ("euler", "midpoint"):
        assert summary[method]["trajectory_loss"] < summary[method]["base"] / 2
    assert_figures(tmp_path, "error.png")


@short_or_trained(("--iterations", "8"), ("--iterations", "300"))
def test_latent_spirals(options, tmp_path):
    results, stdout = run("latent_spirals", tmp_path, "--points", "30", *options)
    rnn, latent = results["30"]["RNN"], results["30"]["latent ODE"]
    if options[-1] != "8":
        assert latent["extrapolation"] < 0.3 < 0.5 * rnn["extrapolation"], results
        assert latent["interpolation"] < 0.5 * rnn["interpolation"]
    assert latent["extrapolation"] == pytest.approx(latent["extrapolation_irregular"], rel=0.1)  # one path
    assert "beyond, irregular" in stdout
    assert_figures(tmp_path, "paths_30.png")


@short_or_trained(("--iterations", "4", "4", "--paths", "8", "--series", "16", "--batch", "8"))
def test_latent_sde(options, tmp_path):
    results, _ = run("latent_sde", tmp_path, *options)
    sine, lorenz = results["sine"], results["lorenz"]
    assert sine["bound before"] < sine["bound"] < sine["log evidence"]
    assert sine["prior standard deviation"] == pytest.approx(sine["exact prior standard deviation"], rel=0.1)
    assert lorenz["bound before, a value"] < lorenz["bound, a value"]
    assert max(lorenz["half of the data"]["distance of the values"]) < (0.3 if not options else 0.6)
    if not options:
        assert sine["log evidence"] - sine["bound"] < 25
        assert sine["RMS distance to the exact mean"] < 0.04
        assert lorenz["RMSE of the posterior's mean"] < lorenz["RMSE of the observations"]
        for name in ("distance of the values", "distance of the changes"):
            assert sum(lorenz["samples"][name]) < 0.5 * sum(lorenz["samples before"][name])
    assert_figures(tmp_path, "sine.png", "lorenz.png", "lorenz_samples.png", "training.png")


@short_or_trained(("--iterations", "8"), ("--iterations", "400"))
def test_lynx_hare(options, tmp_path):
    results, _ = run("lynx_hare", tmp_path, "--members", "1", *options)
    assert_figures(tmp_path, "interpolation.png", "extrapolation.png")
    between, beyond = results["interpolation"], results["extrapolation"]
    assert beyond["mean of the years seen"] < beyond["linear, or the last value"]
    if options[-1] == "8":
        return
    assert between["latent ODE"] < between["linear, or the last value"]
    assert beyond["latent ODE"] < beyond["mean of the years seen"]
    assert between["share in the 90 % band"] > 0.6


@short_or_trained(("--steps", "40"))
def test_missing_observations(options, tmp_path):
    pytest.importorskip("aeon", reason="the extra data is not installed")
    options = ("--sets", "basic_motions", "--rates", "0.3", "--seeds", "1", *options)
    results, stdout = run("missing_observations", tmp_path, *options)
    accuracy = results["basic_motions"]["0.3"]["accuracy"]
    assert set(accuracy) == {"neural CDE", "GRU", "GRU-D", "ODE-RNN"}
    least = 0.4 if "40" in options else 0.75  # of four classes
    assert all(value > least for (value,) in accuracy.values()), accuracy
    assert "30%" in stdout
    assert_figures(tmp_path, "accuracy.png")


def test_missing_observations_are_held(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    from missing_observations import held

    x = torch.tensor([[torch.nan, 2.0, torch.nan, 4.0, 5.0], [1.0, 2.0, 3.0, torch.nan, torch.nan]])
    mask = torch.tensor([[False, True, False, True, False], [True, False, True, False, False]])
    expected = torch.tensor([[2.0, 2.0, 2.0, 4.0, 4.0], [1.0, 1.0, 3.0, 3.0, 3.0]])
    assert torch.equal(held(x.unsqueeze(2), mask).squeeze(2), expected)


@short_or_trained(("--channels", "8", "--epochs", "3"), ("--epochs", "6"))
def test_odenet(options, tmp_path):
    results, stdout = run("odenet", tmp_path, *options)
    resnet, rk, ode = (results["networks"][name] for name in ("ResNet", "RK-Net", "ODE-Net"))
    assert ode["parameters"] == rk["parameters"] < resnet["parameters"] / 3
    assert max(net["test_error"][-1] for net in (resnet, rk, ode)) < (0.8 if options[-1] == "3" else 0.2)
    assert ode["nfe_forward"][-1] > resnet["nfe_forward"][-1] == 6
    assert ode["memory"] < resnet["memory"] < rk["memory"]
    memory = results["memory_against_depth"]
    assert max(memory["ODE-Net"]) <= 1.1 * min(memory["ODE-Net"])
    for name in ("ResNet", "RK-Net"):
        per_layer = [(b - a) / n for a, b, n in zip(memory[name], memory[name][1:], (1, 2, 4, 8, 16), strict=False)]
        assert max(per_layer) == pytest.approx(min(per_layer), rel=0.1)
    sweep = results["tolerance_sweep"]
    assert sweep["error"][-1] < sweep["error"][0] / 10
    assert sweep["error"][-1] < 1e-3
    assert sweep["nfe_forward"] == sorted(sweep["nfe_forward"])
    assert sweep["nfe_forward"][-1] > 2 * sweep["nfe_forward"][0]
    assert "MiB kept for the backward pass" in stdout
    assert_figures(tmp_path, "odenet.png")


@pytest.mark.parametrize("how", [pytest.param((1, 1), marks=pytest.mark.slow), pytest.param((2, 4), marks=TRAINED)])
def test_image_strategies(how, tmp_path):
    seeds, epochs = how
    results, stdout = run("image_strategies", tmp_path, "--seeds", f"{seeds}", "--epochs", f"{epochs}")
    runs = results["runs"]
    parameters = [r["parameters"] for seeds in runs.values() for r in seeds]
    assert max(parameters) <= 1.1 * min(parameters)
    assert_figures(tmp_path, "training.png")
    if epochs == 1:
        assert min(r["accuracy"][-1] for seeds in runs.values() for r in seeds) > 0.3
        return

    def mean(name, key):
        return sum(r[key][-1] for r in runs[name]) / len(runs[name])

    assert min(mean(name, "accuracy") for name in runs) > 0.9
    for name in ("IL-NODE", "2nd order"):
        assert mean(name, "accuracy") >= mean("NODE", "accuracy")
        assert mean(name, "loss") < mean("NODE", "loss")
        assert mean(name, "nfe_forward") < mean("NODE", "nfe_forward")
    assert "±" in stdout


def test_image_strategies_without_the_files_of_a_data_set(tmp_path):
    command = [sys.executable, EXAMPLES / "image_strategies.py", "--dataset", "mnist", "--root", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0
    assert f"MNIST is not in {tmp_path}: train-images-idx3-ubyte" in done.stderr


@short_or_trained(("--iterations", "3"), ("--iterations", "120"))
def test_reflection(options, tmp_path):
    results, _ = run("reflection", tmp_path, *options)
    assert results.pop("NODE")["mse"] > 0.3
    assert set(results) == {"ANODE", "IL-NODE", "second order", "data control", "adaptive depth"}
    for name, found in results.items():
        assert options[-1] == "3" or found["mse"] < 1e-2, name
    assert_figures(tmp_path, "fit.png", "trajectories.png", "training.png")


@short_or_trained(("--epochs", "1", "--seeds", "1"), ("--epochs", "30", "--seeds", "2"))
def test_annuli(options, tmp_path):
    results, _ = run("annuli", tmp_path, *options)
    assert_figures(tmp_path, "training.png", "flow.png", "features.png", "surface.png")
    node, anode = results["NODE"], results["ANODE"]
    assert len(node["loss"]) == len(anode["loss"]) == int(options[1])
    if options[1] == "1":
        return
    assert list(results["equal_loss"]) == ["0", "1"]
    for at in results["equal_loss"].values():
        assert at["ratio"] >= 1.5
    assert max(node["nfe_forward"]) > 2.5 * node["nfe_forward"][0]  # grows all through the training
    assert anode["nfe_forward"][-1] < 1.3 * anode["nfe_forward"][12]
    assert anode["loss"][-1] < 0.05
    assert anode["mse_inside_slices"] < 0.2 * node["mse_inside_slices"]


@short_or_trained(("--iterations", "15"), ("--iterations", "60"))
def test_tracking(options, tmp_path):
    results, _ = run("tracking", tmp_path, *options)
    assert_figures(tmp_path, "training.png", "tracking.png", "flow.png")
    tracking, regularised = results["tracking"], list(results["regularisation"].values())
    assert tracking["cost_after"] < tracking["cost_before"]
    if options[-1] == "15":
        return
    assert tracking["cost_after"] < 0.2 * tracking["cost_before"]
    assert tracking["cost_unseen"] < 2 * tracking["cost_after"]
    assert tracking["distance_in_the_second_half"] < 0.4
    without, some, most = regularised
    assert most["energy"] < 0.5 * some["energy"] < 0.25 * without["energy"]
    assert most["nfe_forward"] < some["nfe_forward"] < without["nfe_forward"]
    assert min(without["accuracy"], some["accuracy"]) > 0.95


@short_or_trained(("--iterations", "5", "--sizes", "3", "5"), ("--iterations", "30", "--sizes", "3", "5"))
def test_depth_variance(options, tmp_path):
    results, _ = run("depth_variance", tmp_path, *options)
    assert_figures(tmp_path, "error.png", "matrix.png")
    if options[1] == "5":
        return
    assert min(results[f"constant, {kind}"]["error"] for kind in ("linear", "MLP")) > 0.7
    for kind in ("stacked", "Fourier", "Chebyshev", "Legendre", "PiecewiseLinear"):
        coarse, fine = results[f"{kind} 3"], results[f"{kind} 5"]
        assert fine["error"] < coarse["error"] < 0.25
        assert fine["error_of_matrix"] < coarse["error_of_matrix"]
        assert fine["parameters"] == 20 < results["constant, MLP"]["parameters"]


@short_or_trained(("--iterations", "20"), ("--iterations", "100"))
@pytest.mark.parametrize("known", ["torch", pytest.param("julia", marks=pytest.mark.julia)])
def test_universal_lotka_volterra(known, options, tmp_path):
    alone = known == "julia"
    results, _ = run("universal_lotka_volterra", tmp_path, "--known", known, *options, engine=known, apart=alone)
    assert_figures(tmp_path, "trajectory.png")
    universal, neural = results["universal"]["trajectory"], results["neural"]["trajectory"]
    if options[-1] == "20":
        assert universal["rmse_within"] < results["universal"]["untrained"]["rmse_within"]
        return
    assert universal["rmse_beyond"] < 0.2
    assert universal["rmse_beyond"] < 0.6 * neural["rmse_beyond"]
    assert universal["interaction"] < 0.6 * neural["interaction"]
    assert universal["rmse_within"] < results["universal"]["untrained"]["rmse_within"] / 10


@pytest.mark.slow
def test_universal_lotka_volterra_says_why_it_is_skipped(tmp_path):
    command = [sys.executable, EXAMPLES / "universal_lotka_volterra.py", "--known", "julia"]
    command += ["--engine", "torch", "--out", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert "Skipped: the field is written in Julia and runs on the julia engine only" in done.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_distributed_goes_on_with_another_number_of_processes(tmp_path):
    """An epoch of one process, then two of two, are three of one: with steps that do not depend on the batch."""
    keywords = ("--solver", "rk4", "--engine", "torch", "--epochs")

    def torchrun(processes, out, epochs):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", f"{processes}"]
        command += [EXAMPLES / "distributed.py", "--out", out, *keywords, f"{epochs}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    torchrun(1, tmp_path / "changed", 1)
    stdout = torchrun(2, tmp_path / "changed", 3)
    assert "from epoch 1 of " in stdout
    assert "in 2 processes" in stdout
    torchrun(1, tmp_path / "one", 3)
    changed, one = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("changed", "one"))
    assert changed["epoch"] == one["epoch"] == 3
    assert changed["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert one["losses"][-1] < 0.9 * one["losses"][0]
    for name, x in one["model"].items():
        torch.testing.assert_close(changed["model"][name], x, rtol=1e-3, atol=1e-4)
    results = json.loads((tmp_path / "changed" / "results.json").read_text())
    assert results["processes"] == 2
    assert len(results["losses"]) == 3
    assert_figures(tmp_path / "changed", "training.png")


def skip_without_lightning():
    try:
        import lightning  # noqa: F401
    except Exception as error:  # also where a package that it uses does not work here
        pytest.skip(f"Lightning cannot be imported: {error}")


@pytest.mark.slow
def test_lightning_trainer(tmp_path):
    skip_without_lightning()
    results, stdout = run("lightning_trainer", tmp_path / "one", "--epochs", "4", apart=True)
    assert results["losses"][-1] < 0.9 * results["losses"][0]
    assert results["difference_of_the_checkpoint"] == 0
    assert "accuracy" in stdout
    assert_figures(tmp_path / "one", "training.png")
    both, _ = run("lightning_trainer", tmp_path / "both", "--epochs", "4", "--processes", "2", apart=True)
    assert both["processes"] == 2
    assert both["losses"] == pytest.approx(results["losses"], rel=0.3)


@pytest.mark.parametrize("name", [path.stem for path in sorted(EXAMPLES.glob("[!_]*.py"))])
def test_every_example_says_how_it_is_used(name, monkeypatch, capsys):
    if name == "lightning_trainer":
        skip_without_lightning()
    monkeypatch.syspath_prepend(EXAMPLES)  # as it is for a script
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert stop.value.code == 0
    stdout = capsys.readouterr().out
    for option in ("--out", "--engine", "--seed", "Takes, at the defaults"):
        assert option in stdout


@short_or_trained(("--epochs", "1"), ("--epochs", "60"))
def test_flow_densities(options, tmp_path):
    results, stdout = run("flow_densities", tmp_path, "--sets", "moons", *options)
    # The best normal distribution of the moons leaves 3.30 nats.
    assert options[-1] == "1" or results["moons"]["nll"] < 3.22
    assert results["moons"]["integral"] == pytest.approx(1, abs=1e-3)
    assert "moons" in stdout
    assert_figures(tmp_path, "densities.png")


@pytest.mark.slow
def test_digits_flow(tmp_path):
    results, _ = run("digits_flow", tmp_path, "--epochs", "2")
    assert results["FFJORD"] < 2.6 < results["uniform"] == pytest.approx(4.087, abs=1e-3)
    assert_figures(tmp_path, "samples.png")


@short_or_trained(("--epochs", "1"), ("--epochs", "30"))
def test_rnode(options, tmp_path):
    results, stdout = run("rnode", tmp_path, "--sets", "8gaussians", *options)
    assert_figures(tmp_path, "8gaussians.png")
    rows = results["8gaussians"]
    assert list(rows) == ["none", "kinetic", "jacobian", "both"]
    if options[-1] == "1":
        return
    assert "both: NFE lower by 30%" in stdout
    assert rows["both"]["kinetic"] < rows["none"]["kinetic"]
    assert rows["both"]["jacobian"] < rows["none"]["jacobian"]
    assert rows["both"]["nll"] < rows["none"]["nll"] + 0.1


@short_or_trained(("--epochs", "1"), ("--epochs", "60"))
def test_conditional_flow(options, tmp_path):
    results, _ = run("conditional_flow", tmp_path, *options)
    for name in ("moons", "8gaussians"):
        assert options[-1] == "1" or results[name]["nll"] < results[name]["nll_other_context"] - 0.2
        assert results[name]["integral"] == pytest.approx(1, abs=1e-3)
    assert_figures(tmp_path, "densities.png")
