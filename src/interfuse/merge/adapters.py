"""LoRA adapters on one base make one LoRA adapter (``output: lora``): no whole model is written.

A sum ``sum_i c_i s_i B_i A_i`` is itself ``B A``, with the matrices of all adapters side by side: exact, and its rank is the
sum of theirs. What other methods make of a matrix is no such sum; of its change the best approximation of a rank is taken
(Eckart and Young 1936). Tensors that no adapter touches are the base's and stay there.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import Call
from interfuse.data.adapted import AdaptedModel
from interfuse.data.lora import Adapter, Change, changes_of, open_adapter, write_adapter
from interfuse.data.models import Model, folder_digest, read_config, task_of
from interfuse.data.overlay import Tensors, whole
from interfuse.data.weights import Weights
from interfuse.kit.reductions import Difference, sums
from interfuse.merge.finish import write_report
from interfuse.merge.plan import Output
from interfuse.merge.prepare import everyone, leading, own_params, prepared, with_its_models
from interfuse.merge.room import in_order
from interfuse.merge.unwritten import Unwritten

Tensor = torch.Tensor
Pair = tuple[Tensor, Tensor]
#: settings that an adapter has no place for
_FOR_MODELS = ("slices", "freeze", "tokens", "pad_to_multiple_of", "chat_template")
#: a tensor that no adapter touches may move by rounding, and by no more of its norm
_ROUNDING = 1e-5


def best_pair(change: Tensor, rank: int) -> tuple[Pair, float]:
    """The best approximation ``B A`` of a matrix [out, in] of a rank: A [r, in], B [out, r], and the squared norm it holds.

    Singular values of less than 1e-12 of the largest count as 0.
    """
    u, s, v = torch.linalg.svd(change.double(), full_matrices=False)
    r = min(rank, max(1, int((s > s[0] * 1e-12).sum())))
    root = s[:r].sqrt()
    return ((root[:, None] * v[:r]).float(), (u[:, :r] * root).float()), float(s[:r].square().sum())


def _fewer(pair: Pair, rank: int) -> tuple[Pair, float]:
    """The same of a product ``B A``, which is not multiplied out."""
    (qa, ra), (qb, rb) = torch.linalg.qr(pair[0].double().T), torch.linalg.qr(pair[1].double())
    (small_a, small_b), kept = best_pair(rb @ ra.T, rank)
    return ((small_a.double() @ qa.T).float(), (qb @ small_b.double()).float()), kept


def refuse_others(call: Call) -> None:
    """Refuses what makes no adapter.

    Raises:
        InterfuseError: ``param.value`` unless all models are LoRA adapters on one base, and that is the base given;
            ``param.unknown`` for settings that are about whole models.
    """
    given = [n for n in _FOR_MODELS if call.params[n]] + ["tokenizer"] * (call.inputs["tokenizer"] is not None)
    if given:
        raise InterfuseError("param.unknown", f"an adapter has no place for {given[0]}", where=given[0],
                             fix="Leave it out, or leave out output: lora.")  # fmt: skip
    fix = "Name models as BASE+ADAPTER, or leave out output: lora."
    other = next((m.name for m in call.inputs["models"] if not isinstance(m.computed, AdaptedModel)), None)
    if other is not None:
        raise InterfuseError("param.value", f"output: lora takes LoRA adapters, and {other} is a whole model", where="output", fix=fix)  # fmt: skip
    first = _base(call)
    for model, place in [*((m, m.computed.base) for m in call.inputs["models"]), (call.inputs["base"], None)]:
        theirs = place or (model.path if model is not None else first)
        if theirs is None or (theirs.resolve() != first.resolve() and folder_digest(theirs) != folder_digest(first)):
            raise InterfuseError("param.value", f"output: lora needs one base: {first.name} is not that of {model.name}",
                                 where="output", fix=fix)  # fmt: skip


def _base(call: Call) -> Path:
    found: Path = call.inputs["models"][0].computed.base
    return found


def promised(call: Call, path: Path) -> Model:
    """The base with the adapter that will lie at a path."""
    base, first = _base(call), leading(call)
    config = read_config(base)
    return Model(first.name, None, config, task_of(config, base), tokenizer=first.tokenizer or base, processor=first.processor,
                 computed=AdaptedModel(base, path))  # fmt: skip


def run(call: Call, folder: Path) -> Mapping[str, Any]:
    """Writes the adapter, its card and what made every tensor; returns ``share``, of all changes' squared norm what it holds."""
    models = call.inputs["models"]
    with contextlib.ExitStack() as stack:
        base = stack.enter_context(Weights.open(_base(call)))
        plan = stack.enter_context(prepared(call))
        adapters = [open_adapter(m.computed.adapter) for m in models]
        changes = [changes_of(base, adapter) for adapter in adapters]
        told: dict[str, Mapping[str, Any]] = {}
        merged = stack.enter_context(Unwritten(call).open(told.__setitem__))
        labels = [m.fingerprint() for m in models]
        pairs: dict[str, Pair] = {}
        rest: dict[str, Tensor] = {}
        sizes, held, turned = [0.0], [0.0], False
        wanted = {"auto": "float32"}.get(call.params["out_dtype"], call.params["out_dtype"])
        dtype = getattr(torch, wanted)
        try:
            for output in plan.outputs:
                mine = [(i, found[output.name]) for i, found in enumerate(changes) if output.name in found]
                if not mine:
                    _refuse_moved(call, output, merged, base)
                    continue
                turned = turned or any(change.turned for _, change in mine)
                if any(change.whole for _, change in mine):
                    rest[output.name] = _replaced(output.name, merged, base, mine, adapters)
                    continue
                (a, b), size, kept = _pair(call, output, dict(mine), adapters, labels, merged, base)
                if size > 0:
                    pairs[mine[0][1].module] = _finite(output.name, a.to(dtype)), _finite(output.name, b.to(dtype))
                    sizes.append(size)
                    held.append(kept)
        except InterfuseError as error:
            raise with_its_models(error, call, plan) from error
        if not pairs and not rest:
            raise InterfuseError("input.empty", "the merge changes nothing of the base", where=", ".join(m.name for m in models))  # fmt: skip
        write_adapter(folder, pairs, rest, {
            "base_model_name_or_path": _stated(call, adapters), "fan_in_fan_out": turned,
            "task_type": next((t for a in adapters if (t := a.config.get("task_type"))), None),
        })  # fmt: skip
        write_report(call, folder, plan, everyone(call), own_params(call), {"models": [m.name for m in everyone(call)], "remarks": plan.remarks}, told)  # fmt: skip
    share = math.fsum(held) / math.fsum(sizes) if math.fsum(sizes) > 0 else 1.0
    rank = max((a.shape[0] for a, _ in pairs.values()), default=0)
    if share < 0.999:
        call.ctx.log(f"rank {rank} holds {share:.1%} of the squared change; a larger lora_rank holds more")
    return {"matrices": len(pairs), "whole tensors": len(rest), "rank": rank, "share": share}


