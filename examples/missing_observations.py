"""Series of which observations are left out, classified by a neural CDE, a GRU, GRU-D and an ODE-RNN.

Two real data sets that come with aeon: BasicMotions (accelerometer and gyroscope on a wrist, 6 channels, every fourth
of 100 times here, 4 activities, 40 + 40 series) and JapaneseVowels (12 cepstral coefficients of speech, 7 to 29 times,
9 speakers, 270 + 370 series). A share of the observations of each series, whole times, is left out, of training and
test alike. The neural CDE takes a path through what is left, with the time as a channel; its field depends on the
path's value too. The GRU sees each observation and the time since the one before, GRU-D (Che et al., Scientific Reports
2018) also lets its state decay in between, and that of the ODE-RNN follows an ODE. All train on the same batches with
Adam for equally many steps, each of which leaves out a further 30 % of the observations at random. Where 70 % of
BasicMotions are left out, the neural CDE and the GRU get each observation held until the next one, at all 25 times, so
that the path of the CDE rests and then moves within one step, in the place of a long slope.

Settings were compared by four-fold cross-validation within the training set (on JapaneseVowels two of the folds; the
ODE-RNN has those of the others there): for every model learning rates, the share that a step leaves out, and the size
of the state; for the neural CDE also what its field reads and is made of, the scale of the channels, interpolation, and
read-out, so that more was tried for it than for the others. A field that reads the path (0.94 for 0.88 on BasicMotions,
mean of 0, 30 and 70 % left out; the standard error is 0.02) and leaving out more in each step (0.91 for 0.85) helped it
most, the latter the others as much (GRU-D: 0.94 for 0.86). Straight lines in the place of cubics, observation counts as
channels, a mean of the states as read-out, weight decay and more steps did not. Holding observations was compared for
the neural CDE and the GRU at 70 % of BasicMotions only, with five seeds: 0.90 for 0.75 and 0.87 for 0.81, standard
error 0.03.

Accuracy on the test set of BasicMotions, mean and standard deviation of three seeds, julia engine:

    left out  neural CDE     GRU            GRU-D          ODE-RNN
          0%  0.983 ± 0.012  0.958 ± 0.031  0.983 ± 0.024  0.992 ± 0.012
         30%  0.967 ± 0.012  0.900 ± 0.020  0.975 ± 0.035  0.975 ± 0.020
         50%  0.900 ± 0.020  0.767 ± 0.012  0.908 ± 0.047  0.867 ± 0.072
         70%  0.908 ± 0.024  0.875 ± 0.061  0.858 ± 0.062  0.750 ± 0.035

and on JapaneseVowels:

    left out  neural CDE     GRU            GRU-D          ODE-RNN
          0%  0.966 ± 0.011  0.977 ± 0.005  0.972 ± 0.003  not measured
         30%  0.967 ± 0.003  0.973 ± 0.000  0.972 ± 0.003  0.974 ± 0.006
         50%  0.962 ± 0.004  0.968 ± 0.007  0.970 ± 0.006  not measured
         70%  0.951 ± 0.004  0.956 ± 0.009  0.965 ± 0.007  0.953 ± 0.009

On BasicMotions the neural CDE is more accurate than the GRU at each share, and as accurate as GRU-D; one series of the
40 is 0.025. Without holding observations the neural CDE has 0.758 and the GRU 0.792 at 70 %. On JapaneseVowels the
neural CDE is behind the best of the others by 0.007 to 0.014.

    pip install "pynode-sciml[data]"
    python examples/missing_observations.py
"""

from __future__ import annotations

import time

import torch
from _shared import arguments, write
from torch import nn

from pynode import plot
from pynode.models import ODERNN, NeuralCDE

SPAN = 4.0  # the time that the longest series takes
STEPS = {"basic_motions": 120, "japanese_vowels": 150}  # of the optimizer
EVERY = {"basic_motions": 4, "japanese_vowels": 1}  # which times are taken at all
MODELS = ("neural CDE", "GRU", "GRU-D", "ODE-RNN")
BATCH = 64  # series in a step, about
LEFT = 3  # observations that are left at least
THINNED = 0.3  # share of the observations that each training step leaves out anew
SCALE = 0.4  # standard deviation of the path's channels
HOLDS_FROM = {"basic_motions": 0.7, "japanese_vowels": 1.0}  # share left out from which observations are held
LEARNING_RATE = {
    "basic_motions": {"neural CDE": 1e-2, "GRU": 1e-2, "GRU-D": 2e-2, "ODE-RNN": 1e-2},
    "japanese_vowels": dict.fromkeys(MODELS, 2e-2),
}


