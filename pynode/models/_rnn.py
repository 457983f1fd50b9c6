"""The recurrent baseline that latent ODEs are compared with."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from pynode.models._series import check_series, check_series_times, pack
from pynode.problem.inputs import check_count, check_finite

__all__ = ["RNN"]

_LEAST_STD = 1e-3  # so that a series that is predicted exactly has a finite density


class RNN(nn.Module):
    """An autoregressive GRU: each observation is Gaussian given those before it, and the time since.

    A step takes the observation before (zero where it is missing), what of it was observed, and the time that passed.

    Args:
        obs_dim: channels of the observations.
        hidden: size of the GRU's state.
        t0: the time from which the first observation's gap is counted.

    Raises:
        InputError: an argument is not usable.

    Source:
        R. T. Q. Chen et al., "Neural Ordinary Differential Equations", NeurIPS 2018, section 5.1: the recurrent
        network with 25 hidden units whose input has the time differences appended.
    """

    def __init__(self, obs_dim: int, hidden: int = 25, *, t0: float = 0.0) -> None:
        super().__init__()
        self.obs_dim, self.t0 = check_count("obs_dim", obs_dim), check_finite("t0", t0)
        self.gru = nn.GRU(2 * obs_dim + 1, check_count("hidden", hidden), batch_first=True)
        self.head = nn.Linear(hidden, 2 * obs_dim)

    def log_prob(self, x: Tensor, t: Tensor, mask: Tensor | None = None) -> Tensor:
        """The log likelihood of each series, `(batch,)`, by the chain rule over its observations.

        Args:
            x: observations `(batch, time, obs_dim)`; anything where the mask is False.
            t: their times, `(time,)` or `(batch, time)`, non-decreasing.
            mask: what was observed, bool, `(batch, time)` or `(batch, time, obs_dim)`; `None` for all.
        """
        series, _ = pack(check_series(x, t, mask, self.obs_dim, self.t0, self.head.weight.dtype))
        past = torch.cat([series.x, series.mask.to(series.x)], dim=2)[:, :-1]
        past = torch.cat([past.new_zeros(len(past), 1, past.shape[2]), past], dim=1)
        mean, spread = self.head(self.gru(torch.cat([past, self._gaps(series.t).to(past)], dim=2))[0]).chunk(2, dim=2)
        std = nn.functional.softplus(spread) + _LEAST_STD
        log_density = Normal(mean, std, validate_args=False).log_prob(series.x)
        return log_density.masked_fill(~series.mask, 0).sum((1, 2))

    def predict(self, x: Tensor, t: Tensor, t_new: Tensor, mask: Tensor | None = None) -> Tensor:
        """The series at other times, each from the observations before it.

        After the last observation, each prediction is the network's next input.

        Args:
            x: observations, as in `log_prob`.
            t: their times, as in `log_prob`.
            t_new: the times to predict at, `(time_new,)` or `(batch, time_new)`, non-decreasing.
            mask: what was observed, as in `log_prob`.

        Returns:
            Means, `(batch, time_new, obs_dim)`.
        """
        series, counts = pack(check_series(x, t, mask, self.obs_dim, self.t0, self.head.weight.dtype))
        new = check_series_times("t_new", t_new, series.x, self.t0)
        n_new, over = new.shape[1], torch.arange(series.t.shape[1], device=counts.device) >= counts[:, None]
        # In the order of time; what is asked for goes before an observation of the same time, padding goes last.
        order = torch.cat([new, series.t.masked_fill(over, torch.inf)], dim=1).argsort(dim=1, stable=True)
        times = torch.cat([new, series.t], dim=1).gather(1, order)
        values = torch.cat([series.x.new_zeros(*new.shape, self.obs_dim), series.x], dim=1)
        observed = torch.cat([series.mask.new_zeros(*new.shape, self.obs_dim), series.mask], dim=1)
        rows = torch.arange(len(new), device=new.device)
        past, since = values.new_zeros(len(new), 2 * self.obs_dim), new.new_full((len(new), 1), self.t0)
        state, predictions = values.new_zeros(1, len(new), self.gru.hidden_size), []
        for i, at in enumerate(order.unbind(1)):
            t_now = times[:, i : i + 1]
            out, after = self.gru(torch.cat([past, (t_now - since).to(past)], dim=1).unsqueeze(1), state)
            predictions.append(self.head(out[:, 0])[:, : self.obs_dim])
            asked = (at < n_new).unsqueeze(1)
            own = torch.cat([predictions[-1], torch.ones_like(predictions[-1])], dim=1)
            seen = torch.cat([values[rows, at], observed[rows, at].to(values)], dim=1)
            goes_on = ~asked | (t_now > series.last)
            past = torch.where(goes_on, torch.where(asked, own, seen), past)
            since = torch.where(goes_on, t_now, since)
            state = torch.where(goes_on, after, state)
        place = order.argsort(dim=1)[:, :n_new, None].expand(-1, -1, self.obs_dim)
        return torch.stack(predictions, dim=1).gather(1, place)

    def _gaps(self, t: Tensor) -> Tensor:
        """`(batch, time, 1)`, the time since the entry before."""
        return torch.cat([t.new_full((len(t), 1), self.t0), t], dim=1).diff(dim=1).unsqueeze(2)