def _pair(
    call: Call,
    output: Output,
    mine: Mapping[int, Change],
    adapters: Sequence[Adapter],
    labels: Sequence[str],
    merged: Tensors,
    base: Tensors,
) -> tuple[Pair, float, float]:
    """The merged change of one matrix, its squared norm, and how much of it the pair holds."""
    ranks = sum(adapters[i].pairs[change.module][0].shape[0] for i, change in mine.items())
    rank = call.params["lora_rank"] or ranks
    if "adds" not in call.method.traits or any(change.pair is None for change in mine.values()):
        change = _finite(output.name, whole(Difference(merged.source(output.name), base.source(output.name))).double())
        size = float(change.square().sum())
        turned = any(c.turned for c in mine.values())
        pair, kept = best_pair(change.T if turned else change, rank)
        return pair, size, kept
    order, own = in_order(call, output, labels)
    factors = _factors(call, output, own)
    tops, lefts = [], []
    for place, factor in zip(order, factors, strict=True):
        found = mine.get(output.sources[place][0])
        if found is not None and found.pair is not None:
            tops.append(found.pair[0])
            lefts.append(found.pair[1] * (factor * found.factor))
    pair = _finite(output.name, torch.cat(tops)), _finite(output.name, torch.cat(lefts, dim=1))
    a, b = pair[0].double(), pair[1].double()
    size = max(0.0, float(((b.T @ b) * (a @ a.T)).sum()))
    if ranks > rank and size > 0:
        pair, kept = _fewer(pair, rank)
        return pair, size, kept
    return pair, size, size


def _factors(call: Call, output: Output, own: Mapping[str, Any]) -> list[float]:
    """What each model's change is multiplied by.

    Raises:
        InterfuseError: ``param.value`` for weights of whole models that do not sum to 1.
    """
    factors: list[float] = call.method.traits["adds"](len(output.sources), **own)
    if call.method.traits.get("base") == "none" and abs(math.fsum(factors) - 1) > 1e-6:
        raise InterfuseError("param.value", f"the weights sum to {math.fsum(factors):g}, so the base itself would be scaled",
                             where=f"tensor {output.name}", fix="Normalise them, or leave out output: lora.")  # fmt: skip
    return factors


def _replaced(
    name: str, merged: Tensors, base: Tensors, mine: Sequence[tuple[int, Change]], adapters: Sequence[Adapter]
) -> Tensor:
    """A merged tensor that adapters hold whole."""
    if name.endswith(".bias") and any(c.module in a.pairs for (_, c) in mine for a in adapters):
        raise InterfuseError("needs.capability", f"the bias {name} of a layer with a low-rank change", where="output",
                             fix="Leave out output: lora: the whole model holds it.")  # fmt: skip
    return _finite(name, whole(merged.source(name)).to(getattr(torch, base[name].kind.name)))


def _refuse_moved(call: Call, output: Output, merged: Tensors, base: Tensors) -> None:
    """Raises ``param.value`` where the method moves a tensor that no adapter touches: an adapter could not say so."""
    if not output.info.kind.floating:
        return
    if "adds" in call.method.traits:
        _factors(call, output, output.own)
        return
    flats = [merged.source(output.name), base.source(output.name)]
    moved, size = sums(flats, lambda v: [(v[0] - v[1]).square(), v[1].square()])
    if moved > _ROUNDING**2 * size:
        raise InterfuseError("param.value", f"{call.method.id} also changes {output.name}, which no adapter touches", where="output",
                             fix="Leave out output: lora: the whole model holds it.")  # fmt: skip


def _finite(name: str, values: Tensor) -> Tensor:
    if not bool(torch.isfinite(values).all()):
        kind = str(values.dtype).removeprefix("torch.")
        raise InterfuseError("input.nan", f"a number of the merged adapter is NaN, infinite or too large for {kind}", where=f"tensor {name}")  # fmt: skip
    return values


def _stated(call: Call, adapters: Sequence[Adapter]) -> str:
    """The base as all adapters name it, where that is the one that was opened (a folder, or a hub's model in its cache); else its folder."""
    base = _base(call)
    names = list(dict.fromkeys(str(a.config.get("base_model_name_or_path")) for a in adapters))
    cached = f"models--{names[0].replace('/', '--')}"
    same = len(names) == 1 and (Path(names[0]).resolve() == base.resolve() or cached in base.parts)
    return names[0] if same else str(base)