class GRU(nn.Module):
    """A GRU at the observations, whose input has the time since the one before; or, with `decays`, GRU-D.

    GRU-D lets the state decay in between, and takes what was missing as the last value, which decays to the mean, zero.
    """

    def __init__(self, obs_dim, hidden, out_dim, decays):
        super().__init__()
        self.decays, self.cell = decays, nn.GRUCell(2 * obs_dim if decays else obs_dim + 1, hidden)
        if decays:
            self.decay_input = nn.Parameter(torch.zeros(obs_dim))
            self.decay_state = nn.Parameter(torch.zeros(hidden))
        self.head = nn.Linear(hidden, out_dim)

    def forward(self, x, t, mask):
        """Logits."""
        h, last = x.new_zeros(len(x), self.cell.hidden_size), torch.zeros_like(x[:, 0])
        since = x.new_zeros(len(x), 1)
        gaps = torch.cat([t[:1], t.diff()])
        for i in range(x.shape[1]):
            seen, since = mask[:, i, None], since + gaps[i]
            if self.decays:
                values = torch.where(seen, x[:, i], last * torch.exp(-since * self.decay_input.relu()))
                decayed = h * torch.exp(-since * self.decay_state.relu())
                new = self.cell(torch.cat([values, seen.expand_as(values).to(x)], 1), decayed)
            else:
                new = self.cell(torch.cat([torch.where(seen, x[:, i], 0.0), since], 1), h)
            h, last = torch.where(seen, new, h), torch.where(seen, x[:, i], last)
            since = torch.where(seen, 0.0, since)
        return self.head(h)


class Classifier(nn.Module):
    """One of the models, from observations to the logits of the classes."""

    def __init__(self, kind, obs_dim, classes, step, holds, engine):
        super().__init__()
        self.kind, self.holds = kind, holds
        if kind == "neural CDE":
            keywords = {"reads_path": True, "solver": "midpoint", "dt": step, "engine": engine}
            self.model = NeuralCDE(obs_dim, 16, classes, width=32, **keywords)
        elif kind == "ODE-RNN":
            self.model = ODERNN(obs_dim, 32, classes, width=32, solver="rk4", dt=1.0, engine=engine)
        else:
            self.model = GRU(obs_dim, 32, classes, decays=kind == "GRU-D")

    def forward(self, x, t, mask):
        """Logits."""
        if self.kind in ("GRU-D", "ODE-RNN"):
            return self.model(x, t, mask)
        seen = mask
        if self.holds:
            x, seen = held(x, mask), torch.ones_like(mask)
        if self.kind == "GRU":
            return self.model(x, t, seen)
        path = self.model.path(SCALE * x, t, seen)
        along = self.model.trajectory(path, t)
        last = torch.where(mask, torch.arange(len(t)), 0).amax(1)
        return along[last, torch.arange(len(x))]


def held(x, mask):
    """Each observation until the time before the next, and the first from the start on."""
    place = torch.where(mask, torch.arange(mask.shape[1]), -1).cummax(1).values
    place = torch.where(place < 0, mask.int().argmax(1, keepdim=True), place)
    return x.gather(1, place.unsqueeze(2).expand_as(x))


def load(name):
    """Series `(series, time, channels)`, NaN behind their ends, and classes, of the training and the test set."""
    from aeon import datasets

    sets, every = [], EVERY[name]
    for split in ("train", "test"):
        series, labels = getattr(datasets, f"load_{name}")(split=split)
        rows = [torch.as_tensor(s.T.copy(), dtype=torch.float32)[::every] for s in series]
        sets.append((nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=torch.nan), list(labels)))
    longest = max(x.shape[1] for x, _ in sets)
    names = sorted(set(sets[0][1]))
    mean = sets[0][0].flatten(0, 1).nanmean(0)
    std = (sets[0][0] - mean).square().flatten(0, 1).nanmean(0).sqrt()
    return [
        (
            nn.functional.pad((x - mean) / std, (0, 0, 0, longest - x.shape[1]), value=torch.nan),
            torch.tensor([names.index(label) for label in labels]),
        )
        for x, labels in sets
    ]


