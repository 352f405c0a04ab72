"""The terms of a step weighted, added up and logged, in as few operations as that takes: small steps consist of little else."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

#: by kind (raw or weighted) and the names of terms of one step: their sums [T], added up over steps
Sums = dict[tuple[str, ...], Tensor]


def add_up(
    terms: Mapping[str, Tensor], weights: Mapping[str, float | Tensor], total: float, sums: Sums
) -> tuple[Tensor, Parts]:
    """The loss, ``sum over terms of sum(weight * term) / total``, and each term's part of it; what is to be logged is added to ``sums``.

    Args:
        terms: one number per sample [B] or token [B, L]. weights: a number, or one per sample; names that are missing weigh 1.
        total: samples or tokens that count.
    """
    given = {name: weights.get(name, 1.0) for name in terms}
    watched = [
        n for n, v in terms.items() if _is_zero(given[n]) and not v.requires_grad
    ]  # no number of theirs may reach the loss
    trained = [n for n in terms if n not in watched]
    alone = {n: w for n, w in given.items() if isinstance(w, Tensor)}  # one weight per sample
    raw = _sums([terms[n] for n in trained])
    weighted = (
        raw if not alone else _sums([_per_sample(alone[n], terms[n]) if n in alone else terms[n] for n in trained])
    )
    weighted = weighted * _row(tuple(1.0 if n in alone else float(given[n]) for n in trained), raw.dtype, raw.device)
    _log(sums, "raw", trained, raw)
    _log(sums, "weighted", trained, weighted)
    if watched:
        _log(sums, "raw", watched, _sums([terms[n] for n in watched]))
    return weighted.sum() / total, Parts(terms, given, total)


class Parts(Mapping[str, Tensor]):
    """Each term's part of the loss, a scalar; made when it is asked for, since hardly a method does."""

    def __init__(self, terms: Mapping[str, Tensor], weights: Mapping[str, float | Tensor], total: float) -> None:
        self.terms, self.weights, self.total = terms, weights, total

    def __getitem__(self, name: str) -> Tensor:
        weight, value = self.weights[name], self.terms[name]
        found = _per_sample(weight, value).sum() if isinstance(weight, Tensor) else value.sum() * weight
        return found / self.total

    def __iter__(self) -> Iterator[str]:
        return iter(self.terms)

    def __len__(self) -> int:
        return len(self.terms)


def named(sums: Sums) -> dict[str, float]:
    """Sums by ``raw/TERM`` and ``weighted/TERM``; a term that is only watched weighs 0."""
    found: dict[str, float] = {}
    for (kind, *names), values in sums.items():
        for name, value in zip(names, values.tolist(), strict=True):
            found[f"{kind}/{name}"] = found.get(f"{kind}/{name}", 0.0) + value
    terms = dict.fromkeys(key.split("/", 1)[1] for key in found)
    return {f"{kind}/{n}": found.get(f"{kind}/{n}", 0.0) for n in terms for kind in ("raw", "weighted")}


def _is_zero(weight: float | Tensor) -> bool:
    return not isinstance(weight, Tensor) and weight == 0


def _sums(values: list[Tensor]) -> Tensor:
    """[T]; together where they are of one shape."""
    if all(v.shape == values[0].shape for v in values):
        return torch.stack(values).flatten(1).sum(dim=1)
    return torch.stack([v.sum() for v in values])


def _per_sample(weight: Tensor, value: Tensor) -> Tensor:
    return weight.reshape(*weight.shape, *([1] * (value.ndim - weight.ndim))) * value


@functools.lru_cache(maxsize=64)
def _row(weights: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers that stay for an epoch as a tensor [T]."""
    return torch.tensor(weights, dtype=dtype, device=device)


def _log(sums: Sums, kind: str, names: list[str], values: Tensor) -> None:
    key, found = (kind, *names), values.detach()
    sums[key] = sums[key] + found if key in sums else found
