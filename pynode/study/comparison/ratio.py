"""How many times as long: a ratio of times with its confidence interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

__all__ = ["Ratio", "ratio"]

_DRAWS = 1000


@dataclass(frozen=True)
class Ratio:
    """A ratio of two medians of times, b to a.

    Attributes:
        value: the ratio; below 1, b is faster.
        low, high: its confidence interval.
        spread: the standard error of its logarithm.
        freedom: the degrees of freedom of that, infinite where it comes of calls alone.
    """

    value: float
    low: float
    high: float
    spread: float
    freedom: float

    def doubt(self, least: float) -> tuple[float, float]:
        """How likely such a ratio is, were b not `least` times faster, and not `least` times slower (p-values)."""
        log, band = math.log(self.value), math.log(least)
        if self.spread == 0:
            return float(log >= -band), float(log <= band)
        # Student's of infinite freedom is the normal distribution
        faster = stats.t.cdf((log + band) / self.spread, self.freedom)
        slower = stats.t.sf((log - band) / self.spread, self.freedom)
        return float(faster), float(slower)


def ratio(
    a: Sequence[Sequence[float]], b: Sequence[Sequence[float]], confidence: float = 0.95, seed: int = 0
) -> Ratio | None:
    """The ratio of b's times to a's.

    Calls within a process are alike, so that a process (a pass) is one observation: the median of its calls. With two
    passes or more on a side the interval is Student's, from the spread between passes. What a bootstrap over the calls
    tells of the spread within is the least that it is taken for, and all that is known of single passes.

    Args:
        a: the seconds of the calls of each pass.
        b: the same of the other study.
        confidence: of the interval.
        seed: of the bootstrap.

    Returns:
        `None` where a side has no positive time.
    """
    sides = [[np.log(np.asarray(calls, dtype=float)) for calls in side if _usable(calls)] for side in (a, b)]
    if not all(sides):
        return None
    random = np.random.default_rng(seed)
    medians = [np.array([np.median(calls) for calls in side]) for side in sides]
    within = [[_variance(calls, random) for calls in side] for side in sides]
    freedom = sum(len(m) - 1 for m in medians)
    between = float(sum(((m - m.mean()) ** 2).sum() for m in medians)) / freedom if freedom else 0.0
    # of one pass: what is seen between passes, but never less than what calls within one tell
    variances = [_of_a_pass(between, [v for v in w if math.isfinite(v)], freedom) for w in within]
    spread = math.sqrt(sum(v / len(m) for v, m in zip(variances, medians, strict=True)))
    log = float(medians[1].mean() - medians[0].mean())
    degrees = float(freedom) if freedom else math.inf
    quantile = float(stats.t.ppf(0.5 + confidence / 2, degrees))
    return Ratio(
        value=math.exp(log),
        low=math.exp(log - quantile * spread),
        high=math.exp(log + quantile * spread),
        spread=spread,
        freedom=degrees,
    )


def _of_a_pass(between: float, within: list[float], freedom: int) -> float:
    if not within:
        return between if freedom else math.inf
    return max(between, float(np.mean(within)))


def _usable(calls: Sequence[float]) -> bool:
    return len(calls) > 0 and all(math.isfinite(t) and t > 0 for t in calls)


def _variance(calls: np.ndarray, random: np.random.Generator) -> float:
    """The variance of the median of calls, by the bootstrap; of fewer than three calls nothing is known."""
    if len(calls) < 3:
        return math.nan
    draws = random.integers(len(calls), size=(_DRAWS, len(calls)))
    return float(np.median(calls[draws], axis=1).var()) * len(calls) / (len(calls) - 1)
