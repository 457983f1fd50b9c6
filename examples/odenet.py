"""An ODE-Net on handwritten digits against a residual network and the RK-Net: error, size, memory, evaluations.

All three have the same stem and head; between them ResNet has six residual blocks, RK-Net and ODE-Net one block that
is solved to a tolerance. RK-Net backpropagates through the solver's steps, ODE-Net integrates the adjoint backwards.
Memory is what the graph keeps for the backward pass of one batch, measured on the torch engine.

    python examples/odenet.py

After R. T. Q. Chen et al., "Neural Ordinary Differential Equations", NeurIPS 2018, section 3 (table 1, figure 3).
"""

from __future__ import annotations

import copy
import time

import torch
from _shared import arguments, write
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from pynode import data, plot
from pynode.models import NODE, ODENet, ResNet, RKNet
from pynode.text import table

BLOCKS = 6
DEPTHS = (1, 2, 4, 8, 16, 32)
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


def networks(channels, **solver):
    """The three networks, with the same stem, head and (first) block at the start."""
    parts = {"channels": channels, "downsamplings": 1}
    ode = ODENet(1, 10, **parts, **solver)
    rk = RKNet(1, 10, **parts, **solver)
    rk.load_state_dict(ode.state_dict())
    return {"ResNet": residual(ode, BLOCKS), "RK-Net": rk, "ODE-Net": ode}


def residual(net, depth):
    """The residual network of a network's parts: layers z + f(z) with weights of their own."""
    field, stem, head = (copy.deepcopy(part) for part in (net.field, net.input_network, net.output_network))
    t = (0.0, float(depth))
    return ResNet(field, depth, shared=False, input_network=stem, output_network=head, t=t)


def train(name, net, parts, epochs, seed):
    """Adam with a one-cycle learning rate; the batches are the same for every network."""
    train_set, test_set = parts
    batches = DataLoader(train_set, 128, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(seed))
    optimizer = torch.optim.Adam(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-2, total_steps=epochs * len(batches))
    history = {"test_error": [], "nfe_forward": [], "nfe_backward": []}
    start = time.perf_counter()
    for _ in (bar := tqdm(range(epochs), desc=f"{name:<7}", unit="epoch")):
        forward, backward = [], []
        for x, y in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
            schedule.step()
            forward.append(net.stats.nfe)
            backward.append(net.stats.nfe_backward or net.stats.nfe)  # each residual layer is pulled back once
        history["nfe_forward"].append(sum(forward) / len(forward))
        history["nfe_backward"].append(sum(backward) / len(backward))
        with torch.no_grad():
            x, y = test_set.tensors
            history["test_error"].append((net(x).argmax(1) != y).float().mean().item())
        bar.set_postfix(error=f"{100 * history['test_error'][-1]:.1f} %", nfe=f"{history['nfe_forward'][-1]:.0f}")
    return {"parameters": sum(p.numel() for p in net.parameters()), "seconds": time.perf_counter() - start, **history}


def memory(net, x):
    """Bytes of the tensors that the graph of one call keeps for its backward pass."""
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = net(x)
    del out  # until here, so that no storage was used twice
    return sum(kept.values())


def memory_against_depth(channels, x, depths=DEPTHS):
    """Of residual layers, and of as many steps of the classical Runge–Kutta method."""
    found = {"ResNet": [], "RK-Net": [], "ODE-Net": []}
    for depth in depths:
        fixed = networks(channels, solver="rk4", dt=1 / depth, engine="torch")
        nets = {**fixed, "ResNet": residual(fixed["ODE-Net"], depth)}
        for name, net in nets.items():
            found[name].append(memory(net, x))
    return found


def tolerance_sweep(net, x, engine, tolerances=TOLERANCES):
    """A trained block at each tolerance: error of its last state, evaluations and seconds; in float64."""
    stem, field = copy.deepcopy(net.input_network).double(), copy.deepcopy(net.field).double()
    with torch.no_grad():
        z0 = stem(x.double())
        exact = NODE(field, rtol=1e-10, atol=1e-10, engine=engine)(z0)
    found = {key: [] for key in ("error", "nfe_forward", "nfe_backward", "seconds_forward", "seconds_gradient")}
    for tolerance in tqdm(tolerances, desc="tolerances"):
        block = NODE(field, rtol=tolerance, atol=tolerance, engine=engine, sensitivity="backsolve")
        block(z0).sum().backward()  # what is compiled once is not timed
        start = time.perf_counter()
        z = block(z0)
        middle = time.perf_counter()
        z.square().mean().backward()
        end = time.perf_counter()
        found["error"].append(((z - exact).norm() / exact.norm()).item())
        found["nfe_forward"].append(block.stats.nfe)
        found["nfe_backward"].append(block.stats.nfe_backward)
        found["seconds_forward"].append(middle - start)
        found["seconds_gradient"].append(end - start)
    return found


