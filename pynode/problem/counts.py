"""What several solves that make one have cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from pynode.engine.protocol import PerSample, Retcode, Stats

__all__ = ["Joined", "JoinedEach", "steps_left", "total"]


class Joined(Stats):
    """The counts of several solves; `nfe_backward` is that of all whose backward pass has run."""

    def __init__(self, parts: Sequence[Stats]) -> None:
        self.parts = list(parts)
        super().__init__(
            sum(x.nfe for x in parts),
            None,
            total(x.n_accepted for x in parts),
            total(x.n_rejected for x in parts),
            sum(x.seconds for x in parts),
        )

    def __repr__(self) -> str:
        return super().__repr__().replace(type(self).__qualname__, Stats.__qualname__, 1)

    @property
    def nfe_backward(self) -> int | None:
        """See `Stats`."""
        known = [x.nfe_backward for x in self.parts if x.nfe_backward is not None]
        return sum(known) if known else None

    @nfe_backward.setter
    def nfe_backward(self, value: int | None) -> None:
        pass  # it is that of the parts


class JoinedEach(PerSample):
    """The counts of each sample over several solves of some of them, likewise.

    Args:
        batch: how many samples there are.
        parts: of each solve the numbers of its samples, and its counts for these, or of one that is alone.
        retcodes: how each sample ended.
        t_end: the time that each reached.
    """

    def __init__(
        self,
        batch: int,
        parts: Sequence[tuple[Tensor, PerSample | Stats]],
        retcodes: tuple[Retcode, ...],
        t_end: Tensor,
    ) -> None:
        self.batch, self.parts = batch, [(rows.cpu(), x) for rows, x in parts]
        nfe, accepted, rejected = (self._counts(name) for name in ("nfe", "n_accepted", "n_rejected"))
        assert nfe is not None
        super().__init__(nfe, None, accepted, rejected, retcodes, t_end)

    def _counts(self, name: str, partly: bool = False) -> Tensor | None:
        found = [(rows, getattr(x, name)) for rows, x in self.parts]
        known = [
            (rows, torch.as_tensor(x, device="cpu").reshape(-1)[: len(rows)]) for rows, x in found if x is not None
        ]
        if not known or (len(known) < len(found) and not partly):
            return None
        counts = torch.zeros(self.batch, dtype=torch.int64, device="cpu")
        for rows, x in known:
            counts.index_add_(0, rows, x.long())
        return counts

    @property
    def nfe_backward(self) -> Tensor | None:
        """See `PerSample`."""
        return self._counts("nfe_backward", partly=True)

    @nfe_backward.setter
    def nfe_backward(self, value: Tensor | None) -> None:
        pass  # it is that of the parts


def total(counts: Iterable[int | None]) -> int | None:
    """The sum; `None` if one of them is not known."""
    known = list(counts)
    return None if None in known else sum(known)  # type: ignore[arg-type]


def steps_left(max_steps: int, parts: Sequence[Stats]) -> int:
    """How many steps a piece may take after others: at least one."""
    return max(1, max_steps - sum((x.n_accepted or 0) + (x.n_rejected or 0) for x in parts))
