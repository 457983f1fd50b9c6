"""How far a solve is, shown while it runs.

An engine says where the solve is when it is asked, and a thread asks it ten times a second: the solve itself is not
held up.
"""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import Tensor

from pynode.engine.protocol import Watched
from pynode.errors import InputError

__all__ = ["Progress", "ended", "shown"]

_EVERY = 0.1  # seconds
_EVERY_IN_LOGS = 10.0


class Progress(NamedTuple):
    """How far a solve is; what a callable that is passed as `progress` gets.

    Attributes:
        t: the time that was reached; of independent samples NaN, or that of the one which is solved.
        dt: the step, NaN where it is not known.
        fraction: of the span, or of the samples, that is done, from 0 to 1.
        seconds: since the solve began.
        rate: time of the solution for each second; of independent samples NaN.
        samples: how many independent samples are done; `None` where the samples are solved together.
    """

    t: float
    dt: float
    fraction: float
    seconds: float
    rate: float
    samples: int | None = None


@contextlib.contextmanager
def shown(progress: Any, times: Callable[[], Tensor]) -> Iterator[Watched | None]:
    """The context of a solve that shows how far it is; what the engine is to set.

    Args:
        progress: the user's: whether to show a bar, or a callable that gets each `Progress`.
        times: gives the times, `(time,)`, or `(batch, time)` of independent samples.

    Raises:
        InputError: `progress` is neither.
        Exception: what the callable raises, once the solve has ended.
    """
    if progress is False:
        yield None
        return
    if progress is not True and not callable(progress):
        raise InputError(
            f"progress must be True, False, or a callable that gets a pynode.Progress, got {type(progress).__name__}"
        )
    watched = Watched()
    reporter = _Reporter(watched, _Bar() if progress is True else progress, times().detach())
    thread = threading.Thread(target=reporter.run, name="pynode-progress", daemon=True)
    thread.start()
    try:
        yield watched
    finally:
        reporter.ended.set()
        thread.join()
        watched.look = watched.samples = None
        watched.shown = False
        if progress is True:
            reporter.show.close()
    if reporter.error is not None:
        raise reporter.error


def ended(watched: Watched, t_end: Tensor) -> None:
    """Show what a solve has reached, 0-d, or `(batch,)` of independent samples."""
    count, last = t_end.numel(), float(t_end.detach().reshape(-1)[-1]) if t_end.numel() else math.nan
    watched.look, watched.samples = lambda: (last, math.nan), lambda: count


class _Reporter:
    """Asks how far a solve is, and shows it."""

    def __init__(self, watched: Watched, show: Any, times: Tensor) -> None:
        self.watched, self.show = watched, show
        self.ended = threading.Event()
        self.error: Exception | None = None
        self.samples = len(times) if times.dim() == 2 else None
        known = times[~times.isnan()] if times.dim() == 2 else times[[0, -1]]
        self.first, self.last = float(known[0]), float(known[-1])
        self.began = time.perf_counter()
        self.reached = self.first

    def run(self) -> None:
        """What the thread does until the solve has ended, and once more then."""
        try:
            while not self.ended.wait(_EVERY):
                self.show(self.progress())
            self.show(self.progress())
        except Exception as error:
            self.error = error

    def progress(self) -> Progress:
        """How far the solve is now."""
        look, done = self.watched.look, self.watched.samples
        t, dt = (math.nan, math.nan) if look is None else look()
        seconds = time.perf_counter() - self.began
        if self.samples is not None:
            count = 0 if done is None else min(done(), self.samples)
            return Progress(t, dt, count / max(self.samples, 1), seconds, math.nan, count)
        self.reached = t if math.isfinite(t) else self.reached
        gone, span = self.reached - self.first, self.last - self.first
        fraction = min(max(gone / span, 0.0), 1.0)
        return Progress(self.reached, dt, fraction, seconds, abs(gone) / seconds)


class _Bar:
    """A bar of tqdm's, in a notebook, at a terminal, or as lines in a log."""

    def __init__(self) -> None:
        from tqdm.auto import tqdm

        # A notebook has widgets, or else shows what is written to a stream that is no terminal, as a log is none.
        in_notebook = any(c.__name__ == "tqdm_notebook" for c in tqdm.__mro__)
        in_notebook = in_notebook or type(sys.stderr).__module__.startswith("ipykernel")
        self.in_log = not in_notebook and not sys.stderr.isatty()
        self.bar = tqdm(total=1.0, bar_format="{desc}{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}")
        self.drawn = time.perf_counter() - _EVERY_IN_LOGS

    def __call__(self, progress: Progress) -> None:
        parts = [f"t={progress.t:.6g}"] if math.isfinite(progress.t) else []
        parts += [f"step={progress.dt:.2g}"] if math.isfinite(progress.dt) else []
        parts += [f"{progress.rate:.3g} t/s"] if math.isfinite(progress.rate) else []
        parts += [f"{progress.samples} samples"] if progress.samples is not None else []
        self.bar.set_postfix_str(", ".join(parts), refresh=False)
        self.bar.n = progress.fraction
        now = time.perf_counter()
        if not self.in_log or now - self.drawn >= _EVERY_IN_LOGS:
            self.drawn = now
            self.bar.refresh()

    def close(self) -> None:
        """Draw it for the last time."""
        self.bar.refresh()
        self.bar.close()
