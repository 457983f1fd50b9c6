"""Spirals observed at 30, 50 and 100 irregular times: a latent ODE against a recurrent network.

Both see the first half of each path, with noise, and are asked for all of it. The table is the root mean squared error
against the paths without noise: between the first and the last observation; and beyond, in the second half, which
neither saw, on the path's grid of 100 times (as in the paper) and at as many irregular times as were observed. The
recurrent network, which is told the time to the next observation, predicts each point from those before it, the latent
ODE reads the whole series first. The recurrent network learns the step from one observation to the next: beyond the
last one it does well with steps like those of its training, and badly with the many short ones of the grid. The latent
ODE gives one and the same path for any times. A hundred observations are all of the window's grid: there both ways of
asking are the same, and so, nearly, are the errors of the two models.

The paths of the test set go on along stretches of the spirals that others of the training set were observed on. The
last column is of paths that leave these stretches: the latent ODE knows nothing of the field there.

    python examples/latent_spirals.py

After R. T. Q. Chen et al., "Neural Ordinary Differential Equations", NeurIPS 2018, section 5.1 and table 2.
"""

from __future__ import annotations

import math
import time

import torch
from _shared import arguments, write
from torch import nn
from tqdm import trange

from pynode import data, plot
from pynode.models import RNN, LatentODE
from pynode.nn import TimeSequential

WINDOW, BATCH, NOISE, WIDTH = 100, 100, 0.3, 48
SCALE = 4.0  # the networks see the plane in this unit
# Angles at which paths start. Observed are 0.6 π from there, and 0.6 π more are asked for.
TRAIN, TEST, OFF = ((first * math.pi, last * math.pi) for first, last in ((0.6, 4.2), (0.6, 3.6), (3.6, 4.2)))


def train(name, loss, parameters, n, iterations, lr):
    """Adam down a cosine; `loss` takes the indices of a batch and the share of training done. Seconds."""
    parameters = list(parameters)
    optimizer = torch.optim.Adam(parameters, lr, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    start = time.perf_counter()
    for i in (bar := trange(iterations, desc=f"{name:<10}")):
        optimizer.zero_grad()
        value = loss(torch.randint(n, (BATCH,)), i / iterations)
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 30.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{value.item():.1f}", refresh=False)
    return time.perf_counter() - start


def irregular(t, path, times):
    """Times beyond the window, as irregular as those of the observations, and the truth there."""
    asked = t + times[:, WINDOW : WINDOW + 1]
    index = torch.searchsorted(times.contiguous(), asked - 1e-4).unsqueeze(2)
    return asked, path.gather(1, index.expand(-1, -1, 2))


@torch.no_grad()
def evaluate(model, test):
    """Errors, and predictions at the path's times: those of the RNN, or draws of the latent ODE, whose mean counts."""
    x, t, path, times = test
    keywords = {"n_samples": 10} if isinstance(model, LatentODE) else {}
    asked, truth = irregular(t, path, times)
    shown = model.predict(x, t, times[0], **keywords)
    on_grid, at_asked = (p.reshape(-1, *p.shape[-3:]).mean(0) for p in (shown, model.predict(x, t, asked, **keywords)))
    within = (times >= t[:, :1]) & (times <= t[:, -1:])
    errors = {
        "interpolation": (on_grid - path)[within],
        "extrapolation": (on_grid - path)[:, WINDOW:],
        "extrapolation_irregular": at_asked - truth,
    }
    return {name: SCALE * error.pow(2).mean().sqrt().item() for name, error in errors.items()}, SCALE * shown


def compare(n_obs, engine, seed, iterations):
    """Train both models at one number of observations; results, and predictions of the test set."""
    draw = torch.Generator().manual_seed(seed)
    train_set, test, off = (
        data.spirals(n, n_obs, NOISE, start=start, generator=draw).tensors
        for n, start in ((1000, TRAIN), (200, TEST), (200, OFF))
    )
    train_set, test, off = ((x / SCALE, t, path / SCALE, times) for x, t, path, times in (train_set, test, off))
    x, t, _, _ = train_set
    torch.manual_seed(seed)
    rnn = RNN(2, hidden=WIDTH)
    # A linear decoder makes the state the plane itself, where the two spirals stay apart.
    field = TimeSequential(nn.Linear(2, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 2))
    latent = LatentODE(
        2,
        2,
        field=field,
        decoder=nn.Linear(2, 2),
        hidden=WIDTH,
        noise_std=NOISE / SCALE,
        rtol=1e-3,
        atol=1e-4,
        engine=engine,
    )

    def rnn_loss(batch, done):
        return -rnn.log_prob(x[batch], t[batch]).mean()

    def latent_loss(batch, done):
        return -latent.elbo(x[batch], t[batch], kl_weight=min(1.0, done / 0.3)).mean()

    # An iteration of the recurrent network costs a fraction of the other's: it gets more of them.
    seconds = {
        "RNN": train(f"RNN {n_obs}", rnn_loss, rnn.parameters(), len(x), 2 * iterations, 1e-2),
        "latent ODE": train(f"latent {n_obs}", latent_loss, latent.parameters(), len(x), iterations, 2e-2),
    }
    results, shown = {}, {}
    for name, model in {"RNN": rnn, "latent ODE": latent}.items():
        errors, shown[name] = evaluate(model, test)
        results[name] = {
            **errors,
            "extrapolation_off": evaluate(model, off)[0]["extrapolation"],
            "seconds": seconds[name],
            "parameters": sum(p.numel() for p in model.parameters()),
        }
    return results, test, shown


def run(out, engine="auto", seed=0, iterations=1200, points=(30, 50, 100)):
    torch.set_num_threads(1)  # the networks are too small to share between threads
    results, shown = {}, {}
    for n_obs in points:
        results[str(n_obs)], (x, _, path, _), predictions = compare(n_obs, engine, seed, iterations)
        x, path = SCALE * x, SCALE * path
        predictions = {name: p[..., :4, :, :] for name, p in predictions.items()}
        shown[f"paths_{n_obs}.png"] = (predictions, path[:4], list(x[:4]), WINDOW)

    print("\nRMSE        points  between  beyond, on the grid  beyond, irregular  beyond all, on the grid  seconds")
    for n_obs, both in results.items():
        for name, r in both.items():
            print(
                f"{name:<11} {n_obs:>6}  {r['interpolation']:>7.3f}  {r['extrapolation']:>19.3f}  "
                f"{r['extrapolation_irregular']:>17.3f}  {r['extrapolation_off']:>23.3f}  {r['seconds']:>7.0f}"
            )
    write(
        out,
        results,
        lambda: {name: plot.paths(*arguments) for name, arguments in shown.items()},
        engine=engine,
        seed=seed,
    )
    return results


if __name__ == "__main__":
    parser = arguments(__doc__, "latent_spirals", on_torch="8 minutes", on_julia="6 minutes")
    parser.add_argument("--seed", type=int, default=0, help="of the data and the parameters")
    parser.add_argument("--iterations", type=int, default=1200, help="steps of the optimizer, latent ODE")
    parser.add_argument("--points", type=int, nargs="+", default=[30, 50, 100], help="observations of each path")
    run(**vars(parser.parse_args()))
