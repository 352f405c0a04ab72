"""How alike the inner representations of models are: centred kernel alignment, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.data.models import Model
from interfuse.data.tables import Table
from interfuse.kit import plots
from interfuse.kit.page import Estimate, Grid, Name, Section, number
from interfuse.measure.classification import AllowLeak
from interfuse.measure.flips import models_to_compare_with
from interfuse.measure.room import CLASSES, Contender, Findings, Logits, Named, Predictions, Reading

Floats = NDArray[np.float64]
LAYERS = ["auto"]
#: fewest items whose similarities say anything about those of others
LEAST = 4


def minibatches(n: int, batch: int) -> list[NDArray[np.int64]]:
    """The items ``0..n-1`` in order, cut into as few parts of at most ``batch`` as that takes, of equal size but for one item."""
    return np.array_split(np.arange(n), -(-n // batch))


def _gold(table: Table) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    return np.zeros(len(table), dtype=np.int64), ()  # labels play no part


def _predict(model: Model, table: Table, ctx: Ctx, params: Mapping[str, Any]) -> Named:
    """Of every item and layer its inner products with the items of its minibatch, ``[items, layers * batch]``, and the layers' names."""
    import torch

    from interfuse.data.models import build, device_of, size_of
    from interfuse.kit.encode import Encoder, forward
    from interfuse.kit.taps import Taps
    from interfuse.kit.threads import threads_for

    encoder, device = Encoder(model, table), device_of(ctx)
    module = build(model, ctx).to(device).eval()
    parts = minibatches(len(table), params["batch"])
    grams = []
    steps = ctx.bar(f"read {model.name}", len(table), "items")
    with (
        threads_for(size_of(model)),
        torch.inference_mode(),
        Taps(module, _known(module, params["layers"], model.name, ctx)) as taps,
        steps as bar,
    ):
        for part in parts:
            inputs = {k: v.to(device) for k, v in encoder.encode(part).items()}
            forward(module, model, inputs)
            rows = [as_rows(taps.features[name], inputs) for name in taps.shapes()]
            grams.append(torch.stack([r @ r.T for r in rows], dim=1).cpu().numpy())  # [batch, layers, batch]
            bar.advance(len(part))
    wide = max(map(len, parts))
    found = np.concatenate([np.pad(g, ((0, 0), (0, 0), (0, wide - len(g)))) for g in grams])
    bad = np.argwhere(~np.isfinite(found))
    if len(bad):
        raise InterfuseError("input.nan", "the model gives a feature that is not a number", where=f"{model.name}, {table.name}: row {bad[0][0]}")  # fmt: skip
    return Named(found.reshape(len(table), -1), tuple(taps.names))


def as_rows(feature: Any, inputs: Mapping[str, Any]) -> Any:
    """One vector per item, float64 [B, D]: maps and an image's patches as they are, a text's tokens averaged (padding left out)."""
    if feature.ndim == 3 and "input_ids" in inputs:
        mask = inputs.get("attention_mask")
        if mask is None or mask.shape != feature.shape[:2]:
            return feature.double().mean(dim=1)
        weight = mask.double().unsqueeze(-1)
        return (feature.double() * weight).sum(dim=1) / weight.sum(dim=1)
    return feature.double().flatten(1)


def _known(module: Any, patterns: Sequence[str], name: str, ctx: Ctx) -> list[str]:
    """The patterns that name layers of the module, the others are told in the log; an error as of
    :func:`interfuse.kit.taps.layer_names` when none does."""
    from interfuse.kit.taps import layer_names

    found: list[str] = []
    for pattern in patterns:
        try:
            layer_names(module, [pattern])
        except InterfuseError as error:
            ctx.log(f"{name}: {error.what}")
            continue
        found.append(pattern)
    return found or layer_names(module, patterns)


def enough(inputs: Mapping[str, Any], params: Mapping[str, Any]) -> None:
    """Refuses a measurement without models to compare with (``param.missing``), or of fewer than four items (``input.empty``)."""
    models_to_compare_with(inputs, params)
    if len(inputs["data"]) < LEAST:
        raise InterfuseError("input.empty", f"likeness is told from at least {LEAST} items, there are {len(inputs['data'])}", where=inputs["data"].name)  # fmt: skip