def left_out(there, rate, generator):
    """Which observations are left of those that are there, `(series, time)`."""
    place = torch.where(there, torch.rand(there.shape, generator=generator), 2.0).argsort(1).argsort(1)
    left = ((1 - rate) * there.sum(1, keepdim=True)).round().clamp(min=LEFT)
    return there & (place < left)


def train(kind, sets, masks, lr, steps, holds, seed, engine):
    """The accuracy on the test set of a model that is trained, the number of its parameters, and seconds."""
    (x, y), (x_test, y_test) = sets
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    t = torch.linspace(0, SPAN, x.shape[1])
    model = Classifier(kind, x.shape[2], int(y.max()) + 1, float(t[1]), holds, engine)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    start = time.perf_counter()
    rows = []
    for _ in range(steps):
        rows = rows or list(torch.randperm(len(x)).chunk(max(1, round(len(x) / BATCH))))
        of = rows.pop()
        mask = left_out(masks[0][of], THINNED, generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[of], t, mask), y[of]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        accuracy = (model(x_test, t, masks[1]).argmax(1) == y_test).double().mean().item()
    return accuracy, sum(p.numel() for p in model.parameters()), seconds


def figures(results):
    """The mean accuracy against the share that is left out."""

    def line(rates, model):
        return [float(rate) for rate in rates], [
            sum(r["accuracy"][model]) / len(r["accuracy"][model]) for r in rates.values()
        ]

    panels = {}
    for name, rates in results.items():
        models = next(iter(rates.values()))["accuracy"]
        panels[f"accuracy, {name}"] = {model: line(rates, model) for model in models}
    return {"accuracy.png": plot.lines(panels, xlabel="share of observations left out")}


def run(out, engine="auto", seed=0, seeds=3, steps=None, rates=(0.0, 0.3, 0.5, 0.7), sets=tuple(STEPS), models=MODELS):
    torch.set_num_threads(1)  # batches of some tens of series are too small to share between threads
    results = {}
    for name in sets:
        parts, results[name] = load(name), {}
        print(f"{name}: accuracy, mean ± standard deviation of {seeds} seeds")
        print("left out  " + "  ".join(f"{kind:<13}" for kind in models))
        for rate in rates:
            of_rate = {"accuracy": {}, "parameters": {}, "seconds": {}}
            for kind in models:
                done = []
                for k in range(seed, seed + seeds):
                    generator = torch.Generator().manual_seed(k)
                    masks = [left_out(x.isfinite().all(2), rate, generator) for x, _ in parts]
                    n, lr = STEPS[name] if steps is None else steps, LEARNING_RATE[name][kind]
                    done.append(train(kind, parts, masks, lr, n, rate >= HOLDS_FROM[name], k, engine))
                for key, values in zip(of_rate, zip(*done, strict=True), strict=True):
                    of_rate[key][kind] = list(values)
            results[name][str(rate)] = of_rate
            found = [torch.tensor(of_rate["accuracy"][kind]) for kind in models]
            row = "  ".join(f"{x.mean():.3f} ± {x.std(correction=0):.3f}" for x in found)
            print(f"{rate:>8.0%}  {row}", flush=True)
    write(out, results, lambda: figures(results), engine=engine, seed=seed)


if __name__ == "__main__":
    parser = arguments(__doc__, "missing_observations", on_torch="15 minutes", on_julia="8 minutes")
    parser.add_argument("--seed", type=int, default=0, help="the first seed: of parameters and what is left out")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--steps", type=int, help="of the optimizer; where left out, 120 and 150 for the two sets")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0, 0.3, 0.5, 0.7], help="shares that are left out")
    parser.add_argument("--sets", nargs="+", default=list(STEPS), choices=list(STEPS), help="of data")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS, help="what is trained")
    run(**vars(parser.parse_args()))
