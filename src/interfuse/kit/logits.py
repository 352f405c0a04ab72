"""Arithmetic on logits of one vocabulary, shared by methods that fuse models while decoding. All tensors are [B, V] float32."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from interfuse.core.errors import InterfuseError

#: stands for a log-probability of -inf where arithmetic would make NaN of it
LOW = -1e4
#: tokens that are worked on at once, so that they stay in a processor's cache
BLOCK = 65_536
#: neighbouring tokens of which only the largest logit is looked at first
RUN = 64


def finite_logs(logs: torch.Tensor) -> torch.Tensor:
    """Log-probabilities with -inf replaced by a very low number."""
    return logs.clamp_min(LOW)


def change(tuned: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """``tuned - base``, 0 where both exclude a token, bounded where one does. Of raw logits the constants are kept."""
    difference = tuned - base
    if bool(torch.isfinite(difference.sum())):  # one pass over the vocabulary in place of four
        return difference
    out = torch.isneginf(tuned) & torch.isneginf(base)
    return difference.masked_fill(out, 0.0).clamp(LOW, -LOW)


def entropy(logs: torch.Tensor) -> torch.Tensor:
    """Entropy in nats of log-probabilities, [B]."""
    return -(logs.exp() * finite_logs(logs)).sum(dim=1)


def leaders(logits: torch.Tensor, k: int, share: float) -> torch.Tensor:
    """Places that hold every row's ``k`` largest logits and those within ``log(share)`` of its largest, and few others; rising, [C].

    The k-th largest of the runs' maxima is no larger than the k-th largest logit, so a run below both bounds holds nothing: a vocabulary is
    read once, and sorted nowhere.
    """
    runs = torch.nn.functional.pad(logits, (0, -logits.shape[1] % RUN), value=-math.inf).view(len(logits), -1, RUN)
    tops = runs.amax(dim=2)  # [B, V / RUN]
    best = tops.topk(min(k, tops.shape[1]), dim=1).values
    least = best[:, -1:] if k <= tops.shape[1] else torch.full_like(best[:, :1], -math.inf)
    least = torch.minimum(least, best[:, :1] + math.log(share))
    near = (tops >= least).any(dim=0).nonzero().squeeze(1)
    inside = (runs[:, near] >= least[:, :, None]).any(dim=0).nonzero()
    places = near[inside[:, 0]] * RUN + inside[:, 1]
    return places[places < logits.shape[1]]


def per_expert(value: float | Sequence[float], count: int, name: str) -> list[float]:
    """A parameter as one number per expert.

    Raises:
        InterfuseError: ``param.value`` when a list has another length.
    """
    values = [value] * count if isinstance(value, int | float) else list(value)
    if len(values) != count:
        raise InterfuseError("param.value", f"{name} has {len(values)} numbers for {count} experts",
                             fix="Give one number, or one per expert.")  # fmt: skip
    return [float(v) for v in values]


def log_partitions(
    logs: torch.Tensor, probs: torch.Tensor, d: torch.Tensor, alphas: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """``A(alpha) = log sum_v p_v exp(alpha d_v)`` and ``E[d]`` under ``p exp(alpha d) / exp(A)`` for every alpha.

    Args:
        logs, probs: log-probabilities and probabilities. d: changes whose mean under ``probs`` is 0. alphas: rising, not negative.

    Returns:
        both [G, B]. On a grid of even steps each strength is one multiplication of the last: with the mean of ``d`` at 0 the sum is
        never below 1, so what underflows does not count; where it could overflow, and on other grids, it is computed in logarithms.
    """
    step = alphas[1] - alphas[0] if len(alphas) > 1 else 0.0
    even = all(math.isclose(a, alphas[0] + i * step, abs_tol=1e-9) for i, a in enumerate(alphas))
    if even and bool(d.amax() < 80.0 / max(alphas[-1], 1e-9)):
        size, sums = d.shape[1], list[torch.Tensor]()
        table = d.new_zeros(len(alphas), len(d), 2)  # sum w, sum w d
        for start in range(0, size, BLOCK):
            part = d[:, start : start + BLOCK]
            weights = (
                probs[:, start : start + BLOCK] * (alphas[0] * part).exp()
                if alphas[0] != 0
                else probs[:, start : start + BLOCK].clone()
            )
            factor, both = (step * part).exp(), torch.stack([torch.ones_like(part), part], dim=1)  # [B, 2, n]
            sums = []
            for i in range(len(alphas)):
                if i:
                    weights.mul_(factor)
                sums.append(torch.bmm(both, weights[:, :, None]).squeeze(2))
            table += torch.stack(sums)
        return table[..., 0].log(), table[..., 1] / table[..., 0]
    parts, means = [], []
    for alpha in alphas:
        tilted = logs + alpha * d
        total = tilted.logsumexp(dim=1)
        parts.append(total)
        means.append(((tilted - total[:, None]).exp() * d).sum(dim=1))
    return torch.stack(parts), torch.stack(means)
