"""Which experts of a mixture fire with marker tokens: counts of routing over transcripts, and their nPMI."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from interfuse.core.errors import InterfuseError
from interfuse.decode.steering import record


def npmi(k: int, active: int, marked: int, total: int) -> float:
    """Normalised pointwise mutual information of a marker and an expert, in [-1, 1].

    Args:
        k: marker tokens at which the expert is active. active: tokens at which it is. marked: marker tokens. total: all tokens.

    >>> round(npmi(8, 100, 10, 1000), 6)
    0.430677
    """
    if k == 0:
        return -1.0
    if k == total:
        return 0.0
    return (math.log2(k / marked) + math.log2(total / active)) / math.log2(total / k)


@dataclass
class Counts:
    """Counts over all tokens that are looked at.

    Attributes:
        total: tokens. marked: marker -> its instances. active: layer -> tokens at which each expert is selected [E].
        joint: marker -> layer -> instances at which each expert is selected [E].
    """

    total: int
    marked: dict[str, int]
    active: dict[int, torch.Tensor]
    joint: dict[str, dict[int, torch.Tensor]]
    picked: dict[int, list[torch.Tensor]] = field(default_factory=dict, repr=False)
    places: dict[str, list[list[int]]] = field(default_factory=dict, repr=False)


def marker_places(text: str, spans: Sequence[tuple[int, int]], marker: str, *, shift: int) -> tuple[list[int], bool]:
    """The tokens that hold the last character of each occurrence of a marker, and whether one spans several tokens.

    Args:
        spans: first and last character of each token. shift: 0 for the marker's own token, 1 for the one before it, which predicts it.
    """
    found, several = [], False
    lower, wanted = (text.lower(), marker.lower()) if marker.isalpha() else (text, marker)
    at = lower.find(wanted)
    while at >= 0:
        end = at + len(wanted)
        last = next((i for i, (a, b) in enumerate(spans) if a < end <= b), None)
        first = next((i for i, (a, b) in enumerate(spans) if a <= at < b), None)
        if last is not None and first is not None:
            several |= last != first
            place = last if shift == 0 else first - 1
            if place >= 0:
                found.append(place)
        at = lower.find(wanted, end)
    return found, several


@torch.no_grad()
def count_routing(
    module: Any,
    tokenizer: Any,
    texts: Sequence[str],
    markers: Sequence[str],
    experts: int,
    *,
    shift: int = 0,
    skip_first: int = 1,
    window: int | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> Counts:
    """Runs the model over the texts, one forward pass each, and counts.

    Args:
        experts: per layer. skip_first: tokens at the start of each text that do not count (attention sinks route oddly).
        window: texts are cut to so many tokens.

    Raises:
        InterfuseError: ``input.missing`` when a marker never occurs, ``input.empty`` when nothing is left to count, ``input.nan``.
    """
    device = next(module.parameters()).device
    marked: dict[str, int] = dict.fromkeys(markers, 0)
    counts, wide = Counts(0, marked, {}, {m: {} for m in markers}, {}, {m: [] for m in markers}), list[str]()
    for i, text in enumerate(texts):
        coded = tokenizer(text, return_offsets_mapping=True)
        ids, spans = list(coded["input_ids"])[:window], coded["offset_mapping"][:window]
        with record(module) as routes:
            logits = module(input_ids=torch.tensor([ids], device=device), use_cache=False).logits
        if not bool(torch.isfinite(logits).all()):
            raise InterfuseError("input.nan", "the model gives a logit that is not a number", where=f"transcript {i}")
        counts.total += max(len(ids) - skip_first, 0)
        for m in markers:
            places, several = marker_places(text, spans, m, shift=shift)
            places = [p for p in places if skip_first <= p < len(ids)]
            wide += [m] if several and m not in wide else []
            counts.marked[m] += len(places)
            counts.places[m].append(places)
        for layer, parts in routes.items():
            hot = torch.zeros(len(ids), experts, dtype=torch.long)
            hot.scatter_(1, torch.cat(parts), 1)
            counts.picked.setdefault(layer, []).append(hot[skip_first:])
            counts.active[layer] = counts.active.get(layer, torch.zeros(experts, dtype=torch.long)) + hot[
                skip_first:
            ].sum(dim=0)
            for m in markers:
                at = counts.places[m][-1]
                here = hot[at].sum(dim=0) if at else torch.zeros(experts, dtype=torch.long)
                counts.joint[m][layer] = counts.joint[m].get(layer, torch.zeros(experts, dtype=torch.long)) + here
    if counts.total == 0:
        raise InterfuseError("input.empty", "the transcripts hold no tokens to count")
    for m in wide:
        log(f"the marker {m!r} is several tokens: the last one counts")
    for m, number in counts.marked.items():
        if number == 0:
            raise InterfuseError("input.missing", f"the marker {m!r} does not occur in the transcripts",
                                 fix="Give transcripts in which the model writes it, or other markers.")  # fmt: skip
        if number < 5:
            log(f"the marker {m!r} occurs {number} times: its nPMI is unstable")
    return counts


def table_of(counts: Counts, coefficients: Mapping[str, float]) -> list[dict[str, Any]]:
    """One row per expert: layer, expert, counts, nPMI per marker, and the weighted score; by layer and expert."""
    rows = []
    for layer, active in sorted(counts.active.items()):
        for expert in range(len(active)):
            each = {
                m: npmi(int(counts.joint[m][layer][expert]), int(active[expert]), counts.marked[m], counts.total)
                for m in coefficients
            }
            rows.append({
                "layer": layer, "expert": expert, "active": int(active[expert]),
                "with marker": {m: int(counts.joint[m][layer][expert]) for m in coefficients}, "npmi": each,
                "score": sum(c * each[m] for m, c in coefficients.items()),
            })  # fmt: skip
    return rows