def figure(results):
    """Test error, NFE and memory of the networks; the trained block against the tolerance."""
    from matplotlib.figure import Figure

    page = Figure(figsize=(13, 7), dpi=120, layout="constrained")
    axes = page.subplots(2, 3)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(True, alpha=0.25)
        axis.set_prop_cycle(color=plot.COLOURS)
    (errors, evaluations, depth), (error, backward, seconds) = axes
    for k, (name, net) in enumerate(results["networks"].items()):
        epochs, colour = range(1, len(net["test_error"]) + 1), plot.COLOURS[k]
        errors.plot(epochs, [100 * e for e in net["test_error"]], marker=".", color=colour, label=name)
        style = "--" if name == "ODE-Net" else "-"  # RK-Net's line lies below
        evaluations.plot(epochs, net["nfe_forward"], color=colour, linestyle=style, label=f"{name}, forward")
        if name == "ODE-Net":
            evaluations.plot(epochs, net["nfe_backward"], color=colour, linestyle=":", label=f"{name}, backward")
        megabytes = [b / 2**20 for b in results["memory_against_depth"][name]]
        depth.plot(DEPTHS, megabytes, color=colour, marker=".", label=name)
    errors.set(title="test error", xlabel="epoch", ylabel="%", yscale="log")
    errors.set_yticks([2, 5, 10, 20, 50], ["2", "5", "10", "20", "50"], minor=False)
    errors.set_yticks([], minor=True)
    evaluations.set(title="evaluations of the block", xlabel="epoch", ylabel="NFE")
    depth.set(title="memory against depth", xlabel="layers, or steps of rk4", ylabel="MiB")
    depth.set_xscale("log", base=2)
    depth.set_yscale("log", base=2)
    depth.xaxis.set_major_formatter("{x:g}")
    depth.yaxis.set_major_formatter("{x:g}")
    for axis in (errors, evaluations, depth):
        axis.legend(frameon=False)
    for axis in (errors, evaluations):
        axis.xaxis.get_major_locator().set_params(integer=True)
    sweep = results["tolerance_sweep"]
    error.plot(TOLERANCES, sweep["error"], marker="o")
    error.plot(TOLERANCES, TOLERANCES, color="grey", linestyle=":", label="error = tolerance")
    error.set(title="numerical error against tolerance", xlabel="tolerance", ylabel="relative error of z(1)")
    error.set(xscale="log", yscale="log")
    error.legend(frameon=False)
    at = {}  # tolerances that cost the same are named at one point
    for *point, tolerance in zip(sweep["nfe_forward"], sweep["nfe_backward"], TOLERANCES, strict=True):
        at.setdefault(tuple(point), []).append(f"{tolerance:.0e}")
    backward.scatter(*zip(*at, strict=True), zorder=3)
    for point, tolerances in at.items():
        backward.annotate(", ".join(tolerances), point, xytext=(5, -9), textcoords="offset points", fontsize=8)
    ends = min(sweep["nfe_forward"]), max(sweep["nfe_forward"])
    backward.plot(ends, ends, color="grey", linestyle=":", label="backward = forward")
    backward.set(title="NFE backward against forward", xlabel="NFE forward", ylabel="NFE backward")
    backward.set_xscale("log", base=2)
    backward.set_yscale("log", base=2)
    backward.xaxis.set_major_formatter("{x:g}")
    backward.yaxis.set_major_formatter("{x:g}")
    backward.legend(frameon=False)
    for key, label in (("seconds_forward", "forward"), ("seconds_gradient", "forward and backward")):
        seconds.plot(sweep["nfe_forward"], [1000 * s for s in sweep[key]], marker="o", label=label)
    seconds.set(title="time against evaluations", xlabel="NFE forward", ylabel="ms")
    seconds.legend(frameon=False)
    return page


def run(out, engine="auto", seed=0, epochs=12, channels=16):
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    parts = data.digits(generator=torch.Generator().manual_seed(seed))
    nets = networks(channels, rtol=1e-3, atol=1e-3, engine=engine)
    results = {"engine": engine, "networks": {}}
    batch = parts[0].tensors[0][:128]
    for name, net in nets.items():
        found = train(name, net, parts, epochs, seed)
        on_torch = copy.deepcopy(net)
        if name != "ResNet":
            on_torch.solver_keywords["engine"] = "torch"
        results["networks"][name] = {**found, "memory": memory(on_torch, batch)}
    results["memory_against_depth"] = memory_against_depth(channels, batch)
    results["tolerance_sweep"] = sweep = tolerance_sweep(nets["ODE-Net"], batch[:32], engine)

    rows = [
        (
            name,
            f"{100 * r['test_error'][-1]:.2f} %",
            r["parameters"],
            f"{r['memory'] / 2**20:.2f}",
            f"{r['nfe_forward'][-1]:.1f}",
            f"{r['nfe_backward'][-1]:.1f}",
            f"{r['seconds']:.1f}",
        )
        for name, r in results["networks"].items()
    ]
    print(table(("network", "test error", "parameters", "MiB", "NFE forward", "NFE backward", "seconds"), rows))
    print("\nMiB kept for the backward pass, by layers or steps of rk4:")
    memory_rows = [
        (name, *(f"{b / 2**20:.2f}" for b in found)) for name, found in results["memory_against_depth"].items()
    ]
    print(table(("network", *map(str, DEPTHS)), memory_rows))
    print("\nThe block of the trained ODE-Net:")
    columns = zip(TOLERANCES, *sweep.values(), strict=True)
    sweep_rows = [
        (f"{tol:.0e}", f"{e:.1e}", f, b, f"{1000 * s:.1f}", f"{1000 * g:.1f}") for tol, e, f, b, s, g in columns
    ]
    header = ("tolerance", "error", "NFE forward", "NFE backward", "ms forward", "ms forward and backward")
    print(table(header, sweep_rows))
    write(out, results, lambda: {"odenet.png": figure(results)}, engine=engine, seed=seed)
    return results


if __name__ == "__main__":
    parser = arguments(__doc__, "odenet", on_torch="70 seconds", on_julia="2 minutes")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the parameters and the batches")
    parser.add_argument("--epochs", type=int, default=12, help="passes over the training images")
    parser.add_argument("--channels", type=int, default=16, help="channels of the features")
    run(**vars(parser.parse_args()))
