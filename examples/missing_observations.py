"""Series of which observations are left out, classified by a neural CDE, an ODE-RNN and GRU-D.

Two real data sets that come with aeon: BasicMotions (accelerometer and gyroscope on a wrist, 6 channels, every fourth
of 100 times here, 4 activities, 40 + 40 series) and JapaneseVowels (12 cepstral coefficients of speech, 7 to 29 times,
9 speakers, 270 + 370 series). A share of the observations of each series, whole times, is left out, of training and
test alike. The neural CDE takes a path through what is left, with the time as a channel; the state of the ODE-RNN
follows an ODE in between and jumps at each; GRU-D (Che et al., Scientific Reports 2018) lets its state decay. All three
train on the same batches with Adam for equally many steps, few of them, and no setting was searched for. Accuracy on
BasicMotions after 80 steps, mean and standard deviation of three seeds, julia engine:

    left out  neural CDE     ODE-RNN        GRU-D
          0%  0.808 ± 0.059  0.942 ± 0.042  0.975 ± 0.000
         30%  0.658 ± 0.077  0.942 ± 0.031  0.908 ± 0.031
         50%  0.450 ± 0.054  0.808 ± 0.051  0.867 ± 0.066
         70%  0.408 ± 0.062  0.700 ± 0.106  0.783 ± 0.024

and on JapaneseVowels:

    left out  neural CDE     ODE-RNN        GRU-D
          0%  0.906 ± 0.017  0.972 ± 0.003  0.962 ± 0.006
         30%  0.912 ± 0.005  0.963 ± 0.006  0.964 ± 0.001
         50%  0.899 ± 0.019  0.965 ± 0.002  0.964 ± 0.008
         70%  0.865 ± 0.007  0.938 ± 0.004  0.957 ± 0.004

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
STATE = {"basic_motions": 16, "japanese_vowels": 16}  # size of a hidden state
EVERY = {"basic_motions": 4, "japanese_vowels": 1}  # which times are taken at all
MODELS = ("neural CDE", "ODE-RNN", "GRU-D")
BATCH = 64  # series in a step, about
LEFT = 3  # observations that are left at least


class GRUD(nn.Module):
    """A GRU whose state decays between observations, and whose missing inputs decay to the mean, which is zero."""

    def __init__(self, obs_dim, hidden, out_dim):
        super().__init__()
        self.cell = nn.GRUCell(2 * obs_dim, hidden)
        self.decay_input = nn.Parameter(torch.zeros(obs_dim))
        self.decay_state = nn.Parameter(torch.zeros(hidden))
        self.head = nn.Linear(hidden, out_dim)

    def forward(self, x, t, mask):
        """Logits."""
        h, last, since = (
            x.new_zeros(len(x), self.cell.hidden_size),
            torch.zeros_like(x[:, 0]),
            torch.zeros_like(x[:, 0]),
        )
        gaps = torch.cat([t[:1], t.diff()])
        for i in range(x.shape[1]):
            seen, since = mask[:, i], since + gaps[i]
            values = torch.where(seen, x[:, i], last * torch.exp(-since * self.decay_input.relu()))
            decayed = h * torch.exp(-since[:, :1] * self.decay_state.relu())
            new = self.cell(torch.cat([values, seen.to(x)], 1), decayed)
            h = torch.where(seen.any(1, keepdim=True), new, h)
            last = torch.where(seen, x[:, i], last)
            since = torch.where(seen, 0.0, since)
        return self.head(h)


class Classifier(nn.Module):
    """One of the models, from observations to the logits of the classes."""

    def __init__(self, kind, obs_dim, state, classes, step, engine):
        super().__init__()
        self.kind = kind
        if kind == "neural CDE":
            self.model = NeuralCDE(obs_dim, state, classes, width=2 * state, solver="rk4", dt=step, engine=engine)
        elif kind == "ODE-RNN":
            self.model = ODERNN(obs_dim, 2 * state, classes, width=2 * state, solver="rk4", dt=1.0, engine=engine)
        else:
            self.model = GRUD(obs_dim, 2 * state, classes)

    def forward(self, x, t, mask):
        """Logits."""
        return self.model(self.model.path(x, t, mask)) if self.kind == "neural CDE" else self.model(x, t, mask)


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
    mean, std = sets[0][0].flatten(0, 1).nanmean(0), None
    std = (sets[0][0] - mean).square().flatten(0, 1).nanmean(0).sqrt()
    return [
        (
            nn.functional.pad((x - mean) / std, (0, 0, 0, longest - x.shape[1]), value=torch.nan),
            torch.tensor([names.index(label) for label in labels]),
        )
        for x, labels in sets
    ]


def left_out(x, rate, generator):
    """Which observations are left of those that there are, `(series, time, channels)`."""
    there = x.isfinite().all(2)
    place = torch.where(there, torch.rand(there.shape, generator=generator), 2.0).argsort(1).argsort(1)
    left = ((1 - rate) * there.sum(1, keepdim=True)).round().clamp(min=LEFT)
    return (there & (place < left)).unsqueeze(2).expand_as(x)


def train(kind, sets, masks, state, steps, seed, engine):
    """The accuracy on the test set of a model that is trained, the number of its parameters, and seconds."""
    (x, y), (x_test, y_test) = sets
    torch.manual_seed(seed)
    t = torch.linspace(0, SPAN, x.shape[1])
    model = Classifier(kind, x.shape[2], state, int(y.max()) + 1, float(t[1]), engine)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    start = time.perf_counter()
    rows = []
    for _ in range(steps):
        rows = rows or list(torch.randperm(len(x)).chunk(max(1, round(len(x) / BATCH))))
        of = rows.pop()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[of], t, masks[0][of]), y[of]).backward()
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

    panels = {f"accuracy, {name}": {model: line(rates, model) for model in MODELS} for name, rates in results.items()}
    return {"accuracy.png": plot.lines(panels, xlabel="share of observations left out")}


def run(out, engine="auto", seed=0, seeds=3, steps=80, rates=(0.0, 0.3, 0.5, 0.7), sets=tuple(STATE)):
    torch.set_num_threads(1)  # batches of some tens of series are too small to share between threads
    results = {}
    for name in sets:
        parts, results[name] = load(name), {}
        print(f"{name}: accuracy, mean ± standard deviation of {seeds} seeds")
        print("left out  " + "  ".join(f"{kind:<13}" for kind in MODELS))
        for rate in rates:
            of_rate = {"accuracy": {}, "parameters": {}, "seconds": {}}
            for kind in MODELS:
                done = []
                for k in range(seed, seed + seeds):
                    generator = torch.Generator().manual_seed(k)
                    masks = [left_out(x, rate, generator) for x, _ in parts]
                    done.append(train(kind, parts, masks, STATE[name], steps, k, engine))
                for key, values in zip(of_rate, zip(*done, strict=True), strict=True):
                    of_rate[key][kind] = list(values)
            results[name][str(rate)] = of_rate
            found = [torch.tensor(of_rate["accuracy"][kind]) for kind in MODELS]
            row = "  ".join(f"{x.mean():.3f} ± {x.std(correction=0):.3f}" for x in found)
            print(f"{rate:>8.0%}  {row}", flush=True)
    write(out, results, lambda: figures(results), engine=engine, seed=seed)


if __name__ == "__main__":
    parser = arguments(__doc__, "missing_observations", on_torch="an hour", on_julia="10 minutes")
    parser.add_argument("--seed", type=int, default=0, help="the first seed: of parameters and what is left out")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--steps", type=int, default=80, help="steps of the optimizer")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0, 0.3, 0.5, 0.7], help="shares that are left out")
    parser.add_argument("--sets", nargs="+", default=list(STATE), choices=list(STATE), help="of data")
    run(**vars(parser.parse_args()))