@method(before=enough, reading=Reading(CLASSES.tasks, _gold, _predict, lambda read, labels, classes: {}))
def cka(
    seen: Predictions,
    *,
    ctx: Ctx,
    layers: Annotated[list[str], Field(min_length=1, description="layers to look at, of each model those it has: names, globs, penultimate, or auto: the quarter points")] = LAYERS,
    batch: Annotated[int, Field(ge=2 * LEAST, description="items whose similarities are held at once")] = 128,
    allow_leak: AllowLeak = False,
) -> Findings:  # fmt: skip
    """Linear CKA of every layer of every model with every layer of every source (Kornblith et al. 2019, section 3), averaged over
    minibatches as Nguyen et al. 2021 do (section 2): the unbiased HSIC of each minibatch, averaged before their ratio is taken.

    Args:
        seen: of every model ``[seeds, items, layers * batch]``, an item's inner products with those of its minibatch, layer by layer.
    """
    parts = minibatches(len(seen.ids), batch)
    models = [c for c in seen.contenders if c.role != "source"]
    pairs = [_pair(c, s, parts) for c in models for s in seen.role("source")]
    tone = {c.name: c.role for c in seen.contenders}
    rows = [[p["model"], layer, p["baseline"], other, p["cka"][i][j], p["sd"][i][j] if p["sd"] else None]
            for p in pairs for i, layer in enumerate(p["layers"]) for j, other in enumerate(p["baseline_layers"])]  # fmt: skip
    notes = [f"{p['model']} and {p['baseline']}: {number(p['last'], 2)} in the last layers, {number(p['mean'], 2)} over all pairs of layers; "
             "1 is alike up to rotation and scale, 0 is unrelated." for p in pairs]  # fmt: skip
    notes.append(
        "Likeness is of these items: no interval is given, and the same model from another seed is the yardstick."
    )
    figures = {"pairs": pairs, "minibatches": len(parts)}
    return Findings("How alike the layers are", notes + seen.cautions("items"), _table(pairs), figures, seen.contenders,
                    {"cka": (("model", "layer", "against", "its_layer", "cka", "sd_over_seeds"), rows)}, _sections(pairs, tone))  # fmt: skip


def _pair(model: Contender, other: Contender, parts: Sequence[NDArray[np.int64]]) -> dict[str, Any]:
    each = np.stack([alignment(a, b, len(model.columns), len(other.columns), parts)
                     for a, b in zip(model.logits, other.logits, strict=True)])  # fmt: skip
    mean = each.mean(axis=0)
    return {"model": model.name, "baseline": other.name, "layers": list(model.columns), "baseline_layers": list(other.columns),
            "cka": mean.tolist(), "sd": each.std(axis=0, ddof=1).tolist() if len(each) > 1 else None,
            "last": float(mean[-1, -1]), "mean": float(mean.mean())}  # fmt: skip


def alignment(one: Logits, other: Logits, rows: int, columns: int, parts: Sequence[NDArray[np.int64]]) -> Floats:
    """Linear CKA ``[rows, columns]`` of two models' layers from their inner products ``[items, layers * batch]``; 0 where a layer is
    the same for all items. Unbiased, so that unrelated layers are 0 on average and may be slightly below."""
    import torch

    from interfuse.kit.feature_losses import unbiased_hsic

    a, b = (torch.from_numpy(x.reshape(len(x), n, -1)) for x, n in ((one, rows), (other, columns)))
    across, left, right = np.zeros((rows, columns)), np.zeros(rows), np.zeros(columns)
    for part in parts:
        ours, theirs = (x[part, :, : len(part)].transpose(0, 1) for x in (a, b))  # [layers, batch, batch]
        across += [[float(unbiased_hsic(k, m)) for m in theirs] for k in ours]
        left += [float(unbiased_hsic(k, k)) for k in ours]
        right += [float(unbiased_hsic(m, m)) for m in theirs]
    product = np.outer(left, right)
    return np.where(product > 0, across / np.sqrt(np.where(product > 0, product, 1.0)), 0.0)


def _table(pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    columns = ["model", "against", "last layers", "mean of all pairs", "most alike", "its CKA"]
    rows = []
    for p in pairs:
        i, j, value = _most(p)
        rows.append([p["model"], p["baseline"], round(p["last"], 4), round(p["mean"], 4), f"{p['layers'][i]} and {p['baseline_layers'][j]}", round(value, 4)])  # fmt: skip
    return {"columns": columns, "rows": rows}


def _most(p: Mapping[str, Any]) -> tuple[int, int, float]:
    """The pair of layers that are most alike."""
    table = np.array(p["cka"])
    i, j = (int(v) for v in np.unravel_index(int(table.argmax()), table.shape))
    return i, j, float(table[i, j])


def _short(layer: str) -> str:
    """The end of a layer's name, which tells it from the model's others."""
    return ".".join(layer.split(".")[-2:])


def _sections(pairs: Sequence[Mapping[str, Any]], tone: Mapping[str, str]) -> list[Section]:
    body = []
    for p in pairs:
        i, j, value = _most(p)
        body.append([Name(p["model"], tone[p["model"]]), Name(p["baseline"], "source"), Estimate(p["last"]), Estimate(p["mean"]), Estimate(value),
                     f"{p['layers'][i]} and {p['baseline_layers'][j]}"])  # fmt: skip
    grid = Grid(["model", "against", "last layers", "mean of all pairs", "most alike", "where"], body, note="Linear CKA, unbiased, averaged over minibatches and seeds.")  # fmt: skip
    pictures = [plots.heat(f"cka-{k}", f"{p['model']} (down) and {p['baseline']} (across)", [_short(n) for n in p["baseline_layers"]],
                           [(_short(layer), tone[p["model"]], [min(1.0, max(0.0, v)) for v in row]) for layer, row in zip(p["layers"], p["cka"], strict=True)],
                           heads=("linear CKA, in hundredths", ""), csv="plots/cka.csv") for k, p in enumerate(pairs)]  # fmt: skip
    return [Section("In a word", grids=[grid]), Section("Layer by layer", pictures=pictures)]
