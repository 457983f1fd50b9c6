"""FFJORD on handwritten digits of 8 × 8 pixels: bits per dimension, and samples.

    python examples/digits_flow.py

The digits have 17 grey levels; uniform noise makes them continuous, a logit unbounded, an affine map white
(`Dequantised`). The table compares test bits per dimension with a uniform distribution over the levels, with one normal
distribution of the logits (where the flow starts from), and with the frequencies of the levels at each pixel.
"""

from __future__ import annotations

import math
import time

import torch
from _shared import arguments, write
from torch import nn
from torch.distributions import MultivariateNormal
from tqdm import trange

from pynode import data, plot
from pynode.models import FFJORD, Dequantised

LEVELS = 17


def independent_pixels(train, test):
    """Bits per dimension under the frequency of each level at each pixel, with one imagined image for each level."""
    k = (train * (LEVELS - 1)).round().long().flatten(1)
    counts = nn.functional.one_hot(k, LEVELS).sum(0) + 1.0
    log_p = (counts / counts.sum(1, keepdim=True)).log2()
    k = (test * (LEVELS - 1)).round().long().flatten(1)
    return -log_p.expand(len(k), *log_p.shape).gather(2, k.unsqueeze(2)).mean().item()


def one_normal(model, train, test):
    """Bits per dimension of the normal distribution with the dequantised images' mean and covariance."""
    y = model.dequantise(train)[0].flatten(1)
    normal = MultivariateNormal(y.mean(0), y.T.cov())
    y, ratio = model.dequantise(test)
    return -(normal.log_prob(y.flatten(1)) + ratio).mean().item() / (64 * math.log(2))


def train(model, images, epochs, batch=128):
    """Adam on the bound; seconds."""
    steps = epochs * math.ceil(len(images) / batch)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    start = time.perf_counter()
    for _ in (bar := trange(epochs, desc="digits")):
        for part in images[torch.randperm(len(images))].split(batch):
            optimizer.zero_grad()
            loss = model.loss(part)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 100.0)
            optimizer.step()
            schedule.step()
        bar.set_postfix(loss=f"{loss.item():.1f}", nfe=model.flow.stats.nfe)
    return time.perf_counter() - start


def run(out, engine="auto", seed=0, epochs=40):
    torch.manual_seed(seed)
    images, test = (part.tensors[0] for part in data.digits(generator=torch.Generator().manual_seed(seed)))
    flow = FFJORD(64, hidden=(256, 256), kinetic=0.001, rtol=1e-3, atol=1e-3, engine=engine)
    model = Dequantised(flow, LEVELS)
    results = {
        "uniform": math.log2(LEVELS),
        "one normal": one_normal(model, images, test),
        "independent pixels": independent_pixels(images, test),
    }
    model.whiten(images.flatten(1))
    seconds = train(model, images.flatten(1), epochs)
    # Hutchinson's estimate is unbiased, and in 64 dimensions much cheaper than the exact trace.
    with torch.no_grad():
        found = torch.stack([model.bits_per_dim(test.flatten(1)).mean() for _ in range(10)])
    results |= {"FFJORD": found.mean().item(), "standard_error": found.std().item() / math.sqrt(10), "seconds": seconds}
    results["nfe"] = flow.stats.nfe

    print("model               bits/dim (test)")
    for name in ("uniform", "one normal", "independent pixels", "FFJORD"):
        print(f"{name:<18}  {results[name]:>15.3f}")
    print(f"Training: {seconds:.1f} s; {results['nfe']} evaluations of the field for a density")

    def figures():
        drawn = model.sample(100).reshape(-1, 1, 8, 8)
        return {"samples.png": plot.images({"test images": test[:100], "samples": drawn})}

    write(out, results, figures, engine=engine, seed=seed)
    return results


if __name__ == "__main__":
    parser = arguments(__doc__, "digits_flow", on_torch="2 minutes", on_julia="40 seconds")
    parser.add_argument("--seed", type=int, default=0, help="of parameters, split and noise")
    parser.add_argument("--epochs", type=int, default=40, help="passes over the training images")
    run(**vars(parser.parse_args()))
