"""Hare and lynx, 1900 to 1920, by latent ODEs: years in between that were left out, and years after the last one seen.

Several members, trained from different parameters on windows of the logarithm of the pelts, predict together: the bands
hold the uncertainty of the initial state, the differences between members, and the noise of observations. The table
has the root mean squared error of the logarithm at the years left out, beside simple rules, and the share of these
years' numbers that lies in the band of nine tenths.

The years ahead are hard: one cycle was seen, and from 1916 to 1919 the hare are fewer than in any year before. The
bands, of models that all learned from that cycle, do not hold these numbers.

    python examples/lynx_hare.py
"""

from __future__ import annotations

import time

import numpy as np
import torch
from _shared import arguments, write
from tqdm import trange

from pynode import data, plot
from pynode.models import LatentODE

WINDOW = 6  # years that the model sees at once
NOISE = 0.2  # of an observation, in standard deviations of the logarithms
UNIT = 10.0  # years in a unit of the model's time
FINE = 10  # times in a year at which a prediction is drawn


def member(x, seen, engine, iterations, label):
    """A latent ODE trained on all windows of the series x `(time, 2)`, of which `seen` says what it may use."""
    starts = torch.arange(int(seen.nonzero().max()) - WINDOW + 2)
    index = starts[:, None] + torch.arange(WINDOW)
    t = torch.arange(WINDOW) / UNIT
    model = LatentODE(2, 2, hidden=16, noise_std=NOISE, rtol=1e-3, atol=1e-4, engine=engine)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=iterations)
    for i in (bar := trange(iterations, desc=label)):
        optimizer.zero_grad()
        loss = -model.elbo(x[index], t, seen[index], kl_weight=min(1.0, 2 * i / iterations)).mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.1f}", refresh=False)
    return model


@torch.no_grad()
def predict(model, x, seen, n_samples):
    """Draws `(n_samples · windows, fine times, 2)`, NaN but from a window's first to its last year seen.

    Those of the last window go on to the end.
    """
    starts = range(int(seen.nonzero().max()) - WINDOW + 2)
    pooled = torch.full((len(starts), n_samples, FINE * (len(x) - 1) + 1, 2), torch.nan)
    for i in starts:
        years = slice(i, i + WINDOW)
        first, last = (i + seen[years].nonzero()[[0, -1], 0]).tolist()
        end = len(x) - 1 if i == starts[-1] else last
        new = torch.arange(FINE * (first - i), FINE * (end - i) + 1) / FINE / UNIT
        draws = model.predict(
            x[None, years], torch.arange(WINDOW) / UNIT, new, seen[None, years], n_samples=n_samples, noise=True
        )
        pooled[i, :, FINE * first : FINE * end + 1] = draws[:, 0]
    return pooled.flatten(0, 1)


def forecast(log_pelts, seen, engine, seed, iterations, members, label):
    """Draws of the logarithm `(draws, fine times, 2)`, and measures at the years that were not seen."""
    mean, std = log_pelts[seen].mean(0), log_pelts[seen].std(0)
    x = (log_pelts - mean) / std
    start, draws = time.perf_counter(), []
    for i in range(members):
        torch.manual_seed(seed + i)
        model = member(x, seen, engine, iterations, f"{label} {i + 1}/{members}")
        draws.append(predict(model, x, seen, 300) * std + mean)
    draws = torch.cat(draws)
    at_years = draws[:, ::FINE]
    low, high = at_years.nanquantile(torch.tensor([0.05, 0.95]), dim=0)
    inside = ((log_pelts >= low) & (log_pelts <= high))[~seen]

    def rmse(predicted):
        return (predicted - log_pelts)[~seen].pow(2).mean().sqrt().item()

    years = np.arange(len(x))
    linear = np.stack([np.interp(years, years[seen], log_pelts[seen, c]) for c in range(2)], axis=1)
    return draws, {
        "latent ODE": rmse(at_years.nanmean(0)),
        "linear, or the last value": rmse(torch.from_numpy(linear)),
        "mean of the years seen": rmse(mean),
        "share in the 90 % band": inside.float().mean().item(),
        "seconds": time.perf_counter() - start,
        "nfe": model.stats.nfe,
    }


def run(out, engine="auto", seed=0, iterations=600, members=4):
    torch.set_num_threads(1)  # the networks are too small to share between threads
    years, pelts = data.lynx_hare()
    fine = torch.arange(FINE * (len(years) - 1) + 1) / FINE + years[0]
    between, beyond = torch.ones(len(years), dtype=torch.bool), years <= 1914
    between[2::4] = False
    results, shown = {}, {}
    for task, seen in {"interpolation": between, "extrapolation": beyond}.items():
        draws, results[task] = forecast(pelts.log(), seen, engine, seed, iterations, members, task)
        titles = ("hare, thousands of pelts", "lynx, thousands of pelts")
        panels = {title: (fine, draws[:, :, c].exp()) for c, title in enumerate(titles)}
        points = {
            title: {"seen": (years[seen], pelts[seen, c]), "left out": (years[~seen], pelts[~seen, c])}
            for c, title in enumerate(titles)
        }
        shown[f"{task}.png"] = (panels, points, 1914.0 if task == "extrapolation" else None)

    print(f"\n{'RMSE of the logarithm at the years left out':<45}{'1902, 06, …, 18':>17}{'1915 to 1920':>15}")
    for name in results["interpolation"]:
        cells = [r[name] for r in results.values()]
        print(f"{name:<45}" + f"{cells[0]:>17.3g}{cells[1]:>15.3g}")

    def figures():
        return {
            name: plot.bands(panels, points, since=since, xlabel="year")
            for name, (panels, points, since) in shown.items()
        }

    write(out, results, figures, engine=engine, seed=seed)
    return results


if __name__ == "__main__":
    parser = arguments(__doc__, "lynx_hare", on_torch="100 seconds", on_julia="45 seconds")
    parser.add_argument("--seed", type=int, default=0, help="of the first member's parameters")
    parser.add_argument("--iterations", type=int, default=600, help="steps of the optimizer for each member")
    parser.add_argument("--members", type=int, default=4, help="models that predict together")
    run(**vars(parser.parse_args()))
